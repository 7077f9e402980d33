//! From any state to a reset, quiet device (82576EB datasheet 4.5, software initialization).

use std::time::Duration;

use pci::{Function, config};

use super::device::Device;
use super::hw::regs::*;
use super::model::Model;
use super::queue::QueueRegs;
use crate::{Error, MacAddr, Result};

/// How long the bus master may take to finish what it has begun: longer than a completion timeout, which
/// is 55 ms at the most in the default range (PCI Express 4.0, 7.5.3.16).
const MASTER_PATIENCE: Duration = Duration::from_millis(100);
/// How long a reset may take. It is done in microseconds; the NVM is read again after it.
const RESET_PATIENCE: Duration = Duration::from_millis(100);
/// How long reading the NVM may take after a reset (4.2.1.6.1).
const AUTO_READ_PATIENCE: Duration = Duration::from_millis(10);
/// How long the firmware may take to configure the PHY after a reset.
const PHY_CONFIGURATION_PATIENCE: Duration = Duration::from_millis(100);
/// How long reading one word of the NVM may take.
const NVM_PATIENCE: Duration = Duration::from_millis(5);

/// Sum of words 0 to 63 of a sound NVM (82576EB datasheet chapter 6, word 0x3F).
const NVM_SUM: u16 = 0xbaba;

/// Memory decoding on, bus master off.
///
/// # Errors
/// As [`Function::write_config`].
pub(super) fn silence(function: &dyn Function) -> Result<()> {
    let mut command = [0; 2];
    function.read_config(config::COMMAND, &mut command)?;
    let quiet = u16::from_le_bytes(command) & !config::COMMAND_BUS_MASTER | config::COMMAND_MEMORY;
    Ok(function.write_config(config::COMMAND, &quiet.to_le_bytes())?)
}

/// Masks every interrupt and forgets what is pending (4.5, interrupts during initialization).
pub(super) fn mask_interrupts(device: &Device) {
    device.write(EIMC, u32::MAX);
    device.write(IMC, u32::MAX);
    let _ = device.read(ICR);
}

/// Receiver and transmitter off, then no more requests to the bus: the end of all DMA, once it returns
/// without error (4.2.1.6.1, PCIe master disable).
///
/// # Errors
/// [`Error::Timeout`] where the device goes on, [`Error::Removed`].
pub(super) fn stop_master(device: &Device) -> Result<()> {
    device.modify(RCTL, rctl::RXEN, 0);
    device.modify(TCTL, tctl::EN, 0);
    device.modify(CTRL, 0, ctrl::MASTER_DISABLE);
    let what = "end of bus requests (STATUS.GIO_Master_Enable)";
    device.wait(what, MASTER_PATIENCE, STATUS, |value| value & status::MASTER_ENABLE == 0)
}

/// Resets the function: registers have their defaults, no queue is enabled, no interrupt comes.
///
/// # Errors
/// [`Error::Timeout`] where the reset does not end, [`Error::Removed`].
pub(super) fn reset(device: &Device, model: &Model) -> Result<()> {
    device.present()?;
    // 4.5: interrupts off before the reset and, since it enables some, after it again.
    mask_interrupts(device);
    // A device that does not let go of the bus is reset all the more: the reset ends its requests.
    let _ = stop_master(device);
    device.modify(CTRL, 0, ctrl::RST);
    // 4.2.1.6.1: a millisecond before the first look.
    std::thread::sleep(Duration::from_millis(1));
    device.wait("reset (CTRL.RST)", RESET_PATIENCE, CTRL, |value| value & ctrl::RST == 0)?;
    wait_for_nvm(device);
    mask_interrupts(device);
    device.modify(CTRL, ctrl::MASTER_DISABLE, 0);
    // 8.6.1: a request that timed out is an error, not to be tried for ever.
    device.modify(GCR, gcr::COMPLETION_TIMEOUT_RESEND, 0);
    // 8.10.10, 8.12.13: queue 0 comes out of the reset enabled.
    for queue in 0..model.generation.queues() {
        QueueRegs::pf_rx(device.bar.clone(), queue)
            .disable(device.bdf, "disabling an RX queue after the reset")?;
        QueueRegs::pf_tx(device.bar.clone(), queue)
            .disable(device.bdf, "disabling a TX queue after the reset")?;
    }
    Ok(())
}

/// Waits for the NVM's settings to be in place: registers first, then the PHY's (4.2.1.6.1, 4.5).
/// There are cards whose NVM says neither, and QEMU's model has no sign of them: no error.
fn wait_for_nvm(device: &Device) {
    let read = device.wait("NVM auto-read (EEC.Auto_RD)", AUTO_READ_PATIENCE, EEC, |value| {
        value & eec::AUTO_READ_DONE != 0
    });
    if read.is_ok() {
        let done = 1 << (18 + status::port(device.read(STATUS)));
        let what = "PHY configuration (EEMNGCTL.CFG_DONE)";
        let _ = device.wait(what, PHY_CONFIGURATION_PATIENCE, EEMNGCTL, |value| value & done != 0);
    }
}

/// The port's own address, which the device has read from its NVM into the first receive address.
///
/// # Errors
/// [`Error::Nvm`] where the NVM's checksum is wrong or the address is none that a station may have.
pub(super) fn mac_address(device: &Device) -> Result<MacAddr> {
    check_nvm(device)?;
    let (low, high) = (device.read_at(RAL, 0), device.read_at(RAH, 0));
    let [a, b, c, d] = low.to_le_bytes();
    let [e, f, ..] = high.to_le_bytes();
    let mac = MacAddr([a, b, c, d, e, f]);
    if high & rah::AV == 0 || !mac.is_station() {
        return Err(Error::Nvm { bdf: device.bdf, what: format!("the MAC address {mac} is no station's") });
    }
    Ok(mac)
}

fn check_nvm(device: &Device) -> Result<()> {
    if device.read(EEC) & eec::PRESENT == 0 {
        return Ok(());
    }
    let mut sum = 0u16;
    for word in 0..0x40 {
        sum = sum.wrapping_add(nvm_word(device, word)?);
    }
    if sum != NVM_SUM {
        let what = format!("the checksum of words 0 to 0x3f is {sum:#06x}, not {NVM_SUM:#06x}");
        return Err(Error::Nvm { bdf: device.bdf, what });
    }
    Ok(())
}

/// One word of the NVM.
///
/// # Errors
/// [`Error::Timeout`], [`Error::Removed`].
pub(super) fn nvm_word(device: &Device, word: u32) -> Result<u16> {
    device.write(EERD, word << 2 | eerd::START);
    device.wait("NVM word read (EERD.DONE)", NVM_PATIENCE, EERD, |value| value & eerd::DONE != 0)?;
    Ok((device.read(EERD) >> 16) as u16)
}
