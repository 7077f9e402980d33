//! Instructions a packet, counted by valgrind: the slope between a short and a long run, so that what
//! starting up costs falls out.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Case;
use crate::testpmd::APPLICATION;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Ours and testpmd's.
#[derive(Clone, Copy, Debug)]
pub struct Instructions {
    /// Becket's.
    pub ours: f64,
    /// DPDK's.
    pub theirs: f64,
}

/// Counts both.
pub fn both(case: Case) -> Result<Instructions> {
    Ok(Instructions { ours: ours(case)?, theirs: theirs(case)? })
}

fn ours(case: Case) -> Result<f64> {
    let program = std::env::current_exe()?;
    let count = |frames: u64| -> Result<f64> {
        let mut command = valgrind();
        command.arg(&program).args(["--work", case.work.name(), "--bursts", &case.burst.to_string()]);
        let output = command.args(["--only-ours", &frames.to_string()]).output()?;
        collected(&String::from_utf8_lossy(&output.stderr))
    };
    let (short, long) = (1 << 20, 3 << 20);
    Ok((count(long)? - count(short)?) / (long - short) as f64)
}

fn theirs(case: Case) -> Result<f64> {
    let (short, long) = (testpmd(case, 2)?, testpmd(case, 8)?);
    Ok((long.0 - short.0) / (long.1 - short.1))
}

/// One run in valgrind that forwards for so many seconds: instructions and packets.
fn testpmd(case: Case, seconds: u64) -> Result<(f64, f64)> {
    let mut child = valgrind()
        .args(["dpdk-testpmd", "-l", "0,1", "--no-huge", "-m", "64", "--no-pci", "--no-telemetry"])
        .args(["--file-prefix=becket-count", "--vdev=net_null0"])
        .args(APPLICATION)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().ok_or("no pipe")?;
    // The prompt reads its commands when it gets there: only the time between start and stop counts.
    std::thread::sleep(Duration::from_secs(10));
    writeln!(input, "set fwd {}\nset burst {}\nstart", case.work.name(), case.burst)?;
    std::thread::sleep(Duration::from_secs(seconds));
    writeln!(input, "stop\nquit")?;
    drop(input);
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let packets = text.lines().rev().find_map(|line| line.trim_start().strip_prefix("TX-packets:"));
    let packets = packets.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let packets = packets.ok_or("testpmd in valgrind told no packets")?;
    Ok((collected(&String::from_utf8_lossy(&output.stderr))?, packets))
}

fn valgrind() -> Command {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command
}

fn collected(text: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.split_once("Collected :"));
    let count = line.and_then(|(_, n)| n.trim().parse().ok());
    count.ok_or_else(|| "valgrind gave no count: `apt-get install valgrind`".into())
}
