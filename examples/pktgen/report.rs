//! The totals, and whether they add up.

use std::collections::BTreeMap;
use std::fmt::Write;

use becket::dataplane::Drop;
use becket::dataplane::capture::CaptureSummary;
use becket::dataplane::generator::{Clock, Latency, StreamReport};
use becket::driver::PortStatistics;
use serde::Serialize;

use crate::args::{Args, Mode};
use crate::lane::Core;
use crate::stats::{Flow, Moment, Speed, Watched, all_drops, named};

/// What the lanes knew at the end.
#[derive(Default)]
pub struct Seen {
    /// Each stream's parts on all queues put together; then all streams added up.
    streams: StreamReport,
    missing: u64,
    corrupt: u64,
    foreign: u64,
    verified: bool,
    latency: Latency,
    forgiven: u64,
}

impl Seen {
    pub fn of(cores: &[Core]) -> Self {
        let mut seen = Self::default();
        let mut streams = BTreeMap::<u16, StreamReport>::new();
        for lane in cores.iter().flat_map(|core| &core.lanes) {
            if let Some(verifier) = &lane.verifier {
                seen.verified = true;
                let counters = verifier.counters();
                seen.corrupt += counters.corrupt.get();
                seen.foreign += counters.foreign.get();
                for (stream, report) in verifier.reports() {
                    let sum = streams.entry(stream).or_default();
                    *sum = sum.merge(report);
                }
                seen.latency.merge(verifier.latency());
            }
            let pacer = lane.sender.as_ref().and_then(|sender| sender.pacer.as_ref());
            seen.forgiven += pacer.map_or(0, |pacer| pacer.forgiven());
        }
        seen.missing = streams.values().map(StreamReport::missing).sum();
        seen.streams = streams.into_values().fold(StreamReport::default(), StreamReport::merge);
        seen
    }
}

/// An equation that must hold.
#[derive(Clone, Serialize, Debug)]
pub struct Balance {
    what: String,
    total: u64,
    parts: Vec<(String, u64)>,
    holds: bool,
}

impl Balance {
    pub fn new(what: &str, total: u64, parts: &[(&str, u64)]) -> Self {
        let holds = parts.iter().map(|part| part.1).sum::<u64>() == total;
        let parts = parts.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        Self { what: what.to_owned(), total, parts, holds }
    }

    /// Holds only where `condition` does too.
    #[must_use]
    pub fn and(mut self, condition: bool) -> Self {
        self.holds &= condition;
        self
    }

    fn text(&self) -> String {
        let parts: Vec<_> = self.parts.iter().map(|(name, n)| format!("{name} {n}")).collect();
        let verdict = if self.holds { "" } else { "   DOES NOT ADD UP" };
        format!("  {} {} = {}{verdict}\n", self.what, self.total, parts.join(" + "))
    }
}

#[derive(Serialize, Debug)]
struct Direction {
    frames: u64,
    /// Without FCS.
    bytes: u64,
    #[serde(flatten)]
    speed: Speed,
}

/// What became of numbered frames.
#[derive(Serialize, Debug)]
struct Verified {
    unique: u64,
    lost: u64,
    duplicates: u64,
    reordered: u64,
    stale: u64,
    corrupt: u64,
    foreign: u64,
}

