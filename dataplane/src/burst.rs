//! [`Burst`]: up to [`MAX_BURST`] buffers that travel together.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use crate::Mbuf;

/// Buffers in a burst at the most.
pub const MAX_BURST: usize = 64;

/// A bounded vector of buffers, on the stack or in a worker. A slice of [`Mbuf`]s to look at.
pub struct Burst {
    len: usize,
    mbufs: [MaybeUninit<Mbuf>; MAX_BURST],
}

impl Burst {
    /// An empty burst.
    #[inline]
    pub const fn new() -> Self {
        Self { len: 0, mbufs: [const { MaybeUninit::uninit() }; MAX_BURST] }
    }

    /// How many more it takes.
    #[inline]
    pub fn room(&self) -> usize {
        MAX_BURST - self.len
    }

    /// Appends; gives the buffer back where the burst is full.
    ///
    /// # Errors
    /// The buffer itself.
    #[inline]
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        match self.mbufs.get_mut(self.len) {
            Some(place) => {
                place.write(mbuf);
                self.len += 1;
                Ok(())
            }
            None => Err(mbuf),
        }
    }

    /// Takes the last.
    #[inline]
    pub fn pop(&mut self) -> Option<Mbuf> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: places below the old `len` are initialised; `len` no longer covers this one.
        Some(unsafe { self.mbufs[self.len].assume_init_read() })
    }

    /// Takes the first `n` (or all there are) out, in order; what the iterator is not asked for is dropped.
    #[inline]
    pub fn drain_front(&mut self, n: usize) -> Front<'_> {
        let n = n.min(self.len);
        let rest = self.len - n;
        // The burst owns nothing while the iterator lives: should that leak, buffers leak, none is freed
        // twice.
        self.len = 0;
        Front { burst: self, at: 0, n, rest }
    }

    /// Appends `n` buffers that `fill` writes as a slice; nothing where there is less room.
    ///
    /// # Safety
    /// `fill` must write every place that it is given.
    #[inline]
    pub(crate) unsafe fn extend_with(&mut self, n: usize, fill: impl FnOnce(&mut [MaybeUninit<Mbuf>])) {
        if let Some(places) = self.mbufs.get_mut(self.len..self.len + n) {
            fill(places);
            self.len += n;
        }
    }

    /// Forgets the first `n`, which the caller has moved elsewhere.
    ///
    /// # Safety
    /// `n` is at most the length, and each of the first `n` has been read out exactly once.
    #[inline]
    pub(crate) unsafe fn forget_front(&mut self, n: usize) {
        let rest = self.len - n;
        self.close_gap(n, rest);
    }

    #[inline]
    fn close_gap(&mut self, n: usize, rest: usize) {
        if rest > 0 && n > 0 {
            let base = self.mbufs.as_mut_ptr();
            // SAFETY: `n + rest` places are in bounds; a move of plain pointers that may overlap.
            unsafe { std::ptr::copy(base.add(n), base, rest) };
        }
        self.len = rest;
    }
}

/// The buffers that [`Burst::drain_front`] takes out.
pub struct Front<'a> {
    burst: &'a mut Burst,
    at: usize,
    n: usize,
    rest: usize,
}

impl Iterator for Front<'_> {
    type Item = Mbuf;

    #[inline]
    fn next(&mut self) -> Option<Mbuf> {
        let place = self.burst.mbufs[..self.n].get(self.at)?;
        self.at += 1;
        // SAFETY: initialised, and read once: `at` has moved on.
        Some(unsafe { place.assume_init_read() })
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.n - self.at, Some(self.n - self.at))
    }
}

impl ExactSizeIterator for Front<'_> {}

impl Drop for Front<'_> {
    #[inline]
    fn drop(&mut self) {
        self.by_ref().for_each(drop);
        self.burst.close_gap(self.n, self.rest);
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Burst {
    type Target = [Mbuf];
    #[inline]
    fn deref(&self) -> &[Mbuf] {
        // SAFETY: places below `len` are initialised, `MaybeUninit<Mbuf>` has `Mbuf`'s layout.
        unsafe { std::slice::from_raw_parts(self.mbufs.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Burst {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Mbuf] {
        // SAFETY: as for `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.mbufs.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        drop(self.drain_front(MAX_BURST));
    }
}
