//! [`IgbTx`]: sends.
//!
//! Descriptors of a post are written while the device still believes that they are not there; the tail
//! then shows it all of them at once. One descriptor in a post reports, and what was posted up to it
//! goes home when it is done. Buffers are kept apart from the ring, in the order they were posted:
//! whatever the device writes into its descriptors, it frees a buffer early at the worst, never twice.
#![allow(unsafe_code)]

mod frames;
mod offload;

use std::mem::{ManuallyDrop, forget, offset_of};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use dataplane::{Burst, Drop as Reason, Mbuf, PoolCache, QueueCounters, TxQueue};
use pci::{Bdf, IovaSpace};

use self::frames::{Frames, Mark};
use self::offload::{Context, ETHERNET};
use super::gate::{Gate, runs};
use super::hw::tx_desc::{CONTEXTS, DATA, DONE, END_OF_PACKET, REPORT, context_index, data_len, payload_len};
use super::queue::{QueueRegs, check_depth, offset};
use super::ring::{Ring, count_abandoned};
use crate::{Error, Result};

/// TXDCTL: fetch descriptors when 8 are left on the chip and one is in memory, write each one that
/// reports back at once (8.12.15).
const THRESHOLDS: u32 = 8 | 1 << 8 | 1 << 16;
/// Shortest frame that the device may be given; it pads it to 64 bytes itself (TCTL.PSP, 8.12.1).
const LEAST: u32 = 17;
/// Data descriptors of a frame at the most: of the 40 that the device handles together, one is for a
/// context, one for the headers of a segment, one for the write-back threshold.
const MOST_SEGMENTS: u32 = 37;
/// Frames of a post between two descriptors that report, at the most.
const STRIDE: u32 = 64;

/// How a TX queue is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxQueueConfig {
    /// The queue's number.
    pub index: u16,
    /// Descriptors: a multiple of 8, 32 to 4096.
    pub depth: u16,
    /// Longest frame on the wire, bytes without FCS, tags included.
    pub max_frame: u32,
}

/// Why a frame was not described.
enum Refusal {
    /// The ring has no room for it now.
    Full,
    /// It can never be sent.
    Never(Reason),
}

/// The next descriptor to write, and how many are free from there.
#[derive(Clone, Copy)]
struct Cursor {
    index: u32,
    free: u32,
}

/// What [`IgbTx::describe`] did.
struct Described {
    frames: usize,
    bytes: u64,
    /// The last descriptor written, and its word 1.
    last: (u32, u64),
    refusal: Option<Refusal>,
}

/// A TX queue.
#[repr(C, align(64))]
pub struct IgbTx {
    gate: Arc<Gate>,
    epoch: u64,
    frames: Frames,
    counters: Arc<QueueCounters>,
    cursor: Cursor,
    /// Completions are looked for when fewer descriptors are free.
    reserve: u32,
    /// Frames, or descriptors of complex frames, between two reports.
    stride: u32,
    max_frame: u32,
    live: bool,
    /// The context used last.
    current: u8,
    ring: ManuallyDrop<Ring>,
    /// What the device's context table holds. Apart, so that a queue is small.
    contexts: Box<[Option<Context>; CONTEXTS]>,
    bdf: Bdf,
    regs: QueueRegs,
}

// What a post touches: two cache lines and a half, the doorbell's address among them.
const _: () = assert!(offset_of!(IgbTx, contexts) <= 128 && size_of::<IgbTx>() <= 192);

impl IgbTx {
    /// A queue of the device whose register block is `regs`. Its ring is allocated in `space`; nothing
    /// runs before [`IgbTx::start`].
    ///
    /// # Errors
    /// [`Error::Setting`] for a depth the device cannot have; no memory.
    pub fn new(
        regs: QueueRegs,
        space: &Arc<IovaSpace>,
        config: TxQueueConfig,
        gate: Arc<Gate>,
        bdf: Bdf,
    ) -> Result<Self> {
        check_depth(config.depth, bdf)?;
        let depth = u32::from(config.depth);
        Ok(Self {
            gate,
            epoch: 0,
            frames: Frames::new(depth),
            counters: Arc::default(),
            cursor: Cursor { index: 0, free: depth - 1 },
            reserve: depth - (depth / 4).min(2 * STRIDE),
            stride: (depth / 4).min(STRIDE),
            max_frame: config.max_frame,
            live: false,
            current: 0,
            ring: ManuallyDrop::new(Ring::new(space, config.depth)?),
            contexts: Box::new([None; CONTEXTS]),
            bdf,
            regs,
        })
    }

