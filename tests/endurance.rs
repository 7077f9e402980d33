//! An hour's worth of frames at line rate, counted rather than timed, leaves pools and mappings exactly as
//! they were.

use becket::dataplane::generator::{Flows, FrameSpec, TxGenerator};
use becket::dataplane::{Burst, MAX_BURST, Mempool, PoolCache, PoolConfig, RxQueue, TxQueue};
use becket::driver::{loopback, null};
use becket::pci::IovaSpace;

/// 64-byte frames that a gigabit port carries in an hour: 1,488,095 a second.
const HOUR: u64 = 1_488_095 * 3600;

/// What must not change.
#[derive(PartialEq, Eq, Debug)]
struct Holdings {
    available: usize,
    mappings: usize,
    mapped_bytes: usize,
    /// Lines of the process's memory map.
    process_maps: usize,
}

fn holdings(space: &IovaSpace, pool: &Mempool) -> Holdings {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    Holdings {
        available: pool.available(),
        mappings: space.mappings(),
        mapped_bytes: space.mapped_bytes(),
        process_maps: maps.lines().count(),
    }
}

/// From nowhere, through bursts of every size, to nowhere.
fn forward(cache: &mut PoolCache, frames: u64) -> u64 {
    let mut queues = null::open(1, 64).pop().unwrap();
    let mut burst = Burst::new();
    let (mut moved, mut size) = (0, 1);
    while moved < frames {
        let received = queues.rx.poll(cache, &mut burst, size);
        moved += queues.tx.post(cache, &mut burst) as u64;
        assert!(received > 0 && burst.is_empty());
        size = if size == MAX_BURST { 1 } else { size + 1 };
    }
    assert_eq!(queues.rx.counters().frames.get(), queues.tx.counters().frames.get());
    moved
}

/// Generated, over a ring too small for some bursts, and home again: what does not fit is dropped the slow
/// way every now and then.
fn loop_back(cache: &mut PoolCache, frames: u64) -> u64 {
    let mut queues = loopback::open(1, 100).pop().unwrap();
    let mut generator = TxGenerator::new(&[FrameSpec::default()], Flows::ONE, None).unwrap();
    let (mut out, mut back) = (Burst::new(), Burst::new());
    let (mut sent, mut received, mut dropped) = (0u64, 0u64, 0u64);
    while sent < frames {
        for _ in 0..2 {
            generator.fill(cache, &mut out, 60, 0);
            sent += queues.tx.post(cache, &mut out) as u64;
            dropped += out.len() as u64;
            drop(out.drain_front(MAX_BURST));
        }
        while queues.rx.poll(cache, &mut back, MAX_BURST) > 0 {
            received += back.len() as u64;
            cache.give_burst(&mut back, MAX_BURST);
        }
    }
    assert_eq!((sent, sent + dropped), (received, generator.frames()));
    assert!(dropped > 0);
    received
}

fn run(frames: u64) {
    let space = IovaSpace::software();
    let pool = Mempool::new(&space, PoolConfig::default()).unwrap();
    // Once, so that what is set up at first use is there before counting.
    forward(&mut pool.cache(), 10_000);
    loop_back(&mut pool.cache(), 10_000);
    let before = holdings(&space, &pool);
    let moved = forward(&mut pool.cache(), frames - frames / 20) + loop_back(&mut pool.cache(), frames / 20);
    assert!(moved >= frames);
    assert_eq!(holdings(&space, &pool), before);
    println!("{moved} frames");
}

/// The only test of this file: others beside it would change the memory map meanwhile. Half a minute in a
/// release build; without optimisation a second's worth has to do.
#[test]
fn an_hour_of_frames_leaves_everything_as_it_was() {
    run(if cfg!(debug_assertions) { HOUR / 60 / 60 } else { HOUR });
}
