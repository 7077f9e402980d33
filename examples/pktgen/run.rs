//! A run: ports up, lanes to cores, until it is time; then down again, and the totals.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use becket::dataplane::capture::{Capture, CaptureConfig, CaptureSummary, Captured, Running};
use becket::dataplane::generator::{Clock, FrameError, Pacer, Rate, Replay, TxGenerator, Verifier};
use becket::dataplane::{Burst, Drop, Idle, Worker};
use becket::driver::{Event, QueuePair, Rx, Tx};

use crate::Failure;
use crate::args::{Args, Mode};
use crate::devices::Devices;
use crate::lane::{Core, Lane, LaneCounters, Phase, Sender};
use crate::report::{Balance, Report, Seen};
use crate::signal;
use crate::stats::{Moment, Watched};
use crate::table::Progress;

/// How often the main thread looks.
const LOOK: Duration = Duration::from_millis(20);
/// Silence after which nothing more is expected, and how long it may take.
const QUIET: Duration = Duration::from_millis(100);
const DRAIN: Duration = Duration::from_secs(1);
/// Streams followed when somebody else sends them.
const FOREIGN_STREAMS: u16 = 256;

/// Runs what `args` say, to the totals.
pub fn run(args: &Args) -> Result<Report, Failure> {
    let clock = Clock::get();
    let mut devices = Devices::open(args)?;
    let mut capture = args.capture.as_ref().map(|path| Capture::new(path, CaptureConfig::default()));
    if let Some(path) = &args.pcap {
        // A file that cannot be sent is told before any port starts.
        replay(args, path)?;
    }
    let pairs = devices.start(args)?;
    let queues = split(args, &devices, pairs, &mut capture);
    let lanes = lanes(args, &devices, queues, clock)?;
    let capture = capture.map(Capture::start).transpose()?;
    let watched: Vec<_> = lanes.iter().map(Watched::new).collect();

    let phase = Phase::running();
    let start = Moment::now(&watched);
    let mut workers = Vec::new();
    for (core, core_lanes) in deal(args, lanes) {
        let name = core.map_or_else(|| "worker".to_owned(), |core| format!("core {core}"));
        let task = Core { lanes: core_lanes, pool: devices.pool.cache(), clock, phase: phase.clone() };
        workers.push(Worker::spawn(&name, core, Idle::Poll, task)?);
    }
    let names: Vec<_> = devices.all.iter().map(|device| device.name.clone()).collect();
    let mut progress = Progress::new(args, names, start.clone());
    let attended = attend(args, &mut devices, &watched, &workers, &mut progress);
    let end = Moment::now(&watched);
    phase.drain();
    settle(args, &watched);
    let mut cores = workers.into_iter().map(Worker::stop).collect::<Result<Vec<_>, _>>()?;
    cores.iter_mut().for_each(Core::close);
    let (report, stopped) = finish(args, devices, cores, capture, &watched, (start, end))?;
    let ended = attended.and(stopped);
    if ended.is_err() {
        // The totals are worth having all the same, and tell what was lost.
        print!("{}", if args.json.is_some() { report.json() } else { report.text() });
    }
    ended.map(|()| report)
}

/// A lane's queues: the ports they are of, the queue's number, and the ends.
type Queues = ((usize, usize, u16), Captured<Rx>, Captured<Tx>);

