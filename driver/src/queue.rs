//! [`QueuePair`]: the queues of one core, whichever family they are of.

use std::sync::Arc;

pub use dataplane::RxInterrupt;
use dataplane::{Burst, PoolCache, QueueCounters, RxQueue, TxQueue};

use crate::{igb, loopback, null};

/// One RX and one TX queue of a port, for one core.
pub struct QueuePair {
    /// Its number on the port.
    pub index: u16,
    /// Receives.
    pub rx: Rx,
    /// Sends.
    pub tx: Tx,
    /// Fires when frames arrive, where the port was started with `rx_interrupts`.
    pub interrupt: Option<RxInterrupt>,
}

macro_rules! families {
    ($($(#[$doc:meta])* $family:ident: $rx:ty, $tx:ty;)*) => {
        /// An RX queue of any family. The family is told apart once a burst.
        #[non_exhaustive]
        pub enum Rx { $($(#[$doc])* $family($rx),)* }

        /// A TX queue of any family. The family is told apart once a burst.
        #[non_exhaustive]
        pub enum Tx { $($(#[$doc])* $family($tx),)* }

        impl RxQueue for Rx {
            #[inline]
            fn poll(&mut self, pool: &mut PoolCache, burst: &mut Burst, max: usize) -> usize {
                match self { $(Self::$family(queue) => queue.poll(pool, burst, max),)* }
            }
            fn counters(&self) -> &Arc<QueueCounters> {
                match self { $(Self::$family(queue) => queue.counters(),)* }
            }
        }

        impl TxQueue for Tx {
            #[inline]
            fn post(&mut self, pool: &mut PoolCache, burst: &mut Burst) -> usize {
                match self { $(Self::$family(queue) => queue.post(pool, burst),)* }
            }
            fn reap(&mut self, pool: &mut PoolCache) -> usize {
                match self { $(Self::$family(queue) => queue.reap(pool),)* }
            }
            fn in_flight(&self) -> usize {
                match self { $(Self::$family(queue) => queue.in_flight(),)* }
            }
            fn counters(&self) -> &Arc<QueueCounters> {
                match self { $(Self::$family(queue) => queue.counters(),)* }
            }
        }
    };
}

families! {
    /// No device.
    Null: null::NullRx, null::NullTx;
    /// What is sent is received.
    Loop: loopback::LoopRx, loopback::LoopTx;
    /// Intel 82576, I350, 82580.
    Igb: igb::IgbRx, igb::IgbTx;
}
