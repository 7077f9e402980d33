//! Configuration space: where things are in it, and the capabilities found there.
//!
//! Offsets and layouts: PCI Local Bus 3.0 chapter 6, PCI Express Base 4.0 chapters 7 and 9;
//! Linux `include/uapi/linux/pci_regs.h`.
//!
//! What the device says is hostile until checked: a list that loops or points outside ends there, and a
//! capability that does not fit, or names a BAR that cannot be, is treated as absent.

use crate::{Bdf, Error, Function, Result};

/// Command register.
pub const COMMAND: u16 = 0x04;
/// Command: memory decoding.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: bus mastering, DMA and MSI-X messages.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Status register.
pub const STATUS: u16 = 0x06;
/// Status: a capability list is present.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Offset of the first standard capability.
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Where standard capabilities may begin: the header is in front of them.
pub const FIRST_CAPABILITY: u16 = 0x40;
/// Offset of the first extended capability.
pub const EXTENDED_CAPABILITIES: u16 = 0x100;
/// End of configuration space.
pub const CONFIG_SIZE: u16 = 0x1000;

/// Standard capability: MSI-X.
pub const CAP_MSIX: u16 = 0x11;
/// Standard capability: PCI Express.
pub const CAP_EXPRESS: u16 = 0x10;
/// Extended capability: alternative routing-ID interpretation.
pub const EXT_CAP_ARI: u16 = 0x0e;
/// Extended capability: single-root I/O virtualization.
pub const EXT_CAP_SRIOV: u16 = 0x10;

/// One entry of a capability list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability {
    /// Capability ID; standard and extended IDs are different number spaces.
    pub id: u16,
    /// True in the extended list (offset 0x100 and up).
    pub extended: bool,
    /// Offset of its first byte in configuration space.
    pub offset: u16,
}

/// Reads configuration space: offset, buffer.
pub type ReadConfig<'a> = dyn FnMut(u16, &mut [u8]) -> Result<()> + 'a;

/// Walks both capability lists. A list that loops or points outside ends there: the device is hostile
/// until checked.
///
/// # Errors
/// The reader's.
pub fn capabilities(read: &mut ReadConfig<'_>) -> Result<Vec<Capability>> {
    let mut found = standard(read)?;
    found.extend(extended(read)?);
    Ok(found)
}

/// Offsets seen so far, one bit per 32-bit word of configuration space: a second visit is a loop.
#[derive(Default)]
struct Visited([u64; CONFIG_SIZE as usize / 4 / 64]);

impl Visited {
    /// True the first time.
    fn first(&mut self, offset: u16) -> bool {
        let (word, bit) = (usize::from(offset / 4) / 64, 1 << (offset / 4 % 64));
        let first = self.0[word] & bit == 0;
        self.0[word] |= bit;
        first
    }
}

fn standard(read: &mut ReadConfig<'_>) -> Result<Vec<Capability>> {
    let mut found = Vec::new();
    if read_u16(read, STATUS)? & STATUS_CAPABILITIES == 0 {
        return Ok(found);
    }
    let mut visited = Visited::default();
    // The low two bits are reserved and to be masked (PCI 3.0, 6.7).
    let mut offset = read_u16(read, CAPABILITIES_POINTER)? & 0xfc;
    while offset >= FIRST_CAPABILITY && visited.first(offset) {
        let head = read_u16(read, offset)?;
        if head == u16::MAX {
            break;
        }
        found.push(Capability { id: head & 0xff, extended: false, offset });
        offset = head >> 8 & 0xfc;
    }
    Ok(found)
}

fn extended(read: &mut ReadConfig<'_>) -> Result<Vec<Capability>> {
    let mut found = Vec::new();
    let mut visited = Visited::default();
    let mut offset = EXTENDED_CAPABILITIES;
    while offset >= EXTENDED_CAPABILITIES && visited.first(offset) {
        let head = read_u32(read, offset)?;
        if head == 0 || head == u32::MAX {
            break;
        }
        // Linux's vfio-pci hides a first entry it does not know by giving it the ID 0.
        let id = (head & 0xffff) as u16;
        if id != 0 {
            found.push(Capability { id, extended: true, offset });
        }
        offset = (head >> 20) as u16 & 0xffc;
    }
    Ok(found)
}