    /// Enables the queue. The gate must be open.
    ///
    /// # Errors
    /// [`Error::State`] where the gate is closed, [`Error::Timeout`], [`Error::Removed`].
    pub fn start(&mut self) -> Result<()> {
        let epoch = self.gate.epoch();
        if !runs(epoch) {
            return Err(Error::State { bdf: self.bdf, what: "open the queue's gate before starting it" });
        }
        if self.live && epoch == self.epoch {
            // Started before in this epoch: the device may be using the ring.
            self.regs.disable(self.bdf, "stopping a TX queue to start it again")?;
        }
        self.flush(&mut drop);
        self.epoch = epoch;
        self.bring_up()
    }

    /// The gate has a new epoch: what the ring holds goes home, and the queue comes up afresh if it may.
    #[cold]
    #[inline(never)]
    fn follow(&mut self, pool: &mut PoolCache) {
        self.epoch = self.gate.epoch();
        self.flush(&mut |mbuf| pool.give(mbuf));
        if runs(self.epoch) {
            let broken = self.bring_up().is_err();
            self.gate.set_broken(broken);
        }
    }

    /// Programs an empty ring (4.5.10).
    fn bring_up(&mut self) -> Result<()> {
        // From here on the device may know the ring, whatever fails.
        self.live = true;
        self.regs.set_ring(self.ring.iova(), self.ring.bytes());
        // Completion is reported in the descriptors, not by the head.
        self.regs.write(offset::WRITE_BACK_LOW, 0);
        self.regs.write(offset::WRITE_BACK_HIGH, 0);
        self.regs.enable(THRESHOLDS, self.bdf, "enabling a TX queue")
    }

    /// Takes every frame out. The device must not use the ring any more.
    fn flush(&mut self, give: &mut dyn FnMut(Mbuf)) {
        self.counters.drop_frames(Reason::TxFlushed, self.frames.len().into());
        while let Some(mbuf) = self.frames.pop() {
            give(mbuf);
        }
        self.frames.clear_marks();
        self.live = false;
        *self.contexts = [None; CONTEXTS];
        self.cursor = Cursor { index: 0, free: self.ring.depth() - 1 };
        for index in 0..self.ring.depth() {
            // SAFETY: below the depth.
            unsafe { self.ring.write(index, 0, 0) };
        }
    }

    /// Writes the descriptors of the first frames of `burst`, as many as fit and are not refused, at
    /// most about a stride of them.
    #[inline]
    fn describe(&mut self, burst: &mut [Mbuf]) -> Described {
        let mut done = Described { frames: 0, bytes: 0, last: (0, 0), refusal: None };
        let before = self.cursor.free;
        while done.frames < burst.len() && before - self.cursor.free < self.stride {
            self.describe_plain(&burst[done.frames..], &mut done);
            let Some(mbuf) = burst.get_mut(done.frames) else { break };
            if before - self.cursor.free >= self.stride {
                break;
            }
            match self.describe_complex(mbuf) {
                Ok((last, len)) => {
                    done.last = last;
                    done.bytes += u64::from(len);
                    done.frames += 1;
                }
                Err(refusal) => {
                    done.refusal = Some(refusal);
                    break;
                }
            }
        }
        done
    }

