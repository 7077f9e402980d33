//! Reads capture files: pcap (both byte orders, micro- and nanoseconds) and pcapng.
//!
//! The file is somebody else's: every length is checked before it is used, nothing is allocated by what
//! the file says, and what makes no sense is an error that names the place.

use super::pcapng;

/// One packet of a capture file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// When, in nanoseconds since 1970; 0 where the file does not say.
    pub nanos: u64,
    /// The interface's number; 0 in pcap files.
    pub interface: u32,
    /// The bytes kept.
    pub data: &'a [u8],
    /// Bytes that the frame had.
    pub len: u32,
}

/// What makes no sense in a capture file, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("at byte {offset}: {what}")]
pub struct FormatError {
    /// Bytes from the start of the file.
    pub offset: usize,
    /// What is there, and what to do about it.
    pub what: String,
}

/// How to read the numbers of a section.
#[derive(Clone, Copy)]
struct Order {
    big: bool,
}

impl Order {
    fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if self.big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }
}

#[derive(Clone, Copy)]
struct Interface {
    link: u16,
    /// Timestamp units a second.
    units: u64,
    snap: u32,
}

enum Format {
    Pcap { units: u64 },
    Pcapng { interfaces: Vec<Interface> },
}

/// The packets of a capture file, in its order. Ends after the first error.
pub struct Packets<'a> {
    file: &'a [u8],
    at: usize,
    order: Order,
    format: Format,
}

const SNAPPED: &str = "the file is cut off: copy it again, or end the capture cleanly";

/// The packets of a capture file that is in memory.
///
/// # Errors
/// [`FormatError`]: it is no pcap or pcapng file, or not of Ethernet.
pub fn packets(file: &[u8]) -> Result<Packets<'_>, FormatError> {
    let error = |offset, what: &str| FormatError { offset, what: what.to_owned() };
    let magic = Order { big: true }.u32(file, 0).ok_or_else(|| error(0, "the file is empty"))?;
    let (big, units) = match magic {
        pcapng::SECTION => {
            let format = Format::Pcapng { interfaces: Vec::new() };
            return Ok(Packets { file, at: 0, order: Order { big: false }, format });
        }
        0xa1b2_c3d4 => (true, 1_000_000),
        0xd4c3_b2a1 => (false, 1_000_000),
        0xa1b2_3c4d => (true, 1_000_000_000),
        0x4d3c_b2a1 => (false, 1_000_000_000),
        _ => return Err(error(0, "this is no pcap or pcapng file: convert it with `editcap -F pcapng`")),
    };
    let order = Order { big };
    let link = order.u32(file, 20).ok_or_else(|| error(0, SNAPPED))? & 0xffff;
    if link != u32::from(pcapng::ETHERNET) {
        return Err(not_ethernet(20, link));
    }
    Ok(Packets { file, at: 24, order, format: Format::Pcap { units } })
}

fn not_ethernet(offset: usize, link: u32) -> FormatError {
    let what = format!("link type {link} is not Ethernet (1): capture on an Ethernet interface");
    FormatError { offset, what }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.file.len() {
            let start = self.at;
            let found = match self.format {
                Format::Pcap { units } => self.record(units).map(Some),
                Format::Pcapng { .. } => self.block(),
            };
            match found {
                Ok(None) => {}
                Ok(Some(packet)) => return Some(Ok(packet)),
                Err(error) => {
                    self.at = self.file.len();
                    let (offset, what) = error.unwrap_or((start, SNAPPED.to_owned()));
                    return Some(Err(FormatError { offset, what }));
                }
            }
        }
        None
    }
}

/// An error at a place, or (nothing) that the file ends too early.
type Fault = Option<(usize, String)>;

fn nanos(time: u64, units: u64) -> u64 {
    u64::try_from(u128::from(time) * 1_000_000_000 / u128::from(units)).unwrap_or(u64::MAX)
}

