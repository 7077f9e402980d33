//! [`Lane`]: what one core does for one RX and one TX queue, a burst at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use becket::dataplane::capture::Captured;
use becket::dataplane::generator::{Clock, Pacer, TxGenerator, Verifier};
use becket::dataplane::{Burst, Counter, Drop, Mbuf, PoolCache, RxQueue, Task, TxQueue};
use becket::driver::{Rx, Tx};
use pnet_packet::ethernet::MutableEthernetPacket;

use crate::args::Mode;

/// Full bursts that a lane may move before it is the next one's turn.
const ROUNDS: usize = 16;

/// What all workers do now, told by the main thread.
pub struct Phase(AtomicU8);

impl Phase {
    const RUN: u8 = 0;
    const DRAIN: u8 = 1;

    pub fn running() -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(Self::RUN)))
    }

    /// No new frames: what is under way arrives.
    pub fn drain(&self) {
        self.0.store(Self::DRAIN, Ordering::Relaxed);
    }

    fn runs(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::RUN
    }
}

/// What a lane counts beside its queues.
#[derive(Default)]
#[repr(align(128))]
pub struct LaneCounters {
    /// Frames generated.
    pub generated: Counter,
    /// Times the pool was empty when frames were to be generated.
    pub starved: Counter,
    /// 1 once all frames that were to be sent are sent.
    pub done: Counter,
}

/// What sends, and how fast.
pub struct Sender {
    pub generator: TxGenerator,
    pub pacer: Option<Pacer>,
    /// Frames still to be made; the largest number: no end.
    pub budget: u64,
}

impl Sender {
    /// Fills `burst` with what is due, `most` frames at the most; returns how many.
    #[inline]
    fn fill(&mut self, pool: &mut PoolCache, burst: &mut Burst, most: usize, clock: Clock) -> usize {
        if self.pacer.is_some() || self.budget != u64::MAX || self.generator.stream().is_some() {
            return self.fill_due(pool, burst, most, clock);
        }
        self.generator.fill(pool, burst, most, 0)
    }

    // Apart, so that the code of a sender with nothing to heed stays small.
    #[inline(never)]
    fn fill_due(&mut self, pool: &mut PoolCache, burst: &mut Burst, most: usize, clock: Clock) -> usize {
        let now = clock.now();
        let mut due = (most as u64).min(self.budget) as usize;
        if let Some(pacer) = &mut self.pacer {
            due = pacer.due(now, self.generator.mean_len(), due);
        }
        if due == 0 {
            return 0;
        }
        let bytes = self.generator.bytes();
        let made = self.generator.fill(pool, burst, due, now);
        if self.budget != u64::MAX {
            self.budget -= made as u64;
        }
        if let Some(pacer) = &mut self.pacer {
            pacer.sent(made, self.generator.bytes() - bytes);
        }
        made
    }
}

/// One RX and one TX queue, and what to do with them.
pub struct Lane {
    /// Number of the port that receives, of the port that sends, and of the queue.
    pub place: (usize, usize, u16),
    pub mode: Mode,
    pub burst: usize,
    pub rx: Captured<Rx>,
    pub tx: Captured<Tx>,
    pub sender: Option<Sender>,
    pub verifier: Option<Verifier>,
    pub counters: Arc<LaneCounters>,
    /// On the way out.
    pub outgoing: Burst,
}

impl Lane {
    #[inline]
    fn turn(&mut self, pool: &mut PoolCache, clock: Clock, running: bool) -> usize {
        match self.mode {
            Mode::Tx => self.rounds(|lane| lane.send(pool, clock, running)),
            Mode::Rx if running => self.rounds(|lane| lane.receive(pool, clock)),
            Mode::Rx => 0,
            Mode::Txrx => self.rounds(|lane| lane.send(pool, clock, running) + lane.receive_all(pool, clock)),
            Mode::Forward | Mode::Echo => self.rounds(|lane| lane.forward(pool, running)),
        }
    }

