//! igb's send queue against a device in software: what it puts on the wire, and what it survives.

mod igb_model;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dataplane::{Burst, Drop as Reason, Mbuf, Mempool, PoolCache, TxOffload, TxQueue};
use driver::igb::gate::Gate;
use driver::igb::{IgbTx, TxQueueConfig};
use igb_model::*;
use proptest::prelude::*;

struct Bench {
    nic: Nic,
    pool: Mempool,
    cache: PoolCache,
    gate: Arc<Gate>,
    tx: IgbTx,
    side: TxSide,
}

fn bench_with(depth: u16, max_frame: u32, capacity: u32, room: u16) -> Bench {
    let nic = Nic::default();
    let pool = nic.pool(capacity, room);
    let cache = pool.cache();
    let gate = open_gate();
    let mut tx = nic.tx(TxQueueConfig { index: 0, depth, max_frame }, &gate);
    tx.start().unwrap();
    let side = nic.tx_side(0);
    Bench { nic, pool, cache, gate, tx, side }
}

fn bench(depth: u16) -> Bench {
    bench_with(depth, 1522, 256, 2048)
}

fn frame(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| (seed * 31 + n * 7) as u8).collect()
}

const TCP4: TxOffload = TxOffload {
    flags: TxOffload::TCP_CHECKSUM | TxOffload::IP_CHECKSUM,
    l2_len: 14,
    l3_len: 20,
    l4_len: 20,
    segment: 0,
};

impl Bench {
    fn mbuf(&mut self, bytes: &[u8]) -> Mbuf {
        let mut mbuf = self.cache.take().unwrap();
        assert!(mbuf.append(bytes));
        mbuf
    }

    fn chained(&mut self, parts: &[&[u8]]) -> Mbuf {
        let mut mbuf = self.mbuf(parts[0]);
        for part in &parts[1..] {
            let part = self.mbuf(part);
            mbuf.chain(part);
        }
        mbuf
    }

    fn post(&mut self, frames: impl IntoIterator<Item = Mbuf>) -> (usize, Burst) {
        let mut burst = Burst::new();
        frames.into_iter().for_each(|mbuf| burst.push(mbuf).unwrap());
        let taken = self.tx.post(&mut self.cache, &mut burst);
        (taken, burst)
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.tx.counters().dropped(reason)
    }

    /// The frame is refused for this reason, and nothing reaches the device.
    fn refused(&mut self, mbuf: Mbuf, reason: Reason) {
        let before = (self.dropped(reason), self.tx.counters().dropped_total());
        let (taken, rest) = self.post([mbuf]);
        assert_eq!((taken, rest.len()), (1, 0));
        assert_eq!((self.dropped(reason), self.tx.counters().dropped_total()), (before.0 + 1, before.1 + 1));
        assert_eq!(self.side.side.owned(), 0);
    }

    /// The frame goes out; how.
    fn sent(&mut self, mbuf: Mbuf) -> Sent {
        let (taken, rest) = self.post([mbuf]);
        assert_eq!((taken, rest.len()), (1, 0), "{:?}", self.tx.counters().drops().collect::<Vec<_>>());
        let mut sent = self.side.send(64);
        assert_eq!(sent.len(), 1);
        assert_eq!(self.tx.reap(&mut self.cache), 1);
        sent.remove(0)
    }

    fn finish(self) {
        let Self { nic, pool, cache, gate, tx, .. } = self;
        let counters = tx.counters().clone();
        gate.stop();
        drop(tx);
        assert_eq!(counters.frames.get(), counters.completed.get() + counters.dropped(Reason::TxFlushed));
        drop(cache);
        assert_eq!(pool.available(), pool.capacity());
        drop(pool);
        assert_eq!(nic.space.mappings(), 0);
    }
}

