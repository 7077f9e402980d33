//! The pcapng blocks that are written (draft-ietf-opsawg-pcapng, section 4).

use std::io::{self, Write};

use super::Direction;

/// Section header block.
pub(super) const SECTION: u32 = 0x0a0d_0d0a;
/// Interface description block.
pub(super) const INTERFACE: u32 = 1;
/// Packet block, obsolete.
pub(super) const OLD_PACKET: u32 = 2;
/// Simple packet block.
pub(super) const SIMPLE_PACKET: u32 = 3;
/// Enhanced packet block.
pub(super) const PACKET: u32 = 6;
/// The section header's byte-order magic.
pub(super) const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// LINKTYPE_ETHERNET.
pub(super) const ETHERNET: u16 = 1;
/// if_tsresol: the option with the timestamps' unit.
pub(super) const IF_TSRESOL: u16 = 9;

const IF_NAME: u16 = 2;
const SHB_USERAPPL: u16 = 4;
const EPB_FLAGS: u16 = 2;

/// A block in the making: type and body.
struct Block(Vec<u8>);

impl Block {
    fn new(kind: u32) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        Self(bytes)
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn option(mut self, code: u16, value: &[u8]) -> Self {
        self.0.extend(code.to_le_bytes());
        self.0.extend((value.len() as u16).to_le_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Ends the options, fills in the length at both ends.
    fn write(self, out: &mut impl Write) -> io::Result<()> {
        let mut bytes = self.put(&[0; 4]).0;
        let len = (bytes.len() as u32 + 4).to_le_bytes();
        bytes[4..8].copy_from_slice(&len);
        bytes.extend(len);
        out.write_all(&bytes)
    }
}

/// Writes the section header and one interface for each name.
pub(super) fn write_header(out: &mut impl Write, names: &[String], snap: u32) -> io::Result<()> {
    let section = Block::new(SECTION).put(&BYTE_ORDER.to_le_bytes()).put(&[1, 0, 0, 0]);
    section.put(&u64::MAX.to_le_bytes()).option(SHB_USERAPPL, b"becket").write(out)?;
    for name in names {
        let name = &name.as_bytes()[..name.len().min(200)];
        let interface = Block::new(INTERFACE).put(&ETHERNET.to_le_bytes()).put(&[0; 2]);
        interface.put(&snap.to_le_bytes()).option(IF_NAME, name).option(IF_TSRESOL, &[9]).write(out)?;
    }
    Ok(())
}

/// One frame, captured.
pub(super) struct Frame<'a> {
    pub(super) interface: u32,
    pub(super) direction: Direction,
    /// Since 1970.
    pub(super) nanos: u64,
    /// Of the whole frame.
    pub(super) len: u32,
    /// What was kept of it.
    pub(super) data: &'a [u8],
}

/// Writes one frame.
pub(super) fn write_packet(out: &mut impl Write, frame: &Frame<'_>) -> io::Result<()> {
    let kept = frame.data.len();
    let padding = kept.next_multiple_of(4) - kept;
    // Type, length, five fields; data; the flags option and the end of options; length.
    let len = (28 + kept + padding + 12 + 4) as u32;
    let mut head = [0; 28];
    let high = (frame.nanos >> 32) as u32;
    let fields = [PACKET, len, frame.interface, high, frame.nanos as u32, kept as u32, frame.len];
    for (place, field) in head.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
        *place = field.to_le_bytes();
    }
    out.write_all(&head)?;
    out.write_all(frame.data)?;
    out.write_all(&[0; 4][..padding])?;
    let flags: u32 = if frame.direction == Direction::Received { 1 } else { 2 };
    let mut tail = [0; 16];
    tail[..2].copy_from_slice(&EPB_FLAGS.to_le_bytes());
    tail[2] = 4;
    tail[4..8].copy_from_slice(&flags.to_le_bytes());
    tail[12..].copy_from_slice(&len.to_le_bytes());
    out.write_all(&tail)
}
