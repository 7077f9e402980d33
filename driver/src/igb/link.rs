//! The link: which medium there is, how it is brought up, what it has come to
//! (82576EB datasheet 3.5, 4.5).

use super::device::Device;
use super::hw::regs::*;
use super::model::Generation;
use super::{init, phy};
use crate::{Link, Result};

/// Word of the NVM with the bit below.
const NVM_COMPATIBILITY: u32 = 3;
/// 82576: the PCS shall not negotiate.
const NVM_NO_PCS_AUTONEGOTIATION: u16 = 1 << 14;

/// What is between the MAC and the cable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Medium {
    /// The internal PHY, copper.
    Copper,
    /// The internal PCS: optics or direct-attach copper, 1000 Mb/s, autonegotiated (802.3 clause 37).
    SerDes,
    /// A backplane: 1000BASE-KX, not negotiated.
    Backplane,
}

impl Medium {
    /// As the NVM has set it (CTRL_EXT.LINK_MODE).
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for SGMII: an external PHY, behind MDIO or I2C, that nothing here knows.
    pub(super) fn of(device: &Device) -> Result<Self> {
        match ctrl_ext::link_mode(device.read(CTRL_EXT)) {
            0 => Ok(Self::Copper),
            1 => Ok(Self::Backplane),
            3 => Ok(Self::SerDes),
            _ => Err(device.setting(
                "link mode SGMII (CTRL_EXT.LINK_MODE = 2), as the card's NVM has it",
                "the internal copper PHY, SerDes (SFP optics) or 1000BASE-KX: external PHYs are not driven",
            )),
        }
    }

    /// Sets the link up and begins autonegotiation (4.5, link setup). No flow control, see
    /// [`phy::restart_autonegotiation`]. The link comes up later, if it does.
    ///
    /// # Errors
    /// As [`phy::restart_autonegotiation`].
    pub(super) fn bring_up(self, device: &Device, generation: Generation) -> Result<()> {
        // 8.5: thresholds of zero send no pause frames.
        for register in [FCRTL, FCRTH, FCTTV] {
            device.write(register, 0);
        }
        match self {
            Self::Copper => {
                // 4.5: the MAC takes speed and duplex from the PHY.
                let clear = ctrl::FORCE_SPEED | ctrl::FORCE_DUPLEX | ctrl::RFCE | ctrl::TFCE;
                device.modify(CTRL, clear, ctrl::SLU);
                phy::restart_autonegotiation(device, generation)
            }
            Self::SerDes | Self::Backplane => {
                self.bring_up_pcs(device, generation)?;
                device.present()
            }
        }
    }

    /// 1000 Mb/s full duplex is all there is; the PCS negotiates it, or it is forced: on a backplane, and
    /// on an 82576 whose NVM says so (4.5, SerDes link setup).
    fn bring_up_pcs(self, device: &Device, generation: Generation) -> Result<()> {
        let negotiates = self == Self::SerDes
            && (generation != Generation::I82576
                || init::nvm_word(device, NVM_COMPATIBILITY)? & NVM_NO_PCS_AUTONEGOTIATION == 0);
        // SerDes loopback outlives a reset: off, explicitly.
        device.write(SERDESCTL, 0x400);
        device.modify(CTRL_EXT, ctrl_ext::SDP3, 0);
        let pins = if generation == Generation::I82576 { ctrl::SDP01_HIGH } else { 0 };
        let forced = ctrl::SPEED_1000 | ctrl::FORCE_SPEED | ctrl::FD | ctrl::FORCE_DUPLEX;
        device.modify(CTRL, ctrl::RFCE | ctrl::TFCE, ctrl::SLU | forced | pins);
        device.modify(PCS_CFG, 0, pcs::ENABLE);
        device.modify(PCS_ANADV, pcs::ADVERTISE_PAUSE, 0);
        let old =
            pcs::AN_ENABLE | pcs::FORCED_LINK_UP | pcs::FORCE | pcs::FORCE_LINK | pcs::FORCE_FLOW_CONTROL;
        let mode =
            if negotiates { pcs::AN_ENABLE | pcs::AN_RESTART } else { pcs::FORCE | pcs::FORCE_FLOW_CONTROL };
        device.modify(PCS_LCTL, old, pcs::FORCED_1000 | pcs::FORCED_FULL | mode);
        Ok(())
    }

    /// The link as it is now; down where the device is gone.
    pub(super) fn link(self, device: &Device) -> Link {
        let (up, speed, full_duplex) = match self {
            Self::Copper => {
                let value = device.read(STATUS);
                let up = value != u32::MAX && value & status::LU != 0;
                (up, status::speed(value), value & status::FD != 0)
            }
            // STATUS is not accurate then.
            Self::SerDes | Self::Backplane => {
                let value = device.read(PCS_LSTAT);
                let up = value != u32::MAX && value & pcs_lstat::LINK_OK != 0;
                (up, pcs_lstat::speed(value), value & pcs_lstat::FULL != 0)
            }
        };
        if up { Link { up, speed, full_duplex } } else { Link::default() }
    }
}
