//! [`QueueRegs`]: the registers of one queue, the same for PF and VF apart from where they are.
//!
//! 82576EB datasheet 8.10 (receive), 8.12 (transmit).

use std::time::{Duration, Instant};

use pci::{Bar, Bdf};

pub use super::ring::abandoned;

use crate::{Error, Result};

/// How long a queue may take to come up or to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// Enable bit of RXDCTL and TXDCTL (8.10.10, 8.12.15).
const ENABLE: u32 = 1 << 25;

/// The register block of one queue. RX and TX blocks have the same offsets.
#[derive(Clone, Debug)]
pub struct QueueRegs {
    bar: Bar,
    base: usize,
}

/// The depths a ring can have.
pub const DEPTHS: (u16, u16, u16) = (32, 4096, 8);

/// Refuses a depth that the device cannot have: the length in bytes is a multiple of 128 (8.10.7).
pub(super) fn check_depth(depth: u16, bdf: Bdf) -> Result<()> {
    let (least, most, multiple) = DEPTHS;
    if (least..=most).contains(&depth) && depth.is_multiple_of(multiple) {
        return Ok(());
    }
    Err(setting(bdf, format!("a ring of {depth} descriptors"), "give a multiple of 8 from 32 to 4096"))
}

pub(super) fn setting(bdf: Bdf, what: String, allowed: &str) -> Error {
    Error::Setting { bdf, what, allowed: allowed.into() }
}

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $offset:literal;)*) => {
        $($(#[$doc])* pub const $name: usize = $offset;)*
    };
}

/// Offsets in a queue's block.
pub mod offset {
    registers! {
        /// Ring base, low 32 bits (RDBAL, TDBAL).
        BASE_LOW = 0x00;
        /// Ring base, high 32 bits (RDBAH, TDBAH).
        BASE_HIGH = 0x04;
        /// Ring length in bytes (RDLEN, TDLEN).
        LENGTH = 0x08;
        /// Split and replication receive control (SRRCTL); receive only.
        SRRCTL = 0x0c;
        /// Head (RDH, TDH).
        HEAD = 0x10;
        /// Tail (RDT, TDT).
        TAIL = 0x18;
        /// Control (RXDCTL, TXDCTL).
        CONTROL = 0x28;
        /// Head write-back address, low 32 bits (TDWBAL); transmit only.
        WRITE_BACK_LOW = 0x38;
        /// Head write-back address, high 32 bits (TDWBAH); transmit only.
        WRITE_BACK_HIGH = 0x3c;
    }
}

impl QueueRegs {
    /// The block at `base` of `bar`.
    pub fn new(bar: Bar, base: usize) -> Self {
        Self { bar, base }
    }

    /// RX queue `n` of a PF: 0xC000 + 0x40 n.
    pub fn pf_rx(bar: Bar, n: u16) -> Self {
        Self::new(bar, 0xc000 + 0x40 * usize::from(n))
    }

    /// TX queue `n` of a PF: 0xE000 + 0x40 n.
    pub fn pf_tx(bar: Bar, n: u16) -> Self {
        Self::new(bar, 0xe000 + 0x40 * usize::from(n))
    }

    /// RX queue `n` of a VF: 0x2800 + 0x100 n.
    pub fn vf_rx(bar: Bar, n: u16) -> Self {
        Self::new(bar, 0x2800 + 0x100 * usize::from(n))
    }

    /// TX queue `n` of a VF: 0x3800 + 0x100 n.
    pub fn vf_tx(bar: Bar, n: u16) -> Self {
        Self::new(bar, 0x3800 + 0x100 * usize::from(n))
    }

    /// Reads a register of the block, by its [`offset`].
    pub fn read(&self, offset: usize) -> u32 {
        self.bar.read32(self.base + offset)
    }

    /// Writes a register of the block, by its [`offset`].
    #[inline]
    pub fn write(&self, offset: usize, value: u32) {
        self.bar.write32(self.base + offset, value);
    }

    /// Writes the tail: the doorbell.
    #[inline]
    pub fn set_tail(&self, index: u32) {
        self.write(offset::TAIL, index);
    }

    /// Where the device is.
    pub fn head(&self) -> u32 {
        self.read(offset::HEAD)
    }

    /// True while the device serves the queue.
    pub fn is_enabled(&self) -> bool {
        let control = self.read(offset::CONTROL);
        control != u32::MAX && control & ENABLE != 0
    }

    /// Sets base, length, head and tail of a disabled queue.
    pub(super) fn set_ring(&self, iova: u64, bytes: u32) {
        self.write(offset::BASE_LOW, iova as u32);
        self.write(offset::BASE_HIGH, (iova >> 32) as u32);
        self.write(offset::LENGTH, bytes);
        self.write(offset::HEAD, 0);
        self.write(offset::TAIL, 0);
    }

    /// Enables the queue with the thresholds in `control`, and waits until it is.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Removed`].
    pub(super) fn enable(&self, control: u32, bdf: Bdf, what: &'static str) -> Result<()> {
        self.write(offset::CONTROL, control | ENABLE);
        self.wait(true, bdf, what)
    }

    /// Disables the queue and waits until it is: no DMA for it afterwards (4.5.9.2, 4.5.10.2).
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Removed`].
    pub fn disable(&self, bdf: Bdf, what: &'static str) -> Result<()> {
        let control = self.read(offset::CONTROL);
        if control == u32::MAX {
            return Err(Error::Removed { bdf });
        }
        self.write(offset::CONTROL, control & !ENABLE);
        self.wait(false, bdf, what)
    }

    fn wait(&self, enabled: bool, bdf: Bdf, what: &'static str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Looked at first: a thread that was not scheduled meanwhile must not see a timeout.
            let late = Instant::now() >= deadline;
            match self.read(offset::CONTROL) {
                u32::MAX => return Err(Error::Removed { bdf }),
                control if (control & ENABLE != 0) == enabled => return Ok(()),
                _ if late => {
                    return Err(Error::Timeout { bdf, what, millis: PATIENCE.as_millis() as u64 });
                }
                _ => std::hint::spin_loop(),
            }
        }
    }
}
