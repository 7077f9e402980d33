use super::*;
use crate::generator::probe::{Found, find};
use crate::generator::{Network, SIMPLE_IMIX, Transport, Vary, Verifier};
use crate::{MAX_BURST, Mempool, PoolConfig};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use pci::{IovaSpace, Sharing};
use proptest::prelude::*;
use std::collections::HashSet;

fn pool(capacity: u32, room: u16) -> Mempool {
    Mempool::new(&IovaSpace::software(), PoolConfig { capacity, room, sharing: Sharing::Private }).unwrap()
}

fn frames(generator: &mut TxGenerator, n: usize) -> Vec<Vec<u8>> {
    let pool = pool(256, 9216);
    let (mut cache, mut burst, mut out) = (pool.cache(), Burst::new(), Vec::new());
    while out.len() < n {
        let want = (n - out.len()).min(MAX_BURST);
        assert_eq!(generator.fill(&mut cache, &mut burst, want, 1234), want);
        out.extend(burst.iter().map(Mbuf::to_vec));
        // Whatever a buffer held before must not show through.
        burst.iter_mut().for_each(|mbuf| mbuf.data_mut().fill(0xa5));
        cache.give_burst(&mut burst, want);
    }
    out
}

/// What tells flows apart, as an independent parser sees it; asserts that lengths and checksums are right.
fn key(frame: &[u8]) -> String {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (addresses, transport) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let sum = match packet.transport.as_ref().unwrap() {
                TransportSlice::Udp(udp) => {
                    let (header, payload) = (udp.to_header(), udp.payload());
                    let zeroed = etherparse::UdpHeader { checksum: 0, ..header.clone() };
                    assert_eq!(
                        header.checksum,
                        zeroed.calc_checksum_ipv4(&ip.header().to_header(), payload).unwrap()
                    );
                    (header.source_port, header.destination_port)
                }
                TransportSlice::Tcp(tcp) => {
                    let header = tcp.to_header();
                    let expected =
                        header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()).unwrap();
                    assert_eq!(header.checksum, expected);
                    (header.source_port, header.destination_port)
                }
                _ => panic!("neither UDP nor TCP"),
            };
            (format!("{:?} {:?}", header.source, header.destination), sum)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let sum = match packet.transport.as_ref().unwrap() {
                TransportSlice::Udp(udp) => {
                    let udp_header = udp.to_header();
                    let expected = udp_header.calc_checksum_ipv6(&header, udp.payload()).unwrap();
                    assert_eq!(udp_header.checksum, expected);
                    (udp_header.source_port, udp_header.destination_port)
                }
                TransportSlice::Tcp(tcp) => {
                    let tcp_header = tcp.to_header();
                    let expected = tcp_header.calc_checksum_ipv6(&header, tcp.payload()).unwrap();
                    assert_eq!(tcp_header.checksum, expected);
                    (tcp_header.source_port, tcp_header.destination_port)
                }
                _ => panic!("neither UDP nor TCP"),
            };
            (format!("{:?} {:?}", header.source, header.destination), sum)
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let vlan = packet.vlan_ids();
    format!("{:?} {vlan:?} {addresses} {transport:?}", &frame[..12])
}

