//! igb's receive queue against a device in software: what it delivers, and what it survives.

mod igb_model;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dataplane::{Burst, Drop as Reason, Mempool, PoolCache, RxFlags, RxQueue};
use driver::igb::gate::Gate;
use driver::igb::queue::QueueRegs;
use driver::igb::{IgbRx, RxQueueConfig};
use igb_model::*;
use proptest::prelude::*;

struct Bench {
    nic: Nic,
    pool: Mempool,
    cache: PoolCache,
    gate: Arc<Gate>,
    rx: IgbRx,
    side: Side,
}

fn bench_with(config: RxQueueConfig, capacity: u32) -> Bench {
    let nic = Nic::default();
    let pool = nic.pool(capacity, config.buffer_len);
    let mut cache = pool.cache();
    let gate = open_gate();
    let mut rx = nic.rx(config, &gate);
    rx.start(&mut cache).unwrap();
    let side = nic.rx_side(config.index.into());
    Bench { nic, pool, cache, gate, rx, side }
}

fn bench(depth: u16, capacity: u32) -> Bench {
    bench_with(rx_config(depth, 2048, 1522), capacity)
}

fn frame(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| (seed * 31 + n * 7) as u8).collect()
}

impl Bench {
    fn poll(&mut self, max: usize) -> Burst {
        let mut burst = Burst::new();
        let got = self.rx.poll(&mut self.cache, &mut burst, max);
        assert_eq!(got, burst.len());
        burst
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.rx.counters().dropped(reason)
    }

    /// Nothing arrives, and this is why.
    fn expect_drop(&mut self, reason: Reason) {
        let before = self.dropped(reason);
        assert_eq!(self.poll(64).len(), 0);
        assert_eq!(self.dropped(reason), before + 1, "{reason:?}");
        assert_eq!(self.rx.counters().dropped_total(), self.dropped(reason));
    }

    /// A good frame comes through.
    fn expect_service(&mut self) {
        let sent = frame(1, 99);
        assert!(self.side.deliver_plain(&sent));
        let mut burst = self.poll(64);
        assert_eq!(burst.iter().map(|m| m.to_vec()).collect::<Vec<_>>(), [sent]);
        clear(&mut burst, &mut self.cache);
    }

    /// Everything goes home.
    fn finish(self) {
        let Self { nic, pool, cache, gate, rx, .. } = self;
        gate.stop();
        drop(rx);
        drop(cache);
        assert_eq!(pool.available(), pool.capacity());
        drop(pool);
        assert_eq!(nic.space.mappings(), 0);
    }
}

#[test]
fn frames_come_out_as_they_came_in_through_many_wraps() {
    let mut b = bench(40, 128);
    let (mut sent, mut received) = (0, 0);
    let before = b.nic.registers.doorbells.load(Ordering::Relaxed);
    while sent < 1000 {
        for _ in 0..=sent % 37 {
            sent += usize::from(b.side.deliver_plain(&frame(sent, 60 + sent % 1463)));
        }
        let mut burst = b.poll(64);
        for mbuf in burst.iter() {
            assert_eq!(mbuf.to_vec(), frame(received, 60 + received % 1463));
            assert_eq!((mbuf.port(), mbuf.rx_flags(), mbuf.segments()), (7, RxFlags(0), 1));
            received += 1;
        }
        clear(&mut burst, &mut b.cache);
    }
    assert_eq!((received, b.rx.counters().frames.get()), (sent, sent as u64));
    let bytes: usize = (0..sent).map(|n| 60 + n % 1463).sum();
    assert_eq!(b.rx.counters().bytes.get(), bytes as u64);
    let doorbells = b.nic.registers.doorbells.load(Ordering::Relaxed) - before;
    assert!((sent / 40..=sent / 10).contains(&doorbells), "{doorbells} doorbells for {sent} frames");
    b.finish();
}

