//! The address of a PCI function: domain, bus, device, function.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A PCI function's address, written `DDDD:BB:DD.F` in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bdf {
    /// PCI domain (segment). Linux uses domains above 16 bits behind VMD controllers.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Bdf {
    type Err = Error;

    /// Accepts `DDDD:BB:DD.F` and, as `lspci` prints it, `BB:DD.F` (domain 0).
    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| Error::MalformedBdf { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let hex = |digits: &str, longest: usize, limit: u32| {
        let plain =
            !digits.is_empty() && digits.len() <= longest && digits.bytes().all(|b| b.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|v| plain && *v <= limit)
    };
    Some(Bdf {
        domain: hex(domain, 8, u32::MAX)?,
        bus: hex(bus, 2, 0xff)? as u8,
        device: hex(device, 2, 31)? as u8,
        function: hex(function, 1, 7)? as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_and_long_forms_are_the_same_function() {
        assert_eq!("0000:01:00.0".parse::<Bdf>().unwrap(), "01:00.0".parse::<Bdf>().unwrap());
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        for text in ["", "eth0", "01:00", "01:20.0", "01:00.8", "1:2:3:4.0", "+1:00.0", "01:00.", ":00.0"] {
            let error = text.parse::<Bdf>().unwrap_err();
            assert!(matches!(error, Error::MalformedBdf { .. }), "{text}");
        }
    }

    proptest! {
        #[test]
        fn display_parses_back(domain: u32, bus: u8, device in 0u8..32, function in 0u8..8) {
            let bdf = Bdf { domain, bus, device, function };
            prop_assert_eq!(bdf.to_string().parse::<Bdf>().unwrap(), bdf);
        }
    }
}
