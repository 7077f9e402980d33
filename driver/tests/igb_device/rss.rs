//! Flows spread exactly as key and table say.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use driver::igb::hw::regs::*;
use driver::{Error, Port, PortConfig, RssConfig};

use crate::support::*;

/// The Toeplitz hash, bit by bit, as Microsoft's RSS specification describes it.
fn toeplitz(key: &[u8; 40], input: &[u8]) -> u32 {
    let window = |bit: usize| {
        let at = |n: usize| u32::from(key[(bit + n) / 8] >> (7 - (bit + n) % 8) & 1);
        (0..32).fold(0, |word, n| word << 1 | at(n))
    };
    let set = |bit: &usize| input[bit / 8] >> (7 - bit % 8) & 1 == 1;
    (0..input.len() * 8).filter(set).fold(0, |hash, bit| hash ^ window(bit))
}

#[test]
fn the_hash_of_this_test_is_that_of_the_published_examples() {
    let key = RssConfig::default().key;
    let v4 = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
    assert_eq!(toeplitz(&key, &v4[..8]), 0x323e_8fc2);
    assert_eq!(toeplitz(&key, &v4), 0x51cc_c178);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Tcp,
    Udp,
    Other,
}

/// One flow: addresses and ports as they are on the wire.
#[derive(Clone, Debug)]
struct Flow {
    addresses: Vec<u8>,
    ports: [u8; 4],
    kind: Kind,
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u8
    }
}

fn flows(count: usize, seed: u64) -> Vec<Flow> {
    let mut numbers = Numbers(seed);
    let kinds = [Kind::Tcp, Kind::Udp, Kind::Other];
    let mut flow = |n: usize| Flow {
        kind: kinds[n % 3],
        addresses: (0..if n.is_multiple_of(2) { 8 } else { 32 }).map(|_| numbers.byte()).collect(),
        ports: std::array::from_fn(|_| numbers.byte()),
    };
    (0..count).map(&mut flow).collect()
}

impl Flow {
    fn is_v4(&self) -> bool {
        self.addresses.len() == 8
    }

    fn hash(&self, key: &[u8; 40]) -> u32 {
        match self.kind {
            Kind::Other => toeplitz(key, &self.addresses),
            _ => toeplitz(key, &[&self.addresses[..], &self.ports].concat()),
        }
    }

    fn frame(&self) -> Vec<u8> {
        let (number, mut payload) = match self.kind {
            Kind::Tcp => {
                let mut tcp = vec![0; 20];
                tcp[12] = 5 << 4;
                (6, tcp)
            }
            Kind::Udp => (17, vec![0, 0, 0, 0, 0, 8, 0, 0]),
            // Experimental (RFC 3692).
            Kind::Other => (253, vec![0; 8]),
        };
        if self.kind != Kind::Other {
            payload[..4].copy_from_slice(&self.ports);
        }
        let mut frame = Vec::from(OWN.0);
        frame.extend(STRANGER.0);
        if self.is_v4() {
            frame.extend([8, 0, 0x45, 0, 0, 20 + payload.len() as u8, 0, 0, 0, 0, 64, number, 0, 0]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, payload.len() as u8, number, 64]);
        }
        frame.extend(&self.addresses);
        frame.extend(payload);
        frame.resize(frame.len().max(64), 0);
        frame
    }
}

/// Sends each flow's frame, and says where it went and with what hash.
fn spread(bench: &Bench, served: &mut Served, flows: &[Flow]) -> Vec<(u16, Option<u32>)> {
    let one = |flow: &Flow| {
        bench.wire.send(&flow.frame()).unwrap();
        let received = served.receive(1).remove(0);
        assert_eq!(received.bytes, flow.frame());
        (received.queue, received.hash)
    };
    flows.iter().map(one).collect()
}

fn expected(flows: &[Flow], rss: &RssConfig) -> Vec<(u16, Option<u32>)> {
    let one = |flow: &Flow| {
        let hash = flow.hash(&rss.key);
        (u16::from(rss.table[hash as usize & 127]), Some(hash))
    };
    flows.iter().map(one).collect()
}

fn shuffled(queues: u8, seed: u64) -> RssConfig {
    let mut numbers = Numbers(seed);
    RssConfig {
        key: std::array::from_fn(|_| numbers.byte()),
        table: (0..128).map(|_| numbers.byte() % queues).collect(),
    }
}

