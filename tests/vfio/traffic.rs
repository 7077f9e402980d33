//! Traffic between two igb ports on one wire.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use becket::dataplane::{
    Burst, Drop as Reason, Idle, Mbuf, Mempool, PoolCache, PoolConfig, QueueCounters, RxFlags, RxInterrupt,
    RxQueue, Task, TxQueue, Worker,
};
use becket::driver::{self, Event, MacAddr, Port, PortConfig, PortStatistics, QueuePair, RssConfig};
use becket::pci::Function;
use becket::pci::sysfs::Sysfs;
use becket::pci::vfio::Vfio;

use crate::support::*;

/// Frames that a sender may be ahead of its receiver: fewer than a ring takes.
const WINDOW: u64 = 256;
/// What a sender waits for a receiver before it takes what is under way for lost.
const LOST: Duration = Duration::from_millis(100);
/// An address that no memory of ours is mapped at.
const UNMAPPED: u32 = 0x7000_0000;

/// Registers of the 82576 (data sheet 8.1.3).
mod register {
    pub const TCTL: usize = 0x400;
    pub const TCTL_EN: u32 = 1 << 1;
    pub const TDBAL0: usize = 0xe000;
    pub const TDBAH0: usize = 0xe004;
}

/// An open port.
struct Station {
    port: Box<dyn Port>,
    function: Arc<dyn Function>,
}

impl Station {
    fn start(&mut self, pool: &Mempool, config: &PortConfig) -> Vec<QueuePair> {
        let pairs = self.port.start(config, pool).unwrap();
        wait_until("the link", PATIENCE, || self.port.link().up);
        pairs
    }

    fn mac(&self) -> MacAddr {
        self.port.info().mac
    }

    fn statistics(&mut self) -> PortStatistics {
        self.port.statistics()
    }
}

/// Both ports in one container, with one pool.
struct Bench {
    stations: [Station; 2],
    pool: Mempool,
    vfio: Arc<Vfio>,
    ports: Ports,
}

impl Bench {
    fn open() -> Self {
        let ports = Ports::take();
        let vfio = Vfio::new().unwrap();
        let stations = [ports.first(), ports.second()].map(|bdf| {
            let function = vfio.open(bdf).unwrap();
            Station { port: driver::open(function.clone()).unwrap(), function }
        });
        let pool = Mempool::new(vfio.iova_space(), PoolConfig { capacity: 4096, ..PoolConfig::default() });
        Self { stations, pool: pool.unwrap(), vfio, ports }
    }

    /// Starts both ports, with traffic both ways: `budget` frames each.
    fn talk(&mut self, budget: u64) -> [Talk; 2] {
        let pool = self.pool.clone();
        let macs = [self.stations[0].mac(), self.stations[1].mac()];
        let seen = [Arc::<Seen>::default(), Arc::<Seen>::default()];
        let pairs = self.stations.each_mut().map(|station| station.start(&pool, &PortConfig::default()));
        let mut ends = pairs.into_iter().map(|mut pairs| pairs.remove(0)).enumerate().map(|(at, pair)| {
            let (own, rx, tx) = (seen[at].clone(), pair.rx.counters().clone(), pair.tx.counters().clone());
            let end = End {
                pair,
                cache: pool.cache(),
                addresses: (macs[at], macs[1 - at]),
                budget,
                next: 0,
                outgoing: Burst::new(),
                own: own.clone(),
                other: seen[1 - at].clone(),
                moved: (0, Instant::now()),
            };
            let worker = Worker::spawn(&format!("end {at}"), None, Idle::Poll, end).unwrap();
            Talk { worker, seen: own, rx, tx }
        });
        [(); 2].map(|()| ends.next().unwrap())
    }

    /// Everything stops, every buffer is back, and VFIO has nothing left of it.
    fn finish(self) {
        let Self { stations, pool, vfio, ports: _ports } = self;
        for mut station in stations {
            station.port.stop().unwrap();
        }
        assert_eq!(pool.available(), pool.capacity());
        drop(pool);
        assert_eq!(vfio.iova_space().mappings(), 0);
        drop(vfio);
        assert_eq!(held(), Vec::<String>::new());
    }
}

/// What an end has seen, for the others to look at.
#[derive(Default)]
struct Seen {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    /// The number that the next frame should have: all before are received, or missing.
    expected: AtomicU64,
}

