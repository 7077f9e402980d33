//! Captures frames to a file, and reads capture files.
//!
//! [`Capture`] owns a file and a thread that writes it. [`Captured`] wraps a queue: it copies what passes
//! into a ring and never waits; the thread writes it out as pcapng with nanosecond timestamps, one
//! interface for each queue pair, the direction at each frame. Frames that the ring cannot hold are
//! counted as [`crate::Drop::CaptureFull`]. Nothing of it is in any driver, and a queue that is not
//! captured pays nothing.
//!
//! ```no_run
//! # fn run(rx: impl dataplane::RxQueue, tx: impl dataplane::TxQueue) -> Result<(), dataplane::capture::CaptureError> {
//! use dataplane::capture::{Capture, CaptureConfig, Captured};
//!
//! let mut capture = Capture::new("trace.pcapng", CaptureConfig::default());
//! let queue = capture.interface("0000:01:00.0 queue 0");
//! let rx = Captured::new(rx, Some(capture.received(queue)));
//! let tx = Captured::new(tx, Some(capture.sent(queue)));
//! let capture = capture.start()?;
//! // ... the queues are used ...
//! drop((rx, tx));
//! println!("{} frames", capture.close()?.frames);
//! # Ok(()) }
//! ```

mod pcapng;
mod read;
mod record;
mod tap;
mod writer;

pub use read::{FormatError, Packet, Packets, packets};
pub use record::Direction;
pub use tap::{Captured, Tap};
pub use writer::{Capture, CaptureConfig, CaptureError, CaptureSummary, Interface, Running};

#[cfg(all(test, not(loom)))]
mod tests;