    /// Writes the descriptors of plain frames: one buffer, nothing asked for.
    ///
    /// The loop calls nothing that returns, so that everything it needs stays in registers.
    #[inline]
    fn describe_plain(&mut self, burst: &[Mbuf], done: &mut Described) {
        let (Cursor { mut index, free }, depth) = (self.cursor, self.ring.depth());
        let span = self.max_frame.saturating_sub(LEAST);
        let most = burst.len().min(free.min(self.stride) as usize);
        let (mut count, mut bytes) = (0, 0);
        for mbuf in &burst[..most] {
            let len = mbuf.len();
            let plain = (mbuf.offload().flags == 0)
                & mbuf.next().is_none()
                & (u32::from(len).wrapping_sub(LEAST) <= span);
            if !plain {
                break;
            }
            let word1 = DATA | END_OF_PACKET | data_len(len) | payload_len(len.into());
            // SAFETY: the cursor's index is below the depth, and stays there.
            unsafe { self.ring.write(index, mbuf.iova(), word1) };
            done.last = (index, word1);
            index = if index + 1 == depth { 0 } else { index + 1 };
            bytes += u64::from(len);
            count += 1;
        }
        self.cursor = Cursor { index, free: free - count };
        done.bytes += bytes;
        done.frames += count as usize;
    }

    /// Writes the descriptors of one frame of any kind; or none of them.
    #[inline(never)]
    fn describe_complex(&mut self, mbuf: &mut Mbuf) -> std::result::Result<((u32, u64), u32), Refusal> {
        let cursor = self.cursor;
        let (len, segments) = extent(mbuf).map_err(Refusal::Never)?;
        let (context, fresh) = self.context(mbuf, len).map_err(Refusal::Never)?;
        let needed = segments + u32::from(fresh);
        if needed >= self.ring.depth() {
            return Err(Refusal::Never(Reason::TooManyTxSegments));
        }
        if needed > cursor.free {
            return Err(Refusal::Full);
        }
        let mut index = cursor.index;
        let mut common = DATA | payload_len(len);
        if let Some((at, context)) = context {
            if fresh {
                // SAFETY: the cursor's index is below the depth: `after` keeps it there.
                unsafe { self.ring.write(index, context.word0, context.word1 | context_index(at)) };
                index = self.ring.after(index);
                self.contexts[at] = Some(context);
            }
            self.current = at as u8;
            common = context.data | context_index(at) | payload_len(len - context.headers);
        }
        let mut last = (index, 0);
        for (n, segment) in (1..).zip(mbuf.chained()) {
            let end = if n == segments { END_OF_PACKET } else { 0 };
            last = (index, common | end | data_len(segment.len()));
            // SAFETY: as above.
            unsafe { self.ring.write(index, segment.iova(), last.1) };
            index = self.ring.after(index);
        }
        self.cursor = Cursor { index, free: cursor.free - needed };
        Ok((last, len))
    }

    /// The context that a frame of `len` bytes needs, if any, its place in the device's table, and
    /// whether it has to be put there.
    fn context(
        &self,
        mbuf: &Mbuf,
        len: u32,
    ) -> std::result::Result<(Option<(usize, Context)>, bool), Reason> {
        let (offload, vlan) = (mbuf.offload(), mbuf.vlan());
        if offload.flags == 0 {
            let fits = len <= self.max_frame;
            return if fits { Ok((None, false)) } else { Err(Reason::BadLength) };
        }
        let current = usize::from(self.current) % CONTEXTS;
        let other = (current + 1) % CONTEXTS;
        let known = [current, other]
            .into_iter()
            .find_map(|at| self.contexts[at].filter(|c| c.serves(offload, vlan)).map(|c| (at, c)));
        let (at, context) = match known {
            Some(known) => known,
            None => (other, Context::new(offload, vlan, self.max_frame).ok_or(Reason::BadOffload)?),
        };
        if len > context.most {
            return Err(if context.headers > 0 { Reason::BadOffload } else { Reason::BadLength });
        }
        if len < context.least || context.headers > mbuf.len().into() {
            return Err(Reason::BadOffload);
        }
        Ok((Some((at, context)), known.is_none()))
    }