/// How long frames were under way, nanoseconds.
#[derive(Serialize, Debug)]
struct LatencyNanos {
    min: u64,
    mean: u64,
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// The totals of a run.
#[derive(Serialize, Debug)]
pub struct Report {
    event: &'static str,
    mode: String,
    devices: Vec<String>,
    burst: usize,
    /// Seconds that the speeds are of.
    seconds: f64,
    /// Frames a second: received in mode rx, else sent.
    pps: f64,
    rx: Direction,
    tx: Direction,
    generated: u64,
    drops: BTreeMap<String, u64>,
    /// Times the pool was empty when frames were to be generated.
    pool_empty: u64,
    /// Frames, or bits, that a paced sender gave up because it fell too far behind.
    pacer_forgiven: u64,
    verified: Option<Verified>,
    latency_ns: Option<LatencyNanos>,
    captured_frames: Option<u64>,
    accounting: Vec<Balance>,
    adds_up: bool,
}

/// Drops of a TX queue that happen before a frame counts as sent.
fn refused(watched: &Watched) -> u64 {
    watched.tx.dropped_total() - watched.tx.dropped(Drop::TxFlushed)
}

fn sum(watched: &[Watched], of: impl Fn(&Watched) -> u64) -> u64 {
    watched.iter().map(of).sum()
}

/// What every queue has to add up to.
fn balances(args: &Args, watched: &[Watched], seen: &Seen) -> Vec<Balance> {
    let sent = sum(watched, |w| w.tx.frames.get());
    let received = sum(watched, |w| w.rx.frames.get());
    let dropped = sum(watched, refused);
    let mut all = Vec::new();
    if args.mode.generates() {
        let generated = sum(watched, |w| w.lane.generated.get());
        all.push(Balance::new("generated", generated, &[("sent", sent), ("dropped", dropped)]));
    }
    if args.mode.forwards() {
        all.push(Balance::new("received", received, &[("sent", sent), ("dropped", dropped)]));
    }
    if args.mode != Mode::Rx {
        let completed = sum(watched, |w| w.tx.completed.get());
        let flushed = sum(watched, |w| w.tx.dropped(Drop::TxFlushed));
        all.push(Balance::new("sent", sent, &[("on the wire", completed), ("flushed", flushed)]));
    }
    if seen.verified {
        let streams = &seen.streams;
        all.push(Balance::new(
            "received",
            received,
            &[
                ("unique", streams.unique),
                ("duplicates", streams.duplicates),
                ("stale", streams.stale),
                ("corrupt", seen.corrupt),
                ("foreign", seen.foreign),
            ],
        ));
    }
    all
}

/// What a device's own counters have to agree with.
fn hardware_balances(watched: &[Watched], hardware: &[(String, Option<PortStatistics>)]) -> Vec<Balance> {
    let mut all = Vec::new();
    for (at, (name, statistics)) in hardware.iter().enumerate() {
        let Some(statistics) = statistics else { continue };
        let sends = |w: &Watched| if w.place.1 == at { w.tx.completed.get() } else { 0 };
        let what = format!("{name} put on the wire");
        all.push(Balance::new(&what, statistics.tx_frames, &[("completed", sum(watched, sends))]));
        let receives = |w: &&Watched| w.place.0 == at;
        let queues: Vec<_> = watched.iter().filter(receives).collect();
        let delivered = queues.iter().map(|w| w.rx.frames.get()).sum::<u64>();
        let dropped = queues.iter().map(|w| w.rx.dropped_total()).sum::<u64>();
        // Devices differ in whether a frame that finds no descriptor is a received one.
        let rest = statistics.rx_frames.saturating_sub(delivered + dropped);
        let parts =
            [("delivered", delivered), ("dropped", dropped), ("no descriptor or still in the ring", rest)];
        let what = format!("{name} took off the wire");
        all.push(Balance::new(&what, statistics.rx_frames, &parts));
    }
    all
}

/// What the devices themselves have lost, all together.
fn hardware_drops(hardware: &[(String, Option<PortStatistics>)]) -> Vec<(&'static str, u64)> {
    let sum = |of: fn(&PortStatistics) -> u64| hardware.iter().filter_map(|(_, s)| s.as_ref().map(of)).sum();
    let mut all = vec![
        ("device_rx_missed", sum(|s| s.rx_missed)),
        ("device_rx_crc_errors", sum(|s| s.rx_crc_errors)),
        ("device_rx_errors", sum(|s| s.rx_errors)),
        ("device_tx_errors", sum(|s| s.tx_errors)),
    ];
    all.retain(|(_, n)| *n > 0);
    all
}

impl Report {
    pub fn new(
        args: &Args,
        watched: &[Watched],
        (start, end): (&Moment, &Moment),
        hardware: &[(String, Option<PortStatistics>)],
        seen: Seen,
        captured: Option<CaptureSummary>,
        buffers: Balance,
    ) -> Self {
        let ((rx_speed, tx_speed), _) = end.speeds(start);
        let (rx, tx) = Moment::now(watched).total();
        let direction = |flow: Flow, speed| Direction { frames: flow.frames, bytes: flow.bytes, speed };
        let mut accounting = balances(args, watched, &seen);
        accounting.extend(hardware_balances(watched, hardware));
        accounting.push(buffers);
        let on_the_wire = sum(watched, |w| w.tx.completed.get());
        let streams = seen.streams;
        let lost = if args.mode == Mode::Txrx { streams.lost(on_the_wire) } else { seen.missing };
        let verified = seen.verified.then_some(Verified {
            unique: streams.unique,
            lost,
            duplicates: streams.duplicates,
            reordered: streams.reordered,
            stale: streams.stale,
            corrupt: seen.corrupt,
            foreign: seen.foreign,
        });
        Self {
            event: "end",
            mode: args.mode.to_string(),
            devices: args.devices.iter().map(ToString::to_string).collect(),
            burst: args.burst,
            seconds: end.at.duration_since(start.at).as_secs_f64(),
            pps: if args.mode == Mode::Rx { rx_speed.pps } else { tx_speed.pps },
            rx: direction(rx, rx_speed),
            tx: direction(tx, tx_speed),
            generated: sum(watched, |w| w.lane.generated.get()),
            drops: all_drops(watched)
                .into_iter()
                .chain(hardware_drops(hardware))
                .map(|(name, n)| (name.to_owned(), n))
                .collect(),
            pool_empty: sum(watched, |w| w.lane.starved.get() + w.rx.pool_empty.get()),
            pacer_forgiven: seen.forgiven,
            verified,
            // Another machine's timestamps say nothing here.
            latency_ns: (args.mode == Mode::Txrx && seen.latency.count() > 0).then(|| nanos(&seen.latency)),
            captured_frames: captured.map(|summary| summary.frames),
            adds_up: accounting.iter().all(|balance| balance.holds),
            accounting,
        }
    }

