//! [`VfioFunction`]: a function through its VFIO device file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};

use super::{Lease, sys};
use crate::bar::RegisterMapping;
use crate::config::{self, Msix, Structure};
use crate::function::Notices;
use crate::interrupt::MSIX_ENTRY;
use crate::removal::MappedRegisters;
use crate::{Bar, Bdf, Error, Function, Interrupt, IovaSpace, RegisterIo, Result};

/// Base address register 0 in configuration space; bit 0 set in I/O space (PCI 3.0, 6.2.5.1).
const BAR0: u16 = 0x10;
/// How often a reset is tried while the kernel has the device locked, 10 ms apart.
const RESET_TRIES: u32 = 50;

/// An open device file. Kept by whatever is mapped from it: the kernel holds on to the device until the
/// last mapping is gone, and the group must not leave the container before.
pub(super) struct Device {
    // In this order: the file is closed before the lease is given back.
    pub file: File,
    pub lease: Lease,
}

/// One function. See [`Function`].
pub(super) struct VfioFunction {
    device: Arc<Device>,
    config: sys::Region,
    can_reset: bool,
    notices: Notices,
    bars: Mutex<[Option<OpenBar>; 6]>,
    /// True while MSI-X is enabled: the kernel refuses to disable what is not.
    interrupts: Mutex<bool>,
}

#[derive(Clone)]
struct OpenBar {
    bar: Bar,
    /// Where it is mapped.
    registers: Option<Arc<MappedRegisters>>,
}

impl VfioFunction {
    pub(super) fn new(device: Device) -> Result<Self> {
        let bdf = device.lease.bdf;
        let describe = |e| Error::io(format!("{bdf}: describing it"), e);
        let function = Self {
            config: sys::region(&device.file, VFIO_PCI_CONFIG_REGION_INDEX).map_err(describe)?,
            can_reset: sys::can_reset(&device.file).map_err(describe)?,
            notices: Notices { removal: Interrupt::new(0, None)?, error: Interrupt::new(0, None)? },
            bars: Mutex::default(),
            interrupts: Mutex::default(),
            device: Arc::new(device),
        };
        // Without memory decoding every access to a BAR is a bus error. Bus mastering waits for the
        // driver, whoever had the function before.
        function.set_command(config::COMMAND_BUS_MASTER, config::COMMAND_MEMORY)?;
        for (index, notice) in [
            (VFIO_PCI_ERR_IRQ_INDEX, &function.notices.error),
            (VFIO_PCI_REQ_IRQ_INDEX, &function.notices.removal),
        ] {
            // Not every function can report errors: conventional PCI cannot.
            if sys::irq_count(&function.device.file, index).unwrap_or(0) > 0 {
                function.set_irqs(index, &[notice.as_fd().as_raw_fd()])?;
            }
        }
        Ok(function)
    }

    fn set_command(&self, clear: u16, set: u16) -> Result<()> {
        let mut command = [0; 2];
        self.read_config(config::COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command) & !clear | set;
        self.write_config(config::COMMAND, &command.to_le_bytes())
    }

    fn set_irqs(&self, index: u32, events: &[RawFd]) -> Result<()> {
        sys::set_irqs(&self.device.file, index, events).map_err(|e| self.failed("setting interrupts", e))
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::io(format!("{}: {what}", self.bdf()), error)
    }

    /// The file offset of `offset` in configuration space, and how many of `len` bytes there are: a
    /// conventional function has 256 bytes only.
    fn config_range(&self, offset: u16, len: usize) -> (u64, usize) {
        let left = self.config.size.saturating_sub(offset.into());
        (self.config.offset + u64::from(offset), len.min(left as usize))
    }

    fn open_bar(&self, index: u8) -> Result<OpenBar> {
        let absent = Error::NoBar { bdf: self.bdf(), index };
        if index > 5 {
            return Err(absent);
        }
        let region = sys::region(&self.device.file, VFIO_PCI_BAR0_REGION_INDEX + u32::from(index))
            .map_err(|e| self.failed("describing a BAR", e))?;
        let mut register = [0; 4];
        self.read_config(BAR0 + 4 * u16::from(index), &mut register)?;
        let len = usize::try_from(region.size).unwrap_or(0);
        if len == 0 || register[0] & 1 != 0 {
            return Err(absent);
        }
        // Kernels before 4.16 let the MSI-X table's pages not be mapped, and describe the others as
        // sparse. A BAR is mapped as a whole or not at all.
        if region.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || region.sparse {
            let io = Arc::new(TrappedRegion { device: self.device.clone(), offset: region.offset });
            return Ok(OpenBar { bar: Bar::trapped(io, len), registers: None });
        }
        let keep = self.device.clone();
        let registers = MappedRegisters::map(&self.device.file, region.offset, len, keep)?;
        let mapping: Arc<dyn RegisterMapping> = registers.clone();
        Ok(OpenBar { bar: Bar::mapped(mapping), registers: Some(registers) })
    }

