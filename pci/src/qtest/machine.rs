//! [`Machine`]: the running QEMU, its NICs as functions, and what a test does to them.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapRaw;

use super::builder::{Builder, Wires};
use super::bus::{self, Bars, Config, Region, Slot};
use super::device::{Device, Host};
use super::link::Link;
use super::process::Process;
use super::vectors::Vectors;
use super::wire::Wire;
use crate::config::{self, SrIov};
use crate::dma::Arena;
use crate::{Error, Function, IovaSpace, Result};

/// Not for DMA: MSI-X words, and the hole below 1 MiB where a PC has no RAM.
const RESERVED: u64 = 1 << 20;
/// SR-IOV control: VFs exist, VFs decode memory, VFs use alternative routing IDs.
const VFS_ON: u16 = 1 << 0 | 1 << 3 | 1 << 4;

/// A QEMU with NICs and no guest. It ends when this is dropped, whoever still holds its functions:
/// they read all ones then, and DMA memory stays mapped.
pub struct Machine {
    host: Arc<Host>,
    process: Process,
    nics: Vec<Nic>,
    hub_wires: Vec<(u8, Wire)>,
}

struct Nic {
    slot: Slot,
    wire: Option<Wire>,
    gone: Arc<AtomicBool>,
    /// The function given out, while somebody holds it.
    open: Mutex<Weak<Device>>,
}

