//! PCI functions as Linux shows them in sysfs: what there is, who has it, what stands in the way of
//! using it, and how to hand it over.
//!
//! Attributes: Linux `Documentation/ABI/testing/sysfs-bus-pci`.

mod bind;
mod readiness;
#[cfg(test)]
mod twin;

pub use bind::Binding;
pub use readiness::Obstacle;

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Bdf, Error, Ids, Result};

/// The driver that hands a PCI function to user space.
pub const VFIO_PCI: &str = "vfio-pci";

/// Base class of network controllers, the top 8 of a class code's 24 bits (PCI Code and ID, 1.3).
pub const CLASS_NETWORK: u32 = 0x02;

type Write = dyn Fn(&Path, &str) -> io::Result<()> + Send + Sync;

/// The kernel's view of the PCI bus: `/sys/bus/pci`, and the device nodes below `/dev/vfio`.
#[derive(Clone)]
pub struct Sysfs {
    root: PathBuf,
    write: Arc<Write>,
}

impl fmt::Debug for Sysfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sysfs({})", self.root.display())
    }
}

impl Default for Sysfs {
    /// This machine's.
    fn default() -> Self {
        Self::under("/")
    }
}

/// SR-IOV of a physical function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vfs {
    /// VFs there can be.
    pub total: u16,
    /// VFs there are, in order.
    pub present: Vec<Bdf>,
}

/// What sysfs says of one PCI function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FunctionInfo {
    /// Where it is.
    pub bdf: Bdf,
    /// What it is.
    pub ids: Ids,
    /// The kernel driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group; none without an IOMMU.
    pub group: Option<u32>,
    /// The NUMA node it is attached to, where the machine has several.
    pub numa_node: Option<u32>,
    /// Lengths of the six BARs in bytes, 0 where there is none. I/O space counts too.
    pub bars: [u64; 6],
    /// Its VFs, where it is a physical function with SR-IOV.
    pub vfs: Option<Vfs>,
    /// Its physical function, where it is a VF.
    pub physical: Option<Bdf>,
    /// The kernel's network interfaces on it.
    pub interfaces: Vec<String>,
    /// True where configuration space answers all ones: gone, though the kernel has not noticed.
    pub removed: bool,
}

impl FunctionInfo {
    /// True for network controllers.
    pub fn is_network(&self) -> bool {
        self.ids.class >> 16 == CLASS_NETWORK
    }

    /// True where a VFIO driver has it: vfio-pci, or a vendor's variant of it.
    pub fn is_bound_to_vfio(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio_driver)
    }

    /// True where its driver may share an IOMMU group with user space: none, a VFIO driver, a stub, or
    /// the port driver of a bridge (Linux `driver_managed_dma`).
    fn leaves_group_viable(&self) -> bool {
        self.driver.as_deref().is_none_or(|d| is_vfio_driver(d) || d == "pci-stub" || d == "pcieport")
    }
}

fn is_vfio_driver(name: &str) -> bool {
    name == VFIO_PCI || name.ends_with("-vfio-pci") || name.ends_with("_vfio_pci")
}

impl Sysfs {
    /// That below another root directory, which holds `sys` and `dev`: another mount namespace's, or a
    /// recorded tree.
    pub fn under(root: impl Into<PathBuf>) -> Self {
        // Never created: sysfs would answer that permission is denied.
        let write = |path: &Path, value: &str| {
            fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
        };
        Self { root: root.into(), write: Arc::new(write) }
    }

