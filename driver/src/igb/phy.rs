//! The internal PHY: its registers through MDIC, shared with the firmware by semaphores
//! (82576EB datasheet 8.2.4, 8.7).

use std::time::Duration;

use super::device::Device;
use super::hw::regs::*;
use super::model::Generation;
use crate::{Error, Result};

/// The internal PHY's address.
const ADDRESS: u32 = 1;
/// How long one PHY access may take: 64 bit times at 2.5 MHz are 26 us.
const ACCESS_PATIENCE: Duration = Duration::from_millis(20);
/// How long the firmware, or another driver, may hold a semaphore.
const SEMAPHORE_PATIENCE: Duration = Duration::from_millis(200);

/// PHY control (IEEE 802.3, 22.2.4.1).
const CONTROL: u32 = 0;
/// Begins autonegotiation again.
const CONTROL_AN_RESTART: u16 = 1 << 9;
/// The PHY is off the MAC.
const CONTROL_ISOLATE: u16 = 1 << 10;
/// The PHY sleeps.
const CONTROL_POWER_DOWN: u16 = 1 << 11;
/// Autonegotiates.
const CONTROL_AN_ENABLE: u16 = 1 << 12;
/// What is sent comes back.
const CONTROL_LOOPBACK: u16 = 1 << 14;
/// Autonegotiation advertisement (IEEE 802.3, 28.2.4.1.3).
const ADVERTISE: u32 = 4;
/// Pause, symmetric and not.
const ADVERTISE_PAUSE: u16 = 3 << 10;
/// 82576: power management of the PHY.
const POWER: u32 = 25;
/// 82576: low power, the lowest speed that both sides have, in D0.
const POWER_D0_LPLU: u16 = 1 << 1;

/// Begins autonegotiation of all speeds, without flow control: a receiver that is slow loses frames, and
/// counts them, but does not stop its link partner.
///
/// # Errors
/// [`Error::Timeout`] where the PHY does not answer or somebody keeps it, [`Error::Removed`].
pub(super) fn restart_autonegotiation(device: &Device, generation: Generation) -> Result<()> {
    if generation != Generation::I82576 {
        device.modify(PHPM, phpm::D0_LPLU | phpm::GO_LINK_DISCONNECT, 0);
    }
    with_phy(device, || {
        if generation == Generation::I82576 {
            modify(device, POWER, POWER_D0_LPLU, 0)?;
        }
        modify(device, ADVERTISE, ADVERTISE_PAUSE, 0)?;
        let off = CONTROL_ISOLATE | CONTROL_POWER_DOWN | CONTROL_LOOPBACK;
        modify(device, CONTROL, off, CONTROL_AN_ENABLE | CONTROL_AN_RESTART)
    })
}

fn modify(device: &Device, register: u32, clear: u16, set: u16) -> Result<()> {
    let old = access(device, register << 16 | mdic::READ)?;
    access(device, register << 16 | mdic::WRITE | u32::from(old & !clear | set)).map(drop)
}

fn access(device: &Device, command: u32) -> Result<u16> {
    device.write(MDIC, command | ADDRESS << 21);
    device.wait("PHY access (MDIC.R)", ACCESS_PATIENCE, MDIC, |value| value & mdic::READY != 0)?;
    let answer = device.read(MDIC);
    if answer & mdic::ERROR != 0 {
        return Err(device.timeout("answer of the PHY (MDIC.E)", ACCESS_PATIENCE));
    }
    Ok(answer as u16)
}

/// Does `work` while holding the port's PHY against the firmware and other ports' drivers.
fn with_phy(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let mine = match status::port(device.read(STATUS)) {
        0 => 1 << 1,
        1 => 1 << 2,
        2 => 1 << 5,
        _ => 1 << 6,
    };
    acquire(device, mine)?;
    let done = work();
    // Given back whatever came of the work; where the inner semaphore is stuck there is nobody to tell.
    if lock(device).is_ok() {
        device.modify(SW_FW_SYNC, mine, 0);
    }
    unlock(device);
    done
}

/// Sets the port's bit in SW_FW_SYNC once neither the firmware (the bit 16 higher) nor another driver has
/// it. A driver's bit that stays is one that died with it: it is taken over.
fn acquire(device: &Device, mine: u32) -> Result<()> {
    let pause = Duration::from_millis(5);
    let mut left = SEMAPHORE_PATIENCE;
    loop {
        lock(device)?;
        let held = device.read(SW_FW_SYNC);
        if held == u32::MAX {
            return Err(Error::Removed { bdf: device.bdf });
        }
        let late = left.is_zero();
        if held & mine << 16 == 0 && (held & mine == 0 || late) {
            device.write(SW_FW_SYNC, held | mine);
            unlock(device);
            return Ok(());
        }
        unlock(device);
        if late {
            return Err(device.timeout("PHY, held by the firmware (SW_FW_SYNC)", SEMAPHORE_PATIENCE));
        }
        std::thread::sleep(pause);
        left = left.saturating_sub(pause);
    }
}

/// The semaphore around SW_FW_SYNC: SMBI among drivers (reading takes it), then SWESMBI against the
/// firmware (it can be set only while the firmware has it not). A driver that died with SMBI taken is
/// overruled after the wait.
fn lock(device: &Device) -> Result<()> {
    let what = "driver semaphore (SWSM.SMBI)";
    match device.wait(what, SEMAPHORE_PATIENCE, SWSM, |value| value & swsm::SMBI == 0) {
        Ok(()) | Err(Error::Timeout { .. }) => {}
        Err(error) => return Err(error),
    }
    let taken = (0..SEMAPHORE_PATIENCE.as_millis()).any(|_| {
        device.modify(SWSM, 0, swsm::SWESMBI);
        let value = device.read(SWSM);
        let taken = value != u32::MAX && value & swsm::SWESMBI != 0;
        if !taken {
            std::thread::sleep(Duration::from_millis(1));
        }
        taken
    });
    if taken {
        return Ok(());
    }
    unlock(device);
    device.present()?;
    Err(device.timeout("firmware semaphore (SWSM.SWESMBI)", SEMAPHORE_PATIENCE))
}

fn unlock(device: &Device) {
    device.modify(SWSM, swsm::SMBI | swsm::SWESMBI, 0);
}
