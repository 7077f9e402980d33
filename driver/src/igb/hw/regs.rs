//! The registers that the driver of the physical function uses, one line each.
//!
//! Offsets are those of the 82576 (82576EB datasheet; the last column has the section), which the
//! 82580 and the I350 share unless the sentence says otherwise. ICR, ICS, IMS and IMC are at their aliases
//! below 0x100: all three decode them there, QEMU's model only there (the primary ones begin at 0x1500). A
//! queue's own block (RDBAL, TDT, ...) is [`crate::igb::queue::QueueRegs`].

/// What may be done to a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read and written.
    Rw,
    /// Read only.
    Ro,
    /// Written only.
    Wo,
    /// Reading clears it.
    Rc,
}

/// One register, or an array of equal ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// Its name in the datasheet.
    pub name: &'static str,
    /// Byte offset of the first in BAR 0.
    pub offset: usize,
    /// Bytes from one to the next.
    pub stride: usize,
    /// How many there are.
    pub count: usize,
    /// What may be done to it.
    pub access: Access,
    /// Datasheet section.
    pub section: &'static str,
}

impl Register {
    /// Offset of element `index`. One that does not exist is outside any BAR: reads give all ones there,
    /// writes are dropped.
    pub const fn at(&self, index: usize) -> usize {
        if index < self.count { self.offset + index * self.stride } else { usize::MAX }
    }
}

macro_rules! registers {
    ($($name:ident $offset:literal + $stride:literal x $count:literal $access:ident $what:literal $section:literal;)*) => {
        $(
            #[doc = concat!($what, " (", $section, ").")]
            pub const $name: Register = Register {
                name: stringify!($name),
                offset: $offset,
                stride: $stride,
                count: $count,
                access: Access::$access,
                section: $section,
            };
        )*

        /// Every register of the table.
        pub const ALL: &[Register] = &[$($name),*];
    };
}

