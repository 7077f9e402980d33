//! A PCI function, driven from user space.
//!
//! [`Function`] is what a driver sees: configuration space, BARs, MSI-X interrupts, reset, and an
//! [`IovaSpace`] to allocate DMA memory from. Backends stand behind that one trait, so a driver is
//! written once:
//!
//! * [`vfio`]: the kernel's VFIO, the real thing.
//! * `qtest` (feature): a device model inside a QEMU that runs no guest, for tests.
//!
//! This crate knows no NIC.

pub mod bar;
pub mod bdf;
pub mod config;
pub mod dma;
pub mod error;
pub mod function;
pub mod interrupt;
#[cfg(feature = "qtest")]
pub mod qtest;
pub mod removal;
pub mod sysfs;
pub mod vfio;

pub use bar::{Bar, RegisterIo};
pub use bdf::Bdf;
pub use dma::{DmaMemory, IommuDomain, IovaSpace, PageSize, Sharing};
pub use error::{Error, Result};
pub use function::{Function, Ids, Notices};
pub use interrupt::Interrupt;
