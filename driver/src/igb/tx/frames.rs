//! [`Frames`]: what a TX ring holds, in the order it was posted: the buffers, and the descriptors whose
//! completion sends them home.
//!
//! Nothing in here comes from the device.
#![allow(unsafe_code)]

use std::mem::{MaybeUninit, forget};

use dataplane::{Burst, MAX_BURST, Mbuf, PoolCache};

use crate::igb::ring::{Place, prefetch_description};

/// How many frames ahead a description is fetched.
const AHEAD: u32 = 4;

/// A descriptor that reports: once it is done, so is everything posted before it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Mark {
    /// The descriptor.
    pub(super) index: u32,
    /// Frames since the mark before.
    pub(super) frames: u32,
    /// Descriptors since the mark before.
    pub(super) descriptors: u32,
}

/// A place of the queue: a buffer, or the bits of one that has left, or zeros.
#[repr(transparent)]
struct Slot(MaybeUninit<Mbuf>);

// SAFETY: written with zeros at first, and only with buffers afterwards.
unsafe impl Place for Slot {}

/// Two queues of the same room: frames, and marks among them.
pub(super) struct Frames {
    mbufs: Box<[Slot]>,
    marks: Box<[Mark]>,
    mask: u32,
    /// Counts of frames ever taken out and put in; places are these under the mask.
    head: u32,
    tail: u32,
    mark_head: u32,
    mark_tail: u32,
}

impl Frames {
    /// Room for the frames and marks of `descriptors` descriptors.
    pub(super) fn new(descriptors: u32) -> Self {
        let room = descriptors.next_power_of_two();
        Self {
            mbufs: (0..room).map(|_| Slot(MaybeUninit::zeroed())).collect(),
            marks: (0..room).map(|_| Mark::default()).collect(),
            mask: room - 1,
            head: 0,
            tail: 0,
            mark_head: 0,
            mark_tail: 0,
        }
    }

    /// Frames in it.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    #[inline]
    fn room(&self) -> u32 {
        self.mask + 1 - self.len()
    }

    /// Moves the first `n` frames of `burst` in; as many as there is room for.
    #[inline]
    pub(super) fn hold(&mut self, burst: &mut Burst, n: usize) {
        let n = n.min(self.room() as usize);
        for mbuf in burst.drain_front(n) {
            // SAFETY: the mask keeps it in bounds. There is room, so the place holds nothing.
            unsafe { self.mbufs.get_unchecked_mut((self.tail & self.mask) as usize).0.write(mbuf) };
            self.tail = self.tail.wrapping_add(1);
        }
    }

    /// Takes the oldest out.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Mbuf> {
        // SAFETY: it is not empty.
        (self.len() > 0).then(|| unsafe { self.pop_unchecked() })
    }

    /// # Safety
    /// It is not empty.
    #[inline]
    unsafe fn pop_unchecked(&mut self) -> Mbuf {
        let place = (self.head & self.mask) as usize;
        self.head = self.head.wrapping_add(1);
        // SAFETY: the mask keeps it in bounds; places from `head` to `tail` hold buffers, and having moved
        // `head` gives this one up.
        unsafe { self.mbufs.get_unchecked(place).0.assume_init_read() }
    }

    /// Gives the buffers of the oldest `n` frames to `pool`.
    #[inline]
    pub(super) fn give(&mut self, n: u32, pool: &mut PoolCache) {
        let mut left = n.min(self.len());
        while left > 0 {
            let mut burst = Burst::new();
            let some = left.min(MAX_BURST as u32);
            for _ in 0..some {
                let ahead = self.head.wrapping_add(AHEAD) & self.mask;
                // SAFETY: the mask keeps it in bounds.
                prefetch_description(unsafe { self.mbufs.get_unchecked(ahead as usize) });
                // SAFETY: there are at least `n`. The burst has room.
                let _ = burst.push(unsafe { self.pop_unchecked() }).map_err(forget);
            }
            pool.give_burst(&mut burst, MAX_BURST);
            left -= some;
        }
    }

    /// Notes a descriptor that reports.
    #[inline]
    pub(super) fn mark(&mut self, mark: Mark) {
        if let Some(place) = self.marks.get_mut((self.mark_tail & self.mask) as usize) {
            *place = mark;
            self.mark_tail = self.mark_tail.wrapping_add(1);
        }
    }

    /// The oldest mark.
    #[inline]
    pub(super) fn first_mark(&self) -> Option<Mark> {
        if self.mark_head == self.mark_tail {
            return None;
        }
        self.marks.get((self.mark_head & self.mask) as usize).copied()
    }

    /// Forgets the oldest mark.
    #[inline]
    pub(super) fn pass_mark(&mut self) {
        self.mark_head = self.mark_head.wrapping_add(1);
    }

    /// Forgets all marks.
    pub(super) fn clear_marks(&mut self) {
        self.mark_head = self.mark_tail;
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use dataplane::{Mempool, PoolConfig};
    use pci::IovaSpace;

    use super::*;

    #[test]
    fn frames_leave_in_order_across_the_wrap_and_none_is_lost() {
        let config = PoolConfig { capacity: 64, room: 64, ..PoolConfig::default() };
        let pool = Mempool::new(&IovaSpace::software(), config).unwrap();
        let mut cache = pool.cache();
        let mut frames = Frames::new(12);
        frames.tail = u32::MAX - 20;
        frames.head = frames.tail;
        for round in 0..20u8 {
            let mut burst = Burst::new();
            for n in 0..13 {
                let mut mbuf = cache.take().unwrap();
                assert!(mbuf.append(&[round, n]));
                burst.push(mbuf).unwrap();
            }
            frames.hold(&mut burst, 13);
            assert_eq!((frames.len(), burst.len()), (13, 0));
            for n in 0..9 {
                assert_eq!(frames.pop().unwrap().data(), [round, n]);
            }
            frames.give(100, &mut cache);
            assert_eq!(frames.len(), 0);
        }
        let mut burst = Burst::new();
        assert_eq!(cache.take_burst(&mut burst, 20), 20);
        frames.hold(&mut burst, 20);
        assert_eq!((frames.len(), burst.len()), (16, 4));
        drop((burst, frames, cache));
        assert_eq!(pool.available(), 64);
    }

    #[test]
    fn marks_leave_in_order() {
        let mut frames = Frames::new(32);
        assert_eq!(frames.first_mark(), None);
        for round in 0..100 {
            let mark = |n| Mark { index: round, frames: n, descriptors: 1 };
            frames.mark(mark(1));
            frames.mark(mark(2));
            assert_eq!(frames.first_mark(), Some(mark(1)));
            frames.pass_mark();
            assert_eq!(frames.first_mark(), Some(mark(2)));
            frames.clear_marks();
            assert_eq!(frames.first_mark(), None);
        }
    }
}
