//! What a driver gives an application: queues of received frames and of frames to send.

use std::sync::Arc;

use pci::Interrupt;

use crate::{Burst, PoolCache, QueueCounters};

/// Receives. One core polls it at a time.
pub trait RxQueue: Send {
    /// Appends the frames that have arrived to `burst`, as many as it has room for, at most `max`.
    /// Fresh buffers come from `pool`; where it is empty, the oldest frames are dropped (and counted as
    /// [`crate::Drop::NoBuffer`]) so that their buffers go on serving the ring.
    fn poll(&mut self, pool: &mut PoolCache, burst: &mut Burst, max: usize) -> usize;

    /// Its counters, to read from any thread.
    fn counters(&self) -> &Arc<QueueCounters>;
}

/// Sends. One core posts to it at a time.
pub trait TxQueue: Send {
    /// Takes frames from the front of `burst` for as long as the ring has room; the rest stays in
    /// `burst`. Frames that can never be sent are taken, dropped and counted by name. Returns how many
    /// were taken.
    fn post(&mut self, pool: &mut PoolCache, burst: &mut Burst) -> usize;

    /// Gives the buffers of frames that are sent back to `pool`; returns how many frames. `post` does
    /// so itself when the ring runs low: call this when idle.
    fn reap(&mut self, pool: &mut PoolCache) -> usize;

    /// Frames posted and not yet sent.
    fn in_flight(&self) -> usize;

    /// Its counters, to read from any thread.
    fn counters(&self) -> &Arc<QueueCounters>;
}

/// Wakes a core that sleeps until a queue receives.
pub struct RxInterrupt {
    /// The vector to wait for.
    pub vector: Interrupt,
    /// Asks the device for one interrupt at the next frame. Poll once more after it and before sleeping:
    /// a frame that came in before fires none.
    pub arm: Box<dyn Fn() + Send>,
}