#[test]
fn a_poll_takes_no_more_than_asked_for_and_keeps_what_the_burst_held() {
    let mut b = bench(64, 256);
    (0..20).for_each(|n| assert!(b.side.deliver_plain(&frame(n, 100))));
    let mut burst = b.poll(3);
    assert_eq!(burst.len(), 3);
    assert_eq!(b.rx.poll(&mut b.cache, &mut burst, 5), 5);
    assert_eq!(burst.len(), 8);
    assert_eq!(burst[7].to_vec(), frame(7, 100));
    assert_eq!(b.rx.poll(&mut b.cache, &mut burst, 0), 0);
    clear(&mut burst, &mut b.cache);
    assert_eq!(b.poll(64).len(), 12);
    b.finish();
}

#[test]
fn what_the_device_found_out_is_in_the_description() {
    let mut b = bench(32, 64);
    let flags_of = |b: &mut Bench, status, rss, vlan| {
        assert!(b.side.deliver(&frame(0, 64), status, rss, vlan));
        let burst = b.poll(1);
        (burst[0].rx_flags(), burst[0].rss_hash(), burst[0].vlan())
    };
    let (ip, l4) = (RxFlags::IP_CHECKSUM_GOOD, RxFlags::L4_CHECKSUM_GOOD);
    assert_eq!(flags_of(&mut b, IPCS | L4I, None, 0x55).0, ip.with(l4));
    assert_eq!(flags_of(&mut b, IPCS | IPE, None, 0).0, RxFlags::IP_CHECKSUM_BAD);
    assert_eq!(flags_of(&mut b, IPCS | L4I | L4E, None, 0).0, ip.with(RxFlags::L4_CHECKSUM_BAD));
    assert_eq!(flags_of(&mut b, 0, Some(0xdead_beef), 0), (RxFlags::RSS_HASH, 0xdead_beef, 0));
    assert_eq!(flags_of(&mut b, VP | LB, None, 0x1234), (RxFlags::VLAN_STRIPPED, 0, 0x1234));
    assert_eq!(flags_of(&mut b, 0, None, 0x1234).2, 0);
    b.finish();

    let mut plain = bench_with(RxQueueConfig { strip_vlan: false, ..rx_config(32, 2048, 1522) }, 64);
    assert_eq!(flags_of(&mut plain, VP, None, 0x1234), (RxFlags(0), 0, 0));
    let mut swapped =
        bench_with(RxQueueConfig { loopback_vlan_swapped: true, ..rx_config(32, 2048, 1522) }, 64);
    assert_eq!(flags_of(&mut swapped, VP | LB, None, 0x3412).2, 0x1234);
    assert_eq!(flags_of(&mut swapped, VP, None, 0x1234).2, 0x1234);
}

#[test]
fn jumbo_frames_are_chained_also_across_polls() {
    let mut b = bench_with(rx_config(32, 2048, 9022), 256);
    for round in 0..50 {
        for len in [60, 2048, 2049, 4096, 9000, 9022] {
            let sent = frame(round, len);
            assert!(b.side.deliver(&sent, IPCS, Some(5), 0));
            let mut burst = b.poll(64);
            assert_eq!(burst.len(), 1);
            assert_eq!(burst[0].to_vec(), sent);
            assert_eq!(
                (burst[0].frame_len() as usize, burst[0].segments() as usize),
                (len, len.div_ceil(2048))
            );
            assert!(burst[0].rx_flags().contains(RxFlags::IP_CHECKSUM_GOOD.with(RxFlags::RSS_HASH)));
            clear(&mut burst, &mut b.cache);
        }
    }
    // The first half is written long before the second.
    let part = |b: &mut Bench, len: u64, end: bool| {
        assert!(b.side.complete(0, 1 | u64::from(end) << 1 | len << 32));
        b.poll(64).len()
    };
    assert_eq!((part(&mut b, 2048, false), part(&mut b, 2048, false), part(&mut b, 3, true)), (0, 0, 1));
    assert_eq!(b.rx.counters().dropped_total(), 0);
    b.finish();
}

