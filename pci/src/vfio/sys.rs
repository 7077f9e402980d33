//! The ioctls of VFIO that vfio-ioctls lacks, hides, or whose result it drops.
//!
//! Numbers and layouts: Linux `include/uapi/linux/vfio.h`. Results are plain `io::Error`s; the callers
//! know what they mean for which function.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FLAGS_RESET, VFIO_GROUP_FLAGS_VIABLE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_TYPE, VFIO_TYPE1v2_IOMMU, vfio_device_info, vfio_group_status,
    vfio_iommu_type1_info, vfio_irq_info, vfio_irq_set, vfio_region_info,
};

/// `_IO(VFIO_TYPE, VFIO_BASE + number)`: VFIO encodes no direction and no size.
const fn request(number: u32) -> libc::Ioctl {
    ((VFIO_TYPE as u32) << 8 | (VFIO_BASE + number)) as libc::Ioctl
}

const SET_IOMMU: libc::Ioctl = request(2);
const GROUP_GET_STATUS: libc::Ioctl = request(3);
const GROUP_SET_CONTAINER: libc::Ioctl = request(4);
const GROUP_UNSET_CONTAINER: libc::Ioctl = request(5);
const GROUP_GET_DEVICE_FD: libc::Ioctl = request(6);
const DEVICE_GET_INFO: libc::Ioctl = request(7);
const DEVICE_GET_REGION_INFO: libc::Ioctl = request(8);
const DEVICE_GET_IRQ_INFO: libc::Ioctl = request(9);
const DEVICE_SET_IRQS: libc::Ioctl = request(10);
const DEVICE_RESET: libc::Ioctl = request(11);
const IOMMU_GET_INFO: libc::Ioctl = request(12);

