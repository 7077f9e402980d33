//! [`Rate`]: how fast, in the units people say it in.

use std::fmt;
use std::str::FromStr;

/// What a frame takes on the wire beside its bytes: preamble and start delimiter 8, FCS 4, gap 12
/// (IEEE 802.3, 3.1.1 and 4.4.2).
pub const FRAME_OVERHEAD: u32 = 24;

/// A rate. Bits are counted as the wire does: [`FRAME_OVERHEAD`] bytes are added to every frame, so that
/// 10 Gbit/s of 60-byte frames (64 with FCS) are the 14.88 million a second that fill a 10G link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rate {
    /// Frames a second.
    Frames(u64),
    /// Bits a second on the wire.
    Bits(u64),
    /// Thousandths of a percent of the link's speed.
    Link(u64),
}

const UNITS: [(&str, u64, bool); 8] = [
    ("gpps", 1_000_000_000, false),
    ("mpps", 1_000_000, false),
    ("kpps", 1_000, false),
    ("pps", 1, false),
    ("gbps", 1_000_000_000, true),
    ("mbps", 1_000_000, true),
    ("kbps", 1_000, true),
    ("bps", 1, true),
];

/// Above the fastest link there is, and far below where sums could overflow: 10 Tbit/s.
const MOST: u64 = 10_000_000_000_000;

impl Rate {
    /// The rate in frames or bits, for a link of `mbps` megabits a second.
    ///
    /// # Errors
    /// A sentence, where a percentage is asked of a link whose speed is not known.
    pub fn on_link(self, mbps: u32) -> Result<Self, String> {
        match self {
            Self::Link(_) if mbps == 0 => {
                Err("a rate in percent needs a link that is up: give it in mpps or gbps".to_owned())
            }
            Self::Link(part) => {
                let bits = u128::from(mbps) * 1_000_000 * u128::from(part) / 100_000;
                Ok(Self::Bits(bits as u64))
            }
            rate => Ok(rate),
        }
    }

    /// The share of one of `n` senders, number `i`; all shares together are exactly the whole.
    #[must_use]
    pub fn share(self, i: u64, n: u64) -> Self {
        let n = u128::from(n.max(1));
        let cut = |whole: u64| {
            let upto = |i: u64| (u128::from(whole) * u128::from(i) / n) as u64;
            upto(i + 1) - upto(i)
        };
        match self {
            Self::Frames(whole) => Self::Frames(cut(whole)),
            Self::Bits(whole) => Self::Bits(cut(whole)),
            Self::Link(whole) => Self::Link(cut(whole)),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames(n) => write!(f, "{n}pps"),
            Self::Bits(n) => write!(f, "{n}bps"),
            Self::Link(n) => write!(f, "{}.{:03}%", n / 1000, n % 1000),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    /// `10mpps`, `1.5gbps`, `40%`; small or capital letters.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no rate: write 10mpps, 500kpps, 2.5gbps or 40%");
        let lower = text.to_ascii_lowercase();
        if let Some(number) = lower.strip_suffix('%') {
            let part = scaled(number, 1000).filter(|part| (1..=100_000).contains(part));
            return part.map(Self::Link).ok_or_else(|| format!("'{text}': a link takes 0.001% to 100%"));
        }
        let (number, scale, bits) = UNITS
            .iter()
            .find_map(|&(unit, scale, bits)| lower.strip_suffix(unit).map(|number| (number, scale, bits)))
            .ok_or_else(wrong)?;
        let value = scaled(number.trim_end(), scale).ok_or_else(wrong)?;
        if !(1..=MOST).contains(&value) {
            return Err(format!("'{text}': a rate is at least 1 and at most {MOST} frames or bits a second"));
        }
        Ok(if bits { Self::Bits(value) } else { Self::Frames(value) })
    }
}

/// A decimal number times `scale` (a power of ten), cut to a whole number; exact.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 15 || part.len() > 12 || !digits(whole) || !digits(part) {
        return None;
    }
    let fraction = part.bytes().fold((0u128, u128::from(scale)), |(sum, unit), digit| {
        (sum + u128::from(digit - b'0') * unit / 10, unit / 10)
    });
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    whole.checked_add(u64::try_from(fraction.0).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write() {
        let table = [
            ("10mpps", Rate::Frames(10_000_000)),
            ("14.88Mpps", Rate::Frames(14_880_000)),
            ("1pps", Rate::Frames(1)),
            ("1.5gbps", Rate::Bits(1_500_000_000)),
            ("2 kbps", Rate::Bits(2000)),
            ("40%", Rate::Link(40_000)),
            ("0.05%", Rate::Link(50)),
        ];
        for (text, rate) in table {
            assert_eq!(text.parse(), Ok(rate), "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_told() {
        for text in
            ["", "10", "mpps", "-1pps", "1e3pps", "0pps", "101%", "0%", "1..2gbps", "99999999999gbps", "+1%"]
        {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn percent_of_a_link() {
        assert_eq!(Rate::Link(40_000).on_link(10_000), Ok(Rate::Bits(4_000_000_000)));
        assert!(Rate::Link(40_000).on_link(0).is_err());
        assert_eq!(Rate::Frames(7).on_link(0), Ok(Rate::Frames(7)));
    }

    proptest! {
        #[test]
        fn shares_add_up(whole in 0u64..=MOST, n in 1u64..100) {
            let sum: u64 = (0..n).map(|i| match Rate::Bits(whole).share(i, n) {
                Rate::Bits(part) => part,
                _ => unreachable!(),
            }).sum();
            prop_assert_eq!(sum, whole);
        }

        #[test]
        fn display_parses_back(n in 1..=MOST, part in 1u64..=100_000) {
            for rate in [Rate::Frames(n), Rate::Bits(n), Rate::Link(part)] {
                prop_assert_eq!(rate.to_string().parse(), Ok(rate));
            }
        }
    }
}
