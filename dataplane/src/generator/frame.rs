//! [`FrameSpec`]: what a frame looks like; and the template that a generator copies it from.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum;
use super::flows::{self, Flows, Vary};
use super::probe::{PROBE_LEN, Probe};
use crate::Mbuf;

/// The network layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// IPv4: source and destination.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6: source and destination.
    V6(Ipv6Addr, Ipv6Addr),
}

/// The transport layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP: a segment with ACK and PSH of no connection.
    Tcp,
}

/// A frame: Ethernet, a VLAN tag or none, IPv4 or IPv6, UDP or TCP, zeros. Its checksums are right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameSpec {
    /// Source.
    pub src_mac: [u8; 6],
    /// Destination.
    pub dst_mac: [u8; 6],
    /// VLAN tag control information.
    pub vlan: Option<u16>,
    /// Network layer.
    pub network: Network,
    /// Transport layer.
    pub transport: Transport,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Bytes from the destination address on, without the FCS.
    pub len: u16,
}

impl Default for FrameSpec {
    /// 60 bytes (64 with the FCS) of UDP over IPv4 between locally administered stations, with addresses
    /// of the range set aside for benchmarks (RFC 2544, C.2.2) and the discard port.
    fn default() -> Self {
        Self {
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 2],
            vlan: None,
            network: Network::V4(Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 19, 0, 1)),
            transport: Transport::Udp,
            src_port: 49_152,
            dst_port: 9,
            len: 60,
        }
    }
}

/// Why there is no such frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Too short for its headers, or longer than frames are.
    #[error("a frame of {len} bytes without FCS: {what} take {least} to {most}")]
    Length {
        /// Asked for.
        len: u16,
        /// What it should hold.
        what: &'static str,
        /// At the least.
        least: u16,
        /// At the most.
        most: u16,
    },
    /// Flows by VLAN of frames with no tag.
    #[error("flows by vlan, but the frame has no VLAN tag: give it one")]
    NoVlan,
    /// A mix of no frames.
    #[error("a mix of {0} frames: give 1 to 4,096")]
    Mix(usize),
}

/// Ethernet's least, without FCS.
const LEAST: u16 = 60;
/// The most: what fits into one buffer of a pool.
const MOST: u16 = 16_000;

impl FrameSpec {
    fn network_at(&self) -> usize {
        if self.vlan.is_some() { 18 } else { 14 }
    }

    fn transport_at(&self) -> usize {
        self.network_at() + if matches!(self.network, Network::V4(..)) { 20 } else { 40 }
    }

    fn payload_at(&self) -> usize {
        self.transport_at() + if self.transport == Transport::Udp { 8 } else { 20 }
    }

    /// The shortest such frame, with a probe in it or without.
    pub fn least_len(&self, probe: bool) -> u16 {
        LEAST.max((self.payload_at() + if probe { PROBE_LEN } else { 0 }) as u16)
    }

    /// The frame.
    ///
    /// # Errors
    /// [`FrameError::Length`].
    pub fn build(&self) -> Result<Vec<u8>, FrameError> {
        self.check(false)?;
        let mut frame = vec![0; self.len.into()];
        self.write_link(&mut frame);
        let pseudo = self.write_network(&mut frame[self.network_at()..]);
        self.write_transport(&mut frame[self.transport_at()..], pseudo);
        Ok(frame)
    }

    fn check(&self, probe: bool) -> Result<(), FrameError> {
        let what = if probe { "these headers and a stream's probe" } else { "these headers" };
        let least = self.least_len(probe);
        match (least..=MOST).contains(&self.len) {
            true => Ok(()),
            false => Err(FrameError::Length { len: self.len, what, least, most: MOST }),
        }
    }

    fn write_link(&self, frame: &mut [u8]) {
        frame[..6].copy_from_slice(&self.dst_mac);
        frame[6..12].copy_from_slice(&self.src_mac);
        if let Some(tci) = self.vlan {
            frame[12..14].copy_from_slice(&0x8100u16.to_be_bytes());
            frame[14..16].copy_from_slice(&tci.to_be_bytes());
        }
        let kind: u16 = if matches!(self.network, Network::V4(..)) { 0x0800 } else { 0x86dd };
        let at = self.network_at() - 2;
        frame[at..at + 2].copy_from_slice(&kind.to_be_bytes());
    }

