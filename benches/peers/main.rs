//! Becket against DPDK on the same work: interleaved slices on one core.
//!
//! * `cargo bench --bench peers`: the datapath over ports with no device.
//! * `cargo bench --bench peers -- guest`: the igb driver over VFIO on an emulated 82576 in a virtual
//!   machine.
//!
//! Each prints a table and writes it as JSON and as a plot into `target/bench`. One number of a shared machine proves nothing: each case is 20 pairs
//! of slices, one of each program on the same core in turn, and the result is the median of the pairs'
//! ratios with its interquartile range. Instructions a packet stand beside it: they do not depend on the
//! neighbours.

mod guest;
mod instructions;
mod ours;
mod report;
mod testpmd;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// One kind of work both programs can do on a port with no device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Work {
    /// Receive and send on, nothing touched (testpmd `io`).
    Io,
    /// Send one constant 64-byte frame (testpmd `txonly`).
    Txonly,
    /// Send frames whose addresses vary (testpmd `flowgen`).
    Flowgen,
    /// Receive and drop (testpmd `rxonly`).
    Rxonly,
}

impl Work {
    /// The name both programs give it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Txonly => "txonly",
            Self::Flowgen => "flowgen",
            Self::Rxonly => "rxonly",
        }
    }
}

/// Work and burst size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// What is done.
    pub work: Work,
    /// Frames in a burst.
    pub burst: usize,
}

/// Measures Becket against dpdk-testpmd on the same work, interleaved on one core.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench peers --")]
struct Args {
    /// Where: `native` (no device), or `guest` (an 82576 in a virtual machine).
    #[arg(value_enum, default_value = "native")]
    place: Place,
    /// Pairs of slices a case.
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// Milliseconds a slice; 500 natively, 2000 in the guest.
    #[arg(long)]
    slice: Option<u64>,
    /// The core that both programs run on, in turn.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Burst sizes; 1 to 64 natively, 32 in the guest.
    #[arg(long, value_delimiter = ',')]
    bursts: Vec<usize>,
    /// Kinds of work; all that the place has where none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    work: Vec<Work>,
    /// Counts instructions a packet too, under valgrind (a minute a case; natively).
    #[arg(long)]
    instructions: bool,
    /// Where the report goes.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Runs one case of ours for so many frames and nothing else: what `--instructions` runs in valgrind.
    #[arg(long, hide = true)]
    only_ours: Option<u64>,
    /// The pktgen to measure: what `guest` gives to itself in the virtual machine.
    #[arg(long, hide = true)]
    pktgen: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Where the programs run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Place {
    Native,
    Guest,
}

impl Args {
    fn cases(&self) -> Vec<Case> {
        let (works, bursts): (&[Work], &[usize]) = match self.place {
            Place::Native => (&[Work::Io, Work::Txonly, Work::Flowgen], &[1, 4, 8, 16, 32, 64]),
            Place::Guest => (&[Work::Txonly, Work::Rxonly], &[32]),
        };
        let works = if self.work.is_empty() { works } else { &self.work };
        let bursts = if self.bursts.is_empty() { bursts } else { &self.bursts };
        works.iter().flat_map(|&work| bursts.iter().map(move |&burst| Case { work, burst })).collect()
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let cases = args.cases();
    match (args.only_ours, &args.pktgen, args.place) {
        (Some(frames), ..) => ours::frames(cases[0], frames).map(drop),
        (None, Some(pktgen), _) => guest::measure(args, &cases, pktgen),
        (None, None, Place::Guest) => guest::boot(args),
        (None, None, Place::Native) => native(args, &cases),
    }
}

fn native(args: &Args, cases: &[Case]) -> Result<(), Box<dyn std::error::Error>> {
    let slice = args.slice.unwrap_or(500);
    let duration = Duration::from_millis(slice);
    let mut peer = testpmd::Testpmd::start(args.core, testpmd::Device::Null)?;
    let mut report = report::Report::new("native", args.pairs, slice);
    for &case in cases {
        peer.select(case)?;
        let mut pairs = Vec::new();
        for turn in 0..args.pairs {
            // Each goes first in every second pair, so that a drift of the machine favours neither.
            let first = (turn % 2 == 0).then(|| ours::slice(case, args.core, duration)).transpose()?;
            let theirs = peer.slice(duration, false)?;
            let ours = first.map_or_else(|| ours::slice(case, args.core, duration), Ok)?;
            pairs.push((ours, theirs));
        }
        let instructions = args.instructions.then(|| instructions::both(case)).transpose()?;
        report.add(case, &pairs, instructions);
    }
    report.write(&args.out)
}