fn specs() -> impl Strategy<Value = FrameSpec> {
    let network = prop_oneof![
        any::<(u32, u32)>().prop_map(|(a, b)| Network::V4(a.into(), b.into())),
        any::<(u128, u128)>().prop_map(|(a, b)| Network::V6(a.into(), b.into())),
    ];
    let transport = prop_oneof![Just(Transport::Udp), Just(Transport::Tcp)];
    let macs = any::<([u8; 6], [u8; 6])>();
    (macs, prop::option::of(0u16..4095), network, transport, any::<(u16, u16)>(), 100u16..2000).prop_map(
        |((src_mac, dst_mac), vlan, network, transport, (src_port, dst_port), len)| FrameSpec {
            src_mac,
            dst_mac,
            vlan,
            network,
            transport,
            src_port,
            dst_port,
            len,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever varies, with a probe or without: lengths and checksums are right by etherparse, flows are
    /// distinct, and come round again.
    #[test]
    fn every_frame_is_right(spec in specs(), fields in 1u8..128, count in 2u32..40, stream in prop::option::of(any::<u16>())) {
        let names = ["src-ip", "dst-ip", "src-port", "dst-port", "src-mac", "dst-mac", "vlan"];
        let chosen = (0..7).filter(|i| fields & 1 << i != 0 && (*i != 6 || spec.vlan.is_some()));
        let vary = chosen.fold(Vary::none(), |all, i| all.with(names[i].parse().unwrap()));
        prop_assume!(vary != Vary::none());
        let flows = Flows::new(count, vary).unwrap();
        let mut generator = TxGenerator::new(std::slice::from_ref(&spec), flows, stream).unwrap();
        let made = frames(&mut generator, 2 * count as usize);
        prop_assert!(made.iter().all(|frame| frame.len() == usize::from(spec.len)));
        let keys: Vec<_> = made.iter().map(|frame| key(frame)).collect();
        let (first, second) = keys.split_at(count as usize);
        prop_assert_eq!(first, second);
        prop_assert_eq!(first.iter().collect::<HashSet<_>>().len(), count as usize);
        prop_assert_eq!(generator.frames(), u64::from(count) * 2);
        prop_assert_eq!(generator.bytes(), u64::from(count) * 2 * u64::from(spec.len));
    }

    /// Few flows' heads are made in advance, many flows' as they are sent: the same frames.
    #[test]
    fn frames_made_in_advance_are_those_made_one_by_one(spec in specs()) {
        let vary = Vary::SRC_IP.with(Vary::DST_PORT);
        let made = |count| {
            let flows = Flows::new(count, vary).unwrap();
            frames(&mut TxGenerator::new(std::slice::from_ref(&spec), flows, None).unwrap(), 100)
        };
        prop_assert_eq!(made(MADE_IN_ADVANCE), made(MADE_IN_ADVANCE + 1));
    }

    #[test]
    fn a_constant_frame_is_the_template(spec in specs()) {
        let mut generator = TxGenerator::new(std::slice::from_ref(&spec), Flows::ONE, None).unwrap();
        let built = spec.build().unwrap();
        key(&built);
        prop_assert!(frames(&mut generator, 3).iter().all(|frame| *frame == built));
    }

    /// A damaged frame is never taken for a whole one of the same stream, wherever the damage is behind
    /// the Ethernet header: the Internet checksums see any change of one bit.
    #[test]
    fn damage_is_seen(spec in specs(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut generator = TxGenerator::new(std::slice::from_ref(&spec), Flows::ONE, Some(0)).unwrap();
        let pool = pool(4, 2048);
        let (mut cache, mut burst) = (pool.cache(), Burst::new());
        generator.fill(&mut cache, &mut burst, 1, 77);
        prop_assert!(matches!(find(&burst[0]), Found::Probe(probe) if probe.sequence() == 0 && probe.age(80) == 3));
        let from = if spec.vlan.is_some() { 18 } else { 14 };
        let at = from + at.index(usize::from(spec.len) - from);
        burst[0].data_mut()[at] ^= 1 << bit;
        match find(&burst[0]) {
            Found::Corrupt | Found::Foreign => {}
            // Fields that neither checksum covers: the IP header's, but for addresses, protocol, lengths.
            Found::Probe(_) => {
                let header = if matches!(spec.network, Network::V4(..)) { 20 } else { 40 };
                prop_assert!(at < from + header, "byte {at}");
            }
        }
    }

    /// Hostile bytes: no panic, and never a probe but with magic and checksum.
    #[test]
    fn garbage_is_foreign_or_corrupt(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..4, cut in 1u16..200) {
        let kinds: [&[u8]; 4] = [&[8, 0, 0x45], &[0x86, 0xdd, 0x60], &[0x81, 0, 0, 1, 8, 0, 0x4f], &[]];
        if let Some(place) = bytes.get_mut(12..12 + kinds[kind].len()) {
            place.copy_from_slice(kinds[kind]);
        }
        let pool = pool(8, 256);
        let (first, rest) = bytes.split_at(usize::from(cut).min(bytes.len()));
        let mut mbuf = pool.take().unwrap();
        prop_assert!(mbuf.append(first));
        if !rest.is_empty() {
            let mut tail = pool.take().unwrap();
            prop_assert!(tail.append(rest));
            mbuf.chain(tail);
        }
        prop_assert!(!matches!(find(&mbuf), Found::Probe(_)));
    }

    /// A frame in several buffers is checked as the same frame in one.
    #[test]
    fn chained_frames_are_checked_whole(spec in specs(), cuts in prop::collection::vec(1usize..300, 0..4), damage in any::<bool>()) {
        let mut generator = TxGenerator::new(std::slice::from_ref(&spec), Flows::ONE, Some(3)).unwrap();
        let mut bytes = frames(&mut generator, 1).remove(0);
        if damage {
            *bytes.last_mut().unwrap() ^= 0x40;
        }
        let pool = pool(16, 2048);
        let (head, mut rest) = bytes.split_at(100);
        let mut mbuf = pool.take().unwrap();
        prop_assert!(mbuf.append(head));
        for cut in cuts.into_iter().chain([2000]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            let mut tail = pool.take().unwrap();
            prop_assert!(tail.append(now));
            mbuf.chain(tail);
            rest = later;
        }
        match find(&mbuf) {
            Found::Probe(probe) => prop_assert!(!damage && probe.stream() == 3),
            other => prop_assert!(damage && other == Found::Corrupt, "{other:?}"),
        }
    }
}

#[test]
fn the_smallest_frame_has_room_for_a_probe_and_no_smaller_has() {
    let spec = FrameSpec::default();
    assert!(TxGenerator::new(std::slice::from_ref(&spec), Flows::ONE, Some(0)).is_ok());
    for (len, transport, probe, least) in [
        (59, Transport::Udp, None, 60),
        (60, Transport::Tcp, Some(0), 72),
        (16_001, Transport::Udp, None, 60),
    ] {
        let spec = FrameSpec { len, transport, ..spec.clone() };
        let error = TxGenerator::new(&[spec], Flows::ONE, probe).map(|_| ()).unwrap_err();
        assert!(matches!(error, FrameError::Length { least: l, .. } if l == least), "{error}");
    }
    assert_eq!(TxGenerator::new(&[], Flows::ONE, None).map(|_| ()), Err(FrameError::Mix(0)));
    let vlans = Flows::new(2, Vary::VLAN).unwrap();
    assert_eq!(TxGenerator::new(&[spec], vlans, None).map(|_| ()), Err(FrameError::NoVlan));
}

#[test]
fn the_simple_imix_is_seven_four_one() {
    let mix = SIMPLE_IMIX.map(|len| FrameSpec { len: len - 4, ..FrameSpec::default() });
    let mut generator = TxGenerator::new(&mix, Flows::ONE, Some(1)).unwrap();
    let made = frames(&mut generator, 120);
    let count = |len| made.iter().filter(|frame| frame.len() + 4 == len).count();
    assert_eq!((count(64), count(594), count(1518)), (70, 40, 10));
    assert_eq!((generator.mean_len(), generator.bytes()), (357, 10 * (7 * 60 + 4 * 590 + 1514)));
    made.iter().for_each(|frame| drop(key(frame)));
    for (at, frame) in made.iter().enumerate() {
        let probe = <Probe as zerocopy::FromBytes>::read_from_bytes(&frame[42..60]).unwrap();
        assert_eq!((probe.stream(), probe.sequence(), probe.age(1234)), (1, at as u64, 0));
    }
}

#[test]
fn buffers_too_small_stay_in_the_pool() {
    let pool = pool(64, 1024);
    let spec = FrameSpec { len: 1500, ..FrameSpec::default() };
    let mut generator = TxGenerator::new(&[spec], Flows::ONE, None).unwrap();
    assert_eq!(generator.room(), 1500);
    let (mut cache, mut burst) = (pool.cache(), Burst::new());
    assert_eq!(generator.fill(&mut cache, &mut burst, 32, 0), 0);
    assert!(burst.is_empty() && generator.frames() == 0);
    drop(cache);
    assert_eq!(pool.available(), 64);
}

#[test]
fn an_empty_pool_makes_what_it_can() {
    let pool = pool(40, 256);
    let mut generator = TxGenerator::new(&[FrameSpec::default()], Flows::ONE, Some(0)).unwrap();
    let (mut cache, mut burst) = (pool.cache(), Burst::new());
    assert_eq!(generator.fill(&mut cache, &mut burst, 64, 0), 40);
    assert_eq!((generator.fill(&mut cache, &mut burst, 64, 0), generator.frames(), burst.len()), (0, 40, 40));
}

#[test]
fn the_verifier_tells_every_frame_apart() {
    let pool = pool(64, 256);
    let mut generator = TxGenerator::new(&[FrameSpec::default()], Flows::ONE, Some(2)).unwrap();
    let (mut cache, mut burst) = (pool.cache(), Burst::new());
    let mut verifier = Verifier::new(3);
    generator.fill(&mut cache, &mut burst, 10, 1000);
    // 0 1 2 | 4 (lost 3) | 5 6 | 8 7 (late) | 8 again | 9 corrupt
    let order = [0, 1, 2, 4, 5, 6, 8, 7, 8];
    for &at in &order {
        verifier.receive(&burst[at..=at], 1100);
    }
    burst[9].data_mut()[59] ^= 1;
    verifier.receive(&burst[9..], 1100);
    // Not ours, not followed, cut off.
    burst[0].data_mut()[42] = 0;
    verifier.receive(&burst[..1], 1100);
    assert!(burst[1].set_len(50));
    verifier.receive(&burst[1..2], 1100);
    let mut other = TxGenerator::new(&[FrameSpec::default()], Flows::ONE, Some(3)).unwrap();
    let mut more = Burst::new();
    other.fill(&mut cache, &mut more, 1, 1000);
    verifier.receive(&more, 1100);
    let report = verifier.report(2);
    assert_eq!((report.unique, report.duplicates, report.reordered, report.stale), (8, 1, 1, 0));
    assert_eq!((report.lost(10), report.missing()), (2, 1));
    let counters = verifier.counters();
    assert_eq!((counters.corrupt.get(), counters.foreign.get(), counters.total()), (1, 3, 13));
    assert_eq!(
        (verifier.latency().count(), verifier.latency().min(), verifier.latency().max()),
        (9, 100, 100)
    );
    assert_eq!(verifier.reports().map(|(stream, _)| stream).collect::<Vec<_>>(), [2]);
}
