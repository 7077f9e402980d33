//! Host pages for DMA: huge where there are any, 4 KiB otherwise.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};

use crate::{Error, Result};

/// The pages that hold a piece of DMA memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageSize {
    /// 2 MiB: one TLB and one IOTLB entry where 4 KiB pages need 512.
    Huge2M,
    /// 4 KiB: what is left when no huge pages are; works, slower.
    Small4K,
}

impl PageSize {
    /// In bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Huge2M => 2 << 20,
            Self::Small4K => 4 << 10,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Huge2M => "2 MiB huge pages",
            Self::Small4K => "4 KiB pages",
        })
    }
}

/// Who may map the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// This process and its devices.
    Private,
    /// Other processes too, through a file descriptor.
    Shared,
}

enum Pages {
    /// Private huge pages, from hugepage-rs.
    HugePrivate(Layout),
    /// The heap, where no memory file is to be had: under Miri.
    #[cfg(miri)]
    Heap(Layout),
    /// A memory file: shared pools, and every pool of 4 KiB pages.
    File { fd: OwnedFd, _map: MmapRaw },
    /// Part of memory that somebody else keeps mapped.
    Borrowed(
        #[allow(dead_code, reason = "held to keep the mapping")]
        std::sync::Arc<dyn std::any::Any + Send + Sync>,
    ),
}

/// Pages in this process, zeroed, page-aligned, not yet visible to any device.
pub struct HostMemory {
    base: NonNull<u8>,
    len: usize,
    page: PageSize,
    pages: Pages,
}

