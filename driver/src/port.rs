//! [`Port`]: the control side of a NIC port, the same for every family.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use dataplane::Mempool;

use crate::{QueuePair, Result};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// True for group addresses, broadcast among them.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// True for an address a station may have: not a group's, not all zeros.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self != Self::default()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bytes: Vec<u8> = text
            .split(':')
            .map(|part| match part.len() {
                2 => u8::from_str_radix(part, 16).ok().filter(|_| !part.starts_with('+')),
                _ => None,
            })
            .collect::<Option<_>>()
            .unwrap_or_default();
        bytes.try_into().map(Self).map_err(|_| format!("'{text}' is no MAC address: write 02:00:00:00:00:01"))
    }
}

/// What a link has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// Frames can pass.
    pub up: bool,
    /// Megabits a second; 0 while down.
    pub speed: u32,
    /// Both directions at once.
    pub full_duplex: bool,
}

/// How received flows spread over the queues.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RssConfig {
    /// The Toeplitz key.
    pub key: [u8; 40],
    /// Queue of each hash bucket; the family says how many buckets there are. Empty: round robin over
    /// all queues.
    pub table: Vec<u8>,
}

impl Default for RssConfig {
    /// The key of Microsoft's RSS verification suite, for which published hashes exist.
    fn default() -> Self {
        Self {
            key: [
                0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
                0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
                0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
            ],
            table: Vec::new(),
        }
    }
}

/// VLAN handling of a port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VlanConfig {
    /// Received tags are removed from the frame and handed up in the mbuf.
    pub strip: bool,
    /// Where given: tagged frames of other VLANs are dropped by the device.
    pub filter: Option<Vec<u16>>,
}

/// How a port is started.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Queue pairs: RX and TX queues of one core each.
    pub queues: u16,
    /// Descriptors of each RX ring.
    pub rx_depth: u16,
    /// Descriptors of each TX ring.
    pub tx_depth: u16,
    /// Largest payload of a frame, bytes, without Ethernet header, VLAN tag and FCS.
    pub mtu: u16,
    /// How received flows spread.
    pub rss: RssConfig,
    /// VLANs.
    pub vlan: VlanConfig,
    /// Receive whatever is on the wire.
    pub promiscuous: bool,
    /// Receive every multicast frame.
    pub all_multicast: bool,
    /// Queues can wake a sleeping core: costs one MSI-X vector each.
    pub rx_interrupts: bool,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            queues: 1,
            rx_depth: 1024,
            tx_depth: 512,
            mtu: 1500,
            rss: RssConfig::default(),
            vlan: VlanConfig::default(),
            promiscuous: false,
            all_multicast: false,
            rx_interrupts: false,
        }
    }
}

/// What a port can do in hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// Fills in IPv4, TCP, UDP and SCTP checksums, and checks them.
    pub checksum: bool,
    /// Segments TCP.
    pub tcp_segmentation: bool,
    /// Inserts and strips VLAN tags.
    pub vlan: bool,
    /// Spreads flows over queues by RSS.
    pub rss: bool,
    /// Buckets of the RSS table.
    pub rss_table: u16,
}

/// What a port is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Where: a PCI address, `null0`, ...
    pub name: String,
    /// The model.
    pub model: &'static str,
    /// Its own address.
    pub mac: MacAddr,
    /// Queue pairs at the most.
    pub max_queues: u16,
    /// Largest MTU.
    pub max_mtu: u16,
    /// Descriptors of a ring: least, most, and of what they are a multiple.
    pub depth: (u16, u16, u16),
    /// What it does in hardware.
    pub capabilities: Capabilities,
}

/// What the device itself has counted since the port was opened. Names in the docs are the 82576's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortStatistics {
    /// Good frames received (GPRC).
    pub rx_frames: u64,
    /// Their bytes, FCS included (GORC).
    pub rx_bytes: u64,
    /// Multicast among them (MPRC).
    pub rx_multicast: u64,
    /// Broadcast among them (BPRC).
    pub rx_broadcast: u64,
    /// Frames with a bad FCS (CRCERRS).
    pub rx_crc_errors: u64,
    /// Frames with another error: length, alignment, symbol, fragments, oversize.
    pub rx_errors: u64,
    /// Frames lost in the device because no descriptor was free (MPC and the queues' RQDPC).
    pub rx_missed: u64,
    /// Good frames sent (GPTC).
    pub tx_frames: u64,
    /// Their bytes, FCS included (GOTC).
    pub tx_bytes: u64,
    /// Multicast among them (MPTC).
    pub tx_multicast: u64,
    /// Broadcast among them (BPTC).
    pub tx_broadcast: u64,
    /// Frames not sent: collisions, late collisions, no carrier.
    pub tx_errors: u64,
}

/// Something a port has to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The link came up, went down, or changed its speed.
    Link(Link),
    /// A TX queue makes no progress though it has work: reset it with [`Port::recover`].
    TxHang {
        /// The queue.
        queue: u16,
    },
    /// The device reports a fault of its own (DMA, ECC): [`Port::recover`] resets it.
    DeviceFault,
    /// The device is gone.
    Removed,
}

/// The control side of one NIC port. Dropping it quiesces the device: no DMA afterwards.
pub trait Port: Send {
    /// What it is.
    fn info(&self) -> &PortInfo;

    /// Configures the device and brings up queues; each receives into buffers of `pool`.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for what the device cannot do, [`crate::Error::State`] where it is
    /// started already, timeouts and removal. Nothing is left running then.
    fn start(&mut self, config: &PortConfig, pool: &Mempool) -> Result<Vec<QueuePair>>;

    /// Stops all traffic. Queue pairs given out stay valid and move nothing any more; what their rings
    /// held is counted as flushed and its buffers go home when they are dropped.
    ///
    /// # Errors
    /// Timeouts and removal. The device does no DMA afterwards in any case.
    fn stop(&mut self) -> Result<()>;

    /// The link as it is now.
    fn link(&self) -> Link;

    /// What has happened since the last call. Call it ten times a second or at
    /// [`Port::wait_event`]'s return.
    fn events(&mut self) -> Vec<Event>;

    /// Sleeps until the device has something to tell, or `timeout` has passed; true in the first case.
    fn wait_event(&mut self, timeout: Duration) -> bool;

    /// The device's counters since the port was opened.
    fn statistics(&mut self) -> PortStatistics;

    /// Resets the device and brings the configuration and the queues up again, in place: queue pairs
    /// given out go on. What their rings held is counted as flushed.
    ///
    /// # Errors
    /// Timeouts and removal.
    fn recover(&mut self) -> Result<()>;

    /// Receive whatever is on the wire.
    ///
    /// # Errors
    /// Removal.
    fn set_promiscuous(&mut self, on: bool) -> Result<()>;

    /// Receive every multicast frame.
    ///
    /// # Errors
    /// Removal.
    fn set_all_multicast(&mut self, on: bool) -> Result<()>;

    /// Receive what is sent to `mac` too (station or group address).
    ///
    /// # Errors
    /// [`crate::Error::Setting`] where the device's filters are full.
    fn add_mac(&mut self, mac: MacAddr) -> Result<()>;

    /// No longer receive what is sent to `mac`.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] where it was never added, or is the port's own.
    fn remove_mac(&mut self, mac: MacAddr) -> Result<()>;

    /// Changes the spread of received flows while traffic runs.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for a table of the wrong length or with a queue that is not there.
    fn set_rss(&mut self, rss: &RssConfig) -> Result<()>;
}
