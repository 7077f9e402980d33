//! The kernel's VFIO: PCI functions behind an IOMMU, for a process without special rights.
//!
//! One [`Vfio`] is one container: all functions opened through it share one [`IovaSpace`], so memory
//! has the same I/O virtual address for each. A function must be bound to vfio-pci first, see
//! [`crate::sysfs`].
//!
//! The container and its DMA mappings are those of vfio-ioctls. Groups and devices are our own: its
//! group open takes no VF token, its reset drops the result, its register access drops errors, and
//! dropping its device panics where the device is gone.
//!
//! Reference: Linux `Documentation/driver-api/vfio.rst`, `include/uapi/linux/vfio.h`.

mod device;
mod domain;
mod sys;
mod token;

pub use token::VfToken;

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{File, OpenOptions as FileOptions};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_ioctls::{VfioContainer, VfioError};

use self::device::{Device, VfioFunction};
use self::domain::{ContainerDomain, failed, widest_ranges};
use crate::sysfs::Sysfs;
use crate::{Bdf, Error, Function, IommuDomain, IovaSpace, Result};

const CONTAINER: &str = "/dev/vfio/vfio";

/// How to open a function.
#[derive(Clone, Copy, Default, Debug)]
pub struct OpenOptions {
    /// On a PF: the token that its VFs open with from now on. On a VF whose PF is on vfio-pci: the
    /// PF's token, without which it does not open.
    pub vf_token: Option<VfToken>,
}

/// A VFIO container: functions of any number of IOMMU groups over one space of I/O virtual addresses.
pub struct Vfio {
    container: Arc<VfioContainer>,
    space: Arc<IovaSpace>,
    sysfs: Sysfs,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    groups: HashMap<u32, Group>,
    open: HashSet<Bdf>,
    /// The translation tables, which the kernel keeps while there is a group.
    domain: Option<Arc<dyn IommuDomain>>,
}

struct Group {
    file: File,
    /// Functions of it that are open.
    leases: usize,
}

impl Vfio {
    /// An empty container.
    ///
    /// # Errors
    /// [`Error::NoVfio`] where the kernel's VFIO is not loaded, [`Error::Permission`].
    pub fn new() -> Result<Arc<Self>> {
        let container = VfioContainer::new(None).map_err(container_failed)?;
        Ok(Arc::new(Self {
            container: Arc::new(container),
            space: IovaSpace::new("the VFIO container", widest_ranges()),
            sysfs: Sysfs::default(),
            state: Mutex::default(),
        }))
    }

    /// The address space of all functions opened here.
    pub fn iova_space(&self) -> &Arc<IovaSpace> {
        &self.space
    }

    /// Opens a function. The kernel resets it first, where it can.
    ///
    /// # Errors
    /// What [`Sysfs::readiness`] finds missing; [`Error::Busy`] where another process has the group,
    /// [`Error::AlreadyOpen`] where this one has the function, [`Error::VfToken`] where a VF's PF is on
    /// vfio-pci, [`Error::UnsafeInterrupts`] where the IOMMU cannot isolate interrupts.
    pub fn open(self: &Arc<Self>, bdf: Bdf) -> Result<Arc<dyn Function>> {
        self.open_with(bdf, OpenOptions::default())
    }

    /// Opens a function with options.
    ///
    /// # Errors
    /// As [`Vfio::open`]; [`Error::NoCapability`] for a VF token on a function without SR-IOV,
    /// [`Error::VfToken`] where it is not the token that the PF's owner set.
    pub fn open_with(self: &Arc<Self>, bdf: Bdf, options: OpenOptions) -> Result<Arc<dyn Function>> {
        if let Some(obstacle) = self.sysfs.readiness(bdf)?.into_iter().next() {
            return Err(obstacle.into());
        }
        let info = self.sysfs.function(bdf)?;
        let group = info.group.ok_or(Error::NoIommu { bdf })?;
        let lease = self.lease(bdf, group)?;
        // A token is refused where there is nothing to guard: a VF whose PF a kernel driver has.
        let guarded = |pf| self.sysfs.function(pf).is_ok_and(|pf| pf.is_bound_to_vfio());
        let token = options.vf_token.filter(|_| info.physical.is_none_or(guarded));
        let file = self.open_device(bdf, group, token)?;
        Ok(Arc::new(VfioFunction::new(Device { file, lease })?))
    }

