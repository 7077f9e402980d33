//! The test's end of a cable.
#![allow(unsafe_code)]

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use crate::{Error, Result};

/// Longest frame a wire carries.
const LONGEST: usize = 65_536;
/// How long a frame may wait for a NIC to take it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The far end of a NIC's cable, or a further station on a hub. Cheap to clone; clones share what
/// arrives.
///
/// Frames are as on the wire between preamble and FCS: no FCS comes out or goes in. Nothing is lost on
/// the way: a NIC with no receive buffer leaves its frames waiting.
#[derive(Clone, Debug)]
pub struct Wire {
    socket: Arc<UnixDatagram>,
}

impl Wire {
    pub(super) fn new(socket: UnixDatagram) -> Result<Self> {
        let limited = socket.set_write_timeout(Some(PATIENCE));
        limited.map_err(|e| Error::io("limiting waits on a wire", e))?;
        Ok(Self { socket: Arc::new(socket) })
    }

    /// Puts a frame on the wire, towards the NIC.
    ///
    /// # Errors
    /// [`Error::System`] where no NIC takes it for two seconds (its receiver is off, or out of
    /// buffers, with as many frames waiting as the socket holds), or QEMU has ended.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = self.socket.send(frame);
        let what = "sending a frame on a wire (is the NIC's receiver enabled, with buffers posted?)";
        sent.map(drop).map_err(|e| Error::io(what, e))
    }

    /// The next frame from the NIC; nothing where none comes within `timeout`, or QEMU has ended.
    ///
    /// # Errors
    /// [`Error::System`] where poll(2) or recv(2) fails.
    pub fn recv(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        if !self.readable(timeout)? {
            return Ok(None);
        }
        let mut frame = vec![0; LONGEST];
        // Another clone may have been faster: do not wait for the next.
        // SAFETY: `frame` has LONGEST bytes to be written.
        let len = unsafe {
            libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), LONGEST, libc::MSG_DONTWAIT)
        };
        let Ok(len) = usize::try_from(len) else {
            let error = std::io::Error::last_os_error();
            return match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionReset => Ok(None),
                _ => Err(Error::io("receiving from a wire", error)),
            };
        };
        frame.truncate(len);
        Ok((len > 0).then_some(frame))
    }

    fn readable(&self, timeout: Duration) -> Result<bool> {
        let mut fd = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = timeout.as_micros().div_ceil(1000).try_into().unwrap_or(libc::c_int::MAX);
        // SAFETY: `fd` is one entry and lives across the call.
        let ready = unsafe { libc::poll(&raw mut fd, 1, millis) };
        if ready >= 0 {
            return Ok(fd.revents & libc::POLLIN != 0);
        }
        let error = std::io::Error::last_os_error();
        if error.kind() == ErrorKind::Interrupted {
            return Ok(false);
        }
        Err(Error::io("waiting on a wire", error))
    }
}
