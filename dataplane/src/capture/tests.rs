use super::*;
use crate::generator::{Flows, FrameSpec, TxGenerator};
use crate::{Burst, Drop, Mbuf, Mempool, PoolCache, PoolConfig, QueueCounters, RxQueue, TxQueue};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use pci::{IovaSpace, Sharing};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A file that is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("becket-{}-{name}", std::process::id())))
    }
}

impl std::ops::Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A queue that receives what it sent, and takes only `room` frames at a time.
struct Wire {
    room: usize,
    frames: std::collections::VecDeque<Mbuf>,
    counters: Arc<QueueCounters>,
}

impl RxQueue for Wire {
    fn poll(&mut self, _: &mut PoolCache, burst: &mut Burst, max: usize) -> usize {
        let n = self.frames.len().min(max);
        self.frames.drain(..n).for_each(|mbuf| burst.push(mbuf).unwrap());
        n
    }
    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

impl TxQueue for Wire {
    fn post(&mut self, _: &mut PoolCache, burst: &mut Burst) -> usize {
        let before = self.frames.len();
        self.frames.extend(burst.drain_front(self.room));
        self.frames.len() - before
    }
    fn reap(&mut self, _: &mut PoolCache) -> usize {
        0
    }
    fn in_flight(&self) -> usize {
        self.frames.len()
    }
    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

fn wire(room: usize) -> Wire {
    Wire { room, frames: Default::default(), counters: Arc::default() }
}

fn pool() -> Mempool {
    let config = PoolConfig { capacity: 2048, room: 2048, sharing: Sharing::Private };
    Mempool::new(&IovaSpace::software(), config).unwrap()
}

/// Frames as another implementation reads them: interface name, flags, nanoseconds, length, bytes.
fn read_back(path: &PathBuf) -> Vec<(String, u32, u128, u32, Vec<u8>)> {
    let mut reader = PcapNgReader::new(std::fs::File::open(path).unwrap()).unwrap();
    let (mut names, mut frames) = (Vec::new(), Vec::new());
    while let Some(block) = reader.next_block() {
        match block.unwrap() {
            Block::InterfaceDescription(interface) => {
                let resolution = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
                    _ => None,
                });
                assert_eq!(resolution, Some(9));
                names.extend(interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                }));
            }
            Block::EnhancedPacket(packet) => {
                let flags = packet.options.iter().find_map(|option| match option {
                    EnhancedPacketOption::Flags(flags) => Some(*flags),
                    _ => None,
                });
                let name = names[packet.interface_id as usize].clone();
                // This version of the crate takes every unit for nanoseconds.
                let nanos = packet.timestamp.as_nanos();
                frames.push((name, flags.unwrap(), nanos, packet.original_len, packet.data.to_vec()));
            }
            other => panic!("unexpected block {other:?}"),
        }
    }
    frames
}

#[test]
fn another_reader_finds_the_same_frames() {
    let file = Scratch::new("frames.pcapng");
    let mut capture = Capture::new(&file.0, CaptureConfig { snap: 1000, ring: 1 << 20 });
    let (a, b) = (capture.interface("wire queue 0"), capture.interface("wire queue 1"));
    let (unused, pool) = (capture.received(b), pool());
    let mut wire = Captured::new(wire(7), Some(capture.sent(a)));
    let mut back = Captured::new(self::wire(64), Some(capture.received(a)));
    let capture = capture.start().unwrap();

    let mix = [60, 61, 700, 1514].map(|len| FrameSpec { len, ..FrameSpec::default() });
    let mut generator = TxGenerator::new(&mix, Flows::ONE, Some(0)).unwrap();
    let (mut cache, mut burst, mut expected) = (pool.cache(), Burst::new(), Vec::new());
    for _ in 0..300 {
        let n = 23 - burst.len();
        generator.fill(&mut cache, &mut burst, n, 0);
        let now: Vec<_> = burst.iter().map(Mbuf::to_vec).collect();
        assert_eq!(wire.post(&mut cache, &mut burst), 7);
        expected.extend(now.into_iter().take(7).map(|frame| (2, frame)));
        let mut got = Burst::new();
        wire.queue.poll(&mut cache, &mut got, 64);
        // The same frames once more, in buffers chained from two.
        for mbuf in got.drain_front(64) {
            let bytes = mbuf.to_vec();
            let (mut head, mut tail) = (pool.take().unwrap(), pool.take().unwrap());
            assert!(head.append(&bytes[..50]) && tail.append(&bytes[50..]));
            head.chain(tail);
            back.queue.frames.push_back(head);
        }
        back.poll(&mut cache, &mut got, 64);
        expected.extend(got.iter().map(|mbuf| (1, mbuf.to_vec())));
        cache.give_burst(&mut got, 64);
    }
    drop((unused, back));
    assert_eq!(wire.tap().unwrap().counters().frames.get(), 2100);
    let summary = capture.close().unwrap();
    let frames = read_back(&file.0);
    assert_eq!((summary.frames as usize, frames.len()), (expected.len(), expected.len()));
    check_frames(&frames, &expected);
}

