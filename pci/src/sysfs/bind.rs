//! Handing a function to vfio-pci, and giving it back to the driver it came from.

use super::{FunctionInfo, Sysfs, VFIO_PCI, link_name, write_failed};
use crate::{Bdf, Error, Result};

/// A function that was handed to vfio-pci, and what it takes to give it back.
///
/// Dropping it leaves the function where it is, so that a program may end and another take over; see
/// [`Binding::restore_on_drop`].
#[derive(Debug)]
#[must_use = "it knows which driver the function came from"]
pub struct Binding {
    sysfs: Sysfs,
    bdf: Bdf,
    previous: Option<String>,
    on_drop: bool,
}

impl Binding {
    /// The function.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// The driver it came from.
    pub fn previous(&self) -> Option<&str> {
        self.previous.as_deref()
    }

    /// Gives the function back when this value is dropped. What goes wrong then is lost: call
    /// [`Binding::restore`] where it matters.
    pub fn restore_on_drop(mut self) -> Self {
        self.on_drop = true;
        self
    }

    /// Gives the function back to the driver it came from; without one, leaves it without one.
    ///
    /// Waits while a process has it open: the kernel takes a function only from a closed handle.
    ///
    /// # Errors
    /// [`Error::BindFailed`] where that driver does not take it, [`Error::Permission`].
    pub fn restore(mut self) -> Result<()> {
        self.on_drop = false;
        self.sysfs.hand_over(self.bdf, self.previous.as_deref())
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        if self.on_drop {
            let _ = self.sysfs.hand_over(self.bdf, self.previous.as_deref());
        }
    }
}

impl Sysfs {
    /// Hands a function to vfio-pci, taking it from the driver that has it: a kernel network interface
    /// on it disappears. Where vfio-pci has it already, restoring leaves it there.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoVfio`] where vfio-pci is not loaded, [`Error::Permission`],
    /// [`Error::NoIommu`], [`Error::BindFailed`]. The function is back at its driver then.
    pub fn bind_vfio(&self, bdf: Bdf) -> Result<Binding> {
        let info = self.function(bdf)?;
        let binding = |previous| Binding { sysfs: self.clone(), bdf, previous, on_drop: false };
        if info.is_bound_to_vfio() {
            return Ok(binding(info.driver));
        }
        let driver = self.driver(VFIO_PCI);
        if !driver.exists() {
            return Err(Error::NoVfio { path: driver });
        }
        match self.hand_over(bdf, Some(VFIO_PCI)) {
            Ok(()) => Ok(binding(info.driver)),
            Err(error) => Err(self.roll_back(&info, error)),
        }
    }

    /// Takes a function from vfio-pci and lets the kernel choose its driver again, for a caller that
    /// has no [`Binding`]. Gives the driver it got.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Permission`], [`Error::System`].
    pub fn unbind_vfio(&self, bdf: Bdf) -> Result<Option<String>> {
        if self.function(bdf)?.is_bound_to_vfio() {
            self.hand_over(bdf, None)?;
        }
        self.put("drivers_probe", None, &bdf.to_string())?;
        Ok(self.driver_of(bdf))
    }

    fn roll_back(&self, info: &FunctionInfo, error: Error) -> Error {
        if matches!(error, Error::Permission { .. }) && self.driver_of(info.bdf) == info.driver {
            return error;
        }
        let outcome = match self.hand_over(info.bdf, info.driver.as_deref()) {
            // The kernel only says EINVAL.
            Ok(()) if info.group.is_none() => return Error::NoIommu { bdf: info.bdf },
            Ok(()) => match info.driver.as_deref() {
                Some(driver) => format!("{driver} has it again"),
                None => "it has no driver, as before".to_owned(),
            },
            Err(e) => format!("and giving it back failed: {e}"),
        };
        let why = format!("{error}; {outcome}");
        Error::BindFailed { bdf: info.bdf, driver: VFIO_PCI.to_owned(), why }
    }

    /// Moves a function from whatever driver has it to `driver`, or to none.
    fn hand_over(&self, bdf: Bdf, driver: Option<&str>) -> Result<()> {
        if self.driver_of(bdf).as_deref() == driver {
            return Ok(());
        }
        let address = bdf.to_string();
        // Only vfio-pci needs the override: it lists no devices of its own. A newline clears it.
        let only = if driver == Some(VFIO_PCI) { VFIO_PCI } else { "\n" };
        self.put("driver_override", Some(bdf), only)?;
        if self.driver_of(bdf).is_some() {
            self.put("driver/unbind", Some(bdf), &address)?;
        }
        let Some(driver) = driver else { return Ok(()) };
        // Naming the driver, where another could match too.
        self.put(&format!("drivers/{driver}/bind"), None, &address)?;
        match self.driver_of(bdf) {
            Some(taken) if taken == driver => Ok(()),
            other => Err(Error::BindFailed {
                bdf,
                driver: driver.to_owned(),
                why: format!("its driver is {}", other.as_deref().unwrap_or("none")),
            }),
        }
    }

