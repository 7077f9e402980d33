//! One MSI-X vector as an eventfd: wait, drain, mask.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::{Bar, Error, Result};

/// Bytes of one MSI-X table entry (PCI 3.0, 6.8.2.6).
pub const MSIX_ENTRY: usize = 16;
/// Offset of Vector Control in an entry; bit 0 masks it.
pub const MSIX_VECTOR_CONTROL: usize = 12;

/// One interrupt vector. The eventfd counts interrupts since it was last read.
#[derive(Debug)]
pub struct Interrupt {
    vector: u16,
    event: OwnedFd,
    /// The MSI-X table and the offset of this vector's entry in it, where it can be reached.
    entry: Option<(Bar, usize)>,
}

impl Interrupt {
    /// A vector that `entry` (table BAR and offset of the entry) can mask.
    ///
    /// # Errors
    /// [`Error::System`] where no eventfd is to be had.
    pub fn new(vector: u16, entry: Option<(Bar, usize)>) -> Result<Self> {
        // SAFETY: eventfd has no memory arguments.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(Error::last_os("eventfd for an interrupt vector"));
        }
        // SAFETY: `fd` was just opened and nobody else owns it.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { vector, event, entry })
    }

    /// The MSI-X vector.
    pub fn vector(&self) -> u16 {
        self.vector
    }

    /// Interrupts since the last call. Never blocks.
    pub fn take(&self) -> u64 {
        let mut count = 0u64;
        // SAFETY: reads 8 bytes into `count`, which has 8.
        let read = unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), 8) };
        if read == 8 { count } else { 0 }
    }

    /// Waits until the vector fires, and takes its count; 0 when `timeout` passed first.
    ///
    /// # Errors
    /// [`Error::System`] where poll(2) fails.
    pub fn wait(&self, timeout: Duration) -> Result<u64> {
        Ok(if wait_any(&[self], timeout)? { self.take() } else { 0 })
    }

    /// Masks or unmasks the vector in the MSI-X table. A masked vector's event is kept pending by the
    /// device and fires at the unmask. False where this backend cannot reach the table.
    pub fn set_masked(&self, masked: bool) -> bool {
        let Some((table, at)) = &self.entry else { return false };
        table.modify32(at + MSIX_VECTOR_CONTROL, 1, masked.into());
        true
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Waits until any of the vectors fires; false when `timeout` passed first. Takes no counts.
///
/// # Errors
/// [`Error::System`] where poll(2) fails.
pub fn wait_any(interrupts: &[&Interrupt], timeout: Duration) -> Result<bool> {
    let mut fds: Vec<libc::pollfd> = interrupts
        .iter()
        .map(|i| libc::pollfd { fd: i.event.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let limit = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: `fds` holds `fds.len()` entries for the length of the call, `limit` outlives it.
    let ready = unsafe {
        libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, &raw const limit, std::ptr::null())
    };
    if ready >= 0 {
        return Ok(ready > 0);
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::Interrupted {
        return Ok(false);
    }
    Err(Error::io("waiting for an interrupt", error))
}

/// Fires a vector's eventfd, as the kernel does: for backends whose device signals otherwise.
#[cfg(any(test, feature = "qtest"))]
pub(crate) fn fire(event: BorrowedFd<'_>) {
    let one = 1u64;
    // SAFETY: writes the 8 bytes of `one`. A full counter (EAGAIN) loses nothing: it is readable.
    unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fired_vector_wakes_the_waiter_once() {
        let interrupt = Interrupt::new(3, None).unwrap();
        assert_eq!(interrupt.wait(Duration::from_millis(1)).unwrap(), 0);
        fire(interrupt.as_fd());
        fire(interrupt.as_fd());
        assert_eq!(interrupt.wait(Duration::from_secs(1)).unwrap(), 2);
        assert_eq!(interrupt.take(), 0);
        assert!(!interrupt.set_masked(true));
    }
}