    /// Every function, in address order. One that vanishes meanwhile is left out.
    ///
    /// # Errors
    /// [`Error::System`] where there is no PCI bus.
    pub fn functions(&self) -> Result<Vec<FunctionInfo>> {
        let path = self.bus().join("devices");
        let entries = fs::read_dir(&path).map_err(|e| Error::io(format!("listing {}", path.display()), e))?;
        let mut found: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|bdf| self.function(bdf).ok())
            .collect();
        found.sort_by_key(|function| function.bdf);
        Ok(found)
    }

    /// One function.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none.
    pub fn function(&self, bdf: Bdf) -> Result<FunctionInfo> {
        let dir = self.device(bdf);
        let hex = |name: &str| read_hex(&dir.join(name)).ok_or(Error::NotFound { bdf });
        Ok(FunctionInfo {
            bdf,
            ids: Ids {
                vendor: hex("vendor")? as u16,
                device: hex("device")? as u16,
                class: hex("class")? as u32,
                revision: hex("revision").unwrap_or(0) as u8,
            },
            driver: link_name(&dir.join("driver")),
            group: link_name(&dir.join("iommu_group")).and_then(|name| name.parse().ok()),
            numa_node: read_number(&dir.join("numa_node")),
            bars: bar_lengths(&fs::read_to_string(dir.join("resource")).unwrap_or_default()),
            vfs: self.vfs(&dir),
            physical: link_name(&dir.join("physfn")).and_then(|name| name.parse().ok()),
            interfaces: names_in(&dir.join("net")),
            removed: answers_all_ones(&dir.join("config")),
        })
    }

    /// The functions of an IOMMU group, in address order.
    pub fn group(&self, group: u32) -> Vec<Bdf> {
        let path = self.root.join(format!("sys/kernel/iommu_groups/{group}/devices"));
        names_in(&path).iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Enables `count` VFs of a physical function, or disables all with 0. Other VFs that were there
    /// before are gone, as the kernel goes from one count to another only through none.
    ///
    /// # Errors
    /// [`Error::NoCapability`] where it has no SR-IOV, [`Error::NumVfs`] where it has fewer,
    /// [`Error::SriovDisabled`] where its driver does not do it, [`Error::Permission`].
    pub fn set_num_vfs(&self, bdf: Bdf, count: u16) -> Result<()> {
        let info = self.function(bdf)?;
        let Some(vfs) = info.vfs else { return Err(Error::NoCapability { bdf, name: "SR-IOV" }) };
        if count > vfs.total {
            return Err(Error::NumVfs { bdf, wanted: count, total: vfs.total });
        }
        if vfs.present.len() == usize::from(count) {
            return Ok(());
        }
        let path = self.device(bdf).join("sriov_numvfs");
        let set = |count: u16| match (self.write)(&path, &count.to_string()) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(Error::SriovDisabled { bdf, driver: info.driver.clone() })
            }
            other => other.map_err(|e| write_failed(&path, e)),
        };
        if !vfs.present.is_empty() {
            set(0)?;
        }
        if count > 0 { set(count) } else { Ok(()) }
    }

    fn vfs(&self, dir: &Path) -> Option<Vfs> {
        let total = read_number(&dir.join("sriov_totalvfs")).filter(|total| *total > 0)?;
        let link = |index: u16| link_name(&dir.join(format!("virtfn{index}")))?.parse().ok();
        Some(Vfs { total, present: (0..total).map_while(link).collect() })
    }

    fn bus(&self) -> PathBuf {
        self.root.join("sys/bus/pci")
    }

    fn device(&self, bdf: Bdf) -> PathBuf {
        self.bus().join(format!("devices/{bdf}"))
    }

    /// The device node of VFIO's container.
    fn vfio_node(&self) -> PathBuf {
        self.root.join("dev/vfio/vfio")
    }

    /// The device node of an IOMMU group.
    pub(crate) fn group_node(&self, group: u32) -> PathBuf {
        self.root.join(format!("dev/vfio/{group}"))
    }
}

/// What a refused write to sysfs means.
fn write_failed(path: &Path, error: io::Error) -> Error {
    if error.kind() == ErrorKind::PermissionDenied {
        return Error::Permission { path: path.to_owned() };
    }
    Error::io(format!("writing {}", path.display()), error)
}