registers! {
    // Name    Offset    Stride Count Access                                                     Section
    CTRL       0x00000 + 4 x 1    Rw "Device control: link, reset, VLAN mode"                      "8.2.1";
    STATUS     0x00008 + 4 x 1    Ro "Device status: link, speed, port number, master enable. Never written by the driver, so it tells removal" "8.2.2";
    EEC        0x00010 + 4 x 1    Rw "NVM control: present, auto-read done"                        "8.4";
    EERD       0x00014 + 4 x 1    Rw "NVM word read"                                               "8.4";
    CTRL_EXT   0x00018 + 4 x 1    Rw "Extended device control: link mode, driver loaded"           "8.2.3";
    MDIC       0x00020 + 4 x 1    Rw "PHY register access"                                         "8.2.4";
    SERDESCTL  0x00024 + 4 x 1    Rw "SerDes analog control"                                       "8.2";
    RCTL       0x00100 + 4 x 1    Rw "Receive control"                                             "8.10.1";
    FCTTV      0x00170 + 4 x 1    Rw "Flow control: pause time sent"                               "8.5";
    TCTL       0x00400 + 4 x 1    Rw "Transmit control"                                            "8.12";
    TCTL_EXT   0x00404 + 4 x 1    Rw "Transmit control: collision distance"                        "8.12";
    TIPG       0x00410 + 4 x 1    Rw "Gap between frames sent"                                     "8.12";
    PHPM       0x00e14 + 4 x 1    Rw "PHY power management, 82580 and I350 only"                   "8, 82580 datasheet";
    EEMNGCTL   0x01010 + 4 x 1    Rw "Management NVM control: PHY configuration done"              "8.4";
    ICR        0x000c0 + 4 x 1    Rc "Interrupt causes other than queues"                          "8.8";
    ICS        0x000c8 + 4 x 1    Wo "Sets interrupt causes"                                       "8.8";
    IMS        0x000d0 + 4 x 1    Rw "Lets causes of ICR through"                                  "8.8";
    IMC        0x000d8 + 4 x 1    Wo "Masks causes of ICR"                                         "8.8.10";
    GPIE       0x01514 + 4 x 1    Rw "Interrupt mode"                                              "7.3.2.11";
    EIMS       0x01524 + 4 x 1    Rw "Lets vectors through: arms them"                             "8.8";
    EIMC       0x01528 + 4 x 1    Wo "Masks vectors"                                               "8.8";
    EIAC       0x0152c + 4 x 1    Rw "Vectors whose cause clears itself when the message is sent"  "8.8.5";
    EIAM       0x01530 + 4 x 1    Rw "Vectors that mask themselves when the message is sent"       "8.8.6";
    EITR       0x01680 + 4 x 25   Rw "Least time between a vector's interrupts"                    "8.8";
    IVAR       0x01700 + 4 x 8    Rw "Vectors of the queues"                                       "8.8.13";
    IVAR_MISC  0x01740 + 4 x 1    Rw "Vectors of the TCP timer and of the causes in ICR"           "8.8";
    FCRTL      0x02160 + 4 x 1    Rw "Flow control: fill level that ends a pause"                  "8.5";
    FCRTH      0x02168 + 4 x 1    Rw "Flow control: fill level that starts a pause"                "8.5";
    CRCERRS    0x04000 + 4 x 1    Rc "Frames with a bad FCS"                                       "8.19";
    ALGNERRC   0x04004 + 4 x 1    Rc "Frames with an alignment error"                              "8.19";
    RXERRC     0x0400c + 4 x 1    Rc "Frames with a receive error signalled by the PHY"            "8.19";
    MPC        0x04010 + 4 x 1    Rc "Frames lost for lack of room in the packet buffer"           "8.19";
    ECOL       0x04018 + 4 x 1    Rc "Frames given up after 16 collisions"                         "8.19";
    LATECOL    0x04020 + 4 x 1    Rc "Late collisions"                                             "8.19";
    TNCRS      0x04034 + 4 x 1    Rc "Frames sent without carrier sense"                           "8.19";
    RLEC       0x04040 + 4 x 1    Rc "Frames too short or too long"                                "8.19";
    GPRC       0x04074 + 4 x 1    Rc "Good frames received"                                        "8.19";
    BPRC       0x04078 + 4 x 1    Rc "Broadcast frames received"                                   "8.19";
    MPRC       0x0407c + 4 x 1    Rc "Multicast frames received"                                   "8.19";
    GPTC       0x04080 + 4 x 1    Rc "Good frames sent"                                            "8.19";
    GORCL      0x04088 + 4 x 1    Rc "Good bytes received, low half: read first"                   "8.19";
    GORCH      0x0408c + 4 x 1    Rc "Good bytes received, high half: reading clears both"         "8.19";
    GOTCL      0x04090 + 4 x 1    Rc "Good bytes sent, low half: read first"                       "8.19";
    GOTCH      0x04094 + 4 x 1    Rc "Good bytes sent, high half: reading clears both"             "8.19";
    RFC        0x040a8 + 4 x 1    Rc "Fragments: too short, with a bad FCS"                        "8.19";
    MPTC       0x040f0 + 4 x 1    Rc "Multicast frames sent"                                       "8.19";
    BPTC       0x040f4 + 4 x 1    Rc "Broadcast frames sent"                                       "8.19";
    PCS_CFG    0x04200 + 4 x 1    Rw "PCS configuration"                                           "8";
    PCS_LCTL   0x04208 + 4 x 1    Rw "PCS link control"                                            "8";
    PCS_LSTAT  0x0420c + 4 x 1    Ro "PCS link status"                                             "8";
    PCS_ANADV  0x04218 + 4 x 1    Rw "PCS: what autonegotiation offers"                            "8";
    RXCSUM     0x05000 + 4 x 1    Rw "Receive checksums, and the hash in their place"              "8.10";
    RLPML      0x05004 + 4 x 1    Rw "Longest frame received, FCS included"                        "8.10";
    MTA        0x05200 + 4 x 128  Rw "Multicast hash table, one bit each"                          "8.10";
    RAL        0x05400 + 8 x 16   Rw "Receive addresses 0 to 15, bytes 0 to 3"                     "8.10";
    RAH        0x05404 + 8 x 16   Rw "Receive addresses 0 to 15, bytes 4 and 5, and valid"         "8.10";
    RAL_HIGH   0x054e0 + 8 x 16   Rw "Receive addresses 16 and up (to 23; I350: to 31), bytes 0 to 3" "8.10";
    RAH_HIGH   0x054e4 + 8 x 16   Rw "Receive addresses 16 and up, bytes 4 and 5, and valid"       "8.10";
    VFTA       0x05600 + 4 x 128  Rw "VLAN filter, one bit for each VLAN"                          "8.10";
    MRQC       0x05818 + 4 x 1    Rw "RSS on, and what is hashed"                                  "8.10";
    SWSM       0x05b50 + 4 x 1    Rw "Semaphore between drivers, and with the firmware"            "8.7";
    SW_FW_SYNC 0x05b5c + 4 x 1    Rw "Who has the NVM and the PHYs"                                "8.7";
    RETA       0x05c00 + 4 x 32   Rw "RSS table, four entries each"                                "8.10";
    RSSRK      0x05c80 + 4 x 10   Rw "RSS key"                                                     "8.10";
    GCR        0x05b00 + 4 x 1    Rw "PCI Express control: completion timeout"                     "8.6.1";
    UTA        0x0a000 + 4 x 128  Wo "Unicast hash table; used by virtualization only"             "8.10";
    RQDPC      0x0c030 + 64 x 16  Rc "Frames that an RX queue dropped for lack of descriptors"     "8.10";
    DVMOLR     0x0c038 + 64 x 8   Rw "Strip VLAN tag and FCS, each queue; I350 only"               "8, I350 datasheet";
}

