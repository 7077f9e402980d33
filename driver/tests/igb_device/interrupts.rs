//! MSI-X: link changes, faults, received frames.

use std::time::{Duration, Instant};

use driver::igb::hw::regs::*;
use driver::{Error, Event, Port, PortConfig};

use crate::support::*;

const SHORT: Duration = Duration::from_millis(50);

fn with_interrupts(queues: u16) -> PortConfig {
    PortConfig { queues, rx_depth: 64, tx_depth: 64, rx_interrupts: true, ..PortConfig::default() }
}

/// A port that has told everything there is to tell.
fn quiet(config: &PortConfig) -> (Bench, Served) {
    let (mut bench, served) = Bench::started(config);
    bench.port.events();
    while bench.port.wait_event(SHORT) {
        bench.port.events();
    }
    (bench, served)
}

#[test]
fn a_link_change_fires_the_vector() {
    let (mut bench, _served) = quiet(&PortConfig::default());
    // The link looks as it did: only the interrupt can end the wait.
    bench.nic.stick((0, STATUS.offset), status::LU, status::LU);
    bench.machine.set_link(0, false).unwrap();
    assert!(bench.port.wait_event(PATIENCE));
    bench.nic.heal();
    assert!(matches!(bench.port.events()[..], [Event::Link(link)] if !link.up));
    // It was armed again: the next change fires too.
    bench.nic.stick((0, STATUS.offset), status::LU, 0);
    bench.machine.set_link(0, true).unwrap();
    assert!(bench.port.wait_event(PATIENCE));
    bench.nic.heal();
    bench.wait_link(true);
    assert!(matches!(bench.port.events()[..], [Event::Link(link)] if link.up));
}

#[test]
fn a_link_change_whose_interrupt_is_lost_is_seen_all_the_same() {
    let (mut bench, _served) = quiet(&PortConfig::default());
    bench.registers().write32(IMC.offset, u32::MAX);
    bench.machine.set_link(0, false).unwrap();
    let start = Instant::now();
    assert!(bench.port.wait_event(PATIENCE));
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(matches!(bench.port.events()[..], [Event::Link(link)] if !link.up));
}

#[test]
fn a_wait_for_nothing_ends_in_time() {
    let (mut bench, _served) = quiet(&PortConfig::default());
    let start = Instant::now();
    assert!(!bench.port.wait_event(Duration::from_millis(150)));
    assert!((150..1000).contains(&start.elapsed().as_millis()));
    // A spurious interrupt has nothing to tell.
    assert!(bench.nic.spurious(0));
    assert!(bench.port.wait_event(SHORT));
    assert_eq!(bench.port.events(), []);
}

#[test]
fn a_port_that_is_not_started_tells_link_changes_by_looking() {
    let mut bench = Bench::open();
    assert!(bench.port.wait_event(PATIENCE));
    assert!(matches!(bench.port.events()[..], [Event::Link(link)] if link.up));
    assert!(!bench.port.wait_event(SHORT));
}

#[test]
fn faults_that_the_device_reports_are_told_once_each() {
    let (mut bench, _served) = quiet(&PortConfig::default());
    for fault in [1 << 22, 1 << 28, 1 << 30] {
        bench.registers().write32(ICS.offset, fault);
        until("the fault", || bench.port.events() == [Event::DeviceFault]);
        assert_eq!(bench.port.events(), []);
    }
}

#[test]
fn a_received_frame_wakes_the_core_of_its_queue_and_no_other() {
    let (bench, mut served) = quiet(&with_interrupts(2));
    let wait = |served: &Served, queue: usize, timeout| {
        served.pairs[queue].interrupt.as_ref().unwrap().vector.wait(timeout).unwrap()
    };
    let arm = |served: &Served, queue: usize| (served.pairs[queue].interrupt.as_ref().unwrap().arm)();
    arm(&served, 0);
    arm(&served, 1);
    assert_eq!(wait(&served, 0, SHORT), 0, "nothing has come");
    bench.wire.send(&frame(OWN, 1, 64)).unwrap();
    assert!(wait(&served, 0, PATIENCE) > 0);
    assert_eq!(marks(&served.receive(1)), [1]);
    assert_eq!(wait(&served, 1, SHORT), 0, "not IP: the first queue's");
}

#[test]
fn a_frame_that_came_before_the_arming_fires_at_it() {
    let (bench, mut served) = quiet(&with_interrupts(1));
    bench.wire.send(&frame(OWN, 1, 64)).unwrap();
    until("the frame", || bench.registers().read32(GPRC.offset) > 0);
    let interrupt = served.pairs[0].interrupt.as_ref().unwrap();
    assert_eq!(interrupt.vector.wait(SHORT).unwrap(), 0, "masked");
    (interrupt.arm)();
    assert!(interrupt.vector.wait(PATIENCE).unwrap() > 0);
    assert_eq!(marks(&served.receive(1)), [1]);
}

#[test]
fn a_stop_wakes_cores_that_wait_for_frames() {
    let (mut bench, served) = quiet(&with_interrupts(2));
    bench.port.stop().unwrap();
    for pair in &served.pairs {
        assert!(pair.interrupt.as_ref().unwrap().vector.wait(PATIENCE).unwrap() > 0, "pair {}", pair.index);
    }
}

#[test]
fn queues_have_vectors_of_their_own_and_too_many_are_refused() {
    let (mut bench, served) = quiet(&with_interrupts(9));
    let vectors: Vec<_> =
        served.pairs.iter().map(|p| p.interrupt.as_ref().unwrap().vector.vector()).collect();
    assert_eq!(vectors, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let bar = bench.registers();
    assert_eq!(bar.read32(IVAR.at(0)), 0x0089_0081, "queue 8 is in the upper half of the first register");
    assert_eq!(bar.read32(IVAR.at(7)), 0x0000_0088);
    bench.port.stop().unwrap();
    drop(served);
    let error = bench.port.start(&with_interrupts(10), &bench.pool).err().unwrap();
    assert!(
        matches!(&error, Error::Setting { allowed, .. } if allowed.contains("at most 9 queues")),
        "{error}"
    );
    assert!(!bench.is_master());
    let served = bench.start(&PortConfig { queues: 10, rx_interrupts: false, ..with_interrupts(10) });
    assert!(served.pairs.iter().all(|pair| pair.interrupt.is_none()));
}
