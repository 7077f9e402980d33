//! [`IgbRx`]: receives.
//!
//! Every slot of the ring has a buffer in it at all times. A completion takes the buffer out and puts a
//! fresh one in; where there is none the frame is dropped and its buffer goes on serving the slot. The
//! tail, which is always one behind what was looked at last, is written once in a batch of slots.
//!
//! The device is not trusted: a descriptor is read once, a length is compared with the buffer that was
//! posted, no index comes from it.
#![allow(unsafe_code)]

mod irregular;

use std::mem::{ManuallyDrop, forget, offset_of};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use dataplane::{Burst, Drop as Reason, Mbuf, PoolCache, QueueCounters, RxFlags, RxQueue};
use pci::{Bdf, IovaSpace};

use super::gate::{Gate, runs};
use super::hw::rx_desc::{
    Completion, DONE, END_OF_PACKET, LOOPED_BACK, RECEIVE_ERROR, RSS_TYPE, VLAN_PACKET,
};
use super::queue::{QueueRegs, check_depth, offset, setting};
use super::ring::{Ring, count_abandoned, prefetch, prefetch_description};
use crate::{Error, Result};

/// SRRCTL: advanced descriptors, one buffer (8.10.2, DESCTYPE 001b).
const ADVANCED_ONE_BUFFER: u32 = 1 << 25;
/// SRRCTL: drop frames that find no descriptor (8.10.2, Drop_En).
const DROP_ENABLE: u32 = 1 << 31;
/// RXDCTL: fetch descriptors when 8 are left on the chip and 8 are in memory, write each back at once
/// (8.10.10). More than 1 for the write-back would let a lone frame wait for its neighbours.
const THRESHOLDS: u32 = 8 | 8 << 8 | 1 << 16;
/// SRRCTL counts buffer sizes in this many bytes, and takes up to 127 of them.
const BUFFER_UNIT: u16 = 1024;
/// Slots that may wait for the tail to be written. Few writes are worth more than a few slots: each crosses
/// the bus, and in a virtual machine leaves it.
const MOST_UNPOSTED: u32 = 256;
/// How many slots ahead a buffer's description is fetched.
const AHEAD: u32 = 2;

/// How an RX queue is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxQueueConfig {
    /// The queue's number.
    pub index: u16,
    /// Descriptors: a multiple of 8, 32 to 4096.
    pub depth: u16,
    /// Room of the pool's buffers, bytes; the device gets the whole kilobytes of it.
    pub buffer_len: u16,
    /// The device strips VLAN tags (CTRL.VME, or VMOLR.STRVLAN, is set).
    pub strip_vlan: bool,
    /// Longest frame, bytes without FCS, tags included: what RLPML lets pass, less 4.
    pub max_frame: u32,
    /// Frames that find no descriptor are dropped, not held: with several queues one slow core must not
    /// stop the others (SRRCTL.Drop_En).
    pub drop_when_full: bool,
    /// I350: the VLAN tag of frames looped back in the device comes in network byte order.
    pub loopback_vlan_swapped: bool,
}

/// Where in a frame of several buffers the queue is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// The next descriptor begins a frame.
    Start,
    /// In the middle of the frame in `IgbRx::chain`.
    Middle,
    /// In the middle of a frame that was dropped.
    Dropped,
}

/// What a poll has done so far.
struct Tally {
    frames: usize,
    bytes: u64,
    /// Slots.
    looked: u32,
}

/// An RX queue.
#[repr(C, align(64))]
pub struct IgbRx {
    gate: Arc<Gate>,
    epoch: u64,
    /// The buffers of the descriptors, and [`AHEAD`] places that stay empty.
    slots: Box<[Option<Mbuf>]>,
    counters: Arc<QueueCounters>,
    /// The slot to look at next.
    next: u32,
    /// Slots that have no buffer: those before `next`. Only after a start with too small a pool.
    gap: u32,
    /// Slots looked at since the tail was written.
    unposted: u32,
    /// Slots per tail write.
    batch: u32,
    /// Bits of the status to compare with those of a good frame in one buffer.
    unusual: u32,
    /// [`VLAN_PACKET`] where tags are stripped.
    vlan_bit: u32,
    /// Longest frame in one buffer.
    limit: u16,
    port: u16,
    place: Place,
    live: bool,
    ring: ManuallyDrop<Ring>,
    chain: Option<Mbuf>,
    /// What the device is told it may write to a buffer.
    buffer_len: u16,
    max_segments: u16,
    config: RxQueueConfig,
    bdf: Bdf,
    regs: QueueRegs,
}