/// Bits of [`CTRL`].
pub mod ctrl {
    /// Full duplex.
    pub const FD: u32 = 1 << 0;
    /// Stops new requests to the bus.
    pub const MASTER_DISABLE: u32 = 1 << 2;
    /// Set link up: the PHY and the MAC talk to each other.
    pub const SLU: u32 = 1 << 6;
    /// Forced speed: 1000 Mb/s.
    pub const SPEED_1000: u32 = 2 << 8;
    /// Forces the speed.
    pub const FORCE_SPEED: u32 = 1 << 11;
    /// Forces the duplex mode.
    pub const FORCE_DUPLEX: u32 = 1 << 12;
    /// Software-defined pins 0 and 1, high: the optics of 82576 SerDes cards.
    pub const SDP01_HIGH: u32 = 3 << 18;
    /// Resets the function; clears itself.
    pub const RST: u32 = 1 << 26;
    /// Heeds pause frames.
    pub const RFCE: u32 = 1 << 27;
    /// Sends pause frames.
    pub const TFCE: u32 = 1 << 28;
    /// VLAN mode: tags are stripped on receive.
    pub const VME: u32 = 1 << 30;
}

/// Bits of [`STATUS`].
pub mod status {
    /// Full duplex.
    pub const FD: u32 = 1 << 0;
    /// Link up.
    pub const LU: u32 = 1 << 1;
    /// The bus master is on.
    pub const MASTER_ENABLE: u32 = 1 << 19;

    /// The port's number in its device.
    pub const fn port(status: u32) -> u32 {
        status >> 2 & 3
    }

    /// Code of the speed: 10, 100, 1000, 1000 Mb/s.
    pub const fn speed(status: u32) -> u32 {
        match status >> 6 & 3 {
            0 => 10,
            1 => 100,
            _ => 1000,
        }
    }
}

/// Bits of [`CTRL_EXT`].
pub mod ctrl_ext {
    /// Software-defined pin 3: off, the SFP cage has power.
    pub const SDP3: u32 = 1 << 7;
    /// A driver is loaded, the firmware is told.
    pub const DRV_LOAD: u32 = 1 << 28;

    /// Link mode: 0 internal PHY, 1 1000BASE-KX, 2 SGMII, 3 SerDes.
    pub const fn link_mode(ctrl_ext: u32) -> u32 {
        ctrl_ext >> 22 & 3
    }
}

/// Bits of [`EEC`].
pub mod eec {
    /// An NVM is there.
    pub const PRESENT: u32 = 1 << 8;
    /// It has been read after the reset.
    pub const AUTO_READ_DONE: u32 = 1 << 9;
}

