#![doc = include_str!("../README.md")]

pub use dataplane;
pub use driver;
pub use pci;
