//! [`Worker`]: a thread pinned to one core that runs a [`Task`] to completion, turn by turn.
//!
//! A worker polls without rest, or, with [`Idle::Sleep`], sleeps on its queues' interrupts once nothing
//! has come for a while, so that an idle application burns no core.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use pci::interrupt::wait_any;

use crate::queue::RxInterrupt;

/// What a worker does.
pub trait Task: Send + 'static {
    /// One turn over all queues. Returns how many frames moved; 0 is an idle turn.
    fn turn(&mut self) -> usize;

    /// What can wake the worker from sleep. None: it naps instead.
    fn wakeups(&self) -> Vec<&RxInterrupt> {
        Vec::new()
    }
}

/// What to do when nothing comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Poll on: lowest latency, a whole core.
    Poll,
    /// After so many idle turns in a row, sleep until a queue's interrupt.
    Sleep {
        /// Idle turns first.
        after: u32,
    },
}

/// How long a sleeping worker may overlook a stop, or work that came with no interrupt.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// The nap of a worker that nothing can wake.
const NAP: Duration = Duration::from_micros(100);

/// What can go wrong with a worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The core is not there, or not allowed to this process.
    #[error(
        "worker '{name}': core {core} cannot be used ({source}): `nproc` and `taskset -p $$` show which can"
    )]
    Core {
        /// The worker.
        name: String,
        /// The core asked for.
        core: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The thread could not be started.
    #[error("worker '{name}': no thread: {source}")]
    Thread {
        /// The worker.
        name: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The task panicked. Its queues and buffers went home as they were dropped.
    #[error("worker '{name}' panicked: {message}")]
    Panicked {
        /// The worker.
        name: String,
        /// What the panic said.
        message: String,
    },
}

/// A running worker. Dropping it stops it and drops its task.
pub struct Worker<T> {
    name: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<T, String>>>,
}

impl<T: Task> Worker<T> {
    /// Starts `task` on `core` (any core where none is named).
    ///
    /// # Errors
    /// [`WorkerError::Core`] and [`WorkerError::Thread`]; the task is dropped.
    pub fn spawn(name: &str, core: Option<usize>, idle: Idle, task: T) -> Result<Self, WorkerError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (pinned, outcome) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            let result = core.map_or(Ok(()), pin);
            let go = result.is_ok();
            let _ = pinned.send(result);
            if go { run(task, idle, &stopped) } else { Err("not pinned".to_owned()) }
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|source| WorkerError::Thread { name: name.to_owned(), source })?;
        match (outcome.recv(), core) {
            (Ok(Err(source)), Some(core)) => Err(WorkerError::Core { name: name.to_owned(), core, source }),
            _ => Ok(Self { name: name.to_owned(), stop, thread: Some(thread) }),
        }
    }

    /// True once the task has ended by itself: it panicked.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops after the current turn and gives the task back.
    ///
    /// # Errors
    /// [`WorkerError::Panicked`] where it panicked meanwhile.
    pub fn stop(mut self) -> Result<T, WorkerError> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(JoinHandle::join);
        let panicked = |message| WorkerError::Panicked { name: self.name.clone(), message };
        match joined {
            Some(Ok(result)) => result.map_err(panicked),
            Some(Err(_)) | None => Err(panicked("outside its task".to_owned())),
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs turns until told to stop. A panic drops the task here, so that its buffers go home.
fn run<T: Task>(mut task: T, idle: Idle, stop: &AtomicBool) -> Result<T, String> {
    let turns = catch_unwind(AssertUnwindSafe(|| {
        let mut empty = 0u32;
        while !stop.load(Ordering::Relaxed) {
            if task.turn() > 0 {
                empty = 0;
                continue;
            }
            empty = empty.saturating_add(1);
            match idle {
                Idle::Sleep { after } if empty >= after => sleep(&mut task),
                _ => std::hint::spin_loop(),
            }
        }
    }));
    match turns {
        Ok(()) => Ok(task),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            Err(text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default())
        }
    }
}

