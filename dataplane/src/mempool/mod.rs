//! [`Mempool`]: a fixed number of buffers in DMA memory, and the per-core [`PoolCache`]s in front of it.
//!
//! Descriptions ([`Mbuf`] headers) lie in ordinary memory: no device can reach them, whatever it does to
//! the buffers. Every buffer is at all times in the free list, in one cache, or owned by one [`Mbuf`].
#![allow(unsafe_code)]

mod cache;
mod free_list;

use std::alloc::Layout;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use pci::{DmaMemory, IovaSpace, PageSize, Sharing};

pub use cache::PoolCache;
use free_list::FreeList;

use crate::mbuf::{Header, Mbuf, RxFlags, TxOffload};

/// Bytes in front of a received frame, for headers to be pushed.
pub const HEADROOM: u16 = 128;

/// How many buffers, and of what size.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Buffers.
    pub capacity: u32,
    /// Bytes for a frame in each buffer, behind the headroom.
    pub room: u16,
    /// Who may map the memory.
    pub sharing: Sharing,
}

impl Default for PoolConfig {
    /// 8,192 buffers of 2 KiB: one port with full rings, about 18 MiB.
    fn default() -> Self {
        Self { capacity: 8192, room: 2048, sharing: Sharing::Private }
    }
}

/// What stands in the way of a pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The numbers make no pool.
    #[error(
        "a pool of {capacity} buffers of {room} bytes: give 1 to 16,777,216 buffers of 64 to 16,384 bytes"
    )]
    Config {
        /// Buffers asked for.
        capacity: u32,
        /// Bytes asked for in each.
        room: u16,
    },
    /// No memory for it.
    #[error("no memory for the buffer pool: {0}")]
    Memory(#[from] pci::Error),
}

/// Added to `Shared::live` for as long as handles exist.
const HANDLES: isize = 1 << 40;

/// The pool itself. Freed when no handle is left and every buffer has come back.
pub(crate) struct Shared {
    free: FreeList,
    headers: NonNull<Header>,
    capacity: u32,
    /// `HANDLES` while there are handles; plus what caches (already gone) gave out in all; minus the
    /// buffers that came back by the slow way. Zero: nobody can reach the pool any more.
    live: AtomicIsize,
    memory: ManuallyDrop<DmaMemory>,
}

// SAFETY: `headers` is an owned allocation; a header is only touched by the owner of its `Mbuf`, and the
// free list hands each index to one owner at a time.
unsafe impl Send for Shared {}
// SAFETY: as for `Send`.
unsafe impl Sync for Shared {}

/// The handles' common part: its drop ends the handles' share in the pool.
struct Handle(NonNull<Shared>);

// SAFETY: `Shared` is `Send` and `Sync`, and outlives its handle.
unsafe impl Send for Handle {}
// SAFETY: as for `Send`.
unsafe impl Sync for Handle {}

/// A pool of buffers. Cheap to clone.
///
/// A pool dropped while buffers are out stays until the last of them is dropped.
#[derive(Clone)]
pub struct Mempool(Arc<Handle>);

