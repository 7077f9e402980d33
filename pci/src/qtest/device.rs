//! A function of a machine, as a driver sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bus::{self, Bars, Config, Region};
use super::link::{Link, Width};
use super::vectors::{Vectors, Word};
use crate::bar::RegisterIo;
use crate::config::{COMMAND, Express, Msix, SrIov};
use crate::interrupt::{MSIX_ENTRY, MSIX_VECTOR_CONTROL};
use crate::{Bar, Bdf, Error, Function, Interrupt, IovaSpace, Result};

/// MSI-X Message Control: enable, mask the whole function (PCI 3.0, 6.8.2.3).
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK_ALL: u16 = 1 << 14;
/// Express capability: Device Control; its bit 15 starts a function-level reset.
const DEVICE_CONTROL: u16 = 0x08;
const START_FLR: u16 = 1 << 15;

/// What all functions of a machine share.
pub(super) struct Host {
    pub(super) link: Arc<Link>,
    pub(super) vectors: Arc<Vectors>,
    pub(super) space: Arc<IovaSpace>,
}

/// Vendor and device ID of a VF, whose own registers read all ones (PCI Express 4.0, 9.3.4.1.1); the
/// kernel fills them in for VFIO, so this backend does.
pub(super) type Identity = [u8; 4];

pub(super) struct Device {
    host: Arc<Host>,
    config: Config,
    bars: Bars,
    identity: Option<Identity>,
    /// True once the card is out of its slot.
    gone: Arc<AtomicBool>,
    words: Mutex<Vec<Word>>,
}

impl Device {
    pub(super) fn new(
        host: Arc<Host>,
        config: Config,
        bars: Bars,
        identity: Option<Identity>,
        gone: Arc<AtomicBool>,
    ) -> Self {
        Self { host, config, bars, identity, gone, words: Mutex::default() }
    }

    fn words(&self) -> MutexGuard<'_, Vec<Word>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the messages of all words and enables MSI-X.
    fn program(&self, words: &[Word]) -> Result<()> {
        let (at, Msix { table_bar, table_offset, .. }) = self.config.capability::<Msix>()?;
        let bar = self.bar(table_bar)?;
        self.config.write16(at + 2, MSIX_ENABLE | MSIX_MASK_ALL)?;
        for (vector, word) in words.iter().enumerate() {
            let entry = table_offset as usize + vector * MSIX_ENTRY;
            for (part, value) in word.message().into_iter().enumerate() {
                bar.write32(entry + 4 * part, value);
            }
            bar.write32(entry + MSIX_VECTOR_CONTROL, 0);
        }
        self.config.write16(at + 2, MSIX_ENABLE)
    }

    /// Stops the device's messages first, then forgets the words.
    fn silence(&self, words: &mut Vec<Word>) -> Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        let stopped = self.stop(words.len());
        for word in words.drain(..) {
            self.host.vectors.release(&word);
        }
        stopped
    }

    fn stop(&self, vectors: usize) -> Result<()> {
        let (at, Msix { table_bar, table_offset, .. }) = self.config.capability::<Msix>()?;
        self.config.write16(at + 2, 0)?;
        let bar = self.bar(table_bar)?;
        for vector in 0..vectors {
            bar.write32(table_offset as usize + vector * MSIX_ENTRY + MSIX_VECTOR_CONTROL, 1);
        }
        Ok(())
    }

    /// The configuration registers that a reset clears and that the kernel restores after it.
    fn save(&self, express: u16) -> Result<Vec<(u16, u32)>> {
        let mut offsets: Vec<u16> = (0..6).map(|i| bus::HEADER_BARS + 4 * i).collect();
        if let Ok((sriov, _)) = self.config.capability::<SrIov>() {
            offsets.push(sriov + bus::SRIOV_PAGE_SIZE);
            offsets.extend((0..6).map(|i| sriov + bus::SRIOV_BARS + 4 * i));
        }
        // The command register comes last: memory is decoded once the BARs are back.
        offsets.extend([express + DEVICE_CONTROL, COMMAND]);
        offsets.into_iter().map(|at| Ok((at, self.config.read32(at)?))).collect()
    }
}