    /// Once, and again while full bursts move.
    #[inline(always)]
    fn rounds(&mut self, mut once: impl FnMut(&mut Self) -> usize) -> usize {
        let mut moved = 0;
        for _ in 0..ROUNDS {
            let frames = once(self);
            moved += frames;
            if frames < self.burst {
                break;
            }
        }
        moved
    }

    #[inline(always)]
    fn send(&mut self, pool: &mut PoolCache, clock: Clock, running: bool) -> usize {
        if self.outgoing.is_empty() {
            let made = match &mut self.sender {
                Some(sender) if running => sender.fill(pool, &mut self.outgoing, self.burst, clock),
                _ => 0,
            };
            self.counters.generated.add(made as u64);
            if made < self.burst && self.short(pool, made, running) {
                return 0;
            }
        }
        self.tx.post(pool, &mut self.outgoing)
    }

    /// Fewer frames were made than a burst: tells why, and fetches back what is sent. True where there
    /// are none.
    #[inline(never)]
    fn short(&mut self, pool: &mut PoolCache, made: usize, running: bool) -> bool {
        match &self.sender {
            Some(sender) if running && sender.budget == 0 => {
                self.counters.done.add(1 - self.counters.done.get());
            }
            Some(sender) if running && sender.pacer.is_none() && sender.budget > 0 => {
                self.counters.starved.add(1)
            }
            _ => {}
        }
        self.tx.reap(pool);
        made == 0
    }

    #[inline]
    fn receive(&mut self, pool: &mut PoolCache, clock: Clock) -> usize {
        let mut burst = Burst::new();
        let got = self.rx.poll(pool, &mut burst, self.burst);
        if got == 0 {
            return 0;
        }
        if let Some(verifier) = &mut self.verifier {
            verifier.receive(&burst, clock.now());
        }
        pool.give_burst(&mut burst, got);
        got
    }

    /// Receives more than it sends: what comes may be another lane's too, by the other end's choice of
    /// queue.
    #[inline]
    fn receive_all(&mut self, pool: &mut PoolCache, clock: Clock) -> usize {
        let mut all = 0;
        for _ in 0..4 {
            let got = self.receive(pool, clock);
            all += got;
            if got < self.burst {
                break;
            }
        }
        all
    }

    #[inline(always)]
    fn forward(&mut self, pool: &mut PoolCache, running: bool) -> usize {
        let got = if running { self.rx.poll(pool, &mut self.outgoing, self.burst) } else { 0 };
        if got == 0 {
            self.tx.reap(pool);
            return 0;
        }
        if self.mode == Mode::Echo {
            self.outgoing.iter_mut().for_each(swap_macs);
        }
        self.tx.post(pool, &mut self.outgoing);
        if !self.outgoing.is_empty() {
            self.give_up(pool);
        }
        got
    }

    /// Drops what the ring does not take.
    #[cold]
    fn give_up(&mut self, pool: &mut PoolCache) {
        let left = self.outgoing.len();
        TxQueue::counters(&self.tx).drop_frames(Drop::RingFull, left as u64);
        pool.give_burst(&mut self.outgoing, left);
    }
}

#[inline]
fn swap_macs(mbuf: &mut Mbuf) {
    if let Some(mut frame) = MutableEthernetPacket::new(mbuf.data_mut()) {
        let (from, to) = (frame.get_source(), frame.get_destination());
        frame.set_source(to);
        frame.set_destination(from);
    }
}

/// One core's lanes, with its own stock of buffers.
pub struct Core {
    pub lanes: Vec<Lane>,
    pub pool: PoolCache,
    pub clock: Clock,
    pub phase: Arc<Phase>,
}

impl Core {
    /// Ends the lanes: what could not be sent is dropped by name.
    pub fn close(&mut self) {
        for lane in &mut self.lanes {
            lane.tx.reap(&mut self.pool);
            if !lane.outgoing.is_empty() {
                lane.give_up(&mut self.pool);
            }
        }
    }
}

impl Task for Core {
    #[inline]
    fn turn(&mut self) -> usize {
        let running = self.phase.runs();
        self.lanes.iter_mut().map(|lane| lane.turn(&mut self.pool, self.clock, running)).sum()
    }
}
