//! The buffers that no core holds: a lock-free stack of indices that moves them in chains.
//!
//! A Treiber stack over an array of links. One compare-and-swap pushes or pops a whole chain, so a
//! core that refills its cache pays for it once in some hundred buffers. The head carries a tag that
//! every change increments: a chain walked while others changed the list is never taken (ABA).

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

const NIL: u32 = u32::MAX;

pub(super) struct FreeList {
    /// Tag in the upper, first index in the lower 32 bits.
    head: CachePadded<AtomicU64>,
    count: CachePadded<AtomicUsize>,
    next: Box<[AtomicU32]>,
}

impl FreeList {
    /// All indices below `capacity` are free; the lowest come out first.
    pub(super) fn full(capacity: u32) -> Self {
        let next = (1..=capacity).map(|n| AtomicU32::new(if n < capacity { n } else { NIL })).collect();
        let first = if capacity > 0 { 0 } else { NIL };
        Self {
            head: CachePadded::new(AtomicU64::new(first.into())),
            count: CachePadded::new(AtomicUsize::new(capacity as usize)),
            next,
        }
    }

    /// Pops up to `out.len()` indices; returns how many.
    pub(super) fn pop(&self, out: &mut [u32]) -> usize {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let mut index = head as u32;
            let mut taken = 0;
            while taken < out.len() && index != NIL {
                out[taken] = index;
                taken += 1;
                // May be stale while others pop: then the tag has moved on and the swap below fails.
                index = self.next[index as usize].load(Ordering::Relaxed);
            }
            if taken == 0 {
                return 0;
            }
            match self.head.compare_exchange(head, retag(head, index), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.count.fetch_sub(taken, Ordering::Relaxed);
                    return taken;
                }
                Err(now) => head = now,
            }
        }
    }

    /// Pushes indices that the caller owns.
    pub(super) fn push(&self, indices: &[u32]) {
        let (Some(&first), Some(&last)) = (indices.first(), indices.last()) else { return };
        for pair in indices.windows(2) {
            self.next[pair[0] as usize].store(pair[1], Ordering::Relaxed);
        }
        // Counted first: the count may say too much for a moment, it never falls below zero.
        self.count.fetch_add(indices.len(), Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            self.next[last as usize].store(head as u32, Ordering::Relaxed);
            match self.head.compare_exchange(head, retag(head, first), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// How many are free; exact while nobody pushes or pops.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

fn retag(head: u64, index: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | u64::from(index)
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// Two cores take and give back at once: no index is ever held twice, none is lost.
    #[test]
    fn loom_free_list_never_hands_out_twice() {
        loom::model(|| {
            let list = Arc::new(FreeList::full(3));
            let owners: Arc<Vec<AtomicU32>> = Arc::new((0..3).map(|_| AtomicU32::new(0)).collect());
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (list, owners) = (list.clone(), owners.clone());
                    thread::spawn(move || {
                        let mut held = [0; 2];
                        let n = list.pop(&mut held);
                        for &i in &held[..n] {
                            assert_eq!(owners[i as usize].fetch_add(1, Ordering::Relaxed), 0);
                        }
                        for &i in &held[..n] {
                            owners[i as usize].fetch_sub(1, Ordering::Relaxed);
                        }
                        list.push(&held[..n]);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            let mut all = [0; 4];
            assert_eq!(list.pop(&mut all), 3);
            let mut all = all[..3].to_vec();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2]);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_list_gives_nothing() {
        let list = FreeList::full(0);
        assert_eq!((list.pop(&mut [0; 4]), list.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn every_index_is_in_the_list_or_held(steps in prop::collection::vec((any::<bool>(), 0usize..9), 1..80)) {
            let list = FreeList::full(16);
            let mut held: Vec<u32> = Vec::new();
            for (take, n) in steps {
                if take {
                    let mut out = [0; 9];
                    let got = list.pop(&mut out[..n]);
                    prop_assert_eq!(got, n.min(16 - held.len()));
                    held.extend(&out[..got]);
                } else {
                    let n = n.min(held.len());
                    list.push(&held.split_off(held.len() - n));
                }
                let mut unique = held.clone();
                unique.sort_unstable();
                unique.dedup();
                prop_assert_eq!(unique.len(), held.len());
                prop_assert_eq!(list.len() + held.len(), 16);
            }
        }
    }
}
