//! Advanced transmit descriptors (82576EB datasheet 7.2.2.2 context, 7.2.2.3 data).
//!
//! 16 bytes as two little-endian words. A data descriptor:
//!
//! | Word | Bits | Field |
//! |---|---|---|
//! | 0 | 63:0 | buffer address |
//! | 1 | 15:0 | bytes in this buffer (DTALEN) |
//! | 1 | 23:20 | type: 3 |
//! | 1 | 31:24 | command |
//! | 1 | 35:32 | status, written back by the device; bit 32: done |
//! | 1 | 38:36 | context it uses |
//! | 1 | 45:40 | options: checksums to insert |
//! | 1 | 63:46 | bytes of the frame; with segmentation without headers (PAYLEN) |
//!
//! A context descriptor:
//!
//! | Word | Bits | Field |
//! |---|---|---|
//! | 0 | 8:0 | IP header length |
//! | 0 | 15:9 | Ethernet header length |
//! | 0 | 31:16 | VLAN tag |
//! | 1 | 19:9 | what the headers are (TUCMD) |
//! | 1 | 23:20 | type: 2 |
//! | 1 | 31:24 | command |
//! | 1 | 38:36 | place in the queue's context table: 0 or 1 |
//! | 1 | 47:40 | TCP header length |
//! | 1 | 63:48 | payload bytes of a segment (MSS) |

/// Done: what was asked to be reported, is.
pub const DONE: u64 = 1 << 32;

const DEXT: u64 = 1 << 29;

/// A data descriptor that ends no frame, with the FCS inserted (DTYP 3, DCMD.DEXT, DCMD.IFCS).
pub const DATA: u64 = 3 << 20 | DEXT | 1 << 25;
/// Last descriptor of its frame (DCMD.EOP).
pub const END_OF_PACKET: u64 = 1 << 24;
/// Report when done (DCMD.RS).
pub const REPORT: u64 = 1 << 27;
/// Insert the context's VLAN tag (DCMD.VLE).
pub const INSERT_VLAN: u64 = 1 << 30;
/// Segment TCP (DCMD.TSE).
pub const SEGMENT: u64 = 1 << 31;
/// Insert the IPv4 header checksum (POPTS.IXSM).
pub const IP_CHECKSUM: u64 = 1 << 40;
/// Insert the TCP, UDP or SCTP checksum (POPTS.TXSM).
pub const L4_CHECKSUM: u64 = 1 << 41;

/// Largest frame, or payload to be segmented: PAYLEN has 18 bits.
pub const MOST_PAYLOAD: u32 = (1 << 18) - 1;
/// Longest Ethernet header: MACLEN has 7 bits.
pub const MOST_MAC_LEN: u8 = 127;
/// Longest IP header: IPLEN has 9 bits.
pub const MOST_IP_LEN: u16 = 511;
/// Longest headers of a frame to be segmented, all together.
pub const MOST_HEADERS: u32 = 512;
/// Contexts of a queue.
pub const CONTEXTS: usize = 2;

/// The length of a data descriptor's buffer, for word 1.
#[inline]
pub const fn data_len(len: u16) -> u64 {
    len as u64
}

/// The length of the frame or payload, for word 1.
#[inline]
pub const fn payload_len(len: u32) -> u64 {
    (len as u64) << 46
}

/// Which context is meant, for word 1 of data and context descriptors.
#[inline]
pub const fn context_index(index: usize) -> u64 {
    (index as u64 & 7) << 36
}

/// The transport that a context is about (TUCMD.L4T).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// UDP, or none that matters.
    Udp = 0,
    /// TCP.
    Tcp = 1,
    /// SCTP.
    Sctp = 2,
}

/// Word 0 of a context: lengths in bytes.
pub const fn context_word0(mac_len: u8, ip_len: u16, vlan: u16) -> u64 {
    ip_len as u64 | (mac_len as u64) << 9 | (vlan as u64) << 16
}

/// Word 1 of a context, without its index. `l4_len` and `mss` are used with segmentation.
pub const fn context_word1(ipv4: bool, transport: Transport, l4_len: u8, mss: u16) -> u64 {
    let headers = (ipv4 as u64) << 10 | (transport as u64) << 11;
    headers | 2 << 20 | DEXT | (l4_len as u64) << 40 | (mss as u64) << 48
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_datasheet() {
        assert_eq!(DATA | END_OF_PACKET | REPORT, 0x2b30_0000);
        assert_eq!(DATA | END_OF_PACKET | data_len(60) | payload_len(60), 0x000f_0000_2330_003c);
        assert_eq!(context_word0(14, 20, 0x123), 0x0123_1c14);
        assert_eq!(context_word1(true, Transport::Tcp, 20, 1448), 0x05a8_1400_2020_0c00);
        assert_eq!(context_word1(false, Transport::Sctp, 0, 0) | context_index(1), 0x0000_0010_2020_1000);
    }
}