#[cold]
fn sleep<T: Task>(task: &mut T) {
    for wakeup in task.wakeups() {
        // A count left from before would end the sleep at once.
        wakeup.vector.take();
        (wakeup.arm)();
    }
    // What came in before the interrupt was armed fires none: look once more.
    if task.turn() > 0 {
        return;
    }
    let vectors: Vec<_> = task.wakeups().into_iter().map(|wakeup| &wakeup.vector).collect();
    if vectors.is_empty() || wait_any(&vectors, LONGEST_SLEEP).is_err() {
        std::thread::sleep(NAP);
    }
}

/// Pins the calling thread to `core`.
///
/// # Errors
/// Where the core does not exist or the process may not use it.
pub fn pin(core: usize) -> std::io::Result<()> {
    let bits = usize::BITS as usize;
    let mut set = [0usize; 1024 / usize::BITS as usize];
    let Some(word) = set.get_mut(core / bits) else {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    };
    *word |= 1 << (core % bits);
    // SAFETY: the mask is valid for `size_of_val` bytes; 0 names the calling thread.
    let failed = unsafe { libc::sched_setaffinity(0, size_of_val(&set), set.as_ptr().cast()) } != 0;
    if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    struct Count(u64);

    impl Task for Count {
        fn turn(&mut self) -> usize {
            self.0 += 1;
            assert!(self.0 < 1 << 40, "too many turns");
            1
        }
    }

    #[test]
    fn a_stopped_worker_gives_its_task_back() {
        let worker = Worker::spawn("count", Some(0), Idle::Poll, Count(0)).unwrap();
        std::thread::sleep(Duration::from_millis(10));
        assert!(!worker.is_finished());
        assert!(worker.stop().unwrap().0 > 0);
    }

    #[test]
    fn a_panic_is_told_and_stays_in_its_worker() {
        let worker = Worker::spawn("bad", None, Idle::Poll, Count(1 << 40)).unwrap();
        // Its first turn panics; a stop before that turn would find nothing wrong.
        for _ in 0..1000 {
            if worker.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let error = worker.stop().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("'bad' panicked: too many turns"), "{error}");
    }

    #[test]
    fn a_core_that_is_not_there_is_named() {
        for core in [1023, 1 << 20] {
            let error = Worker::spawn("far", Some(core), Idle::Poll, Count(0)).map(|_| ()).unwrap_err();
            assert!(matches!(error, WorkerError::Core { core: c, .. } if c == core), "{error}");
        }
    }

    struct Sleeper {
        wakeup: RxInterrupt,
        turns: Arc<std::sync::atomic::AtomicU64>,
    }

    impl Task for Sleeper {
        fn turn(&mut self) -> usize {
            self.turns.fetch_add(1, Ordering::Relaxed);
            0
        }
        fn wakeups(&self) -> Vec<&RxInterrupt> {
            vec![&self.wakeup]
        }
    }

    #[test]
    fn an_idle_worker_sleeps_and_an_interrupt_wakes_it() {
        let vector = pci::Interrupt::new(0, None).unwrap();
        let event = vector.as_fd_raw();
        let turns = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let armed = Arc::new(AtomicBool::new(false));
        let told = armed.clone();
        let arm = Box::new(move || told.store(true, Ordering::Relaxed));
        let task = Sleeper { wakeup: RxInterrupt { vector, arm }, turns: turns.clone() };
        let worker = Worker::spawn("idle", None, Idle::Sleep { after: 10 }, task).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let asleep = turns.load(Ordering::Relaxed);
        assert!(asleep < 200 && armed.load(Ordering::Relaxed), "{asleep} turns in 200 ms is no sleep");
        for _ in 0..100 {
            let one = 1u64;
            // SAFETY: writes the eight bytes of `one` to an eventfd that the worker keeps open.
            unsafe { libc::write(event, (&raw const one).cast(), 8) };
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(turns.load(Ordering::Relaxed) > asleep + 50, "interrupts did not wake it");
        drop(worker);
    }

    trait RawEvent {
        fn as_fd_raw(&self) -> i32;
    }
    impl RawEvent for pci::Interrupt {
        fn as_fd_raw(&self) -> i32 {
            std::os::fd::AsFd::as_fd(self).as_raw_fd()
        }
    }
}