    /// Writes the IP header; returns the sum of the pseudo header.
    fn write_network(&self, packet: &mut [u8]) -> u64 {
        let protocol = if self.transport == Transport::Udp { 17 } else { 6 };
        let len = packet.len() as u16;
        let (inner, addresses) = match self.network {
            Network::V4(src, dst) => {
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&len.to_be_bytes());
                packet[6] = 0x40; // do not fragment
                packet[8] = 64;
                packet[9] = protocol;
                packet[12..16].copy_from_slice(&src.octets());
                packet[16..20].copy_from_slice(&dst.octets());
                let sum = checksum::finish(checksum::sum(&packet[..20]));
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                (len - 20, &packet[12..20])
            }
            Network::V6(src, dst) => {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                packet[6] = protocol;
                packet[7] = 64;
                packet[8..24].copy_from_slice(&src.octets());
                packet[24..40].copy_from_slice(&dst.octets());
                (len - 40, &packet[8..40])
            }
        };
        checksum::sum(addresses) + u64::from(protocol) + u64::from(inner)
    }

    fn write_transport(&self, segment: &mut [u8], pseudo: u64) {
        segment[..2].copy_from_slice(&self.src_port.to_be_bytes());
        segment[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        let len = segment.len() as u16;
        match self.transport {
            Transport::Udp => {
                segment[4..6].copy_from_slice(&len.to_be_bytes());
                let sum = checksum::finish_udp(checksum::sum(segment) + pseudo);
                segment[6..8].copy_from_slice(&sum.to_be_bytes());
            }
            Transport::Tcp => {
                segment[7] = 1; // acknowledgement number
                segment[12] = 5 << 4;
                segment[13] = 0x18; // ACK, PSH
                segment[14..16].copy_from_slice(&8192u16.to_be_bytes());
                let sum = checksum::finish(checksum::sum(segment) + pseudo);
                segment[16..18].copy_from_slice(&sum.to_be_bytes());
            }
        }
    }
}

/// Bytes in which all headers of most frames are: one cache line.
pub(super) const HEAD: usize = 64;

/// A frame to copy, and what to write over the copy.
pub(super) struct Template {
    frame: Box<[u8]>,
    pub(super) len: u16,
    patch: Patch,
}

/// Where the fields of a template are, and the sums of all that stays.
#[derive(Clone, Copy)]
struct Patch {
    vlan: u16,
    /// The low 32 bits of the source address; the destination's are `address_len` behind.
    src_ip: u16,
    dst_ip: u16,
    ports: u16,
    /// Zero: there is none (IPv6).
    ip_checksum: u16,
    checksum: u16,
    probe: u16,
    is_udp: bool,
    base_src_ip: u32,
    base_dst_ip: u32,
    base_src_mac: u32,
    base_dst_mac: u32,
    /// Priority bits of the tag.
    base_tci: u16,
    /// Sums with the checksum, the varying fields and the probe left out.
    ip_sum: u64,
    sum: u64,
}

impl Template {
    /// The template of `spec` for frames of `flows`, with a probe or without.
    pub(super) fn new(spec: &FrameSpec, flows: Flows, probe: bool) -> Result<Self, FrameError> {
        spec.check(probe)?;
        if flows.vary.any(Vary::VLAN) && spec.vlan.is_none() {
            return Err(FrameError::NoVlan);
        }
        let frame = spec.build()?;
        let patch = Patch::new(spec, &frame, flows.vary);
        Ok(Self { frame: frame.into(), len: spec.len, patch })
    }

    /// Makes the buffer a copy of the frame, by copies of constant size: the last of them overlaps its
    /// neighbour where the length is no multiple.
    #[inline(always)]
    pub(super) fn copy(&self, mbuf: &mut Mbuf) {
        mbuf.received(self.len);
        let place = mbuf.data_mut();
        if self.frame.len() <= HEAD {
            copy_ends::<32>(&self.frame, place);
        } else {
            let blocks = self.frame.as_chunks::<HEAD>().0;
            place.as_chunks_mut::<HEAD>().0.iter_mut().zip(blocks).for_each(|(to, from)| *to = *from);
            copy_ends::<HEAD>(&self.frame, place);
        }
    }

    /// [`Template::copy`] with another head: one of [`Template::heads`].
    #[inline(always)]
    pub(super) fn copy_with(&self, head: &[u8; HEAD], mbuf: &mut Mbuf) {
        if let Some(head) = head.get(..self.frame.len()) {
            mbuf.received(self.len);
            copy_ends::<32>(head, mbuf.data_mut());
            return;
        }
        self.copy(mbuf);
        if let Some(place) = mbuf.data_mut().first_chunk_mut() {
            *place = *head;
        }
    }

    /// The first bytes of each flow's frames, with all that differs in them; none where something differs
    /// behind.
    pub(super) fn heads(&self, flows: Flows) -> Option<Box<[[u8; HEAD]]>> {
        if usize::from(self.patch.checksum) + 2 > HEAD {
            return None;
        }
        let head = |flow| {
            let mut frame = self.frame.to_vec();
            self.patch(&mut frame, flows.vary, flow, None);
            frame.resize(frame.len().max(HEAD), 0);
            frame.first_chunk().copied().unwrap_or([0; HEAD])
        };
        Some((0..flows.count).map(head).collect())
    }