/// Puts the RX queues of each port together with the TX queues that they work with.
fn split(
    args: &Args,
    devices: &Devices,
    pairs: Vec<Vec<QueuePair>>,
    capture: &mut Option<Capture>,
) -> Vec<Queues> {
    let paired = |at: usize| if args.mode == Mode::Forward && devices.all.len() > 1 { at ^ 1 } else { at };
    let (mut receivers, mut senders) = (Vec::new(), Vec::new());
    for (at, port) in pairs.into_iter().enumerate() {
        for pair in port {
            let name = format!("{} queue {}", devices.all[at].name, pair.index);
            let taps = capture.as_mut().map(|capture| {
                let interface = capture.interface(name);
                (capture.received(interface), capture.sent(interface))
            });
            let (rx_tap, tx_tap) = taps.unzip();
            receivers.push((at, pair.index, Captured::new(pair.rx, rx_tap)));
            // In the order of the RX queues that they go with.
            senders.push((paired(at), pair.index, at, Captured::new(pair.tx, tx_tap)));
        }
    }
    senders.sort_by_key(|(from, queue, _, _)| (*from, *queue));
    let both = receivers.into_iter().zip(senders);
    both.map(|((from, queue, rx), (_, _, to, tx))| ((from, to, queue), rx, tx)).collect()
}

/// One lane for each RX and TX queue.
fn lanes(args: &Args, devices: &Devices, queues: Vec<Queues>, clock: Clock) -> Result<Vec<Lane>, Failure> {
    let count = queues.len() as u64;
    let mut lanes = Vec::new();
    for (number, (place, rx, tx)) in queues.into_iter().enumerate() {
        let sender = if args.mode.generates() {
            Some(sender(args, devices, place, number as u16, (number as u64, count), clock)?)
        } else {
            None
        };
        let streams = match args.mode {
            Mode::Txrx => Some(count as u16),
            Mode::Rx if args.probes => Some(FOREIGN_STREAMS),
            _ => None,
        };
        lanes.push(Lane {
            place,
            mode: args.mode,
            burst: args.burst,
            rx,
            tx,
            sender,
            verifier: streams.map(Verifier::new),
            counters: Arc::<LaneCounters>::default(),
            outgoing: Burst::new(),
        });
    }
    Ok(lanes)
}

fn sender(
    args: &Args,
    devices: &Devices,
    (_, port, queue): (usize, usize, u16),
    stream: u16,
    (number, count): (u64, u64),
    clock: Clock,
) -> Result<Sender, Failure> {
    let device = &devices.all[port];
    let generator = if let Some(path) = &args.pcap {
        TxGenerator::replay(replay(args, path)?)
    } else {
        let dst_mac = args.dst_mac.unwrap_or_else(|| devices.peer_mac(port));
        let mix = args.frames(device.mac().0, dst_mac.0);
        let flows = args.flows().map_err(Failure::Usage)?;
        let stream = args.numbers().then_some(stream);
        TxGenerator::new(&mix, flows, stream).map_err(too_short)?
    };
    let pace = |rate: Rate| {
        let rate = rate.on_link(device.link().speed)?.share(queue.into(), args.queues.into());
        Pacer::new(rate, clock.hz(), clock.now())
    };
    let pacer =
        args.rate.map(pace).transpose().map_err(|error| Failure::Usage(format!("--rate: {error}")))?;
    let budget = match args.count.map(Rate::Frames).map(|total| total.share(number, count)) {
        Some(Rate::Frames(budget)) => budget,
        _ => u64::MAX,
    };
    Ok(Sender { generator, pacer, budget })
}

/// In the words of the command line, which counts the FCS.
fn too_short(error: FrameError) -> Failure {
    Failure::Usage(match error {
        FrameError::Length { len, what, least, .. } => {
            format!("--size {}: {what} take {} bytes or more, FCS included", len + 4, least + 4)
        }
        other => format!("--size: {other}"),
    })
}

fn replay(args: &Args, path: &Path) -> Result<Replay, Failure> {
    Replay::open(path, args.longest()).map_err(|error| Failure::Run(error.to_string()))
}

/// Deals the lanes out to the cores, in turn.
fn deal(args: &Args, lanes: Vec<Lane>) -> Vec<(Option<usize>, Vec<Lane>)> {
    let cores: Vec<_> = args.cores.0.iter().copied().map(Some).collect();
    let cores = if cores.is_empty() { vec![None] } else { cores };
    let mut dealt: Vec<_> = cores.into_iter().map(|core| (core, Vec::new())).collect();
    let count = dealt.len();
    for (at, lane) in lanes.into_iter().enumerate() {
        dealt[at % count].1.push(lane);
    }
    dealt
}