    /// True where every equation holds.
    pub fn adds_up(&self) -> bool {
        self.adds_up
    }

    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}")) + "\n"
    }

    pub fn text(&self) -> String {
        let mut text = format!("\n{} s, mode {}, bursts of {}\n", round(self.seconds), self.mode, self.burst);
        for (name, d) in [("received", &self.rx), ("sent", &self.tx)] {
            let (mpps, gbps) = (d.speed.mpps, d.speed.gbps);
            let _ =
                writeln!(text, "  {name:<9} {:>15} frames {mpps:>11.3} Mpps {gbps:>9.3} Gbit/s", d.frames);
        }
        let drops: Vec<_> = self.drops.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        let _ = writeln!(text, "  drops     {}", named(&drops));
        for (what, n) in [("pool empty", self.pool_empty), ("pacer gave up", self.pacer_forgiven)] {
            if n > 0 {
                let _ = writeln!(text, "  {what} {n}");
            }
        }
        if let Some(v) = &self.verified {
            let Verified { unique, lost, duplicates, reordered, stale, corrupt, foreign } = v;
            let _ = writeln!(
                text,
                "  verified  {unique} unique, {lost} lost, {duplicates} duplicates, {reordered} reordered, {stale} stale, {corrupt} corrupt, {foreign} foreign"
            );
        }
        if let Some(l) = &self.latency_ns {
            let LatencyNanos { min, mean, p50, p99, p999, max } = l;
            let _ = writeln!(
                text,
                "  latency   {min} min, {mean} mean, {p50} p50, {p99} p99, {p999} p99.9, {max} max (ns)"
            );
        }
        if let Some(frames) = self.captured_frames {
            let _ = writeln!(text, "  captured  {frames} frames");
        }
        text += "accounting\n";
        self.accounting.iter().for_each(|balance| text += &balance.text());
        text
    }
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn nanos(latency: &Latency) -> LatencyNanos {
    let clock = Clock::get();
    let quantile = |per_million| clock.nanos(latency.quantile(per_million));
    LatencyNanos {
        min: clock.nanos(latency.min()),
        mean: clock.nanos(latency.mean()),
        p50: quantile(500_000),
        p99: quantile(990_000),
        p999: quantile(999_000),
        max: clock.nanos(latency.max()),
    }
}
