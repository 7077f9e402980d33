//! Which devices the family drives, and in what they differ.

/// What differs between the generations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Generation {
    /// 82576.
    I82576,
    /// 82580.
    I82580,
    /// I350.
    I350,
}

impl Generation {
    /// Queue pairs, all of which RSS reaches (82576EB datasheet, features; 82580 and I350 likewise).
    pub const fn queues(self) -> u16 {
        match self {
            Self::I82576 => 16,
            Self::I82580 | Self::I350 => 8,
        }
    }

    /// Exact receive addresses, the port's own among them.
    pub const fn receive_addresses(self) -> usize {
        match self {
            Self::I82576 | Self::I82580 => 24,
            Self::I350 => 32,
        }
    }

    /// Register, and lowest bit in it, of a queue's RX entry in IVAR; the TX entry is 8 bits higher.
    ///
    /// 82576: queue n is in register n mod 8, queues 8 to 15 in the upper half. Later ones: two queues to
    /// a register, in order (8.8.13).
    pub const fn ivar(self, queue: u16) -> (usize, u32) {
        match self {
            Self::I82576 => (queue as usize % 8, queue as u32 / 8 * 16),
            Self::I82580 | Self::I350 => (queue as usize / 2, queue as u32 % 2 * 16),
        }
    }
}

/// Entries of the RSS table, all generations (82576EB datasheet 8.10, RETA).
pub const RSS_TABLE: usize = 128;

/// One device ID this family drives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Model {
    /// PCI device ID (vendor 0x8086).
    pub device: u16,
    /// Its name.
    pub name: &'static str,
    /// Its generation.
    pub generation: Generation,
}

/// Intel's vendor ID.
const INTEL: u16 = 0x8086;

macro_rules! models {
    ($($device:literal $generation:ident $name:literal;)*) => {
        /// Every device of the family. IDs: 82576EB, 82580EB and I350 specification updates.
        pub const MODELS: &[Model] =
            &[$(Model { device: $device, name: $name, generation: Generation::$generation }),*];
    };
}

models! {
    0x10c9 I82576 "Intel 82576";
    0x10e6 I82576 "Intel 82576 (fiber)";
    0x10e7 I82576 "Intel 82576 (SerDes)";
    0x10e8 I82576 "Intel 82576 (quad copper)";
    0x1526 I82576 "Intel 82576 (quad copper ET2)";
    0x150a I82576 "Intel 82576NS";
    0x1518 I82576 "Intel 82576NS (SerDes)";
    0x150d I82576 "Intel 82576 (quad SerDes)";
    0x150e I82580 "Intel 82580";
    0x150f I82580 "Intel 82580 (fiber)";
    0x1510 I82580 "Intel 82580 (SerDes)";
    0x1511 I82580 "Intel 82580 (SGMII)";
    0x1516 I82580 "Intel 82580 (dual copper)";
    0x1527 I82580 "Intel 82580 (quad fiber)";
    0x1521 I350   "Intel I350";
    0x1522 I350   "Intel I350 (fiber)";
    0x1523 I350   "Intel I350 (SerDes)";
    0x1524 I350   "Intel I350 (SGMII)";
    0x1546 I350   "Intel I350 (DA4)";
}

/// What the IDs stand for, where this family drives it.
pub fn model(vendor: u16, device: u16) -> Option<&'static Model> {
    MODELS.iter().find(|model| vendor == INTEL && model.device == device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_found_once_and_only_under_intels_vendor() {
        for entry in MODELS {
            assert_eq!(model(0x8086, entry.device), Some(entry));
            assert_eq!(MODELS.iter().filter(|m| m.device == entry.device).count(), 1);
            assert_eq!(model(0x1af4, entry.device), None);
        }
        // The VFs of the 82576 and the I350 are another driver's.
        assert_eq!((model(0x8086, 0x10ca), model(0x8086, 0x1520)), (None, None));
    }

    #[test]
    fn queues_have_interrupt_entries_of_their_own() {
        for generation in [Generation::I82576, Generation::I82580, Generation::I350] {
            let entries: std::collections::BTreeSet<_> =
                (0..generation.queues()).map(|queue| generation.ivar(queue)).collect();
            assert_eq!(entries.len(), usize::from(generation.queues()));
            assert!(entries.iter().all(|&(register, shift)| register < 8 && shift <= 16));
        }
        assert_eq!(Generation::I82576.ivar(9), (1, 16));
        assert_eq!(Generation::I350.ivar(5), (2, 16));
    }
}
