//! Open, start, stop, drop.

use std::sync::Arc;
use std::time::Duration;

use dataplane::{Burst, Mempool, PoolConfig, RxQueue, TxQueue};
use driver::igb::Igb;
use driver::igb::hw::regs::*;
use driver::{Error, Event, Link, MacAddr, Port, PortConfig};
use pci::qtest::{Faulty, Machine};

use crate::support::*;

const UP: Link = Link { up: true, speed: 1000, full_duplex: true };

#[test]
fn open_finds_the_model_and_the_address_and_leaves_the_device_quiet() {
    let bench = Bench::open();
    let info = bench.port.info();
    assert_eq!((info.model, info.mac, info.max_queues), ("Intel 82576", OWN, 16));
    assert_eq!((info.max_mtu, info.capabilities.rss_table), (9706, 128));
    let bar = bench.registers();
    assert!(!bench.is_master());
    assert_eq!(bar.read32(RCTL.offset) & rctl::RXEN, 0);
    assert_eq!(bar.read32(TCTL.offset) & tctl::EN, 0);
    assert_eq!((bar.read32(IMS.offset), bar.read32(EIMS.offset)), (0, 0));
    for queue in 0..16 {
        assert_eq!(bar.read32(0xc028 + 0x40 * queue) & 1 << 25, 0, "RX queue {queue} is off");
        assert_eq!(bar.read32(0xe028 + 0x40 * queue) & 1 << 25, 0, "TX queue {queue} is off");
    }
    // The link comes up by itself, for whoever looks at it before the start.
    bench.wait_link(true);
    assert_eq!(bench.port.link(), UP);
}

#[test]
fn frames_pass_both_ways_after_start_and_none_before() {
    let mut bench = Bench::open();
    bench.wait_link(true);
    let mut served = bench.start(&PortConfig::default());
    assert!(bench.is_master());
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 60), frame(OWN, 2, 1514)]), [1, 2]);
    assert!(served.send(0, &frame(BROADCAST, 3, 100)));
    assert_eq!(bench.wire.recv(PATIENCE).unwrap(), Some(frame(BROADCAST, 3, 100)));
}

#[test]
fn start_writes_what_the_datasheet_asks_for() {
    let config = PortConfig { queues: 4, mtu: 4000, ..PortConfig::default() };
    let (bench, _served) = Bench::started(&config);
    let bar = bench.registers();
    let read = |register: Register| bar.read32(register.offset);
    assert_eq!(read(RCTL), rctl::RXEN | rctl::LPE | rctl::BAM | rctl::SECRC);
    assert_eq!(read(RLPML), 4000 + 22);
    assert_eq!(read(RXCSUM), 1 << 8 | 1 << 9 | 1 << 11 | 1 << 13);
    assert_eq!(read(MRQC), 0x00f7_0002);
    let tctl = read(TCTL);
    assert_eq!(
        tctl & (tctl::EN | tctl::PSP | tctl::RTLC | tctl::CT),
        tctl::EN | tctl::PSP | tctl::RTLC | tctl::CT_15
    );
    assert_eq!((read(TIPG), read(TCTL_EXT) >> 10 & 0x3ff), (0x0060_1008, 63));
    assert_eq!(bar.read32(RETA.at(0)), 0x0302_0100);
    assert_eq!(bar.read32(RETA.at(31)), 0x0302_0100);
    assert_eq!(bar.read32(RSSRK.at(0)), 0xda56_5a6d);
    assert_eq!(bar.read32(RAL.at(0)), 0x0000_0002);
    assert_eq!(bar.read32(RAH.at(0)), rah::AV | 0x1100);
    assert!((1..16).all(|i| bar.read32(RAH.at(i)) == 0));
    assert_eq!(read(GPIE), 0xc000_0011);
    assert_eq!(read(IMS), 1 << 2 | 1 << 22 | 1 << 28 | 1 << 30);
    assert_eq!(read(EIMS), 1);
    assert_eq!(read(IVAR_MISC), 0x8000);
    assert_ne!(read(CTRL_EXT) & ctrl_ext::DRV_LOAD, 0);
    assert_ne!(read(CTRL) & ctrl::SLU, 0);
    assert_eq!(read(CTRL) & ctrl::VME, 0);
}

#[test]
fn stopped_queues_move_nothing_and_their_buffers_come_home() {
    let (mut bench, mut served) = Bench::started(&PortConfig::default());
    assert_eq!(bench.passes(&mut served, &[]), []);
    bench.port.stop().unwrap();
    assert!(!bench.is_master());
    let bar = bench.registers();
    assert_eq!(bar.read32(RCTL.offset) & rctl::RXEN, 0);
    assert!(served.poll().is_empty());
    assert!(!served.send(0, &frame(BROADCAST, 1, 60)));
    assert_eq!(bench.wire.recv(Duration::from_millis(20)).unwrap(), None);
    drop(served);
    assert_eq!(bench.pool.available(), bench.pool.capacity());
    bench.port.stop().unwrap();
    drop(bench.port);
    assert_eq!(bar.read32(CTRL_EXT.offset) & ctrl_ext::DRV_LOAD, 0);
}