// SAFETY: the memory belongs to this value alone and is reached through raw pointers only.
unsafe impl Send for HostMemory {}
// SAFETY: `&HostMemory` gives out addresses, never references into the memory.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// At least `len` bytes: huge pages where the system has them, 4 KiB pages otherwise.
    ///
    /// Small pieces (below half a huge page) take 4 KiB pages, so that a ring does not eat 2 MiB.
    ///
    /// # Errors
    /// [`Error::DmaMemory`] where neither is to be had.
    pub fn allocate(len: usize, sharing: Sharing) -> Result<Self> {
        let huge = len >= PageSize::Huge2M.bytes() / 2;
        huge.then(|| Self::huge(len, sharing)).flatten().map_or_else(|| Self::small(len), Ok)
    }

    /// At least `len` bytes of huge pages, or nothing.
    fn huge(len: usize, sharing: Sharing) -> Option<Self> {
        let len = len.checked_next_multiple_of(PageSize::Huge2M.bytes())?;
        if cfg!(miri) {
            return None;
        }
        match sharing {
            Sharing::Private if huge_page_size_known() => Self::huge_private(len),
            Sharing::Private => None,
            Sharing::Shared => Self::file(len, PageSize::Huge2M).ok(),
        }
    }

    fn huge_private(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, PageSize::Huge2M.bytes()).ok()?;
        // SAFETY: the layout's size is not zero (callers ask for at least half a huge page).
        let base = NonNull::new(unsafe { hugepage_rs::alloc(layout) })?;
        Some(Self { base, len, page: PageSize::Huge2M, pages: Pages::HugePrivate(layout) })
    }

    fn small(len: usize) -> Result<Self> {
        let page = PageSize::Small4K;
        let len = len
            .max(1)
            .checked_next_multiple_of(page.bytes())
            .ok_or(Error::DmaMemory { len, remedy: "ask for less than the address space" })?;
        #[cfg(miri)]
        return Self::heap(len);
        #[cfg(not(miri))]
        Self::file(len, page)
    }

    #[cfg(miri)]
    fn heap(len: usize) -> Result<Self> {
        let none = Error::DmaMemory { len, remedy: "ask for less" };
        let Ok(layout) = Layout::from_size_align(len, PageSize::Small4K.bytes()) else { return Err(none) };
        // SAFETY: the size is at least one page.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or(none)?;
        Ok(Self { base, len, page: PageSize::Small4K, pages: Pages::Heap(layout) })
    }

    fn file(len: usize, page: PageSize) -> Result<Self> {
        let exhausted = || Error::DmaMemory {
            len,
            remedy: "free memory, or reserve huge pages (`sysctl vm.nr_hugepages=64`)",
        };
        let flags = libc::MFD_CLOEXEC | if page == PageSize::Huge2M { libc::MFD_HUGETLB } else { 0 };
        // SAFETY: the name is a NUL-terminated string and the call has no other memory argument.
        let fd = unsafe { libc::memfd_create(c"becket-dma".as_ptr(), flags) };
        if fd < 0 {
            return Err(Error::last_os("memfd_create for DMA memory"));
        }
        // SAFETY: `fd` was just opened and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Reserving small pages takes them one by one until none is left, and the kernel then kills
        // somebody: ask first. Huge pages are refused as a whole.
        if page == PageSize::Small4K && len as u64 > available_memory() {
            return Err(exhausted());
        }
        let size = libc::off_t::try_from(len).map_err(|_| exhausted())?;
        // SAFETY: `fd` is open; fallocate touches no memory of ours. It reserves the pages now, so that
        // running out is an error here and never a SIGBUS at first touch.
        if unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, size) } != 0 {
            return Err(exhausted());
        }
        let map = MmapOptions::new().len(len).map_raw(&fd).map_err(|_| exhausted())?;
        let base = NonNull::new(map.as_mut_ptr()).ok_or_else(exhausted)?;
        Ok(Self { base, len, page, pages: Pages::File { fd, _map: map } })
    }

    /// Memory that `keep` keeps mapped, at `base`.
    ///
    /// # Safety
    /// `base` to `base + len` must stay mapped readable and writable while `keep` lives, be zeroed and
    /// be used by nobody else in this process.
    pub unsafe fn borrowed(
        base: NonNull<u8>,
        len: usize,
        keep: std::sync::Arc<dyn std::any::Any + Send + Sync>,
    ) -> Self {
        Self { base, len, page: PageSize::Small4K, pages: Pages::Borrowed(keep) }
    }

    /// The first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes, a multiple of the page size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an allocation has at least one page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pages it got.
    pub fn page(&self) -> PageSize {
        self.page
    }

    /// The memory file, where another process may map it.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.pages {
            Pages::File { fd, .. } => Some(fd.as_fd()),
            Pages::HugePrivate(_) | Pages::Borrowed(_) => None,
            #[cfg(miri)]
            Pages::Heap(_) => None,
        }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        #[cfg(miri)]
        if let Pages::Heap(layout) = self.pages {
            // SAFETY: allocated with this very layout, and freed only here.
            unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) };
        }
        if let Pages::HugePrivate(layout) = self.pages {
            // SAFETY: allocated by `hugepage_rs::alloc` with this very layout, and freed only here.
            unsafe { hugepage_rs::dealloc(self.base.as_ptr(), layout) };
        }
    }
}

/// hugepage-rs panics where the kernel was built without huge pages: look before asking it.
fn huge_page_size_known() -> bool {
    std::fs::read_to_string("/proc/meminfo").is_ok_and(|text| text.contains("Hugepagesize:       2048 kB"))
}

/// Bytes that can be had without swapping, as the kernel estimates it.
fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_take_small_pages_that_are_zero() {
        let memory = HostMemory::allocate(100, Sharing::Private).unwrap();
        assert_eq!((memory.len(), memory.page()), (4096, PageSize::Small4K));
        // SAFETY: in bounds, and nobody else has this memory.
        assert!((0..4096).all(|i| unsafe { memory.base().as_ptr().add(i).read() } == 0));
    }

    #[test]
    fn large_pieces_fall_back_to_small_pages_and_say_so() {
        let memory = HostMemory::allocate(3 << 20, Sharing::Shared).unwrap();
        assert!(memory.fd().is_some());
        assert!(memory.len().is_multiple_of(memory.page().bytes()));
    }

    #[test]
    fn what_cannot_be_had_is_an_error_not_a_signal() {
        assert!(matches!(HostMemory::allocate(1 << 46, Sharing::Private), Err(Error::DmaMemory { .. })));
    }
}
