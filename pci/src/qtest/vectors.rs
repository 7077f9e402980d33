//! MSI-X vectors as words of RAM: the device's message writes a word, the keeper finds it written and
//! fires the vector's eventfd.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

use memmap2::MmapRaw;

use crate::interrupt::{Interrupt, fire};
use crate::{Error, Result};

/// Where the words begin in RAM. The first page is left alone, so that a message that was never
/// programmed (address 0) is nobody's.
const FIRST: usize = 0x1000;
/// How many words there may be: up to the hole below 1 MiB there is room for many more.
const MOST: usize = 0x8000;
/// What a message writes. Anything but zero does.
const WRITTEN: u32 = 1;

/// All words of a machine.
pub(super) struct Vectors {
    ram: Arc<MmapRaw>,
    slots: Mutex<Vec<Option<OwnedFd>>>,
    /// Who looks. It sleeps while there is nothing to watch.
    keeper: OnceLock<Thread>,
}

/// One vector's word.
pub(super) struct Word {
    slot: usize,
}

impl Word {
    /// What goes into the vector's MSI-X table entry: address low, address high, data.
    pub(super) fn message(&self) -> [u32; 3] {
        [(FIRST + 4 * self.slot) as u32, 0, WRITTEN]
    }
}

impl Vectors {
    /// No vectors yet, in `ram`, which has at least a mebibyte.
    pub(super) fn new(ram: Arc<MmapRaw>) -> Self {
        Self { ram, slots: Mutex::default(), keeper: OnceLock::new() }
    }

    /// Names the thread that calls [`Vectors::look`].
    pub(super) fn keeper_is(&self, keeper: Thread) {
        let _ = self.keeper.set(keeper);
    }

    /// A word for `interrupt`, watched from now on.
    pub(super) fn watch(&self, interrupt: &Interrupt) -> Result<Word> {
        let event = interrupt.as_fd().try_clone_to_owned();
        let event = event.map_err(|e| Error::io("duplicating a vector's eventfd", e))?;
        let mut slots = self.lock();
        let free = slots.iter().position(Option::is_none);
        let slot = free.unwrap_or(slots.len());
        if slot == MOST {
            return Err(Error::Peer { peer: "QEMU".into(), what: "all MSI-X words are in use".into() });
        }
        if slot == slots.len() {
            slots.push(None);
        }
        self.take(slot);
        slots[slot] = Some(event);
        if let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
        Ok(Word { slot })
    }

    /// Stops watching. The device must have stopped sending to it.
    pub(super) fn release(&self, word: &Word) {
        self.lock()[word.slot] = None;
    }

    /// Fires the vectors whose words were written; false where there is none to watch.
    pub(super) fn look(&self) -> bool {
        let slots = self.lock();
        let mut any = false;
        for (slot, event) in slots.iter().enumerate() {
            let Some(event) = event else { continue };
            any = true;
            if self.take(slot) {
                fire(event.as_fd());
            }
        }
        any
    }

    /// Clears a word, and says whether it was written. One swap: a message that comes just after it is
    /// found the next time, never lost. Acquire: what the device wrote before the message is seen.
    fn take(&self, slot: usize) -> bool {
        let at = FIRST + 4 * slot;
        // SAFETY: `at` is in the mapping (below a mebibyte) and aligned, the mapping lives as long as
        // `self`, and both processes access the word atomically only.
        let word = unsafe { AtomicU32::from_ptr(self.ram.as_mut_ptr().add(at).cast()) };
        word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::Acquire) != 0
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<OwnedFd>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