/// One end of the wire: sends numbered frames, and checks those of the other end.
struct End {
    pair: QueuePair,
    cache: PoolCache,
    /// Its own and the other's.
    addresses: (MacAddr, MacAddr),
    budget: u64,
    /// The number of the next frame to make.
    next: u64,
    outgoing: Burst,
    own: Arc<Seen>,
    other: Arc<Seen>,
    /// What the other end expected when it last moved on, and when that was.
    moved: (u64, Instant),
}

/// A running end.
struct Talk {
    worker: Worker<End>,
    seen: Arc<Seen>,
    rx: Arc<QueueCounters>,
    tx: Arc<QueueCounters>,
}

impl Talk {
    fn received(&self) -> u64 {
        self.seen.received.load(Ordering::Relaxed)
    }

    /// Waits until it has received `frames`, and has heard of as many that are sent.
    fn wait_until(&self, frames: u64) {
        let end = Instant::now() + PATIENCE;
        while self.received() < frames || self.tx.completed.get() < frames {
            assert!(!self.worker.is_finished(), "the worker ended");
            assert!(
                Instant::now() < end,
                "{frames} frames not within {PATIENCE:?}: {:?}, {:?}",
                self.rx,
                self.tx
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for `frames` more to come in.
    fn wait_received(&self, frames: u64) {
        let before = self.received();
        wait_until("frames to arrive", PATIENCE, || {
            assert!(!self.worker.is_finished(), "the worker ended");
            self.received() >= before + frames
        });
    }

    /// Ends it. A frame that was wrong is told here.
    fn stop(self) -> End {
        self.worker.stop().unwrap_or_else(|error| panic!("{error}"))
    }
}

fn frame_len(number: u64) -> usize {
    60 + (number * 37 % 1455) as usize
}

fn frame(from: MacAddr, to: MacAddr, number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1514);
    bytes.extend(to.0);
    bytes.extend(from.0);
    bytes.extend([0x88, 0xb5]);
    bytes.extend(number.to_be_bytes());
    let first = number as u8;
    bytes.extend((first..=u8::MAX).chain(0..first).cycle().take(frame_len(number) - bytes.len()));
    bytes
}

impl End {
    /// Fills up what is going out, for as long as the other end keeps up. What that has not heard of in
    /// time is taken for lost: one frame more tells it how far this end is.
    fn make(&mut self) {
        let expected = self.other.expected.load(Ordering::Relaxed);
        if expected != self.moved.0 {
            self.moved = (expected, Instant::now());
        }
        let mut end = expected + WINDOW;
        if self.moved.1.elapsed() > LOST {
            self.moved.1 = Instant::now();
            end = end.max(self.next + 1);
        }
        while self.next < end.min(self.budget) && self.outgoing.len() < 32 {
            let Some(mut mbuf) = self.cache.take() else { return };
            assert!(mbuf.append(&frame(self.addresses.0, self.addresses.1, self.next)));
            assert!(self.outgoing.push(mbuf).is_ok());
            self.next += 1;
        }
    }

    /// Frames may be missing; none may be wrong, late or there twice.
    fn check(&self, mbuf: &Mbuf) {
        let expected = self.own.expected.load(Ordering::Relaxed);
        let bytes = mbuf.to_vec();
        let number = u64::from_be_bytes(bytes[14..22].try_into().unwrap());
        assert!(number >= expected, "frame {number} came after {expected}");
        assert_eq!(bytes, frame(self.addresses.1, self.addresses.0, number), "frame {number}");
        self.own.expected.store(number + 1, Ordering::Relaxed);
        self.own.received.fetch_add(1, Ordering::Relaxed);
    }

    fn send(&mut self) -> usize {
        self.make();
        if self.outgoing.is_empty() {
            return self.pair.tx.reap(&mut self.cache);
        }
        let lens: Vec<_> = self.outgoing.iter().map(|mbuf| u64::from(mbuf.frame_len())).collect();
        let taken = self.pair.tx.post(&mut self.cache, &mut self.outgoing);
        self.own.sent.fetch_add(taken as u64, Ordering::Relaxed);
        self.own.sent_bytes.fetch_add(lens[..taken].iter().sum(), Ordering::Relaxed);
        taken
    }
}

impl Task for End {
    fn turn(&mut self) -> usize {
        let mut burst = Burst::new();
        let received = self.pair.rx.poll(&mut self.cache, &mut burst, 64);
        burst.iter().for_each(|mbuf| self.check(mbuf));
        self.cache.give_burst(&mut burst, received);
        received + self.send()
    }
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_exchange_frames_both_ways_at_once() {
    const FRAMES: u64 = 5000;
    let mut bench = Bench::open();
    let talks = bench.talk(FRAMES);
    talks.iter().for_each(|talk| talk.wait_until(FRAMES));
    let bytes = (0..FRAMES).map(|number| frame_len(number) as u64).sum::<u64>();
    for (talk, station) in talks.iter().zip(&mut bench.stations) {
        let counted = |counters: &QueueCounters| (counters.frames.get(), counters.bytes.get());
        assert_eq!((counted(&talk.tx), counted(&talk.rx)), ((FRAMES, bytes), (FRAMES, bytes)));
        assert_eq!(talk.tx.dropped_total() + talk.rx.dropped_total(), 0);
        assert_eq!(talk.seen.sent_bytes.load(Ordering::Relaxed), bytes);
        // With FCS, and nothing else: no error, no broadcast.
        let expected = PortStatistics {
            tx_frames: FRAMES,
            tx_bytes: bytes + 4 * FRAMES,
            rx_frames: FRAMES,
            rx_bytes: bytes + 4 * FRAMES,
            ..PortStatistics::default()
        };
        assert_eq!(station.statistics(), expected);
    }
    for talk in talks {
        let end = talk.stop();
        assert_eq!((end.next, end.pair.tx.in_flight()), (FRAMES, 0));
    }
    bench.finish();
}

/// Queues that this thread serves.
struct Served {
    pairs: Vec<QueuePair>,
    cache: PoolCache,
}

impl Served {
    fn send(&mut self, bytes: &[u8]) {
        let mut burst = Burst::new();
        let mut mbuf = self.cache.take().unwrap();
        assert!(mbuf.append(bytes));
        assert!(burst.push(mbuf).is_ok());
        assert_eq!(self.pairs[0].tx.post(&mut self.cache, &mut burst), 1);
    }

    /// The next frame: its queue, its hash, its bytes.
    fn receive(&mut self) -> (u16, Option<u32>, Vec<u8>) {
        let mut got = None;
        wait_until("a frame", PATIENCE, || {
            let mut burst = Burst::new();
            let polled = |pair: &mut QueuePair| {
                pair.rx.poll(&mut self.cache, &mut burst, 1);
                burst.pop().map(|mbuf| (pair.index, mbuf))
            };
            got = self.pairs.iter_mut().find_map(polled);
            got.is_some()
        });
        let (queue, mbuf) = got.unwrap();
        let hashed = mbuf.rx_flags().contains(RxFlags::RSS_HASH);
        (queue, hashed.then(|| mbuf.rss_hash()), mbuf.to_vec())
    }
}

/// The Toeplitz hash, bit by bit, as Microsoft's RSS specification describes it.
fn toeplitz(key: &[u8; 40], input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], n: usize| u32::from(bytes[n / 8] >> (7 - n % 8) & 1);
    let window = |from: usize| (from..from + 32).fold(0, |word, n| word << 1 | bit(key, n));
    (0..input.len() * 8).filter(|&n| bit(input, n) == 1).fold(0, |hash, n| hash ^ window(n))
}

/// A UDP frame of flow `n`, and what is hashed of it.
fn flow(from: MacAddr, to: MacAddr, n: u8) -> (Vec<u8>, Vec<u8>) {
    let hashed = vec![10, 0, 0, n, 10, 1, n, 7, 0x10, n, 0x20, n.wrapping_mul(5)];
    let mut bytes = [to.0, from.0].concat();
    bytes.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    bytes.extend(&hashed);
    bytes.extend([0, 8, 0, 0]);
    bytes.resize(60, 0);
    (bytes, hashed)
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_flows_spread_over_queues_as_the_table_says() {
    let mut bench = Bench::open();
    let (pool, [first, second]) = (&bench.pool, &mut bench.stations);
    let table = (0..128u8).map(|bucket| bucket / 3 % 5).collect();
    let rss = RssConfig { table, ..RssConfig::default() };
    let config = PortConfig { queues: 5, rx_depth: 256, rss: rss.clone(), ..PortConfig::default() };
    let mut sender = Served { pairs: first.start(pool, &PortConfig::default()), cache: pool.cache() };
    let mut receiver = Served { pairs: second.start(pool, &config), cache: pool.cache() };
    let mut spread = [0; 5];
    for n in 0..60 {
        let (bytes, hashed) = flow(first.mac(), second.mac(), n);
        let hash = toeplitz(&rss.key, &hashed);
        let queue = rss.table[hash as usize & 127];
        sender.send(&bytes);
        assert_eq!(receiver.receive(), (queue.into(), Some(hash), bytes), "flow {n}");
        spread[usize::from(queue)] += 1;
    }
    assert!(spread.iter().all(|&frames| frames > 0), "the test reaches every queue: {spread:?}");
    for (pair, frames) in receiver.pairs.iter().zip(spread) {
        assert_eq!(pair.rx.counters().frames.get(), frames);
    }
    drop((sender, receiver));
    bench.finish();
}

/// Receives, and sleeps meanwhile.
struct Listener {
    pair: QueuePair,
    cache: PoolCache,
    frames: Arc<AtomicU64>,
}

impl Task for Listener {
    fn turn(&mut self) -> usize {
        let mut burst = Burst::new();
        let received = self.pair.rx.poll(&mut self.cache, &mut burst, 64);
        self.cache.give_burst(&mut burst, received);
        self.frames.fetch_add(received as u64, Ordering::Relaxed);
        received
    }

    fn wakeups(&self) -> Vec<&RxInterrupt> {
        self.pair.interrupt.iter().collect()
    }
}

/// The time that a thread of this process has spent on a processor.
fn time_of_thread(name: &str) -> Duration {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let is_it = |thread: &std::path::PathBuf| {
        fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let thread = threads.into_iter().find(is_it).unwrap();
    let statistics = fs::read_to_string(thread.join("schedstat")).unwrap();
    Duration::from_nanos(statistics.split(' ').next().unwrap().parse().unwrap())
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_an_idle_worker_sleeps_until_a_frame_interrupts() {
    const IDLE: Duration = Duration::from_secs(3);
    let mut bench = Bench::open();
    let (pool, [first, second]) = (&bench.pool, &mut bench.stations);
    let mut sender = Served { pairs: first.start(pool, &PortConfig::default()), cache: pool.cache() };
    let config = PortConfig { rx_interrupts: true, ..PortConfig::default() };
    let pair = second.start(pool, &config).remove(0);
    let frames = Arc::<AtomicU64>::default();
    let task = Listener { pair, cache: pool.cache(), frames: frames.clone() };
    let worker = Worker::spawn("listener", None, Idle::Sleep { after: 64 }, task).unwrap();
    let (from, to) = (first.mac(), second.mac());
    let mut pass = |number: u64| {
        sender.send(&frame(from, to, number));
        wait_until("the frame", PATIENCE, || frames.load(Ordering::Relaxed) == number + 1);
    };
    pass(0);
    std::thread::sleep(Duration::from_millis(200));
    let before = time_of_thread("listener");
    std::thread::sleep(IDLE);
    let used = time_of_thread("listener") - before;
    assert!(used < IDLE / 10, "{used:?} of {IDLE:?} on a processor is no sleep");
    // Every frame that comes in while it sleeps is an interrupt of its own.
    let before = interrupts(second.function.bdf(), 1);
    (1..=20).for_each(&mut pass);
    let fired = interrupts(second.function.bdf(), 1) - before;
    assert!(fired >= 15, "{fired} interrupts for 20 frames");
    drop(worker.stop().unwrap());
    drop(sender);
    bench.finish();
}

/// Waits for events, sleeping, until one of them is `wanted`.
fn wait_for_event(port: &mut dyn Port, wanted: impl Fn(&Event) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !port.events().iter().any(&wanted) {
        assert!(Instant::now() < end, "no such event within {PATIENCE:?}");
        port.wait_event(Duration::from_secs(1));
    }
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_a_link_change_interrupts_and_is_told() {
    let mut bench = Bench::open();
    let talks = bench.talk(u64::MAX);
    let bdf = bench.ports.second();
    let [first, second] = &mut bench.stations;
    talks.iter().for_each(|talk| talk.wait_received(100));
    let port = &mut *second.port;
    wait_for_event(port, |event| matches!(event, Event::Link(link) if link.up));
    assert_eq!(port.events(), []);
    // What has come up to now may wake it once more, for nothing.
    wait_until("quiet", PATIENCE, || {
        assert_eq!(port.events(), []);
        !port.wait_event(Duration::from_millis(300))
    });
    let before = interrupts(bdf, 0);
    set_link(bdf, false);
    assert!(port.wait_event(PATIENCE));
    wait_for_event(port, |event| matches!(event, Event::Link(link) if !link.up));
    assert!(interrupts(bdf, 0) > before, "the link's change is an interrupt");
    assert!(!port.link().up && first.port.link().up);
    set_link(bdf, true);
    wait_for_event(port, |event| matches!(event, Event::Link(link) if link.up && link.speed == 1000));
    talks.iter().for_each(|talk| talk.wait_received(100));
    talks.map(Talk::stop).into_iter().for_each(drop);
    bench.finish();
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_dma_to_memory_that_is_not_mapped_is_stopped_and_reported() {
    let mut bench = Bench::open();
    let talks = bench.talk(u64::MAX);
    talks.iter().for_each(|talk| talk.wait_received(100));
    let [first, second] = &mut bench.stations;
    let bdf = first.function.bdf().to_string();
    let fault = format!("Request device [{}] fault addr {UNMAPPED:#x}", &bdf[5..]);
    assert_eq!(kernel_said(&fault), 0);
    // Behind the driver's back the ring is where nothing is.
    let bar = first.function.bar(0).unwrap();
    bar.write32(register::TDBAH0, 0);
    bar.write32(register::TDBAL0, UNMAPPED);
    drop(bar);
    wait_until("the IOMMU's report", PATIENCE, || kernel_said(&fault) > 0);
    let (sent, received) = (talks[0].tx.completed.get(), talks[0].received());
    talks[0].wait_received(100);
    assert_eq!(talks[0].tx.completed.get(), sent, "nothing of the ring is sent");
    assert!(talks[0].received() > received, "the other port runs on");
    assert!(second.function.is_present() && second.port.link().up);
    first.port.recover().unwrap();
    wait_until("the link", PATIENCE, || first.port.link().up);
    talks.iter().for_each(|talk| talk.wait_received(100));
    let lost = talks[0].tx.dropped(Reason::TxFlushed);
    assert!(lost > 0, "what was in the ring is counted");
    conserved(talks, &mut bench);
    bench.finish();
}

/// Ends the traffic, and finds every frame where the counters say.
fn conserved(talks: [Talk; 2], bench: &mut Bench) {
    let counters = talks.each_ref().map(|talk| (talk.rx.clone(), talk.tx.clone(), talk.seen.clone()));
    let ends = talks.map(Talk::stop);
    for (end, station) in ends.into_iter().zip(&mut bench.stations) {
        station.port.stop().unwrap();
        drop(end);
    }
    for (at, (rx, tx, seen)) in counters.iter().enumerate() {
        let sent = seen.sent.load(Ordering::Relaxed);
        let flushed = tx.dropped(Reason::TxFlushed);
        assert_eq!((tx.frames.get(), tx.dropped_total()), (sent, flushed), "port {at}");
        assert_eq!(tx.completed.get() + flushed, sent, "port {at}: sent, or flushed");
        // What a ring held may have been sent without being reported as such.
        let wire = bench.stations[at].statistics().tx_frames;
        assert!((tx.completed.get()..=sent).contains(&wire), "port {at}: {wire} on the wire of {sent}");
        assert_eq!(rx.frames.get(), seen.received.load(Ordering::Relaxed), "port {at}: delivered");
        let taken = bench.stations[at].statistics().rx_frames;
        let known = rx.frames.get() + rx.dropped_total();
        assert!(known <= taken, "port {at}: {known} received of {taken} on the wire");
    }
    assert_eq!(bench.pool.available(), bench.pool.capacity());
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_a_port_removed_mid_burst_is_told_and_let_go() {
    let bdf = Ports::take().second();
    let mut plug = Plug::of(bdf);
    let mut bench = Bench::open();
    let [stays, goes] = bench.talk(u64::MAX);
    stays.wait_received(100);
    plug.pull();
    let Bench { stations: [mut first, mut second], pool, vfio, ports: _ports } = bench;
    wait_for_event(&mut *second.port, |event| *event == Event::Removed);
    assert_eq!(second.port.events(), [], "told once");
    let (rx, tx, seen) = (goes.rx.clone(), goes.tx.clone(), goes.seen.clone());
    let end = goes.stop();
    // It still answers: it stops as any other does.
    second.port.stop().unwrap();
    drop(end);
    assert_eq!(tx.frames.get(), tx.completed.get() + tx.dropped(Reason::TxFlushed));
    assert_eq!(rx.frames.get(), seen.received.load(Ordering::Relaxed));
    drop(second);
    plug.wait_gone();
    assert!(matches!(vfio.open(bdf), Err(becket::pci::Error::NotFound { .. })));
    let before = stays.tx.completed.get();
    wait_until("the other port to go on", PATIENCE, || stays.tx.completed.get() > before + 5);
    assert!(!first.port.events().contains(&Event::Removed));
    // And a new one in its place is a port like any other.
    plug.put_back();
    let _ = Sysfs::default().bind_vfio(bdf).unwrap();
    let function = vfio.open(bdf).unwrap();
    let mut second = Station { port: driver::open(function.clone()).unwrap(), function };
    let mut served = Served { pairs: second.start(&pool, &PortConfig::default()), cache: pool.cache() };
    assert_eq!(&served.receive().2[..12], &[second.mac().0, first.mac().0].concat());
    drop((served, stays.stop()));
    Bench { stations: [first, second], pool, vfio, ports: _ports }.finish();
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_recoveries_under_traffic_conserve_frames_and_buffers() {
    let mut bench = Bench::open();
    let talks = bench.talk(u64::MAX);
    for round in 0..6 {
        talks.iter().for_each(|talk| talk.wait_received(100));
        let port = &mut bench.stations[round % 2].port;
        port.recover().unwrap();
        wait_until("the link", PATIENCE, || port.link().up);
    }
    talks.iter().for_each(|talk| talk.wait_received(100));
    conserved(talks, &mut bench);
    bench.finish();
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_a_hung_queue_is_told_and_recovered() {
    let mut bench = Bench::open();
    let talks = bench.talk(u64::MAX);
    talks.iter().for_each(|talk| talk.wait_received(100));
    let station = &mut bench.stations[0];
    let bar = station.function.bar(0).unwrap();
    bar.modify32(register::TCTL, register::TCTL_EN, 0);
    wait_for_event(&mut *station.port, |event| *event == Event::TxHang { queue: 0 });
    let completed = talks[0].tx.completed.get();
    talks[0].wait_received(100);
    assert_eq!(talks[0].tx.completed.get(), completed);
    bar.modify32(register::TCTL, 0, register::TCTL_EN);
    drop(bar);
    station.port.recover().unwrap();
    talks.iter().for_each(|talk| talk.wait_received(100));
    assert!(!station.port.events().contains(&Event::TxHang { queue: 0 }));
    assert!(talks[0].tx.dropped(Reason::TxFlushed) > 0);
    conserved(talks, &mut bench);
    bench.finish();
}

/// Mappings of this process, open files, threads.
fn footprint() -> (usize, usize, usize) {
    let count = |path: &str| fs::read_dir(path).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    (maps, count("/proc/self/fd"), count("/proc/self/task"))
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_fifty_starts_and_stops_leave_nothing_behind() {
    let mut bench = Bench::open();
    let config = PortConfig { queues: 4, rx_interrupts: true, ..PortConfig::default() };
    let mut before = None;
    for round in 0..53 {
        for station in &mut bench.stations {
            let pairs = station.port.start(&config, &bench.pool).unwrap();
            assert_eq!(pairs.len(), 4);
            station.port.stop().unwrap();
        }
        let space = bench.vfio.iova_space();
        let now = (space.mappings(), space.mapped_bytes(), bench.pool.available(), footprint());
        assert_eq!(now.2, bench.pool.capacity());
        // The first rounds have the allocator's own growth.
        if round >= 2 {
            assert_eq!(*before.get_or_insert(now), now, "round {round}");
        }
    }
    // Both still work.
    let talks = bench.talk(500);
    talks.iter().for_each(|talk| talk.wait_until(500));
    conserved(talks, &mut bench);
    bench.finish();
}
