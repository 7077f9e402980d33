//! [`Clock`]: the time in ticks, cheaply.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A monotonic clock whose ticks cost a few nanoseconds to read, the same on every core.
///
/// On x86 with an invariant time stamp counter (Intel SDM volume 3, 19.17.1: CPUID 8000_0007h, EDX bit 8)
/// it is that counter, its rate measured against the kernel's monotonic clock; anywhere else it is that
/// clock itself, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Nothing: the time stamp counter.
    since: Option<Instant>,
    hz: u64,
}

/// How long each of the two measurements of the rate takes.
const MEASURE: Duration = Duration::from_millis(20);
/// Parts in a million by which the two may differ. More, and the counter is no clock.
const TOLERANCE_PPM: u64 = 300;
/// Pairs of measurements before giving up: one may be torn by the scheduler, not all.
const TRIES: usize = 4;
const NANOS: u64 = 1_000_000_000;

impl Clock {
    /// The process's clock. The first call measures its rate, for some 40 ms.
    pub fn get() -> Self {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(|| Self::tsc().unwrap_or_else(Self::monotonic))
    }

    /// The kernel's monotonic clock: ticks are nanoseconds since this call.
    pub fn monotonic() -> Self {
        Self { since: Some(Instant::now()), hz: NANOS }
    }

    /// The time stamp counter, where it is a clock.
    pub fn tsc() -> Option<Self> {
        if !has_invariant_tsc() {
            return None;
        }
        (0..TRIES).find_map(|_| {
            let (a, b) = (measure()?, measure()?);
            let close = a.abs_diff(b) <= a / 1_000_000 * TOLERANCE_PPM;
            close.then_some(Self { since: None, hz: a.midpoint(b) })
        })
    }

    /// Now, in ticks.
    #[inline]
    pub fn now(&self) -> u64 {
        match self.since {
            None => tsc(),
            Some(since) => since.elapsed().as_nanos() as u64,
        }
    }

    /// Ticks a second.
    pub fn hz(&self) -> u64 {
        self.hz
    }

    /// True where it reads the time stamp counter.
    pub fn is_tsc(&self) -> bool {
        self.since.is_none()
    }

    /// Ticks in nanoseconds.
    pub fn nanos(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * u128::from(NANOS) / u128::from(self.hz)) as u64
    }

    /// A duration in ticks.
    pub fn ticks(&self, duration: Duration) -> u64 {
        (duration.as_nanos() * u128::from(self.hz) / u128::from(NANOS)) as u64
    }
}

/// Ticks a second, from one measurement.
fn measure() -> Option<u64> {
    let (from, start) = paired();
    std::thread::sleep(MEASURE);
    let (to, end) = paired();
    let nanos = end.duration_since(start).as_nanos();
    let hz = u128::from(to.checked_sub(from)?) * u128::from(NANOS) / nanos.max(1);
    u64::try_from(hz).ok().filter(|hz| *hz > 1_000_000)
}

/// The counter and the kernel's clock at the same moment: the closest of some pairs.
fn paired() -> (u64, Instant) {
    let read = || {
        let before = tsc();
        let at = Instant::now();
        let after = tsc();
        (after.wrapping_sub(before), before.midpoint(after), at)
    };
    let best = (1..16).fold(read(), |best, _| {
        let next = read();
        if next.0 < best.0 { next } else { best }
    });
    (best.1, best.2)
}

#[cfg(target_arch = "x86_64")]
fn has_invariant_tsc() -> bool {
    use std::arch::x86_64::__cpuid;
    !cfg!(miri) && __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn has_invariant_tsc() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it only reads a counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn tsc() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps_time(clock: Clock) {
        let (ticks, start) = (clock.now(), Instant::now());
        std::thread::sleep(Duration::from_millis(50));
        let ticks = clock.now() - ticks;
        let real = start.elapsed().as_nanos() as u64;
        let off = clock.nanos(ticks).abs_diff(real);
        assert!(off < real / 100, "{off} ns off in {real} ns at {} Hz", clock.hz());
        let second = clock.ticks(Duration::from_secs(1));
        assert_eq!((second, clock.nanos(second)), (clock.hz(), NANOS));
    }

    #[test]
    fn both_sources_keep_time() {
        keeps_time(Clock::monotonic());
        keeps_time(Clock::get());
        assert_eq!(Clock::get().hz(), Clock::get().hz());
    }

    #[test]
    fn it_never_goes_back() {
        let clock = Clock::get();
        let mut last = clock.now();
        for _ in 0..100_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
