//! What can go wrong below a NIC driver: each error names the function and the remedy.

use std::io;
use std::path::PathBuf;

use crate::Bdf;

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no PCI address.
    #[error("'{text}' is no PCI address: write DDDD:BB:DD.F, as `lspci -D` shows it")]
    MalformedBdf {
        /// What was given.
        text: String,
    },
    /// sysfs lists no such function.
    #[error("{bdf}: no such PCI function: `lspci -D` lists those present")]
    NotFound {
        /// The function named.
        bdf: Bdf,
    },
    /// The function is not bound to vfio-pci.
    #[error(
        "{bdf}: bound to {}, not to vfio-pci: `echo vfio-pci > /sys/bus/pci/devices/{bdf}/driver_override`, unbind it, then `echo {bdf} > /sys/bus/pci/drivers_probe`",
        driver.as_deref().unwrap_or("no driver")
    )]
    NotBound {
        /// The function.
        bdf: Bdf,
        /// The driver it has now.
        driver: Option<String>,
    },
    /// The kernel has no IOMMU for this function.
    #[error(
        "{bdf}: in no IOMMU group: enable the IOMMU (VT-d or AMD-Vi) in the firmware and on the kernel command line (intel_iommu=on)"
    )]
    NoIommu {
        /// The function.
        bdf: Bdf,
    },
    /// Other functions of the group are held by kernel drivers.
    #[error("{bdf}: IOMMU group {group} is not viable: bind {} to vfio-pci too, or unbind them", list(.others))]
    GroupNotViable {
        /// The function.
        bdf: Bdf,
        /// Its IOMMU group.
        group: u32,
        /// The group's functions that a kernel driver holds.
        others: Vec<Bdf>,
    },
    /// Another process has the group or the device open.
    #[error("{bdf}: IOMMU group {group} is in use by another process: stop it first")]
    Busy {
        /// The function.
        bdf: Bdf,
        /// Its IOMMU group.
        group: u32,
    },
    /// The kernel's VFIO is not there.
    #[error("VFIO is not available ({path} cannot be opened): `modprobe vfio-pci`", path = path.display())]
    NoVfio {
        /// What is missing.
        path: PathBuf,
    },
    /// The platform cannot keep one device's interrupts from another's, so the kernel refuses.
    #[error(
        "{bdf}: the IOMMU does not remap interrupts, so VFIO refuses it: enable interrupt remapping in the firmware or, where you trust the device, `echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts`"
    )]
    UnsafeInterrupts {
        /// The function.
        bdf: Bdf,
    },
    /// This process has the function open already.
    #[error("{bdf}: already open in this process: use that handle, or drop it first")]
    AlreadyOpen {
        /// The function.
        bdf: Bdf,
    },
    /// A driver did not take the function; the one it had before has it again, where there was one.
    #[error("{bdf}: {driver} did not take it ({why}); `dmesg | grep {bdf}` may say more")]
    BindFailed {
        /// The function.
        bdf: Bdf,
        /// The driver it was to get.
        driver: String,
        /// What the kernel said, and what became of the function.
        why: String,
    },
    /// More VFs were asked for than there are.
    #[error("{bdf}: {wanted} VFs asked for, it has {total}: ask for at most that many")]
    NumVfs {
        /// The physical function.
        bdf: Bdf,
        /// How many were asked for.
        wanted: u16,
        /// How many there can be.
        total: u16,
    },
    /// The function's driver enables no VFs.
    #[error(
        "{bdf}: its driver ({}) enables no VFs: for vfio-pci, `echo Y > /sys/module/vfio_pci/parameters/enable_sriov`",
        driver.as_deref().unwrap_or("none")
    )]
    SriovDisabled {
        /// The physical function.
        bdf: Bdf,
        /// The driver it has now.
        driver: Option<String>,
    },
    /// A device node may not be opened by this user.
    #[error("{path}: permission denied: run as root, or give your user read and write access to it", path = path.display())]
    Permission {
        /// The node.
        path: PathBuf,
    },
    /// A VF whose PF is on vfio-pci needs the PF's token.
    #[error("{bdf}: this VF's PF is on vfio-pci, so it opens only with the VF token that the PF's owner set")]
    VfToken {
        /// The VF.
        bdf: Bdf,
    },
    /// The text is no VF token.
    #[error("'{text}' is no VF token: give a UUID, as `uuidgen` prints it")]
    MalformedToken {
        /// What was given.
        text: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The operation and its object.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The function answers all-ones: it was removed, or is powered down.
    #[error(
        "{bdf}: the device is gone (reads return all ones): reseat it or rescan the bus, then open it again"
    )]
    Removed {
        /// The function.
        bdf: Bdf,
    },
    /// The BAR does not exist or is of another kind.
    #[error("{bdf}: BAR {index} is absent or is I/O space")]
    NoBar {
        /// The function.
        bdf: Bdf,
        /// Its index, 0 to 5.
        index: u8,
    },
    /// The function lacks a capability.
    #[error("{bdf}: no {name} capability")]
    NoCapability {
        /// The function.
        bdf: Bdf,
        /// The capability's name.
        name: &'static str,
    },
    /// More interrupt vectors were asked for than there are.
    #[error("{bdf}: {wanted} interrupt vectors asked for, the function has {have}")]
    Vectors {
        /// The function.
        bdf: Bdf,
        /// How many were asked for.
        wanted: u16,
        /// How many there are.
        have: u16,
    },
    /// Memory for DMA is exhausted.
    #[error("no memory for {len} bytes of DMA: {remedy}")]
    DmaMemory {
        /// How much was asked for.
        len: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// No free I/O virtual addresses of that length.
    #[error("no {len} contiguous bytes of I/O virtual addresses are free in {space}")]
    IovaExhausted {
        /// How much was asked for.
        len: usize,
        /// The address space.
        space: String,
    },
    /// The locked-memory limit stands in the way of a DMA mapping.
    #[error(
        "locking {len} bytes for DMA was refused: raise the limit (`ulimit -l unlimited`, or LimitMEMLOCK=infinity)"
    )]
    LockedMemory {
        /// How much was asked for.
        len: usize,
    },
    /// The kernel's limit of DMA mappings per container is reached.
    #[error(
        "no more DMA mappings for {len} bytes: use fewer, larger pieces, or raise `/sys/module/vfio_iommu_type1/parameters/dma_entry_limit`"
    )]
    DmaMappings {
        /// How much was to be mapped.
        len: usize,
    },
    /// The function refuses a reset.
    #[error("{bdf}: offers no function-level reset")]
    NoReset {
        /// The function.
        bdf: Bdf,
    },
    /// The backend does not have this feature.
    #[error("{bdf}: the {backend} backend has no {what}")]
    Unsupported {
        /// The function.
        bdf: Bdf,
        /// The backend's name.
        backend: &'static str,
        /// What it lacks.
        what: &'static str,
    },
    /// The other side of a socket backend broke its protocol or went away.
    #[error("{peer}: {what}")]
    Peer {
        /// The peer's name.
        peer: String,
        /// What it did.
        what: String,
    },
}

impl Error {
    /// The last error of the C library, with what was being done.
    pub fn last_os(what: impl Into<String>) -> Self {
        Self::System { what: what.into(), source: io::Error::last_os_error() }
    }

    /// An I/O error, with what was being done.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }
}

fn list(functions: &[Bdf]) -> String {
    functions.iter().map(Bdf::to_string).collect::<Vec<_>>().join(", ")
}