#[test]
fn a_hundred_starts_leave_mappings_and_pool_as_they_were() {
    let mut bench = Bench::open();
    let space = bench.machine.iova_space().clone();
    let before = (space.mappings(), space.mapped_bytes(), bench.pool.available());
    let config =
        PortConfig { queues: 2, rx_depth: 64, tx_depth: 64, rx_interrupts: true, ..PortConfig::default() };
    for round in 0..100 {
        let pairs = bench.port.start(&config, &bench.pool).unwrap();
        assert_eq!(pairs.len(), 2);
        // Every second time the queues are dropped first: either order must do.
        if round % 2 == 0 {
            drop(pairs);
            bench.port.stop().unwrap();
        } else {
            bench.port.stop().unwrap();
            drop(pairs);
        }
        assert_eq!((space.mappings(), space.mapped_bytes(), bench.pool.available()), before, "round {round}");
    }
    let mut served = bench.start(&config);
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 9, 64)]), [9]);
}

#[test]
fn queues_outlive_their_port_and_do_nothing() {
    let (bench, mut served) = Bench::started(&PortConfig::default());
    let Bench { port, nic, wire, pool, machine } = bench;
    drop(port);
    drop(nic);
    assert!(served.poll().is_empty());
    assert!(!served.send(0, &frame(BROADCAST, 1, 60)));
    assert_eq!(wire.recv(Duration::from_millis(20)).unwrap(), None);
    drop(served);
    assert_eq!(pool.available(), pool.capacity());
    drop(machine);
}

#[test]
fn a_new_start_is_not_disturbed_by_the_queues_of_the_last_one() {
    let (mut bench, old) = Bench::started(&PortConfig::default());
    bench.port.stop().unwrap();
    let mut served = bench.start(&PortConfig::default());
    drop(old);
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 5, 64)]), [5]);
}

#[test]
fn an_mtu_is_kept_to_the_byte_up_to_nine_and_a_half_kilobytes() {
    for mtu in [68, 1500, 9706] {
        let config = PortConfig { mtu, ..PortConfig::default() };
        let (bench, mut served) = Bench::started(&config);
        // The limit is on the frame: a tag takes part of what an untagged frame may use.
        let longest = usize::from(mtu) + 18;
        let frames = [frame(OWN, 1, longest), tagged(OWN, 7, 2, longest), frame(OWN, 3, longest + 1)];
        assert_eq!(bench.passes(&mut served, &frames), [1, 2], "MTU {mtu}");
    }
}

#[test]
fn the_link_is_told_once_for_each_change() {
    let (mut bench, _served) = Bench::started(&PortConfig::default());
    assert_eq!(bench.port.events(), [Event::Link(UP)]);
    assert_eq!(bench.port.events(), []);
    bench.machine.set_link(0, false).unwrap();
    assert_eq!(bench.port.events(), [Event::Link(Link::default())]);
    assert_eq!(bench.port.events(), []);
    bench.machine.set_link(0, true).unwrap();
    bench.wait_link(true);
    assert_eq!(bench.port.events(), [Event::Link(UP)]);
}

#[test]
fn another_device_is_refused_by_name() {
    let machine = Machine::builder().nic("e1000e").start().unwrap();
    let error = Igb::open(Arc::new(Faulty::new(machine.function(0)))).err().unwrap();
    assert!(matches!(error, Error::Unsupported { vendor: 0x8086, device: 0x10d3, .. }), "{error}");
    let error = driver::open(machine.function(0)).err().unwrap();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[test]
fn two_ports_on_one_wire_talk_to_each_other_and_are_told_apart() {
    let addresses = [1, 2].map(|n| MacAddr([2, 0, 0, 0, 0, n]));
    let mut builder = Machine::builder();
    for mac in addresses {
        builder = builder.nic_on_hub(&format!("igb,mac={mac}"), 0);
    }
    let machine = builder.start().unwrap();
    // One pool for both: a buffer received on one port is sent on the other.
    let pool =
        Mempool::new(machine.iova_space(), PoolConfig { capacity: 2048, ..PoolConfig::default() }).unwrap();
    let mut ports = [0, 1].map(|nic| driver::open(machine.function(nic)).unwrap());
    let config = PortConfig { rx_depth: 64, tx_depth: 64, ..PortConfig::default() };
    let mut pairs = ports.each_mut().map(|port| port.start(&config, &pool).unwrap().remove(0));
    until("both links", || ports.iter().all(|port| port.link().up));
    assert_eq!([ports[0].info().mac, ports[1].info().mac], addresses);

    let mut cache = pool.cache();
    let mut burst = Burst::new();
    let mut mbuf = cache.take().unwrap();
    assert!(mbuf.append(&frame(addresses[1], 7, 100)));
    assert!(burst.push(mbuf).is_ok());
    assert_eq!(pairs[0].tx.post(&mut cache, &mut burst), 1);
    until("the frame", || pairs[1].rx.poll(&mut cache, &mut burst, 8) == 1);
    assert_eq!(burst[0].to_vec(), frame(addresses[1], 7, 100));
    let first = burst[0].port();
    burst[0].data_mut()[..6].copy_from_slice(&addresses[0].0);
    assert_eq!(pairs[1].tx.post(&mut cache, &mut burst), 1);
    until("the answer", || pairs[0].rx.poll(&mut cache, &mut burst, 8) == 1);
    assert_eq!(burst[0].to_vec(), frame(addresses[0], 7, 100));
    assert_ne!(burst[0].port(), first);
}

#[test]
fn a_pool_that_the_device_cannot_reach_is_refused() {
    let mut bench = Bench::open();
    let elsewhere = Mempool::new(&pci::IovaSpace::software(), PoolConfig::default()).unwrap();
    let error = bench.port.start(&PortConfig::default(), &elsewhere).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::State { what, .. } if what.contains("I/O address space")), "{error}");
    assert!(!bench.is_master());
    bench.start(&PortConfig::default());
}
