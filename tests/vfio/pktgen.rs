//! pktgen as its users run it: what it says where something is wrong, what it leaves behind, what it adds
//! up.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use becket::pci::Bdf;
use becket::pci::config::COMMAND_BUS_MASTER;
use becket::pci::sysfs::Sysfs;
use serde_json::Value;

use crate::support::*;

/// How long pktgen may take to come to traffic.
const TO_TRAFFIC: Duration = PATIENCE;
/// Frames a second that an emulated machine passes without loss, on a busy host too.
const EASY: &str = "--rate 1kpps";

/// The program: named by `BECKET_PKTGEN`, or built beside this test.
fn program() -> PathBuf {
    let beside = || {
        let exe = std::env::current_exe().unwrap();
        exe.parent().and_then(Path::parent).unwrap().join("examples/pktgen")
    };
    let path = std::env::var_os("BECKET_PKTGEN").map_or_else(beside, PathBuf::from);
    let shown = path.display();
    assert!(
        path.is_file(),
        "{shown} is not there: `cargo build -p becket --example pktgen`, in the same profile"
    );
    path
}

/// pktgen, running. Killed when dropped.
struct Run {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// pktgen, run to its end.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Run {
    fn start(args: &str) -> Self {
        Self::start_as(0, "", args)
    }

    /// As a user. `limits` are shell commands that come first.
    fn start_as(uid: u32, limits: &str, args: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = |name| std::env::temp_dir().join(format!("pktgen-{}-{number}.{name}", std::process::id()));
        let (stdout, stderr) = (file("out"), file("err"));
        let child = Command::new("sh")
            .args(["-c", &format!("{limits} exec \"$0\" {args}")])
            .arg(program())
            .uid(uid)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&stdout).unwrap())
            .stderr(fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        Self { child, stdout, stderr }
    }

    fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap()
    }

    /// Waits until frames have come in; for a run with `--json=lines`.
    fn wait_for_traffic(&mut self) {
        let end = Instant::now() + TO_TRAFFIC;
        let receives = |line: &str| {
            let value = serde_json::from_str::<Value>(line).unwrap_or_default();
            value["event"] == "second" && value["rx"]["pps"].as_f64().is_some_and(|pps| pps > 0.0)
        };
        while !self.stdout().lines().any(receives) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{status}: {}", fs::read_to_string(&self.stderr).unwrap());
            }
            assert!(Instant::now() < end, "no traffic within {TO_TRAFFIC:?}: {}", self.stdout());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, name: &str) {
        let kill = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    /// A line of its `/proc/PID/status`, kibibytes.
    fn kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits for its end.
    fn end(mut self) -> Ended {
        let limit = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < limit, "it does not end: {}", self.stdout());
            std::thread::sleep(Duration::from_millis(20));
        };
        let stderr = fs::read_to_string(&self.stderr).unwrap();
        Ended { status, stdout: self.stdout(), stderr }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = (fs::remove_file(&self.stdout), fs::remove_file(&self.stderr));
    }
}

fn pktgen(args: &str) -> Ended {
    Run::start(args).end()
}

impl Ended {
    /// The totals, of a run with `--json`.
    fn totals(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        let totals: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("no totals: {self:?}"));
        assert_eq!(totals["event"], "end");
        totals
    }

    /// The totals of a run that ended well.
    fn good(&self) -> Value {
        assert!(self.status.success(), "{self:?}");
        let totals = self.totals();
        assert_eq!(totals["adds_up"], true, "{totals}");
        totals
    }
}

fn number(totals: &Value, path: &str) -> u64 {
    totals.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {totals}"))
}

/// Everything that was sent has come in, unharmed and in order.
fn assert_all_verified(totals: &Value) {
    let sent = number(totals, "/tx/frames");
    assert!(sent > 0);
    assert_eq!(number(totals, "/verified/unique"), sent, "{totals}");
    for wrong in ["lost", "duplicates", "reordered", "stale", "corrupt", "foreign"] {
        assert_eq!(number(totals, &format!("/verified/{wrong}")), 0, "{wrong}: {totals}");
    }
}

/// What a program can leave behind of a function: its driver, and bus mastering.
fn trace(bdf: Bdf) -> (Option<String>, bool) {
    let driver = Sysfs::default().function(bdf).unwrap().driver;
    (driver, command_of(bdf) & COMMAND_BUS_MASTER != 0)
}

