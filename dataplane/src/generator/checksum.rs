//! The Internet checksum (RFC 1071), built so that a frame with a few new fields costs a few additions.
//!
//! One's complement sums do not care how wide the words are that go in: 2^16 and 2^32 are both 1 modulo
//! 65,535. So a 32-bit field is added as it is, and only the end is folded.

/// The sum of `bytes` as big-endian 16-bit words, the last padded with zero, not folded.
#[inline]
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = words.iter().fold(0u64, |total, word| total + u64::from(u32::from_be_bytes(*word)));
    for (at, &byte) in rest.iter().enumerate() {
        total += u64::from(byte) << if at % 2 == 0 { 8 } else { 0 };
    }
    total
}

/// The sum of an unfolded sum's 16-bit words.
#[inline]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The checksum field for a sum taken with that field zero.
#[inline]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// As [`finish`], for UDP: zero would mean that there is none (RFC 768).
#[inline]
pub const fn finish_udp(sum: u64) -> u16 {
    match finish(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// A 64-bit field's part of a sum.
#[inline]
pub const fn wide(field: u64) -> u64 {
    (field >> 32) + (field & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, section 3: the worked example.
    #[test]
    fn the_rfc_example() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    fn reference(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            total = (total >> 16) + (total & 0xffff);
        }
        total as u16
    }

    proptest! {
        #[test]
        fn as_word_by_word(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(fold(sum(&bytes)), reference(&bytes));
        }

        #[test]
        fn a_wide_field_is_its_bytes(field: u64) {
            prop_assert_eq!(fold(wide(field)), fold(sum(&field.to_be_bytes())));
        }
    }

    #[test]
    fn the_largest_sum_folds() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!((finish(u64::MAX), finish_udp(u64::MAX)), (0, 0xffff));
    }
}
