//! What can go wrong in a NIC driver.

use pci::Bdf;

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, on which device, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Below the driver.
    #[error(transparent)]
    Pci(#[from] pci::Error),
    /// No memory for buffers.
    #[error(transparent)]
    Pool(#[from] dataplane::mempool::PoolError),
    /// No family drives this device.
    #[error("{bdf}: {vendor:04x}:{device:04x} is not supported: `cargo run --example list` shows what is")]
    Unsupported {
        /// The function.
        bdf: Bdf,
        /// PCI vendor.
        vendor: u16,
        /// PCI device.
        device: u16,
    },
    /// The device did not do in time what it must.
    #[error("{bdf}: {what} not done after {millis} ms: the device hangs; reset its slot or power-cycle")]
    Timeout {
        /// The function.
        bdf: Bdf,
        /// What was waited for.
        what: &'static str,
        /// How long.
        millis: u64,
    },
    /// The device was removed.
    #[error(
        "{bdf}: the device is gone (reads return all ones): reseat it or rescan the bus, then open it again"
    )]
    Removed {
        /// The function.
        bdf: Bdf,
    },
    /// A setting that the device cannot have.
    #[error("{bdf}: {what}: {allowed}")]
    Setting {
        /// The function.
        bdf: Bdf,
        /// The setting and the value asked for.
        what: String,
        /// What it may be.
        allowed: String,
    },
    /// The port must be stopped, or started, first.
    #[error("{bdf}: {what}")]
    State {
        /// The function.
        bdf: Bdf,
        /// What must be done first.
        what: &'static str,
    },
    /// The device's non-volatile memory makes no sense.
    #[error("{bdf}: {what}: the card's NVM is damaged; rewrite it with the vendor's tool")]
    Nvm {
        /// The function.
        bdf: Bdf,
        /// What was wrong.
        what: String,
    },
}