/// Finds nothing of a run: no bus mastering, the group free.
fn assert_free(bdf: Bdf) {
    assert_eq!(trace(bdf), (Some("vfio-pci".to_owned()), false), "{bdf}");
    let node = group_node(bdf);
    let opened = fs::OpenOptions::new().read(true).write(true).open(&node);
    assert!(opened.is_ok(), "{node} is not free: {opened:?}");
}

fn group_node(bdf: Bdf) -> String {
    format!("/dev/vfio/{}", Sysfs::default().function(bdf).unwrap().group.unwrap())
}

/// Errors seen, to find that each cause has a text of its own.
#[derive(Default)]
struct Errors(BTreeMap<String, String>);

impl Errors {
    /// Runs pktgen as a user: it has to end with `code`, to say all of `said`, and to leave `bdf` as it was.
    fn expect_as(&mut self, uid: u32, limits: &str, bdf: Bdf, args: &str, code: i32, said: &[&str]) {
        let before = trace(bdf);
        let ended = Run::start_as(uid, limits, args).end();
        assert_eq!(ended.status.code(), Some(code), "{args}: {ended:?}");
        for words in said {
            assert!(ended.stderr.contains(words), "{args}: no '{words}' in: {}", ended.stderr);
        }
        assert_eq!(trace(bdf), before, "{args}");
        let error = ended.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(!error.is_empty(), "{args}: {ended:?}");
        // Numbers apart: an error is not another one for being about another device.
        let error = error.replace(|c: char| c.is_ascii_digit(), "");
        if let Some(other) = self.0.insert(error, args.to_owned()) {
            panic!("'{args}' and '{other}' have the same error: {}", ended.stderr);
        }
    }

