//! What firmware would have done: configuration space through ECAM, bus numbers, BAR addresses.
//!
//! Registers: PCI Local Bus 3.0 chapter 6; PCI-to-PCI Bridge 1.2 chapter 3; PCI Express Base 4.0
//! chapters 7.5.3 (Express capability) and 9.3.3 (SR-IOV); PCIEXBAR: Intel 82Q35 (MCH) data sheet 5.1.16.

use std::sync::Arc;

use super::link::{Link, Width};
use crate::config::{self, CONFIG_SIZE, Express, SrIov, Structure};
use crate::{Bdf, Error, Result};

/// Where configuration space appears, 1 MiB a bus, above any RAM that this backend gives QEMU.
const ECAM: u64 = 0xb000_0000;
/// BARs begin here, just above ECAM's 256 buses, ...
const WINDOWS: u64 = 0xc000_0000;
/// ... in a window for each root port. 28 of them end below the I/O APIC at 0xfec0_0000.
const WINDOW: u64 = 0x100_0000;

/// First BAR in a function's header.
pub(super) const HEADER_BARS: u16 = 0x10;
/// SR-IOV capability: control (VF Enable, VF Memory Space Enable, ARI Capable Hierarchy).
pub(super) const SRIOV_CONTROL: u16 = 0x08;
/// SR-IOV capability: NumVFs.
pub(super) const SRIOV_COUNT: u16 = 0x10;
/// SR-IOV capability: System Page Size.
pub(super) const SRIOV_PAGE_SIZE: u16 = 0x20;
/// SR-IOV capability: first VF BAR.
pub(super) const SRIOV_BARS: u16 = 0x24;
/// Express capability: Slot Control.
const SLOT_CONTROL: u16 = 0x18;
/// Slot Control: power off, power indicator off.
const SLOT_OFF: u16 = 1 << 10 | 3 << 8;
/// Express capability: Device Control 2; bit 5 forwards requests with alternative routing IDs.
const DEVICE_CONTROL_2: u16 = 0x28;
const ARI_FORWARDING: u16 = 1 << 5;

/// A BAR with an address. VF BARs: that of the first VF, and one VF's length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) address: u64,
    pub(super) len: u64,
}

/// The memory BARs of a function, by index.
pub(super) type Bars = [Option<Region>; 6];

/// One function's configuration space.
#[derive(Clone)]
pub(super) struct Config {
    link: Arc<Link>,
    pub(super) bdf: Bdf,
}

impl Config {
    pub(super) fn new(link: Arc<Link>, bdf: Bdf) -> Self {
        Self { link, bdf }
    }

    /// Reads; all ones where it fails, and beyond the end.
    pub(super) fn read(&self, offset: u16, buf: &mut [u8]) -> Result<()> {
        buf.fill(0xff);
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() && at < CONFIG_SIZE {
            let width = Width::fitting(at, rest.len());
            let value = self.link.read(width, self.address(at))?;
            let (head, tail) = rest.split_at_mut(width as usize);
            head.copy_from_slice(&value.to_le_bytes()[..width as usize]);
            at += width as u16;
            rest = tail;
        }
        Ok(())
    }

    /// Writes; what lies beyond the end is dropped.
    pub(super) fn write(&self, offset: u16, buf: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() && at < CONFIG_SIZE {
            let width = Width::fitting(at, rest.len());
            let (head, tail) = rest.split_at(width as usize);
            let mut value = [0; 4];
            value[..head.len()].copy_from_slice(head);
            self.link.write(width, self.address(at), u32::from_le_bytes(value))?;
            at += width as u16;
            rest = tail;
        }
        Ok(())
    }

    pub(super) fn read16(&self, offset: u16) -> Result<u16> {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    pub(super) fn read32(&self, offset: u16) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub(super) fn write16(&self, offset: u16, value: u16) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    pub(super) fn write32(&self, offset: u16, value: u32) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    /// Offset of a capability and what it says.
    pub(super) fn capability<T: Structure>(&self) -> Result<(u16, T)> {
        let mut read = |offset: u16, buf: &mut [u8]| self.read(offset, buf);
        let all = config::capabilities(&mut read)?;
        let place = all.iter().find(|c| c.id == T::ID && c.extended == T::EXTENDED).map(|c| c.offset);
        let missing = Error::NoCapability { bdf: self.bdf, name: T::NAME };
        place.zip(T::find(&mut read)?).ok_or(missing)
    }

    fn address(&self, offset: u16) -> u64 {
        let Bdf { bus, device, function, .. } = self.bdf;
        ECAM + (u64::from(bus) << 20)
            + (u64::from(device) << 15)
            + (u64::from(function) << 12)
            + u64::from(offset)
    }
}

/// Makes configuration space appear at [`ECAM`], through the ports that every PC has.
pub(super) fn open_ecam(link: &Link) -> Result<()> {
    for (register, value) in [(0x64, 0), (0x60, ECAM as u32 | 1)] {
        link.out32(0xcf8, 0x8000_0000 | register)?;
        link.out32(0xcfc, value)?;
    }
    Ok(())
}

/// The root port of NIC `nic`, and the card in it.
pub(super) struct Slot {
    port: Config,
    /// The card's function 0.
    pub(super) card: Config,
    pub(super) bars: Bars,
    pub(super) vf_bars: Bars,
}

impl Slot {
    /// The device number of NIC `nic`'s root port on bus 0; its secondary bus has the same number.
    pub(super) fn number(nic: usize) -> u8 {
        nic as u8 + 1
    }

