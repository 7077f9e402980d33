//! [`Mbuf`]: one buffer, owned; chained where a frame needs several.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;

use crate::mempool::{HEADROOM, Shared};

/// What the NIC found out about a received frame.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RxFlags(pub u32);

impl RxFlags {
    /// [`Mbuf::rss_hash`] holds the NIC's hash.
    pub const RSS_HASH: Self = Self(1);
    /// The VLAN tag was removed from the frame; [`Mbuf::vlan`] holds it.
    pub const VLAN_STRIPPED: Self = Self(1 << 1);
    /// The NIC checked the IPv4 header checksum, and it is right.
    pub const IP_CHECKSUM_GOOD: Self = Self(1 << 2);
    /// The NIC checked the IPv4 header checksum, and it is wrong.
    pub const IP_CHECKSUM_BAD: Self = Self(1 << 3);
    /// The NIC checked the TCP, UDP or SCTP checksum, and it is right.
    pub const L4_CHECKSUM_GOOD: Self = Self(1 << 4);
    /// The NIC checked the TCP, UDP or SCTP checksum, and it is wrong.
    pub const L4_CHECKSUM_BAD: Self = Self(1 << 5);

    /// True where all of `flags` are set.
    #[inline]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Both sets.
    #[inline]
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

/// What the NIC is asked to do to a frame it sends. Lengths in bytes.
///
/// Checksum fields of the frame must hold what the NIC adds to: zero for IPv4, the pseudo-header's
/// sum for TCP and UDP (with the length left out for segmentation), zero for SCTP.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct TxOffload {
    /// [`TxOffload::IP_CHECKSUM`] and the others.
    pub flags: u8,
    /// Ethernet header, VLAN tags in the frame included: 14, 18, ...
    pub l2_len: u8,
    /// IP header with options or extension headers.
    pub l3_len: u16,
    /// TCP header with options, for segmentation.
    pub l4_len: u8,
    /// Payload bytes of each segment, for segmentation.
    pub segment: u16,
}

impl TxOffload {
    /// Fill in the IPv4 header checksum.
    pub const IP_CHECKSUM: u8 = 1;
    /// Fill in the TCP checksum.
    pub const TCP_CHECKSUM: u8 = 1 << 1;
    /// Fill in the UDP checksum.
    pub const UDP_CHECKSUM: u8 = 1 << 2;
    /// Fill in the SCTP CRC.
    pub const SCTP_CHECKSUM: u8 = 1 << 3;
    /// Cut the TCP payload into segments of [`TxOffload::segment`] bytes.
    pub const TCP_SEGMENT: u8 = 1 << 4;
    /// Insert the VLAN tag of [`Mbuf::vlan`].
    pub const VLAN_INSERT: u8 = 1 << 5;
    /// The network layer is IPv6.
    pub const IPV6: u8 = 1 << 6;
    /// Nothing.
    pub const NONE: Self = Self { flags: 0, l2_len: 0, l3_len: 0, l4_len: 0, segment: 0 };
}

/// A buffer's description: one cache line, in memory that no device reaches.
#[repr(C, align(64))]
pub(crate) struct Header {
    /// First byte of the buffer, headroom included.
    pub(crate) buffer: NonNull<u8>,
    /// The same byte as devices see it.
    pub(crate) iova: u64,
    pub(crate) offset: u16,
    pub(crate) len: u16,
    pub(crate) frame_len: u32,
    pub(crate) rss_hash: u32,
    pub(crate) vlan: u16,
    pub(crate) port: u16,
    pub(crate) rx_flags: RxFlags,
    pub(crate) segments: u16,
    pub(crate) capacity: u16,
    pub(crate) offload: TxOffload,
    pub(crate) next: Option<Mbuf>,
    pub(crate) pool: NonNull<Shared>,
}

const _: () = assert!(size_of::<Header>() == 64 && size_of::<Option<Mbuf>>() == 8);

