//! Hangs, faults and the way back: queue pairs go on, nothing is lost uncounted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dataplane::Drop as Reason;
use driver::igb::hw::regs::*;
use driver::{Event, MacAddr, Port, PortConfig, RssConfig, VlanConfig};

use crate::support::*;

const GROUP: MacAddr = MacAddr([0x01, 0, 0x5e, 1, 2, 3]);
/// TDH and TDT of TX queue 1.
const HEAD: (u8, usize) = (0, 0xe050);
const TAIL: (u8, usize) = (0, 0xe058);

/// How often the device was reset.
fn resets(bench: &Bench) -> u64 {
    bench.nic.writes((0, GCR.offset))
}

#[test]
fn everything_that_was_set_holds_after_a_recovery() {
    let config = PortConfig {
        queues: 2,
        mtu: 4000,
        rx_interrupts: true,
        all_multicast: true,
        vlan: VlanConfig { strip: true, filter: Some(vec![100]) },
        ..PortConfig::default()
    };
    let (mut bench, mut served) = Bench::started(&config);
    bench.port.add_mac(STRANGER).unwrap();
    bench.port.set_rss(&RssConfig { table: vec![1; 128], key: [0x5a; 40] }).unwrap();
    bench.port.set_all_multicast(false).unwrap();
    bench.port.add_mac(GROUP).unwrap();
    let registers = |bench: &Bench| {
        let bar = bench.registers();
        let all = [RCTL, RXCSUM, RLPML, MRQC, RETA, RSSRK, RAL, RAH, RAL_HIGH, RAH_HIGH, MTA, VFTA, IVAR];
        let arrays = all.iter().flat_map(|r| (0..r.count).map(|i| bar.read32(r.at(i))));
        let single = [TCTL, TCTL_EXT, GPIE, IMS, EIAC, IVAR_MISC].map(|r| bar.read32(r.offset));
        arrays.chain(single).collect::<Vec<_>>()
    };
    let before = registers(&bench);
    bench.port.recover().unwrap();
    bench.wait_link(true);
    assert_eq!(registers(&bench), before);
    assert_eq!(resets(&bench), 2);
    // The queues come up again when their core looks at them.
    assert!(served.poll().is_empty());
    let mut frames = vec![frame(OWN, 1, 4018), frame(STRANGER, 2, 64), frame(GROUP, 3, 64)];
    frames.extend([tagged(OWN, 100, 4, 64), tagged(OWN, 101, 5, 64), frame(OWN, 6, 4019)]);
    assert_eq!(bench.passes(&mut served, &frames), [1, 2, 3, 4]);
    for index in [0, 1] {
        assert!(served.send(index, &frame(BROADCAST, 7, 64)));
        assert_eq!(bench.wire.recv(PATIENCE).unwrap(), Some(frame(BROADCAST, 7, 64)));
    }
}

#[test]
fn a_recovery_wakes_cores_that_wait_for_frames() {
    let config = PortConfig { queues: 2, rx_interrupts: true, ..PortConfig::default() };
    let (mut bench, mut served) = Bench::started(&config);
    for pair in &served.pairs {
        (pair.interrupt.as_ref().unwrap().arm)();
    }
    bench.port.recover().unwrap();
    for pair in &served.pairs {
        let interrupt = pair.interrupt.as_ref().unwrap();
        assert!(interrupt.vector.wait(PATIENCE).unwrap() > 0, "pair {}", pair.index);
    }
    // Awake, they bring their queues up, and sleep again.
    assert!(served.poll().is_empty());
    bench.wait_link(true);
    let interrupt = served.pairs[0].interrupt.as_ref().unwrap();
    while interrupt.vector.wait(Duration::from_millis(20)).unwrap() > 0 {}
    (interrupt.arm)();
    bench.wire.send(&frame(OWN, 1, 64)).unwrap();
    assert!(interrupt.vector.wait(PATIENCE).unwrap() > 0);
    assert_eq!(marks(&served.receive(1)), [1]);
}

