use super::*;
use clap::Parser;
use serde_json::Value;

fn run_line(line: &str) -> Value {
    let args = Args::parse_from(std::iter::once("pktgen").chain(line.split_whitespace()));
    args.check().unwrap();
    let report = run(&args).unwrap_or_else(|error| panic!("{line}: {error:?}"));
    let value: Value = serde_json::from_str(&report.json()).unwrap();
    assert!(report.adds_up(), "{line}: {}", report.text());
    assert_eq!(value["adds_up"], true);
    value
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {value}"))
}

#[test]
fn a_million_frames_over_a_loop_come_back_each_once_and_in_order() {
    let report =
        run_line("--device loop --mode txrx --count 1200000 --flows 100 --vary src-ip,dst-port --json");
    for path in ["/generated", "/tx/frames", "/rx/frames", "/verified/unique"] {
        assert_eq!(number(&report, path), 1_200_000, "{path}");
    }
    for what in ["lost", "duplicates", "reordered", "stale", "corrupt", "foreign"] {
        assert_eq!(number(&report, &format!("/verified/{what}")), 0, "{what}");
    }
    assert_eq!(report["drops"], serde_json::json!({}));
    let latency = |name| number(&report, &format!("/latency_ns/{name}"));
    assert!(latency("min") > 0 && latency("min") <= latency("p50") && latency("p50") <= latency("p99"));
    assert!(latency("p99") <= latency("p999") && latency("p999") <= latency("max"));
}

#[test]
fn two_queues_on_two_cores_split_the_count() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let list = if cores > 1 { "0,1" } else { "0" };
    let line =
        format!("--device loop --mode txrx --queues 2 --cores {list} --count 100001 --size imix --json");
    let report = run_line(&line);
    assert_eq!((number(&report, "/tx/frames"), number(&report, "/verified/unique")), (100_001, 100_001));
    assert_eq!(number(&report, "/verified/lost"), 0);
}

#[test]
fn every_mode_adds_up_over_null_and_loop() {
    for mode in ["tx", "rx", "rx --probes", "forward", "echo", "tx --probes", "tx --size imix --ipv6"] {
        for burst in [1, 32, 64] {
            let report =
                run_line(&format!("--device null --mode {mode} --burst {burst} --duration 0.05 --json"));
            let frames = number(&report, "/tx/frames") + number(&report, "/rx/frames");
            assert!(frames > 1000, "{mode}, {burst}: {report}");
        }
    }
    let report = run_line("--device null --device null --mode forward --queues 2 --duration 0.05 --json");
    assert_eq!(number(&report, "/tx/frames"), number(&report, "/rx/frames"));
    // Nobody takes what this loop receives: the ring fills, and what is left is dropped by name.
    let report = run_line("--device loop --mode tx --duration 0.05 --json");
    assert_eq!(number(&report, "/tx/frames"), 512);
    assert!(number(&report, "/drops/tx_ring_full") > 0);
}

#[test]
fn a_paced_sender_keeps_its_rate() {
    let report = run_line("--device null --rate 200kpps --duration 0.5 --json");
    let (sent, forgiven) = (number(&report, "/tx/frames"), number(&report, "/pacer_forgiven"));
    let due = (report["seconds"].as_f64().unwrap() * 200_000.0) as u64;
    // Between the two readings of the clocks a machine may be busy elsewhere: for up to 20 ms here.
    assert!((sent + forgiven).abs_diff(due) < 4000, "{sent} + {forgiven} of {due}");
}

#[test]
fn a_capture_holds_what_went_over_the_wire_and_can_be_sent_again() {
    let path = std::env::temp_dir().join(format!("pktgen-{}.pcapng", std::process::id()));
    let file = path.display();
    let report = run_line(&format!("--device loop --mode txrx --count 3000 --capture {file} --json"));
    assert_eq!(number(&report, "/captured_frames"), 6000);
    let report = run_line(&format!("--device null --pcap {file} --count 12000 --json"));
    assert_eq!((number(&report, "/tx/frames"), number(&report, "/tx/bytes")), (12_000, 720_000));
    std::fs::write(&path, b"no capture").unwrap();
    let args = Args::parse_from(["pktgen", "--device", "null", "--pcap", path.to_str().unwrap()]);
    let Err(Failure::Run(error)) = run(&args) else { panic!("sent what is no capture") };
    assert!(error.contains(path.to_str().unwrap()) && error.contains("byte 0"), "{error}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_cannot_be_is_told_by_argument() {
    for (line, argument) in [
        ("--device null --rate 40%", "--rate"),
        ("--device null --size 64 --tcp --probes", "--size"),
        ("--device null --size 64 --ipv6", "--size"),
    ] {
        let args = Args::parse_from(std::iter::once("pktgen").chain(line.split_whitespace()));
        args.check().unwrap();
        match run(&args) {
            Err(Failure::Usage(error)) => assert!(error.starts_with(argument), "{error}"),
            Err(other) => panic!("{line}: {other:?}"),
            Ok(_) => panic!("{line} ran"),
        }
    }
    let args = Args::parse_from(["pktgen", "--device", "null", "--cores", "1023"]);
    assert!(matches!(run(&args), Err(Failure::Run(error)) if error.contains("1023")));
}