#[test]
fn every_flow_goes_to_the_queue_and_has_the_hash_that_key_and_table_say() {
    let rss = shuffled(16, 1);
    let config =
        PortConfig { queues: 16, rx_depth: 64, tx_depth: 64, rss: rss.clone(), ..PortConfig::default() };
    let (mut bench, mut served) = Bench::started(&config);
    let flows = flows(240, 7);
    let expect = expected(&flows, &rss);
    assert!((0..16).all(|queue| expect.iter().any(|&(q, _)| q == queue)), "the test reaches every queue");
    assert_eq!(spread(&bench, &mut served, &flows), expect);
    // Another key and table, without a stop.
    let rss = shuffled(3, 2);
    bench.port.set_rss(&rss).unwrap();
    assert_eq!(spread(&bench, &mut served, &flows), expected(&flows, &rss));
    // No table: round robin over the buckets.
    bench.port.set_rss(&RssConfig::default()).unwrap();
    let rss = RssConfig { table: (0..128).map(|n| n % 16).collect(), ..RssConfig::default() };
    assert_eq!(spread(&bench, &mut served, &flows), expected(&flows, &rss));
}

#[test]
fn what_is_not_ip_has_no_hash_and_goes_to_the_first_queue() {
    let config = PortConfig { queues: 4, ..PortConfig::default() };
    let (bench, mut served) = Bench::started(&config);
    bench.wire.send(&frame(OWN, 1, 64)).unwrap();
    let received = &served.receive(1)[0];
    assert_eq!((received.queue, received.hash), (0, None));
}

#[test]
fn one_queue_has_hashes_too() {
    let (bench, mut served) = Bench::started(&PortConfig::default());
    let flows = flows(6, 3);
    let key = RssConfig::default().key;
    let expect: Vec<_> = flows.iter().map(|flow| (0, Some(flow.hash(&key)))).collect();
    assert_eq!(spread(&bench, &mut served, &flows), expect);
}

#[test]
fn tables_that_make_no_sense_are_refused_and_the_old_one_stays() {
    let config = PortConfig { queues: 4, ..PortConfig::default() };
    let (mut bench, _served) = Bench::started(&config);
    for (table, what) in
        [(vec![0; 64], "128 entries"), (vec![0; 129], "128 entries"), (vec![4; 128], "0 to 3")]
    {
        let error = bench.port.set_rss(&RssConfig { table, ..RssConfig::default() }).unwrap_err();
        assert!(matches!(&error, Error::Setting { allowed, .. } if allowed.contains(what)), "{error}");
    }
    assert_eq!(bench.registers().read32(RETA.at(5)), 0x0302_0100);
    bench.port.stop().unwrap();
    let error = bench.port.set_rss(&RssConfig::default()).unwrap_err();
    assert!(matches!(error, Error::State { .. }), "{error}");
}

#[test]
fn a_table_changed_under_traffic_loses_no_frame_and_serves_old_or_new_queues() {
    let tables = [vec![0u8; 128], vec![1; 128]];
    let rss = |n: usize| RssConfig { table: tables[n].clone(), ..RssConfig::default() };
    let config = PortConfig { queues: 3, rss: rss(0), ..PortConfig::default() };
    let (mut bench, mut served) = Bench::started(&config);
    let (wire, stop, taken) = (bench.wire.clone(), AtomicBool::new(false), AtomicUsize::new(0));
    let flows = flows(64, 5);
    let (sent, queues) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            for flow in flows.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // Fewer on the way than a ring takes: what is lost, the change of the table has lost.
                while sent > taken.load(Ordering::Relaxed) + 256 && !stop.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                wire.send(&flow.frame()).unwrap();
                sent += 1;
            }
            sent
        });
        let ends = Stop(&stop);
        let mut queues = BTreeMap::<u16, usize>::new();
        let mut poll = || {
            let frames = served.poll();
            frames.iter().for_each(|frame| *queues.entry(frame.queue).or_default() += 1);
            taken.fetch_add(frames.len(), Ordering::Relaxed) + frames.len()
        };
        let mut round = 0;
        until("a thousand frames and forty changes", || {
            round += 1;
            bench.port.set_rss(&rss(round % 2)).unwrap();
            poll() > 1000 && round >= 40
        });
        drop(ends);
        until("the sender", || {
            poll();
            sender.is_finished()
        });
        let sent: usize = sender.join().unwrap();
        until("the last frames", || poll() >= sent);
        (sent, queues)
    });
    assert_eq!(queues.keys().copied().collect::<Vec<_>>(), [0, 1], "{queues:?}");
    assert_eq!(queues.values().sum::<usize>(), sent);
}