#[test]
fn recoveries_under_traffic_conserve_frames_and_buffers() {
    let config = PortConfig { queues: 2, rx_depth: 128, tx_depth: 128, ..PortConfig::default() };
    let (mut bench, mut served) = Bench::started(&config);
    let (wire, stop) = (bench.wire.clone(), AtomicBool::new(false));
    let counters = [0, 1].map(|n| (served.rx(n), served.tx(n)));
    let capacity = bench.pool.capacity();
    let (delivered, taken, mut served) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let (mut delivered, mut taken) = (0u64, [0u64; 2]);
            while !stop.load(Ordering::Relaxed) {
                delivered += served.poll().len() as u64;
                for index in [0, 1] {
                    taken[index] += u64::from(served.send(index, &frame(BROADCAST, 1, 64)));
                }
                let _ = wire.recv(Duration::ZERO).unwrap();
                let _ = wire.send(&frame(OWN, 2, 64));
            }
            (delivered, taken, served)
        });
        let ends = Stop(&stop);
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(100));
            bench.port.recover().unwrap();
            bench.wait_link(true);
        }
        std::thread::sleep(Duration::from_millis(100));
        drop(ends);
        worker.join().unwrap()
    });
    // What is still on its way comes in, what is still in the rings goes out.
    let mut delivered = delivered + served.poll().len() as u64;
    until("the wire to be empty", || {
        let more = served.poll().len() as u64;
        delivered += more;
        served.reap();
        more == 0
            && counters
                .iter()
                .all(|(_, tx)| tx.frames.get() == tx.completed.get() + tx.dropped(Reason::TxFlushed))
    });
    assert_eq!(delivered, counters.iter().map(|(rx, _)| rx.frames.get()).sum::<u64>());
    assert!(delivered > 50, "{delivered} frames are no traffic");
    for (index, (_, tx)) in counters.iter().enumerate() {
        assert_eq!(tx.frames.get(), taken[index], "queue {index}");
        assert!(tx.completed.get() > 0, "queue {index} sent");
    }
    // Both ways still work, on every queue.
    while bench.wire.recv(Duration::from_millis(10)).unwrap().is_some() {}
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 3, 64)]).last(), Some(&3));
    bench.port.stop().unwrap();
    drop(served);
    assert_eq!(bench.pool.available(), capacity);
}

#[test]
fn a_hung_queue_is_told_once_and_restarted_alone() {
    let (mut bench, mut served) = Bench::started(&PortConfig { queues: 2, ..PortConfig::default() });
    bench.port.events();
    // The doorbell is lost and the device says that it stands at the beginning with work to do.
    bench.nic.stick(HEAD, u32::MAX, 0);
    bench.nic.stick(TAIL, u32::MAX, 1);
    bench.nic.drop_writes(TAIL);
    assert!(served.send(1, &frame(BROADCAST, 1, 64)));
    let mut told = Vec::new();
    until("the hang to be told", || {
        told.extend(bench.port.events());
        !told.is_empty()
    });
    assert_eq!(told, [Event::TxHang { queue: 1 }]);
    assert_eq!(bench.port.events(), []);
    let before = (resets(&bench), bench.nic.writes((0, RCTL.offset)));
    bench.nic.heal();
    bench.port.recover().unwrap();
    assert_eq!((resets(&bench), bench.nic.writes((0, RCTL.offset))), before, "the device was not reset");
    assert!(served.send(1, &frame(BROADCAST, 2, 64)));
    assert_eq!(bench.wire.recv(PATIENCE).unwrap(), Some(frame(BROADCAST, 2, 64)));
    let tx = served.tx(1);
    assert_eq!(tx.dropped(Reason::TxFlushed), 1);
    assert_eq!(bench.port.events(), []);
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 3, 64)]), [3]);
}

