//! Advanced receive descriptors, one buffer (82576EB datasheet 7.1.5).
//!
//! 16 bytes as two little-endian words. Driver to device ("read" format): word 0 is the buffer's
//! address, word 1 the header buffer's, unused with one buffer and zero so that the done bit is clear.
//! Device to driver ("write-back" format):
//!
//! | Word | Bits | Field |
//! |---|---|---|
//! | 0 | 3:0 | RSS type, 0: no hash |
//! | 0 | 16:4 | packet type |
//! | 0 | 63:32 | RSS hash |
//! | 1 | 19:0 | extended status |
//! | 1 | 31:20 | extended error |
//! | 1 | 47:32 | bytes in this buffer |
//! | 1 | 63:48 | VLAN tag |

use dataplane::RxFlags;

/// Bytes of a descriptor.
pub const SIZE: usize = 16;

/// Done: the device has written the descriptor back.
pub const DONE: u32 = 1;
/// Last descriptor of its frame.
pub const END_OF_PACKET: u32 = 1 << 1;
/// The VLAN tag was stripped into the descriptor.
pub const VLAN_PACKET: u32 = 1 << 3;
/// The TCP, UDP or SCTP checksum was checked (L4I).
pub const L4_CHECKED: u32 = 1 << 5;
/// The IPv4 header checksum was checked (IPCS).
pub const IP_CHECKED: u32 = 1 << 6;
/// The frame came from another function of this device (LB; I350).
pub const LOOPED_BACK: u32 = 1 << 18;
/// The TCP, UDP or SCTP checksum is wrong (L4E, extended error bit 9).
pub const L4_ERROR: u32 = 1 << 29;
/// The IPv4 header checksum is wrong (IPE, extended error bit 10).
pub const IP_ERROR: u32 = 1 << 30;
/// Something went wrong while it was received: CRC, symbol, length, parity (RXE, extended error bit 11).
pub const RECEIVE_ERROR: u32 = 1 << 31;

/// Bits of word 0 that say which fields the RSS hash covers.
pub const RSS_TYPE: u64 = 0xf;

/// What the device reported in word 1: one read, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion(pub u64);

impl Completion {
    /// Extended status and error bits.
    #[inline]
    pub const fn status(self) -> u32 {
        self.0 as u32
    }

    /// True where all of `bits` are set.
    #[inline]
    pub const fn has(self, bits: u32) -> bool {
        self.status() & bits == bits
    }

    /// Bytes in the buffer, as the device says.
    #[inline]
    pub const fn len(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// True for a completion of no bytes.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The VLAN tag, where [`VLAN_PACKET`] is set.
    #[inline]
    pub const fn vlan(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// What was found out about the checksums.
    #[inline]
    pub const fn checksum_flags(self) -> RxFlags {
        let status = self.status();
        // IPCS and L4I next to each other, IPE and L4E likewise: a table of all 16 cases.
        let index = (status >> 5 & 3) | (status >> 27 & 0xc);
        RxFlags(CHECKSUM_FLAGS[index as usize] as u32)
    }
}

/// Indexed by L4I, IPCS, L4E, IPE, lowest bit first.
const CHECKSUM_FLAGS: [u8; 16] = {
    let mut table = [0; 16];
    let mut index = 0;
    while index < 16 {
        let (l4_checked, ip_checked) = (index & 1 != 0, index & 2 != 0);
        let (l4_error, ip_error) = (index & 4 != 0, index & 8 != 0);
        let l4 = match (l4_checked, l4_error) {
            (false, _) => 0,
            (true, false) => RxFlags::L4_CHECKSUM_GOOD.0,
            (true, true) => RxFlags::L4_CHECKSUM_BAD.0,
        };
        let ip = match (ip_checked, ip_error) {
            (false, _) => 0,
            (true, false) => RxFlags::IP_CHECKSUM_GOOD.0,
            (true, true) => RxFlags::IP_CHECKSUM_BAD.0,
        };
        table[index] = (l4 | ip) as u8;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_datasheet_has_them() {
        let completion = Completion(0x0123_05ea_0000_0003 | u64::from(IP_CHECKED | L4_CHECKED));
        assert!(completion.has(DONE | END_OF_PACKET) && !completion.has(VLAN_PACKET));
        assert_eq!((completion.len(), completion.vlan()), (1514, 0x123));
        let good = RxFlags::IP_CHECKSUM_GOOD.with(RxFlags::L4_CHECKSUM_GOOD);
        assert_eq!(completion.checksum_flags(), good);
    }

    #[test]
    fn a_checksum_is_bad_only_where_it_was_checked() {
        let flags = |status: u32| Completion(status.into()).checksum_flags();
        assert_eq!(flags(IP_ERROR | L4_ERROR), RxFlags(0));
        assert_eq!(flags(IP_CHECKED | IP_ERROR | L4_ERROR), RxFlags::IP_CHECKSUM_BAD);
        assert_eq!(flags(L4_CHECKED | L4_ERROR | IP_ERROR), RxFlags::L4_CHECKSUM_BAD);
        assert_eq!(
            flags(L4_CHECKED | IP_CHECKED | IP_ERROR),
            RxFlags::L4_CHECKSUM_GOOD.with(RxFlags::IP_CHECKSUM_BAD)
        );
    }
}
