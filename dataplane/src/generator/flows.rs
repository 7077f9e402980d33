//! [`Flows`]: how many, and what tells one from the next.

use std::fmt;
use std::str::FromStr;

/// Fields that differ from flow to flow.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Vary(u8);

impl Vary {
    /// Source address: the base plus the flow's number, in its low 32 bits.
    pub const SRC_IP: Self = Self(1);
    /// Destination address, likewise.
    pub const DST_IP: Self = Self(1 << 1);
    /// Source port: 1,024 plus the flow's number.
    pub const SRC_PORT: Self = Self(1 << 2);
    /// Destination port, likewise.
    pub const DST_PORT: Self = Self(1 << 3);
    /// Source MAC: the flow's number added to its low 32 bits.
    pub const SRC_MAC: Self = Self(1 << 4);
    /// Destination MAC, likewise.
    pub const DST_MAC: Self = Self(1 << 5);
    /// VLAN: 1 plus the flow's number; the frame must have a tag.
    pub const VLAN: Self = Self(1 << 6);

    /// Every field: its name, and how many values it takes.
    const FIELDS: [(&'static str, Self, u32); 7] = [
        ("src-ip", Self::SRC_IP, MAX_FLOWS),
        ("dst-ip", Self::DST_IP, MAX_FLOWS),
        ("src-port", Self::SRC_PORT, PORTS),
        ("dst-port", Self::DST_PORT, PORTS),
        ("src-mac", Self::SRC_MAC, MAX_FLOWS),
        ("dst-mac", Self::DST_MAC, MAX_FLOWS),
        ("vlan", Self::VLAN, VLANS),
    ];

    /// None.
    pub const fn none() -> Self {
        Self(0)
    }

    /// True where one of `fields` varies.
    #[inline]
    pub const fn any(self, fields: Self) -> bool {
        self.0 & fields.0 != 0
    }

    /// Both sets.
    #[must_use]
    pub const fn with(self, fields: Self) -> Self {
        Self(self.0 | fields.0)
    }

    /// Flows that can be told apart by these fields.
    pub fn distinct(self) -> u32 {
        let of = |&(_, field, values): &(&str, Self, u32)| if self.any(field) { values } else { 1 };
        Self::FIELDS.iter().map(of).max().unwrap_or(1)
    }
}

impl fmt::Display for Vary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Self::FIELDS.iter().filter(|(_, field, _)| self.any(*field)).map(|f| f.0).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for Vary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vary({self})")
    }
}

impl FromStr for Vary {
    type Err = String;

    /// Names with commas between: `src-ip,dst-port`.
    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').try_fold(Self(0), |all, name| {
            let field = Self::FIELDS.iter().find(|field| field.0 == name);
            let names = || Self::FIELDS.map(|field| field.0).join(", ");
            field.map(|field| all.with(field.1)).ok_or_else(|| format!("'{name}' is none of {}", names()))
        })
    }
}

/// Flows at the most: 2^24.
pub(super) const MAX_FLOWS: u32 = 1 << 24;
const PORTS: u32 = 65_536 - FIRST_PORT as u32;
const FIRST_PORT: u16 = 1024;
const VLANS: u32 = 4094;

/// `count` flows, taken in turn. Every varying field of flow `n` is its base plus `n`, starting over
/// where the field runs out of values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flows {
    pub(super) count: u32,
    pub(super) vary: Vary,
}

impl Flows {
    /// One flow: nothing varies.
    pub const ONE: Self = Self { count: 1, vary: Vary::none() };

    /// `count` flows told apart by `vary`.
    ///
    /// # Errors
    /// A sentence: no flow, or more than these fields can tell apart.
    pub fn new(count: u32, vary: Vary) -> Result<Self, String> {
        let most = vary.distinct();
        if (1..=most).contains(&count) {
            return Ok(Self { count, vary });
        }
        Err(match most {
            1 => format!(
                "{count} flows, but no field varies: name some (src-ip, src-port, ...), or take 1 flow"
            ),
            _ => format!(
                "{count} flows: {vary} tell 1 to {most} apart; let src-ip vary too for up to {MAX_FLOWS}"
            ),
        })
    }

    /// The flow after flow `n`.
    #[inline]
    pub(super) fn after(self, n: u32) -> u32 {
        if n + 1 >= self.count { 0 } else { n + 1 }
    }

    /// How many.
    pub fn count(&self) -> u32 {
        self.count
    }
}

/// A port of flow `n`.
#[inline]
pub(super) fn port(n: u32) -> u16 {
    FIRST_PORT + (n % PORTS) as u16
}

/// A VLAN of flow `n`.
#[inline]
pub(super) fn vlan(n: u32) -> u16 {
    1 + (n % VLANS) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_parse_and_print() {
        let vary: Vary = "dst-port,src-ip".parse().unwrap();
        assert_eq!(vary.to_string(), "src-ip,dst-port");
        for (name, field, _) in Vary::FIELDS {
            assert_eq!(name.parse::<Vary>(), Ok(field));
        }
        let error = "src-ip,ttl".parse::<Vary>().unwrap_err();
        assert!(error.contains("'ttl'") && error.contains("src-port"), "{error}");
    }

    #[test]
    fn as_many_flows_as_the_fields_tell_apart() {
        assert!(Flows::new(PORTS, Vary::SRC_PORT).is_ok() && Flows::new(1, Vary::none()).is_ok());
        assert!(Flows::new(MAX_FLOWS, Vary::SRC_IP.with(Vary::VLAN)).is_ok());
        for (count, vary) in
            [(0, Vary::SRC_IP), (2, Vary::none()), (PORTS + 1, Vary::DST_PORT), (4095, Vary::VLAN)]
        {
            assert!(Flows::new(count, vary).is_err(), "{count} {vary}");
        }
    }

    #[test]
    fn ports_and_vlans_are_distinct_and_allowed() {
        let ports: HashSet<_> = (0..PORTS).map(port).collect();
        assert!(ports.len() == PORTS as usize && ports.iter().all(|p| *p >= 1024));
        let vlans: HashSet<_> = (0..VLANS).map(vlan).collect();
        assert!(vlans.len() == 4094 && !vlans.contains(&0) && !vlans.contains(&4095));
        assert_eq!((port(PORTS), vlan(VLANS)), (port(0), vlan(0)));
    }
}