/// Shows progress and listens to the ports until it is time to end.
fn attend(
    args: &Args,
    devices: &mut Devices,
    watched: &[Watched],
    workers: &[Worker<Core>],
    progress: &mut Progress,
) -> Result<(), Failure> {
    let start = Instant::now();
    let mut shown = Duration::from_secs(1);
    loop {
        let elapsed = start.elapsed();
        let left = args.duration.map_or(LOOK, |duration| duration.0.saturating_sub(elapsed));
        let sent_all = args.count.is_some() && watched.iter().all(|w| w.lane.done.get() > 0);
        if left.is_zero() || sent_all || signal::stopped() {
            return Ok(());
        }
        if workers.iter().any(Worker::is_finished) {
            // Stopping it tells why.
            return Ok(());
        }
        if elapsed >= shown {
            shown += Duration::from_secs(1);
            progress.show(watched);
        }
        listen(devices)?;
        std::thread::sleep(left.min(LOOK));
    }
}

/// Tells what the ports have to tell, and mends what can be mended.
fn listen(devices: &mut Devices) -> Result<(), Failure> {
    for device in &mut devices.all {
        let Some(port) = &mut device.port else { continue };
        for event in port.events() {
            match event {
                Event::Link(link) if link.up => eprintln!("{}: link up, {} Mbit/s", device.name, link.speed),
                Event::Link(_) => eprintln!("{}: link down", device.name),
                Event::TxHang { queue } => {
                    eprintln!("{}: TX queue {queue} hangs: resetting the port", device.name);
                    port.recover()?;
                }
                Event::DeviceFault => {
                    eprintln!("{}: the device reports a fault: resetting the port", device.name);
                    port.recover()?;
                }
                Event::Removed => return Err(Failure::Run(format!("{}: the device is gone", device.name))),
                other => eprintln!("{}: {other:?}", device.name),
            }
        }
    }
    Ok(())
}

/// Waits until everything sent is on the wire, and, where frames are expected back, nothing more comes.
fn settle(args: &Args, watched: &[Watched]) {
    let start = Instant::now();
    let (mut last, mut since) = (Moment::now(watched).total(), Instant::now());
    while start.elapsed() < DRAIN {
        let now = Moment::now(watched).total();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        let under_way =
            |w: &Watched| w.tx.frames.get() > w.tx.completed.get() + w.tx.dropped(Drop::TxFlushed);
        let sent = !watched.iter().any(under_way);
        let quiet = args.mode != Mode::Txrx || since.elapsed() >= QUIET;
        if sent && quiet {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Stops the ports, gives every buffer back, and adds up.
fn finish(
    args: &Args,
    mut devices: Devices,
    cores: Vec<Core>,
    capture: Option<Running>,
    watched: &[Watched],
    (start, end): (Moment, Moment),
) -> Result<(Report, Result<(), Failure>), Failure> {
    let hardware: Vec<_> =
        devices.all.iter_mut().map(|device| (device.name.clone(), device.statistics())).collect();
    let stopped = devices.stop();
    let seen = Seen::of(&cores);
    drop(cores);
    let captured: Option<CaptureSummary> = capture.map(Running::close).transpose()?;
    let Devices { all, pool, .. } = devices;
    drop(all);
    let held = (pool.capacity() - pool.available()) as u64;
    let buffers = Balance::new(
        "buffers allocated",
        pool.capacity() as u64,
        &[("free", pool.available() as u64), ("held", held)],
    );
    let buffers = buffers.and(held == 0);
    Ok((Report::new(args, watched, (&start, &end), &hardware, seen, captured, buffers), stopped))
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