    /// Numbers the bus behind NIC `nic`'s root port, opens its window and places the card's BARs.
    pub(super) fn set_up(link: &Arc<Link>, nic: usize) -> Result<Self> {
        let bus = Self::number(nic);
        let at = |bus, device| Config::new(link.clone(), Bdf { domain: 0, bus, device, function: 0 });
        let (port, card) = (at(0, bus), at(bus, 0));
        let start = WINDOWS + nic as u64 * WINDOW;
        open_port(&port, bus, start)?;
        if card.read16(0)? == 0xffff {
            return Err(Error::NotFound { bdf: card.bdf });
        }
        let mut free = start;
        let bars = place(&card, HEADER_BARS, 1, &mut free, start + WINDOW)?;
        let vf_bars = match card.capability::<SrIov>() {
            Ok((at, SrIov { total_vfs, .. })) => {
                place(&card, at + SRIOV_BARS, total_vfs.into(), &mut free, start + WINDOW)?
            }
            Err(Error::NoCapability { .. }) => Bars::default(),
            Err(error) => return Err(error),
        };
        card.write16(config::COMMAND, config::COMMAND_MEMORY)?;
        Ok(Self { port, card, bars, vf_bars })
    }

    /// Takes the power from the slot; QEMU then takes the card out of it.
    pub(super) fn power_off(&self) -> Result<()> {
        let (express, _) = self.port.capability::<Express>()?;
        self.port.write16(express + SLOT_CONTROL, SLOT_OFF)
    }
}

fn open_port(port: &Config, bus: u8, start: u64) -> Result<()> {
    // Primary bus 0, secondary and subordinate `bus`.
    port.write32(0x18, u32::from(bus) << 8 | u32::from(bus) << 16)?;
    // Memory base and limit hold address bits 31:20; prefetchable memory is closed by base > limit.
    let (base, limit) = (start >> 16, (start + WINDOW - 1) >> 16);
    port.write32(0x20, (base as u32 & 0xfff0) | (limit as u32 & 0xfff0) << 16)?;
    port.write32(0x24, 0x0000_fff0)?;
    // VFs have device numbers other than 0, which a port forwards only so.
    let (express, _) = port.capability::<Express>()?;
    port.write16(express + DEVICE_CONTROL_2, ARI_FORWARDING)?;
    port.write16(config::COMMAND, config::COMMAND_MEMORY | config::COMMAND_BUS_MASTER)
}

/// Sizes the six BARs at `first`, and gives each memory BAR room for `copies` of it.
fn place(config: &Config, first: u16, copies: u64, free: &mut u64, end: u64) -> Result<Bars> {
    let mut bars = Bars::default();
    let mut index = 0;
    while index < 6 {
        let at = first + 4 * index;
        let (len, wide) = size(config, at)?;
        if len > 0 {
            let address = free.next_multiple_of(len);
            *free = address + len * copies;
            if *free > end {
                let what = format!("{}: its BARs exceed the {} MiB of a slot", config.bdf, WINDOW >> 20);
                return Err(Error::Peer { peer: "QEMU".into(), what });
            }
            config.write32(at, address as u32)?;
            bars[usize::from(index)] = Some(Region { address, len });
        }
        index += if wide { 2 } else { 1 };
    }
    Ok(bars)
}

/// Length of the memory BAR at `at`, 0 where there is none, and whether it takes two registers.
/// Writing all ones reads back the address bits that it decodes (PCI 3.0, 6.2.5.1).
fn size(config: &Config, at: u16) -> Result<(u64, bool)> {
    let ones = |at| config.write32(at, u32::MAX).and_then(|()| config.read32(at));
    let low = ones(at)?;
    config.write32(at, 0)?;
    let (io, wide) = (low & 1 != 0, low & 0b111 == 0b100);
    if io || low == 0 {
        return Ok((0, false));
    }
    let mut mask = u64::from(low & !0xf) | 0xffff_ffff << 32;
    if wide {
        mask = mask & 0xffff_ffff | u64::from(ones(at + 4)?) << 32;
        config.write32(at + 4, 0)?;
    }
    Ok((mask.wrapping_neg(), wide))
}
