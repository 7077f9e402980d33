//! [`PoolCache`]: one core's own stock of buffers.

use std::mem::MaybeUninit;

use super::{Mempool, Ordering};
use crate::{Burst, Mbuf};

/// Buffers a cache holds at the most.
const ROOM: usize = 512;
/// Buffers moved between the cache and the pool at a time.
const CHAIN: usize = 256;

/// One core's stock of a pool's buffers: last in, first out, so that what was just freed, and is still
/// in the core's cache, is used next.
pub struct PoolCache {
    pool: Mempool,
    len: usize,
    /// Taken from the free list less given back to it.
    drawn: isize,
    mbufs: Box<[MaybeUninit<Mbuf>; ROOM]>,
}

impl PoolCache {
    pub(super) fn new(pool: Mempool) -> Self {
        Self { pool, len: 0, drawn: 0, mbufs: Box::new([const { MaybeUninit::uninit() }; ROOM]) }
    }

    /// The pool behind it.
    pub fn pool(&self) -> &Mempool {
        &self.pool
    }

    /// Buffers in stock.
    pub fn stock(&self) -> usize {
        self.len
    }

    /// Takes one buffer, reset; nothing where the pool is empty.
    #[inline]
    pub fn take(&mut self) -> Option<Mbuf> {
        let mut mbuf = self.take_raw()?;
        mbuf.reset();
        Some(mbuf)
    }

    /// Takes one buffer with the leftovers of its last use in its description, for drivers that call
    /// [`Mbuf::received`] once the device has written it.
    #[inline]
    pub fn take_raw(&mut self) -> Option<Mbuf> {
        if self.len == 0 && self.refill() == 0 {
            return None;
        }
        self.len -= 1;
        // SAFETY: places below the old `len` are initialised; `len` no longer covers this one.
        Some(unsafe { self.mbufs[self.len].assume_init_read() })
    }

    /// Appends `n` buffers to `burst`, or as many as the pool and the burst have; returns how many. Their
    /// descriptions hold the leftovers of their last use: call [`Mbuf::received`] or [`Mbuf::reset`].
    #[inline]
    pub fn take_burst(&mut self, burst: &mut Burst, n: usize) -> usize {
        let n = n.min(burst.room());
        if self.len < n {
            self.refill();
        }
        let n = n.min(self.len);
        let from = self.len - n;
        // One by one is common where latency counts, and there a call of memcpy is most of the work.
        if n == 1 {
            // SAFETY: initialised, and given up by lowering `len`; the closure writes its one place.
            unsafe {
                burst.extend_with(1, |places| {
                    places[0].write(self.mbufs.get_unchecked(from).assume_init_read());
                });
            }
            self.len = from;
            return 1;
        }
        // SAFETY: `from..len` is initialised and given up by lowering `len`; the closure writes every
        // place, since both slices have `n`.
        unsafe {
            burst.extend_with(n, |places| {
                let source = self.mbufs.as_ptr().add(from);
                std::ptr::copy_nonoverlapping(source, places.as_mut_ptr(), n);
            });
        }
        self.len = from;
        n
    }

    /// Gives one frame's buffers back, whichever pool they are from.
    #[inline]
    pub fn give(&mut self, mbuf: Mbuf) {
        if !self.is_simple(&mbuf) {
            self.give_chain(mbuf);
            return;
        }
        if self.len == ROOM {
            self.flush(CHAIN);
        }
        self.mbufs[self.len].write(mbuf);
        self.len += 1;
    }

    /// Gives the first `n` frames of `burst` back.
    #[inline]
    pub fn give_burst(&mut self, burst: &mut Burst, n: usize) {
        let n = n.min(burst.len());
        if n == 1 {
            burst.drain_front(1).for_each(|mbuf| self.give(mbuf));
            return;
        }
        if !burst[..n].iter().fold(true, |all, mbuf| all & self.is_simple(mbuf)) {
            burst.drain_front(n).for_each(|mbuf| self.give(mbuf));
            return;
        }
        if self.len + n > ROOM {
            self.flush(CHAIN);
        }
        // SAFETY: a burst is far smaller than what a flush makes room for, so `len + n` places are in
        // bounds; each of the first `n` is moved once and then forgotten by the burst.
        unsafe {
            let target = self.mbufs.as_mut_ptr().add(self.len).cast::<Mbuf>();
            std::ptr::copy_nonoverlapping(burst.as_ptr(), target, n);
            burst.forget_front(n);
        }
        self.len += n;
    }

    /// True for an unchained buffer of this cache's pool.
    #[inline]
    fn is_simple(&self, mbuf: &Mbuf) -> bool {
        let header = mbuf.header();
        (header.pool == self.pool.0.0) & header.next.is_none()
    }

    #[cold]
    fn give_chain(&mut self, mut mbuf: Mbuf) {
        let mut next = mbuf.take_next();
        loop {
            if mbuf.header().pool == self.pool.0.0 {
                self.give(mbuf);
            } else {
                drop(mbuf);
            }
            let Some(mut following) = next else { return };
            next = following.take_next();
            mbuf = following;
        }
    }

    /// Draws from the pool; returns how many.
    #[cold]
    fn refill(&mut self) -> usize {
        let mut indices = [0; CHAIN];
        let got = self.pool.shared().free.pop(&mut indices[..CHAIN.min(ROOM - self.len)]);
        for &index in &indices[..got] {
            // SAFETY: popped just now, so this cache owns it.
            self.mbufs[self.len].write(unsafe { self.pool.shared().mbuf(index) });
            self.len += 1;
        }
        self.drawn += got as isize;
        got
    }

    /// Gives the `n` oldest (coldest) buffers back to the pool.
    #[cold]
    fn flush(&mut self, n: usize) {
        let n = n.min(self.len).min(CHAIN);
        let mut indices = [0; CHAIN];
        for (index, place) in indices.iter_mut().zip(&self.mbufs[..n]) {
            // SAFETY: initialised; only looked at. The places are overwritten or given up below.
            *index = self.pool.shared().index(unsafe { place.assume_init_ref() });
        }
        self.mbufs.copy_within_uninit(n, self.len);
        self.len -= n;
        self.drawn -= n as isize;
        self.pool.shared().free.push(&indices[..n]);
    }
}

/// Moves the tail of an array of places to its front.
trait CopyWithin {
    fn copy_within_uninit(&mut self, from: usize, to: usize);
}

impl CopyWithin for [MaybeUninit<Mbuf>; ROOM] {
    fn copy_within_uninit(&mut self, from: usize, to: usize) {
        let tail = &mut self[..to];
        if from < tail.len() {
            let base = tail.as_mut_ptr();
            // SAFETY: `from..to` is in bounds; plain pointers are moved to the front.
            unsafe { std::ptr::copy(base.add(from), base, to - from) };
        }
    }
}

impl Drop for PoolCache {
    fn drop(&mut self) {
        while self.len > 0 {
            self.flush(CHAIN);
        }
        // What went out through this cache and has not come back through it comes back the slow way.
        self.pool.shared().live.fetch_add(self.drawn, Ordering::AcqRel);
    }
}
