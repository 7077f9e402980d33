//! [`Captured`]: a queue whose frames are copied as they pass.

use std::sync::Arc;

use rtrb::{Producer, chunks::WriteChunk};

use super::record::{HEADER, Record};
use crate::generator::Clock;
use crate::{Burst, Drop, Mbuf, PoolCache, QueueCounters, RxQueue, TxQueue};

/// The queue's end of a capture: copies frames into a ring, never waits.
pub struct Tap {
    ring: Producer<u8>,
    snap: u32,
    clock: Clock,
    counters: Arc<QueueCounters>,
}

/// Records written into a ring and not yet handed over.
struct Pending<'a> {
    chunk: Option<WriteChunk<'a, u8>>,
    /// Bytes of the ring that the first `n` frames take; the last entry is all that fitted.
    ends: [usize; crate::MAX_BURST + 1],
    fitted: usize,
}

impl Tap {
    pub(super) fn new(ring: Producer<u8>, snap: u32, clock: Clock) -> Self {
        Self { ring, snap, clock, counters: Arc::default() }
    }

    /// Frames captured, and those that were not. Apart from the queue's own: a frame that was not captured
    /// was still delivered.
    pub fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    /// Writes the frames into the ring, as many as it has room for.
    fn write(&mut self, frames: &[Mbuf]) -> Pending<'_> {
        let mut pending = Pending { chunk: None, ends: [0; crate::MAX_BURST + 1], fitted: 0 };
        let slots = self.ring.slots();
        let mut end = 0;
        for (mbuf, place) in frames.iter().zip(&mut pending.ends[1..]) {
            end += HEADER + mbuf.frame_len().min(self.snap) as usize;
            if end > slots {
                break;
            }
            *place = end;
            pending.fitted += 1;
        }
        let total = pending.end(pending.fitted);
        let ticks = self.clock.now();
        let snap = self.snap;
        if total > 0
            && let Ok(mut chunk) = self.ring.write_chunk(total)
        {
            let (first, second) = chunk.as_mut_slices();
            let mut cursor = Cursor { first, second };
            for mbuf in frames.iter().take(pending.fitted) {
                let kept = mbuf.frame_len().min(snap);
                cursor.put(&Record { ticks, len: mbuf.frame_len(), kept }.to_bytes());
                cursor.put_frame(mbuf, kept as usize);
            }
            pending.chunk = Some(chunk);
        }
        pending
    }

    /// Copies all of `frames`.
    #[inline(never)]
    fn copy(&mut self, frames: &[Mbuf]) {
        if frames.is_empty() {
            return;
        }
        let (fitted, bytes) = self.write(frames).commit(frames.len());
        self.count(frames.len(), fitted, bytes);
    }

    /// Posts to `queue`, and captures what it takes.
    #[inline(never)]
    fn post(&mut self, queue: &mut impl TxQueue, pool: &mut PoolCache, burst: &mut Burst) -> usize {
        if burst.is_empty() {
            return queue.post(pool, burst);
        }
        // Copied before: what the queue takes is the device's from then on. Handed over after: only so
        // many are captured as were taken.
        let pending = self.write(burst);
        let taken = queue.post(pool, burst);
        let (fitted, bytes) = pending.commit(taken);
        self.count(taken, fitted, bytes);
        taken
    }

    fn count(&self, frames: usize, fitted: usize, bytes: usize) {
        if fitted > 0 {
            self.counters.burst(fitted as u64, (bytes - fitted * HEADER) as u64);
        }
        self.counters.drop_frames(Drop::CaptureFull, (frames - fitted) as u64);
    }
}

impl Pending<'_> {
    fn end(&self, frames: usize) -> usize {
        self.ends.get(frames).copied().unwrap_or_default()
    }

    /// Hands over the first `n` frames, or as many of them as fitted; returns how many, and their bytes.
    fn commit(self, n: usize) -> (usize, usize) {
        let fitted = n.min(self.fitted);
        let end = self.end(fitted);
        if let Some(chunk) = self.chunk {
            chunk.commit(end);
        }
        (fitted, end)
    }
}

/// Writes on through the two parts of a ring's free space.
struct Cursor<'a> {
    first: &'a mut [u8],
    second: &'a mut [u8],
}

impl Cursor<'_> {
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.first.is_empty() {
                self.first = std::mem::take(&mut self.second);
            }
            let n = bytes.len().min(self.first.len());
            if n == 0 {
                return;
            }
            let (now, later) = bytes.split_at(n);
            let (place, rest) = std::mem::take(&mut self.first).split_at_mut(n);
            place.copy_from_slice(now);
            (self.first, bytes) = (rest, later);
        }
    }

    fn put_frame(&mut self, mbuf: &Mbuf, mut kept: usize) {
        for segment in mbuf.chained() {
            let bytes = segment.data();
            let bytes = bytes.get(..kept).unwrap_or(bytes);
            self.put(bytes);
            kept -= bytes.len();
        }
    }
}

/// A queue, and the tap that its frames pass. Without a tap it is the queue, for one branch a burst.
pub struct Captured<Q> {
    pub(super) queue: Q,
    tap: Option<Tap>,
}

impl<Q> Captured<Q> {
    /// `queue`, with its frames copied to `tap`.
    pub fn new(queue: Q, tap: Option<Tap>) -> Self {
        Self { queue, tap }
    }

    /// The tap.
    pub fn tap(&self) -> Option<&Tap> {
        self.tap.as_ref()
    }

    /// The queue.
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// The queue again; what was copied so far is still written.
    pub fn into_queue(self) -> Q {
        self.queue
    }
}

impl<Q: RxQueue> RxQueue for Captured<Q> {
    #[inline]
    fn poll(&mut self, pool: &mut PoolCache, burst: &mut Burst, max: usize) -> usize {
        let before = burst.len();
        let got = self.queue.poll(pool, burst, max);
        if let Some(tap) = &mut self.tap {
            tap.copy(burst.get(before..).unwrap_or_default());
        }
        got
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        self.queue.counters()
    }
}

impl<Q: TxQueue> TxQueue for Captured<Q> {
    /// Captures what the queue takes, frames among them that it drops.
    #[inline]
    fn post(&mut self, pool: &mut PoolCache, burst: &mut Burst) -> usize {
        match &mut self.tap {
            None => self.queue.post(pool, burst),
            Some(tap) => tap.post(&mut self.queue, pool, burst),
        }
    }

    fn reap(&mut self, pool: &mut PoolCache) -> usize {
        self.queue.reap(pool)
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        self.queue.counters()
    }
}