/// Bits of [`EERD`]: start 0, done 1, address from 2, data from 16.
pub mod eerd {
    /// Starts the read.
    pub const START: u32 = 1 << 0;
    /// It is done.
    pub const DONE: u32 = 1 << 1;
}

/// Bits of [`MDIC`]: data from 0, register from 16, PHY from 21.
pub mod mdic {
    /// Writes.
    pub const WRITE: u32 = 1 << 26;
    /// Reads.
    pub const READ: u32 = 2 << 26;
    /// Done.
    pub const READY: u32 = 1 << 28;
    /// The PHY did not answer.
    pub const ERROR: u32 = 1 << 30;
}

/// Bits of [`RCTL`].
pub mod rctl {
    /// The receiver is on.
    pub const RXEN: u32 = 1 << 1;
    /// Every station address.
    pub const UPE: u32 = 1 << 3;
    /// Every group address.
    pub const MPE: u32 = 1 << 4;
    /// Frames longer than 1522 bytes, up to RLPML.
    pub const LPE: u32 = 1 << 5;
    /// Broadcast.
    pub const BAM: u32 = 1 << 15;
    /// VLAN filter.
    pub const VFE: u32 = 1 << 18;
    /// The FCS is stripped.
    pub const SECRC: u32 = 1 << 26;
}

/// Bits of [`TCTL`].
pub mod tctl {
    /// The transmitter is on.
    pub const EN: u32 = 1 << 1;
    /// Short frames are padded.
    pub const PSP: u32 = 1 << 3;
    /// Collision threshold: 15.
    pub const CT_15: u32 = 15 << 4;
    /// All of the threshold.
    pub const CT: u32 = 0xff << 4;
    /// Sends again after a late collision.
    pub const RTLC: u32 = 1 << 24;
}

/// Bits of [`TCTL_EXT`].
pub mod tctl_ext {
    /// Collision distance: 63 bytes, for half duplex.
    pub const COLD_63: u32 = 63 << 10;
    /// All of the distance.
    pub const COLD: u32 = 0x3ff << 10;
}

/// Value of [`TIPG`].
pub mod tipg {
    /// IPGT 8, IPGR1 4, IPGR 6: what 802.3 asks for, and the reset value.
    pub const RECOMMENDED: u32 = 8 | 4 << 10 | 6 << 20;
}

/// Bits of [`RXCSUM`].
pub mod rxcsum {
    /// Checks IPv4 header checksums.
    pub const IPOFLD: u32 = 1 << 8;
    /// Checks TCP and UDP checksums.
    pub const TUOFLD: u32 = 1 << 9;
    /// Checks SCTP's CRC.
    pub const CRCOFLD: u32 = 1 << 11;
    /// The descriptor has the RSS hash, not the fragment's checksum.
    pub const PCSD: u32 = 1 << 13;
}

/// Bits of [`MRQC`].
pub mod mrqc {
    /// RSS over all queues.
    pub const RSS: u32 = 2;
    /// TCP over IPv4.
    pub const IPV4_TCP: u32 = 1 << 16;
    /// IPv4.
    pub const IPV4: u32 = 1 << 17;
    /// TCP over IPv6, extension headers looked into.
    pub const IPV6_TCP_EX: u32 = 1 << 18;
    /// IPv6.
    pub const IPV6: u32 = 1 << 20;
    /// TCP over IPv6.
    pub const IPV6_TCP: u32 = 1 << 21;
    /// UDP over IPv4.
    pub const IPV4_UDP: u32 = 1 << 22;
    /// UDP over IPv6.
    pub const IPV6_UDP: u32 = 1 << 23;
}

/// Bits of [`RAH`].
pub mod rah {
    /// The address is valid.
    pub const AV: u32 = 1 << 31;
}

/// Bits of [`ICR`], [`ICS`], [`IMS`] and [`IMC`].
pub mod icr {
    /// The link changed.
    pub const LSC: u32 = 1 << 2;
    /// Fatal error: uncorrectable memory error.
    pub const FER: u32 = 1 << 22;
    /// DMA is out of step.
    pub const DOUTSYNC: u32 = 1 << 28;
    /// Somebody reset the whole device.
    pub const DRSTA: u32 = 1 << 30;
    /// What only a reset helps against.
    pub const FAULTS: u32 = FER | DOUTSYNC | DRSTA;
}

