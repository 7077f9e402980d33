//! [`Replay`]: the frames of a capture file, in memory, to send.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::Mbuf;
use crate::capture::{FormatError, packets};

/// The largest file that is read, bytes.
const LARGEST: u64 = 1 << 30;
/// Shorter frames are padded with zeros, as every sender must (IEEE 802.3, 4.2.3.3).
const LEAST: usize = 60;

/// Why a file cannot be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It cannot be read.
    #[error("'{path}': {source}: name a pcap or pcapng file that you may read")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is too large to hold in memory.
    #[error("'{path}': larger than {LARGEST} bytes: cut it with `editcap -c 1000000`")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It makes no sense.
    #[error("'{path}' {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Where, and what.
        source: FormatError,
    },
    /// Nothing in it can be sent.
    #[error(
        "'{path}': none of its {packets} packets can be sent: {cut} were cut off when captured \
         (capture again with `-s 0`), {long} are longer than {most} bytes (raise the MTU), the others \
         are no Ethernet frames"
    )]
    NoFrames {
        /// The file.
        path: PathBuf,
        /// Packets in it.
        packets: usize,
        /// Of these, with bytes missing.
        cut: usize,
        /// Of these, too long.
        long: usize,
        /// What is too long.
        most: u16,
    },
}

/// Frames of a file, ready to be copied.
pub struct Replay {
    bytes: Vec<u8>,
    /// Start and length.
    frames: Vec<(usize, u16)>,
    cut: usize,
    long: usize,
}

impl Replay {
    /// Reads the frames of `path` that are whole, and at most `most` bytes long without FCS.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn open(path: impl AsRef<Path>, most: u16) -> Result<Self, ReplayError> {
        let path = path.as_ref();
        let failed = |source| ReplayError::File { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LARGEST {
            return Err(ReplayError::TooLarge { path: path.to_owned() });
        }
        Self::parse(path, &bytes, most)
    }

    fn parse(path: &Path, file: &[u8], most: u16) -> Result<Self, ReplayError> {
        let format = |source| ReplayError::Format { path: path.to_owned(), source };
        let mut replay = Self { bytes: Vec::new(), frames: Vec::new(), cut: 0, long: 0 };
        let mut total = 0;
        for packet in packets(file).map_err(format)? {
            let packet = packet.map_err(format)?;
            total += 1;
            let len = packet.data.len().max(LEAST);
            if (packet.data.len() as u64) < u64::from(packet.len) {
                replay.cut += 1;
            } else if len > usize::from(most) {
                replay.long += 1;
            } else if packet.data.len() >= 14 {
                let start = replay.bytes.len();
                replay.bytes.extend_from_slice(packet.data);
                replay.bytes.resize(start + len, 0);
                replay.frames.push((start, len as u16));
            }
        }
        if replay.frames.is_empty() {
            let (path, Self { cut, long, .. }) = (path.to_owned(), replay);
            return Err(ReplayError::NoFrames { path, packets: total, cut, long, most });
        }
        Ok(replay)
    }

    /// Frames to send.
    #[allow(clippy::len_without_is_empty, reason = "never empty: that is an error at opening")]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Packets left out: cut off when captured, and too long.
    pub fn left_out(&self) -> (usize, usize) {
        (self.cut, self.long)
    }

    /// Mean length, bytes.
    pub fn mean_len(&self) -> u32 {
        (self.bytes.len() / self.frames.len().max(1)) as u32
    }

    /// The longest, bytes.
    pub fn longest(&self) -> u16 {
        self.frames.iter().map(|frame| frame.1).max().unwrap_or_default()
    }

    /// Copies frame `at` into the buffer, which has the room; returns its length.
    #[inline]
    pub(super) fn copy(&self, at: usize, mbuf: &mut Mbuf) -> u64 {
        let (start, len) = self.frames.get(at).copied().unwrap_or_default();
        mbuf.received(len);
        let bytes = self.bytes.get(start..).unwrap_or_default();
        let place = mbuf.data_mut();
        if let Some(bytes) = bytes.get(..place.len()) {
            place.copy_from_slice(bytes);
        }
        len.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pcap(packets: &[(&[u8], u32)]) -> Vec<u8> {
        let header: [u32; 6] = [0xa1b2_3c4d, 0x0004_0002, 0, 0, 65535, 1];
        let mut file: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        for (data, len) in packets {
            for word in [1, 2, data.len() as u32, *len] {
                file.extend(word.to_le_bytes());
            }
            file.extend(*data);
        }
        file
    }

    fn parse(packets: &[(&[u8], u32)]) -> Result<Replay, ReplayError> {
        Replay::parse(Path::new("some.pcap"), &pcap(packets), 1514)
    }

    #[test]
    fn frames_that_can_be_sent_are_kept_and_padded() {
        let replay =
            parse(&[(&[7; 100], 100), (&[8; 20], 20), (&[9; 64], 1000), (&[1; 2000], 2000), (&[1; 5], 5)]);
        let replay = replay.unwrap();
        assert_eq!(
            (replay.len(), replay.left_out(), replay.longest(), replay.mean_len()),
            (2, (1, 1), 100, 80)
        );
        assert_eq!((&replay.bytes[..100], &replay.bytes[100..120]), (&[7; 100][..], &[8; 20][..]));
        assert_eq!(replay.bytes[120..], [0; 40]);
    }

    #[test]
    fn what_cannot_be_sent_is_told() {
        let error = parse(&[(&[9; 64], 1000), (&[1; 2000], 2000)]).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("some.pcap") && error.contains("none of its 2") && error.contains("1514"),
            "{error}"
        );
        let mut file = pcap(&[(&[7; 100], 100)]);
        file.truncate(100);
        let error = Replay::parse(Path::new("some.pcap"), &file, 1514).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("some.pcap") && error.contains("at byte 24"), "{error}");
        let error = Replay::open("/nonexistent.pcap", 1514).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("/nonexistent.pcap"), "{error}");
    }
}