// What a poll touches: two cache lines.
const _: () = assert!(offset_of!(IgbRx, config) <= 128 && size_of::<IgbRx>() <= 192);

impl IgbRx {
    /// A queue of the device whose register block is `regs`. Its ring is allocated in `space`; nothing
    /// runs before [`IgbRx::start`].
    ///
    /// # Errors
    /// [`Error::Setting`] for a depth or a buffer size the device cannot have; no memory.
    pub fn new(
        regs: QueueRegs,
        space: &Arc<IovaSpace>,
        config: RxQueueConfig,
        gate: Arc<Gate>,
        port: u16,
        bdf: Bdf,
    ) -> Result<Self> {
        check_depth(config.depth, bdf)?;
        let units = (config.buffer_len / BUFFER_UNIT).min(127);
        if units == 0 {
            let what = format!("receive buffers of {} bytes", config.buffer_len);
            return Err(setting(bdf, what, "give the pool a room of 1024 bytes or more"));
        }
        let buffer_len = units * BUFFER_UNIT;
        let unusual = if config.loopback_vlan_swapped { LOOPED_BACK } else { 0 };
        Ok(Self {
            gate,
            epoch: 0,
            slots: (0..u32::from(config.depth) + AHEAD).map(|_| None).collect(),
            counters: Arc::default(),
            next: 0,
            gap: config.depth.into(),
            unposted: 0,
            batch: (u32::from(config.depth) / 4).min(MOST_UNPOSTED),
            unusual: DONE | END_OF_PACKET | RECEIVE_ERROR | unusual,
            vlan_bit: if config.strip_vlan { VLAN_PACKET } else { 0 },
            limit: u32::from(buffer_len).min(config.max_frame) as u16,
            port,
            place: Place::Start,
            live: false,
            ring: ManuallyDrop::new(Ring::new(space, config.depth)?),
            chain: None,
            buffer_len,
            max_segments: config.max_frame.div_ceil(buffer_len.into()).clamp(1, 64) as u16,
            config,
            bdf,
            regs,
        })
    }

    /// Fills the ring and enables the queue. The gate must be open.
    ///
    /// # Errors
    /// [`Error::State`] where the gate is closed or the pool has no buffer of the room configured,
    /// [`Error::Timeout`], [`Error::Removed`].
    pub fn start(&mut self, pool: &mut PoolCache) -> Result<()> {
        let epoch = self.gate.epoch();
        if !runs(epoch) {
            return Err(Error::State { bdf: self.bdf, what: "open the queue's gate before starting it" });
        }
        if self.live && epoch == self.epoch {
            // Started before in this epoch: the device may be using the ring.
            self.regs.disable(self.bdf, "stopping an RX queue to start it again")?;
        }
        self.flush(&mut |mbuf| pool.give(mbuf));
        self.epoch = epoch;
        self.bring_up(pool)
    }

    /// The gate has a new epoch: what the ring holds goes home, and the queue comes up afresh if it may.
    #[cold]
    #[inline(never)]
    fn follow(&mut self, pool: &mut PoolCache) {
        self.epoch = self.gate.epoch();
        self.flush(&mut |mbuf| pool.give(mbuf));
        if runs(self.epoch) {
            let broken = self.bring_up(pool).is_err();
            self.gate.set_broken(broken);
        }
    }

    /// Programs an empty ring and gives it buffers (4.5.9 of the datasheet: the tail after the enable).
    fn bring_up(&mut self, pool: &mut PoolCache) -> Result<()> {
        (self.next, self.gap, self.unposted) = (0, self.ring.depth(), 0);
        self.fill(pool);
        if self.gap == self.ring.depth() {
            return Err(Error::State {
                bdf: self.bdf,
                what: "the pool has no buffer for the RX ring, or smaller ones than configured: make it larger",
            });
        }
        // From here on the device may know the ring, whatever fails.
        self.live = true;
        self.regs.set_ring(self.ring.iova(), self.ring.bytes());
        let drop = if self.config.drop_when_full { DROP_ENABLE } else { 0 };
        self.regs
            .write(offset::SRRCTL, u32::from(self.buffer_len / BUFFER_UNIT) | ADVANCED_ONE_BUFFER | drop);
        self.regs.enable(THRESHOLDS, self.bdf, "enabling an RX queue")?;
        self.ring_doorbell();
        Ok(())
    }