/// Bits of [`GPIE`].
pub mod gpie {
    /// Reading ICR clears all of it.
    pub const NSICR: u32 = 1 << 0;
    /// MSI-X with several vectors.
    pub const MULTIPLE_MSIX: u32 = 1 << 4;
    /// EIAM works on the sending of a message.
    pub const EIAME: u32 = 1 << 30;
    /// MSI-X pending bits are kept.
    pub const PBA: u32 = 1 << 31;
}

/// Bits of an entry of [`IVAR`].
pub mod ivar {
    /// The entry counts.
    pub const VALID: u32 = 1 << 7;
}

/// Bits of [`SWSM`].
pub mod swsm {
    /// Taken by a driver: reading sets it.
    pub const SMBI: u32 = 1 << 0;
    /// Taken by software, not firmware, where it can be set.
    pub const SWESMBI: u32 = 1 << 1;
}

/// Bits of [`PHPM`].
pub mod phpm {
    /// Low power: the lowest speed that both sides have.
    pub const D0_LPLU: u32 = 1 << 1;
    /// The PHY drops the link.
    pub const GO_LINK_DISCONNECT: u32 = 1 << 5;
}

/// Bits of [`PCS_CFG`] and [`PCS_LCTL`].
pub mod pcs {
    /// PCS_CFG: the PCS is on.
    pub const ENABLE: u32 = 1 << 3;
    /// PCS_LCTL: link up, forced.
    pub const FORCED_LINK_UP: u32 = 1 << 0;
    /// PCS_LCTL: forced speed 1000 Mb/s.
    pub const FORCED_1000: u32 = 2 << 1;
    /// PCS_LCTL: forced full duplex.
    pub const FORCED_FULL: u32 = 1 << 3;
    /// PCS_LCTL: speed and duplex are forced.
    pub const FORCE: u32 = 1 << 4;
    /// PCS_LCTL: link state is forced.
    pub const FORCE_LINK: u32 = 1 << 5;
    /// PCS_LCTL: flow control is forced.
    pub const FORCE_FLOW_CONTROL: u32 = 1 << 7;
    /// PCS_LCTL: autonegotiates.
    pub const AN_ENABLE: u32 = 1 << 16;
    /// PCS_LCTL: begins again.
    pub const AN_RESTART: u32 = 1 << 17;
    /// PCS_ANADV: pause, both directions.
    pub const ADVERTISE_PAUSE: u32 = 3 << 7;
}

/// Bits of [`PCS_LSTAT`].
pub mod pcs_lstat {
    /// Link up.
    pub const LINK_OK: u32 = 1 << 0;
    /// Full duplex.
    pub const FULL: u32 = 1 << 3;

    /// Speed in Mb/s.
    pub const fn speed(lstat: u32) -> u32 {
        match lstat >> 1 & 3 {
            0 => 10,
            1 => 100,
            _ => 1000,
        }
    }
}

/// Bits of [`DVMOLR`].
pub mod dvmolr {
    /// Strips the VLAN tag.
    pub const STRVLAN: u32 = 1 << 30;
    /// Strips the FCS.
    pub const STRCRC: u32 = 1 << 31;
}

/// Bits of [`GCR`].
pub mod gcr {
    /// A request that was not answered in time is sent again.
    pub const COMPLETION_TIMEOUT_RESEND: u32 = 1 << 16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn no_two_registers_share_an_offset_and_all_are_in_the_bar() {
        let mut seen = BTreeMap::new();
        for register in ALL {
            for index in 0..register.count {
                let at = register.at(index);
                assert!(at.is_multiple_of(4) && at < 0x2_0000, "{} {at:#x}", register.name);
                let other = seen.insert(at, register.name);
                assert_eq!(other, None, "{at:#x} is {} too", register.name);
            }
        }
    }

    #[test]
    fn an_element_that_does_not_exist_is_outside_the_bar() {
        assert_eq!(RETA.at(31), 0x5c7c);
        assert_eq!(RETA.at(32), usize::MAX);
        assert_eq!(RAH_HIGH.at(7), 0x551c);
    }
}