#[test]
fn lengths_that_cannot_be_are_dropped_and_the_buffer_serves_on() {
    let mut b = bench(32, 64);
    for len in [0u64, 1523, 2049, 0xffff] {
        let mut fresh = bench(32, 64);
        std::mem::swap(&mut b, &mut fresh);
        assert!(b.side.complete(0, 3 | len << 32));
        b.expect_drop(Reason::BadCompletion);
        (0..200).for_each(|_| b.expect_service());
    }
    b.finish();
}

#[test]
fn a_part_longer_than_its_buffer_takes_the_whole_frame_down() {
    for len in [0u64, 2049, 8000] {
        let mut b = bench_with(rx_config(32, 2048, 9022), 128);
        assert!(b.side.complete(0, 1 | 2048 << 32));
        assert!(b.side.complete(0, 1 | len << 32));
        assert!(b.side.complete(0, 3 | 10 << 32));
        b.expect_drop(Reason::BadCompletion);
        b.expect_service();
        // The same as a frame of its own.
        assert!(b.side.complete(0, 3 | len << 32));
        b.expect_drop(Reason::BadCompletion);
        b.finish();
    }
}

#[test]
fn a_receive_error_is_the_devices() {
    let mut b = bench(32, 64);
    assert!(b.side.deliver(&frame(0, 100), RXE, None, 0));
    b.expect_drop(Reason::DeviceError);
    b.expect_service();
    b.finish();
}

#[test]
fn descriptors_of_all_ones_are_errors_and_end() {
    let mut b = bench(32, 64);
    while b.side.complete(u64::MAX, u64::MAX) {}
    assert_eq!(b.poll(64).len(), 0);
    assert_eq!(b.dropped(Reason::DeviceError), 31);
    b.expect_service();
    b.finish();
}

#[test]
fn a_frame_that_never_ends_holds_a_bounded_number_of_buffers_and_is_counted_once() {
    let mut b = bench_with(rx_config(32, 2048, 9022), 128);
    for _ in 0..500 {
        assert!(b.side.complete(0, 1 | 2048 << 32));
        assert_eq!(b.poll(64).len(), 0);
        // The ring's 32 and at most 5 of the chain are out of the pool.
        assert!(b.pool.available() + b.cache.stock() >= 128 - 32 - 5);
    }
    assert_eq!(b.rx.counters().dropped_total(), b.dropped(Reason::TooManySegments));
    assert_eq!(b.dropped(Reason::TooManySegments), 1);
    // Its end is not a frame of its own.
    assert!(b.side.complete(0, 3 | 100 << 32));
    assert_eq!(b.poll(64).len(), 0);
    assert_eq!(b.rx.counters().dropped_total(), 1);
    b.expect_service();
    b.finish();
}

#[test]
fn a_frame_of_more_buffers_than_the_largest_needs_is_dropped() {
    let mut b = bench(32, 64);
    assert!(b.side.complete(0, 1 | 100 << 32));
    assert!(b.side.complete(0, 3 | 100 << 32));
    b.expect_drop(Reason::TooManySegments);
    b.expect_service();
    let mut jumbo = bench_with(rx_config(32, 2048, 4000), 64);
    assert!(jumbo.side.complete(0, 1 | 2048 << 32));
    assert!(jumbo.side.complete(0, 3 | 2048 << 32));
    jumbo.expect_drop(Reason::BadCompletion);
    jumbo.expect_service();
    jumbo.finish();
}

#[test]
fn the_same_completion_again_and_stale_contents_touch_nothing_that_is_not_the_rings() {
    let mut b = bench(32, 64);
    assert!(b.side.deliver_plain(&frame(0, 100)));
    let first = b.poll(64);
    let kept = first[0].to_vec();
    // The device completes descriptor 0 again, which it does not own, and one far ahead.
    b.side.scribble(0, 0, 3 | 100 << 32);
    b.side.scribble(20, 0, 3 | 100 << 32);
    for n in 1..31 {
        if n != 20 {
            assert!(b.side.deliver_plain(&frame(n, 80)));
        } else {
            assert!(b.side.complete(0, 3 | 64 << 32));
        }
    }
    let mut frames = 0;
    for _ in 0..10 {
        let mut burst = b.poll(64);
        frames += burst.len();
        assert!(burst.iter().all(|m| m.len() <= 2048));
        clear(&mut burst, &mut b.cache);
    }
    // 30 real ones, and the forged one at slot 0 once the queue comes by.
    assert!(frames >= 30, "{frames}");
    assert_eq!(first[0].to_vec(), kept);
    drop(first);
    b.finish();
}

