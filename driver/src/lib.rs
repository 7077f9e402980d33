//! NIC families behind one face.
//!
//! An application opens a [`Port`] on a [`pci::Function`], starts it with as many queue pairs as it has
//! cores, and gives each [`QueuePair`] to one of them. Families:
//!
//! * [`igb`]: Intel 82576, I350, 82580.
//! * [`null`]: no device: receives frames from nowhere, sends them nowhere. What the datapath itself costs.
//! * [`loopback`]: no device: what is sent is received.

pub mod error;
pub mod igb;
pub mod loopback;
pub mod null;
pub mod port;
pub mod queue;

use std::sync::Arc;

use pci::Function;

pub use error::{Error, Result};
pub use port::{
    Capabilities, Event, Link, MacAddr, Port, PortConfig, PortInfo, PortStatistics, RssConfig, VlanConfig,
};
pub use queue::{QueuePair, Rx, Tx};

/// The model's name where a family drives this device.
pub fn supported(vendor: u16, device: u16) -> Option<&'static str> {
    igb::model(vendor, device).map(|model| model.name)
}

/// Opens the port on `function` with the family that drives it. The device is reset and quiet; nothing
/// moves before [`Port::start`].
///
/// # Errors
/// [`Error::Unsupported`] where no family drives the device, else the family's own.
pub fn open(function: Arc<dyn Function>) -> Result<Box<dyn Port>> {
    let ids = function.ids()?;
    if igb::model(ids.vendor, ids.device).is_some() {
        return Ok(Box::new(igb::Igb::open(function)?));
    }
    Err(Error::Unsupported { bdf: function.bdf(), vendor: ids.vendor, device: ids.device })
}
