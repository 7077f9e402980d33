use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Args, String> {
    let words = std::iter::once("pktgen").chain(line.split_whitespace());
    let args = Args::try_parse_from(words).map_err(|error| {
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    })?;
    args.check().map(|()| args)
}

#[test]
fn the_command_line_is_consistent() {
    Args::command().debug_assert();
}

#[test]
fn every_example_of_the_help_is_accepted() {
    let text = EXAMPLES.replace("\\\n", " ");
    let lines: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("pktgen ")).collect();
    assert!(lines.len() >= 6);
    for line in lines {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn what_makes_no_sense_is_named_with_what_is_allowed() {
    let cases = [
        ("--device eth0", "--device", "0000:01:00.0"),
        ("--device null --size 63", "--size", "64 to 16000"),
        ("--device null --size big", "--size", "imix"),
        ("--device null --size 9018", "--size 9018", "--mtu 9000"),
        ("--device null --burst 65", "--burst", "1 to 64"),
        ("--device null --burst 0", "--burst", "1 to 64"),
        ("--device null --cores 1,x", "--cores", "2,4-7"),
        ("--device null --cores 3-1", "--cores", "2,4-7"),
        ("--device null --cores 1,1", "--cores", "twice"),
        ("--device null --cores 0,1", "--cores", "--queues"),
        ("--device null --queues 0", "--queues", "1..=128"),
        ("--device null --rate fast", "--rate", "10mpps"),
        ("--device null --rate 101%", "--rate", "100%"),
        ("--device null --vary ttl", "--vary", "src-port"),
        ("--device null --flows 0", "--flows", "src-ip"),
        ("--device null --flows 70000 --vary src-port", "--flows", "64512"),
        ("--device null --flows 2 --vary vlan", "--vary", "--vlan"),
        ("--device null --duration 0", "--duration", "0.5"),
        ("--device null --count 0", "--count", "1.."),
        ("--device null --mode forward --count 5", "--count", "tx"),
        ("--device null --mode rx --pcap x", "--pcap", "tx"),
        ("--device null --pcap x --probes", "--pcap", "--probes"),
        ("--device null --mode echo --probes", "--probes", "rx"),
        ("--device null --mode up", "--mode", "txrx"),
        ("--device null --json=often", "--json", "lines"),
        ("--device null --mtu 9217", "--mtu", "9216"),
        ("--device null --dst-mac 1:2", "--dst-mac", "02:00"),
        ("--device null --device null --device null --mode forward", "--mode forward", "even"),
        ("--device 01:00.0 --device 0000:01:00.0", "--device", "twice"),
    ];
    for (line, argument, allowed) in cases {
        let error = parse(line).map(|_| ()).unwrap_err();
        assert!(error.contains(argument) && error.contains(allowed), "{line}: {error}");
    }
}

#[test]
fn sizes_count_the_fcs_and_fit_the_mtu() {
    let args = parse("--device null --size imix --vlan 7").unwrap();
    let frames = args.frames([2; 6], [4; 6]);
    assert_eq!(frames.len(), 12);
    assert!(frames.iter().all(|frame| frame.vlan == Some(7) && [60, 590, 1514].contains(&frame.len)));
    assert_eq!(parse("--device null --size 9018 --mtu 9000").unwrap().frames([2; 6], [4; 6])[0].len, 9014);
    let args = parse("--device null --ipv6 --tcp --size 1518").unwrap();
    let frame = &args.frames([2; 6], [4; 6])[0];
    assert!(matches!(frame.network, Network::V6(..)) && frame.transport == Transport::Tcp);
}

#[test]
fn json_takes_a_when_or_none() {
    let json = |line| parse(line).unwrap().json;
    assert_eq!(json("--device null"), None);
    assert_eq!(json("--device null --json"), Some(Json::End));
    assert_eq!(json("--device null --json=lines --burst 4"), Some(Json::Lines));
    assert_eq!(parse("--device null --cores 2,4-6 --queues 4").unwrap().cores.0, [2, 4, 5, 6]);
}
