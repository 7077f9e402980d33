//! A port with no device whose queues receive what they send, over a bounded ring: for tests, and for
//! measuring what handing frames from core to core costs.

use std::sync::Arc;

use dataplane::{Burst, Mbuf, PoolCache, QueueCounters, RxQueue, TxQueue};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::{QueuePair, Rx, Tx};

/// Queue pairs; each receives what it sent, up to `depth` frames in between.
pub fn open(queues: u16, depth: usize) -> Vec<QueuePair> {
    (0..queues)
        .map(|index| {
            let (tx, rx) = ring(depth);
            QueuePair { index, rx: Rx::Loop(rx), tx: Tx::Loop(tx), interrupt: None }
        })
        .collect()
}

/// A sending and a receiving end: what goes in at one comes out at the other, on the same core or another.
pub fn ring(depth: usize) -> (LoopTx, LoopRx) {
    let (producer, consumer) = RingBuffer::new(depth);
    (
        LoopTx { ring: producer, depth, counters: Arc::default() },
        LoopRx { ring: consumer, counters: Arc::default() },
    )
}

/// The receiving end.
pub struct LoopRx {
    ring: Consumer<Mbuf>,
    counters: Arc<QueueCounters>,
}

impl RxQueue for LoopRx {
    #[inline]
    fn poll(&mut self, _: &mut PoolCache, burst: &mut Burst, max: usize) -> usize {
        let wanted = max.min(burst.room()).min(self.ring.slots());
        let Ok(chunk) = self.ring.read_chunk(wanted) else { return 0 };
        let mut bytes = 0;
        for mbuf in chunk {
            bytes += u64::from(mbuf.frame_len());
            let _ = burst.push(mbuf);
        }
        if wanted > 0 {
            self.counters.burst(wanted as u64, bytes);
        }
        wanted
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

/// The sending end.
pub struct LoopTx {
    ring: Producer<Mbuf>,
    depth: usize,
    counters: Arc<QueueCounters>,
}

impl TxQueue for LoopTx {
    #[inline]
    fn post(&mut self, _: &mut PoolCache, burst: &mut Burst) -> usize {
        let room = burst.len().min(self.ring.slots());
        let Ok(chunk) = self.ring.write_chunk_uninit(room) else { return 0 };
        let bytes = burst[..room].iter().map(|mbuf| u64::from(mbuf.frame_len())).sum();
        chunk.fill_from_iter(burst.drain_front(room));
        if room == 0 {
            return 0;
        }
        self.counters.burst(room as u64, bytes);
        self.counters.completed.add(room as u64);
        room
    }

    fn reap(&mut self, _: &mut PoolCache) -> usize {
        0
    }

    fn in_flight(&self) -> usize {
        self.depth - self.ring.slots()
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}