    /// Gives buffers to slots that have none, as far as the pool goes; true where there were any.
    #[cold]
    #[inline(never)]
    fn fill(&mut self, pool: &mut PoolCache) -> bool {
        let before = self.gap;
        while self.gap > 0 {
            let Some(fresh) = self.fresh(pool) else {
                self.counters.pool_empty.add(1);
                break;
            };
            let index = self.ring.before(self.next, self.gap);
            // SAFETY: `before` gives an index below the depth.
            unsafe { self.ring.write(index, fresh.receive_iova(), 0) };
            self.slots[index as usize] = Some(fresh);
            self.gap -= 1;
        }
        self.gap < before
    }

    /// Takes every buffer out of the ring, and counts the frames in them that nobody has seen. The
    /// device must not use the ring any more.
    fn flush(&mut self, give: &mut dyn FnMut(Mbuf)) {
        let mut frames = 0;
        let mut index = self.next;
        for _ in self.gap..self.ring.depth() {
            // SAFETY: `next` is below the depth, and `after` keeps it there.
            let completion = Completion(unsafe { self.ring.word1(index) });
            if !completion.has(DONE) {
                break;
            }
            let ended = completion.has(END_OF_PACKET);
            frames += u64::from(ended && self.place != Place::Dropped);
            self.place = match self.place {
                _ if ended => Place::Start,
                Place::Dropped => Place::Dropped,
                Place::Start | Place::Middle => Place::Middle,
            };
            index = self.ring.after(index);
        }
        frames += u64::from(self.place == Place::Middle);
        self.counters.drop_frames(Reason::RxFlushed, frames);
        self.place = Place::Start;
        self.live = false;
        self.gap = self.ring.depth();
        self.chain.take().into_iter().for_each(&mut *give);
        self.slots.iter_mut().filter_map(Option::take).for_each(give);
        for index in 0..self.ring.depth() {
            // SAFETY: below the depth.
            unsafe { self.ring.write(index, 0, 0) };
        }
    }

    /// A buffer that holds what the device is told it may write.
    #[inline]
    fn fresh(&self, pool: &mut PoolCache) -> Option<Mbuf> {
        let fresh = pool.take_raw()?;
        if fresh.room() < self.buffer_len {
            pool.give(fresh);
            return None;
        }
        Some(fresh)
    }

    /// Tells the device how far it may go: up to the slot before the one to look at next, or before the
    /// gap. So head and tail never meet while there are buffers.
    fn ring_doorbell(&mut self) {
        self.unposted = 0;
        // The descriptors must be in memory before the device hears of them.
        fence(Ordering::Release);
        self.regs.set_tail(self.ring.before(self.next, self.gap.max(1)));
    }

    /// Puts `fresh` into slot `index`, and takes out what was there: [`IgbRx::exchange`] without a gap.
    ///
    /// # Safety
    /// `index` is below the depth.
    #[inline]
    unsafe fn swap(&mut self, index: u32, fresh: Mbuf) -> Option<Mbuf> {
        let iova = fresh.receive_iova();
        // SAFETY: there are as many slots as descriptors, and `index` is below that.
        unsafe {
            let old = self.slots.get_unchecked_mut(index as usize).replace(fresh);
            self.ring.write(index, iova, 0);
            old
        }
    }

    /// Fills in a frame's description from its last descriptor.
    #[inline]
    fn describe(&self, frame: &mut Mbuf, completion: Completion, word0: u64) {
        const { assert!(VLAN_PACKET >> 2 == RxFlags::VLAN_STRIPPED.0 && RxFlags::RSS_HASH.0 == 1) };
        let stripped = completion.status() & self.vlan_bit;
        let hashed = u32::from(word0 & RSS_TYPE != 0);
        let flags = completion.checksum_flags().with(RxFlags(stripped >> 2 | hashed));
        let vlan = if stripped != 0 { completion.vlan() } else { 0 };
        frame.set_rx(flags, (word0 >> 32) as u32, vlan, self.port);
    }