#[test]
fn a_queue_that_hangs_again_at_once_costs_a_reset() {
    let (mut bench, mut served) = Bench::started(&PortConfig { queues: 2, ..PortConfig::default() });
    bench.port.events();
    let before = resets(&bench);
    for resets_so_far in [0, 1] {
        bench.nic.stick(HEAD, u32::MAX, 0);
        bench.nic.stick(TAIL, u32::MAX, 1);
        until("the hang to be told", || bench.port.events() == [Event::TxHang { queue: 1 }]);
        bench.nic.heal();
        bench.port.recover().unwrap();
        assert_eq!(resets(&bench), before + resets_so_far);
        bench.wait_link(true);
        // The queue comes up at its core's next turn.
        assert!(served.send(1, &frame(BROADCAST, 2, 64)));
        assert_eq!(bench.wire.recv(PATIENCE).unwrap(), Some(frame(BROADCAST, 2, 64)));
        bench.port.events();
    }
}

#[test]
fn a_hung_queue_that_does_not_let_go_costs_a_reset() {
    let (mut bench, mut served) = Bench::started(&PortConfig { queues: 2, ..PortConfig::default() });
    bench.port.events();
    bench.nic.stick(HEAD, u32::MAX, 0);
    bench.nic.stick(TAIL, u32::MAX, 1);
    until("the hang to be told", || bench.port.events() == [Event::TxHang { queue: 1 }]);
    bench.nic.heal();
    // It says that it is enabled until the device is reset.
    let seen = AtomicBool::new(false);
    bench.nic.on_write(move |at, value| {
        seen.fetch_or(at == (0, CTRL.offset) && value & ctrl::RST != 0, Ordering::Relaxed);
        (at != (0, 0xe068) || seen.load(Ordering::Relaxed)).then_some(value)
    });
    let before = resets(&bench);
    bench.port.recover().unwrap();
    assert_eq!(resets(&bench), before + 1);
    bench.wait_link(true);
    assert!(served.send(1, &frame(BROADCAST, 2, 64)));
    assert_eq!(bench.wire.recv(PATIENCE).unwrap(), Some(frame(BROADCAST, 2, 64)));
}

#[test]
fn a_dropped_queue_is_no_hang() {
    let (mut bench, mut served) = Bench::started(&PortConfig { queues: 2, ..PortConfig::default() });
    bench.port.events();
    served.pairs.truncate(1);
    bench.nic.stick(HEAD, u32::MAX, 0);
    bench.nic.stick(TAIL, u32::MAX, 1);
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(bench.port.events(), []);
    }
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 64)]), [1]);
}

#[test]
fn work_that_waits_for_the_link_is_no_hang() {
    let (mut bench, _served) = Bench::started(&PortConfig { queues: 2, ..PortConfig::default() });
    bench.machine.set_link(0, false).unwrap();
    bench.port.events();
    bench.nic.stick(HEAD, u32::MAX, 0);
    bench.nic.stick(TAIL, u32::MAX, 1);
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(bench.port.events(), []);
    }
}

#[test]
fn a_queue_that_could_not_restart_is_a_fault_until_the_next_recovery() {
    let (mut bench, mut served) = Bench::started(&PortConfig::default());
    bench.port.events();
    bench.port.recover().unwrap();
    // The worker's first look after the recovery finds a device that does not enable its queue.
    bench.nic.stick((0, 0xc028), 1 << 25, 0);
    assert!(served.poll().is_empty());
    bench.nic.heal();
    assert!(bench.port.events().contains(&Event::DeviceFault));
    assert!(!bench.port.events().contains(&Event::DeviceFault), "told once");
    bench.port.recover().unwrap();
    bench.wait_link(true);
    assert!(served.poll().is_empty());
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 64)]), [1]);
}

#[test]
fn a_recovery_that_fails_leaves_the_port_stopped_and_startable() {
    let (mut bench, mut served) = Bench::started(&PortConfig::default());
    bench.nic.stick((0, CTRL.offset), ctrl::RST, ctrl::RST);
    let error = bench.port.recover().unwrap_err();
    assert!(matches!(&error, driver::Error::Timeout { what, .. } if what.contains("CTRL.RST")), "{error}");
    assert!(!bench.is_master());
    assert!(served.poll().is_empty());
    bench.nic.heal();
    drop(served);
    let mut served = bench.start(&PortConfig::default());
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 64)]), [1]);
}
