//! Memory that a device may reach: host pages, the I/O virtual addresses they are seen at, and the
//! IOMMU domains that translate.
//!
//! One [`IovaSpace`] serves any number of functions over any number of domains: memory has the same
//! I/O virtual address for all of them, so a buffer received on one NIC is sent on another with no
//! translation.

mod iova;
mod memory;
mod space;

pub use iova::IovaAllocator;
pub use memory::{HostMemory, PageSize, Sharing};
pub use space::{Arena, DmaMemory, IommuDomain, IovaSpace};
