//! In a virtual machine: `pktgen` and testpmd on the same emulated 82576, over VFIO and its IOMMU.
//!
//! The guest has two ports on one hub. Only one process can own a port, so each slice starts its program
//! afresh and counts what it moves once it runs. For receiving, the other port sends without pause,
//! driven by our pktgen for both.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use becket::pci::sysfs::Sysfs;

use crate::testpmd::{Device, Testpmd};
use crate::{Args, Case, Work, report};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Where tests/vm/run puts the ports.
const PORT: &str = "0000:01:00.0";
const OTHER: &str = "0000:02:00.0";

/// On the host: builds pktgen, boots the guest and runs this program in it.
pub fn boot(args: &Args) -> Result<()> {
    let built = Command::new("cargo")
        .args(["build", "--release", "--example", "pktgen", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()?;
    let messages = String::from_utf8_lossy(&built.stdout).into_owned();
    let executable = messages.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        rest.split_once('"').map(|(path, _)| path.to_owned())
    });
    let pktgen =
        executable.ok_or("pktgen does not build: `cargo build --release --example pktgen` says why")?;
    let cases = args.cases();
    let list = |items: Vec<String>| items.join(",");
    let (works, bursts) =
        cases.iter().map(|c| (c.work.name().to_owned(), c.burst.to_string())).unzip::<_, _, Vec<_>, Vec<_>>();
    let dedup = |mut items: Vec<String>| {
        items.dedup();
        list(items)
    };
    let status = Command::new("tests/vm/run")
        .args(["--nics", "2", "--hugepages", "320", "--timeout", "1500", "--out"])
        .arg(&args.out)
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(["guest", "--pktgen", &pktgen, "--pairs", &args.pairs.to_string()])
        .args(["--core", &args.core.to_string(), "--slice", &args.slice.unwrap_or(2000).to_string()])
        .args(["--work", &dedup(works), "--bursts", &dedup(bursts)])
        .status()
        .map_err(|e| format!("tests/vm/run: {e}: run this from the project's root"))?;
    if status.success() { Ok(()) } else { Err(format!("the guest's run failed: {status}").into()) }
}

/// In the guest: all cases.
pub fn measure(args: &Args, cases: &[Case], pktgen: &Path) -> Result<()> {
    for port in [PORT, OTHER] {
        // The guest is thrown away: nothing is given back.
        drop(Sysfs::default().bind_vfio(port.parse()?)?);
    }
    let slice = args.slice.unwrap_or(2000);
    let duration = Duration::from_millis(slice);
    let mut report = report::Report::new("guest", args.pairs, slice);
    for &case in cases {
        let sender = (case.work == Work::Rxonly).then(|| Sender::start(pktgen, args.core)).transpose()?;
        let mut pairs = Vec::new();
        for turn in 0..args.pairs {
            let first = (turn % 2 == 0).then(|| ours(pktgen, case, args.core, duration)).transpose()?;
            let theirs = theirs(case, args.core, duration)?;
            let ours = first.map_or_else(|| ours(pktgen, case, args.core, duration), Ok)?;
            eprintln!("pair {turn}: {:.3} Mpps to {:.3}", ours / 1e6, theirs / 1e6);
            pairs.push((ours, theirs));
        }
        drop(sender);
        report.add(case, &pairs, None);
    }
    let out = std::env::var_os("BECKET_OUT").map_or_else(|| args.out.clone(), Into::into);
    report.write(&out)
}

fn theirs(case: Case, core: usize, duration: Duration) -> Result<f64> {
    let mut peer = Testpmd::start(core, Device::Pci(PORT))?;
    peer.select(case)?;
    // The link comes up within a second of the start; frames before that are lost.
    std::thread::sleep(Duration::from_secs(1));
    peer.slice(duration, case.work == Work::Rxonly)
}

fn ours(pktgen: &Path, case: Case, core: usize, duration: Duration) -> Result<f64> {
    let output = generator(pktgen, PORT, case, core)
        .args(["--duration", &format!("{:.3}", duration.as_secs_f64())])
        .stderr(Stdio::inherit())
        .output()?;
    let totals: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("pktgen's totals: {e}: {}", String::from_utf8_lossy(&output.stdout)))?;
    let direction = if case.work == Work::Rxonly { "rx" } else { "tx" };
    totals[direction]["pps"]
        .as_f64()
        .ok_or_else(|| format!("pktgen's totals have no {direction}: {totals}").into())
}

fn generator(pktgen: &Path, port: &str, case: Case, core: usize) -> Command {
    let mode = if case.work == Work::Rxonly { "rx" } else { "tx" };
    let mut command = Command::new(pktgen);
    command.args(["--device", port, "--mode", mode, "--size", "68", "--burst", &case.burst.to_string()]);
    command.args(["--cores", &core.to_string(), "--json"]);
    // As testpmd does.
    if mode == "rx" {
        command.arg("--promiscuous");
    }
    command
}

/// The other port, sending for as long as this lives.
struct Sender(Child);

impl Sender {
    fn start(pktgen: &Path, core: usize) -> Result<Self> {
        let other = usize::from(core == 0);
        let case = Case { work: Work::Txonly, burst: 32 };
        let child = generator(pktgen, OTHER, case, other).stdout(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_secs(2));
        Ok(Self(child))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // SAFETY is the kernel's: the child is ours and not yet waited for.
        let _ = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}