impl Machine {
    /// Describes a machine.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) fn new(
        process: Process,
        link: Arc<Link>,
        ram: &Arc<MmapRaw>,
        vectors: Arc<Vectors>,
        wires: Wires,
    ) -> Result<Self> {
        bus::open_ecam(&link)?;
        // A monitor refuses all commands until it is told that its greeting was read.
        link.qmp("qmp_capabilities", "{}")?;
        let mut nics = Vec::new();
        for (index, wire) in wires.of_nics.into_iter().enumerate() {
            let slot = Slot::set_up(&link, index)?;
            nics.push(Nic { slot, wire, gone: Arc::default(), open: Mutex::default() });
        }
        let host = Arc::new(Host { link, vectors, space: space(ram)? });
        Ok(Self { host, process, nics, hub_wires: wires.on_hubs })
    }

    /// NIC `nic`, counted from 0 in the order they were added. One function, as VFIO has it: while
    /// somebody holds it, this is the same one; when the last holder drops it, it is quiesced.
    ///
    /// # Panics
    /// Where there are not that many NICs.
    pub fn function(&self, nic: usize) -> Arc<dyn Function> {
        let nic = &self.nics[nic];
        let mut open = nic.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.upgrade() {
            return device;
        }
        let device =
            Device::new(self.host.clone(), nic.slot.card.clone(), nic.slot.bars, None, nic.gone.clone());
        let device = Arc::new(device);
        *open = Arc::downgrade(&device);
        device
    }

    /// The far end of the cable of NIC `nic`.
    ///
    /// # Panics
    /// Where there are not that many NICs, or this one is on a hub.
    pub fn wire(&self, nic: usize) -> Wire {
        self.nics[nic].wire.clone().expect("the NIC's cable leads to a hub: see Builder::wire_on_hub")
    }

    /// This process's wire to that hub.
    ///
    /// # Panics
    /// Where [`Builder::wire_on_hub`] added none.
    pub fn hub_wire(&self, hub: u8) -> Wire {
        let found = self.hub_wires.iter().find(|(number, _)| *number == hub);
        found.expect("no such wire: see Builder::wire_on_hub").1.clone()
    }

    /// The one address space of all NICs: an address is an offset in the machine's RAM.
    pub fn iova_space(&self) -> &Arc<IovaSpace> {
        &self.host.space
    }

    /// Plugs the cable of NIC `nic` in, or pulls it. Frames sent meanwhile are lost.
    ///
    /// # Errors
    /// As [`Machine::qmp`].
    pub fn set_link(&self, nic: usize, up: bool) -> Result<()> {
        self.qmp("set_link", &format!("{{\"name\":\"nic{nic}\",\"up\":{up}}}")).map(drop)
    }

    /// Pulls card `nic` out of its slot, unannounced. It reads all ones from here on, and so do its
    /// VFs; there is no way back.
    ///
    /// # Errors
    /// [`Error::Peer`] where QEMU has ended.
    ///
    /// # Panics
    /// Where there are not that many NICs.
    pub fn remove(&self, nic: usize) -> Result<()> {
        let nic = &self.nics[nic];
        nic.gone.store(true, Ordering::Relaxed);
        nic.slot.power_off()
    }

    /// Executes any QMP command, with `arguments` as a JSON object; answers the JSON that it returns.
    ///
    /// # Errors
    /// [`Error::Peer`] with QEMU's words where it refuses, or where it has ended.
    pub fn qmp(&self, command: &str, arguments: &str) -> Result<String> {
        self.host.link.qmp(command, arguments)
    }

    /// Gives NIC `nic` that many virtual functions, in place of those it had, and answers them. The
    /// functions of a former call are no longer to be used.
    ///
    /// # Errors
    /// [`Error::NoCapability`] where it has no SR-IOV, [`Error::NumVfs`] where it has fewer VFs.
    ///
    /// # Panics
    /// Where there are not that many NICs.
    pub fn enable_vfs(&self, nic: usize, count: u16) -> Result<Vec<Arc<dyn Function>>> {
        let nic = &self.nics[nic];
        let pf = &nic.slot.card;
        let (at, SrIov { total_vfs: total, vf_device_id, .. }) = pf.capability::<SrIov>()?;
        if count > total {
            return Err(Error::NumVfs { bdf: pf.bdf, wanted: count, total });
        }
        pf.write16(at + bus::SRIOV_CONTROL, 0)?;
        pf.write16(at + bus::SRIOV_COUNT, count)?;
        pf.write16(at + bus::SRIOV_CONTROL, if count > 0 { VFS_ON } else { 0 })?;
        // Where they are depends on how many there are, so that is asked now.
        let (_, sriov) = pf.capability::<SrIov>()?;
        let identity = (u32::from(vf_device_id) << 16 | u32::from(pf.read16(0)?)).to_le_bytes();
        let vf = |index| {
            let bdf = sriov.vf_bdf(pf.bdf, index).ok_or(Error::NotFound { bdf: pf.bdf })?;
            let config = Config::new(self.host.link.clone(), bdf);
            // A VF's own bit means nothing to hardware (PCI Express 4.0, 9.3.4.1.3); QEMU 10.0 decodes
            // nothing without it.
            config.write16(config::COMMAND, config::COMMAND_MEMORY)?;
            let bars = of_vf(&nic.slot.vf_bars, index);
            let vf = Device::new(self.host.clone(), config, bars, Some(identity), nic.gone.clone());
            Ok(Arc::new(vf) as Arc<dyn Function>)
        };
        (0..count).map(vf).collect()
    }

    /// Kills QEMU: what a crash of the device's side looks like.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// QEMU's process ID.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Why QEMU answers no more, once it does not.
    pub fn failure(&self) -> Option<String> {
        self.host.link.failure().map(str::to_owned)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.host.link.close("its Machine was dropped");
    }
}

/// DMA memory: the machine's RAM, whose addresses are offsets.
fn space(ram: &Arc<MmapRaw>) -> Result<Arc<IovaSpace>> {
    let nowhere = || Error::Peer { peer: "QEMU".into(), what: "its RAM is mapped nowhere".into() };
    let base = NonNull::new(ram.as_mut_ptr()).ok_or_else(nowhere)?;
    let arena = Arena { base, keep: ram.clone(), range: RESERVED..=ram.len() as u64 - 1 };
    Ok(IovaSpace::over_arena("the RAM of a qtest machine", arena))
}

/// VF BARs lie one behind the other (PCI Express 4.0, 9.3.3.14).
fn of_vf(first: &Bars, index: u16) -> Bars {
    first.map(|bar| {
        bar.map(|Region { address, len }| Region { address: address + u64::from(index) * len, len })
    })
}
