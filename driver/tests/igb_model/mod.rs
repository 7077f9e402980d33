//! The device's side of igb's queues, in software and without mercy: it reads and writes the rings by
//! their I/O virtual addresses, and panics where the driver gives it an address that is not mapped or a
//! descriptor that the datasheet does not allow.
#![allow(dead_code, unsafe_code, reason = "shared by several tests; plays the device's DMA")]

use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dataplane::{Burst, Mempool, PoolCache, PoolConfig};
use driver::igb::gate::Gate;
use driver::igb::queue::QueueRegs;
use driver::igb::{IgbRx, IgbTx, RxQueueConfig, TxQueueConfig};
use pci::dma::HostMemory;
use pci::{Bar, Bdf, IommuDomain, IovaSpace, RegisterIo};

pub const BDF: Bdf = Bdf { domain: 0, bus: 1, device: 0, function: 0 };

// Write-back bits, from 7.1.5.2, independently of the driver's own.
pub const DD: u32 = 1;
pub const EOP: u32 = 2;
pub const VP: u32 = 8;
pub const L4I: u32 = 0x20;
pub const IPCS: u32 = 0x40;
pub const LB: u32 = 1 << 18;
pub const L4E: u32 = 1 << 29;
pub const IPE: u32 = 1 << 30;
pub const RXE: u32 = 1 << 31;

const ENABLE: u32 = 1 << 25;

struct Mapped {
    iova: u64,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address; the tests see to it that the memory is mapped while it is used.
unsafe impl Send for Mapped {}

/// An IOMMU that knows every mapping, and faults loudly.
#[derive(Default)]
pub struct Memory(Mutex<Vec<Mapped>>);

impl IommuDomain for Memory {
    fn map(&self, iova: u64, memory: &HostMemory) -> pci::Result<()> {
        self.0.lock().unwrap().push(Mapped { iova, base: memory.base(), len: memory.len() });
        Ok(())
    }
    fn unmap(&self, iova: u64, _: usize) -> pci::Result<()> {
        self.0.lock().unwrap().retain(|m| m.iova != iova);
        Ok(())
    }
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        vec![0..=u64::MAX]
    }
}

impl Memory {
    fn at(&self, iova: u64, len: usize) -> *mut u8 {
        let maps = self.0.lock().unwrap();
        let inside = |m: &&Mapped| iova >= m.iova && iova - m.iova + len as u64 <= m.len as u64;
        let map = maps.iter().find(inside).unwrap_or_else(|| panic!("DMA fault: {len} bytes at {iova:#x}"));
        // SAFETY: inside the mapping, just checked.
        unsafe { map.base.as_ptr().add((iova - map.iova) as usize) }
    }

    pub fn is_mapped(&self, iova: u64) -> bool {
        self.0.lock().unwrap().iter().any(|m| iova >= m.iova && iova - m.iova < m.len as u64)
    }

    pub fn read(&self, iova: u64, len: usize) -> Vec<u8> {
        let at = self.at(iova, len);
        // SAFETY: mapped; the driver has given this memory to the device.
        (0..len).map(|n| unsafe { at.add(n).read() }).collect()
    }

    pub fn write(&self, iova: u64, bytes: &[u8]) {
        let at = self.at(iova, bytes.len());
        // SAFETY: as for `read`.
        unsafe { at.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn word(&self, iova: u64) -> &AtomicU64 {
        // SAFETY: mapped and aligned; descriptors are accessed by word and atomically on both sides.
        unsafe { AtomicU64::from_ptr(self.at(iova, 8).cast()) }
    }
}

/// Bytes of the register BAR.
const BAR: usize = 0x2_0000;

/// Registers that remember, with enable bits that answer.
pub struct Registers {
    values: Box<[AtomicU32]>,
    /// Queues never come up.
    pub refuse_enable: AtomicBool,
    /// Queues never stop.
    pub refuse_disable: AtomicBool,
    /// Everything reads ones.
    pub removed: AtomicBool,
    /// Tail writes of any queue.
    pub doorbells: AtomicUsize,
    /// Writes of any register.
    pub writes: AtomicUsize,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            values: (0..BAR / 4).map(|_| AtomicU32::new(0)).collect(),
            refuse_enable: AtomicBool::default(),
            refuse_disable: AtomicBool::default(),
            removed: AtomicBool::default(),
            doorbells: AtomicUsize::default(),
            writes: AtomicUsize::default(),
        }
    }
}

impl Registers {
    pub fn get(&self, offset: usize) -> u32 {
        self.values[offset / 4].load(Ordering::Relaxed)
    }
}

impl RegisterIo for Registers {
    fn read32(&self, offset: usize) -> u32 {
        if self.removed.load(Ordering::Relaxed) { u32::MAX } else { self.get(offset) }
    }
    fn write32(&self, offset: usize, value: u32) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let old = self.get(offset);
        let mut value = value;
        match offset & 0x3f {
            0x18 => _ = self.doorbells.fetch_add(1, Ordering::Relaxed),
            0x28 if self.refuse_enable.load(Ordering::Relaxed) && old & ENABLE == 0 => value &= !ENABLE,
            0x28 if self.refuse_disable.load(Ordering::Relaxed) && old & ENABLE != 0 => value |= ENABLE,
            _ => {}
        }
        self.values[offset / 4].store(value, Ordering::Relaxed);
    }
}

