//! [`Probe`]: what a stream's frames carry, and finding it in a received frame.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum;
use crate::Mbuf;

/// Marks a probe.
pub const MAGIC: u16 = 0x6bec;
/// Bytes of a probe.
pub const PROBE_LEN: usize = size_of::<Probe>();

/// The probe behind a frame's UDP or TCP header; see the [module](super) for its fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Probe {
    magic: U16,
    stream: U16,
    sequence: U64,
    ticks_high: U16,
    ticks_low: U32,
}

const _: () = assert!(PROBE_LEN == 18);

/// The bits of the clock that a probe carries: at 5 GHz it wraps after 15 hours.
pub(super) const TICKS: u64 = (1 << 48) - 1;

impl Probe {
    /// A probe built at `now`.
    #[inline]
    pub fn new(stream: u16, sequence: u64, now: u64) -> Self {
        Self {
            magic: U16::new(MAGIC),
            stream: U16::new(stream),
            sequence: U64::new(sequence),
            ticks_high: U16::new((now >> 32) as u16),
            ticks_low: U32::new(now as u32),
        }
    }

    /// The stream.
    pub fn stream(&self) -> u16 {
        self.stream.get()
    }

    /// Its number in the stream.
    pub fn sequence(&self) -> u64 {
        self.sequence.get()
    }

    /// Ticks from when it was built to `now`, both of the same clock.
    #[inline]
    pub fn age(&self, now: u64) -> u64 {
        let built = u64::from(self.ticks_high.get()) << 32 | u64::from(self.ticks_low.get());
        now.wrapping_sub(built) & TICKS
    }
}

/// What a received frame turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Ours, and whole.
    Probe(Probe),
    /// Ours, damaged: the checksum or a length is wrong.
    Corrupt,
    /// Somebody else's.
    Foreign,
}

/// Where a probe is and what its checksum covers.
struct Located {
    /// Offset of the UDP or TCP header.
    transport: usize,
    /// Bytes from there on, by the IP header's length field.
    len: usize,
    /// Sum of the pseudo header.
    pseudo: u64,
    probe: usize,
}

/// Looks for a probe in a frame and checks it against the UDP or TCP checksum.
#[inline]
pub(super) fn find(mbuf: &Mbuf) -> Found {
    let head = mbuf.data();
    let Some(located) = locate(head) else { return Found::Foreign };
    let Some(probe) = head.get(located.probe..).and_then(|rest| Probe::read_from_prefix(rest).ok()) else {
        return Found::Foreign;
    };
    let probe = probe.0;
    if probe.magic.get() != MAGIC {
        return Found::Foreign;
    }
    let covered = head.get(located.transport..).unwrap_or_default();
    let total = match covered.get(..located.len) {
        Some(bytes) => Some(checksum::sum(bytes)),
        None => chained_sum(mbuf, located.transport, located.len),
    };
    match total {
        Some(total) if checksum::fold(total + located.pseudo) == 0xffff => Found::Probe(probe),
        _ => Found::Corrupt,
    }
}

/// The sum of `len` bytes from `skip` on of a frame in several buffers; nothing where it is shorter.
#[cold]
fn chained_sum(mbuf: &Mbuf, mut skip: usize, mut len: usize) -> Option<u64> {
    let (mut total, mut odd) = (0, false);
    for segment in mbuf.chained() {
        let bytes = segment.data();
        let bytes = bytes.get(skip..).unwrap_or_default();
        skip = skip.saturating_sub(usize::from(segment.len()));
        let bytes = bytes.get(..len).unwrap_or(bytes);
        let part = u64::from(checksum::fold(checksum::sum(bytes)));
        // Behind an odd number of bytes, high and low bytes of the words change places.
        total += if odd { part << 8 } else { part };
        odd ^= bytes.len() % 2 == 1;
        len -= bytes.len();
    }
    (len == 0).then_some(total)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

#[inline]
fn locate(frame: &[u8]) -> Option<Located> {
    let mut network = 14;
    let mut kind = be16(frame, 12)?;
    while matches!(kind, 0x8100 | 0x88a8) && network < 22 {
        kind = be16(frame, network + 2)?;
        network += 4;
    }
    let (protocol, transport, len, addresses) = match kind {
        0x0800 => v4(frame, network)?,
        0x86dd => v6(frame, network)?,
        _ => return None,
    };
    let header = match protocol {
        17 => 8,
        6 => usize::from(frame.get(transport + 12)? >> 4) * 4,
        _ => return None,
    };
    if len < header + PROBE_LEN {
        return None;
    }
    let pseudo = checksum::sum(addresses) + u64::from(protocol) + len as u64;
    Some(Located { transport, len, pseudo, probe: transport + header })
}

type Parts<'a> = (u8, usize, usize, &'a [u8]);

#[inline]
fn v4(frame: &[u8], at: usize) -> Option<Parts<'_>> {
    let header: &[u8; 20] = frame.get(at..)?.first_chunk()?;
    let len = usize::from(header[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // A fragment's payload begins or ends somewhere inside: not ours.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] >> 4 != 4 || len < 20 || fragment {
        return None;
    }
    Some((header[9], at + len, total.checked_sub(len)?, header.get(12..20)?))
}

#[inline]
fn v6(frame: &[u8], at: usize) -> Option<Parts<'_>> {
    let header: &[u8; 40] = frame.get(at..)?.first_chunk()?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    (header[0] >> 4 == 6).then_some((header[6], at + 40, len, header.get(8..40)?))
}

impl Probe {
    /// Its part of a checksum.
    #[inline]
    pub(super) fn sum(&self) -> u64 {
        let head =
            u64::from(self.magic.get()) + u64::from(self.stream.get()) + u64::from(self.ticks_high.get());
        head + checksum::wide(self.sequence.get()) + u64::from(self.ticks_low.get())
    }
}