/// One buffer of a [`crate::Mempool`], owned, with the frame or part of a frame in it.
///
/// Moving it is moving a pointer. Dropping it gives the buffer (and what is chained to it) back to its
/// pool by the slow way; the hot path frees through a [`crate::PoolCache`].
#[repr(transparent)]
pub struct Mbuf(pub(crate) NonNull<Header>);

// SAFETY: an `Mbuf` is the only owner of its header and its buffer.
unsafe impl Send for Mbuf {}
// SAFETY: `&Mbuf` only reads.
unsafe impl Sync for Mbuf {}

impl Mbuf {
    #[inline]
    pub(crate) fn header(&self) -> &Header {
        // SAFETY: the header lives as long as its pool, which outlives every buffer taken from it, and
        // this value is its only owner.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    pub(crate) fn header_mut(&mut self) -> &mut Header {
        // SAFETY: as for `header`; `&mut self` makes it exclusive.
        unsafe { self.0.as_mut() }
    }

    /// Makes it an empty, unchained frame with the standard headroom.
    #[inline]
    pub fn reset(&mut self) {
        self.received(0);
    }

    /// For drivers: the device has written `len` bytes behind the headroom, one segment, nothing else
    /// known. `len` above the room is cut to it.
    #[inline]
    pub fn received(&mut self, len: u16) {
        let header = self.header_mut();
        let len = len.min(header.capacity);
        header.offset = HEADROOM;
        header.len = len;
        header.frame_len = len.into();
        header.rss_hash = 0;
        header.vlan = 0;
        header.port = 0;
        header.rx_flags = RxFlags(0);
        header.segments = 1;
        header.offload = TxOffload::NONE;
    }

    /// The bytes of this segment.
    #[inline]
    pub fn data(&self) -> &[u8] {
        let header = self.header();
        // SAFETY: `offset + len` never passes the end of the buffer (every setter checks), the buffer
        // lives as long as its pool, no device has it while an `Mbuf` owns it, and pool memory starts
        // zeroed, so it is initialised.
        unsafe {
            std::slice::from_raw_parts(header.buffer.as_ptr().add(header.offset.into()), header.len.into())
        }
    }

