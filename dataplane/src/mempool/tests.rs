use super::*;
use crate::{Burst, MAX_BURST};
use proptest::prelude::*;

fn pool(capacity: u32) -> (Arc<IovaSpace>, Mempool) {
    let space = IovaSpace::software();
    let config = PoolConfig { capacity, room: 256, sharing: Sharing::Private };
    let pool = Mempool::new(&space, config).unwrap();
    (space, pool)
}

#[test]
fn a_pool_dropped_while_buffers_are_out_is_freed_by_the_last_of_them() {
    let (space, pool) = pool(8);
    let mut cache = pool.cache();
    let (a, b) = (cache.take().unwrap(), cache.take().unwrap());
    drop((cache, pool));
    assert_eq!(space.mappings(), 1);
    drop(a);
    assert_eq!(space.mappings(), 1);
    std::thread::spawn(move || drop(b)).join().unwrap();
    assert_eq!(space.mappings(), 0);
}

#[test]
fn buffers_lie_apart_and_devices_see_them_where_we_do() {
    let (_space, pool) = pool(64);
    let mut cache = pool.cache();
    let mbufs: Vec<_> = std::iter::from_fn(|| cache.take()).collect();
    assert_eq!(mbufs.len(), 64);
    let mut places: Vec<_> = mbufs.iter().map(|m| (m.iova(), m.data().as_ptr() as u64)).collect();
    places.sort_unstable();
    for pair in places.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= 256 + u64::from(HEADROOM));
        assert_eq!(pair[1].0 - pair[0].0, pair[1].1 - pair[0].1);
    }
}

#[test]
fn no_buffer_crosses_a_page_that_holds_one_nor_meets_another() {
    for page in [PageSize::Small4K, PageSize::Huge2M] {
        for room in [64, 256, 2048, 3900, 3968, 9216, 16_384] {
            let places = Places::within(page, room);
            let bytes = usize::from(room) + usize::from(HEADROOM);
            let mut end = 0;
            for index in 0..3000 {
                let at = places.offset(index);
                assert!(at >= end && at.is_multiple_of(64), "{page} {room} {index}");
                end = at + bytes;
                assert!(
                    bytes > page.bytes() || at / page.bytes() == (end - 1) / page.bytes(),
                    "{page} {room} {index}"
                );
                assert!(end <= places.bytes(index as u32 + 1));
            }
        }
    }
}

#[test]
fn room_and_headroom_are_kept() {
    let (_space, pool) = pool(2);
    let mut mbuf = pool.take().unwrap();
    assert!(mbuf.append(&[7; 200]) && !mbuf.append(&[7; 57]) && mbuf.append(&[8; 56]));
    assert!(!mbuf.set_len(257) && mbuf.prepend(HEADROOM) && !mbuf.prepend(1));
    assert_eq!((mbuf.len(), mbuf.frame_len()), (384, 384));
    assert!(mbuf.trim_front(384) && !mbuf.trim_front(1));
    mbuf.received(u16::MAX);
    assert_eq!(mbuf.len(), 256, "a length beyond the buffer is cut to it");
}

#[test]
fn a_chain_counts_its_bytes_and_goes_home_whole() {
    let (_space, pool) = pool(1000);
    let mut cache = pool.cache();
    let mut frame = cache.take().unwrap();
    assert!(frame.append(&[1; 10]));
    for n in 2..=900u16 {
        let mut tail = cache.take().unwrap();
        assert!(tail.append(&[n as u8]));
        // Chained in pairs, so that chains of chains are covered too.
        if n % 2 == 0 {
            tail.chain(cache.take().unwrap());
        }
        frame.chain(tail);
        if frame.segments() > 600 {
            break;
        }
    }
    assert_eq!(frame.to_vec().len() as u32, frame.frame_len());
    assert_eq!(frame.chained().count(), usize::from(frame.segments()));
    cache.give(frame);
    drop(cache);
    assert_eq!(pool.available(), 1000);
}

