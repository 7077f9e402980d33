//! [`Ring`]: descriptors in DMA memory. The device reads and writes them at any time: each access is
//! one atomic load or store of a word, no reference points at them.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dataplane::Mbuf;
use pci::{DmaMemory, IovaSpace, Sharing};

use crate::Result;

/// Bytes of a descriptor: two words of 64 bits, little-endian.
const DESCRIPTOR: usize = 16;

static ABANDONED: AtomicU64 = AtomicU64::new(0);

/// Rings of this process whose memory was given up, with all buffers in them, because their device did
/// not stop its DMA in time and nobody had reset it.
pub fn abandoned() -> u64 {
    ABANDONED.load(Ordering::Relaxed)
}

/// Counts one ring that is given up.
pub(super) fn count_abandoned() {
    ABANDONED.fetch_add(1, Ordering::Relaxed);
}

/// A descriptor ring.
pub(super) struct Ring {
    base: NonNull<u64>,
    depth: u32,
    memory: Box<DmaMemory>,
}

// SAFETY: `base` points into `memory`, which may be sent; every access is atomic.
unsafe impl Send for Ring {}

impl Ring {
    /// `depth` descriptors of zeros.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(space: &Arc<IovaSpace>, depth: u16) -> Result<Self> {
        // Pages are aligned to far more than the 128 bytes that the device asks for (8.10.5).
        let memory = space.allocate(usize::from(depth) * DESCRIPTOR, Sharing::Private)?;
        Ok(Self { base: memory.base().cast(), depth: depth.into(), memory: Box::new(memory) })
    }

    /// Descriptors.
    #[inline]
    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    /// Where the device sees the first.
    pub(super) fn iova(&self) -> u64 {
        self.memory.iova()
    }

    /// Length in bytes.
    pub(super) fn bytes(&self) -> u32 {
        self.depth * DESCRIPTOR as u32
    }

    /// The index after `index`.
    #[inline]
    pub(super) fn after(&self, index: u32) -> u32 {
        let next = index + 1;
        if next == self.depth { 0 } else { next }
    }

    /// The index `n` places before `index`; `n` is at most the depth.
    #[inline]
    pub(super) fn before(&self, index: u32, n: u32) -> u32 {
        if index >= n { index - n } else { index + self.depth - n }
    }

    /// Word 1, where the done bit is. Acquire: what the device wrote before it is seen afterwards.
    ///
    /// # Safety
    /// `index` is below the depth.
    #[inline]
    pub(super) unsafe fn word1(&self, index: u32) -> u64 {
        // SAFETY: by the caller's promise.
        u64::from_le(unsafe { self.word(index, 1) }.load(Ordering::Acquire))
    }

    /// Word 0.
    ///
    /// # Safety
    /// `index` is below the depth.
    #[inline]
    pub(super) unsafe fn word0(&self, index: u32) -> u64 {
        // SAFETY: by the caller's promise.
        u64::from_le(unsafe { self.word(index, 0) }.load(Ordering::Relaxed))
    }

    /// Writes both words. The device must not own the descriptor; it may after the next tail write.
    ///
    /// # Safety
    /// `index` is below the depth.
    #[inline]
    pub(super) unsafe fn write(&self, index: u32, word0: u64, word1: u64) {
        // SAFETY: by the caller's promise.
        unsafe {
            self.word(index, 0).store(word0.to_le(), Ordering::Relaxed);
            self.word(index, 1).store(word1.to_le(), Ordering::Relaxed);
        }
    }

    /// Writes word 1 alone.
    ///
    /// # Safety
    /// `index` is below the depth.
    #[inline]
    pub(super) unsafe fn write_word1(&self, index: u32, word1: u64) {
        // SAFETY: by the caller's promise.
        unsafe { self.word(index, 1) }.store(word1.to_le(), Ordering::Relaxed);
    }

    /// # Safety
    /// `index` is below the depth, `word` is 0 or 1.
    #[inline]
    unsafe fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        // SAFETY: inside the memory that `self` owns (two words a descriptor), aligned because the base
        // is page-aligned, and only ever accessed atomically.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(index as usize * 2 + word)) }
    }
}

/// Where a buffer may be.
///
/// # Safety
/// All its bytes are initialised, buffer or not.
pub(super) unsafe trait Place {}

// SAFETY: one pointer, null for `None`.
unsafe impl Place for Option<Mbuf> {}

/// Asks the processor for the cache line of the description of the buffer in `place`, ahead of its use.
///
/// An [`Mbuf`] is one pointer to its description. Should that change, this fetches something else: slower,
/// never wrong.
#[inline]
pub(super) fn prefetch_description<T: Place>(place: &T) {
    const { assert!(size_of::<T>() == size_of::<Mbuf>() && size_of::<T>() == size_of::<*const u8>()) };
    // SAFETY: as large and aligned as a pointer, and initialised; a copy of plain bits.
    let address = unsafe { std::ptr::from_ref(place).cast::<*const u8>().read() };
    prefetch(address);
}

/// Asks the processor for a cache line. Any address will do.
#[inline]
pub(super) fn prefetch(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: SSE is part of x86-64, and prefetching never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_wrap_in_both_directions() {
        let ring = Ring::new(&IovaSpace::software(), 40).unwrap();
        assert_eq!((ring.after(38), ring.after(39)), (39, 0));
        assert_eq!((ring.before(0, 1), ring.before(3, 3), ring.before(3, 40)), (39, 0, 3));
        assert_eq!(ring.bytes(), 640);
    }

    #[test]
    fn words_are_little_endian_where_the_device_looks() {
        let ring = Ring::new(&IovaSpace::software(), 32).unwrap();
        // SAFETY: 31 is below the depth; the bytes are inside the ring.
        unsafe {
            ring.write(31, 0x0807_0605_0403_0201, 2);
            ring.write_word1(31, 0x1122_3344_5566_7788);
            assert_eq!((ring.word0(31), ring.word1(31)), (0x0807_0605_0403_0201, 0x1122_3344_5566_7788));
            let bytes = ring.base.as_ptr().cast::<u8>().add(31 * 16);
            assert_eq!((bytes.read(), bytes.add(7).read(), bytes.add(8).read()), (1, 8, 0x88));
        }
    }
}
