//! [`Function`]: one PCI function, whichever backend it stands on.

use std::sync::Arc;

use crate::config::{self, Capability};
use crate::{Bar, Bdf, Error, Interrupt, IovaSpace, Result};

/// What the configuration header says a function is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    /// Vendor, 0x8086 for Intel.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class code: base class, subclass, programming interface, 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// What the kernel has to tell the owner of a function, outside of the function's own interrupts.
///
/// [`Interrupt::vector`] means nothing here.
#[derive(Debug)]
pub struct Notices {
    /// Fires, again and again, while the kernel wants the function back: it is being unplugged, or taken
    /// from its driver. Stop using it and drop it; the kernel waits until then.
    pub removal: Interrupt,
    /// Fires when PCI Express reported an uncorrectable error: registers and DMA are not to be trusted
    /// until a reset.
    pub error: Interrupt,
}

/// One PCI function, owned by this process.
///
/// Dropping it quiesces the function: interrupts are released, bus mastering is off.
pub trait Function: Send + Sync {
    /// Where it is.
    fn bdf(&self) -> Bdf;

    /// The backend's name, for messages: `vfio`, `qtest`, ...
    fn backend(&self) -> &'static str;

    /// Reads `buf.len()` bytes of configuration space at `offset`.
    ///
    /// # Errors
    /// [`Error::System`] or [`Error::Peer`] where the backend fails.
    fn read_config(&self, offset: u16, buf: &mut [u8]) -> Result<()>;

    /// Writes configuration space at `offset`.
    ///
    /// # Errors
    /// As [`Function::read_config`].
    fn write_config(&self, offset: u16, buf: &[u8]) -> Result<()>;

    /// The memory BAR of that index, mapped or trapped. Clones are views of the same registers.
    ///
    /// # Errors
    /// [`Error::NoBar`] where there is none, or it is I/O space.
    fn bar(&self, index: u8) -> Result<Bar>;

    /// The address space that this function's DMA goes through.
    fn iova_space(&self) -> &Arc<IovaSpace>;

    /// Enables MSI-X with vectors 0 to `count - 1`. Replaces vectors enabled before.
    ///
    /// # Errors
    /// [`Error::Vectors`] where the function has fewer, [`Error::NoCapability`] where it has no MSI-X.
    fn enable_interrupts(&self, count: u16) -> Result<Vec<Interrupt>>;

    /// Disables MSI-X.
    ///
    /// # Errors
    /// [`Error::System`] or [`Error::Peer`] where the backend fails.
    fn disable_interrupts(&self) -> Result<()>;

    /// Function-level reset: registers and configuration return to their defaults.
    ///
    /// # Errors
    /// [`Error::NoReset`] where the function has none.
    fn reset(&self) -> Result<()>;

    /// The kernel's notices, where the backend has any.
    fn notices(&self) -> Option<&Notices> {
        None
    }

    /// Vendor, device, class and revision.
    ///
    /// # Errors
    /// [`Error::Removed`] where the function answers all ones.
    fn ids(&self) -> Result<Ids> {
        let mut head = [0; 12];
        self.read_config(0, &mut head)?;
        if head[..2] == [0xff; 2] {
            return Err(Error::Removed { bdf: self.bdf() });
        }
        Ok(Ids {
            vendor: u16::from_le_bytes([head[0], head[1]]),
            device: u16::from_le_bytes([head[2], head[3]]),
            revision: head[8],
            class: u32::from_le_bytes([head[9], head[10], head[11], 0]),
        })
    }

    /// False once the function answers all ones (surprise removal).
    fn is_present(&self) -> bool {
        self.ids().is_ok()
    }

    /// Lets the function start DMA, or stops it (PCI 3.0, 6.2.2, command register bit 2).
    /// Turning it on turns on memory decoding too.
    ///
    /// # Errors
    /// As [`Function::write_config`].
    fn set_bus_master(&self, on: bool) -> Result<()> {
        let mut command = [0; 2];
        self.read_config(config::COMMAND, &mut command)?;
        let old = u16::from_le_bytes(command);
        let both = config::COMMAND_MEMORY | config::COMMAND_BUS_MASTER;
        let new = if on { old | both } else { old & !config::COMMAND_BUS_MASTER };
        self.write_config(config::COMMAND, &new.to_le_bytes())
    }

    /// Every capability, standard and extended, in list order.
    ///
    /// # Errors
    /// As [`Function::read_config`].
    fn capabilities(&self) -> Result<Vec<Capability>> {
        config::capabilities(&mut |offset, buf| self.read_config(offset, buf))
    }
}
