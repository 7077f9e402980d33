//! [`Verifier`]: checks received streams.

use std::sync::Arc;

use super::probe::{Found, find};
use super::window::Window;
use super::{Latency, StreamReport};
use crate::{Counter, Mbuf};

/// What a verifier has seen, to read from any thread while it works. Up to date after every burst.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct VerifierCounters {
    /// Frames of streams, seen for the first time.
    pub unique: Counter,
    /// Frames of streams that had come before.
    pub duplicates: Counter,
    /// Of the unique: frames that came after a later one.
    pub reordered: Counter,
    /// Frames too late to be told from duplicates.
    pub stale: Counter,
    /// Probes whose checksum or length is wrong.
    pub corrupt: Counter,
    /// Frames that are no probe, of a stream that is not followed, or with a number out of all reason.
    pub foreign: Counter,
}

impl VerifierCounters {
    /// All frames looked at.
    pub fn total(&self) -> u64 {
        let all = [&self.unique, &self.duplicates, &self.stale, &self.corrupt, &self.foreign];
        all.map(Counter::get).iter().sum()
    }
}

/// Checks the frames that one core receives: every one is unique, a duplicate, stale, corrupt or foreign.
///
/// A stream may reach several cores (its flows spread by RSS), each with a verifier: what they report is
/// added up by [`StreamReport::merge`]. That is exact, since a flow, and so every duplicate, keeps to one
/// queue.
pub struct Verifier {
    streams: Box<[Window]>,
    latency: Latency,
    counters: Arc<VerifierCounters>,
}

impl Verifier {
    /// Follows streams 0 to `streams - 1`, in 600 bytes each.
    pub fn new(streams: u16) -> Self {
        let streams = vec![Window::default(); streams.into()].into();
        Self { streams, latency: Latency::default(), counters: Arc::default() }
    }

    /// Frames that came in at `now`, a time of the sender's clock.
    #[inline]
    pub fn receive(&mut self, frames: &[Mbuf], now: u64) {
        let mut sum = StreamReport::default();
        let (mut corrupt, mut foreign) = (0, 0);
        for mbuf in frames {
            let probe = match find(mbuf) {
                Found::Probe(probe) => probe,
                Found::Corrupt => {
                    corrupt += 1;
                    continue;
                }
                Found::Foreign => {
                    foreign += 1;
                    continue;
                }
            };
            let Some(window) = self.streams.get_mut(usize::from(probe.stream())) else {
                foreign += 1;
                continue;
            };
            let before = window.report;
            if !window.record(probe.sequence()) {
                foreign += 1;
                continue;
            }
            self.latency.record(probe.age(now));
            sum.unique += window.report.unique - before.unique;
            sum.duplicates += window.report.duplicates - before.duplicates;
            sum.reordered += window.report.reordered - before.reordered;
            sum.stale += window.report.stale - before.stale;
        }
        self.count(sum, corrupt, foreign);
    }

    fn count(&self, sum: StreamReport, corrupt: u64, foreign: u64) {
        let counters = &*self.counters;
        counters.unique.add(sum.unique);
        counters.duplicates.add(sum.duplicates);
        counters.reordered.add(sum.reordered);
        counters.stale.add(sum.stale);
        counters.corrupt.add(corrupt);
        counters.foreign.add(foreign);
    }

    /// What came of a stream here.
    pub fn report(&self, stream: u16) -> StreamReport {
        self.streams.get(usize::from(stream)).map(|window| window.report).unwrap_or_default()
    }

    /// Streams of which something came: number and report.
    pub fn reports(&self) -> impl Iterator<Item = (u16, StreamReport)> + '_ {
        let numbered = (0..).zip(self.streams.iter().map(|window| window.report));
        numbered.filter(|(_, report)| *report != StreamReport::default())
    }

    /// How long the frames were under way, in ticks.
    pub fn latency(&self) -> &Latency {
        &self.latency
    }

    /// The counters, to read from any thread.
    pub fn counters(&self) -> &Arc<VerifierCounters> {
        &self.counters
    }
}