fn read_u16(read: &mut ReadConfig<'_>, offset: u16) -> Result<u16> {
    let mut bytes = [0; 2];
    read(offset, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

fn read_u32(read: &mut ReadConfig<'_>, offset: u16) -> Result<u32> {
    let mut bytes = [0; 4];
    read(offset, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// The bytes of one capability, from its first.
pub struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }
}

/// A capability that this crate can read as a value.
pub trait Structure: Sized {
    /// Its ID.
    const ID: u16;
    /// True where that ID is of the extended list.
    const EXTENDED: bool;
    /// Its name, for messages.
    const NAME: &'static str;
    /// Bytes read of it; all offsets used by [`Structure::parse`] lie below.
    const LEN: usize;

    /// Reads it from its bytes, of which there are `LEN`; nothing where they make no sense.
    fn parse(body: &Body<'_>) -> Option<Self>;

    /// The first one in the lists that is whole.
    ///
    /// # Errors
    /// The reader's.
    fn find(read: &mut ReadConfig<'_>) -> Result<Option<Self>> {
        let list = if Self::EXTENDED { extended(read)? } else { standard(read)? };
        let end = usize::from(if Self::EXTENDED { CONFIG_SIZE } else { EXTENDED_CAPABILITIES });
        let whole = |c: &&Capability| c.id == Self::ID && usize::from(c.offset) + Self::LEN <= end;
        let Some(capability) = list.iter().find(whole) else { return Ok(None) };
        let mut bytes = vec![0; Self::LEN];
        read(capability.offset, &mut bytes)?;
        Ok(Self::parse(&Body(&bytes)))
    }

    /// That of a function.
    ///
    /// # Errors
    /// [`Error::NoCapability`] where it has none; as [`Function::read_config`].
    fn of(function: &dyn Function) -> Result<Self> {
        let found = Self::find(&mut |offset, buf| function.read_config(offset, buf))?;
        found.ok_or(Error::NoCapability { bdf: function.bdf(), name: Self::NAME })
    }
}

/// MSI-X: where the vectors' table and pending bits are (PCI 3.0, 6.8.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msix {
    /// Vectors, 1 to 2048.
    pub table_size: u16,
    /// True while the function sends MSI-X messages.
    pub enabled: bool,
    /// BAR that holds the table.
    pub table_bar: u8,
    /// Offset of the table in it, in bytes.
    pub table_offset: u32,
    /// BAR that holds the pending bits.
    pub pba_bar: u8,
    /// Offset of the pending bits in it, in bytes.
    pub pba_offset: u32,
}

impl Structure for Msix {
    const ID: u16 = CAP_MSIX;
    const EXTENDED: bool = false;
    const NAME: &'static str = "MSI-X";
    const LEN: usize = 12;

    fn parse(body: &Body<'_>) -> Option<Self> {
        let (control, table, pba) = (body.u16(2), body.u32(4), body.u32(8));
        let bar = |word: u32| Some((word & 7) as u8).filter(|bar| *bar < 6);
        Some(Self {
            table_size: (control & 0x7ff) + 1,
            enabled: control >> 15 != 0,
            table_bar: bar(table)?,
            table_offset: table & !7,
            pba_bar: bar(pba)?,
            pba_offset: pba & !7,
        })
    }
}

/// PCI Express (PCIe 4.0, 7.5.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Express {
    /// True where function-level reset is offered (device capabilities, bit 28).
    pub flr: bool,
    /// Largest payload the function supports, bytes.
    pub max_payload_supported: u16,
    /// Largest payload it is set to, bytes.
    pub max_payload: u16,
    /// Largest read request it is set to, bytes.
    pub max_read_request: u16,
    /// What the link can do.
    pub link_capability: Link,
    /// What the link does now; zero for a VF, whose link is its PF's.
    pub link: Link,
}

/// Speed and width of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Generation: 1 is 2.5 GT/s, 2 is 5 GT/s, 3 is 8 GT/s, 4 is 16 GT/s, 5 is 32 GT/s.
    pub generation: u8,
    /// Lanes.
    pub width: u8,
}

