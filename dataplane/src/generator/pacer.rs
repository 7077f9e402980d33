//! [`Pacer`]: how many frames are due.

use std::time::Duration;

use super::{FRAME_OVERHEAD, Rate};

/// A token bucket in whole numbers: a unit (a frame, or a bit on the wire) is `hz` tokens, and every tick
/// of the clock brings as many tokens as the rate has units a second. Nothing is ever rounded, so what
/// was sent after any time is the rate times that time, to within a burst.
///
/// A sender that falls behind (a full ring, a core taken away) catches up, up to [`Pacer::CATCH_UP`];
/// what is older is given up and counted by [`Pacer::forgiven`].
pub struct Pacer {
    per_second: u64,
    hz: u64,
    bits: bool,
    last: u64,
    /// Tokens; below zero where the last burst cost more than there was.
    credit: i128,
    most: i128,
    forgiven: u128,
}

impl Pacer {
    /// How far a sender may fall behind and still catch up.
    pub const CATCH_UP: Duration = Duration::from_millis(100);

    /// Sends at `rate` from `now` on, by a clock of `hz` ticks a second.
    ///
    /// # Errors
    /// A sentence: the rate is a percentage (see [`Rate::on_link`]), or the clock has no rate.
    pub fn new(rate: Rate, hz: u64, now: u64) -> Result<Self, String> {
        let (per_second, bits) = match rate {
            Rate::Frames(n) => (n, false),
            Rate::Bits(n) => (n, true),
            Rate::Link(_) => return Err(format!("{rate}: say of which link")),
        };
        if hz == 0 {
            return Err("a clock of 0 ticks a second paces nothing".to_owned());
        }
        let ticks = u128::from(hz) * Self::CATCH_UP.as_millis() / 1000;
        let most = i128::try_from(ticks * u128::from(per_second)).unwrap_or(i128::MAX);
        // A slow sender must still be able to save up for its longest frame.
        let frame = i128::from(hz) * if bits { i128::from(u16::MAX) * 8 } else { 1 };
        Ok(Self { per_second, hz, bits, last: now, credit: 0, most: most.max(frame), forgiven: 0 })
    }

    /// How many frames of `len` bytes (without FCS) may be sent now, `max` at the most. Tell what was
    /// sent with [`Pacer::sent`].
    #[inline]
    pub fn due(&mut self, now: u64, len: u32, max: usize) -> usize {
        let ticks = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        self.credit += (u128::from(ticks) * u128::from(self.per_second)) as i128;
        if self.credit > self.most {
            self.forgive();
        }
        let cost = self.cost(1, len.into());
        if self.credit < cost {
            0
        } else if self.credit >= cost * max as i128 {
            max
        } else {
            // Below `cost * max`, which is far below 2^64: 64 frames of 65,559 bytes at 10 GHz.
            (self.credit as u64 / cost.max(1) as u64) as usize
        }
    }

    /// `frames` with `bytes` in all, without FCS, were sent.
    #[inline]
    pub fn sent(&mut self, frames: usize, bytes: u64) {
        self.credit -= self.cost(frames as u64, bytes);
    }

    /// Frames or bits given up because the sender fell too far behind.
    pub fn forgiven(&self) -> u64 {
        (self.forgiven / u128::from(self.hz)) as u64
    }

    #[inline]
    fn cost(&self, frames: u64, bytes: u64) -> i128 {
        let units = if self.bits { (bytes + frames * u64::from(FRAME_OVERHEAD)) * 8 } else { frames };
        i128::from(units) * i128::from(self.hz)
    }

