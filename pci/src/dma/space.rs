//! [`IovaSpace`]: allocates DMA memory and keeps it mapped in every domain attached.
#![allow(unsafe_code)]

use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{HostMemory, IovaAllocator, PageSize, Sharing};
use crate::{Error, Result};

/// One translation table of an IOMMU, or whatever plays its part.
pub trait IommuDomain: Send + Sync {
    /// Lets devices of the domain reach `memory` at `iova`.
    ///
    /// # Errors
    /// Where the IOMMU refuses: limits, address in use.
    fn map(&self, iova: u64, memory: &HostMemory) -> Result<()>;

    /// Ends that. Devices that still reach for it fault.
    ///
    /// # Errors
    /// Where the IOMMU refuses.
    fn unmap(&self, iova: u64, len: usize) -> Result<()>;

    /// The addresses it translates.
    fn ranges(&self) -> Vec<RangeInclusive<u64>>;
}

/// A fixed piece of memory that a device model shares with this process: the address a device uses is
/// the offset in it.
pub struct Arena {
    /// The first byte, at I/O virtual address 0.
    pub base: NonNull<u8>,
    /// Keeps the memory mapped.
    pub keep: Arc<dyn std::any::Any + Send + Sync>,
    /// The offsets that may be given out.
    pub range: RangeInclusive<u64>,
}

// SAFETY: the memory behind `base` is kept by `keep`, which may itself be sent and shared.
unsafe impl Send for Arena {}

struct Mapping {
    iova: u64,
    memory: Arc<HostMemory>,
}

struct State {
    free: IovaAllocator,
    domains: Vec<Arc<dyn IommuDomain>>,
    mappings: Vec<Mapping>,
}

/// I/O virtual addresses, the memory behind them, and the domains that translate.
pub struct IovaSpace {
    name: String,
    arena: Option<Arena>,
    state: Mutex<State>,
}

// SAFETY: the only raw pointer is the arena's base, which is never written and only read to compute
// addresses; the rest is behind the mutex.
unsafe impl Sync for IovaSpace {}

