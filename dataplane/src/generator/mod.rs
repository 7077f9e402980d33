//! Generates traffic, and checks what comes back.
//!
//! * [`FrameSpec`] describes a frame, [`TxGenerator`] fills bursts with it: the same again and again, as
//!   one of many [`Flows`], or as a numbered and timestamped stream; or with frames of a capture file.
//! * [`Pacer`] says how many frames are due at a [`Rate`].
//! * [`Verifier`] tells loss, reordering, duplicates and damage of such streams exactly, and how long
//!   each frame was under way.
//!
//! Nothing here reads a clock or touches a queue by itself: the time goes in as ticks of a [`Clock`],
//! bursts come out.
//!
//! # The probe
//! A stream's frames carry 18 bytes behind their UDP or TCP header, so that the smallest Ethernet frame
//! (UDP over IPv4) has room for them. Big endian:
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 2 | magic, 0x6bec |
//! | 2 | 2 | stream |
//! | 4 | 8 | sequence number, from 0 |
//! | 12 | 6 | when its burst was built: the low 48 bits of the sender's clock, in ticks |
//!
//! What follows is zero. The UDP or TCP checksum covers all of it.

pub mod checksum;
mod clock;
mod flows;
mod frame;
mod latency;
mod pacer;
mod probe;
mod rate;
mod replay;
mod tx;
mod verifier;
mod window;

pub use clock::Clock;
pub use flows::{Flows, Vary};
pub use frame::{FrameError, FrameSpec, Network, Transport};
pub use latency::Latency;
pub use pacer::Pacer;
pub use probe::{MAGIC, PROBE_LEN, Probe};
pub use rate::{FRAME_OVERHEAD, Rate};
pub use replay::{Replay, ReplayError};
pub use tx::TxGenerator;
pub use verifier::{Verifier, VerifierCounters};
pub use window::StreamReport;

/// Frame lengths with FCS of the simple IMIX, in the order they are sent: seven of 64, four of 594 and one
/// of 1,518 bytes out of twelve, spread evenly. The mean is 362 bytes (361.8).
pub const SIMPLE_IMIX: [u16; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];