    #[cold]
    fn forgive(&mut self) {
        self.forgiven += (self.credit - self.most) as u128;
        self.credit = self.most;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sends whatever is due, at the given steps of the clock; returns frames and bytes.
    fn run(pacer: &mut Pacer, steps: impl Iterator<Item = u64>, lens: &[u32], max: usize) -> (u64, u64) {
        let (mut now, mut frames, mut bytes) = (1_000, 0u64, 0u64);
        for step in steps {
            now += step;
            let n = pacer.due(now, lens[frames as usize % lens.len()], max);
            assert!(n <= max);
            let sum: u64 = (0..n).map(|i| u64::from(lens[(frames as usize + i) % lens.len()])).sum();
            pacer.sent(n, sum);
            (frames, bytes) = (frames + n as u64, bytes + sum);
        }
        (frames, bytes)
    }

    #[test]
    fn frames_are_exact_over_virtual_minutes() {
        // Prime rates, so that nothing divides; two polls for every frame.
        let (hz, rate) = (2_599_999_993, 9_973);
        let mut pacer = Pacer::new(Rate::Frames(rate), hz, 1_000).unwrap();
        let step = hz / (2 * rate);
        let polls = 200 * hz / step;
        let (frames, _) = run(&mut pacer, (0..polls).map(|_| step), &[60], 32);
        let due = u128::from(polls * step) * u128::from(rate) / u128::from(hz);
        assert_eq!(u128::from(frames), due);
        assert_eq!(pacer.forgiven(), 0);
    }

    #[test]
    fn line_rate_of_small_frames_is_what_the_standard_says() {
        let mut pacer = Pacer::new(Rate::Bits(10_000_000_000), 1_000_000_000, 1_000).unwrap();
        let (frames, _) = run(&mut pacer, (0..1_000_000).map(|_| 1000), &[60], 64);
        assert!((14_880_951..=14_880_953).contains(&frames), "{frames}");
    }

    #[test]
    fn what_is_too_old_is_forgiven_and_counted() {
        let mut pacer = Pacer::new(Rate::Frames(1000), 1_000_000, 0).unwrap();
        assert_eq!(pacer.due(10_000_000, 60, 64), 64);
        assert_eq!(pacer.forgiven(), 10_000 - 100);
        pacer.sent(64, 64 * 60);
        assert_eq!(pacer.due(10_000_000, 60, 64), 36);
    }

    #[test]
    fn a_slow_sender_of_long_frames_does_send() {
        let mut pacer = Pacer::new(Rate::Bits(1000), 1_000_000_000, 1_000).unwrap();
        let (frames, _) = run(&mut pacer, (0..1000).map(|_| 1_000_000_000), &[9000], 8);
        assert_eq!(frames, 1_000_000 / ((9000 + 24) * 8));
    }

    #[test]
    fn a_clock_that_steps_back_brings_nothing() {
        let mut pacer = Pacer::new(Rate::Frames(1_000_000), 1_000_000, 500).unwrap();
        assert_eq!(pacer.due(400, 60, 8), 0);
        assert_eq!(pacer.due(501, 60, 8), 1);
    }

    proptest! {
        /// However unevenly it is polled: never ahead of the rate by more than a burst, and never behind
        /// it by more than a burst once polled often enough.
        #[test]
        fn any_polling_keeps_the_rate(
            rate in 1_000u64..200_000_000_000,
            hz in 1_000_000u64..5_000_000_000,
            jitter in prop::collection::vec(1u64..400, 50),
            lens in prop::collection::vec(60u32..9000, 1..5),
        ) {
            let mut pacer = Pacer::new(Rate::Bits(rate), hz, 1_000).unwrap();
            let longest = u64::from(*lens.iter().max().unwrap());
            // Polls about ten times for each of the longest frames, so that the sender keeps up.
            let unit = ((longest + 24) * 8 * hz / rate / 2000).max(1);
            let steps: Vec<u64> = jitter.iter().cycle().take(5000).map(|j| j * unit).collect();
            let elapsed: u64 = steps.iter().sum();
            let (frames, bytes) = run(&mut pacer, steps.into_iter(), &lens, 64);
            let sent = u128::from(bytes + frames * 24) * 8;
            let due = u128::from(elapsed) * u128::from(rate) / u128::from(hz);
            let burst = u128::from((longest + 24) * 8 * 64);
            prop_assert!(sent <= due + burst, "{sent} of {due}");
            if pacer.forgiven() == 0 && unit > 1 {
                prop_assert!(sent + burst >= due, "{sent} of {due}");
            }
        }
    }
}