/// A device with memory and registers, and no behaviour but what its queues' sides are told to do.
pub struct Nic {
    pub memory: Arc<Memory>,
    pub registers: Arc<Registers>,
    pub space: Arc<IovaSpace>,
    pub bar: Bar,
}

impl Default for Nic {
    fn default() -> Self {
        let (memory, registers) = (Arc::<Memory>::default(), Arc::<Registers>::default());
        let space = IovaSpace::software();
        space.attach(memory.clone()).unwrap();
        let bar = Bar::trapped(registers.clone(), BAR);
        Self { memory, registers, space, bar }
    }
}

impl Nic {
    pub fn pool(&self, capacity: u32, room: u16) -> Mempool {
        Mempool::new(&self.space, PoolConfig { capacity, room, ..PoolConfig::default() }).unwrap()
    }

    pub fn rx(&self, config: RxQueueConfig, gate: &Arc<Gate>) -> IgbRx {
        let regs = QueueRegs::pf_rx(self.bar.clone(), config.index);
        IgbRx::new(regs, &self.space, config, gate.clone(), 7, BDF).unwrap()
    }

    pub fn tx(&self, config: TxQueueConfig, gate: &Arc<Gate>) -> IgbTx {
        let regs = QueueRegs::pf_tx(self.bar.clone(), config.index);
        IgbTx::new(regs, &self.space, config, gate.clone(), BDF).unwrap()
    }

    pub fn rx_side(&self, n: usize) -> Side {
        Side::new(self, 0xc000 + 0x40 * n)
    }

    pub fn tx_side(&self, n: usize) -> TxSide {
        TxSide {
            side: Side::new(self, 0xe000 + 0x40 * n),
            contexts: [None; 2],
            context_descriptors: 0,
            reports: 0,
        }
    }
}

pub fn rx_config(depth: u16, buffer_len: u16, max_frame: u32) -> RxQueueConfig {
    RxQueueConfig {
        index: 0,
        depth,
        buffer_len,
        strip_vlan: true,
        max_frame,
        drop_when_full: false,
        loopback_vlan_swapped: false,
    }
}

pub fn open_gate() -> Arc<Gate> {
    let gate = Arc::new(Gate::new());
    gate.run();
    gate
}

/// Takes everything out of a burst, back to the pool.
pub fn clear(burst: &mut Burst, cache: &mut PoolCache) {
    let n = burst.len();
    cache.give_burst(burst, n);
}

/// The device's end of one ring.
pub struct Side {
    memory: Arc<Memory>,
    registers: Arc<Registers>,
    base: usize,
    pub head: u32,
}

impl Side {
    fn new(nic: &Nic, base: usize) -> Self {
        Self { memory: nic.memory.clone(), registers: nic.registers.clone(), base, head: 0 }
    }

    pub fn register(&self, offset: usize) -> u32 {
        self.registers.get(self.base + offset)
    }

    pub fn depth(&self) -> u32 {
        self.register(0x08) / 16
    }

    pub fn tail(&self) -> u32 {
        self.register(0x18)
    }

    pub fn enabled(&self) -> bool {
        self.register(0x28) & ENABLE != 0
    }

    /// Descriptors that the device owns: from head up to the tail.
    pub fn owned(&self) -> u32 {
        let (depth, tail) = (self.depth(), self.tail());
        assert!(tail < depth.max(1), "tail {tail} in a ring of {depth}");
        if !self.enabled() { 0 } else { (tail + depth - self.head) % depth }
    }

    pub fn ring_iova(&self) -> u64 {
        u64::from(self.register(0)) | u64::from(self.register(4)) << 32
    }

    pub fn descriptor(&self, index: u32) -> (u64, u64) {
        let at = self.ring_iova() + u64::from(index) * 16;
        let word = |at| u64::from_le(self.memory.word(at).load(Ordering::Acquire));
        (word(at), word(at + 8))
    }

    /// Writes a descriptor, owned or not.
    pub fn scribble(&self, index: u32, word0: u64, word1: u64) {
        let at = self.ring_iova() + u64::from(index) * 16;
        self.memory.word(at).store(word0.to_le(), Ordering::Relaxed);
        self.memory.word(at + 8).store(word1.to_le(), Ordering::Release);
    }

    /// Completes the descriptor at the head with these words, if the device owns one.
    pub fn complete(&mut self, word0: u64, word1: u64) -> bool {
        if self.owned() == 0 {
            return false;
        }
        self.scribble(self.head, word0, word1);
        self.head = (self.head + 1) % self.depth();
        true
    }

