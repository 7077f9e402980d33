//! What is missing to use a function, and the command that brings it.

use std::ffi::CString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{FunctionInfo, Sysfs, VFIO_PCI};
use crate::{Bdf, Error, Result};

/// One thing that stands between a function and its use from user space. `Display` says what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// Configuration space answers all ones.
    Removed(Bdf),
    /// The function is in no IOMMU group.
    NoIommu(Bdf),
    /// vfio-pci is not loaded.
    NoModule(PathBuf),
    /// Another driver has it, or none.
    NotBound {
        /// The function.
        bdf: Bdf,
        /// The driver it has.
        driver: Option<String>,
    },
    /// Kernel drivers have other functions of its IOMMU group.
    GroupNotViable {
        /// The function.
        bdf: Bdf,
        /// Its group.
        group: u32,
        /// The functions in the way.
        others: Vec<Bdf>,
    },
    /// This user may not open a device node.
    NoPermission(PathBuf),
}

impl Obstacle {
    /// The commands to type, as root; or, where none helps, what to do.
    pub fn remedy(&self) -> String {
        match self {
            Self::Removed(bdf) => {
                format!("echo 1 > /sys/bus/pci/devices/{bdf}/remove; echo 1 > /sys/bus/pci/rescan")
            }
            Self::NoIommu(_) => {
                "enable VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on".to_owned()
            }
            Self::NoModule(_) => "modprobe vfio-pci".to_owned(),
            Self::NotBound { bdf, driver } => bind_command(*bdf, driver.is_some()),
            Self::GroupNotViable { others, .. } => {
                others.iter().map(|bdf| bind_command(*bdf, true)).collect::<Vec<_>>().join("; ")
            }
            // Not as root: the shell of the user concerned says who that is.
            Self::NoPermission(node) => format!("sudo chown $(id -un) {}", node.display()),
        }
    }
}

fn bind_command(bdf: Bdf, has_driver: bool) -> String {
    let device = format!("/sys/bus/pci/devices/{bdf}");
    let unbind = if has_driver { format!("echo {bdf} > {device}/driver/unbind; ") } else { String::new() };
    format!("echo {VFIO_PCI} > {device}/driver_override; {unbind}echo {bdf} > /sys/bus/pci/drivers_probe")
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed(_) => f.write_str("the device is gone: its configuration space reads all ones"),
            Self::NoIommu(_) => f.write_str("in no IOMMU group: the IOMMU is off, or there is none"),
            Self::NoModule(path) => {
                write!(f, "the module vfio-pci is not loaded ({} is missing)", path.display())
            }
            Self::NotBound { driver: Some(driver), .. } => write!(f, "bound to {driver}, not to vfio-pci"),
            Self::NotBound { driver: None, .. } => f.write_str("not bound to vfio-pci"),
            Self::GroupNotViable { group, others, .. } => {
                let others: Vec<_> = others.iter().map(Bdf::to_string).collect();
                write!(f, "IOMMU group {group} also holds {}, which kernel drivers have", others.join(", "))
            }
            Self::NoPermission(node) => write!(f, "this user may not open {}", node.display()),
        }
    }
}

impl From<Obstacle> for Error {
    fn from(obstacle: Obstacle) -> Self {
        match obstacle {
            Obstacle::Removed(bdf) => Self::Removed { bdf },
            Obstacle::NoIommu(bdf) => Self::NoIommu { bdf },
            Obstacle::NoModule(path) => Self::NoVfio { path },
            Obstacle::NotBound { bdf, driver } => Self::NotBound { bdf, driver },
            Obstacle::GroupNotViable { bdf, group, others } => Self::GroupNotViable { bdf, group, others },
            Obstacle::NoPermission(path) => Self::Permission { path },
        }
    }
}

