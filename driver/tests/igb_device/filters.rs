//! Which frames are received.

use driver::igb::hw::regs::*;
use driver::{Error, MacAddr, Port, PortConfig, VlanConfig};

use crate::support::*;

const GROUP: MacAddr = MacAddr([0x01, 0, 0x5e, 1, 2, 3]);
const OTHER_GROUP: MacAddr = MacAddr([0x01, 0, 0x5e, 9, 9, 9]);

fn station(n: u8) -> MacAddr {
    MacAddr([0x02, 0, 0, 0, 1, n])
}

fn group(n: u8) -> MacAddr {
    MacAddr([0x33, 0x33, 0, 0, 0x40, n])
}

fn to_all() -> Vec<Vec<u8>> {
    [(OWN, 1), (STRANGER, 2), (GROUP, 3), (OTHER_GROUP, 4), (BROADCAST, 5)]
        .map(|(to, mark)| frame(to, mark, 64))
        .to_vec()
}

#[test]
fn only_the_own_address_and_broadcast_pass_at_first() {
    let (bench, mut served) = Bench::started(&PortConfig::default());
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 5]);
}

#[test]
fn promiscuous_takes_everything_and_other_vlans_too() {
    let vlan = VlanConfig { strip: false, filter: Some(vec![100]) };
    let config = PortConfig { vlan, ..PortConfig::default() };
    let (mut bench, mut served) = Bench::started(&config);
    let other_vlan = [tagged(OWN, 200, 6, 64)];
    assert_eq!(bench.passes(&mut served, &other_vlan), []);
    bench.port.set_promiscuous(true).unwrap();
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 2, 3, 4, 5]);
    assert_eq!(bench.passes(&mut served, &other_vlan), [6]);
    bench.port.set_promiscuous(false).unwrap();
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 5]);
    assert_eq!(bench.passes(&mut served, &other_vlan), []);
}

#[test]
fn the_modes_of_the_configuration_hold_from_the_start() {
    let config = PortConfig { promiscuous: true, ..PortConfig::default() };
    let (mut bench, mut served) = Bench::started(&config);
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 2, 3, 4, 5]);
    bench.port.stop().unwrap();
    drop(served);
    let config = PortConfig { all_multicast: true, ..PortConfig::default() };
    let mut served = bench.start(&config);
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 3, 4, 5]);
}

#[test]
fn all_multicast_takes_groups_and_no_strangers() {
    let (mut bench, mut served) = Bench::started(&PortConfig::default());
    bench.port.set_all_multicast(true).unwrap();
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 3, 4, 5]);
    bench.port.set_all_multicast(false).unwrap();
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 5]);
}

#[test]
fn added_addresses_pass_until_they_are_removed() {
    let (mut bench, mut served) = Bench::started(&PortConfig::default());
    for mac in [STRANGER, GROUP, GROUP, OWN] {
        bench.port.add_mac(mac).unwrap();
    }
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 2, 3, 5]);
    bench.port.remove_mac(GROUP).unwrap();
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 2, 5]);
    bench.port.remove_mac(STRANGER).unwrap();
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 5]);
}

#[test]
fn what_cannot_be_added_or_removed_is_refused_with_what_can() {
    let (mut bench, mut served) = Bench::started(&PortConfig::default());
    for (mac, what) in [(OWN, "own"), (STRANGER, "added before"), (GROUP, "added before")] {
        let error = bench.port.remove_mac(mac).unwrap_err();
        assert!(matches!(&error, Error::Setting { allowed, .. } if allowed.contains(what)), "{error}");
    }
    let error = bench.port.add_mac(MacAddr::default()).unwrap_err();
    assert!(matches!(error, Error::Setting { .. }), "{error}");
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 5]);
}

#[test]
fn a_full_filter_takes_no_more_stations_and_hashes_further_groups() {
    let (mut bench, mut served) = Bench::started(&PortConfig::default());
    // 20 stations and the own one leave three exact places, for three of five groups.
    (1..=20).for_each(|n| bench.port.add_mac(station(n)).unwrap());
    (1..=5).for_each(|n| bench.port.add_mac(group(n)).unwrap());
    let mut frames: Vec<_> = (1..=20).map(|n| frame(station(n), n, 64)).collect();
    frames.extend((1..=5).map(|n| frame(group(n), 100 + n, 64)));
    let all: Vec<u8> = (1..=20).chain(101..=105).collect();
    assert_eq!(bench.passes(&mut served, &frames), all);
    // Same bits 47 to 36 as the groups: strangers to the exact filter, not to the hash.
    let twin = |n: u8| MacAddr([0x33, 0x33, 7, 7, 0x40, n]);
    let twins: Vec<_> = (1..=5).map(|n| frame(twin(n), n, 64)).collect();
    assert_eq!(bench.passes(&mut served, &twins), [4, 5]);
    // Three more stations take the exact places; now all groups are hashed.
    (21..=23).for_each(|n| bench.port.add_mac(station(n)).unwrap());
    assert_eq!(bench.passes(&mut served, &frames), all);
    let error = bench.port.add_mac(station(24)).unwrap_err();
    assert!(matches!(&error, Error::Setting { allowed, .. } if allowed.contains("at most 24")), "{error}");
    assert_eq!(bench.passes(&mut served, &[frame(station(24), 24, 64), frame(station(23), 23, 64)]), [23]);
    // A group more is no matter, and with stations gone the groups are exact again.
    bench.port.add_mac(GROUP).unwrap();
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 3, 5]);
    (1..=10).for_each(|n| bench.port.remove_mac(station(n)).unwrap());
    assert_eq!(bench.passes(&mut served, &frames), all[10..]);
    assert_eq!(bench.passes(&mut served, &twins), []);
    let bar = bench.registers();
    assert!((0..128).all(|word| bar.read32(MTA.at(word)) == 0));
}

#[test]
fn addresses_added_before_the_start_or_while_stopped_hold_after_it() {
    let mut bench = Bench::open();
    bench.port.add_mac(GROUP).unwrap();
    let mut served = bench.start(&PortConfig::default());
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 3, 5]);
    bench.port.stop().unwrap();
    bench.port.add_mac(STRANGER).unwrap();
    bench.port.remove_mac(GROUP).unwrap();
    drop(served);
    let mut served = bench.start(&PortConfig::default());
    assert_eq!(bench.passes(&mut served, &to_all()), [1, 2, 5]);
}

#[test]
fn the_vlan_filter_passes_its_vlans_and_untagged_frames() {
    let vlan = VlanConfig { strip: false, filter: Some(vec![0, 100, 4094]) };
    let config = PortConfig { vlan, ..PortConfig::default() };
    let (bench, mut served) = Bench::started(&config);
    let frames = [(0, 1), (100, 2), (101, 3), (4094, 4), (4093, 5), (132, 6)];
    let frames = frames.map(|(vlan, mark)| tagged(OWN, vlan, mark, 64));
    assert_eq!(bench.passes(&mut served, &frames), [1, 2, 4]);
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 7, 64)]), [7]);
}

#[test]
fn tags_are_stripped_into_the_mbuf_or_left_in_the_frame() {
    for strip in [false, true] {
        let vlan = VlanConfig { strip, filter: None };
        let (bench, mut served) = Bench::started(&PortConfig { vlan, ..PortConfig::default() });
        bench.wire.send(&tagged(OWN, 0x6123, 1, 68)).unwrap();
        let received = &served.receive(1)[0];
        let expected = if strip { frame(OWN, 1, 64) } else { tagged(OWN, 0x6123, 1, 68) };
        assert_eq!((&received.bytes, received.vlan), (&expected, strip.then_some(0x6123)));
    }
}