    /// The bytes of this segment, to change.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let header = self.header_mut();
        // SAFETY: as for `data`; `&mut self` makes it exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(
                header.buffer.as_ptr().add(header.offset.into()),
                header.len.into(),
            )
        }
    }

    /// Where devices see the first byte of this segment.
    #[inline]
    pub fn iova(&self) -> u64 {
        let header = self.header();
        header.iova + u64::from(header.offset)
    }

    /// Where devices see the first byte behind the standard headroom: where a driver lets them write.
    #[inline]
    pub fn receive_iova(&self) -> u64 {
        self.header().iova + u64::from(HEADROOM)
    }

    /// Bytes a device may write behind the standard headroom.
    #[inline]
    pub fn room(&self) -> u16 {
        self.header().capacity
    }

    /// Bytes in this segment.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "an mbuf is a place, not a collection")]
    pub fn len(&self) -> u16 {
        self.header().len
    }

    /// Bytes in the whole frame.
    #[inline]
    pub fn frame_len(&self) -> u32 {
        self.header().frame_len
    }

    /// Buffers of the frame, 1 or more.
    #[inline]
    pub fn segments(&self) -> u16 {
        self.header().segments
    }

    /// Sets the length of this (single) segment; false, and nothing done, where the buffer has less
    /// room. Bytes that were not written before are what the buffer last held.
    #[inline]
    #[must_use]
    pub fn set_len(&mut self, len: u16) -> bool {
        let header = self.header_mut();
        let end = HEADROOM + header.capacity;
        if len > end - header.offset {
            return false;
        }
        header.frame_len = header.frame_len - u32::from(header.len) + u32::from(len);
        header.len = len;
        true
    }

    /// Appends `bytes` to this (single) segment; false, and nothing done, where the room is less.
    #[must_use]
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let old = self.len();
        let Some(len) = u16::try_from(bytes.len()).ok().and_then(|n| old.checked_add(n)) else {
            return false;
        };
        if !self.set_len(len) {
            return false;
        }
        self.data_mut()[old.into()..].copy_from_slice(bytes);
        true
    }

    /// Grows the front by `n` bytes of headroom (a header to push); false where there is too little.
    #[inline]
    #[must_use]
    pub fn prepend(&mut self, n: u16) -> bool {
        let header = self.header_mut();
        if n > header.offset {
            return false;
        }
        header.offset -= n;
        header.len += n;
        header.frame_len += u32::from(n);
        true
    }

    /// Cuts `n` bytes off the front; false where the segment has fewer.
    #[inline]
    #[must_use]
    pub fn trim_front(&mut self, n: u16) -> bool {
        let header = self.header_mut();
        if n > header.len {
            return false;
        }
        header.offset += n;
        header.len -= n;
        header.frame_len -= u32::from(n);
        true
    }

    /// Chains `tail` (itself single or chained) behind this frame's last segment.
    ///
    /// Walks to the end; a driver that builds long chains keeps its own end.
    pub fn chain(&mut self, mut tail: Mbuf) {
        let (len, segments) = (tail.frame_len(), tail.segments());
        tail.header_mut().segments = 1;
        let header = self.header_mut();
        header.frame_len += len;
        header.segments += segments;
        let mut last = self;
        while last.header().next.is_some() {
            let Some(next) = &mut last.header_mut().next else { return };
            last = next;
        }
        last.header_mut().next = Some(tail);
    }

    /// The next segment of the frame.
    #[inline]
    pub fn next(&self) -> Option<&Mbuf> {
        self.header().next.as_ref()
    }

    /// Takes the chain behind this segment off.
    #[inline]
    pub fn take_next(&mut self) -> Option<Mbuf> {
        self.header_mut().next.take()
    }

    /// The segments of the frame, this one first.
    pub fn chained(&self) -> impl Iterator<Item = &Mbuf> {
        std::iter::successors(Some(self), |m| m.next())
    }

    /// The whole frame's bytes, copied.
    pub fn to_vec(&self) -> Vec<u8> {
        self.chained().flat_map(|m| m.data().iter().copied()).collect()
    }

    /// What the NIC found out.
    #[inline]
    pub fn rx_flags(&self) -> RxFlags {
        self.header().rx_flags
    }

    /// The NIC's RSS hash, where [`RxFlags::RSS_HASH`] is set.
    #[inline]
    pub fn rss_hash(&self) -> u32 {
        self.header().rss_hash
    }

    /// The VLAN tag control information stripped, or to insert.
    #[inline]
    pub fn vlan(&self) -> u16 {
        self.header().vlan
    }

    /// The port it was received on.
    #[inline]
    pub fn port(&self) -> u16 {
        self.header().port
    }

    /// For drivers: the port it was received on.
    #[inline]
    pub fn set_port(&mut self, port: u16) {
        self.header_mut().port = port;
    }

    /// For drivers: what the NIC found out.
    #[inline]
    pub fn set_rx(&mut self, flags: RxFlags, rss_hash: u32, vlan: u16, port: u16) {
        let header = self.header_mut();
        header.rx_flags = flags;
        header.rss_hash = rss_hash;
        header.vlan = vlan;
        header.port = port;
    }

    /// What the NIC shall do at sending.
    #[inline]
    pub fn offload(&self) -> TxOffload {
        self.header().offload
    }

    /// Asks the NIC for work at sending. `vlan` is used with [`TxOffload::VLAN_INSERT`].
    #[inline]
    pub fn set_offload(&mut self, offload: TxOffload, vlan: u16) {
        let header = self.header_mut();
        header.offload = offload;
        header.vlan = vlan;
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        let mut next = self.take_next();
        Shared::put_back(self);
        // One at a time: a long chain dropped by recursion would overflow the stack.
        while let Some(mut mbuf) = next {
            next = mbuf.take_next();
        }
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mbuf({} bytes in {} segments)", self.frame_len(), self.segments())
    }
}
