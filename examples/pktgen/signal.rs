//! Ctrl-C: a flag that a signal sets.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
    // A second one ends the program at once, for the day that a device does not answer.
    // SAFETY: `signal` is async-signal-safe, and SIG_DFL needs no handler to live.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// From now on SIGINT and SIGTERM set the flag.
pub fn watch() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores an atomic and calls `signal`, both async-signal-safe.
        unsafe { libc::signal(signal, stop as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// True once one came.
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}
