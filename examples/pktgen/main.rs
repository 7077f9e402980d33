//! pktgen: generates, checks, forwards and counts traffic. `pktgen --help` teaches it.
//!
//! * `args`: the command line. * `devices`: the ports. * `lane`: what a core does, the only hot path.
//! * `run`: from the command line to the totals. * `stats`, `table`: what is shown meanwhile.
//! * `report`: the totals, and whether they add up.

mod args;
mod devices;
mod lane;
mod report;
mod run;
mod signal;
mod stats;
mod table;

use std::process::ExitCode;

use becket::dataplane::capture::CaptureError;
use becket::dataplane::mempool::PoolError;
use becket::dataplane::worker::WorkerError;
use clap::Parser;

use crate::args::Args;

/// Why it ends early.
#[derive(Debug)]
pub enum Failure {
    /// The command line makes no sense: exit code 2.
    Usage(String),
    /// Something failed: exit code 1.
    Run(String),
}

macro_rules! failures {
    ($($error:ty),*) => { $(impl From<$error> for Failure {
        fn from(error: $error) -> Self {
            Self::Run(error.to_string())
        }
    })* };
}

failures!(becket::pci::Error, becket::driver::Error, PoolError, WorkerError, CaptureError);

fn main() -> ExitCode {
    let args = Args::parse();
    if args.devices.is_empty() {
        print!("{}", devices::list());
        return ExitCode::SUCCESS;
    }
    signal::watch();
    let done = args.check().map_err(Failure::Usage).and_then(|()| run::run(&args));
    match done {
        Ok(report) => {
            print!("{}", if args.json.is_some() { report.json() } else { report.text() });
            if report.adds_up() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(Failure::Usage(error)) => {
            eprintln!("error: {error}\n\nFor more information, try '--help'.");
            ExitCode::from(2)
        }
        Err(Failure::Run(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}