impl Function for Device {
    fn bdf(&self) -> Bdf {
        self.config.bdf
    }

    fn backend(&self) -> &'static str {
        "qtest"
    }

    fn read_config(&self, offset: u16, buf: &mut [u8]) -> Result<()> {
        self.config.read(offset, buf)?;
        // Present, as the class code tells: that of a VF is its PF's.
        if let Some(identity) = self.identity.filter(|_| offset < 4)
            && self.config.read32(8)? != u32::MAX
        {
            let from = usize::from(offset);
            buf.iter_mut().zip(&identity[from..]).for_each(|(byte, id)| *byte = *id);
        }
        Ok(())
    }

    fn write_config(&self, offset: u16, buf: &[u8]) -> Result<()> {
        self.config.write(offset, buf)
    }

    fn bar(&self, index: u8) -> Result<Bar> {
        let region = self.bars.get(usize::from(index)).copied().flatten();
        let Region { address, len } = region.ok_or(Error::NoBar { bdf: self.bdf(), index })?;
        let io = Registers { link: self.host.link.clone(), address, gone: self.gone.clone() };
        Ok(Bar::trapped(Arc::new(io), len as usize))
    }

    fn iova_space(&self) -> &Arc<IovaSpace> {
        &self.host.space
    }

    fn enable_interrupts(&self, count: u16) -> Result<Vec<Interrupt>> {
        self.ids()?;
        let (_, Msix { table_size, table_bar, table_offset, .. }) = self.config.capability::<Msix>()?;
        if count > table_size {
            return Err(Error::Vectors { bdf: self.bdf(), wanted: count, have: table_size });
        }
        let mut words = self.words();
        self.silence(&mut words)?;
        let bar = self.bar(table_bar)?;
        let mut interrupts = Vec::new();
        for vector in 0..count {
            let entry = table_offset as usize + usize::from(vector) * MSIX_ENTRY;
            let interrupt = Interrupt::new(vector, Some((bar.clone(), entry)))?;
            words.push(self.host.vectors.watch(&interrupt)?);
            interrupts.push(interrupt);
        }
        if count > 0 {
            self.program(&words)?;
        }
        Ok(interrupts)
    }

    fn disable_interrupts(&self) -> Result<()> {
        self.silence(&mut self.words())
    }

    /// Initiate Function Level Reset (PCI Express 4.0, 6.6.2). As after VFIO's reset, BARs, MSI-X
    /// vectors and the command register are then what they were; VFs are gone. QEMU resets before the
    /// write returns: there are no 100 ms to wait.
    fn reset(&self) -> Result<()> {
        self.ids()?;
        let (express, Express { flr, .. }) = self.config.capability::<Express>()?;
        if !flr {
            return Err(Error::NoReset { bdf: self.bdf() });
        }
        let words = self.words();
        let saved = self.save(express)?;
        let control = self.config.read16(express + DEVICE_CONTROL)?;
        self.config.write16(express + DEVICE_CONTROL, control | START_FLR)?;
        for (at, value) in saved {
            // The upper halves of the command and Device Control registers are status bits, which
            // writing ones clears.
            match at {
                _ if at == COMMAND || at == express + DEVICE_CONTROL => {
                    self.config.write16(at, value as u16)?;
                }
                _ => self.config.write32(at, value)?,
            }
        }
        if words.is_empty() { Ok(()) } else { self.program(&words) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.disable_interrupts();
        let _ = self.set_bus_master(false);
    }
}

/// A BAR's registers, one message for each access.
struct Registers {
    link: Arc<Link>,
    address: u64,
    gone: Arc<AtomicBool>,
}

impl RegisterIo for Registers {
    fn read32(&self, offset: usize) -> u32 {
        // QEMU answers 0 where nothing is; a root complex answers all ones.
        if self.gone.load(Ordering::Relaxed) {
            return u32::MAX;
        }
        self.link.read(Width::Long, self.address + offset as u64).unwrap_or(u32::MAX)
    }

    fn write32(&self, offset: usize, value: u32) {
        if !self.gone.load(Ordering::Relaxed) {
            // The link keeps the reason; the contract is that a failed write is dropped.
            let _ = self.link.write(Width::Long, self.address + offset as u64, value);
        }
    }
}