fn read_hex(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// A decimal number; nothing where it is negative, as the NUMA node of a machine that has one only.
fn read_number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The last component of what a link points at: the name of a driver, a group, a function.
fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

fn names_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// `resource` has a line `START END FLAGS` for each BAR, then for the ROM and bridge windows.
fn bar_lengths(resource: &str) -> [u64; 6] {
    let mut lengths = [0; 6];
    for (length, line) in lengths.iter_mut().zip(resource.lines()) {
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let mut words = line.split_whitespace().filter_map(number);
        if let (Some(start), Some(end)) = (words.next(), words.next())
            && end > start
        {
            *length = (end - start).saturating_add(1);
        }
    }
    lengths
}

/// Past the IDs, which every VF answers with ones (PCIe 4.0, 9.3.4.1.1), to command and status.
fn answers_all_ones(config: &Path) -> bool {
    let mut head = [0; 8];
    let read = fs::File::open(config).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head == [0xff; 8]
}

#[cfg(test)]
mod tests {
    use super::twin::Twin;
    use super::*;

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn a_function_is_read_in_full() {
        let twin = Twin::new();
        let port = twin.function("0000:01:00.0", 0x8086, 0x10c9, "0x020000");
        twin.file(&port, "numa_node", "1\n");
        twin.file(&port, "resource", "0x80000000 0x8001ffff 0x200\n0x0 0x0 0x0\n0xc000 0xc01f 0x101\n");
        twin.file(&port, "sriov_totalvfs", "7\n");
        twin.file(&port, "net/eth4/mtu", "1500\n");
        twin.set_driver("0000:01:00.0", "igb");
        twin.set_group("0000:01:00.0", 12);
        twin.function("0000:01:10.0", 0x8086, 0x10ca, "0x020000");
        twin.link("0000:01:00.0", "virtfn0", "../0000:01:10.0");
        twin.link("0000:01:10.0", "physfn", "../0000:01:00.0");

        let info = twin.sysfs().function(bdf("01:00.0")).unwrap();
        assert_eq!((info.ids.vendor, info.ids.device, info.ids.class), (0x8086, 0x10c9, 0x02_0000));
        assert_eq!((info.driver.as_deref(), info.group, info.numa_node), (Some("igb"), Some(12), Some(1)));
        assert_eq!(info.bars, [0x2_0000, 0, 32, 0, 0, 0]);
        assert_eq!(info.vfs, Some(Vfs { total: 7, present: vec![bdf("01:10.0")] }));
        assert_eq!(info.interfaces, ["eth4"]);
        assert!(info.is_network() && !info.removed && !info.is_bound_to_vfio());
        let vf = twin.sysfs().function(bdf("01:10.0")).unwrap();
        assert_eq!((vf.physical, vf.vfs, vf.numa_node), (Some(info.bdf), None, None));
    }

    #[test]
    fn functions_come_in_address_order_and_strangers_are_left_out() {
        let twin = Twin::new();
        for name in ["0000:02:00.0", "0000:00:1f.3", "0000:01:00.1"] {
            twin.function(name, 0x8086, 0x10c9, "0x020000");
        }
        twin.directory("sys/bus/pci/devices/readme");
        let names: Vec<_> =
            twin.sysfs().functions().unwrap().iter().map(|info| info.bdf.to_string()).collect();
        assert_eq!(names, ["0000:00:1f.3", "0000:01:00.1", "0000:02:00.0"]);
    }

    #[test]
    fn what_is_not_there_is_said_to_be_missing() {
        let twin = Twin::new();
        let missing = twin.sysfs().function(bdf("05:00.0"));
        assert!(matches!(missing, Err(Error::NotFound { .. })));
    }

    #[test]
    fn a_function_that_answers_all_ones_is_removed_and_a_vf_is_not() {
        let twin = Twin::new();
        let port = twin.function("0000:01:00.0", 0x8086, 0x10c9, "0x020000");
        std::fs::write(port.join("config"), [0xff; 64]).unwrap();
        assert!(twin.sysfs().function(bdf("01:00.0")).unwrap().removed);
        std::fs::write(port.join("config"), [0xff, 0xff, 0xff, 0xff, 6, 0, 0x10, 0]).unwrap();
        assert!(!twin.sysfs().function(bdf("01:00.0")).unwrap().removed);
    }

    #[test]
    fn vfs_are_counted_against_what_there_is() {
        let twin = Twin::new();
        let port = twin.function("0000:01:00.0", 0x8086, 0x10c9, "0x020000");
        let (sysfs, port_bdf) = (twin.sysfs(), bdf("01:00.0"));
        assert!(matches!(sysfs.set_num_vfs(port_bdf, 1), Err(Error::NoCapability { .. })));
        twin.file(&port, "sriov_totalvfs", "7\n");
        let refused = sysfs.set_num_vfs(port_bdf, 8);
        assert!(matches!(refused, Err(Error::NumVfs { wanted: 8, total: 7, .. })));
        twin.refuse("sriov_numvfs", libc::ENOENT);
        assert!(matches!(sysfs.set_num_vfs(port_bdf, 2), Err(Error::SriovDisabled { .. })));
    }

    #[test]
    fn another_count_of_vfs_goes_through_none() {
        let twin = Twin::new();
        let port = twin.function("0000:01:00.0", 0x8086, 0x10c9, "0x020000");
        twin.file(&port, "sriov_totalvfs", "7\n");
        twin.link("0000:01:00.0", "virtfn0", "../0000:01:10.0");
        twin.sysfs().set_num_vfs(bdf("01:00.0"), 3).unwrap();
        assert_eq!(twin.written("sriov_numvfs"), ["0", "3"]);
    }
}