#[test]
fn frames_go_out_as_they_were_posted_with_one_doorbell_and_one_report_a_post() {
    let mut b = bench_with(256, 1522, 512, 2048);
    let doorbells = b.nic.registers.doorbells.load(Ordering::Relaxed);
    let mut n = 0;
    for post in 0..100 {
        let frames: Vec<_> = (0..post % 33).map(|i| b.mbuf(&frame(n + i, 60 + (n + i) % 1463))).collect();
        let count = frames.len();
        let (taken, rest) = b.post(frames);
        assert_eq!((taken, rest.len()), (count, 0));
        for sent in b.side.send(64) {
            assert_eq!(sent.bytes, frame(n, 60 + n % 1463));
            assert_eq!((sent.segments, sent.context), (1, None));
            n += 1;
        }
    }
    let posts = (0..100).filter(|post| post % 33 > 0).count();
    assert_eq!(b.nic.registers.doorbells.load(Ordering::Relaxed) - doorbells, posts);
    assert_eq!((b.side.reports, b.side.context_descriptors), (posts, 0));
    b.tx.reap(&mut b.cache);
    assert_eq!(b.tx.in_flight(), 0);
    let counters = b.tx.counters();
    assert_eq!((counters.frames.get(), counters.completed.get()), (n as u64, n as u64));
    assert_eq!(counters.bytes.get(), (0..n).map(|n| 60 + n as u64 % 1463).sum::<u64>());
    b.finish();
}

#[test]
fn a_full_ring_leaves_the_rest_in_the_burst_and_goes_on_after_completions() {
    let mut b = bench(32);
    let frames: Vec<_> = (0..40).map(|n| b.mbuf(&frame(n, 60))).collect();
    let (taken, mut rest) = b.post(frames);
    assert_eq!((taken, rest.len()), (31, 9));
    assert_eq!(rest[0].to_vec(), frame(31, 60));
    assert_eq!(b.tx.post(&mut b.cache, &mut rest), 0);
    assert_eq!(b.tx.reap(&mut b.cache), 0);
    assert_eq!(b.side.send(64).len(), 31);
    // Four reports in 31 frames: the ring does not have to run dry before anything comes back.
    assert_eq!(b.side.reports, 4);
    assert_eq!(b.tx.post(&mut b.cache, &mut rest), 9);
    let sent = b.side.send(64);
    assert_eq!(sent.last().unwrap().bytes, frame(39, 60));
    assert_eq!((sent.len(), b.tx.in_flight()), (9, 9));
    b.finish();
}

#[test]
fn frames_in_several_segments_are_whole_or_not_there() {
    let mut b = bench_with(32, 9022, 256, 2048);
    let whole = frame(3, 9000);
    for n in 0..50 {
        let parts: Vec<&[u8]> = whole.chunks(2048 - n * 8).collect();
        let mbuf = b.chained(&parts);
        let sent = b.sent(mbuf);
        assert_eq!((sent.bytes, sent.segments), (whole.clone(), parts.len()));
    }
    // 5 segments each: the seventh does not fit into 31.
    let frames: Vec<_> = (0..7).map(|_| b.chained(&whole.chunks(2000).collect::<Vec<_>>())).collect();
    let (taken, rest) = b.post(frames);
    assert_eq!((taken, rest.len()), (6, 1));
    assert!(b.side.send(64).iter().all(|sent| sent.bytes == whole));
    drop(rest);
    b.finish();
}

#[test]
fn a_context_is_given_only_when_it_changes_and_two_are_remembered() {
    let mut b = bench(128);
    let udp = TxOffload { flags: TxOffload::UDP_CHECKSUM, ..TCP4 };
    let tag = TxOffload { flags: TxOffload::VLAN_INSERT, ..TxOffload::NONE };
    let go = |b: &mut Bench, offload, vlan| {
        let mut mbuf = b.mbuf(&frame(0, 100));
        mbuf.set_offload(offload, vlan);
        let before = b.side.context_descriptors;
        let sent = b.sent(mbuf);
        (b.side.context_descriptors - before, sent)
    };
    let (new, first) = go(&mut b, TCP4, 0);
    assert_eq!((new, first.word1 >> 40 & 3), (1, 3));
    // IPLEN 20, MACLEN 14; IPv4, TCP.
    assert_eq!(first.context.unwrap().0, 20 | 14 << 9);
    assert_eq!(first.context.unwrap().1 & 0x1e00, 0xc00);
    for _ in 0..10 {
        assert_eq!(go(&mut b, TCP4, 9).0, 0);
    }
    let (new, second) = go(&mut b, udp, 0);
    assert_eq!((new, second.word1 >> 40 & 3), (1, 2));
    assert_eq!(second.context.unwrap().1 & 0x1e00, 0x400);
    for _ in 0..10 {
        assert_eq!(go(&mut b, TCP4, 0), (0, first.clone()));
        assert_eq!(go(&mut b, udp, 0), (0, second.clone()));
        assert_eq!(go(&mut b, TxOffload::NONE, 0).0, 0);
    }
    let (new, tagged) = go(&mut b, tag, 0x123);
    assert_eq!((new, tagged.word1 >> 30 & 1, tagged.context.unwrap().0 >> 16), (1, 1, 0x123));
    // UDP was the last used: TCP made way.
    assert_eq!(go(&mut b, udp, 0).0, 0);
    assert_eq!(go(&mut b, tag, 0x124).0, 1);
    b.finish();
}

