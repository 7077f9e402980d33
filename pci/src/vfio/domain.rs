//! The container's translation tables, as an [`IommuDomain`].
#![allow(unsafe_code)]

use std::ops::RangeInclusive;
use std::sync::Arc;

use vfio_ioctls::{VfioContainer, VfioError};

use super::sys;
use crate::dma::{HostMemory, IommuDomain};
use crate::{Error, Result};

/// What may be translated where the kernel does not say: from 64 KiB on, so that a null pointer or a
/// small offset never reaches memory, to 39 bits, which the least of IOMMUs have, without the window
/// in which x86 takes writes for interrupts (Intel SDM volume 3, message address register).
pub(super) fn cautious_ranges() -> Vec<RangeInclusive<u64>> {
    vec![0x1_0000..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]
}

/// What may ever be given out, before a kernel narrows it down: as above, to 57 bits.
pub(super) fn widest_ranges() -> Vec<RangeInclusive<u64>> {
    vec![0x1_0000..=0xfedf_ffff, 0xfef0_0000..=(1 << 57) - 1]
}

pub(super) struct ContainerDomain(pub Arc<VfioContainer>);

impl IommuDomain for ContainerDomain {
    fn map(&self, iova: u64, memory: &HostMemory) -> Result<()> {
        let len = memory.len();
        // SAFETY: `HostMemory` is reached through raw pointers only, and its owner, the `IovaSpace`,
        // unmaps it here before it is freed.
        let mapped = unsafe { self.0.vfio_dma_map(iova, len, memory.base().as_ptr()) };
        mapped.map_err(|error| match error {
            VfioError::IommuDmaMap(e) if e.errno() == libc::ENOMEM => Error::LockedMemory { len },
            VfioError::IommuDmaMap(e) if e.errno() == libc::ENOSPC => Error::DmaMappings { len },
            other => failed(format!("mapping {len:#x} bytes at I/O virtual address {iova:#x}"), other),
        })
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        match self.0.vfio_dma_unmap(iova, len) {
            // When the last group's functions are removed from the machine the kernel drops the tables:
            // nothing is translated any more.
            Err(_) if sys::iova_ranges(&*self.0).is_err() => Ok(()),
            result => result.map_err(|error| {
                failed(format!("unmapping {len:#x} bytes at I/O virtual address {iova:#x}"), error)
            }),
        }
    }

    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        sys::iova_ranges(&*self.0).ok().flatten().unwrap_or_else(cautious_ranges)
    }
}

/// An error of vfio-ioctls, with the kernel's answer where it kept it.
pub(super) fn failed(what: String, error: VfioError) -> Error {
    let source = match error {
        VfioError::IommuDmaMap(e) | VfioError::IommuDmaUnmap(e) => {
            std::io::Error::from_raw_os_error(e.errno())
        }
        VfioError::OpenContainer(e) => e,
        other => std::io::Error::other(other),
    };
    Error::io(what, source)
}