    fn expect(&mut self, bdf: Bdf, args: &str, code: i32, said: &[&str]) {
        self.expect_as(0, "", bdf, args, code, said);
    }
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_says_what_stands_in_the_way_and_leaves_no_trace() {
    let ports = Ports::take();
    let (sysfs, bdf, other) = (Sysfs::default(), ports.first(), ports.second());
    let (run, mut errors) = (format!("--device {bdf} --duration 1"), Errors::default());
    errors.expect(bdf, "--device 0000:7f:1f.7", 1, &["0000:7f:1f.7: no such PCI function", "lspci -D"]);
    // One that can be used and one that cannot: the first is let go.
    sysfs.unbind_vfio(other).unwrap();
    let both = format!("{run} --device {other}");
    errors.expect(bdf, &both, 1, &[&format!("{other}: bound to"), "not to vfio-pci", "driver_override"]);
    assert_free(bdf);
    let _ = sysfs.bind_vfio(other).unwrap();

    let node = group_node(bdf);
    errors.expect_as(NOBODY, "", bdf, &run, 1, &[&format!("{node}: permission denied"), "run as root"]);
    chown(&node, Some(NOBODY), None).unwrap();
    errors.expect_as(NOBODY, "ulimit -l 64;", bdf, &run, 1, &["locking", "ulimit -l unlimited"]);
    chown(&node, Some(0), None).unwrap();

    errors.expect(bdf, &format!("{run} --queues 17"), 2, &["--queues 17", &bdf.to_string(), "1 to 16"]);
    let file = std::env::temp_dir().join("no.pcap");
    let pcap = format!("{run} --pcap {}", file.display());
    errors.expect(bdf, &pcap, 1, &[file.to_str().unwrap(), "No such file"]);
    fs::write(&file, "This is no capture.").unwrap();
    errors.expect(bdf, &pcap, 1, &[file.to_str().unwrap(), "at byte 0", "editcap"]);
    fs::write(&file, [0xa1, 0xb2, 0xc3, 0xd4, 0, 2]).unwrap();
    errors.expect(bdf, &pcap, 1, &[file.to_str().unwrap(), "at byte"]);
    fs::write(&file, []).unwrap();
    errors.expect(bdf, &pcap, 1, &[file.to_str().unwrap(), "empty"]);
    fs::remove_file(&file).unwrap();
    let directory = std::env::temp_dir().join("not-there/trace.pcapng");
    let capture = format!("{run} --capture {}", directory.display());
    errors.expect(bdf, &capture, 1, &["capture file", directory.to_str().unwrap()]);
    errors.expect(bdf, &format!("{run} --cores 999"), 1, &["core 999", "nproc"]);

    set_link(bdf, false);
    errors.expect(bdf, &run, 1, &[&format!("{bdf}: no link"), "plug a cable in"]);
    set_link(bdf, true);
    ports.bdfs.iter().copied().for_each(assert_free);
    // And with nothing in the way it runs.
    pktgen(&format!("{run} --json")).good();
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_says_which_module_is_missing_and_which_driver_is_wrong() {
    let ports = Ports::take();
    let (sysfs, bdf, mut errors) = (Sysfs::default(), ports.first(), Errors::default());
    let modprobe =
        |arguments: &[&str]| assert!(Command::new("modprobe").args(arguments).status().unwrap().success());
    for bdf in &ports.bdfs {
        sysfs.unbind_vfio(*bdf).unwrap();
    }
    modprobe(&["igb"]);
    assert_eq!(sysfs.unbind_vfio(bdf).unwrap().as_deref(), Some("igb"));
    errors.expect(bdf, &format!("--device {bdf}"), 1, &["bound to igb, not to vfio-pci"]);
    modprobe(&["-r", "igb"]);
    errors.expect(bdf, &format!("--device {bdf}"), 1, &["bound to no driver"]);
    modprobe(&["-r", "vfio-pci", "vfio_iommu_type1"]);
    let before = trace(bdf);
    let ended = pktgen(&format!("--device {bdf}"));
    modprobe(&["vfio-pci", "enable_sriov=1"]);
    assert_eq!((ended.status.code(), trace(bdf)), (Some(1), before));
    assert!(ended.stderr.contains("VFIO is not available") && ended.stderr.contains("modprobe vfio-pci"));
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_refuses_arguments_that_make_no_sense() {
    let ports = Ports::take();
    let (bdf, mut errors) = (ports.first(), Errors::default());
    for (args, argument, allowed) in [
        ("--size 63", "--size", "64 to 16000"),
        ("--size 9000", "--size 9000", "--mtu"),
        ("--burst 65", "--burst", "1 to 64"),
        ("--queues 0", "--queues", "1..="),
        ("--rate fast", "--rate", "10mpps"),
        ("--cores 0,0", "--cores", "twice"),
        ("--cores 0,1", "--cores", "--queues"),
        ("--vary ttl", "--vary", "src-port"),
        ("--flows 2 --vary vlan", "--vary", "--vlan"),
        ("--duration 0", "--duration", "0.5"),
        ("--mode sideways", "--mode", "txrx"),
        ("--mode forward --count 5", "--count", "tx"),
        ("--mode forward --device null --device null", "--mode forward", "even"),
        ("--dst-mac 1:2", "--dst-mac", "02:00"),
        ("--device 01:00.0", "--device", "twice"),
        ("--device eth0", "--device", "0000:01:00.0"),
        ("--mtu 67", "--mtu", "68"),
        ("--size 64 --tcp --probes", "--size 64", "bytes or more"),
        ("--colour red", "--colour", "--help"),
    ] {
        errors.expect(bdf, &format!("--device {bdf} {args}"), 2, &[argument, allowed]);
        assert_free(bdf);
    }
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_leaves_a_device_to_the_one_who_has_it() {
    let ports = Ports::take();
    let bdf = ports.first();
    let both = format!("--device {bdf} --device {} --mode txrx {EASY} --json=lines", ports.second());
    let mut first = Run::start(&both);
    first.wait_for_traffic();
    let second = pktgen(&format!("--device {bdf} --duration 1"));
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert!(second.stderr.contains(&format!("{bdf}: IOMMU group")), "{second:?}");
    assert!(second.stderr.contains("in use by another process: stop it first"), "{second:?}");
    first.signal("INT");
    assert_all_verified(&first.end().good());
    ports.bdfs.iter().copied().for_each(assert_free);
}

/// Sets `/proc/sys/vm/nr_hugepages`, until dropped.
struct HugePages(String);

impl HugePages {
    const PATH: &str = "/proc/sys/vm/nr_hugepages";

    fn set(count: &str) -> Self {
        let before = fs::read_to_string(Self::PATH).unwrap();
        fs::write(Self::PATH, count).unwrap();
        assert_eq!(fs::read_to_string(Self::PATH).unwrap().trim(), count);
        Self(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, self.0.trim());
    }
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_without_huge_pages_runs_and_says_so() {
    let ports = Ports::take();
    let (first, second) = (ports.first(), ports.second());
    let run = format!("--device {first} --device {second} --mode txrx {EASY} --count 500 --json");
    let with = pktgen(&run);
    assert_all_verified(&with.good());
    assert!(!with.stderr.contains("huge"), "{with:?}");
    let none = HugePages::set("0");
    let without = pktgen(&run);
    drop(none);
    assert_all_verified(&without.good());
    assert!(without.stderr.contains("huge pages") && without.stderr.contains("nr_hugepages"), "{without:?}");
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_needs_less_than_64_mib() {
    let ports = Ports::take();
    let bdf = ports.first();
    let mut run = Run::start(&format!("--device {bdf} --mode tx --duration 3 --json=lines"));
    let end = Instant::now() + TO_TRAFFIC;
    while !run.stdout().contains("second") {
        assert!(run.child.try_wait().unwrap().is_none() && Instant::now() < end, "{}", run.stdout());
        std::thread::sleep(Duration::from_millis(50));
    }
    let (resident, huge) = (run.kib("VmHWM"), run.kib("HugetlbPages"));
    println!("{resident} KiB resident at the most, and {huge} KiB of huge pages");
    assert!(huge > 0, "the pool is in huge pages");
    assert!(resident + huge < 64 << 10, "{resident} + {huge} KiB");
    let totals = run.end().good();
    assert!(number(&totals, "/tx/frames") > 100);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_verifies_every_frame_of_two_devices() {
    let ports = Ports::take();
    let both = format!("--device {} --device {} --mode txrx {EASY}", ports.first(), ports.second());
    for options in ["--count 1001", "--count 1000 --size imix --vlan 5", "--count 1200 --queues 3 --flows 60"]
    {
        let totals = pktgen(&format!("{both} {options} --json")).good();
        assert_all_verified(&totals);
        let count = options.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
        assert_eq!(number(&totals, "/tx/frames"), count, "{options}");
        assert!(number(&totals, "/latency_ns/min") > 0);
    }
    let text = pktgen(&format!("{both} --count 500"));
    assert!(text.status.success() && text.stdout.contains("500 unique, 0 lost"), "{text:?}");
    assert!(text.stdout.contains("accounting") && !text.stdout.contains("NOT ADD UP"), "{text:?}");
    ports.bdfs.iter().copied().for_each(assert_free);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_at_full_speed_loses_nothing_uncounted() {
    let ports = Ports::take();
    let both = format!("--device {} --device {}", ports.first(), ports.second());
    for options in ["--mode tx", "--mode txrx", "--mode txrx --queues 4 --flows 64 --burst 64 --size imix"] {
        let totals = pktgen(&format!("{both} {options} --duration 2 --json")).good();
        let (sent, generated) = (number(&totals, "/tx/frames"), number(&totals, "/generated"));
        assert!(sent > 100 && generated >= sent, "{options}: {totals}");
    }
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_ends_well_at_ctrl_c() {
    let ports = Ports::take();
    let both = format!("--device {} --device {}", ports.first(), ports.second());
    let mut run = Run::start(&format!("{both} --mode txrx {EASY} --json=lines"));
    run.wait_for_traffic();
    assert_ne!(command_of(ports.first()) & COMMAND_BUS_MASTER, 0, "it was running");
    run.signal("INT");
    let ended = run.end();
    assert_all_verified(&ended.good());
    ports.bdfs.iter().copied().for_each(assert_free);
    // Also while it still waits for a link.
    set_link(ports.first(), false);
    let waiting = Run::start(&both);
    wait_until("bus mastering", PATIENCE, || command_of(ports.first()) & COMMAND_BUS_MASTER != 0);
    waiting.signal("INT");
    let started = Instant::now();
    let ended = waiting.end();
    set_link(ports.first(), true);
    assert!(ended.status.code().is_some() && started.elapsed() < Duration::from_secs(8), "{ended:?}");
    ports.bdfs.iter().copied().for_each(assert_free);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_killed_in_traffic_starts_again_at_once() {
    let ports = Ports::take();
    let both = format!("--device {} --device {}", ports.first(), ports.second());
    let mut run = Run::start(&format!("{both} --mode txrx --json=lines"));
    run.wait_for_traffic();
    run.child.kill().unwrap();
    assert_eq!(run.child.wait().unwrap().signal(), Some(9));
    let next = Run::start(&format!("{both} --mode txrx {EASY} --count 1000 --json"));
    // Counters begin anew: they are those of this run, or the totals would not add up.
    let totals = next.end().good();
    assert_all_verified(&totals);
    assert_eq!(number(&totals, "/tx/frames"), 1000);
    ports.bdfs.iter().copied().for_each(assert_free);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_pktgen_whose_device_vanishes_names_it_and_adds_up() {
    let bdf = Ports::take().second();
    let mut plug = Plug::of(bdf);
    let ports = Ports::take();
    let mut run =
        Run::start(&format!("--device {} --device {bdf} --mode txrx {EASY} --json=lines", ports.first()));
    run.wait_for_traffic();
    plug.pull();
    let ended = run.end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains(&format!("{bdf}: the device is gone")), "{ended:?}");
    plug.wait_gone();
    assert_free(ports.first());
    plug.put_back();
    let _ = Sysfs::default().bind_vfio(bdf).unwrap();
    let again = format!("--device {} --device {bdf} --mode txrx {EASY} --count 200 --json", ports.first());
    assert_all_verified(&pktgen(&again).good());
    // What was sent until then is told all the same.
    assert!(number(&ended.totals(), "/tx/frames") > 0);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn four_ports_pktgen_forwards_between_two_wires() {
    let ports = Ports::take();
    let [a, b, c, d] = ports.bdfs[..] else { panic!("{:?}", ports.bdfs) };
    let mut forward =
        Run::start(&format!("--device {b} --device {c} --mode forward --promiscuous --json=lines"));
    wait_until("the forwarder", PATIENCE, || forward.stdout().contains("second"));
    // What leaves at one end comes in at the other end, over both wires; both ways at once.
    let ends = pktgen(&format!("--device {a} --device {d} --mode txrx {EASY} --count 2000 --json"));
    assert!(forward.child.try_wait().unwrap().is_none(), "the forwarder ended");
    forward.signal("INT");
    let (forwarded, totals) = (forward.end().good(), ends.good());
    assert_all_verified(&totals);
    assert_eq!((number(&forwarded, "/rx/frames"), number(&forwarded, "/tx/frames")), (2000, 2000));
    ports.bdfs.iter().copied().for_each(assert_free);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn shared_group_pktgen_names_the_neighbours_to_bind() {
    let ports = Ports::take();
    let (sysfs, ours, theirs) = (Sysfs::default(), ports.first(), ports.second());
    assert!(Command::new("modprobe").arg("igb").status().unwrap().success());
    assert_eq!(sysfs.unbind_vfio(theirs).unwrap().as_deref(), Some("igb"));
    let said = ["is not viable: bind", &theirs.to_string(), "to vfio-pci too"];
    Errors::default().expect(ours, &format!("--device {ours}"), 1, &said);
    assert_eq!(sysfs.function(theirs).unwrap().driver.as_deref(), Some("igb"));
    assert_free(ours);
    let _ = sysfs.bind_vfio(theirs).unwrap();
    pktgen(&format!("--device {ours} --duration 1 --json")).good();
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn no_iommu_pktgen_says_where_to_turn_it_on() {
    let ports = Ports::unbound();
    let bdf = ports.first();
    let said = [&format!("{bdf}: in no IOMMU group"), "firmware", "intel_iommu=on"];
    Errors::default().expect(bdf, &format!("--device {bdf}"), 1, &said);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn unsupported_pktgen_names_the_device_that_nobody_drives() {
    let _ports = Ports::take();
    let bdf = functions_with((0x8086, 0x10d3))[0];
    let _ = Sysfs::default().bind_vfio(bdf).unwrap();
    let said = [&format!("{bdf}: 8086:10d3 is not supported"), "list"];
    Errors::default().expect(bdf, &format!("--device {bdf}"), 1, &said);
    assert_free(bdf);
}
