//! [`Gate`]: how a port tells a queue that it runs, stands still, or starts afresh.
//!
//! The port never touches a ring that a worker owns. It publishes an epoch; the queue looks at it once a
//! burst, and where it has changed does on its own core what has to be done: send the ring's buffers
//! home, and bring the ring up again.
//!
//! Before the port publishes, it must have made sure that the device does no more DMA to the old
//! ring: the queue disabled, or the device reset.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One queue's gate, shared by the port and the queue.
#[derive(Debug, Default)]
pub struct Gate {
    /// Odd while the queue may run; every change increments.
    epoch: AtomicU64,
    broken: AtomicBool,
}

impl Gate {
    /// A closed gate.
    pub const fn new() -> Self {
        Self { epoch: AtomicU64::new(0), broken: AtomicBool::new(false) }
    }

    /// Opens it; a gate that is open stays in its epoch.
    pub fn run(&self) {
        self.publish(true);
    }

    /// Closes it. The device must have stopped its DMA for the queue.
    pub fn stop(&self) {
        self.publish(false);
    }

    /// Closes and opens it: the queue drops what its ring holds and starts afresh.
    pub fn restart(&self) {
        self.stop();
        self.run();
    }

    /// True while the queue may run.
    pub fn is_running(&self) -> bool {
        runs(self.epoch())
    }

    /// True where the queue could not bring itself up (the device did not enable it in time, or is
    /// gone): it moves nothing until the next [`Gate::restart`].
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// What the queue compares once a burst. Acquire: what the port did to the device before it
    /// published has happened.
    #[inline]
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// For the queue: whether it came up.
    pub(super) fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }

    fn publish(&self, run: bool) {
        let next = |epoch| (runs(epoch) != run).then_some(epoch + 1);
        // Refused means that it is in that state already.
        let _ = self.epoch.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }
}

/// True for the epochs in which a queue runs.
pub(super) const fn runs(epoch: u64) -> bool {
    epoch % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_a_new_epoch_and_repeating_a_state_is_none() {
        let gate = Gate::new();
        assert!(!gate.is_running());
        gate.stop();
        assert_eq!(gate.epoch(), 0);
        gate.run();
        let first = gate.epoch();
        gate.run();
        assert_eq!((gate.epoch(), gate.is_running()), (first, true));
        gate.restart();
        assert!(gate.is_running() && gate.epoch() != first);
        gate.stop();
        assert!(!gate.is_running());
    }
}
