//! What travels in the ring from a queue to the writer: a header, then the bytes kept.

/// Which way a frame went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Received.
    Received,
    /// Handed to the queue for sending.
    Sent,
}

/// A record's header: when (ticks of the clock), bytes of the frame, bytes kept.
pub(super) struct Record {
    pub(super) ticks: u64,
    pub(super) len: u32,
    pub(super) kept: u32,
}

/// Bytes of a header in the ring.
pub(super) const HEADER: usize = 16;

impl Record {
    #[inline]
    pub(super) fn to_bytes(&self) -> [u8; HEADER] {
        let words = u128::from(self.ticks) | u128::from(self.len) << 64 | u128::from(self.kept) << 96;
        words.to_le_bytes()
    }

    pub(super) fn from_bytes(bytes: [u8; HEADER]) -> Self {
        let words = u128::from_le_bytes(bytes);
        Self { ticks: words as u64, len: (words >> 64) as u32, kept: (words >> 96) as u32 }
    }
}