    fn open_bars(&self) -> MutexGuard<'_, [Option<OpenBar>; 6]> {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has vectors 0, 1, ... fire these eventfds, in place of those before. MSI-X is off in between: an
    /// enabled one only takes as many vectors as it has.
    fn route_vectors(&self, events: &[RawFd]) -> Result<()> {
        let mut enabled = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner);
        if *enabled {
            self.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, &[])?;
            *enabled = false;
        }
        if !events.is_empty() {
            self.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, events)?;
            *enabled = true;
        }
        Ok(())
    }

    fn cached_bar(&self, index: u8) -> Result<OpenBar> {
        let mut bars = self.open_bars();
        if let Some(Some(open)) = bars.get(usize::from(index)) {
            return Ok(open.clone());
        }
        let open = self.open_bar(index)?;
        bars[usize::from(index)] = Some(open.clone());
        Ok(open)
    }
}

impl Function for VfioFunction {
    fn bdf(&self) -> Bdf {
        self.device.lease.bdf
    }

    fn backend(&self) -> &'static str {
        "vfio"
    }

    fn read_config(&self, offset: u16, buf: &mut [u8]) -> Result<()> {
        let (at, len) = self.config_range(offset, buf.len());
        let (there, beyond) = buf.split_at_mut(len);
        beyond.fill(0xff);
        self.device.file.read_exact_at(there, at).map_err(|e| self.failed("reading configuration space", e))
    }

    fn write_config(&self, offset: u16, buf: &[u8]) -> Result<()> {
        let (at, len) = self.config_range(offset, buf.len());
        let written = self.device.file.write_all_at(&buf[..len], at);
        written.map_err(|e| self.failed("writing configuration space", e))
    }

    fn bar(&self, index: u8) -> Result<Bar> {
        Ok(self.cached_bar(index)?.bar)
    }

    fn iova_space(&self) -> &Arc<IovaSpace> {
        self.device.lease.vfio.iova_space()
    }

    fn enable_interrupts(&self, count: u16) -> Result<Vec<Interrupt>> {
        let msix = Msix::of(self)?;
        let have = sys::irq_count(&self.device.file, VFIO_PCI_MSIX_IRQ_INDEX);
        let have = have.map_err(|e| self.failed("counting vectors", e))?.min(msix.table_size.into()) as u16;
        if count == 0 || count > have {
            return Err(Error::Vectors { bdf: self.bdf(), wanted: count, have });
        }
        // The kernel answers reads of the table that come through it with ones, and drops writes: only a
        // mapped table can mask.
        let table = self.cached_bar(msix.table_bar).ok().filter(|open| open.registers.is_some());
        let entry = |vector: u16| {
            let at = msix.table_offset as usize + usize::from(vector) * MSIX_ENTRY;
            Some((table.as_ref()?.bar.clone(), at))
        };
        let vectors: Vec<_> =
            (0..count).map(|vector| Interrupt::new(vector, entry(vector))).collect::<Result<_>>()?;
        let events: Vec<_> = vectors.iter().map(|vector| vector.as_fd().as_raw_fd()).collect();
        self.route_vectors(&events)?;
        Ok(vectors)
    }

    fn disable_interrupts(&self) -> Result<()> {
        self.route_vectors(&[])
    }

    /// The kernel saves the configuration header and MSI-X before, and restores them after: what was
    /// enabled stays so, except for bus mastering.
    fn reset(&self) -> Result<()> {
        if !self.can_reset {
            return Err(Error::NoReset { bdf: self.bdf() });
        }
        self.set_bus_master(false)?;
        for _ in 0..RESET_TRIES {
            match sys::reset(&self.device.file) {
                // Somebody has the device locked: sysfs, or the bus.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => thread::sleep(Duration::from_millis(10)),
                result => return result.map_err(|e| self.failed("resetting it", e)),
            }
        }
        Err(self.failed("resetting it", io::Error::from_raw_os_error(libc::EAGAIN)))
    }

    fn is_present(&self) -> bool {
        let lost = |open: &OpenBar| open.registers.as_ref().is_some_and(|r| r.is_lost());
        !self.open_bars().iter().flatten().any(lost) && self.ids().is_ok()
    }

    fn notices(&self) -> Option<&Notices> {
        Some(&self.notices)
    }
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        // Both fail only where the device is gone, and then there is nothing to quiesce.
        let _ = self.set_bus_master(false);
        let _ = self.disable_interrupts();
    }
}

/// A BAR whose pages may not be mapped: each access is a system call.
struct TrappedRegion {
    device: Arc<Device>,
    offset: u64,
}

impl RegisterIo for TrappedRegion {
    fn read32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        let read = self.device.file.read_exact_at(&mut bytes, self.offset + offset as u64);
        read.map_or(u32::MAX, |()| u32::from_le_bytes(bytes))
    }

    fn write32(&self, offset: usize, value: u32) {
        let _ = self.device.file.write_all_at(&value.to_le_bytes(), self.offset + offset as u64);
    }
}
