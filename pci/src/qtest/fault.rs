//! [`Faulty`]: any function, broken in the ways hardware breaks.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bar::RegisterIo;
use crate::interrupt::fire;
use crate::{Bar, Bdf, Error, Function, Interrupt, IovaSpace, Notices, Result};

/// A register: BAR index, offset in it.
pub type Register = (u8, usize);

type ReadHook = Arc<dyn Fn(Register, u32) -> u32 + Send + Sync>;
type WriteHook = Arc<dyn Fn(Register, u32) -> Option<u32> + Send + Sync>;

/// A function that breaks on command. The driver under test gets it as `Arc<dyn Function>`; the test
/// keeps a clone to break it by.
///
/// Register accesses of all BARs pass through it and are counted. DMA does not: a removed device stops
/// answering, and what it had been told to do it still does.
///
/// ```no_run
/// use std::sync::Arc;
/// use pci::{Function, qtest::{Faulty, Machine}};
///
/// # fn main() -> pci::Result<()> {
/// let machine = Machine::builder().nic("igb").start()?;
/// let nic = Arc::new(Faulty::new(machine.function(0)));
/// nic.stick((0, 0), 1 << 26, 1 << 26);   // igb: CTRL.RST never clears
/// let driven: Arc<dyn Function> = nic.clone();
/// // ... start the driver on `driven`, and see that it gives up in time and says why ...
/// assert_eq!(nic.writes((0, 0x100)), 0); // the receiver was never enabled
/// # drop(driven);
/// # Ok(())
/// # }
/// ```
pub struct Faulty {
    inner: Arc<dyn Function>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Register accesses until the device is gone; never where there is none.
    left: Option<u64>,
    reads: BTreeMap<Register, u64>,
    writes: BTreeMap<Register, u64>,
    on_read: Vec<ReadHook>,
    on_write: Vec<WriteHook>,
    /// Eventfds of the vectors enabled.
    events: Vec<OwnedFd>,
    no_reset: bool,
}

impl Faulty {
    /// `inner`, with no fault yet.
    pub fn new(inner: Arc<dyn Function>) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// Surprise removal, now: registers and configuration space read all ones, writes are dropped.
    pub fn remove(&self) {
        self.remove_after(0);
    }

    /// Surprise removal after that many further register accesses: in the middle of whatever is done.
    pub fn remove_after(&self, accesses: u64) {
        self.lock().left = Some(accesses);
    }

    /// From now on, the bits of `mask` in that register read as in `value`.
    pub fn stick(&self, register: Register, mask: u32, value: u32) {
        self.on_read(move |at, read| if at == register { read & !mask | value & mask } else { read });
    }

    /// From now on, writes to that register do nothing. They are still counted.
    pub fn drop_writes(&self, register: Register) {
        self.on_write(move |at, value| (at != register).then_some(value));
    }

    /// From now on, what the device answers passes through `hook`: register, value. Hooks run in the
    /// order they were added, and may call this `Faulty`.
    pub fn on_read(&self, hook: impl Fn(Register, u32) -> u32 + Send + Sync + 'static) {
        self.lock().on_read.push(Arc::new(hook));
    }

    /// From now on, what the driver writes passes through `hook`; `None` drops it.
    pub fn on_write(&self, hook: impl Fn(Register, u32) -> Option<u32> + Send + Sync + 'static) {
        self.lock().on_write.push(Arc::new(hook));
    }

    /// From now on, function-level reset is refused, as by a function that has none.
    pub fn refuse_reset(&self) {
        self.lock().no_reset = true;
    }

    /// Ends every fault. Counts go on.
    pub fn heal(&self) {
        let mut state = self.lock();
        (state.left, state.no_reset) = (None, false);
        state.on_read.clear();
        state.on_write.clear();
    }

    /// Fires a vector that the device did not: a spurious interrupt. False where it is not enabled.
    pub fn spurious(&self, vector: u16) -> bool {
        let state = self.lock();
        let event = state.events.get(usize::from(vector));
        event.map(|event| fire(event.as_fd())).is_some()
    }

    /// How often the driver read that register.
    pub fn reads(&self, register: Register) -> u64 {
        self.lock().reads.get(&register).copied().unwrap_or(0)
    }

    /// How often the driver wrote that register, dropped or not.
    pub fn writes(&self, register: Register) -> u64 {
        self.lock().writes.get(&register).copied().unwrap_or(0)
    }

    /// Every register that the driver wrote.
    pub fn written(&self) -> Vec<Register> {
        self.lock().writes.keys().copied().collect()
    }

    fn gone(&self) -> bool {
        self.lock().left == Some(0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Counts an access down; false where the device is gone.
    fn answers(&mut self) -> bool {
        match &mut self.left {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

impl Function for Faulty {
    fn bdf(&self) -> Bdf {
        self.inner.bdf()
    }

    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn read_config(&self, offset: u16, buf: &mut [u8]) -> Result<()> {
        if self.gone() {
            buf.fill(0xff);
            return Ok(());
        }
        self.inner.read_config(offset, buf)
    }

    fn write_config(&self, offset: u16, buf: &[u8]) -> Result<()> {
        if self.gone() { Ok(()) } else { self.inner.write_config(offset, buf) }
    }

    fn bar(&self, index: u8) -> Result<Bar> {
        let inner = self.inner.bar(index)?;
        let len = inner.len();
        Ok(Bar::trapped(Arc::new(Registers { inner, index, state: self.state.clone() }), len))
    }

    fn iova_space(&self) -> &Arc<IovaSpace> {
        self.inner.iova_space()
    }

    fn enable_interrupts(&self, count: u16) -> Result<Vec<Interrupt>> {
        if self.gone() {
            return Err(Error::Removed { bdf: self.bdf() });
        }
        let interrupts = self.inner.enable_interrupts(count)?;
        let events: io::Result<_> = interrupts.iter().map(|i| i.as_fd().try_clone_to_owned()).collect();
        self.lock().events = events.map_err(|e| Error::io("duplicating a vector's eventfd", e))?;
        Ok(interrupts)
    }

    fn disable_interrupts(&self) -> Result<()> {
        self.lock().events.clear();
        self.inner.disable_interrupts()
    }

    fn notices(&self) -> Option<&Notices> {
        self.inner.notices()
    }

    fn reset(&self) -> Result<()> {
        if self.gone() {
            return Err(Error::Removed { bdf: self.bdf() });
        }
        if self.lock().no_reset {
            return Err(Error::NoReset { bdf: self.bdf() });
        }
        self.inner.reset()
    }
}

/// A BAR's registers on their way through the faults.
struct Registers {
    inner: Bar,
    index: u8,
    state: Arc<Mutex<State>>,
}

impl RegisterIo for Registers {
    fn read32(&self, offset: usize) -> u32 {
        let at = (self.index, offset);
        let hooks = {
            let mut state = lock(&self.state);
            *state.reads.entry(at).or_default() += 1;
            if !state.answers() {
                return u32::MAX;
            }
            state.on_read.clone()
        };
        // Outside the lock: a hook may call the `Faulty` it hangs on.
        hooks.iter().fold(self.inner.read32(offset), |value, hook| hook(at, value))
    }

    fn write32(&self, offset: usize, value: u32) {
        let at = (self.index, offset);
        let hooks = {
            let mut state = lock(&self.state);
            *state.writes.entry(at).or_default() += 1;
            if !state.answers() {
                return;
            }
            state.on_write.clone()
        };
        if let Some(value) = hooks.iter().try_fold(value, |value, hook| hook(at, value)) {
            self.inner.write32(offset, value);
        }
    }
}
