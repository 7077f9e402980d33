//! [`Context`]: what a frame asks of the device, checked, and in the device's words.

use dataplane::TxOffload;

use crate::igb::hw::tx_desc::{
    DATA, INSERT_VLAN, IP_CHECKSUM, L4_CHECKSUM, MOST_HEADERS, MOST_IP_LEN, MOST_MAC_LEN, MOST_PAYLOAD,
    SEGMENT, Transport, context_word0, context_word1,
};

/// Ethernet header without tags.
pub(super) const ETHERNET: u32 = 14;
const VLAN_TAG: u32 = 4;
const CHECKSUMS: u8 = TxOffload::TCP_CHECKSUM | TxOffload::UDP_CHECKSUM | TxOffload::SCTP_CHECKSUM;
const KNOWN: u8 =
    CHECKSUMS | TxOffload::IP_CHECKSUM | TxOffload::TCP_SEGMENT | TxOffload::VLAN_INSERT | TxOffload::IPV6;

/// A context descriptor, and what data descriptors that refer to it carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Context {
    offload: TxOffload,
    vlan: u16,
    /// Word 0 of the context descriptor.
    pub(super) word0: u64,
    /// Word 1 of the context descriptor, without its index.
    pub(super) word1: u64,
    /// Word 1 of data descriptors, without lengths and index.
    pub(super) data: u64,
    /// Shortest frame it makes sense for.
    pub(super) least: u32,
    /// Longest frame it makes sense for.
    pub(super) most: u32,
    /// With segmentation: bytes of the headers, which must be in the first segment. Else 0.
    pub(super) headers: u32,
}

impl Context {
    /// True where it serves a frame that asks for this.
    #[inline]
    pub(super) fn serves(&self, offload: TxOffload, vlan: u16) -> bool {
        self.offload == offload && (self.vlan == vlan || offload.flags & TxOffload::VLAN_INSERT == 0)
    }

    /// The context for a frame that asks for this, on a port whose longest frame has `max_frame` bytes.
    /// Nothing where the device cannot do it, or the lengths make no sense.
    pub(super) fn new(offload: TxOffload, vlan: u16, max_frame: u32) -> Option<Self> {
        let flags = offload.flags;
        let on = |flag| flags & flag != 0;
        let (segment, insert) = (on(TxOffload::TCP_SEGMENT), on(TxOffload::VLAN_INSERT));
        let transport = transport(flags)?;
        let tag = if insert { VLAN_TAG } else { 0 };
        let mut data = DATA | if insert { INSERT_VLAN } else { 0 };
        let mut limits = (ETHERNET, max_frame.checked_sub(tag)?.min(MOST_PAYLOAD));
        let mut mac_len = offload.l2_len;
        let mut headers = 0;
        if flags & (CHECKSUMS | TxOffload::IP_CHECKSUM | TxOffload::TCP_SEGMENT) != 0 {
            let network = network_headers(&offload)?;
            limits.0 = network + least_transport(&offload);
            if on(TxOffload::IP_CHECKSUM) || segment && !on(TxOffload::IPV6) {
                data |= IP_CHECKSUM;
            }
            if segment || on(CHECKSUMS) {
                data |= L4_CHECKSUM;
            }
            if segment {
                data |= SEGMENT;
                headers = segmented_headers(network, &offload, limits.1)?;
                limits = (headers + 1, headers + MOST_PAYLOAD);
            }
        } else if !(ETHERNET as u8..=MOST_MAC_LEN).contains(&mac_len) {
            // A tag alone needs no lengths.
            mac_len = ETHERNET as u8;
        }
        let (l4_len, mss) = if segment { (offload.l4_len, offload.segment) } else { (0, 0) };
        Some(Self {
            offload,
            vlan,
            word0: context_word0(mac_len, offload.l3_len & MOST_IP_LEN, if insert { vlan } else { 0 }),
            word1: context_word1(!on(TxOffload::IPV6), transport, l4_len, mss),
            data,
            least: limits.0,
            most: limits.1,
            headers,
        })
    }
}

/// One transport at the most, and no IPv4 checksum in IPv6.
fn transport(flags: u8) -> Option<Transport> {
    let both = TxOffload::IP_CHECKSUM | TxOffload::IPV6;
    if flags & !KNOWN != 0 || flags & both == both {
        return None;
    }
    let segment = flags & TxOffload::TCP_SEGMENT != 0;
    match flags & CHECKSUMS {
        0 if segment => Some(Transport::Tcp),
        TxOffload::TCP_CHECKSUM => Some(Transport::Tcp),
        _ if segment => None,
        0 | TxOffload::UDP_CHECKSUM => Some(Transport::Udp),
        TxOffload::SCTP_CHECKSUM => Some(Transport::Sctp),
        _ => None,
    }
}

/// Ethernet and IP header together, where their lengths can be: RFC 791 3.1 (5 to 15 words), RFC 8200
/// 3 and 4 (40 bytes and extensions of 8 each).
fn network_headers(offload: &TxOffload) -> Option<u32> {
    let (mac, ip) = (offload.l2_len, offload.l3_len);
    let ip_fits = if offload.flags & TxOffload::IPV6 != 0 {
        (40..=MOST_IP_LEN).contains(&ip) && ip.is_multiple_of(8)
    } else {
        (20..=60).contains(&ip) && ip.is_multiple_of(4)
    };
    let fits = ip_fits && (ETHERNET as u8..=MOST_MAC_LEN).contains(&mac);
    fits.then(|| u32::from(mac) + u32::from(ip))
}