#[test]
fn an_empty_pool_drops_frames_by_name_and_recovers_without_a_leak() {
    let mut b = bench(32, 48);
    let mut held = Vec::new();
    for n in 0..100 {
        assert!(b.side.deliver_plain(&frame(n, 64)));
        held.extend(b.poll(64).drain_front(64));
    }
    assert_eq!((held.len(), b.dropped(Reason::NoBuffer)), (16, 84));
    assert_eq!(b.rx.counters().pool_empty.get(), 84);
    held.clear();
    (0..100).for_each(|_| b.expect_service());
    assert_eq!(b.dropped(Reason::NoBuffer), 84);
    b.finish();
}

#[test]
fn a_pool_smaller_than_the_ring_serves_what_it_can_and_grows_when_it_can() {
    let mut b = bench(64, 100);
    let other: Vec<_> = std::iter::from_fn(|| b.cache.take()).collect();
    assert_eq!(other.len(), 36);
    b.gate.stop();
    assert_eq!(b.poll(64).len(), 0);
    // 64 are home again; most of them are taken before the queue runs again.
    let taken: Vec<_> = (0..54).filter_map(|_| b.cache.take()).collect();
    b.gate.run();
    b.side.reset();
    assert_eq!(b.poll(64).len(), 0);
    assert_eq!(b.side.owned(), 10);
    let mut frames = 0;
    for n in 0..40 {
        assert!(b.side.deliver_plain(&frame(n, 100)), "{n}");
        let mut burst = b.poll(64);
        frames += burst.len();
        clear(&mut burst, &mut b.cache);
    }
    assert_eq!(frames as u64 + b.dropped(Reason::NoBuffer), 40);
    drop(taken);
    drop(other);
    (0..100).for_each(|_| b.expect_service());
    // All but the one that keeps head and tail apart and what the next tail write will give.
    assert!((63 - 16..=63).contains(&b.side.owned()));
    b.finish();
}

#[test]
fn a_pool_of_smaller_buffers_is_never_posted() {
    let mut b = bench(32, 64);
    let small = b.nic.pool(64, 256);
    let mut small_cache = small.cache();
    let mut burst = Burst::new();
    assert!(b.side.deliver_plain(&frame(0, 100)));
    assert_eq!(b.rx.poll(&mut small_cache, &mut burst, 64), 0);
    assert_eq!(b.dropped(Reason::NoBuffer), 1);
    let mut rx = b.nic.rx(RxQueueConfig { index: 1, ..rx_config(32, 2048, 1522) }, &b.gate);
    assert!(matches!(rx.start(&mut small_cache), Err(driver::Error::State { .. })));
    b.expect_service();
}

#[test]
fn a_closed_gate_flushes_and_an_open_one_starts_afresh() {
    let mut b = bench_with(rx_config(32, 2048, 9022), 128);
    (0..5).for_each(|n| assert!(b.side.deliver_plain(&frame(n, 100))));
    assert_eq!(b.poll(2).len(), 2);
    // A chain that is open, and its end that nobody has looked at.
    assert!(b.side.complete(0, 1 | 2048 << 32));
    assert_eq!(b.poll(64).len(), 3);
    b.gate.stop();
    assert_eq!(b.poll(64).len(), 0);
    assert_eq!(b.dropped(Reason::RxFlushed), 1);
    assert_eq!(b.pool.available() + b.cache.stock(), 128);
    assert_eq!(b.poll(64).len(), 0);
    for round in 0..10 {
        b.gate.restart();
        assert_eq!(b.poll(64).len(), 0);
        b.side.reset();
        b.expect_service();
        (0..round).for_each(|n| assert!(b.side.deliver_plain(&frame(n, 100))));
    }
    b.gate.stop();
    assert_eq!(b.poll(64).len(), 0);
    assert_eq!(b.dropped(Reason::RxFlushed), 1 + (0..10).sum::<u64>());
    b.finish();
}