impl Sysfs {
    /// What is missing to use a function from this process, in the order in which to remedy it. Empty
    /// where it is ready; another process may have it open all the same.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn readiness(&self, bdf: Bdf) -> Result<Vec<Obstacle>> {
        let info = self.function(bdf)?;
        let mut missing = Vec::new();
        if info.removed {
            missing.push(Obstacle::Removed(bdf));
        }
        if info.group.is_none() {
            missing.push(Obstacle::NoIommu(bdf));
        }
        let module = self.driver(VFIO_PCI);
        if !info.is_bound_to_vfio() {
            if !module.exists() {
                missing.push(Obstacle::NoModule(module));
            }
            missing.push(Obstacle::NotBound { bdf, driver: info.driver.clone() });
        }
        missing.extend(self.others_in_the_way(&info));
        missing.extend(self.nodes_denied(&info));
        Ok(missing)
    }

    fn others_in_the_way(&self, info: &FunctionInfo) -> Option<Obstacle> {
        let group = info.group?;
        let in_the_way = |other: &Bdf| {
            *other != info.bdf && self.function(*other).is_ok_and(|other| !other.leaves_group_viable())
        };
        let others: Vec<_> = self.group(group).into_iter().filter(in_the_way).collect();
        (!others.is_empty()).then_some(Obstacle::GroupNotViable { bdf: info.bdf, group, others })
    }

    /// A group's node is there only once one of its functions is bound.
    fn nodes_denied(&self, info: &FunctionInfo) -> Option<Obstacle> {
        let nodes = [Some(self.vfio_node()), info.group.map(|group| self.group_node(group))];
        let denied = |node: &PathBuf| node.exists() && !may_open(node);
        nodes.into_iter().flatten().find(denied).map(Obstacle::NoPermission)
    }
}

#[allow(unsafe_code)]
fn may_open(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mode = libc::R_OK | libc::W_OK;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) == 0 }
}

#[cfg(test)]
mod tests {
    use super::super::twin::Twin;
    use super::*;

    const PORT: &str = "0000:01:00.0";

    fn ready() -> (Twin, Bdf) {
        let twin = Twin::new();
        twin.function(PORT, 0x8086, 0x10c9, "0x020000");
        twin.directory("sys/bus/pci/drivers/vfio-pci");
        twin.set_driver(PORT, VFIO_PCI);
        twin.set_group(PORT, 5);
        (twin, PORT.parse().unwrap())
    }

    #[test]
    fn a_bound_function_in_a_group_of_its_own_is_ready() {
        let (twin, bdf) = ready();
        assert_eq!(twin.sysfs().readiness(bdf).unwrap(), []);
    }

    #[test]
    fn all_that_is_missing_is_listed_in_order_with_commands() {
        let twin = Twin::new();
        twin.function(PORT, 0x8086, 0x10c9, "0x020000");
        twin.set_driver(PORT, "igb");
        let missing = twin.sysfs().readiness(PORT.parse().unwrap()).unwrap();
        assert!(matches!(
            &missing[..],
            [Obstacle::NoIommu(_), Obstacle::NoModule(_), Obstacle::NotBound { driver: Some(driver), .. }]
                if driver == "igb"
        ));
        let remedies: Vec<_> = missing.iter().map(Obstacle::remedy).collect();
        assert!(remedies[0].contains("intel_iommu=on"));
        assert_eq!(remedies[1], "modprobe vfio-pci");
        assert_eq!(
            remedies[2],
            "echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override; \
             echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind; \
             echo 0000:01:00.0 > /sys/bus/pci/drivers_probe"
        );
    }

    #[test]
    fn only_members_that_kernel_drivers_have_are_in_the_way() {
        let (twin, bdf) = ready();
        for (name, driver) in [
            ("0000:00:01.0", Some("pcieport")),
            ("0000:01:00.1", Some("igb")),
            ("0000:01:00.2", None),
            ("0000:01:00.3", Some("mlx5_vfio_pci")),
        ] {
            twin.function(name, 0x8086, 0x10c9, "0x020000");
            twin.set_group(name, 5);
            if let Some(driver) = driver {
                twin.set_driver(name, driver);
            }
        }
        let missing = twin.sysfs().readiness(bdf).unwrap();
        let others = vec!["0000:01:00.1".parse().unwrap()];
        assert_eq!(missing, [Obstacle::GroupNotViable { bdf, group: 5, others }]);
        assert!(missing[0].remedy().contains("0000:01:00.1/driver/unbind"));
        assert!(missing[0].to_string().contains("0000:01:00.1"));
    }

    #[test]
    fn every_obstacle_has_its_error() {
        let bdf = PORT.parse().unwrap();
        assert!(matches!(Error::from(Obstacle::Removed(bdf)), Error::Removed { .. }));
        assert!(matches!(Error::from(Obstacle::NoPermission("x".into())), Error::Permission { .. }));
        let not_viable = Obstacle::GroupNotViable { bdf, group: 1, others: vec![bdf] };
        assert!(matches!(not_viable.into(), Error::GroupNotViable { group: 1, .. }));
    }
}
