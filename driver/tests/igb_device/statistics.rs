//! The device's counters against frames counted outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use driver::igb::Igb;
use driver::igb::hw::regs::*;
use driver::{MacAddr, Port, PortConfig, PortStatistics};

use crate::support::*;

const GROUP: MacAddr = MacAddr([0x01, 0, 0x5e, 1, 2, 3]);

/// What `frames` count for: frames, bytes with FCS, multicast, broadcast.
fn sums(frames: &[Vec<u8>]) -> (u64, u64, u64, u64) {
    let to = |group: bool| frames.iter().filter(move |f| (f[0] & 1 == 1 && f[..6] != [0xff; 6]) == group);
    let broadcast = frames.iter().filter(|f| f[..6] == [0xff; 6]).count() as u64;
    let bytes = frames.iter().map(|f| f.len() as u64 + 4).sum();
    (frames.len() as u64, bytes, to(true).count() as u64, broadcast)
}

fn rx(s: &PortStatistics) -> (u64, u64, u64, u64) {
    (s.rx_frames, s.rx_bytes, s.rx_multicast, s.rx_broadcast)
}

fn tx(s: &PortStatistics) -> (u64, u64, u64, u64) {
    (s.tx_frames, s.tx_bytes, s.tx_multicast, s.tx_broadcast)
}

fn some_frames() -> Vec<Vec<u8>> {
    (0..30).map(|n| frame([OWN, GROUP, BROADCAST][n % 3], n as u8, 60 + 40 * n)).collect()
}

#[test]
fn what_passed_is_what_was_counted_across_reads_and_stops() {
    let config = PortConfig { all_multicast: true, ..PortConfig::default() };
    let (mut bench, mut served) = Bench::started(&config);
    assert_eq!(bench.port.statistics(), PortStatistics::default());
    let frames = some_frames();
    frames.iter().for_each(|frame| bench.wire.send(frame).unwrap());
    served.receive(frames.len());
    assert_eq!(rx(&bench.port.statistics()), sums(&frames));
    for frame in &frames {
        assert!(served.send(0, frame));
        assert_eq!(bench.wire.recv(PATIENCE).unwrap().as_ref(), Some(frame));
    }
    let statistics = bench.port.statistics();
    assert_eq!((rx(&statistics), tx(&statistics)), (sums(&frames), sums(&frames)));
    // What passed since the last read is not lost by the stop and its reset, nor counted twice.
    frames.iter().for_each(|frame| bench.wire.send(frame).unwrap());
    served.receive(frames.len());
    bench.port.stop().unwrap();
    drop(served);
    let twice = [frames.clone(), frames.clone()].concat();
    let _served = bench.start(&config);
    let statistics = bench.port.statistics();
    assert_eq!((rx(&statistics), tx(&statistics)), (sums(&twice), sums(&frames)));
    assert_eq!((statistics.rx_missed, statistics.rx_errors, statistics.tx_errors), (0, 0, 0));
}

#[test]
fn everything_since_the_opening_is_counted_once_and_nothing_before() {
    let mut bench = Bench::open();
    // A register that reading clears, but a reset does not.
    let missed = Arc::new(AtomicU32::new(9));
    let register = missed.clone();
    bench.nic.on_read(move |at, value| if at == (0, MPC.offset) { register.swap(0, Relaxed) } else { value });
    bench.port = Igb::open(bench.nic.clone()).unwrap();
    assert_eq!((bench.port.statistics().rx_missed, missed.load(Relaxed)), (0, 0));
    drop(bench.start(&PortConfig::default()));
    missed.store(1, Relaxed);
    bench.port.stop().unwrap();
    missed.fetch_add(20, Relaxed);
    let _served = bench.start(&PortConfig::default());
    missed.fetch_add(300, Relaxed);
    bench.port.recover().unwrap();
    missed.fetch_add(4000, Relaxed);
    assert_eq!(bench.port.statistics().rx_missed, 4321);
    assert_eq!(bench.port.statistics().rx_missed, 4321);
}

#[test]
fn drops_of_every_queue_and_the_upper_halves_of_byte_counters_are_added() {
    let (mut bench, _served) = Bench::started(&PortConfig { queues: 2, ..PortConfig::default() });
    bench.nic.stick((0, RQDPC.at(0)), u32::MAX, 3);
    bench.nic.stick((0, RQDPC.at(1)), u32::MAX, 40);
    bench.nic.stick((0, RQDPC.at(2)), u32::MAX, 500);
    bench.nic.stick((0, MPC.offset), u32::MAX, 6000);
    bench.nic.stick((0, GORCL.offset), u32::MAX, 0xffff_fffe);
    bench.nic.stick((0, GORCH.offset), u32::MAX, 1);
    let statistics = bench.port.statistics();
    assert_eq!(statistics.rx_missed, 6043, "queue 2 does not run");
    assert_eq!(statistics.rx_bytes, 0x1_ffff_fffe);
    let statistics = bench.port.statistics();
    assert_eq!((statistics.rx_missed, statistics.rx_bytes), (12_086, 0x3_ffff_fffc));
}

#[test]
fn a_device_that_is_gone_adds_nothing() {
    let (mut bench, mut served) = Bench::started(&PortConfig::default());
    bench.wire.send(&frame(OWN, 1, 60)).unwrap();
    served.receive(1);
    let before = bench.port.statistics();
    assert_eq!(rx(&before), (1, 64, 0, 0));
    bench.nic.remove();
    assert_eq!(bench.port.statistics(), before);
}