    /// Makes the last descriptor written report, and hands the frames over to the ring's care.
    #[inline]
    fn hold(&mut self, burst: &mut Burst, done: &Described, descriptors: u32) {
        let (index, word1) = done.last;
        // SAFETY: it was written just now, so it is below the depth.
        unsafe { self.ring.write_word1(index, word1 | REPORT) };
        self.frames.hold(burst, done.frames);
        self.frames.mark(Mark { index, frames: done.frames as u32, descriptors });
    }

    /// Looks at the descriptors that report, oldest first.
    #[inline]
    fn collect(&mut self, pool: &mut PoolCache) -> usize {
        let mut frames = 0;
        while let Some(mark) = self.frames.first_mark() {
            // SAFETY: marks are indices of descriptors.
            if unsafe { self.ring.word1(mark.index) } & DONE == 0 {
                break;
            }
            frames += mark.frames;
            self.cursor.free += mark.descriptors;
            self.frames.pass_mark();
        }
        if frames > 0 {
            self.frames.give(frames, pool);
            self.counters.completed.add(frames.into());
        }
        frames as usize
    }
}

/// Bytes and segments of a frame as its segments have them. A frame that is too short for the device,
/// but no shorter than a header, is padded where it has the room.
fn extent(mbuf: &mut Mbuf) -> std::result::Result<(u32, u32), Reason> {
    let (mut len, mut segments) = (0, 0);
    for segment in mbuf.chained() {
        segments += 1;
        if segments > MOST_SEGMENTS {
            return Err(Reason::TooManyTxSegments);
        }
        if segment.len() == 0 {
            return Err(Reason::BadLength);
        }
        len += u32::from(segment.len());
    }
    if len >= LEAST {
        return Ok((len, segments));
    }
    let padding = &[0; LEAST as usize][len as usize..];
    if len < ETHERNET || segments > 1 || !mbuf.append(padding) {
        return Err(Reason::BadLength);
    }
    Ok((LEAST, 1))
}

impl TxQueue for IgbTx {
    fn post(&mut self, pool: &mut PoolCache, burst: &mut Burst) -> usize {
        if self.gate.epoch() != self.epoch {
            self.follow(pool);
        }
        if !self.live {
            return 0;
        }
        if self.cursor.free < self.reserve {
            self.collect(pool);
        }
        let before = burst.len();
        let (mut frames, mut bytes) = (0, 0);
        while !burst.is_empty() {
            let free = self.cursor.free;
            let done = self.describe(burst);
            if done.frames > 0 {
                frames += done.frames as u64;
                bytes += done.bytes;
                self.hold(burst, &done, free - self.cursor.free);
            }
            match done.refusal {
                None => {}
                Some(Refusal::Full) => break,
                Some(Refusal::Never(reason)) => {
                    self.counters.drop_frames(reason, 1);
                    pool.give_burst(burst, 1);
                }
            }
        }
        if frames > 0 {
            self.counters.burst(frames, bytes);
            // The descriptors must be in memory before the device hears of them.
            fence(Ordering::Release);
            self.regs.set_tail(self.cursor.index);
        }
        before - burst.len()
    }

    fn reap(&mut self, pool: &mut PoolCache) -> usize {
        if self.gate.epoch() != self.epoch {
            self.follow(pool);
        }
        self.collect(pool)
    }

    fn in_flight(&self) -> usize {
        self.frames.len() as usize
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

impl Drop for IgbTx {
    /// Stops the queue where the port has not. A device that does not stop keeps its ring and buffers:
    /// they are never freed then, see [`super::queue::abandoned`].
    fn drop(&mut self) {
        let ours = self.live && runs(self.epoch) && self.gate.epoch() == self.epoch;
        if ours && matches!(self.regs.disable(self.bdf, "stopping a TX queue"), Err(Error::Timeout { .. })) {
            count_abandoned();
            self.gate.set_broken(true);
            while let Some(mbuf) = self.frames.pop() {
                forget(mbuf);
            }
            return;
        }
        self.flush(&mut drop);
        // SAFETY: dropped once, here; the device does not use it any more.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
    }
}
