//! A port with no device: frames of one size come from nowhere, and go nowhere.
//!
//! It does the work of DPDK's `net_null`: receiving takes buffers from the pool and fills in their
//! length, sending gives them back. What it costs is what the datapath costs.

use std::sync::Arc;

use dataplane::{Burst, PoolCache, QueueCounters, RxQueue, TxQueue};

use crate::{QueuePair, Rx, Tx};

/// Queue pairs whose received frames have `frame_len` bytes.
pub fn open(queues: u16, frame_len: u16) -> Vec<QueuePair> {
    let pair = |index| QueuePair {
        index,
        rx: Rx::Null(NullRx::new(frame_len, index)),
        tx: Tx::Null(NullTx::default()),
        interrupt: None,
    };
    (0..queues).map(pair).collect()
}

/// Receives frames from nowhere.
pub struct NullRx {
    frame_len: u16,
    port: u16,
    counters: Arc<QueueCounters>,
}

impl NullRx {
    /// Frames of `frame_len` bytes, cut to what a buffer holds.
    pub fn new(frame_len: u16, port: u16) -> Self {
        Self { frame_len, port, counters: Arc::default() }
    }
}

impl RxQueue for NullRx {
    #[inline]
    fn poll(&mut self, pool: &mut PoolCache, burst: &mut Burst, max: usize) -> usize {
        let before = burst.len();
        let got = pool.take_burst(burst, max);
        if got == 0 {
            self.counters.pool_empty.add(1);
            return 0;
        }
        for mbuf in &mut burst[before..] {
            mbuf.received(self.frame_len);
            mbuf.set_port(self.port);
        }
        self.counters.burst(got as u64, got as u64 * u64::from(self.frame_len));
        got
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

/// Sends frames nowhere.
#[derive(Default)]
pub struct NullTx {
    counters: Arc<QueueCounters>,
}

impl TxQueue for NullTx {
    #[inline]
    fn post(&mut self, pool: &mut PoolCache, burst: &mut Burst) -> usize {
        let sent = burst.len();
        if sent == 0 {
            return 0;
        }
        let bytes = burst.iter().map(|mbuf| u64::from(mbuf.frame_len())).sum();
        pool.give_burst(burst, sent);
        self.counters.burst(sent as u64, bytes);
        self.counters.completed.add(sent as u64);
        sent
    }

    fn reap(&mut self, _: &mut PoolCache) -> usize {
        0
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}