impl Mempool {
    /// Allocates the buffers in `space`, where devices will see them.
    ///
    /// # Errors
    /// [`PoolError`]: numbers out of range, or no memory.
    pub fn new(space: &Arc<IovaSpace>, config: PoolConfig) -> Result<Self, PoolError> {
        let PoolConfig { capacity, room, sharing } = config;
        if !(1..=1 << 24).contains(&capacity) || !(64..=16_384).contains(&room) {
            return Err(PoolError::Config { capacity, room });
        }
        let mut places = Places::within(PageSize::Huge2M, room);
        let mut memory = space.allocate(places.bytes(capacity), sharing)?;
        if memory.page() != PageSize::Huge2M {
            places = Places::within(memory.page(), room);
            if memory.len() < places.bytes(capacity) {
                drop(memory);
                memory = space.allocate(places.bytes(capacity), sharing)?;
            }
        }
        let shared = Box::new(Shared {
            free: FreeList::full(capacity),
            headers: allocate_headers(capacity),
            capacity,
            live: AtomicIsize::new(HANDLES),
            memory: ManuallyDrop::new(memory),
        });
        let shared = NonNull::from(Box::leak(shared));
        // SAFETY: just leaked, shared with nobody yet.
        let pool = unsafe { shared.as_ref() };
        for index in 0..capacity as usize {
            let offset = places.offset(index);
            // SAFETY: `offset` is inside the DMA memory and `index` inside the headers allocated above.
            unsafe {
                pool.headers.add(index).write(Header {
                    buffer: pool.memory.base().add(offset),
                    iova: pool.memory.iova() + offset as u64,
                    offset: HEADROOM,
                    len: 0,
                    frame_len: 0,
                    rss_hash: 0,
                    vlan: 0,
                    port: 0,
                    rx_flags: RxFlags(0),
                    segments: 1,
                    capacity: room,
                    offload: TxOffload::NONE,
                    next: None,
                    pool: shared,
                });
            }
        }
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// A cache for one core. Its buffers return to the pool when it is dropped.
    pub fn cache(&self) -> PoolCache {
        PoolCache::new(self.clone())
    }

    /// Takes one buffer the slow way; nothing where the pool is empty.
    pub fn take(&self) -> Option<Mbuf> {
        self.cache().take()
    }

    /// Buffers in all.
    pub fn capacity(&self) -> usize {
        self.shared().capacity as usize
    }

    /// Buffers that no core and no application holds; exact while nobody works.
    pub fn available(&self) -> usize {
        self.shared().free.len()
    }

    /// The address space its buffers are mapped in: devices of another one cannot reach them.
    pub fn space(&self) -> &Arc<IovaSpace> {
        self.shared().memory.space()
    }

    /// The pages its buffers lie in.
    pub fn page(&self) -> PageSize {
        self.shared().memory.page()
    }

    pub(crate) fn shared(&self) -> &Shared {
        // SAFETY: the pool lives while a handle does.
        unsafe { self.0.0.as_ref() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        Shared::leave(self.0, HANDLES);
    }
}

impl Shared {
    /// One buffer comes back the slow way. The caller gives up the `Mbuf` with this call.
    pub(crate) fn put_back(mbuf: &mut Mbuf) {
        let pool = mbuf.header().pool;
        // SAFETY: the pool lives at least until this buffer is counted as back, below.
        let shared = unsafe { pool.as_ref() };
        shared.free.push(&[shared.index(mbuf)]);
        Self::leave(pool, 1);
    }

    /// Ends a share of `share`; the last to leave frees the pool.
    fn leave(pool: NonNull<Self>, share: isize) {
        // SAFETY: the caller's own share keeps the pool alive up to the subtraction.
        let before = unsafe { pool.as_ref() }.live.fetch_sub(share, Ordering::AcqRel);
        if before != share {
            return;
        }
        // SAFETY: no handle, no cache and no buffer is left: this is the only reference, and `pool` came
        // from `Box::leak`.
        let mut shared = unsafe { Box::from_raw(pool.as_ptr()) };
        // SAFETY: the headers hold nothing that needs dropping (every `next` is empty: buffers come back
        // one by one), and were allocated with this layout. The memory is dropped once, here.
        unsafe {
            std::alloc::dealloc(shared.headers.as_ptr().cast(), headers_layout(shared.capacity));
            ManuallyDrop::drop(&mut shared.memory);
        }
    }

    fn index(&self, mbuf: &Mbuf) -> u32 {
        // SAFETY: the header belongs to this pool's array.
        unsafe { mbuf.0.offset_from(self.headers) as u32 }
    }

    /// # Safety
    /// The caller owns `index`, having popped it from the free list.
    unsafe fn mbuf(&self, index: u32) -> Mbuf {
        // SAFETY: indices of the free list are below the capacity.
        Mbuf(unsafe { self.headers.add(index as usize) })
    }
}

/// Where in the pool's memory its buffers lie.
///
/// No buffer crosses a page, as far as one page holds a buffer: what is contiguous for us is contiguous for
/// the device, whatever translates in between. QEMU's devices, for one, lose frames whose buffers cross a
/// page of the IOMMU.
#[derive(Clone, Copy)]
struct Places {
    page: usize,
    stride: usize,
    per_page: usize,
    /// Cache lines that a page has left over.
    slack: usize,
}

impl Places {
    fn within(page: PageSize, room: u16) -> Self {
        let lines = (usize::from(HEADROOM) + usize::from(room)).div_ceil(64);
        // An odd number of cache lines, so that the first lines of neighbours fall into different cache sets.
        let odd = lines | 1;
        let stride = if odd * 64 > page.bytes() { lines } else { odd } * 64;
        // A buffer larger than a page takes whole pages.
        let page = page.bytes().max(stride.next_multiple_of(page.bytes()));
        let per_page = page / stride;
        Self { page, stride, per_page, slack: (page - per_page * stride) / 64 }
    }

    fn bytes(self, capacity: u32) -> usize {
        (capacity as usize).div_ceil(self.per_page) * self.page
    }

    /// Each page begins a cache line later than the one before, within what it has left over: pages with one
    /// buffer each would otherwise all compete for the same cache sets.
    fn offset(self, index: usize) -> usize {
        let page = index / self.per_page;
        page * self.page + page % (self.slack + 1) * 64 + index % self.per_page * self.stride
    }
}

fn headers_layout(capacity: u32) -> Layout {
    let bytes = capacity as usize * size_of::<Header>();
    Layout::from_size_align(bytes, align_of::<Header>()).unwrap_or(Layout::new::<Header>())
}

fn allocate_headers(capacity: u32) -> NonNull<Header> {
    let layout = headers_layout(capacity);
    // SAFETY: the layout's size is not zero: the capacity is at least 1.
    let headers = unsafe { std::alloc::alloc(layout) };
    NonNull::new(headers.cast()).unwrap_or_else(|| std::alloc::handle_alloc_error(layout))
}

#[cfg(all(test, not(loom)))]
mod tests;
