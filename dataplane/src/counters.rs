//! Counters of a queue: written by the one core that serves it, read from anywhere.
//!
//! `frames` and `bytes` count what was delivered (receive) or taken for sending (transmit); every frame
//! that did not get there is under the name of its [`Drop`].

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that one thread writes and any thread reads: a plain add in machine code.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds. Only the owning thread may: two writers would lose counts (never memory safety).
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The count.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! drops {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Drop { $($(#[$doc])* $variant,)* }

        impl Drop {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in tables and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

drops! {
    /// Received; the pool had no fresh buffer to put in its place.
    NoBuffer = "rx_no_buffer",
    /// Received with an error the device reported: bad FCS, bad length, ...
    DeviceError = "rx_device_error",
    /// The device's completion makes no sense: length beyond the buffer, zero, ...
    BadCompletion = "rx_bad_completion",
    /// A frame of more segments than the driver puts together, or never ended.
    TooManySegments = "rx_too_many_segments",
    /// Received and dropped when the queue was stopped.
    RxFlushed = "rx_flushed",
    /// To send: longer than the port's largest frame, or empty.
    BadLength = "tx_bad_length",
    /// To send: of more segments than the device takes.
    TooManyTxSegments = "tx_too_many_segments",
    /// To send: an offload that this device does not have, or with lengths that make no sense.
    BadOffload = "tx_bad_offload",
    /// To send: still in the ring when the queue was stopped or reset.
    TxFlushed = "tx_flushed",
    /// To send: the application gave up on a full ring.
    RingFull = "tx_ring_full",
    /// To capture: the writer did not keep up.
    CaptureFull = "capture_full",
}

/// The counters of one queue.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueCounters {
    /// Frames delivered or taken.
    pub frames: Counter,
    /// Their bytes, without FCS.
    pub bytes: Counter,
    /// Bursts that were not empty.
    pub bursts: Counter,
    /// Times the pool was empty when a buffer was wanted.
    pub pool_empty: Counter,
    /// Frames whose buffers have come back (transmit).
    pub completed: Counter,
    drops: [Counter; Drop::ALL.len()],
}

impl QueueCounters {
    /// One burst.
    #[inline]
    pub fn burst(&self, frames: u64, bytes: u64) {
        self.frames.add(frames);
        self.bytes.add(bytes);
        self.bursts.add(1);
    }

    /// Counts drops under their name.
    #[inline]
    pub fn drop_frames(&self, reason: Drop, frames: u64) {
        self.drops[reason as usize].add(frames);
    }

    /// Drops under that name.
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.drops[reason as usize].get()
    }

    /// Every drop that happened: reason and frames.
    pub fn drops(&self) -> impl Iterator<Item = (Drop, u64)> + '_ {
        Drop::ALL.iter().map(|&reason| (reason, self.dropped(reason))).filter(|&(_, n)| n > 0)
    }

    /// All drops together.
    pub fn dropped_total(&self) -> u64 {
        self.drops().map(|(_, n)| n).sum()
    }
}