#[test]
fn after_a_restart_the_device_knows_no_context() {
    let mut b = bench(32);
    for _ in 0..3 {
        let mut mbuf = b.mbuf(&frame(0, 100));
        mbuf.set_offload(TCP4, 0);
        assert!(b.sent(mbuf).context.is_some());
        b.gate.restart();
        b.tx.reap(&mut b.cache);
        b.side.reset();
    }
    assert_eq!(b.side.context_descriptors, 3);
    b.finish();
}

#[test]
fn segmentation_is_described_with_its_payload() {
    let mut b = bench_with(64, 1522, 256, 2048);
    let whole = frame(1, 20_054);
    let mut mbuf = b.chained(&whole.chunks(2000).collect::<Vec<_>>());
    mbuf.set_offload(TxOffload { flags: TxOffload::TCP_SEGMENT, segment: 1448, ..TCP4 }, 0);
    let sent = b.sent(mbuf);
    assert_eq!((sent.bytes, sent.segments), (whole, 11));
    assert_eq!((sent.word1 >> 31 & 1, sent.word1 >> 40 & 3), (1, 3));
    assert_eq!(sent.context.unwrap().1 >> 40, 1448 << 8 | 20);
    b.finish();
}

#[test]
fn what_can_never_be_sent_is_taken_and_dropped_by_name() {
    let mut b = bench(32);
    let with = |b: &mut Bench, len, offload: TxOffload| {
        let mut mbuf = b.mbuf(&frame(0, len));
        mbuf.set_offload(offload, 5);
        mbuf
    };
    for len in [0, 1, 13, 1523, 2048] {
        let mbuf = with(&mut b, len, TxOffload::NONE);
        b.refused(mbuf, Reason::BadLength);
    }
    let tag = TxOffload { flags: TxOffload::VLAN_INSERT, ..TxOffload::NONE };
    let mbuf = with(&mut b, 1519, tag);
    b.refused(mbuf, Reason::BadLength);
    let mbuf = b.chained(&[&[1; 60], &[], &[1; 60]]);
    b.refused(mbuf, Reason::BadLength);
    let mbuf = b.chained(&[&[1; 8], &[1; 8]]);
    b.refused(mbuf, Reason::BadLength);
    let mbuf = b.chained(&[&[1; 1000], &[1; 523]]);
    b.refused(mbuf, Reason::BadLength);
    let mbuf = b.chained(&[&[9; 20][..]; 38]);
    b.refused(mbuf, Reason::TooManyTxSegments);
    // 32 descriptors never fit into a ring of 32.
    let mbuf = b.chained(&[&[9; 20][..]; 32]);
    b.refused(mbuf, Reason::TooManyTxSegments);
    let mut mbuf = b.chained(&[&[9; 20][..]; 31]);
    mbuf.set_offload(tag, 1);
    b.refused(mbuf, Reason::TooManyTxSegments);
    for offload in [
        TxOffload { flags: 0xff, ..TCP4 },
        TxOffload { l3_len: 60, ..TCP4 },
        TxOffload { flags: TxOffload::TCP_SEGMENT, segment: 0, ..TCP4 },
        TxOffload { flags: TxOffload::TCP_SEGMENT, segment: 1469, ..TCP4 },
    ] {
        let mbuf = with(&mut b, 70, offload);
        b.refused(mbuf, Reason::BadOffload);
    }
    // Headers only, and headers in two segments.
    let tso = TxOffload { flags: TxOffload::TCP_SEGMENT, segment: 500, ..TCP4 };
    let mbuf = with(&mut b, 54, tso);
    b.refused(mbuf, Reason::BadOffload);
    let mut mbuf = b.chained(&[&[1; 40], &[1; 600]]);
    mbuf.set_offload(tso, 0);
    b.refused(mbuf, Reason::BadOffload);
    // Whatever was refused, the neighbours go out, in order.
    let frames: Vec<_> =
        (0..20).map(|n| if n % 3 == 1 { b.mbuf(&[1; 5]) } else { b.mbuf(&frame(n, 60)) }).collect();
    assert_eq!(b.post(frames).0, 20);
    let sent: Vec<_> = b.side.send(64).into_iter().map(|s| s.bytes).collect();
    assert_eq!(sent, (0..20).filter(|n| n % 3 != 1).map(|n| frame(n, 60)).collect::<Vec<_>>());
    b.finish();
}

