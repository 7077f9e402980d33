//! What the queues count, as numbers of a moment.

use std::sync::Arc;
use std::time::Instant;

use becket::dataplane::generator::{FRAME_OVERHEAD, VerifierCounters};
use becket::dataplane::{Drop, QueueCounters};
use serde::Serialize;

use crate::lane::{Lane, LaneCounters};
use becket::dataplane::{RxQueue, TxQueue};

/// The counters of one lane, which stay when the lane is gone.
pub struct Watched {
    /// Number of the port that receives, of the port that sends, and of the queue.
    pub place: (usize, usize, u16),
    pub rx: Arc<QueueCounters>,
    pub tx: Arc<QueueCounters>,
    pub lane: Arc<LaneCounters>,
    pub verifier: Option<Arc<VerifierCounters>>,
    /// Of the taps: frames captured, and not.
    pub taps: Vec<Arc<QueueCounters>>,
}

impl Watched {
    pub fn new(lane: &Lane) -> Self {
        let taps = [lane.rx.tap(), lane.tx.tap()];
        Self {
            place: lane.place,
            rx: RxQueue::counters(&lane.rx).clone(),
            tx: TxQueue::counters(&lane.tx).clone(),
            lane: lane.counters.clone(),
            verifier: lane.verifier.as_ref().map(|verifier| verifier.counters().clone()),
            taps: taps.into_iter().flatten().map(|tap| tap.counters().clone()).collect(),
        }
    }
}

/// Frames and bytes (without FCS), added up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flow {
    pub frames: u64,
    pub bytes: u64,
}

impl Flow {
    pub fn of(counters: &QueueCounters) -> Self {
        Self { frames: counters.frames.get(), bytes: counters.bytes.get() }
    }

    pub fn plus(self, other: Self) -> Self {
        Self { frames: self.frames + other.frames, bytes: self.bytes + other.bytes }
    }

    fn minus(self, other: Self) -> Self {
        Self { frames: self.frames - other.frames, bytes: self.bytes - other.bytes }
    }
}

/// A rate, from two moments.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct Speed {
    /// Frames a second.
    pub pps: f64,
    /// Millions of them.
    pub mpps: f64,
    /// Gigabits a second on the wire.
    pub gbps: f64,
}

impl Speed {
    fn of(flow: Flow, seconds: f64) -> Self {
        let per_second = |n: u64| n as f64 / seconds.max(1e-9);
        let bits = (flow.bytes + flow.frames * u64::from(FRAME_OVERHEAD)) * 8;
        let pps = per_second(flow.frames);
        Self { pps, mpps: pps / 1e6, gbps: per_second(bits) / 1e9 }
    }
}

/// What all lanes had counted at a moment: received and sent, lane by lane.
#[derive(Clone)]
pub struct Moment {
    pub at: Instant,
    pub lanes: Vec<(Flow, Flow)>,
}

impl Moment {
    pub fn now(watched: &[Watched]) -> Self {
        let lanes = watched.iter().map(|w| (Flow::of(&w.rx), Flow::of(&w.tx))).collect();
        Self { at: Instant::now(), lanes }
    }

    /// Received and sent of all lanes together.
    pub fn total(&self) -> (Flow, Flow) {
        let sum = |all: (Flow, Flow), lane: &(Flow, Flow)| (all.0.plus(lane.0), all.1.plus(lane.1));
        self.lanes.iter().fold(Default::default(), sum)
    }

    /// Speeds since `before`: of all together, and lane by lane.
    pub fn speeds(&self, before: &Self) -> ((Speed, Speed), Vec<(Speed, Speed)>) {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        let since = |now: (Flow, Flow), then: (Flow, Flow)| {
            (Speed::of(now.0.minus(then.0), seconds), Speed::of(now.1.minus(then.1), seconds))
        };
        let lanes = self.lanes.iter().zip(&before.lanes).map(|(now, then)| since(*now, *then)).collect();
        (since(self.total(), before.total()), lanes)
    }
}

/// Every drop that happened, by name, in all of `counters` together.
pub fn drops<'a>(counters: impl Iterator<Item = &'a Arc<QueueCounters>>) -> Vec<(&'static str, u64)> {
    let counters: Vec<_> = counters.collect();
    let of = |reason: &Drop| (reason.name(), counters.iter().map(|c| c.dropped(*reason)).sum());
    Drop::ALL.iter().map(of).filter(|&(_, n): &(_, u64)| n > 0).collect()
}

/// Every drop that happened anywhere.
pub fn all_drops(watched: &[Watched]) -> Vec<(&'static str, u64)> {
    drops(watched.iter().flat_map(|w| [&w.rx, &w.tx].into_iter().chain(&w.taps)))
}

/// Names and numbers as text; "none" where there are none.
pub fn named(counts: &[(&str, u64)]) -> String {
    let parts: Vec<_> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}
