//! Intel gigabit controllers with advanced descriptors: 82576, 82580, I350.
//!
//! Layouts and procedures: *Intel 82576EB Gigabit Ethernet Controller Datasheet* revision 2.7, the
//! *82580* and *I350* datasheets where they differ.

use std::sync::Arc;

use pci::Function;

use crate::Result;

/// One device ID this family drives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Model {
    /// PCI device ID (vendor 0x8086).
    pub device: u16,
    /// Its name.
    pub name: &'static str,
}

/// What the IDs stand for, where this family drives it.
pub fn model(vendor: u16, device: u16) -> Option<&'static Model> {
    let _ = (vendor, device);
    None
}
/// x
pub struct Igb;
impl Igb { /// x
 pub fn open(_f: Arc<dyn Function>) -> Result<Self> { Ok(Self) } }
