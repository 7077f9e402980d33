//! Surprise removal: registers of a device that is gone read all ones instead of killing the process.
//!
//! When a device vanishes, or stops decoding memory, the kernel takes its BARs out of every process
//! that mapped them, and the next access raises SIGBUS. A process-wide handler, installed with the
//! first BAR, puts memory full of ones in the BAR's place and lets the access run again. Any other
//! SIGBUS goes on to the handler that was there before.
//!
//! The ones are private pages: a register *written* after the removal reads back what was written. Look
//! for removal with [`crate::Function::is_present`], never with a register that the driver writes.
//! What replaced a BAR stays until it is unmapped: a device that comes back is opened anew.
#![allow(unsafe_code)]

use std::any::Any;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use memmap2::{MmapOptions, MmapRaw};

use crate::bar::RegisterMapping;
use crate::{Error, Result};

/// Mappings that can be watched at once; a function has at most six BARs.
const SLOTS: usize = 1024;
/// Length of the file of ones. One stretch of a BAR takes one mmap of it.
const ONES: usize = 256 << 10;

const FREE: usize = 0;
const CLAIMED: usize = 1;

/// One watched mapping. Written by whoever claimed it, read by the signal handler at any moment.
struct Slot {
    /// Its address, or [`FREE`], or [`CLAIMED`] while the other fields are being set.
    base: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

static WATCHED: [Slot; SLOTS] =
    [const { Slot { base: AtomicUsize::new(FREE), len: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        SLOTS];

static LOST: AtomicU64 = AtomicU64::new(0);

/// What the handler needs, made before it is installed.
struct Handler {
    /// A file of [`ONES`] bytes 0xff.
    ones: libc::c_int,
    previous: libc::sigaction,
}

static HANDLER: OnceLock<Handler> = OnceLock::new();

/// Mappings of this process whose device went away, since the start.
pub fn lost_mappings() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Registers of a device file, mapped and watched.
pub struct MappedRegisters {
    // In this order, so that nothing else can be at the address while it is still watched, and the
    // device is let go last.
    watch: Watch,
    map: MmapRaw,
    _keep: Arc<dyn Any + Send + Sync>,
}

impl MappedRegisters {
    /// Maps `len` bytes (whole pages) of `file` from `offset` on, and keeps `keep` for as long.
    ///
    /// # Errors
    /// [`Error::System`] where the kernel refuses, or too many BARs are mapped.
    pub fn map(
        file: &impl AsRawFd,
        offset: u64,
        len: usize,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<Arc<Self>> {
        install().map_err(|e| Error::io("installing the handler for vanished devices", e))?;
        let map = MmapOptions::new().offset(offset).len(len).map_raw(file.as_raw_fd());
        let map = map.map_err(|e| Error::io("mapping a BAR", e))?;
        let watch = Watch::start(map.as_mut_ptr() as usize, len)?;
        Ok(Arc::new(Self { watch, map, _keep: keep }))
    }

    /// True once an access found the device gone.
    pub fn is_lost(&self) -> bool {
        self.watch.0.lost.load(Ordering::Relaxed)
    }
}

// SAFETY: the pages are mapped readable and writable while `map` lives, in the place of the device's
// the handler puts others that are; mmap aligns them, and only `Bar` is given the address.
unsafe impl RegisterMapping for MappedRegisters {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.map.as_mut_ptr()).expect("mmap never returns address 0")
    }
    fn len(&self) -> usize {
        self.map.len()
    }
}

/// Keeps a mapping in the handler's registry.
struct Watch(&'static Slot);

impl Watch {
    fn start(base: usize, len: usize) -> Result<Self> {
        let claim = |slot: &&Slot| {
            slot.base.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let Some(slot) = WATCHED.iter().find(claim) else {
            let full = io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(Error::io(format!("{SLOTS} BARs are mapped already: drop some functions"), full));
        };
        slot.len.store(len, Ordering::Relaxed);
        slot.lost.store(false, Ordering::Relaxed);
        slot.base.store(base, Ordering::Release);
        Ok(Self(slot))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.base.store(FREE, Ordering::Release);
    }
}

/// Installs the handler, the first time.
fn install() -> io::Result<()> {
    if HANDLER.get().is_some() {
        return Ok(());
    }
    let ones = file_of_ones()?;
    // SAFETY: sigaction is plain data, for which zeros are valid.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action is given; the old one goes into `previous`.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut first = false;
    HANDLER.get_or_init(|| {
        first = true;
        Handler { ones: ones.into_raw_fd(), previous }
    });
    if !first {
        return Ok(());
    }
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    // On the alternate stack that Rust gives each thread: the fault may be deep in a small one.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for and is async-signal-safe.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn file_of_ones() -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated string and the call has no other memory argument.
    let fd = unsafe { libc::memfd_create(c"becket-ones".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(&vec![0xff; ONES])?;
    Ok(file)
}

/// Async-signal-safe: loads, mmap, sigaction, raise. Leaves errno as it was.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(handler) = HANDLER.get() else { return };
    // SAFETY: the address of this thread's errno is always valid.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler; a positive code means that
    // the fault came with an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let ours = code > 0 && slot_of(address).is_some_and(|slot| replace(slot, handler.ones));
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if !ours {
        pass_on(&handler.previous, signal, info, context);
    }
}

fn slot_of(address: usize) -> Option<&'static Slot> {
    WATCHED.iter().find(|slot| {
        let base = slot.base.load(Ordering::Acquire);
        base > CLAIMED && address >= base && address - base < slot.len.load(Ordering::Relaxed)
    })
}

/// Maps ones over the whole of it. Each mmap replaces pages atomically, so other threads see the old or
/// the new ones; two threads that fault at once do the same thing twice.
fn replace(slot: &Slot, ones: libc::c_int) -> bool {
    let (base, len) = (slot.base.load(Ordering::Relaxed), slot.len.load(Ordering::Relaxed));
    for at in (0..len).step_by(ONES) {
        let stretch = ONES.min(len - at);
        // SAFETY: the range lies in a mapping that `MappedRegisters` owns and whose thread is in the
        // middle of an access to it, so it cannot be unmapped meanwhile; nothing else is there.
        let mapped = unsafe {
            libc::mmap(
                (base + at) as *mut libc::c_void,
                stretch,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                ones,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
    }
    if !slot.lost.swap(true, Ordering::Relaxed) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
    true
}

/// What would have happened without this handler.
fn pass_on(
    previous: &libc::sigaction,
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    match previous.sa_sigaction {
        // SAFETY: the kernel passed a valid siginfo.
        libc::SIG_IGN if unsafe { (*info).si_code } <= 0 => {}
        // A fault cannot be ignored: the kernel kills for it, as by default.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: zeros are a valid sigaction, and mean the default. The signal is blocked while
            // this handler runs, so the raised one is delivered, and kills, on return.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
                libc::raise(signal);
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed with SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: it was installed without SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bar;

    /// A file that stands for a device, and its registers.
    fn device(len: usize) -> (File, Arc<MappedRegisters>, Bar) {
        let file = file_of_ones().unwrap();
        file.set_len(0).unwrap();
        file.set_len(len as u64).unwrap();
        let registers = MappedRegisters::map(&file, 0, len, Arc::new(())).unwrap();
        let bar = Bar::mapped(registers.clone());
        (file, registers, bar)
    }

    #[test]
    fn a_vanished_device_reads_all_ones_everywhere_and_is_counted_once() {
        let len = 2 * ONES + 4096;
        let (file, registers, bar) = device(len);
        let (_other_file, other, other_bar) = device(4096);
        bar.write32(8, 0x1234);
        assert_eq!((bar.read32(8), registers.is_lost()), (0x1234, false));
        let before = lost_mappings();
        file.set_len(0).unwrap();
        bar.write32(ONES, 7);
        for offset in [0, 8, ONES - 4, ONES + 4, 2 * ONES, len - 4] {
            assert_eq!(bar.read32(offset), u32::MAX, "offset {offset:#x}");
        }
        assert!(registers.is_lost() && !other.is_lost());
        assert_eq!(other_bar.read32(0), 0, "the neighbour is untouched");
        // Other tests of this process may lose mappings too.
        assert!(lost_mappings() > before);
    }

    #[test]
    fn threads_that_fault_at_once_all_read_ones() {
        let (file, registers, bar) = device(64 << 10);
        file.set_len(0).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let bar = bar.clone();
                scope.spawn(move || assert_eq!(bar.read32(thread * 4096), u32::MAX));
            }
        });
        assert!(registers.is_lost());
    }

    #[test]
    fn a_slot_is_used_again() {
        for _ in 0..2 * SLOTS {
            drop(device(4096));
        }
    }

    /// Runs `fault` in a child and gives the signal that killed it, or 0.
    fn signal_of_child(fault: impl FnOnce()) -> i32 {
        // SAFETY: the child only does what `fault` does and exits: no lock, no allocation.
        let child = unsafe { libc::fork() };
        if child == 0 {
            fault();
            // SAFETY: ends the child at once, running nothing of the parent's.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child; the status goes into `status`.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
    }

    #[test]
    fn a_foreign_bus_error_still_kills() {
        let (watched_file, _registers, bar) = device(4096);
        watched_file.set_len(0).unwrap();
        let file = file_of_ones().unwrap();
        let foreign = MmapOptions::new().len(4096).map_raw(&file).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(signal_of_child(|| assert_eq!(bar.read32(0), u32::MAX)), 0, "our own is survived");
        let read = || {
            // SAFETY: mapped, though nothing is behind it any more: the fault is what is wanted.
            unsafe { foreign.as_ptr().read_volatile() };
        };
        assert_eq!(signal_of_child(read), libc::SIGBUS);
    }

    #[test]
    fn a_bus_error_sent_by_somebody_still_kills() {
        let (_file, _registers, _bar) = device(4096);
        // Rust's own handler, the one before ours, answers the first by restoring the default action.
        let raise = || {
            // SAFETY: no memory argument.
            unsafe { (libc::raise(libc::SIGBUS), libc::raise(libc::SIGBUS)) };
        };
        assert_eq!(signal_of_child(raise), libc::SIGBUS);
    }
}
