//! Intel gigabit controllers with advanced descriptors: 82576, 82580, I350.
//!
//! Layouts and procedures: *Intel 82576EB Gigabit Ethernet Controller Datasheet* revision 2.7 (sections
//! without a name are its), the *82580* and *I350* datasheets where they differ.
//!
//! * [`hw`]: layouts. [`mod@model`]: which devices, and their numbers.
//! * The port: `init` (reset), `phy`, `link`, `filter`, `rss`, `irq`, `stats`, `port` (start and stop),
//!   `recover` (hangs and faults).
//! * The queues, which VFs share: `ring`, [`queue`], [`rx`], [`tx`]; [`gate`] is between them and
//!   the port.

mod device;
mod filter;
pub mod gate;
pub mod hw;
mod init;
mod irq;
mod link;
pub mod model;
mod phy;
mod port;
pub mod queue;
mod recover;
mod ring;
mod rss;
pub mod rx;
mod stats;
pub mod tx;

use std::sync::Arc;

use pci::Function;

pub use model::{Model, model};
pub use rx::{IgbRx, RxQueueConfig};
pub use tx::{IgbTx, TxQueueConfig};

use self::device::Device;
use self::filter::Addresses;
use self::hw::regs;
use self::link::Medium;
use self::port::Running;
use crate::{Capabilities, Error, Link, PortInfo, PortStatistics, Result};

/// Longest frame of the family, FCS included: 9.5 KiB (82576EB datasheet 8.10, RLPML).
const LONGEST_FRAME: u16 = 9728;
/// Ethernet header, one VLAN tag and FCS.
const OVERHEAD: u16 = 14 + 4 + 4;

/// A port: the physical function of an 82576, 82580 or I350.
pub struct Igb {
    function: Arc<dyn Function>,
    device: Device,
    model: &'static Model,
    medium: Medium,
    info: PortInfo,
    addresses: Addresses,
    statistics: PortStatistics,
    /// Reset, and nothing configured since.
    pristine: bool,
    running: Option<Running>,
    /// The link as last told by events.
    told_link: Link,
    told_removal: bool,
}

impl Igb {
    /// Resets the device and begins to bring the link up. No DMA, no frames, no interrupts before
    /// [`Port::start`](crate::Port::start).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another device, [`Error::Removed`], [`Error::Timeout`] where it hangs,
    /// [`Error::Nvm`] where its own address makes no sense, [`Error::Setting`] for an external PHY.
    pub fn open(function: Arc<dyn Function>) -> Result<Self> {
        let (bdf, ids) = (function.bdf(), function.ids()?);
        let unsupported = Error::Unsupported { bdf, vendor: ids.vendor, device: ids.device };
        let model = model(ids.vendor, ids.device).ok_or(unsupported)?;
        init::silence(&*function)?;
        let device = Device { bar: function.bar(0)?, bdf };
        init::reset(&device, model)?;
        let mac = init::mac_address(&device)?;
        let medium = Medium::of(&device)?;
        medium.bring_up(&device, model.generation)?;
        stats::clear(&device, model.generation.queues());
        let info = PortInfo {
            name: bdf.to_string(),
            model: model.name,
            mac,
            max_queues: model.generation.queues(),
            max_mtu: LONGEST_FRAME - OVERHEAD,
            depth: (32, 4096, 8),
            capabilities: Capabilities {
                checksum: true,
                tcp_segmentation: true,
                vlan: true,
                rss: true,
                rss_table: model::RSS_TABLE as u16,
            },
        };
        Ok(Self {
            addresses: Addresses::new(mac, model.generation),
            function,
            device,
            model,
            medium,
            info,
            statistics: PortStatistics::default(),
            pristine: true,
            running: None,
            told_link: Link::default(),
            told_removal: false,
        })
    }
}

impl Drop for Igb {
    fn drop(&mut self) {
        // A device that is gone, or hangs, has nothing to be told; bus mastering goes off in any case.
        let _ = self.halt();
        self.device.modify(regs::CTRL_EXT, regs::ctrl_ext::DRV_LOAD, 0);
        let _ = init::silence(&*self.function);
    }
}