impl<'a> Packets<'a> {
    /// A record of a pcap file.
    fn record(&mut self, units: u64) -> Result<Packet<'a>, Fault> {
        let rest = self.file.get(self.at..).ok_or(None)?;
        let field = |at| self.order.u32(rest, at).ok_or(None);
        let (seconds, part, kept, len) = (field(0)?, field(4)?, field(8)?, field(12)?);
        let data = rest.get(16..).and_then(|rest| rest.get(..kept as usize)).ok_or(None)?;
        self.at += 16 + data.len();
        let nanos = u64::from(seconds) * 1_000_000_000 + nanos(part.into(), units);
        Ok(Packet { nanos, interface: 0, data, len })
    }

    /// A block of a pcapng file, and the packet where it holds one.
    fn block(&mut self) -> Result<Option<Packet<'a>>, Fault> {
        let start = self.at;
        let rest = self.file.get(start..).ok_or(None)?;
        if self.order.u32(rest, 0) == Some(pcapng::SECTION) {
            self.section(rest, start)?;
        }
        let kind = self.order.u32(rest, 0).ok_or(None)?;
        let len = self.order.u32(rest, 4).ok_or(None)? as usize;
        if len < 12 || !len.is_multiple_of(4) {
            let what =
                format!("a block of {len} bytes: the file is damaged; `editcap` may save what is before");
            return Err(Some((start + 4, what)));
        }
        let block = rest.get(..len).ok_or(None)?;
        if self.order.u32(block, len - 4) != Some(len as u32) {
            let what = "a block's two lengths differ: the file is damaged; `editcap` may save what is before";
            return Err(Some((start + len - 4, what.to_owned())));
        }
        self.at += len;
        let body = block.get(8..len - 4).ok_or(None)?;
        let short = Some((start, "a block too short for its fields: the file is damaged".to_owned()));
        match kind {
            pcapng::INTERFACE => self.interface(body).ok_or(short).map(|()| None),
            pcapng::PACKET | pcapng::OLD_PACKET | pcapng::SIMPLE_PACKET => {
                self.packet(kind, body, start).and_then(|packet| packet.ok_or(short)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// A section begins: its byte order, and no interfaces yet.
    fn section(&mut self, rest: &[u8], start: usize) -> Result<(), Fault> {
        self.order.big = match rest.get(8..12).ok_or(None)? {
            [0x1a, 0x2b, 0x3c, 0x4d] => true,
            [0x4d, 0x3c, 0x2b, 0x1a] => false,
            _ => {
                return Err(Some((
                    start + 8,
                    "a section of no known byte order: the file is damaged".to_owned(),
                )));
            }
        };
        if let Format::Pcapng { interfaces } = &mut self.format {
            interfaces.clear();
        }
        Ok(())
    }

    fn interface(&mut self, body: &[u8]) -> Option<()> {
        let (link, snap) = (self.order.u16(body, 0)?, self.order.u32(body, 4)?);
        let mut units = 1_000_000;
        let mut options = body.get(8..)?;
        while let (Some(code), Some(len)) = (self.order.u16(options, 0), self.order.u16(options, 2)) {
            let value = options.get(4..).and_then(|rest| rest.get(..len.into()));
            match (code, value) {
                (0, _) | (_, None) => break,
                (pcapng::IF_TSRESOL, Some(&[unit])) if unit & 0x80 != 0 => {
                    units = 1u64.checked_shl((unit & 0x7f).into())?;
                }
                (pcapng::IF_TSRESOL, Some(&[unit])) => units = 10u64.checked_pow(unit.into())?,
                _ => {}
            }
            options = options.get(4 + usize::from(len).next_multiple_of(4)..).unwrap_or_default();
        }
        if let Format::Pcapng { interfaces } = &mut self.format {
            interfaces.push(Interface { link, units, snap });
        }
        Some(())
    }

    fn packet(&self, kind: u32, body: &'a [u8], start: usize) -> Result<Option<Packet<'a>>, Fault> {
        let Format::Pcapng { interfaces } = &self.format else { return Ok(None) };
        let number = match kind {
            pcapng::PACKET => self.order.u32(body, 0),
            pcapng::OLD_PACKET => self.order.u16(body, 0).map(u32::from),
            _ => Some(0),
        };
        let Some(number) = number else { return Ok(None) };
        let Some(interface) = interfaces.get(number as usize) else {
            let what =
                format!("a packet of interface {number}, which was never described: the file is damaged");
            return Err(Some((start + 8, what)));
        };
        if interface.link != pcapng::ETHERNET {
            let FormatError { offset, what } = not_ethernet(start, interface.link.into());
            return Err(Some((offset, what)));
        }
        Ok(self.packet_body(kind, body, number, interface))
    }

    fn packet_body(
        &self,
        kind: u32,
        body: &'a [u8],
        number: u32,
        interface: &Interface,
    ) -> Option<Packet<'a>> {
        if kind == pcapng::SIMPLE_PACKET {
            let len = self.order.u32(body, 0)?;
            let snap = if interface.snap == 0 { u32::MAX } else { interface.snap };
            let data = body.get(4..)?.get(..len.min(snap) as usize)?;
            return Some(Packet { nanos: 0, interface: number, data, len });
        }
        let field = |at| self.order.u32(body, at);
        let time = u64::from(field(4)?) << 32 | u64::from(field(8)?);
        let (kept, len) = (field(12)?, field(16)?);
        let data = body.get(20..)?.get(..kept as usize)?;
        Some(Packet { nanos: nanos(time, interface.units), interface: number, data, len })
    }
}

#[cfg(test)]
mod tests;