impl IovaSpace {
    /// An empty space over `ranges`. Memory comes from the operating system.
    pub fn new(name: impl Into<String>, ranges: impl IntoIterator<Item = RangeInclusive<u64>>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), arena: None, state: State::over(IovaAllocator::new(ranges)) })
    }

    /// A space whose memory comes from `arena`, and whose addresses are offsets in it.
    pub fn over_arena(name: impl Into<String>, arena: Arena) -> Arc<Self> {
        let state = State::over(IovaAllocator::new([arena.range.clone()]));
        Arc::new(Self { name: name.into(), arena: Some(arena), state })
    }

    /// Addresses for memory that no IOMMU translates, for ports with no device behind them.
    pub fn software() -> Arc<Self> {
        Self::new("software", [0x1_0000_0000..=0xff_ffff_ffff])
    }

    /// Attaches a domain: all memory there is, and all to come, is mapped in it.
    ///
    /// # Errors
    /// The domain's own. Nothing stays mapped in it then.
    pub fn attach(&self, domain: Arc<dyn IommuDomain>) -> Result<()> {
        let mut state = self.lock();
        for (done, mapping) in state.mappings.iter().enumerate() {
            if let Err(error) = domain.map(mapping.iova, &mapping.memory) {
                for undo in &state.mappings[..done] {
                    let _ = domain.unmap(undo.iova, undo.memory.len());
                }
                return Err(error);
            }
        }
        state.free.restrict(&domain.ranges());
        state.domains.push(domain);
        Ok(())
    }

    /// From now on gives out addresses in `ranges` only: a domain came to translate less.
    pub fn restrict(&self, ranges: &[RangeInclusive<u64>]) {
        self.lock().free.restrict(ranges);
    }

    /// Detaches a domain: nothing stays mapped in it.
    pub fn detach(&self, domain: &Arc<dyn IommuDomain>) {
        let mut state = self.lock();
        state.domains.retain(|d| !Arc::ptr_eq(d, domain));
        for mapping in &state.mappings {
            let _ = domain.unmap(mapping.iova, mapping.memory.len());
        }
    }

    /// Allocates `len` bytes (rounded up to whole pages), zeroed, mapped in every domain.
    ///
    /// # Errors
    /// [`Error::DmaMemory`], [`Error::IovaExhausted`], or a domain's own; nothing is left behind.
    pub fn allocate(self: &Arc<Self>, len: usize, sharing: Sharing) -> Result<DmaMemory> {
        let (iova, memory) = match &self.arena {
            Some(arena) => self.carve(arena, len)?,
            None => {
                let memory = HostMemory::allocate(len, sharing)?;
                (self.take(memory.len(), memory.page().bytes())?, memory)
            }
        };
        let memory = Arc::new(memory);
        let mut state = self.lock();
        for (done, domain) in state.domains.iter().enumerate() {
            if let Err(error) = domain.map(iova, &memory) {
                for undo in &state.domains[..done] {
                    let _ = undo.unmap(iova, memory.len());
                }
                state.free.release(iova, memory.len() as u64);
                return Err(error);
            }
        }
        state.mappings.push(Mapping { iova, memory: memory.clone() });
        drop(state);
        Ok(DmaMemory { iova, memory, space: self.clone() })
    }

    /// Bytes mapped now.
    pub fn mapped_bytes(&self) -> usize {
        self.lock().mappings.iter().map(|m| m.memory.len()).sum()
    }

    /// Pieces of memory mapped now.
    pub fn mappings(&self) -> usize {
        self.lock().mappings.len()
    }

    fn take(&self, len: usize, align: usize) -> Result<u64> {
        let exhausted = || Error::IovaExhausted { len, space: self.name.clone() };
        self.lock().free.take(len as u64, align as u64).ok_or_else(exhausted)
    }

    fn carve(&self, arena: &Arena, len: usize) -> Result<(u64, HostMemory)> {
        let page = PageSize::Small4K.bytes();
        let len = len.max(1).next_multiple_of(page);
        let iova = self.take(len, page)?;
        // SAFETY: `iova` is an offset in the arena, given to nobody else, and the arena is kept by
        // `keep`. Zeroed here because earlier owners wrote it.
        let memory = unsafe {
            let base = arena.base.add(iova as usize);
            base.as_ptr().write_bytes(0, len);
            HostMemory::borrowed(base, len, arena.keep.clone())
        };
        Ok((iova, memory))
    }

    fn release(&self, iova: u64) {
        let mut state = self.lock();
        let Some(at) = state.mappings.iter().position(|m| m.iova == iova) else { return };
        let mapping = state.mappings.swap_remove(at);
        let len = mapping.memory.len();
        // A domain that refuses to unmap keeps the range: handing it out again could reach old memory.
        let refusals = state.domains.iter().filter(|d| d.unmap(iova, len).is_err()).count();
        if refusals == 0 {
            state.free.release(iova, len as u64);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn over(free: IovaAllocator) -> Mutex<Self> {
        Mutex::new(Self { free, domains: Vec::new(), mappings: Vec::new() })
    }
}

/// Memory that devices of an [`IovaSpace`] may read and write. Unmapped and freed on drop.
///
/// The device writes it at any time, so no Rust reference ever points into it: access is through raw
/// pointers and volatile or atomic operations.
pub struct DmaMemory {
    iova: u64,
    memory: Arc<HostMemory>,
    space: Arc<IovaSpace>,
}

impl DmaMemory {
    /// Where devices see the first byte.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Length in bytes: what was asked for, rounded up to whole pages.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Never: an allocation has at least one page.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// The pages it got.
    pub fn page(&self) -> PageSize {
        self.memory.page()
    }

    /// The address space it is mapped in.
    pub fn space(&self) -> &Arc<IovaSpace> {
        &self.space
    }

    /// Where this process sees the first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.memory.base()
    }

    /// The memory file, for sharing with another process.
    pub fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.memory.fd()
    }
}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        self.space.release(self.iova);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Domain {
        mapped: AtomicUsize,
        refuse: bool,
    }

    impl IommuDomain for Domain {
        fn map(&self, _: u64, memory: &HostMemory) -> Result<()> {
            if self.refuse {
                return Err(Error::LockedMemory { len: memory.len() });
            }
            self.mapped.fetch_add(memory.len(), Ordering::Relaxed);
            Ok(())
        }
        fn unmap(&self, _: u64, len: usize) -> Result<()> {
            self.mapped.fetch_sub(len, Ordering::Relaxed);
            Ok(())
        }
        fn ranges(&self) -> Vec<RangeInclusive<u64>> {
            vec![0x1_0000_0000..=0x2_0000_0000]
        }
    }

    #[test]
    fn memory_is_mapped_in_every_domain_early_or_late_and_unmapped_on_drop() {
        let space = IovaSpace::software();
        let (early, late) = (Arc::new(Domain::default()), Arc::new(Domain::default()));
        space.attach(early.clone()).unwrap();
        let memory = space.allocate(10_000, Sharing::Private).unwrap();
        space.attach(late.clone()).unwrap();
        assert_eq!(early.mapped.load(Ordering::Relaxed), 12_288);
        assert_eq!(late.mapped.load(Ordering::Relaxed), 12_288);
        drop(memory);
        assert_eq!(early.mapped.load(Ordering::Relaxed) + late.mapped.load(Ordering::Relaxed), 0);
        assert_eq!((space.mappings(), space.mapped_bytes()), (0, 0));
    }

    #[test]
    fn a_refusal_leaves_nothing_behind() {
        let space = IovaSpace::software();
        let good = Arc::new(Domain::default());
        space.attach(good.clone()).unwrap();
        space.attach(Arc::new(Domain { refuse: true, ..Domain::default() })).unwrap();
        let before = space.lock().free.available();
        assert!(space.allocate(4096, Sharing::Private).is_err());
        assert_eq!(good.mapped.load(Ordering::Relaxed), 0);
        assert_eq!(space.lock().free.available(), before);
    }
}
