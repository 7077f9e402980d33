//! The VF token: a shared secret between the owner of a PF and the owners of its VFs.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::str::FromStr;

use crate::{Error, Result};

/// A VF token, a UUID. vfio-pci wants it from whoever opens a VF whose PF it has too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VfToken([u8; 16]);

impl VfToken {
    /// A random one (RFC 9562, version 4).
    ///
    /// # Errors
    /// [`Error::System`] where the kernel gives no random bytes.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        read.map_err(|e| Error::io("reading /dev/urandom", e))?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }
}

impl fmt::Display for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for VfToken {
    /// Without the token: it is a secret, and logs are read by others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(..)")
    }
}

impl FromStr for VfToken {
    type Err = Error;

    /// Accepts what `uuidgen` prints.
    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| Error::MalformedToken { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<VfToken> {
    let dashes = [8, 13, 18, 23];
    let shaped = text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| (b == b'-') == dashes.contains(&i) && b.is_ascii());
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let mut bytes = [0; 16];
    for (byte, at) in bytes.iter_mut().zip((0..32).step_by(2)) {
        let pair = digits.get(at..at + 2).filter(|p| shaped && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(VfToken(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_prints_as_it_was_given_and_hides_in_debug() {
        let text = "14d63f20-8445-11ea-8900-1f9ce7d5650d";
        let token: VfToken = text.parse().unwrap();
        assert_eq!(token.to_string(), text);
        assert!(!format!("{token:?}").contains("14d6"));
    }

    #[test]
    fn random_tokens_differ_and_parse_back() {
        let (a, b) = (VfToken::random().unwrap(), VfToken::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.to_string().parse::<VfToken>().unwrap(), a);
    }

    #[test]
    fn what_is_no_uuid_is_refused() {
        for text in
            ["", "14d63f20", "14d63f20-8445-11ea-8900-1f9ce7d5650g", "14d63f20084450-1ea-8900-1f9ce7d5650d"]
        {
            assert!(matches!(text.parse::<VfToken>(), Err(Error::MalformedToken { .. })), "{text}");
        }
    }
}
