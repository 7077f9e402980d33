//! A memory BAR: registers that are mapped into this process, or reached through messages.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// Register access by message, for backends whose BARs cannot be mapped.
///
/// An access that fails answers all ones, as a missing PCI function does, and the backend keeps the
/// reason; a write that fails is dropped.
pub trait RegisterIo: Send + Sync {
    /// Reads 32 bits at `offset`, which is in bounds and aligned.
    fn read32(&self, offset: usize) -> u32;
    /// Writes 32 bits at `offset`, which is in bounds and aligned.
    fn write32(&self, offset: usize, value: u32);
}

/// Memory that holds registers, with whatever keeps it mapped.
///
/// # Safety
/// For as long as the value lives, `base` to `base + len` must be mapped readable and writable, be
/// page-aligned, and be accessed by nobody in this process other than through [`Bar`].
pub unsafe trait RegisterMapping: Send + Sync {
    /// The first byte.
    fn base(&self) -> NonNull<u8>;
    /// The length in bytes.
    fn len(&self) -> usize;
    /// True where nothing is mapped.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone)]
enum Access {
    Mapped { base: NonNull<u8>, _keep: Arc<dyn RegisterMapping> },
    Trapped(Arc<dyn RegisterIo>),
}

/// A memory BAR's registers, 32 bits at a time. Cheap to clone; clones see the same registers.
#[derive(Clone)]
pub struct Bar {
    access: Access,
    len: usize,
}

// SAFETY: `base` points at device registers that stay mapped while `_keep` lives; each access is one
// volatile 32-bit load or store, which the hardware orders itself, so threads may share it.
unsafe impl Send for Bar {}
// SAFETY: as for `Send`.
unsafe impl Sync for Bar {}

impl Bar {
    /// Registers that are mapped into this process.
    pub fn mapped(mapping: Arc<dyn RegisterMapping>) -> Self {
        Self { len: mapping.len(), access: Access::Mapped { base: mapping.base(), _keep: mapping } }
    }

    /// Registers reached through messages; `len` is the BAR's length in bytes.
    pub fn trapped(io: Arc<dyn RegisterIo>, len: usize) -> Self {
        Self { access: Access::Trapped(io), len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a BAR of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads the register at `offset`. All ones where `offset` is out of bounds or unaligned: a wrong
    /// offset reads like an absent device, it never reads other memory.
    #[inline]
    pub fn read32(&self, offset: usize) -> u32 {
        if !self.holds(offset) {
            return u32::MAX;
        }
        match &self.access {
            Access::Mapped { base, .. } => {
                // SAFETY: in bounds and aligned (checked above), and mapped while `_keep` lives.
                u32::from_le(unsafe { base.as_ptr().add(offset).cast::<u32>().read_volatile() })
            }
            Access::Trapped(io) => io.read32(offset),
        }
    }

    /// Writes the register at `offset`; dropped where out of bounds or unaligned.
    ///
    /// Does not order earlier stores to DMA memory: put a Release fence before a doorbell.
    #[inline]
    pub fn write32(&self, offset: usize, value: u32) {
        if !self.holds(offset) {
            return;
        }
        match &self.access {
            // SAFETY: in bounds and aligned (checked above), and mapped while `_keep` lives.
            Access::Mapped { base, .. } => unsafe {
                base.as_ptr().add(offset).cast::<u32>().write_volatile(value.to_le());
            },
            Access::Trapped(io) => io.write32(offset, value),
        }
    }

    /// Sets the bits of `set`, clears those of `clear`, leaves the others (read, then write).
    pub fn modify32(&self, offset: usize, clear: u32, set: u32) {
        self.write32(offset, self.read32(offset) & !clear | set);
    }

    fn holds(&self, offset: usize) -> bool {
        offset.is_multiple_of(4) && offset < self.len && self.len - offset >= 4
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.access {
            Access::Mapped { .. } => "mapped",
            Access::Trapped(_) => "trapped",
        };
        write!(f, "Bar({access}, {:#x} bytes)", self.len)
    }
}
