//! [`Latency`]: a histogram of fixed size.

/// Bits of a value that its bucket keeps below the first: a bucket is at most 1/64 of its values wide.
const PRECISION: u32 = 6;
const PER_OCTAVE: usize = 1 << PRECISION;
/// Values from 2^40 ticks on (minutes) share the last bucket.
const OCTAVES: usize = 41 - PRECISION as usize;
const BUCKETS: usize = OCTAVES * PER_OCTAVE + 1;

/// A histogram of ticks: linear below 128, then 64 buckets for every power of two, so that a quantile is
/// right to 1.6 percent. Its size is fixed: recording is an addition.
#[derive(Clone)]
pub struct Latency {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

fn bucket(ticks: u64) -> usize {
    let shift = ticks.checked_ilog2().unwrap_or_default().saturating_sub(PRECISION);
    // Every power of two above the first fills the upper half of its predecessor's range of 128.
    (shift as usize * PER_OCTAVE + (ticks >> shift) as usize).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn highest(bucket: usize) -> u64 {
    let shift = (bucket / PER_OCTAVE).saturating_sub(1);
    let top = (bucket - shift * PER_OCTAVE) as u64;
    ((top + 1) << shift) - 1
}

impl Latency {
    /// One value.
    #[inline]
    pub fn record(&mut self, ticks: u64) {
        if let Some(count) = self.buckets.get_mut(bucket(ticks)) {
            *count += 1;
        }
        self.count += 1;
        self.sum += u128::from(ticks);
        self.min = self.min.min(ticks);
        self.max = self.max.max(ticks);
    }

    /// Values recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest; 0 where there is none.
    pub fn min(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    /// The largest, exact.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, exact to a tick; 0 where there is none.
    pub fn mean(&self) -> u64 {
        (self.sum / u128::from(self.count.max(1))) as u64
    }

    /// The value that `per_million` of a million values do not exceed: 500,000 is the median, 999,000
    /// p99.9. At most 1.6 percent above the exact one.
    pub fn quantile(&self, per_million: u32) -> u64 {
        let rank = (u128::from(self.count) * u128::from(per_million)).div_ceil(1_000_000).max(1);
        let mut below = 0u128;
        for (at, &count) in self.buckets.iter().enumerate() {
            below += u128::from(count);
            if below >= rank {
                let last = at == BUCKETS - 1;
                return if last { self.max } else { highest(at).clamp(self.min(), self.max) };
            }
        }
        0
    }

    /// Adds another's values.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_join_without_gap_or_overlap() {
        let mut next = 0;
        for at in 0..BUCKETS - 1 {
            assert_eq!(bucket(next), at, "{next}");
            assert_eq!(bucket(highest(at)), at);
            next = highest(at) + 1;
        }
        assert_eq!(next, 1 << 40);
        assert_eq!((bucket(next), bucket(u64::MAX)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[test]
    fn nothing_recorded_is_zero() {
        let empty = Latency::default();
        assert_eq!((empty.min(), empty.max(), empty.mean(), empty.quantile(999_000)), (0, 0, 0, 0));
    }

    proptest! {
        #[test]
        fn quantiles_are_close_to_the_exact(values in prop::collection::vec(0u64..1 << 41, 1..400), cut in 0usize..400) {
            let (mut one, mut two) = (Latency::default(), Latency::default());
            for (at, &value) in values.iter().enumerate() {
                if at < cut { one.record(value) } else { two.record(value) }
            }
            one.merge(&two);
            let mut sorted = values.clone();
            sorted.sort_unstable();
            prop_assert_eq!((one.min(), one.max()), (sorted[0], sorted[sorted.len() - 1]));
            prop_assert_eq!(one.mean(), values.iter().sum::<u64>() / values.len() as u64);
            for per_million in [1u32, 100_000, 500_000, 990_000, 999_000, 1_000_000] {
                let rank = (sorted.len() as u64 * u64::from(per_million)).div_ceil(1_000_000).max(1);
                let exact = sorted[rank as usize - 1];
                let told = one.quantile(per_million);
                if exact < 1 << 40 {
                    prop_assert!(told >= exact && told <= exact + exact / 64, "{told} for {exact}");
                } else {
                    prop_assert!(told >= 1 << 40);
                }
            }
        }
    }
}