#[test]
fn a_queue_that_does_not_come_up_says_so_and_comes_up_later() {
    let mut b = bench(32, 64);
    b.gate.stop();
    b.poll(64);
    b.nic.bar.write32(0xc028, 0);
    b.nic.registers.refuse_enable.store(true, Ordering::Relaxed);
    b.gate.run();
    assert_eq!(b.poll(64).len(), 0);
    assert!(b.gate.is_broken());
    b.nic.registers.refuse_enable.store(false, Ordering::Relaxed);
    b.gate.restart();
    assert_eq!(b.poll(64).len(), 0);
    assert!(!b.gate.is_broken());
    b.side.reset();
    b.expect_service();
    b.finish();
}

#[test]
fn starting_fails_with_a_reason() {
    let nic = Nic::default();
    let pool = nic.pool(64, 2048);
    let mut cache = pool.cache();
    let gate = Arc::new(Gate::new());
    let mut rx = nic.rx(rx_config(32, 2048, 1522), &gate);
    assert!(matches!(rx.start(&mut cache), Err(driver::Error::State { .. })));
    gate.run();
    nic.registers.refuse_enable.store(true, Ordering::Relaxed);
    assert!(matches!(rx.start(&mut cache), Err(driver::Error::Timeout { .. })));
    nic.registers.removed.store(true, Ordering::Relaxed);
    assert!(matches!(rx.start(&mut cache), Err(driver::Error::Removed { .. })));
    drop(rx);
    let new = |config| {
        let regs = QueueRegs::pf_rx(nic.bar.clone(), 0);
        IgbRx::new(regs, &nic.space, config, gate.clone(), 0, BDF).err()
    };
    for depth in [0, 24, 36, 4104] {
        assert!(matches!(new(rx_config(depth, 2048, 1522)), Some(driver::Error::Setting { .. })), "{depth}");
    }
    assert!(matches!(new(rx_config(32, 1023, 1522)), Some(driver::Error::Setting { .. })));
    drop(cache);
    assert_eq!(pool.available(), 64);
}

#[test]
fn a_dropped_queue_stops_its_hardware_or_gives_its_memory_up() {
    let b = bench(32, 64);
    let Bench { nic, cache, gate, rx, side, .. } = b;
    assert!(side.enabled());
    drop(rx);
    assert!(!side.enabled());
    drop((cache, gate));

    let Bench { nic: stuck, pool, cache, gate, rx, side, .. } = bench(32, 64);
    stuck.registers.refuse_disable.store(true, Ordering::Relaxed);
    let before = driver::igb::queue::abandoned();
    drop(rx);
    drop(cache);
    assert_eq!(driver::igb::queue::abandoned(), before + 1);
    assert!(gate.is_broken());
    assert!(stuck.memory.is_mapped(side.ring_iova()));
    assert_eq!(pool.available(), 32);
    drop(nic);
}

#[test]
fn starting_twice_stops_in_between() {
    let mut b = bench(32, 64);
    assert!(b.side.deliver_plain(&frame(0, 100)));
    b.rx.start(&mut b.cache).unwrap();
    assert_eq!(b.dropped(Reason::RxFlushed), 1);
    b.side.reset();
    b.expect_service();
    b.nic.registers.refuse_disable.store(true, Ordering::Relaxed);
    assert!(matches!(b.rx.start(&mut b.cache), Err(driver::Error::Timeout { .. })));
    // Nothing was taken from the device, which goes on.
    b.expect_service();
    b.finish();
}

