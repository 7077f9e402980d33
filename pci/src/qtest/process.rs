//! The QEMU process: started with everything it needs as inherited descriptors, ended with its owner.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::vectors::Vectors;
use crate::{Error, Result};

/// How long the keeper sleeps between two looks at the MSI-X words. A bound on the latency of an
/// interrupt, and at some 20 000 looks a second a few per cent of one core.
const LOOK: Duration = Duration::from_micros(50);

/// A QEMU that lives until this is dropped.
pub(super) struct Process {
    pid: libc::pid_t,
    stop: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts QEMU with `arguments`; of `inherited` it gets the descriptors under the same numbers.
    ///
    /// The thread that starts it keeps it: the kernel sends a parent-death signal when the *thread*
    /// that forked ends (prctl(2), PR_SET_PDEATHSIG), so a passing thread of a test must not be it.
    pub(super) fn start(
        program: OsString,
        arguments: Vec<OsString>,
        inherited: Vec<OwnedFd>,
        stderr: &File,
        vectors: Arc<Vectors>,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (answer, started) = mpsc::channel();
        let command = command(&program, arguments, &inherited, stderr)?;
        let stopped = stop.clone();
        let keeper = thread::Builder::new()
            .name("qtest-keeper".into())
            .spawn(move || keep(command, inherited, &answer, &stopped, &vectors))
            .map_err(|e| Error::io("starting the thread that keeps QEMU", e))?;
        let pid = started.recv().map_err(|_| gone())?.map_err(|e| cannot_start(&program, e))?;
        Ok(Self { pid, stop, keeper: Some(keeper) })
    }

    /// Kills QEMU where it stands.
    pub(super) fn kill(&self) {
        // SAFETY: no memory is involved. The pid is still ours: only the keeper reaps it, and only
        // after `stop`, which is set by `drop`.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(keeper) = self.keeper.take() {
            keeper.thread().unpark();
            // A keeper that panicked has killed QEMU already, through `Reaped`.
            let _ = keeper.join();
        }
    }
}

/// Kills and reaps, however the keeper ends.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn keep(
    mut command: Command,
    inherited: Vec<OwnedFd>,
    answer: &mpsc::Sender<io::Result<libc::pid_t>>,
    stop: &AtomicBool,
    vectors: &Vectors,
) {
    let child = match command.spawn() {
        Ok(child) => Reaped(child),
        Err(error) => return drop(answer.send(Err(error))),
    };
    // Ours closed, QEMU's are the only ones: its end is seen as end of file.
    drop(inherited);
    let _ = answer.send(Ok(child.0.id().cast_signed()));
    vectors.keeper_is(thread::current());
    while !stop.load(Ordering::Acquire) {
        if vectors.look() { thread::park_timeout(LOOK) } else { thread::park() }
    }
}

fn command(
    program: &OsStr,
    arguments: Vec<OsString>,
    inherited: &[OwnedFd],
    stderr: &File,
) -> Result<Command> {
    let errors = stderr.try_clone().map_err(|e| Error::io("duplicating a memory file", e))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    let keep: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: getpid has no arguments and cannot fail.
    let parent = unsafe { libc::getpid() };
    // SAFETY: between fork and exec the closure only makes system calls on copied integers: it
    // allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            for &fd in &keep {
                if libc::fcntl(fd, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before it asked for the signal.
            if libc::getppid() != parent { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        });
    }
    Ok(command)
}

/// QEMU's name: what BECKET_QEMU says, or what Debian calls it.
pub(super) fn program() -> OsString {
    std::env::var_os("BECKET_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into())
}

fn cannot_start(program: &OsStr, source: io::Error) -> Error {
    let name = program.to_string_lossy();
    let remedy = "install QEMU 8.0 or later (Debian: qemu-system-x86), or set BECKET_QEMU to its path";
    Error::io(format!("starting {name} ({remedy})"), source)
}

fn gone() -> Error {
    Error::Peer { peer: "QEMU".into(), what: "the thread that starts it died".into() }
}

/// An anonymous file with `content`, `len` bytes long.
pub(super) fn memory_file(name: &std::ffi::CStr, len: u64, content: &[u8]) -> Result<File> {
    // SAFETY: the name is NUL-terminated; the call has no other memory argument.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::last_os("memfd_create for QEMU"));
    }
    // SAFETY: `fd` was just opened and nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let written = file.set_len(len).and_then(|()| file.write_all(content));
    written.map_err(|e| Error::io("sizing a memory file for QEMU", e))?;
    Ok(file)
}

/// What QEMU said on stderr, its last kilobyte, on one line.
pub(super) fn complaint(stderr: &File) -> String {
    let len = stderr.metadata().map_or(0, |m| m.len());
    let kept = len.min(1024);
    let mut tail = vec![0; kept as usize];
    if stderr.read_exact_at(&mut tail, len - kept).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&tail).trim().replace('\n', "; ")
}
