//! Which frames are received: addresses, promiscuous modes, VLANs (82576EB datasheet 7.1, 8.10).
//!
//! The exact addresses hold the port's own address first, then stations from the front and groups from
//! the back. Groups that find no place go through the hash table, which lets some strangers through.

use super::device::Device;
use super::hw::regs::*;
use super::model::Generation;
use crate::{MacAddr, Result, VlanConfig};

/// 32-bit words of the multicast hash table.
const HASH_WORDS: usize = 128;
/// VLAN IDs that may be used (802.1Q: 4095 is reserved).
const VLANS: std::ops::RangeInclusive<u16> = 0..=4094;

/// The port's address filters, and what the device has of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Addresses {
    stations: Vec<MacAddr>,
    groups: Vec<MacAddr>,
    slots: usize,
    programmed: Layout,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Layout {
    exact: Vec<Option<MacAddr>>,
    hash: [u32; HASH_WORDS],
}

impl Addresses {
    /// Only the port's own address.
    pub(super) fn new(own: MacAddr, generation: Generation) -> Self {
        let slots = generation.receive_addresses();
        let programmed = Layout { exact: vec![None; slots], hash: [0; HASH_WORDS] };
        Self { stations: vec![own], groups: Vec::new(), slots, programmed }
    }

    /// Adds an address; one that is there already stays.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for the address zero, and where every exact address is a station's.
    pub(super) fn add(&mut self, device: &Device, mac: MacAddr) -> Result<()> {
        if mac == MacAddr::default() {
            return Err(device.setting(format!("receive address {mac}"), "any address but zero"));
        }
        if self.holds(mac) {
            return Ok(());
        }
        if mac.is_multicast() {
            self.groups.push(mac);
        } else if self.stations.len() < self.slots {
            self.stations.push(mac);
        } else {
            let allowed = format!(
                "at most {} station addresses, the port's own among them: remove one, or be promiscuous",
                self.slots
            );
            return Err(device.setting(format!("receive address {mac}"), allowed));
        }
        self.program_changes(device);
        device.present()
    }

    /// Removes an address that was added.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] where it was not, and for the port's own.
    pub(super) fn remove(&mut self, device: &Device, mac: MacAddr) -> Result<()> {
        let what = || format!("removing receive address {mac}");
        if mac == self.stations[0] {
            return Err(device.setting(what(), "any but the port's own address"));
        }
        let list = if mac.is_multicast() { &mut self.groups } else { &mut self.stations };
        let Some(at) = list.iter().position(|&held| held == mac) else {
            return Err(device.setting(what(), "an address that was added before"));
        };
        list.swap_remove(at);
        self.program_changes(device);
        device.present()
    }

    fn holds(&self, mac: MacAddr) -> bool {
        self.stations.contains(&mac) || self.groups.contains(&mac)
    }

    fn layout(&self) -> Layout {
        let mut exact = vec![None; self.slots];
        let mut hash = [0; HASH_WORDS];
        for (slot, &mac) in exact.iter_mut().zip(&self.stations) {
            *slot = Some(mac);
        }
        let free = self.slots - self.stations.len();
        for (index, &mac) in self.groups.iter().enumerate() {
            if index < free {
                exact[self.slots - 1 - index] = Some(mac);
            } else {
                let (word, bit) = hash_of(mac);
                hash[word] |= bit;
            }
        }
        Layout { exact, hash }
    }

    /// Writes everything, for a device just reset: none of these tables has a reset value (4.5,
    /// receive initialization).
    pub(super) fn program_all(&mut self, device: &Device) {
        self.programmed = self.layout();
        for (index, &mac) in self.programmed.exact.iter().enumerate() {
            write_exact(device, index, mac);
        }
        for (word, &bits) in self.programmed.hash.iter().enumerate() {
            device.write_at(MTA, word, bits);
            // Used by virtualization only, but it has no reset value either.
            device.write_at(UTA, word, 0);
        }
    }