/// A request whose argument is a pointer that the kernel reads, and may write, as far as `T` goes or as
/// its `argsz` says.
///
/// # Safety
/// `argument` must be what the request takes, with all the memory that it refers to.
unsafe fn ioctl<T>(fd: &impl AsRawFd, request: libc::Ioctl, argument: *mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the argument; the descriptor is open.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// True where no kernel driver has any function of the group.
pub fn group_is_viable(group: &File) -> io::Result<bool> {
    let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
    // SAFETY: the request fills this very structure.
    unsafe { ioctl(group, GROUP_GET_STATUS, &raw mut status) }?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts a group into a container.
pub fn set_container(group: &File, container: &impl AsRawFd) -> io::Result<()> {
    let mut fd = container.as_raw_fd();
    // SAFETY: the request reads one int.
    unsafe { ioctl(group, GROUP_SET_CONTAINER, &raw mut fd) }.map(drop)
}

/// Takes a group out of its container. Refused (EBUSY) while a device of it is open.
pub fn unset_container(group: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { ioctl(group, GROUP_UNSET_CONTAINER, std::ptr::null_mut::<u8>()) }.map(drop)
}

/// Gives the container its translation tables. After its first group, once.
pub fn set_iommu(container: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the request takes its argument by value, in the place of the pointer.
    unsafe { ioctl(container, SET_IOMMU, VFIO_TYPE1v2_IOMMU as usize as *mut u8) }.map(drop)
}

/// Opens a function of a group; `name` is its BDF, with options behind it.
pub fn open_device(group: &File, name: &CStr) -> io::Result<File> {
    // SAFETY: the request reads the NUL-terminated name.
    let fd: RawFd = unsafe { ioctl(group, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut()) }?;
    // SAFETY: the kernel just opened it for us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// True where the function can be reset by itself.
pub fn can_reset(device: &File) -> io::Result<bool> {
    let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..Default::default() };
    // SAFETY: the request fills this very structure.
    unsafe { ioctl(device, DEVICE_GET_INFO, &raw mut info) }?;
    Ok(info.flags & VFIO_DEVICE_FLAGS_RESET != 0)
}

/// Resets the function.
pub fn reset(device: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { ioctl(device, DEVICE_RESET, std::ptr::null_mut::<u8>()) }.map(drop)
}

/// A part of the device file: a BAR, or configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub flags: u32,
    /// In bytes; 0 where the function has no such region.
    pub size: u64,
    /// In the device file.
    pub offset: u64,
    /// True where a list of capabilities says which part of it may be mapped (`SPARSE_MMAP`).
    pub sparse: bool,
}

/// Describes a region.
pub fn region(device: &File, index: u32) -> io::Result<Region> {
    let head = vfio_region_info { index, ..Default::default() };
    // SAFETY: zeros and integers, of which the structure consists.
    let bytes = unsafe { grow(device, DEVICE_GET_REGION_INFO, &head) }?;
    let field = |at| word(&bytes, at).unwrap_or(0);
    let caps = chain(&bytes, field(std::mem::offset_of!(vfio_region_info, cap_offset)));
    Ok(Region {
        flags: field(std::mem::offset_of!(vfio_region_info, flags)),
        size: long(&bytes, std::mem::offset_of!(vfio_region_info, size)).unwrap_or(0),
        offset: long(&bytes, std::mem::offset_of!(vfio_region_info, offset)).unwrap_or(0),
        sparse: caps
            .iter()
            .any(|(id, _)| u32::from(*id) == vfio_bindings::bindings::vfio::VFIO_REGION_INFO_CAP_SPARSE_MMAP),
    })
}

/// The addresses that the container translates; nothing where the kernel is too old to say (before 5.4).
pub fn iova_ranges(container: &impl AsRawFd) -> io::Result<Option<Vec<RangeInclusive<u64>>>> {
    // SAFETY: zeros and integers, of which the structure consists.
    let bytes = unsafe { grow(container, IOMMU_GET_INFO, &vfio_iommu_type1_info::default()) }?;
    let field = |at| word(&bytes, at).unwrap_or(0);
    if field(std::mem::offset_of!(vfio_iommu_type1_info, flags)) & VFIO_IOMMU_INFO_CAPS == 0 {
        return Ok(None);
    }
    let caps = chain(&bytes, field(std::mem::offset_of!(vfio_iommu_type1_info, cap_offset)));
    let ours = |(id, _): &&(u16, usize)| u32::from(*id) == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE;
    Ok(caps.iter().find(ours).map(|(_, at)| ranges(&bytes, *at)))
}

/// `struct vfio_iommu_type1_info_cap_iova_range`: header 8, count 4, reserved 4, then pairs of 64 bits.
fn ranges(bytes: &[u8], at: usize) -> Vec<RangeInclusive<u64>> {
    let count = word(bytes, at + 8).unwrap_or(0) as usize;
    let pair = |i: usize| Some(long(bytes, at + 16 + 16 * i)?..=long(bytes, at + 24 + 16 * i)?);
    (0..count).map_while(pair).filter(|range| !range.is_empty()).collect()
}

/// Asks twice: the kernel answers in `argsz` how much it has to say.
///
/// # Safety
/// The request must take a `T`, whose first field is `argsz`, of integers only, and write no more than
/// `argsz` bytes.
unsafe fn grow<T: Copy>(fd: &impl AsRawFd, request: libc::Ioctl, head: &T) -> io::Result<Vec<u8>> {
    let mut len = size_of::<T>();
    for _ in 0..4 {
        // 64-bit words, for the structures' alignment.
        let mut buffer = vec![0u64; len.div_ceil(8)];
        let start = buffer.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer has at least `size_of::<T>()` bytes and is aligned for T's integers; its
        // first field is a u32 (as the caller vouches); the kernel writes at most `len` bytes.
        let bytes = unsafe {
            start.cast::<T>().write(*head);
            start.cast::<u32>().write(len as u32);
            ioctl(fd, request, start)?;
            std::slice::from_raw_parts(start, len).to_vec()
        };
        let wanted = word(&bytes, 0).unwrap_or(0) as usize;
        if wanted <= len {
            return Ok(bytes);
        }
        len = wanted;
    }
    Err(io::Error::other("the kernel's answer keeps growing"))
}

/// The capabilities of an answer: ID and offset of each. Headers are `{ id: u16, version: u16, next: u32 }`.
fn chain(bytes: &[u8], first: u32) -> Vec<(u16, usize)> {
    let mut found = Vec::new();
    let mut at = first as usize;
    while let (Some(head), Some(next)) = (word(bytes, at), word(bytes, at + 4)) {
        if at == 0 || found.len() == 64 {
            break;
        }
        found.push((head as u16, at));
        at = next as usize;
    }
    found
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// How many interrupts an index (INTx, MSI, MSI-X, error, request) has.
pub fn irq_count(device: &File, index: u32) -> io::Result<u32> {
    let argsz = size_of::<vfio_irq_info>() as u32;
    let mut info = vfio_irq_info { argsz, index, ..Default::default() };
    // SAFETY: the request fills this very structure.
    unsafe { ioctl(device, DEVICE_GET_IRQ_INFO, &raw mut info) }?;
    Ok(info.count)
}

/// Has interrupts 0, 1, ... of an index fire these eventfds; none disables the index.
pub fn set_irqs(device: &File, index: u32, events: &[RawFd]) -> io::Result<()> {
    let data = if events.is_empty() { VFIO_IRQ_SET_DATA_NONE } else { VFIO_IRQ_SET_DATA_EVENTFD };
    let head = [
        (size_of::<vfio_irq_set>() + size_of_val(events)) as u32,
        data | VFIO_IRQ_SET_ACTION_TRIGGER,
        index,
        0,
        events.len() as u32,
    ];
    const { assert!(size_of::<vfio_irq_set>() == 5 * size_of::<u32>()) };
    let mut words: Vec<u32> = head.into_iter().chain(events.iter().map(|fd| *fd as u32)).collect();
    // SAFETY: `words` is the structure's five fields with `count` descriptors behind them, `argsz` bytes.
    unsafe { ioctl(device, DEVICE_SET_IRQS, words.as_mut_ptr()) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn request_numbers_are_the_kernels() {
        // _IO(';', 100) and _IO(';', 117), the first and the last of the classic ones.
        assert_eq!((request(0), request(17)), (0x3b64, 0x3b75));
    }

    #[test]
    fn ranges_are_read_from_the_chain() {
        // The head of 24 bytes; a capability 2 at 24, then one with ID 1 at 32 with two ranges.
        let mut info = bytes(&[80, 2, 0, 0, 24, 0, 2, 32, 1, 0, 2, 0]);
        for value in [0u64, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff] {
            info.extend(value.to_ne_bytes());
        }
        let caps = chain(&info, 24);
        assert_eq!(caps, [(2, 24), (1, 32)]);
        assert_eq!(ranges(&info, 32), [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]);
    }

    #[test]
    fn a_chain_that_loops_or_leaves_ends() {
        assert_eq!(chain(&bytes(&[0, 0, 1, 8]), 8).len(), 64);
        assert_eq!(chain(&bytes(&[0, 0, 1, 400]), 8), [(1, 8)]);
        assert_eq!(chain(&bytes(&[0, 0]), u32::MAX), []);
    }

    #[test]
    fn a_count_beyond_the_answer_gives_what_is_there() {
        let info = bytes(&[1, 0, 1000, 0, 0, 0, 0xffff, 0]);
        assert_eq!(ranges(&info, 0), [0..=0xffff]);
    }
}