    /// Writes the fields of flow `n` over a copy of the template, and the probe where there is one.
    #[inline]
    pub(super) fn patch(&self, frame: &mut [u8], vary: Vary, n: u32, probe: Option<&Probe>) {
        let p = &self.patch;
        let (mut ip_sum, mut sum) = (p.ip_sum, p.sum);
        if vary.any(Vary::SRC_MAC) {
            put(frame, 8, p.base_src_mac.wrapping_add(n).to_be_bytes());
        }
        if vary.any(Vary::DST_MAC) {
            put(frame, 2, p.base_dst_mac.wrapping_add(n).to_be_bytes());
        }
        if vary.any(Vary::VLAN) {
            put(frame, p.vlan, (p.base_tci | flows::vlan(n)).to_be_bytes());
        }
        if vary.any(Vary::SRC_IP) {
            let address = p.base_src_ip.wrapping_add(n);
            put(frame, p.src_ip, address.to_be_bytes());
            (ip_sum, sum) = (ip_sum + u64::from(address), sum + u64::from(address));
        }
        if vary.any(Vary::DST_IP) {
            let address = p.base_dst_ip.wrapping_add(n);
            put(frame, p.dst_ip, address.to_be_bytes());
            (ip_sum, sum) = (ip_sum + u64::from(address), sum + u64::from(address));
        }
        if vary.any(Vary::SRC_PORT) {
            put(frame, p.ports, flows::port(n).to_be_bytes());
            sum += u64::from(flows::port(n));
        }
        if vary.any(Vary::DST_PORT) {
            put(frame, p.ports + 2, flows::port(n).to_be_bytes());
            sum += u64::from(flows::port(n));
        }
        if let Some(probe) = probe {
            sum += probe.sum();
            put::<PROBE_LEN>(frame, p.probe, zerocopy::transmute!(*probe));
        }
        if p.ip_checksum != 0 && vary.any(Vary::SRC_IP.with(Vary::DST_IP)) {
            put(frame, p.ip_checksum, checksum::finish(ip_sum).to_be_bytes());
        }
        let sum = if p.is_udp { checksum::finish_udp(sum) } else { checksum::finish(sum) };
        put(frame, p.checksum, sum.to_be_bytes());
    }
}

/// Writes `bytes` at `at`. The offsets of a template lie in its frames: the check only keeps a panic out.
#[inline(always)]
fn put<const N: usize>(frame: &mut [u8], at: u16, bytes: [u8; N]) {
    if let Some(place) = frame.get_mut(usize::from(at)..).and_then(|rest| rest.first_chunk_mut()) {
        *place = bytes;
    }
}

/// Copies the first and the last `N` bytes.
#[inline(always)]
fn copy_ends<const N: usize>(from: &[u8], to: &mut [u8]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<N>(), to.first_chunk_mut()) {
        *to = *from;
    }
    if let (Some(from), Some(to)) = (from.last_chunk::<N>(), to.last_chunk_mut()) {
        *to = *from;
    }
}

fn word(frame: &[u8], at: u16) -> u32 {
    let bytes = frame.get(usize::from(at)..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

impl Patch {
    fn new(spec: &FrameSpec, frame: &[u8], vary: Vary) -> Self {
        let (network, transport) = (spec.network_at() as u16, spec.transport_at() as u16);
        let is_udp = spec.transport == Transport::Udp;
        let (src_ip, dst_ip, ip_checksum) = match spec.network {
            Network::V4(..) => (network + 12, network + 16, network + 10),
            Network::V6(..) => (network + 20, network + 36, 0),
        };
        let mut patch = Self {
            vlan: 14,
            src_ip,
            dst_ip,
            ports: transport,
            ip_checksum,
            checksum: transport + if is_udp { 6 } else { 16 },
            probe: spec.payload_at() as u16,
            is_udp,
            base_src_ip: word(frame, src_ip),
            base_dst_ip: word(frame, dst_ip),
            base_src_mac: word(frame, 8),
            base_dst_mac: word(frame, 2),
            base_tci: spec.vlan.unwrap_or_default() & 0xf000,
            ip_sum: 0,
            sum: 0,
        };
        patch.take_sums(spec, frame, vary);
        patch
    }

    /// The sums over the frame with everything that [`Template::patch`] writes cleared. The probe's
    /// place is zero already.
    fn take_sums(&mut self, spec: &FrameSpec, frame: &[u8], vary: Vary) {
        let mut rest = frame.to_vec();
        put(&mut rest, self.checksum, [0; 2]);
        if self.ip_checksum != 0 {
            put(&mut rest, self.ip_checksum, [0; 2]);
        }
        for (field, at) in [(Vary::SRC_IP, self.src_ip), (Vary::DST_IP, self.dst_ip)] {
            if vary.any(field) {
                put(&mut rest, at, [0; 4]);
            }
        }
        for (field, at) in [(Vary::SRC_PORT, self.ports), (Vary::DST_PORT, self.ports + 2)] {
            if vary.any(field) {
                put(&mut rest, at, [0; 2]);
            }
        }
        let transport = spec.transport_at();
        let (addresses, protocol) = match spec.network {
            Network::V4(..) => (&rest[transport - 8..transport], rest[transport - 11]),
            Network::V6(..) => (&rest[transport - 32..transport], rest[transport - 34]),
        };
        let pseudo = checksum::sum(addresses) + u64::from(protocol) + (rest.len() - transport) as u64;
        self.ip_sum = checksum::sum(&rest[spec.network_at()..transport]);
        self.sum = checksum::sum(&rest[transport..]) + pseudo;
    }
}