#[test]
fn frames_too_short_for_the_device_are_padded_with_zeros() {
    let mut b = bench(32);
    for len in 14..20 {
        let mut mbuf = b.mbuf(&[0xee; 100]);
        assert!(mbuf.set_len(len));
        let mut expected = vec![0xee; len.into()];
        expected.resize(expected.len().max(17), 0);
        assert_eq!(b.sent(mbuf).bytes, expected);
    }
    b.finish();
}

#[test]
fn a_closed_gate_flushes_and_takes_nothing() {
    let mut b = bench(64);
    let frames: Vec<_> = (0..10).map(|n| b.mbuf(&frame(n, 60))).collect();
    assert_eq!(b.post(frames).0, 10);
    b.gate.stop();
    let more = b.mbuf(&frame(0, 60));
    let (taken, mut rest) = b.post([more]);
    assert_eq!((taken, rest.len(), b.tx.in_flight(), b.dropped(Reason::TxFlushed)), (0, 1, 0, 10));
    b.gate.run();
    assert_eq!(b.tx.post(&mut b.cache, &mut rest), 1);
    b.side.reset();
    assert_eq!(b.side.send(64).len(), 1);
    assert_eq!(b.tx.reap(&mut b.cache), 1);
    b.finish();
}

#[test]
fn a_queue_that_does_not_come_up_or_go_down_is_contained() {
    let mut b = bench(32);
    b.gate.stop();
    b.tx.reap(&mut b.cache);
    b.nic.bar.write32(0xe028, 0);
    b.nic.registers.refuse_enable.store(true, Ordering::Relaxed);
    b.gate.run();
    b.tx.reap(&mut b.cache);
    assert!(b.gate.is_broken());
    b.nic.registers.refuse_enable.store(false, Ordering::Relaxed);
    b.gate.restart();
    b.side.reset();
    let mbuf = b.mbuf(&frame(0, 60));
    b.sent(mbuf);
    assert!(!b.gate.is_broken());

    let held = b.mbuf(&frame(0, 60));
    assert_eq!(b.post([held]).0, 1);
    b.nic.registers.refuse_disable.store(true, Ordering::Relaxed);
    let Bench { pool, cache, tx, side, nic, .. } = b;
    let before = driver::igb::queue::abandoned();
    drop(tx);
    drop(cache);
    assert_eq!((driver::igb::queue::abandoned(), pool.available()), (before + 1, 255));
    assert!(nic.memory.is_mapped(side.side.ring_iova()));
}

#[test]
fn a_removed_device_takes_nothing_down() {
    let mut b = bench(32);
    let held = b.mbuf(&frame(0, 60));
    assert_eq!(b.post([held]).0, 1);
    b.nic.registers.removed.store(true, Ordering::Relaxed);
    assert_eq!(b.tx.reap(&mut b.cache), 0);
    let Bench { pool, cache, tx, .. } = b;
    drop(tx);
    drop(cache);
    assert_eq!(pool.available(), 256);
}

/// What a device and an application do.
#[derive(Clone, Debug)]
enum Step {
    /// Posts frames: (length, segments, offload).
    Post(Vec<(u16, u8, u8)>),
    /// The device sends so many.
    Send(usize),
    Reap,
    /// Writes into any descriptor, owned or not.
    Scribble(u32, u64, u64),
    Restart,
}