impl Link {
    fn from_bits(bits: u16) -> Self {
        Self { generation: (bits & 0xf) as u8, width: (bits >> 4 & 0x3f) as u8 }
    }
}

impl Structure for Express {
    const ID: u16 = CAP_EXPRESS;
    const EXTENDED: bool = false;
    const NAME: &'static str = "PCI Express";
    const LEN: usize = 0x14;

    fn parse(body: &Body<'_>) -> Option<Self> {
        let (capability, control) = (body.u32(4), body.u16(8));
        let bytes = |code: u16| 128 << (code & 7);
        Some(Self {
            flr: capability >> 28 & 1 != 0,
            max_payload_supported: bytes(capability as u16),
            max_payload: bytes(control >> 5),
            max_read_request: bytes(control >> 12),
            link_capability: Link::from_bits(body.u32(0xc) as u16),
            link: Link::from_bits(body.u16(0x12)),
        })
    }
}

/// SR-IOV: the VFs of a physical function (PCIe 4.0, 9.3.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SrIov {
    /// True while VFs answer on the bus.
    pub enabled: bool,
    /// VFs there can be.
    pub total_vfs: u16,
    /// VFs there are.
    pub num_vfs: u16,
    /// Routing IDs from the PF to VF 0. Valid for the present [`SrIov::num_vfs`] only.
    pub first_vf_offset: u16,
    /// Routing IDs from each VF to the next.
    pub vf_stride: u16,
    /// Device ID of every VF; their vendor is the PF's.
    pub vf_device_id: u16,
    /// The VF BAR registers, as read: each VF's part follows the previous one's.
    pub vf_bars: [u32; 6],
}

impl SrIov {
    /// Where VF `index` is on the bus; nothing where there is no such VF, or the device's own figures
    /// lead off the domain.
    pub fn vf_bdf(&self, pf: Bdf, index: u16) -> Option<Bdf> {
        if index >= self.num_vfs {
            return None;
        }
        let pf_id = u16::from(pf.bus) << 8 | u16::from(pf.device) << 3 | u16::from(pf.function);
        let distance = self.vf_stride.checked_mul(index)?.checked_add(self.first_vf_offset)?;
        let id = pf_id.checked_add(distance)?;
        let (bus, device, function) = ((id >> 8) as u8, (id >> 3 & 31) as u8, (id & 7) as u8);
        Some(Bdf { domain: pf.domain, bus, device, function })
    }
}

impl Structure for SrIov {
    const ID: u16 = EXT_CAP_SRIOV;
    const EXTENDED: bool = true;
    const NAME: &'static str = "SR-IOV";
    const LEN: usize = 0x40;

    fn parse(body: &Body<'_>) -> Option<Self> {
        Some(Self {
            enabled: body.u16(8) & 1 != 0,
            total_vfs: body.u16(0xe),
            num_vfs: body.u16(0x10),
            first_vf_offset: body.u16(0x14),
            vf_stride: body.u16(0x16),
            vf_device_id: body.u16(0x1a),
            vf_bars: std::array::from_fn(|bar| body.u32(0x24 + 4 * bar)),
        })
    }
}

/// Alternative routing-ID interpretation: more than 8 functions on one device (PCIe 4.0, 7.8.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ari {
    /// Number of the device's next physical function; 0 at the last.
    pub next_function: u8,
}

impl Structure for Ari {
    const ID: u16 = EXT_CAP_ARI;
    const EXTENDED: bool = true;
    const NAME: &'static str = "ARI";
    const LEN: usize = 8;