    /// Writes what has changed. An address that moves is in two places for a moment, never in none.
    fn program_changes(&mut self, device: &Device) {
        let new = self.layout();
        let old = std::mem::replace(&mut self.programmed, new);
        let new = &self.programmed;
        for word in 0..HASH_WORDS {
            if new.hash[word] & !old.hash[word] != 0 {
                device.write_at(MTA, word, new.hash[word] | old.hash[word]);
            }
        }
        let changed = || (0..self.slots).filter(|&index| new.exact[index] != old.exact[index]);
        changed().filter(|&i| new.exact[i].is_some()).for_each(|i| write_exact(device, i, new.exact[i]));
        changed().filter(|&i| new.exact[i].is_none()).for_each(|i| write_exact(device, i, None));
        for word in 0..HASH_WORDS {
            if old.hash[word] & !new.hash[word] != 0 {
                device.write_at(MTA, word, new.hash[word]);
            }
        }
    }
}

/// Word and bit of a group address in the hash table: bits 47 to 36 of the address, as RCTL.MO = 0 has it
/// (8.10.1).
fn hash_of(mac: MacAddr) -> (usize, u32) {
    let [.., fifth, last] = mac.0;
    let hash = usize::from(last) << 4 | usize::from(fifth) >> 4;
    (hash >> 5, 1 << (hash & 31))
}

/// Not valid while it changes: half an address matches nobody.
fn write_exact(device: &Device, index: usize, mac: Option<MacAddr>) {
    let (low, high, index) =
        if index < RAL.count { (RAL, RAH, index) } else { (RAL_HIGH, RAH_HIGH, index - RAL.count) };
    device.write_at(high, index, 0);
    let Some(MacAddr([a, b, c, d, e, f])) = mac else {
        device.write_at(low, index, 0);
        return;
    };
    device.write_at(low, index, u32::from_le_bytes([a, b, c, d]));
    device.write_at(high, index, u32::from_le_bytes([e, f, 0, 0]) | rah::AV);
}

/// What RCTL says about addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Modes {
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) vlan_filter: bool,
}

impl Modes {
    /// The bits of RCTL. Promiscuous means whatever is on the wire, so it lifts the VLAN filter too.
    pub(super) fn rctl(self) -> u32 {
        let bit = |on: bool, bit| if on { bit } else { 0 };
        bit(self.promiscuous, rctl::UPE)
            | bit(self.promiscuous || self.all_multicast, rctl::MPE)
            | bit(self.vlan_filter && !self.promiscuous, rctl::VFE)
    }

    /// Changes RCTL under traffic.
    pub(super) fn apply(self, device: &Device) -> Result<()> {
        device.present()?;
        device.modify(RCTL, rctl::UPE | rctl::MPE | rctl::VFE, self.rctl());
        Ok(())
    }
}

/// # Errors
/// [`crate::Error::Setting`] for a VLAN ID that does not exist.
pub(super) fn check_vlans(device: &Device, vlan: &VlanConfig) -> Result<()> {
    match vlan.filter.iter().flatten().find(|id| !VLANS.contains(id)) {
        Some(id) => Err(device.setting(format!("VLAN {id}"), "0 to 4094")),
        None => Ok(()),
    }
}