    /// Receives at most `wanted` frames, and looks at no slot twice.
    #[inline]
    fn receive(&mut self, pool: &mut PoolCache, burst: &mut Burst, wanted: usize) -> usize {
        let mut tally = Tally { frames: 0, bytes: 0, looked: 0 };
        while let Some((completion, word0)) = self.receive_usual(pool, burst, wanted, &mut tally) {
            let index = self.next;
            self.next = self.ring.after(index);
            tally.looked += 1;
            if let Some(frame) = self.assemble(index, completion, word0, pool) {
                tally.frames += 1;
                tally.bytes += u64::from(frame.frame_len());
                // There is room: `wanted` is not more than that.
                let _ = burst.push(frame);
            }
        }
        self.unposted += tally.looked;
        if tally.frames > 0 {
            self.counters.burst(tally.frames as u64, tally.bytes);
        }
        tally.frames
    }

    /// Receives frames for as long as they are good ones in one buffer and the cache has fresh buffers
    /// at hand. Gives what was read of the first descriptor that is different, if there is one.
    ///
    /// The loop calls nothing that returns, so that everything it needs stays in registers.
    #[inline]
    fn receive_usual(
        &mut self,
        pool: &mut PoolCache,
        burst: &mut Burst,
        wanted: usize,
        tally: &mut Tally,
    ) -> Option<(Completion, u64)> {
        let (depth, buffer_len, unusual) = (self.ring.depth(), self.buffer_len, self.unusual);
        // With a gap, or inside a frame, everything is different.
        let limit = if self.gap == 0 && self.place == Place::Start { self.limit } else { 0 };
        let most = (wanted - tally.frames).min((depth - self.gap - tally.looked) as usize);
        let (mut index, mut count, mut bytes) = (self.next, 0, 0);
        let (mut different, mut small) = (None, None);
        while count < most {
            // SAFETY: `index` is below the depth.
            let completion = Completion(unsafe { self.ring.word1(index) });
            if !completion.has(DONE) {
                break;
            }
            // SAFETY: there are `AHEAD` more slots than descriptors.
            prefetch_description(unsafe { self.slots.get_unchecked((index + AHEAD) as usize) });
            let usual = completion.status() & unusual == DONE | END_OF_PACKET
                && completion.len().wrapping_sub(1) < limit;
            // SAFETY: as above.
            let word0 = unsafe { self.ring.word0(index) };
            if !usual || pool.stock() == 0 {
                different = Some((completion, word0));
                break;
            }
            let Some(fresh) = pool.take_raw() else { break };
            if fresh.room() < buffer_len {
                (different, small) = (Some((completion, word0)), Some(fresh));
                break;
            }
            // SAFETY: as above.
            let Some(mut frame) = (unsafe { self.swap(index, fresh) }) else { break };
            frame.received(completion.len());
            self.describe(&mut frame, completion, word0);
            prefetch(frame.data().as_ptr());
            // There is room: `wanted` is not more than that.
            let _ = burst.push(frame).map_err(forget);
            bytes += u64::from(completion.len());
            count += 1;
            index = if index + 1 == depth { 0 } else { index + 1 };
        }
        small.into_iter().for_each(|mbuf| pool.give(mbuf));
        tally.frames += count;
        tally.looked += count as u32;
        tally.bytes += bytes;
        self.next = index;
        different
    }
}

impl RxQueue for IgbRx {
    fn poll(&mut self, pool: &mut PoolCache, burst: &mut Burst, max: usize) -> usize {
        if self.gate.epoch() != self.epoch {
            self.follow(pool);
        }
        if !self.live {
            return 0;
        }
        // A ring with a gap may be smaller than the batch: then every buffer counts.
        let due = if self.gap == 0 { self.batch } else { u32::from(!self.fill(pool)) };
        let frames = self.receive(pool, burst, max.min(burst.room()));
        if self.unposted >= due {
            self.ring_doorbell();
        }
        frames
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

impl Drop for IgbRx {
    /// Stops the queue where the port has not. A device that does not stop keeps its ring and buffers:
    /// they are never freed then, see [`super::queue::abandoned`].
    fn drop(&mut self) {
        let ours = self.live && runs(self.epoch) && self.gate.epoch() == self.epoch;
        if ours && matches!(self.regs.disable(self.bdf, "stopping an RX queue"), Err(Error::Timeout { .. })) {
            count_abandoned();
            self.gate.set_broken(true);
            self.slots.iter_mut().for_each(|slot| forget(slot.take()));
            return;
        }
        self.flush(&mut drop);
        // SAFETY: dropped once, here; the device does not use it any more.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
    }
}