#[test]
fn a_cache_takes_home_what_belongs_to_another_pool() {
    let (_spaces, mine) = pool(4);
    let (_other_space, other) = pool(4);
    let mut cache = mine.cache();
    let mut burst = Burst::new();
    for _ in 0..2 {
        burst.push(cache.take().unwrap()).unwrap();
        burst.push(other.take().unwrap()).unwrap();
    }
    cache.give_burst(&mut burst, 4);
    drop(cache);
    assert_eq!((mine.available(), other.available(), burst.len()), (4, 4, 0));
}

#[test]
fn an_empty_pool_says_so_and_recovers() {
    let (_space, pool) = pool(40);
    let mut cache = pool.cache();
    let mut burst = Burst::new();
    assert_eq!(cache.take_burst(&mut burst, MAX_BURST), 40);
    assert!(cache.take().is_none() && cache.take_burst(&mut burst, 1) == 0);
    cache.give_burst(&mut burst, 40);
    assert_eq!(cache.take_burst(&mut burst, MAX_BURST), 40);
}

#[test]
fn cores_that_trade_buffers_lose_none() {
    let (_space, pool) = pool(600);
    let (to, from) = std::sync::mpsc::sync_channel::<Mbuf>(64);
    let rounds = if cfg!(miri) { 200 } else { 50_000 };
    let taker = pool.clone();
    let sender = std::thread::spawn(move || {
        let mut cache = taker.cache();
        let mut sent = 0;
        while sent < rounds {
            let Some(mbuf) = cache.take() else { continue };
            to.send(mbuf).unwrap();
            sent += 1;
        }
    });
    let mut cache = pool.cache();
    for (n, mbuf) in from.iter().enumerate() {
        // Some the slow way, most through the cache of the core that got them.
        if n % 7 == 0 { drop(mbuf) } else { cache.give(mbuf) }
    }
    sender.join().unwrap();
    drop(cache);
    assert_eq!(pool.available(), 600);
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    GiveBurst(usize),
    GiveOne,
    DropOne,
    Chain,
    NewCache,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0usize..70).prop_map(Step::Take),
        (0usize..70).prop_map(Step::GiveBurst),
        Just(Step::GiveOne),
        Just(Step::DropOne),
        Just(Step::Chain),
        Just(Step::NewCache),
    ];
    prop::collection::vec(step, 1..if cfg!(miri) { 20 } else { 120 })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, ..ProptestConfig::default() })]

    /// allocated = held + free, after every step; and at the end all is home.
    #[test]
    fn every_buffer_is_free_in_stock_or_held(steps in steps()) {
        let (space, pool) = pool(300);
        let mut cache = pool.cache();
        let mut held: Vec<Mbuf> = Vec::new();
        for step in steps {
            let mut burst = Burst::new();
            match step {
                Step::Take(n) => {
                    cache.take_burst(&mut burst, n);
                    burst.iter_mut().for_each(Mbuf::reset);
                    held.extend(burst.drain_front(MAX_BURST));
                }
                Step::GiveBurst(n) => {
                    let n = n.min(held.len()).min(MAX_BURST);
                    held.drain(..n).for_each(|m| burst.push(m).unwrap());
                    cache.give_burst(&mut burst, n);
                }
                Step::GiveOne => held.pop().into_iter().for_each(|m| cache.give(m)),
                Step::DropOne => drop(held.pop()),
                Step::Chain => if held.len() > 1 {
                    let tail = held.pop().unwrap();
                    held.last_mut().unwrap().chain(tail);
                },
                Step::NewCache => cache = pool.cache(),
            }
            let out: usize = held.iter().map(|m| usize::from(m.segments())).sum();
            prop_assert_eq!(pool.available() + cache.stock() + out, 300);
        }
        drop((held, cache));
        prop_assert_eq!(pool.available(), 300);
        drop(pool);
        prop_assert_eq!(space.mappings(), 0);
    }
}