    /// Receives `frame` as the device would, over as many buffers as it takes; false where there are
    /// too few.
    pub fn deliver(&mut self, frame: &[u8], status: u32, rss: Option<u32>, vlan: u16) -> bool {
        let size = (self.register(0x0c) & 0x7f) as usize * 1024;
        assert_eq!(self.register(0x0c) >> 25 & 7, 1, "SRRCTL.DESCTYPE");
        let parts: Vec<&[u8]> = frame.chunks(size).collect();
        if parts.len() > self.owned() as usize {
            return false;
        }
        for (n, part) in parts.iter().enumerate() {
            let (buffer, header) = self.descriptor(self.head);
            assert_eq!(header, 0, "the done bit of a descriptor that the device owns");
            // All that the device is allowed to write must be there.
            self.memory.at(buffer, size);
            self.memory.write(buffer, part);
            let last = n + 1 == parts.len();
            let bits = if last { DD | EOP | status } else { DD };
            let word0 = rss.filter(|_| last).map_or(0, |hash| 1 | u64::from(hash) << 32);
            let word1 = u64::from(bits) | (part.len() as u64) << 32 | u64::from(vlan) << 48;
            assert!(self.complete(word0, word1));
        }
        true
    }

    /// As [`Side::deliver`], of a plain frame.
    pub fn deliver_plain(&mut self, frame: &[u8]) -> bool {
        self.deliver(frame, 0, None, 0)
    }

    /// After a reset of the queue.
    pub fn reset(&mut self) {
        self.head = 0;
    }
}

/// A frame as the device was told to send it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sent {
    pub bytes: Vec<u8>,
    pub segments: usize,
    /// Word 1 of its descriptors, lengths and report bit left out.
    pub word1: u64,
    /// The context that it uses.
    pub context: Option<(u64, u64)>,
}

/// The device's end of a TX ring.
pub struct TxSide {
    pub side: Side,
    contexts: [Option<(u64, u64)>; 2],
    pub context_descriptors: usize,
    pub reports: usize,
}

impl TxSide {
    /// Sends at most `limit` frames; reports those that ask for it.
    pub fn send(&mut self, limit: usize) -> Vec<Sent> {
        let mut sent = Vec::new();
        let (mut bytes, mut segments, mut first) = (Vec::new(), 0, None);
        while self.side.owned() > 0 && sent.len() < limit {
            let at = self.side.head;
            let (word0, word1) = self.side.descriptor(at);
            assert_eq!(word1 >> 29 & 1, 1, "DEXT of {word1:#x}");
            if word1 >> 20 & 0xf == 2 {
                assert_eq!(segments, 0, "a context inside a frame");
                self.contexts[(word1 >> 36 & 7) as usize] = Some((word0, word1));
                self.context_descriptors += 1;
                self.side.head = (at + 1) % self.side.depth();
                continue;
            }
            assert_eq!(word1 >> 20 & 0xf, 3, "DTYP of {word1:#x}");
            assert_eq!(word1 >> 25 & 1, 1, "IFCS of {word1:#x}");
            assert_eq!(word1 >> 32 & 0xf, 0, "STA of {word1:#x}");
            assert!(word1 & 0xffff > 0, "an empty buffer");
            bytes.extend(self.side.memory.read(word0, (word1 & 0xffff) as usize));
            segments += 1;
            let shared = word1 & !(0xffff | 1 << 24 | 1 << 27);
            assert_eq!(*first.get_or_insert(shared), shared, "options change inside a frame");
            if word1 & 1 << 27 != 0 {
                assert!(word1 & 1 << 24 != 0, "a report inside a frame");
                self.reports += 1;
                self.side.scribble(at, word0, word1 | 1 << 32);
            }
            self.side.head = (at + 1) % self.side.depth();
            if word1 & 1 << 24 != 0 {
                sent.push(self.frame(std::mem::take(&mut bytes), std::mem::take(&mut segments), shared));
                first = None;
            }
        }
        assert_eq!(segments, 0, "half a frame before the tail");
        sent
    }

    fn frame(&self, bytes: Vec<u8>, segments: usize, word1: u64) -> Sent {
        assert!(bytes.len() >= 17, "{} bytes hang the device", bytes.len());
        assert!(segments <= 38, "{segments} segments");
        // TSE, VLE, IXSM or TXSM need a context.
        let context = if word1 & (3 << 30 | 3 << 40) != 0 {
            let context = self.contexts[(word1 >> 36 & 7) as usize];
            Some(context.expect("a frame that refers to a context that was never given"))
        } else {
            None
        };
        let headers = match context {
            Some((lens, more)) if word1 & 1 << 31 != 0 => {
                (lens & 0x1ff) + (lens >> 9 & 0x7f) + (more >> 40 & 0xff)
            }
            _ => 0,
        };
        assert_eq!(word1 >> 46, bytes.len() as u64 - headers, "PAYLEN");
        let word1 = word1 & ((1 << 46) - 1) & !(7 << 36);
        Sent { bytes, segments, word1, context }
    }

    pub fn reset(&mut self) {
        self.side.reset();
        self.contexts = [None; 2];
    }
}