    /// Writes an attribute of a function, or of the bus.
    fn put(&self, attribute: &str, of: Option<Bdf>, value: &str) -> Result<()> {
        let path = of.map_or_else(|| self.bus(), |bdf| self.device(bdf)).join(attribute);
        (self.write)(&path, value).map_err(|e| write_failed(&path, e))
    }

    fn driver_of(&self, bdf: Bdf) -> Option<String> {
        link_name(&self.device(bdf).join("driver"))
    }

    /// Where a loaded driver is.
    pub(super) fn driver(&self, name: &str) -> std::path::PathBuf {
        self.bus().join("drivers").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::twin::Twin;
    use super::*;

    const PORT: &str = "0000:01:00.0";

    fn machine(driver: Option<&str>) -> (Twin, Bdf) {
        let twin = Twin::new();
        twin.function(PORT, 0x8086, 0x10c9, "0x020000");
        for name in ["igb", VFIO_PCI] {
            twin.directory(&format!("sys/bus/pci/drivers/{name}"));
        }
        if let Some(driver) = driver {
            twin.set_driver(PORT, driver);
        }
        (twin, PORT.parse().unwrap())
    }

    #[test]
    fn a_round_trip_gives_the_old_driver_back() {
        for previous in [Some("igb"), None] {
            let (twin, bdf) = machine(previous);
            let binding = twin.sysfs().bind_vfio(bdf).unwrap();
            assert_eq!((twin.driver_of(PORT).as_deref(), binding.previous()), (Some(VFIO_PCI), previous));
            binding.restore().unwrap();
            assert_eq!(twin.driver_of(PORT).as_deref(), previous);
            assert_eq!(twin.override_of(PORT), "", "no override is left behind");
        }
    }

    #[test]
    fn dropping_restores_only_where_asked() {
        let (twin, bdf) = machine(Some("igb"));
        drop(twin.sysfs().bind_vfio(bdf).unwrap());
        assert_eq!(twin.driver_of(PORT).as_deref(), Some(VFIO_PCI));
        let (twin, bdf) = machine(Some("igb"));
        drop(twin.sysfs().bind_vfio(bdf).unwrap().restore_on_drop());
        assert_eq!(twin.driver_of(PORT).as_deref(), Some("igb"));
    }

    #[test]
    fn what_was_at_vfio_stays_there() {
        let (twin, bdf) = machine(Some(VFIO_PCI));
        twin.sysfs().bind_vfio(bdf).unwrap().restore().unwrap();
        assert_eq!(twin.driver_of(PORT).as_deref(), Some(VFIO_PCI));
    }

    #[test]
    fn a_failed_bind_rolls_back() {
        let (twin, bdf) = machine(Some("igb"));
        twin.refuse("vfio-pci/bind", libc::EINVAL);
        assert!(matches!(twin.sysfs().bind_vfio(bdf), Err(Error::NoIommu { .. })));
        assert_eq!(twin.driver_of(PORT).as_deref(), Some("igb"));
        twin.set_group(PORT, 5);
        let error = twin.sysfs().bind_vfio(bdf).unwrap_err();
        assert!(
            matches!(&error, Error::BindFailed { why, .. } if why.contains("igb has it again")),
            "{error}"
        );
        assert_eq!((twin.driver_of(PORT).as_deref(), twin.override_of(PORT)), (Some("igb"), String::new()));
    }

    #[test]
    fn without_the_right_to_write_nothing_changes() {
        let (twin, bdf) = machine(Some("igb"));
        twin.refuse("driver_override", libc::EACCES);
        assert!(matches!(twin.sysfs().bind_vfio(bdf), Err(Error::Permission { .. })));
        assert_eq!(twin.driver_of(PORT).as_deref(), Some("igb"));
    }

    #[test]
    fn without_the_module_it_is_named() {
        let twin = Twin::new();
        twin.function(PORT, 0x8086, 0x10c9, "0x020000");
        let error = twin.sysfs().bind_vfio(PORT.parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("modprobe vfio-pci"), "{error}");
    }

    #[test]
    fn unbinding_lets_the_kernel_choose() {
        let (twin, bdf) = machine(Some(VFIO_PCI));
        twin.kernel_chooses("igb");
        assert_eq!(twin.sysfs().unbind_vfio(bdf).unwrap().as_deref(), Some("igb"));
        assert_eq!(twin.override_of(PORT), "");
    }
}