    fn parse(body: &Body<'_>) -> Option<Self> {
        Some(Self { next_function: body.u8(5) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Space(Vec<u8>);

    impl Space {
        /// A header with a capability list that begins at 0x40.
        fn new() -> Self {
            let mut space = Self(vec![0; CONFIG_SIZE.into()]);
            space.put(STATUS.into(), &STATUS_CAPABILITIES.to_le_bytes());
            space.put(CAPABILITIES_POINTER.into(), &[0x40]);
            space
        }
        fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            self
        }
        fn list(&self) -> Vec<Capability> {
            capabilities(&mut self.reader()).unwrap()
        }
        fn find<S: Structure>(&self) -> Option<S> {
            S::find(&mut self.reader()).unwrap()
        }
        /// Refuses what lies outside, as a kernel does: a walk that goes there fails the test.
        fn reader(&self) -> impl FnMut(u16, &mut [u8]) -> Result<()> {
            |offset, buf| {
                let from = usize::from(offset);
                buf.copy_from_slice(&self.0[from..from + buf.len()]);
                Ok(())
            }
        }
    }

    fn extended_head(id: u16, next: u16) -> [u8; 4] {
        (u32::from(id) | 1 << 16 | u32::from(next) << 20).to_le_bytes()
    }

    #[test]
    fn both_lists_are_walked_in_order() {
        let mut space = Space::new();
        space.put(0x40, &[0x01, 0x70]).put(0x70, &[0x11, 0x00]);
        space.put(0x100, &extended_head(0x01, 0x140)).put(0x140, &extended_head(0x0e, 0));
        let ids: Vec<_> = space.list().iter().map(|c| (c.extended, c.id, c.offset)).collect();
        assert_eq!(ids, [(false, 1, 0x40), (false, 0x11, 0x70), (true, 1, 0x100), (true, 0xe, 0x140)]);
    }

    #[test]
    fn loops_end_the_walk_with_each_entry_once() {
        let mut space = Space::new();
        space.put(0x40, &[0x01, 0x50]).put(0x50, &[0x05, 0x40]);
        space.put(0x100, &extended_head(0x01, 0x104)).put(0x104, &extended_head(0x02, 0x100));
        assert_eq!(space.list().len(), 4);
    }

    #[test]
    fn pointers_into_the_header_end_the_walk() {
        let mut space = Space::new();
        space.put(0x40, &[0x01, 0x3c]).put(0x100, &extended_head(0x01, 0x40));
        assert_eq!(space.list().len(), 2);
    }

    #[test]
    fn a_function_that_is_gone_has_no_capabilities() {
        let gone = Space(vec![0xff; CONFIG_SIZE.into()]);
        assert_eq!(gone.list(), []);
        assert_eq!((gone.find::<Msix>(), gone.find::<SrIov>()), (None, None));
    }

    #[test]
    fn without_the_status_bit_there_is_no_standard_list() {
        let mut space = Space::new();
        space.put(STATUS.into(), &[0, 0]).put(0x40, &[0x11, 0]);
        assert_eq!(space.list(), []);
    }

    #[test]
    fn a_hidden_first_extended_entry_does_not_hide_the_others() {
        let mut space = Space::new();
        space.put(0x100, &extended_head(0, 0x150)).put(0x150, &extended_head(EXT_CAP_ARI, 0));
        space.put(0x155, &[3]);
        assert_eq!(space.find::<Ari>(), Some(Ari { next_function: 3 }));
    }

    #[test]
    fn a_reader_that_fails_fails_the_walk() {
        let bdf = "01:00.0".parse().unwrap();
        let walk = capabilities(&mut |_, _| Err(Error::Removed { bdf }));
        assert!(matches!(walk, Err(Error::Removed { .. })));
    }

    #[test]
    fn msix_is_read_as_the_82576_shows_it() {
        // Ten vectors, table at BAR 3 + 0, pending bits at BAR 3 + 0x2000.
        let mut space = Space::new();
        space.put(0x40, &[0x11, 0, 0x09, 0x80, 3, 0, 0, 0, 3, 0x20, 0, 0]);
        let expected = Msix {
            table_size: 10,
            enabled: true,
            table_bar: 3,
            table_offset: 0,
            pba_bar: 3,
            pba_offset: 0x2000,
        };
        assert_eq!(space.find(), Some(expected));
    }

    #[test]
    fn msix_in_a_bar_that_cannot_be_or_cut_off_is_absent() {
        let mut space = Space::new();
        space.put(0x40, &[0x11, 0, 9, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(space.find::<Msix>(), None);
        let mut space = Space::new();
        space.put(CAPABILITIES_POINTER.into(), &[0xf8]).put(0xf8, &[0x11, 0]);
        assert_eq!((space.list().len(), space.find::<Msix>()), (1, None));
    }

    #[test]
    fn express_gives_bytes_and_lanes() {
        let mut space = Space::new();
        space.put(0x40, &[0x10, 0, 2, 0]);
        space.put(0x44, &(1u32 << 28 | 2).to_le_bytes());
        space.put(0x48, &(1u16 << 5 | 2 << 12).to_le_bytes());
        space.put(0x4c, &(16u32 << 4 | 4).to_le_bytes());
        space.put(0x52, &(8u16 << 4 | 3).to_le_bytes());
        let expected = Express {
            flr: true,
            max_payload_supported: 512,
            max_payload: 256,
            max_read_request: 512,
            link_capability: Link { generation: 4, width: 16 },
            link: Link { generation: 3, width: 8 },
        };
        assert_eq!(space.find(), Some(expected));
    }

    #[test]
    fn sriov_says_where_each_vf_is() {
        let mut space = Space::new();
        space.put(0x100, &extended_head(EXT_CAP_SRIOV, 0));
        space.put(0x108, &[1, 0]).put(0x10e, &[7, 0, 2, 0]).put(0x114, &[0x80, 1, 2, 0]);
        space.put(0x11a, &0x10cau16.to_le_bytes()).put(0x124, &4u32.to_le_bytes());
        let sriov: SrIov = space.find().unwrap();
        assert_eq!((sriov.enabled, sriov.total_vfs, sriov.num_vfs), (true, 7, 2));
        assert_eq!((sriov.vf_device_id, sriov.vf_bars[0]), (0x10ca, 4));
        let pf = "0000:01:00.1".parse().unwrap();
        assert_eq!(sriov.vf_bdf(pf, 1).unwrap().to_string(), "0000:02:10.3");
        assert_eq!(sriov.vf_bdf(pf, 2), None);
        assert_eq!(SrIov { first_vf_offset: u16::MAX, ..sriov }.vf_bdf(pf, 0), None);
    }

    proptest! {
        /// Whatever the device says: the walk ends, stays inside, and names no offset twice.
        #[test]
        fn any_bytes_end_the_walk(bytes in prop::collection::vec(any::<u8>(), CONFIG_SIZE as usize)) {
            let mut space = Space(bytes);
            space.0[STATUS as usize] |= STATUS_CAPABILITIES as u8;
            let list = space.list();
            let mut offsets: Vec<_> = list.iter().map(|c| c.offset).collect();
            offsets.sort_unstable();
            offsets.dedup();
            prop_assert_eq!(offsets.len(), list.len());
            prop_assert!(list.iter().all(|c| c.offset >= FIRST_CAPABILITY && c.offset < CONFIG_SIZE));
            prop_assert_eq!(list.iter().all(|c| c.extended == (c.offset >= EXTENDED_CAPABILITIES)), true);
        }

        /// Random bodies behind well-formed heads: every reader answers, and what it answers is in range.
        #[test]
        fn any_body_is_read(body in prop::collection::vec(any::<u8>(), 0x40)) {
            let mut space = Space::new();
            space.put(0x40, &body).put(0x40, &[CAP_MSIX as u8, 0x80]);
            space.put(0x80, &body).put(0x80, &[CAP_EXPRESS as u8, 0]);
            space.put(0x100, &body).put(0x100, &extended_head(EXT_CAP_SRIOV, 0));
            if let Some(msix) = space.find::<Msix>() {
                prop_assert!(msix.table_bar < 6 && msix.pba_bar < 6 && (1..=2048).contains(&msix.table_size));
            }
            let express: Express = space.find().unwrap();
            prop_assert!((128..=16384).contains(&express.max_payload));
            let sriov: SrIov = space.find().unwrap();
            let pf = Bdf { domain: 0, bus: 0xff, device: 0, function: 0 };
            for index in 0..=u16::MAX {
                prop_assert!(index < sriov.num_vfs || sriov.vf_bdf(pf, index).is_none());
            }
        }
    }
}
