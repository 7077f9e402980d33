//! A port in a machine, its queues and its wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dataplane::{Burst, Mempool, PoolCache, PoolConfig, QueueCounters, RxQueue, TxQueue};
use driver::igb::Igb;
use driver::{MacAddr, Port, PortConfig, QueuePair};
use pci::Bar;
use pci::qtest::{Faulty, Machine, Wire};

/// How long anything may take that QEMU does at once or after its half second of autonegotiation.
pub const PATIENCE: Duration = Duration::from_secs(5);
pub const OWN: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x11]);
pub const STRANGER: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x99]);
pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// A machine with one NIC whose port is open.
pub struct Bench {
    pub port: Igb,
    pub nic: Arc<Faulty>,
    pub wire: Wire,
    pub pool: Mempool,
    pub machine: Machine,
}

/// Queues of a started port, served by this thread.
pub struct Served {
    pub pairs: Vec<QueuePair>,
    pub cache: PoolCache,
}

pub fn machine() -> Machine {
    Machine::builder().nic(&format!("igb,mac={OWN}")).start().unwrap()
}

impl Bench {
    pub fn open() -> Self {
        let machine = machine();
        let nic = Arc::new(Faulty::new(machine.function(0)));
        let pool = Mempool::new(machine.iova_space(), PoolConfig { capacity: 6144, ..PoolConfig::default() });
        let port = Igb::open(nic.clone()).unwrap();
        Self { port, nic, wire: machine.wire(0), pool: pool.unwrap(), machine }
    }

    /// Open, started, link up.
    pub fn started(config: &PortConfig) -> (Self, Served) {
        let mut bench = Self::open();
        let served = bench.start(config);
        (bench, served)
    }

    pub fn start(&mut self, config: &PortConfig) -> Served {
        let pairs = self.port.start(config, &self.pool).unwrap();
        assert_eq!(pairs.len(), usize::from(config.queues));
        self.wait_link(true);
        Served { pairs, cache: self.pool.cache() }
    }

    pub fn wait_link(&self, up: bool) {
        until("the link to change", || self.port.link().up == up);
    }

    pub fn registers(&self) -> Bar {
        self.machine.function(0).bar(0).unwrap()
    }

    /// Bus mastering, as the command register has it.
    pub fn is_master(&self) -> bool {
        let mut command = [0; 2];
        self.machine.function(0).read_config(pci::config::COMMAND, &mut command).unwrap();
        u16::from_le_bytes(command) & pci::config::COMMAND_BUS_MASTER != 0
    }
}

/// A frame that was received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    pub queue: u16,
    pub bytes: Vec<u8>,
    pub hash: Option<u32>,
    pub vlan: Option<u16>,
}

impl Served {
    /// Whatever has arrived.
    pub fn poll(&mut self) -> Vec<Received> {
        let mut all = Vec::new();
        let mut burst = Burst::new();
        for pair in &mut self.pairs {
            pair.rx.poll(&mut self.cache, &mut burst, 64);
            for mbuf in burst.drain_front(64) {
                let flags = mbuf.rx_flags();
                let has = |flag| flags.contains(flag);
                all.push(Received {
                    queue: pair.index,
                    bytes: mbuf.to_vec(),
                    hash: has(dataplane::RxFlags::RSS_HASH).then(|| mbuf.rss_hash()),
                    vlan: has(dataplane::RxFlags::VLAN_STRIPPED).then(|| mbuf.vlan()),
                });
                self.cache.give(mbuf);
            }
        }
        all
    }

    /// The next `count` frames.
    pub fn receive(&mut self, count: usize) -> Vec<Received> {
        let mut all = Vec::new();
        until("frames to arrive", || {
            all.extend(self.poll());
            all.len() >= count
        });
        assert_eq!(all.len(), count, "{all:?}");
        all
    }

    /// Sends `frame` on pair `index`; true where the queue took it.
    pub fn send(&mut self, index: usize, frame: &[u8]) -> bool {
        let mut burst = Burst::new();
        let mut mbuf = self.cache.take().expect("the pool has buffers");
        assert!(mbuf.append(frame));
        assert!(burst.push(mbuf).is_ok());
        let pair = &mut self.pairs[index];
        let sent = pair.tx.post(&mut self.cache, &mut burst) == 1;
        while let Some(mbuf) = burst.pop() {
            self.cache.give(mbuf);
        }
        sent
    }

    pub fn reap(&mut self) {
        for pair in &mut self.pairs {
            pair.tx.reap(&mut self.cache);
        }
    }

    pub fn rx(&self, index: usize) -> Arc<QueueCounters> {
        self.pairs[index].rx.counters().clone()
    }

    pub fn tx(&self, index: usize) -> Arc<QueueCounters> {
        self.pairs[index].tx.counters().clone()
    }
}

/// Waits for `done`, at most [`PATIENCE`].
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A frame of `len` bytes, marked with `mark` in its payload, of an Ethernet type nobody has.
pub fn frame(to: MacAddr, mark: u8, len: usize) -> Vec<u8> {
    let mut frame = Vec::from(to.0);
    frame.extend(STRANGER.0);
    frame.extend([0x88, 0xb5]);
    frame.resize(len, mark);
    frame
}

/// The same with a VLAN tag.
pub fn tagged(to: MacAddr, vlan: u16, mark: u8, len: usize) -> Vec<u8> {
    let mut frame = frame(to, mark, len - 4);
    frame.splice(12..12, [0x81, 0x00, (vlan >> 8) as u8, vlan as u8]);
    frame
}

/// Marks of received frames of [`frame`], in order.
pub fn marks(received: &[Received]) -> Vec<u8> {
    received.iter().map(|frame| *frame.bytes.last().unwrap()).collect()
}

/// A mark never used otherwise: what is sent last, so that its arrival says that nothing else comes.
pub const LAST: u8 = 0xee;

impl Bench {
    /// Sends `frames` and then one that is always received; gives the marks of those received before it.
    pub fn passes(&self, served: &mut Served, frames: &[Vec<u8>]) -> Vec<u8> {
        for frame in frames {
            self.wire.send(frame).unwrap();
        }
        self.wire.send(&frame(BROADCAST, LAST, 64)).unwrap();
        let mut seen = Vec::new();
        until("the last frame", || {
            seen.extend(marks(&served.poll()));
            seen.last() == Some(&LAST)
        });
        seen.pop();
        seen
    }
}

/// Sets a flag when dropped, also by a panic: a scope waits for its threads, which wait for the flag.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
