//! The two sockets to QEMU: qtest for registers and memory, QMP for the machine.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::process;
use crate::{Error, Result};

/// Longest wait for an answer. QEMU answers in microseconds; a loaded machine may take a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Width of an access, as qtest names it.
#[derive(Clone, Copy)]
pub(super) enum Width {
    Byte = 1,
    Word = 2,
    Long = 4,
}

impl Width {
    fn letter(self) -> char {
        match self {
            Self::Byte => 'b',
            Self::Word => 'w',
            Self::Long => 'l',
        }
    }

    /// The widest access that is aligned at `offset` and no longer than `len`.
    pub(super) fn fitting(offset: u16, len: usize) -> Self {
        match len {
            4.. if offset.is_multiple_of(4) => Self::Long,
            2.. if offset.is_multiple_of(2) => Self::Word,
            _ => Self::Byte,
        }
    }
}

/// Both sockets. The first failure is kept: all later access fails with it.
pub(super) struct Link {
    qtest: Mutex<Lines>,
    qmp: Mutex<Lines>,
    failure: OnceLock<String>,
    stderr: File,
}

impl Link {
    pub(super) fn new(qtest: UnixStream, qmp: UnixStream, stderr: File) -> Result<Self> {
        Ok(Self {
            qtest: Mutex::new(Lines::new(qtest)?),
            qmp: Mutex::new(Lines::new(qmp)?),
            failure: OnceLock::new(),
            stderr,
        })
    }

    /// Reads guest-physical memory: RAM, a register, configuration space.
    pub(super) fn read(&self, width: Width, address: u64) -> Result<u32> {
        self.qtest(format_args!("read{} {address:#x}\n", width.letter()))
    }

    /// Writes guest-physical memory.
    pub(super) fn write(&self, width: Width, address: u64, value: u32) -> Result<()> {
        self.qtest(format_args!("write{} {address:#x} {value:#x}\n", width.letter())).map(drop)
    }

    /// Writes an I/O port.
    pub(super) fn out32(&self, port: u16, value: u32) -> Result<()> {
        self.qtest(format_args!("outl {port:#x} {value:#x}\n")).map(drop)
    }

    /// Executes a QMP command; `arguments` is a JSON object. Answers the JSON of its `return`.
    pub(super) fn qmp(&self, command: &str, arguments: &str) -> Result<String> {
        self.alive()?;
        let mut lines = lock(&self.qmp);
        let request = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}\n");
        lines.send(request.as_bytes()).map_err(|e| self.fail(&e))?;
        loop {
            // Events and the greeting come in between.
            let line = lines.next().map_err(|e| self.fail(&e))?;
            if let Some(answer) = line.strip_prefix("{\"return\": ") {
                return Ok(answer.strip_suffix('}').unwrap_or(answer).to_owned());
            }
            if line.starts_with("{\"error\": ") {
                return Err(peer(format!("refused {command} {arguments}: {line}")));
            }
        }
    }

    /// Why nothing answers any more.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// From now on nothing answers, for that reason, unless there is an earlier one.
    pub(super) fn close(&self, reason: &str) {
        let _ = self.failure.set(reason.to_owned());
    }

    fn alive(&self) -> Result<()> {
        self.failure().map_or(Ok(()), |reason| Err(peer(reason.to_owned())))
    }

    fn qtest(&self, command: std::fmt::Arguments<'_>) -> Result<u32> {
        self.alive()?;
        let mut lines = lock(&self.qtest);
        let answer = lines.exchange(command).map_err(|e| self.fail(&e))?;
        match answer.strip_prefix("OK") {
            Some("") => Ok(0),
            Some(value) => value
                .trim_start()
                .strip_prefix("0x")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok())
                .map(|value| value as u32)
                .ok_or_else(|| self.fail(&format_args!("answered '{answer}' to '{command}'"))),
            None => Err(self.fail(&format_args!("answered '{answer}' to '{command}'"))),
        }
    }

    fn fail(&self, what: &dyn std::fmt::Display) -> Error {
        let complaint = process::complaint(&self.stderr);
        let reason = match complaint.as_str() {
            "" => what.to_string(),
            said => format!("{what}; it said: {said}"),
        };
        peer(self.failure.get_or_init(|| reason).clone())
    }
}

fn peer(what: String) -> Error {
    Error::Peer { peer: "QEMU".into(), what }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream socket, line by line.
struct Lines {
    socket: UnixStream,
    /// What was read and not yet taken.
    pending: Vec<u8>,
    /// The request being written, kept for its capacity.
    request: String,
}

impl Lines {
    fn new(socket: UnixStream) -> Result<Self> {
        let limited =
            socket.set_read_timeout(Some(PATIENCE)).and_then(|()| socket.set_write_timeout(Some(PATIENCE)));
        limited.map_err(|e| Error::io("limiting waits on QEMU's socket", e))?;
        Ok(Self { socket, pending: Vec::new(), request: String::new() })
    }

    fn exchange(&mut self, request: std::fmt::Arguments<'_>) -> std::result::Result<String, String> {
        let mut text = std::mem::take(&mut self.request);
        text.clear();
        let written = text.write_fmt(request);
        let sent = written.map_err(|e| e.to_string()).and_then(|()| self.send(text.as_bytes()));
        self.request = text;
        sent.and_then(|()| self.next())
    }

    fn send(&mut self, bytes: &[u8]) -> std::result::Result<(), String> {
        self.socket.write_all(bytes).map_err(|e| format!("takes no request ({e}): it has ended"))
    }

    fn next(&mut self) -> std::result::Result<String, String> {
        loop {
            if let Some(end) = self.pending.iter().position(|&b| b == b'\n') {
                let line = String::from_utf8_lossy(&self.pending[..end]).trim_end().to_owned();
                self.pending.drain(..=end);
                return Ok(line);
            }
            let mut chunk = [0; 4096];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err("closed its socket: it has ended".into()),
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(format!("no answer within {} s: is it stopped?", PATIENCE.as_secs()));
                }
                Err(e) => return Err(format!("gives no answer ({e}): it has ended")),
            }
        }
    }
}