    fn open_device(&self, bdf: Bdf, group: u32, token: Option<VfToken>) -> Result<File> {
        let name = token.map_or_else(|| bdf.to_string(), |token| format!("{bdf} vf_token={token}"));
        let name = CString::new(name).map_err(|e| Error::io("naming a function", e.into()))?;
        let state = self.lock();
        let group_file = &state.groups.get(&group).ok_or(Error::NotFound { bdf })?.file;
        sys::open_device(group_file, &name).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES) => Error::VfToken { bdf },
            Some(libc::EBUSY) => Error::Busy { bdf, group },
            Some(libc::ENODEV) => Error::NotFound { bdf },
            Some(libc::EINVAL) if token.is_some() => Error::NoCapability { bdf, name: "SR-IOV" },
            _ => Error::io(format!("opening {bdf} through its IOMMU group {group}"), error),
        })
    }

    /// Registers a function as open, and brings its group into the container for the first of them.
    fn lease(self: &Arc<Self>, bdf: Bdf, group: u32) -> Result<Lease> {
        let mut state = self.lock();
        if state.open.contains(&bdf) {
            return Err(Error::AlreadyOpen { bdf });
        }
        if !state.groups.contains_key(&group) {
            let file = self.join(bdf, group, &mut state)?;
            state.groups.insert(group, Group { file, leases: 0 });
        }
        if let Some(group) = state.groups.get_mut(&group) {
            group.leases += 1;
        }
        state.open.insert(bdf);
        Ok(Lease { vfio: self.clone(), bdf, group })
    }

    fn join(&self, bdf: Bdf, group: u32, state: &mut State) -> Result<File> {
        let node = self.sysfs.group_node(group);
        let file = FileOptions::new().read(true).write(true).open(&node);
        let file = file.map_err(|e| group_failed(bdf, group, node, e))?;
        let viable = sys::group_is_viable(&file).map_err(|e| Error::io("VFIO group status", e))?;
        if !viable {
            return Err(Error::GroupNotViable { bdf, group, others: self.neighbours(bdf, group) });
        }
        let joined = sys::set_container(&file, &*self.container);
        joined.map_err(|e| self.join_failed(bdf, group, e))?;
        let result = match &state.domain {
            None => self.start_translating(bdf, group, state),
            Some(domain) => {
                self.space.restrict(&domain.ranges());
                Ok(())
            }
        };
        if let Err(error) = result {
            let _ = sys::unset_container(&file);
            return Err(error);
        }
        Ok(file)
    }

    /// The first group decides which IOMMU there is.
    fn start_translating(&self, bdf: Bdf, group: u32, state: &mut State) -> Result<()> {
        sys::set_iommu(&*self.container).map_err(|e| self.join_failed(bdf, group, e))?;
        let domain: Arc<dyn IommuDomain> = Arc::new(ContainerDomain(self.container.clone()));
        self.space.attach(domain.clone())?;
        state.domain = Some(domain);
        Ok(())
    }

    fn join_failed(&self, bdf: Bdf, group: u32, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::EPERM) => Error::UnsafeInterrupts { bdf },
            Some(libc::EBUSY) => Error::Busy { bdf, group },
            _ => Error::io(format!("adding IOMMU group {group} ({bdf}) to the VFIO container"), error),
        }
    }

    fn neighbours(&self, bdf: Bdf, group: u32) -> Vec<Bdf> {
        self.sysfs.group(group).into_iter().filter(|other| *other != bdf).collect()
    }

    fn release(&self, bdf: Bdf, group: u32) {
        let mut state = self.lock();
        state.open.remove(&bdf);
        let Some(entry) = state.groups.get_mut(&group) else { return };
        entry.leases -= 1;
        if entry.leases > 0 {
            return;
        }
        // With its last group the kernel drops all mappings: unmapped first, so that the next first
        // group starts with what is mapped then.
        if state.groups.len() == 1
            && let Some(domain) = state.domain.take()
        {
            self.space.detach(&domain);
        }
        if let Some(group) = state.groups.remove(&group) {
            // Refused where the kernel took the group out itself, because its device was removed.
            let _ = sys::unset_container(&group.file);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open function's share in its group. To be dropped after the function's file is closed: the kernel
/// keeps a group with open functions in its container.
struct Lease {
    vfio: Arc<Vfio>,
    bdf: Bdf,
    group: u32,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.vfio.release(self.bdf, self.group);
    }
}

fn container_failed(error: VfioError) -> Error {
    let path = PathBuf::from(CONTAINER);
    match error {
        VfioError::OpenContainer(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Error::Permission { path }
        }
        // The node may be there without the module behind it. No extension: vfio_iommu_type1 is missing,
        // which comes with vfio-pci.
        VfioError::OpenContainer(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            Error::NoVfio { path }
        }
        VfioError::VfioExtension => Error::NoVfio { path },
        other => failed(format!("opening {CONTAINER}"), other),
    }
}

fn group_failed(bdf: Bdf, group: u32, node: PathBuf, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EBUSY) => Error::Busy { bdf, group },
        Some(libc::EACCES | libc::EPERM) => Error::Permission { path: node },
        // Bound a moment ago, and no longer.
        Some(libc::ENOENT) => Error::NotBound { bdf, driver: None },
        _ => Error::io(format!("opening {} for {bdf}", node.display()), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_container_name_the_remedy() {
        let os = |errno| VfioError::OpenContainer(io::Error::from_raw_os_error(errno));
        assert!(matches!(container_failed(os(libc::ENOENT)), Error::NoVfio { .. }));
        assert!(matches!(container_failed(os(libc::ENODEV)), Error::NoVfio { .. }));
        assert!(matches!(container_failed(os(libc::EACCES)), Error::Permission { .. }));
        assert!(matches!(container_failed(VfioError::VfioExtension), Error::NoVfio { .. }));
        assert!(matches!(container_failed(os(libc::EMFILE)), Error::System { .. }));
    }

    #[test]
    fn errors_of_a_group_are_told_apart() {
        let bdf = "01:00.0".parse().unwrap();
        let failed = |errno| group_failed(bdf, 7, "/dev/vfio/7".into(), io::Error::from_raw_os_error(errno));
        assert!(matches!(failed(libc::EBUSY), Error::Busy { group: 7, .. }));
        assert!(matches!(failed(libc::EACCES), Error::Permission { .. }));
        assert!(matches!(failed(libc::ENOENT), Error::NotBound { .. }));
        assert!(matches!(failed(libc::EIO), Error::System { .. }));
    }
}