#[test]
fn a_queue_whose_gate_is_closed_leaves_the_registers_alone() {
    let Bench { nic, gate, rx, .. } = bench(32, 64);
    gate.stop();
    let writes = nic.registers.writes.load(Ordering::Relaxed);
    drop(rx);
    assert_eq!(nic.registers.writes.load(Ordering::Relaxed), writes);
}

/// What a hostile device and a busy application do.
#[derive(Clone, Debug)]
enum Step {
    /// Completes the next descriptor it owns with these words.
    Complete(u64, u64),
    /// Completes it plausibly: length, end of packet.
    Plausible(u16, bool),
    /// Writes into any descriptor, owned or not.
    Scribble(u32, u64, u64),
    Poll(usize),
    /// Keeps what it received from now on, or gives all of it back.
    Hold(bool),
    Restart,
}

fn steps(scribble: bool) -> impl Strategy<Value = Vec<Step>> {
    let words = prop_oneof![any::<u64>(), any::<u64>().prop_map(|w| w | 1), Just(u64::MAX), Just(0)];
    let wild = if scribble {
        (0u32..40, any::<u64>(), words.clone()).prop_map(|(n, a, b)| Step::Scribble(n, a, b)).boxed()
    } else {
        Just(Step::Hold(true)).boxed()
    };
    let step = prop_oneof![
        2 => (any::<u64>(), words).prop_map(|(a, b)| Step::Complete(a, b | 1)),
        6 => (0u16..2200, any::<bool>()).prop_map(|(len, end)| Step::Plausible(len, end)),
        2 => wild,
        3 => (0usize..70).prop_map(Step::Poll),
        1 => any::<bool>().prop_map(Step::Hold),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..if cfg!(miri) { 40 } else { 300 })
}

/// Runs the steps; returns frames that ended, and whether one was left open.
fn run(b: &mut Bench, steps: Vec<Step>) -> (u64, u64) {
    let (mut ended, mut cut, mut open, mut hold) = (0, 0, false, false);
    let mut held = Vec::new();
    let mut complete = |b: &mut Bench, word0, word1: u64, open: &mut bool| {
        if b.side.complete(word0, word1) {
            *open = word1 & 2 == 0;
            ended += word1 >> 1 & 1;
        }
    };
    for step in steps {
        match step {
            Step::Complete(word0, word1) => complete(b, word0, word1, &mut open),
            Step::Plausible(len, end) => {
                complete(b, 0, 1 | u64::from(end) << 1 | u64::from(len) << 32, &mut open);
            }
            Step::Scribble(index, word0, word1) => b.side.scribble(index, word0, word1),
            Step::Poll(max) => {
                let burst = b.poll(max);
                assert!(burst.len() <= max);
                for mbuf in burst.iter() {
                    assert!(mbuf.frame_len() <= b_max_frame() && mbuf.chained().all(|m| m.len() <= 2048));
                    assert_eq!(mbuf.chained().map(|m| u32::from(m.len())).sum::<u32>(), mbuf.frame_len());
                }
                let mut burst = burst;
                held.extend(burst.drain_front(64));
                if !hold {
                    held.clear();
                }
            }
            Step::Hold(on) => hold = on,
            Step::Restart => {
                b.gate.restart();
                b.poll(0);
                b.side.reset();
                cut += u64::from(std::mem::take(&mut open));
            }
        }
    }
    b.gate.stop();
    b.poll(64);
    (ended, cut + u64::from(open))
}

fn b_max_frame() -> u32 {
    5000
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 192 }))]

    #[test]
    fn every_frame_is_delivered_or_dropped_by_name(steps in steps(false)) {
        let mut b = bench_with(rx_config(40, 2048, b_max_frame()), 90);
        let (ended, cut) = run(&mut b, steps);
        let counters = b.rx.counters().clone();
        prop_assert_eq!(ended + cut, counters.frames.get() + counters.dropped_total());
        b.finish();
    }

    #[test]
    fn descriptors_written_at_any_time_lose_no_buffer(steps in steps(true)) {
        let mut b = bench_with(rx_config(40, 2048, b_max_frame()), 90);
        run(&mut b, steps);
        b.finish();
    }
}
