//! Becket: a userspace NIC driver and datapath.
pub use dataplane;
pub use driver;
pub use pci;