fn steps(scribble: bool) -> impl Strategy<Value = Vec<Step>> {
    let frames = prop::collection::vec((0u16..1600, 0u8..8, 0u8..6), 0..40);
    let wild = if scribble {
        (0u32..32, any::<u64>(), any::<u64>()).prop_map(|(n, a, b)| Step::Scribble(n, a, b)).boxed()
    } else {
        Just(Step::Reap).boxed()
    };
    let step = prop_oneof![
        6 => frames.prop_map(Step::Post),
        4 => (0usize..40).prop_map(Step::Send),
        2 => Just(Step::Reap),
        2 => wild,
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..if cfg!(miri) { 20 } else { 120 })
}

fn some_frame(b: &mut Bench, n: usize, (len, segments, kind): (u16, u8, u8)) -> Option<Mbuf> {
    let bytes = frame(n, len.into());
    let part = (bytes.len() / usize::from(segments).max(1)).max(1);
    let mut parts = bytes.chunks(part);
    let mut mbuf = b.cache.take()?;
    assert!(mbuf.append(parts.next().unwrap_or(&[])));
    for part in parts {
        let mut next = b.cache.take()?;
        assert!(next.append(part));
        mbuf.chain(next);
    }
    let tso = TxOffload { flags: TxOffload::TCP_SEGMENT, segment: 300, ..TCP4 };
    let tag = TxOffload { flags: TxOffload::VLAN_INSERT, ..TxOffload::NONE };
    let offload = match kind {
        0 => TCP4,
        1 => tso,
        2 => tag,
        3 => TxOffload { flags: 0x88, ..TCP4 },
        _ => TxOffload::NONE,
    };
    mbuf.set_offload(offload, n as u16 % 3);
    Some(mbuf)
}

/// Runs the steps; returns frames taken, and the bytes of those the device sent, with those expected.
fn run(b: &mut Bench, steps: Vec<Step>, sends: bool) -> (u64, Vec<Vec<u8>>) {
    let (mut taken, mut n, mut sent) = (0, 0, Vec::new());
    for step in steps {
        match step {
            Step::Post(frames) => {
                let mut burst = Burst::new();
                for shape in frames {
                    n += 1;
                    if let Some(mbuf) = some_frame(b, n, shape) {
                        burst.push(mbuf).unwrap();
                    }
                }
                let before = burst.len();
                let got = b.tx.post(&mut b.cache, &mut burst);
                assert_eq!(got + burst.len(), before);
                taken += got as u64;
                clear(&mut burst, &mut b.cache);
            }
            Step::Send(limit) if sends => sent.extend(b.side.send(limit).into_iter().map(|s| s.bytes)),
            Step::Send(_) | Step::Reap => _ = b.tx.reap(&mut b.cache),
            Step::Scribble(index, word0, word1) => b.side.side.scribble(index, word0, word1),
            Step::Restart => {
                b.gate.restart();
                b.tx.reap(&mut b.cache);
                b.side.reset();
            }
        }
        let counters = b.tx.counters();
        let accounted =
            counters.completed.get() + counters.dropped(Reason::TxFlushed) + b.tx.in_flight() as u64;
        assert_eq!(counters.frames.get(), accounted);
    }
    (taken, sent)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 96 }))]

    #[test]
    fn every_frame_taken_is_sent_or_dropped_by_name(steps in steps(false)) {
        let mut b = bench_with(32, 1522, 200, 2048);
        let (taken, sent) = run(&mut b, steps, true);
        let counters = b.tx.counters().clone();
        let refused = counters.dropped_total() - counters.dropped(Reason::TxFlushed);
        prop_assert_eq!(taken, counters.frames.get() + refused);
        // What the device had sent when its ring was flushed is sent all the same.
        prop_assert!(sent.len() as u64 <= counters.frames.get());
        prop_assert!(sent.len() as u64 >= counters.completed.get());
        b.finish();
    }

    #[test]
    fn descriptors_written_at_any_time_lose_no_buffer(steps in steps(true)) {
        let mut b = bench_with(32, 1522, 200, 2048);
        run(&mut b, steps, false);
        b.finish();
    }
}