fn check_frames(frames: &[(String, u32, u128, u32, Vec<u8>)], expected: &[(u32, Vec<u8>)]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut last = 0;
    for ((name, flags, nanos, len, data), (direction, whole)) in frames.iter().zip(expected) {
        assert_eq!((name.as_str(), flags), ("wire queue 0", direction));
        assert_eq!((*len as usize, &data[..]), (whole.len(), &whole[..whole.len().min(1000)]));
        assert!(*nanos >= last && now.as_nanos().abs_diff(*nanos) < Duration::from_secs(60).as_nanos());
        last = *nanos;
    }
}

#[test]
fn what_the_ring_cannot_hold_is_counted_and_the_queue_goes_on() {
    let file = Scratch::new("full.pcapng");
    let mut capture = Capture::new(&file.0, CaptureConfig { snap: 64, ring: 10 * (60 + 16) + 5 });
    let queue = capture.interface("q");
    let mut wire = Captured::new(wire(64), Some(capture.sent(queue)));
    let (pool, mut burst) = (pool(), Burst::new());
    let mut cache = pool.cache();
    let mut generator = TxGenerator::new(&[FrameSpec::default()], Flows::ONE, Some(0)).unwrap();
    // The writer has not started: the ring fills.
    for _ in 0..4 {
        generator.fill(&mut cache, &mut burst, 8, 0);
        assert_eq!(wire.post(&mut cache, &mut burst), 8);
    }
    let counters = wire.tap().unwrap().counters().clone();
    assert_eq!((counters.frames.get(), counters.bytes.get()), (10, 600));
    assert_eq!(counters.dropped(Drop::CaptureFull), 22);
    assert_eq!(TxQueue::counters(&wire).dropped_total(), 0);
    let capture = capture.start().unwrap();
    assert_eq!(capture.close().unwrap(), CaptureSummary { frames: 10, bytes: 600 });
    assert_eq!(wire.in_flight(), 32);
    let bytes = std::fs::read(&file.0).unwrap();
    let read: Vec<_> = packets(&bytes).unwrap().map(Result::unwrap).collect();
    let sent: Vec<_> = wire.queue().frames.iter().take(10).map(|mbuf| mbuf.data()).collect();
    assert_eq!(read.iter().map(|packet| packet.data).collect::<Vec<_>>(), sent);
}

#[test]
fn a_file_that_cannot_be_made_or_written_is_named() {
    let error =
        Capture::new("/nonexistent/x.pcapng", CaptureConfig::default()).start().map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/x.pcapng"), "{error}");
    let mut capture = Capture::new("/dev/full", CaptureConfig::default());
    let queue = capture.interface("q");
    let mut wire = Captured::new(wire(64), Some(capture.sent(queue)));
    let capture = capture.start().unwrap();
    let (pool, mut burst) = (pool(), Burst::new());
    let mut generator = TxGenerator::new(&[FrameSpec::default()], Flows::ONE, None).unwrap();
    generator.fill(&mut pool.cache(), &mut burst, 1, 0);
    wire.post(&mut pool.cache(), &mut burst);
    let error = capture.close().unwrap_err().to_string();
    assert!(error.contains("/dev/full") && error.contains("No space"), "{error}");
}