/// Writes the VLAN filter table, and how tags are stripped (7.4, 8.10).
pub(super) fn program_vlans(device: &Device, generation: Generation, vlan: &VlanConfig, queues: u16) {
    let mut table = [0u32; 128];
    for &id in vlan.filter.iter().flatten() {
        table[usize::from(id >> 5) % 128] |= 1 << (id & 31);
    }
    // I350: a write to this table may get lost while the receiver works; ten in a row do not (I350
    // specification update; the vendor's driver does so).
    let times = if generation == Generation::I350 { 10 } else { 1 };
    for (word, &bits) in table.iter().enumerate() {
        for _ in 0..times {
            device.write_at(VFTA, word, bits);
        }
    }
    let (clear, set) = if vlan.strip { (0, ctrl::VME) } else { (ctrl::VME, 0) };
    device.modify(CTRL, clear, set);
    if generation == Generation::I350 {
        let strip = if vlan.strip { dvmolr::STRVLAN } else { 0 };
        for queue in 0..usize::from(queues) {
            let old = device.read_at(DVMOLR, queue) & !dvmolr::STRVLAN;
            device.write_at(DVMOLR, queue, old | strip | dvmolr::STRCRC);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use pci::{Bar, Bdf, RegisterIo};
    use proptest::prelude::*;

    use super::*;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    /// Registers that remember what was written, and check after each write that `kept` still pass.
    #[derive(Default)]
    struct Filter {
        registers: Mutex<BTreeMap<usize, u32>>,
        kept: Mutex<Vec<MacAddr>>,
    }

    impl Filter {
        fn get(&self, offset: usize) -> u32 {
            self.registers.lock().unwrap().get(&offset).copied().unwrap_or(0)
        }

        /// As the device decides (7.1): an exact match, or a group's hash bit.
        fn passes(&self, mac: MacAddr, slots: usize) -> bool {
            let [a, b, c, d, e, f] = mac.0;
            let (low, high) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0x80]));
            let exact = (0..slots).any(|index| {
                let base = if index < 16 { 0x5400 + 8 * index } else { 0x54e0 + 8 * (index - 16) };
                (self.get(base), self.get(base + 4)) == (low, high)
            });
            let hash = usize::from(u16::from_le_bytes([e, f]) >> 4);
            exact || mac.is_multicast() && self.get(0x5200 + hash / 32 * 4) >> (hash % 32) & 1 == 1
        }
    }

    impl RegisterIo for Filter {
        fn read32(&self, offset: usize) -> u32 {
            self.get(offset)
        }
        fn write32(&self, offset: usize, value: u32) {
            self.registers.lock().unwrap().insert(offset, value);
            for &mac in self.kept.lock().unwrap().iter() {
                assert!(self.passes(mac, 24), "{mac} does not pass after a write to {offset:#x}");
            }
        }
    }

    fn address(n: u8) -> MacAddr {
        // Every third one is a group; groups 4 apart share a hash bit.
        if n.is_multiple_of(3) { MacAddr([0x33, 0x33, 0, n, 0, n % 4]) } else { MacAddr([2, 0, 0, 0, 1, n]) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_was_added_passes_at_every_moment(steps in prop::collection::vec((any::<bool>(), 0u8..60), 0..100)) {
            let filter = Arc::new(Filter::default());
            let bdf = Bdf { domain: 0, bus: 1, device: 0, function: 0 };
            let device = Device { bar: Bar::trapped(filter.clone(), 0x2_0000), bdf };
            let mut addresses = Addresses::new(OWN, Generation::I82576);
            addresses.program_all(&device);
            let mut added = vec![OWN];
            for (add, n) in steps {
                let mac = address(n);
                // What was there before and is there after must pass throughout.
                *filter.kept.lock().unwrap() = added.iter().copied().filter(|&m| add || m != mac).collect();
                let known = added.contains(&mac);
                let stations = added.iter().filter(|m| !m.is_multicast()).count();
                if add {
                    let room = known || mac.is_multicast() || stations < 24;
                    prop_assert_eq!(addresses.add(&device, mac).is_ok(), room);
                    if room && !known {
                        added.push(mac);
                    }
                } else {
                    prop_assert_eq!(addresses.remove(&device, mac).is_ok(), known);
                    added.retain(|&m| m != mac);
                }
                let exact = (0..60).map(address).filter(|m| !m.is_multicast());
                for station in exact {
                    prop_assert_eq!(filter.passes(station, 24), added.contains(&station), "{}", station);
                }
                prop_assert!(added.iter().all(|&mac| filter.passes(mac, 24)));
            }
            // A reset loses nothing.
            filter.kept.lock().unwrap().clear();
            let before = filter.registers.lock().unwrap().clone();
            addresses.program_all(&device);
            prop_assert_eq!(&before, &*filter.registers.lock().unwrap());
        }
    }
}
