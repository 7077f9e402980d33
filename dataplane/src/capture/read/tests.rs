use super::*;
use crate::capture::Direction;
use proptest::prelude::*;

/// Reads all there is, in either outcome; the number of packets, and the error.
fn drain(file: &[u8]) -> (usize, Option<FormatError>) {
    let mut all = match packets(file) {
        Ok(all) => all,
        Err(error) => return (0, Some(error)),
    };
    let good = all.by_ref().take_while(Result::is_ok).count();
    // After the end, and after an error, nothing more comes.
    assert!(all.next().is_none());
    (good, packets(file).unwrap().find_map(Result::err))
}

fn pcap(big: bool, magic: u32, link: u32, records: &[&[u8]]) -> Vec<u8> {
    let word = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let mut file: Vec<u8> = [magic, 0x0002_0004, 0, 0, 0x4_0000, link].into_iter().flat_map(word).collect();
    for data in records {
        let len = data.len() as u32;
        file.extend([7, 500, len, len + 1].into_iter().flat_map(word));
        file.extend(*data);
    }
    file
}

fn pcapng(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    crate::capture::pcapng::write_header(&mut file, &["a".to_owned(), "b".to_owned()], 65535).unwrap();
    for (at, data) in frames.iter().enumerate() {
        let frame = crate::capture::pcapng::Frame {
            interface: at as u32 % 2,
            direction: Direction::Sent,
            nanos: 1_700_000_000_123_456_789 + at as u64,
            len: data.len() as u32 + 4,
            data,
        };
        crate::capture::pcapng::write_packet(&mut file, &frame).unwrap();
    }
    file
}

#[test]
fn pcap_of_both_orders_and_both_units() {
    for (big, magic, nanos) in [
        (false, 0xa1b2_c3d4, 7_000_500_000),
        (true, 0xa1b2_c3d4, 7_000_500_000),
        (false, 0xa1b2_3c4d, 7_000_000_500),
        (true, 0xa1b2_3c4d, 7_000_000_500),
    ] {
        let file = pcap(big, magic, 1, &[b"one", b"", b"three"]);
        let read: Vec<_> = packets(&file).unwrap().map(Result::unwrap).collect();
        assert_eq!(read[0], Packet { nanos, interface: 0, data: b"one", len: 4 });
        assert_eq!((read.len(), read[2].data), (3, &b"three"[..]));
    }
}

#[test]
fn what_is_no_capture_of_ethernet_is_told_with_its_place() {
    let cases: [(&[u8], usize, &str); 5] = [
        (b"", 0, "empty"),
        (b"hello world", 0, "no pcap"),
        (&pcap(false, 0xa1b2_c3d4, 113, &[]), 20, "link type 113"),
        (&pcap(true, 0xa1b2_c3d4, 1, &[])[..22], 0, "cut off"),
        (&pcap(true, 0xa1b2_c3d4, 1, &[b"abc"])[..42], 24, "cut off"),
    ];
    for (file, offset, what) in cases {
        let error = drain(file).1.unwrap();
        assert!(error.offset == offset && error.what.contains(what), "{error}");
    }
}

#[test]
fn damaged_pcapng_is_told_with_its_place() {
    let file = pcapng(&[vec![1; 60], vec![2; 61]]);
    // Two packet blocks end the file: 44 bytes around the padded data.
    let start = file.len() - (44 + 60) - (44 + 64);
    assert_eq!(file[start..start + 8], [6, 0, 0, 0, 104, 0, 0, 0]);
    let cases: [(usize, u32, &str); 5] = [
        (start + 4, 10, "a block of 10 bytes"),
        (start + 4, 0x7fff_fff0, "cut off"),
        (start + 4, 100, "two lengths differ"),
        (start + 8, 7, "interface 7"),
        (start + 20, 5000, "too short"),
    ];
    for (at, value, what) in cases {
        let mut damaged = file.clone();
        damaged[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let error = drain(&damaged).1.unwrap_or_else(|| panic!("no error for {what}"));
        assert!(error.what.contains(what) && (start..start + 104).contains(&error.offset), "{error}");
    }
}

#[test]
fn simple_and_old_packets_and_big_endian_sections() {
    let mut file = Vec::new();
    let mut block = |kind: u32, body: &[u32]| {
        let len = body.len() as u32 * 4 + 12;
        let words = [&[kind, len], body, &[len]].concat();
        file.extend(words.into_iter().flat_map(u32::to_be_bytes));
    };
    block(0x0a0d_0d0a, &[0x1a2b_3c4d, 0x0001_0000, u32::MAX, u32::MAX]);
    block(1, &[0x0001_0000, 6]);
    block(0x0bad, &[1, 2, 3]);
    block(3, &[8, 0x6162_6364, 0x6566_0000]);
    block(2, &[0, 1, 0, 3, 9, 0x7879_7a00]);
    let read: Vec<_> = packets(&file).unwrap().map(Result::unwrap).collect();
    assert_eq!(read[0], Packet { nanos: 0, interface: 0, data: b"abcdef", len: 8 });
    assert_eq!(read[1], Packet { nanos: (1 << 32) * 1000, interface: 0, data: b"xyz", len: 9 });
}

proptest! {
    #[test]
    fn what_is_written_is_read(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let file = pcapng(&frames);
        let read: Vec<_> = packets(&file).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(read.len(), frames.len());
        for (at, (packet, frame)) in read.iter().zip(&frames).enumerate() {
            let nanos = 1_700_000_000_123_456_789 + at as u64;
            let expected = Packet { nanos, interface: at as u32 % 2, data: frame, len: frame.len() as u32 + 4 };
            prop_assert_eq!(*packet, expected);
        }
    }

    /// Files cut, overwritten and stuffed at random end, without a panic, in packets or an error in them.
    #[test]
    fn damage_never_panics(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..4),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
        old in any::<bool>(),
    ) {
        let whole = if old {
            pcap(false, 0xa1b2_c3d4, 1, &frames.iter().map(Vec::as_slice).collect::<Vec<_>>())
        } else {
            pcapng(&frames)
        };
        let mut file = whole.clone();
        for (at, byte) in hits {
            let at = at.index(file.len());
            file[at] = byte;
        }
        file.truncate(cut.index(file.len()) + 1);
        let (_, error) = drain(&file);
        if let Some(error) = error {
            prop_assert!(error.offset <= file.len());
        }
        // Cut and otherwise whole: all before the cut is read.
        let (read, error) = drain(&whole[..file.len()]);
        prop_assert!(read <= frames.len());
        prop_assert!(error.is_some() || read < frames.len() || file.len() == whole.len());
    }

    #[test]
    fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..400), magic in 0usize..4) {
        let magics: [&[u8]; 4] = [
            &[0xd4, 0xc3, 0xb2, 0xa1],
            &[0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a],
            &[0x0a, 0x0d, 0x0d, 0x0a, 0, 0, 0, 28, 0x1a, 0x2b, 0x3c, 0x4d],
            &[],
        ];
        if let Some(place) = bytes.get_mut(..magics[magic].len()) {
            place.copy_from_slice(magics[magic]);
        }
        drain(&bytes);
    }
}