/// Shortest header of the transport whose checksum is asked for.
fn least_transport(offload: &TxOffload) -> u32 {
    match offload.flags & CHECKSUMS {
        TxOffload::TCP_CHECKSUM => 20,
        TxOffload::UDP_CHECKSUM => 8,
        TxOffload::SCTP_CHECKSUM => 12,
        _ => 0,
    }
}

/// All headers of a frame to be segmented, where they and a segment fit into a frame of `most` bytes.
fn segmented_headers(network: u32, offload: &TxOffload, most: u32) -> Option<u32> {
    let (tcp, segment) = (offload.l4_len, offload.segment);
    let headers = network + u32::from(tcp);
    let fits = (20..=60).contains(&tcp)
        && tcp.is_multiple_of(4)
        && headers <= MOST_HEADERS
        && segment > 0
        && headers + u32::from(segment) <= most;
    fits.then_some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u32 = 1522;

    fn tcp4(flags: u8) -> TxOffload {
        TxOffload { flags, l2_len: 14, l3_len: 20, l4_len: 20, segment: 1448 }
    }

    #[test]
    fn segmentation_sets_both_checksums_and_leaves_the_headers_out_of_the_limit() {
        let context = Context::new(tcp4(TxOffload::TCP_SEGMENT), 0, MAX).unwrap();
        assert_eq!(context.data, DATA | SEGMENT | IP_CHECKSUM | L4_CHECKSUM);
        assert_eq!((context.headers, context.least, context.most), (54, 55, 54 + MOST_PAYLOAD));
        assert_eq!(context.word1, context_word1(true, Transport::Tcp, 20, 1448));
        let v6 = TxOffload { l3_len: 40, ..tcp4(TxOffload::TCP_SEGMENT | TxOffload::IPV6) };
        assert_eq!(Context::new(v6, 0, MAX).unwrap().data, DATA | SEGMENT | L4_CHECKSUM);
    }

    #[test]
    fn a_tag_leaves_four_bytes_less_and_matters_only_where_inserted() {
        let tag =
            Context::new(TxOffload { flags: TxOffload::VLAN_INSERT, ..TxOffload::NONE }, 7, MAX).unwrap();
        assert_eq!((tag.word0, tag.data, tag.most), (context_word0(14, 0, 7), DATA | INSERT_VLAN, MAX - 4));
        assert!(!tag.serves(TxOffload { flags: TxOffload::VLAN_INSERT, ..TxOffload::NONE }, 8));
        let plain = Context::new(tcp4(TxOffload::TCP_CHECKSUM), 7, MAX).unwrap();
        assert!(plain.serves(tcp4(TxOffload::TCP_CHECKSUM), 8));
        assert_eq!(plain.word0 >> 16, 0);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let no = |offload: TxOffload| assert_eq!(Context::new(offload, 0, MAX), None, "{offload:?}");
        no(tcp4(0x80));
        no(tcp4(TxOffload::TCP_CHECKSUM | TxOffload::UDP_CHECKSUM));
        no(tcp4(TxOffload::TCP_SEGMENT | TxOffload::SCTP_CHECKSUM));
        no(TxOffload { l3_len: 40, ..tcp4(TxOffload::IPV6 | TxOffload::IP_CHECKSUM) });
        no(TxOffload { l2_len: 13, ..tcp4(TxOffload::IP_CHECKSUM) });
        no(TxOffload { l2_len: 128, ..tcp4(TxOffload::IP_CHECKSUM) });
        no(TxOffload { l3_len: 22, ..tcp4(TxOffload::IP_CHECKSUM) });
        no(TxOffload { l3_len: 64, ..tcp4(TxOffload::IP_CHECKSUM) });
        no(TxOffload { l3_len: 20, ..tcp4(TxOffload::TCP_CHECKSUM | TxOffload::IPV6) });
        no(TxOffload { segment: 0, ..tcp4(TxOffload::TCP_SEGMENT) });
        no(TxOffload { segment: 1469, ..tcp4(TxOffload::TCP_SEGMENT) });
        no(TxOffload { segment: 1465, ..tcp4(TxOffload::TCP_SEGMENT | TxOffload::VLAN_INSERT) });
        no(TxOffload { l4_len: 16, ..tcp4(TxOffload::TCP_SEGMENT) });
        no(TxOffload { l4_len: 22, ..tcp4(TxOffload::TCP_SEGMENT) });
    }

    proptest! {
        #[test]
        fn every_accepted_context_keeps_its_fields_apart(
            flags: u8, l2_len: u8, l3_len: u16, l4_len: u8, segment: u16, vlan: u16, max_frame in 64u32..10_000,
        ) {
            let offload = TxOffload { flags, l2_len, l3_len, l4_len, segment };
            if let Some(context) = Context::new(offload, vlan, max_frame) {
                prop_assert!(context.serves(offload, vlan));
                // DTYP and DEXT of both kinds, and nothing where the index, the status and lengths go.
                prop_assert_eq!(context.word1 & 0x2df0_01ff, 0x2020_0000);
                prop_assert_eq!(context.word1 & 0xff_0000_0000, 0);
                prop_assert_eq!(context.data & !(SEGMENT | INSERT_VLAN | IP_CHECKSUM | L4_CHECKSUM), DATA);
                prop_assert!(context.least >= ETHERNET && context.headers <= MOST_HEADERS);
            }
        }
    }
}
