//! [`Device`]: register access by name, and waits that end.

use std::time::{Duration, Instant};

use pci::{Bar, Bdf};

use super::hw::regs::{Access, Register, STATUS};
use crate::{Error, Result};

/// The registers of a function, and what to call it in errors. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) bar: Bar,
    pub(super) bdf: Bdf,
}

impl Device {
    pub(super) fn read(&self, register: Register) -> u32 {
        self.read_at(register, 0)
    }

    pub(super) fn read_at(&self, register: Register, index: usize) -> u32 {
        debug_assert!(register.access != Access::Wo, "{} cannot be read", register.name);
        self.bar.read32(register.at(index))
    }

    pub(super) fn write(&self, register: Register, value: u32) {
        self.write_at(register, 0, value);
    }

    pub(super) fn write_at(&self, register: Register, index: usize, value: u32) {
        debug_assert!(
            matches!(register.access, Access::Rw | Access::Wo),
            "{} cannot be written",
            register.name
        );
        self.bar.write32(register.at(index), value);
    }

    /// Clears the bits of `clear`, sets those of `set`.
    pub(super) fn modify(&self, register: Register, clear: u32, set: u32) {
        self.write(register, self.read(register) & !clear | set);
    }

    /// True once the device does not answer. STATUS is never all ones, and never written by this driver:
    /// a register that was written may read back after a removal.
    pub(super) fn is_gone(&self) -> bool {
        self.read(STATUS) == u32::MAX
    }

    /// # Errors
    /// [`Error::Removed`] where the device does not answer.
    pub(super) fn present(&self) -> Result<()> {
        if self.is_gone() { Err(Error::Removed { bdf: self.bdf }) } else { Ok(()) }
    }

    /// Looks at `register` every tenth of a millisecond until `done`, for `limit` at the most.
    ///
    /// # Errors
    /// [`Error::Timeout`] that names `what`; [`Error::Removed`] where that is why.
    pub(super) fn wait(
        &self,
        what: &'static str,
        limit: Duration,
        register: Register,
        done: impl Fn(u32) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            // The time is taken first: a thread that lay still meanwhile must look once more.
            let late = Instant::now() >= deadline;
            let value = self.read(register);
            if value != u32::MAX && done(value) {
                return Ok(());
            }
            if late {
                self.present()?;
                return Err(self.timeout(what, limit));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub(super) fn timeout(&self, what: &'static str, limit: Duration) -> Error {
        Error::Timeout { bdf: self.bdf, what, millis: limit.as_millis() as u64 }
    }

    pub(super) fn setting(&self, what: impl Into<String>, allowed: impl Into<String>) -> Error {
        Error::Setting { bdf: self.bdf, what: what.into(), allowed: allowed.into() }
    }
}
