//! dpdk-testpmd, kept running and told when to forward.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Case;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A testpmd that waits for commands. Its worker sleeps while it does not forward.
pub struct Testpmd {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What it drives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device<'a> {
    /// The driver with no device.
    Null,
    /// The function at this address, bound to vfio-pci.
    Pci(&'a str),
}

/// Arguments behind the EAL's: buffers and topology, and an RX ring as long as ours.
pub const APPLICATION: &[&str] = &[
    "--",
    "-i",
    "--nb-cores=1",
    "--total-num-mbufs=8192",
    "--port-topology=loop",
    "--forward-mode=io",
    "--rxd=1024",
];

impl Testpmd {
    /// Starts it on `device` with its worker on `core`.
    pub fn start(core: usize, device: Device<'_>) -> Result<Self> {
        // The main core only reads commands: any other one will do.
        let main = usize::from(core == 0);
        let memory: &[&str] =
            if huge_pages() { &["--in-memory", "-m", "256"] } else { &["--no-huge", "-m", "256"] };
        // Its output is read line by line: without stdbuf it would come in blocks.
        let mut child = Command::new("stdbuf")
            .args(["-oL", "dpdk-testpmd", "-l", &format!("{main},{core}"), "--main-lcore", &main.to_string()])
            .args(["--no-telemetry", "--file-prefix=becket-peers"])
            .args(device.arguments())
            .args(memory)
            .args(APPLICATION)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("dpdk-testpmd does not start ({e}): `apt-get install dpdk`"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("dpdk-testpmd has no pipes".into());
        };
        let mut peer = Self { child, input, output: BufReader::new(output) };
        peer.read_until(|line| line.starts_with("Done"))?;
        Ok(peer)
    }

    /// Chooses the next slices' work.
    pub fn select(&mut self, case: Case) -> Result<()> {
        writeln!(self.input, "set fwd {}\nset burst {}", case.work.name(), case.burst)?;
        Ok(())
    }

    /// Forwards for about `duration`; packets a second, received where `received`, else sent.
    pub fn slice(&mut self, duration: Duration, received: bool) -> Result<f64> {
        writeln!(self.input, "start")?;
        self.input.flush()?;
        let begun = Instant::now();
        std::thread::sleep(duration);
        writeln!(self.input, "stop")?;
        self.input.flush()?;
        let elapsed = begun.elapsed();
        self.read_until(|line| line.contains("Accumulated forward statistics"))?;
        let count = if received { "RX-packets:" } else { "TX-packets:" };
        let line = self.read_until(|line| line.trim_start().starts_with(count))?;
        let packets = line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
        let packets = packets.ok_or_else(|| format!("no packet count in testpmd's line '{line}'"))?;
        self.read_until(|line| line.starts_with("Done"))?;
        Ok(packets as f64 / elapsed.as_secs_f64())
    }

    fn read_until(&mut self, found: impl Fn(&str) -> bool) -> Result<String> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err("dpdk-testpmd ended early: run it by hand to see why".into());
            }
            if found(&line) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = writeln!(self.input, "quit");
        let _ = self.input.flush();
        let ended = Instant::now() + Duration::from_secs(3);
        while Instant::now() < ended && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Device<'_> {
    fn arguments(self) -> Vec<String> {
        match self {
            Self::Null => vec!["--no-pci".to_owned(), "--vdev=net_null0".to_owned()],
            Self::Pci(address) => vec!["-a".to_owned(), address.to_owned()],
        }
    }
}

/// True where 256 MiB of huge pages are free: both programs then use them.
fn huge_pages() -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    free.and_then(|n| n.trim().parse::<u64>().ok()).is_some_and(|pages| pages >= 160)
}

/// What `dpkg` calls it.
pub fn version() -> String {
    let query = Command::new("dpkg-query").args(["-W", "-f", "${Version}", "dpdk"]).output();
    query.map_or_else(|_| "unknown".to_owned(), |o| String::from_utf8_lossy(&o.stdout).into_owned())
}
