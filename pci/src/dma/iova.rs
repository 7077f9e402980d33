//! Which I/O virtual addresses are free.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// First fit over the ranges an IOMMU translates. Freed ranges join their neighbours.
#[derive(Debug, Clone, Default)]
pub struct IovaAllocator {
    /// Start to length of every free range; no two touch.
    free: BTreeMap<u64, u64>,
}

impl IovaAllocator {
    /// All of `ranges` is free.
    pub fn new(ranges: impl IntoIterator<Item = RangeInclusive<u64>>) -> Self {
        let mut allocator = Self::default();
        for range in ranges {
            let (start, end) = range.into_inner();
            // A range up to the last 64-bit address loses that last byte: its length would not fit.
            allocator.release(start, (end - start).saturating_add(1));
        }
        allocator
    }

    /// Takes the first `len` free bytes at a multiple of `align` (a power of two).
    pub fn take(&mut self, len: u64, align: u64) -> Option<u64> {
        let (start, size, at) = self.free.iter().find_map(|(&start, &size)| {
            let at = start.checked_next_multiple_of(align)?;
            (at - start <= size && size - (at - start) >= len).then_some((start, size, at))
        })?;
        self.free.remove(&start);
        if at > start {
            self.free.insert(start, at - start);
        }
        let tail = start + size - (at + len);
        if tail > 0 {
            self.free.insert(at + len, tail);
        }
        Some(at)
    }

    /// Gives back what [`IovaAllocator::take`] gave out.
    pub fn release(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (mut start, mut len) = (start, len);
        if let Some((&before, &size)) = self.free.range(..start).next_back()
            && before + size == start
        {
            self.free.remove(&before);
            (start, len) = (before, size + len);
        }
        if let Some(size) = self.free.remove(&(start + len)) {
            len += size;
        }
        self.free.insert(start, len);
    }

    /// Leaves free only what is in `ranges` too: a further domain's limits.
    ///
    /// What was taken before stays taken.
    pub fn restrict(&mut self, ranges: &[RangeInclusive<u64>]) {
        let free = std::mem::take(&mut self.free);
        for (start, len) in free {
            for range in ranges {
                let from = start.max(*range.start());
                let to = (start + (len - 1)).min(*range.end());
                if from <= to {
                    self.release(from, to - from + 1);
                }
            }
        }
    }

    /// Bytes free in all.
    pub fn available(&self) -> u64 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn restriction_keeps_the_common_part() {
        let mut allocator = IovaAllocator::new([0x1000..=0xffff]);
        allocator.restrict(&[0..=0x2fff, 0x5000..=u64::MAX]);
        assert_eq!(allocator.available(), 0x2000 + 0xb000);
        assert_eq!(allocator.take(0x3000, 0x1000), Some(0x5000));
    }

    proptest! {
        /// Whatever is taken and released: no overlap, in bounds, aligned, and all comes back as one range.
        #[test]
        fn takes_never_overlap_and_all_returns(steps in prop::collection::vec((1u64..0x9000, 0u32..14, any::<bool>()), 1..60)) {
            let mut allocator = IovaAllocator::new([0x1_0000..=0x8_ffff]);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (len, shift, release) in steps {
                if release && !held.is_empty() {
                    let (start, len) = held.swap_remove(len as usize % held.len());
                    allocator.release(start, len);
                } else if let Some(at) = allocator.take(len, 1 << shift) {
                    prop_assert!(at >= 0x1_0000 && at + len <= 0x9_0000 && at.is_multiple_of(1 << shift));
                    prop_assert!(held.iter().all(|&(s, l)| at + len <= s || s + l <= at));
                    held.push((at, len));
                }
            }
            for (start, len) in held.drain(..) {
                allocator.release(start, len);
            }
            prop_assert_eq!(allocator.take(0x8_0000, 1), Some(0x1_0000));
        }
    }
}
