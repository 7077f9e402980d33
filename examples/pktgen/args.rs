//! The command line, checked.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use becket::dataplane::MAX_BURST;
use becket::dataplane::generator::{Flows, FrameSpec, Network, Rate, SIMPLE_IMIX, Transport, Vary};
use becket::driver::MacAddr;
use becket::pci::Bdf;
use clap::{Parser, ValueEnum};

const EXAMPLES: &str = "\
EXAMPLES
  What can I use, and how?
    pktgen
  What does the datapath itself cost? (no hardware, one core)
    pktgen --device null --mode tx --burst 32 --duration 3
    pktgen --device null --mode forward --burst 32 --duration 3
  Send and check a million frames over a loop in memory: loss, order, latency
    pktgen --device loop --mode txrx --count 1000000
  Fill a link with a thousand flows, as the wire counts
    pktgen --device 0000:01:00.0 --mode tx --rate 100% --flows 1000 --vary src-ip,src-port
  Two ports cabled together: every frame numbered, timed and looked for
    pktgen --device 0000:01:00.0 --device 0000:01:00.1 --mode txrx --rate 1mpps --duration 10
  Forward between two ports on two cores, two queues each, and keep a trace
    pktgen --device 0000:01:00.0 --device 0000:01:00.1 --mode forward --queues 2 --cores 2,3 \\
           --capture trace.pcapng
  Send a recorded trace again, at a tenth of the link
    pktgen --device 0000:01:00.0 --mode tx --pcap trace.pcapng --rate 10%

COUNTS
  Frame sizes include the 4 bytes of the FCS: 64 is Ethernet's smallest. Mpps are millions of frames a
  second. Gbit/s are bits on the wire: FCS, preamble and gap included, so that a full 10G link shows 10.
  IMIX is the simple one: 7 frames of 64 bytes (or what their headers take), 4 of 594, 1 of 1518.
  At the end every frame must be accounted for: generated = sent + drops, sent = on the wire + drops, and
  every buffer back in its pool. Where they do not add up, the exit code is 1.

EXIT CODES
  0  done, and the totals add up
  1  a device failed, or the totals do not add up
  2  the command line makes no sense";

/// Generates, checks, forwards and counts traffic, on NICs driven from user space.
#[derive(Parser, Debug)]
#[command(name = "pktgen", version, after_help = EXAMPLES, verbatim_doc_comment)]
pub struct Args {
    /// Port to use, again for each: a PCI address as 0000:01:00.0, 'null' (from and to nowhere) or 'loop'
    /// (receives what it sends). None: lists what there is
    #[arg(long = "device", value_name = "DEVICE")]
    pub devices: Vec<DeviceName>,

    /// What to do
    #[arg(long, value_enum, default_value_t = Mode::Tx)]
    pub mode: Mode,

    /// Frame size with FCS, 64 to 16000; or imix
    #[arg(long, default_value = "64")]
    pub size: Size,

    /// Frames handled at a time, 1 to 64
    #[arg(long, value_name = "N", default_value = "32", value_parser = burst)]
    pub burst: usize,

    /// Cores to work on, as 2,4-7: queues are dealt out to them. None: one worker on any core
    #[arg(long, value_name = "LIST", default_value = "")]
    pub cores: Cores,

    /// Queue pairs of each port
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub queues: u16,

    /// Rate of each port: 10mpps, 2.5gbps (on the wire) or 40% of the link. None: as fast as it goes
    #[arg(long)]
    pub rate: Option<Rate>,

    /// Flows, taken in turn
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub flows: u32,

    /// What tells flows apart: src-ip, dst-ip, src-port, dst-port, src-mac, dst-mac, vlan. Default: src-ip
    #[arg(long, value_name = "FIELDS")]
    pub vary: Option<Vary>,

    /// Destination MAC. Default: the next port's, where there are two; 02:00:00:00:00:02
    #[arg(long, value_name = "MAC")]
    pub dst_mac: Option<MacAddr>,

    /// Frames with a VLAN tag, 1 to 4094
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=4094))]
    pub vlan: Option<u16>,

    /// IPv6 instead of IPv4
    #[arg(long)]
    pub ipv6: bool,

    /// TCP instead of UDP
    #[arg(long)]
    pub tcp: bool,

    /// Number and timestamp frames in mode tx, look for such frames in mode rx. Mode txrx always does
    #[arg(long)]
    pub probes: bool,

    /// Send the frames of this pcap or pcapng file, over and over
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,

    /// Stop after so many seconds. None: at Ctrl-C
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<Seconds>,

    /// Stop after so many frames were sent, all ports together (modes tx and txrx)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Write every frame to this pcapng file
    #[arg(long, value_name = "FILE")]
    pub capture: Option<PathBuf>,

    /// Print one JSON object at the end; with =lines one more every second
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "end", value_name = "WHEN")]
    pub json: Option<Json>,

    /// Receive whatever is on the wire
    #[arg(long)]
    pub promiscuous: bool,

    /// Largest payload of a frame: 1500, or up to 9216 for jumbo frames
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(68..=9216))]
    pub mtu: u16,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// Send
    Tx,
    /// Receive
    Rx,
    /// Send numbered frames, and look for them
    Txrx,
    /// Send what one port receives on the other, untouched
    Forward,
    /// Send back what is received, with the MACs swapped
    Echo,
}

impl Mode {
    pub fn generates(self) -> bool {
        matches!(self, Self::Tx | Self::Txrx)
    }

    pub fn forwards(self) -> bool {
        matches!(self, Self::Forward | Self::Echo)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tx => "tx",
            Self::Rx => "rx",
            Self::Txrx => "txrx",
            Self::Forward => "forward",
            Self::Echo => "echo",
        })
    }
}

/// When to print JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Json {
    /// At the end
    End,
    /// Every second too
    Lines,
}

/// A port's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceName {
    Null,
    Loop,
    Pci(Bdf),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "null" => Ok(Self::Null),
            "loop" => Ok(Self::Loop),
            address => address.parse().map(Self::Pci).map_err(|_| {
                "write a PCI address as 0000:01:00.0, 'null' or 'loop'; pktgen alone lists what there is"
                    .to_owned()
            }),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Loop => f.write_str("loop"),
            Self::Pci(bdf) => bdf.fmt(f),
        }
    }
}

/// Frame sizes with FCS, in the order they are sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Size(pub Vec<u16>);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("imix") {
            return Ok(Self(SIMPLE_IMIX.to_vec()));
        }
        let size = text.parse().ok().filter(|size| (64..=16_000).contains(size));
        size.map(|size| Self(vec![size]))
            .ok_or_else(|| "write 64 to 16000 bytes, FCS included, or imix".to_owned())
    }
}

/// Cores, in the order named.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cores(pub Vec<usize>);

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut cores = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse::<usize>().ok().filter(|core| *core < 1024);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cores.extend(first..=last),
                _ => return Err(format!("'{part}' is no core: write 2 or 2,4-7, with cores below 1024")),
            }
        }
        let twice = cores.iter().enumerate().find(|(at, core)| cores[..*at].contains(core));
        match twice {
            Some((_, core)) => Err(format!("core {core} is named twice")),
            None => Ok(Self(cores)),
        }
    }
}

/// A time of at least a millisecond.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seconds(pub Duration);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('s').unwrap_or(text);
        let seconds = number.parse().ok().filter(|seconds| (0.001..=1e7).contains(seconds));
        let duration = seconds.map(|seconds| Self(Duration::from_secs_f64(seconds)));
        duration.ok_or_else(|| "write seconds, as 10 or 0.5".to_owned())
    }
}

fn burst(text: &str) -> Result<usize, String> {
    let n = text.parse().ok().filter(|n| (1..=MAX_BURST).contains(n));
    n.ok_or_else(|| format!("write 1 to {MAX_BURST} frames"))
}

impl Args {
    /// What no single argument can tell.
    ///
    /// # Errors
    /// A sentence that names the arguments.
    pub fn check(&self) -> Result<(), String> {
        let devices = self.devices.len();
        if self.mode == Mode::Forward && devices > 1 && devices % 2 == 1 {
            return Err(format!(
                "--mode forward pairs the devices: give 1 (to itself) or an even number, not {devices}"
            ));
        }
        for (at, device) in self.devices.iter().enumerate() {
            if matches!(device, DeviceName::Pci(_)) && self.devices[..at].contains(device) {
                return Err(format!("--device {device} is given twice"));
            }
        }
        if self.cores.0.len() > devices * usize::from(self.queues) {
            let (cores, queues) = (self.cores.0.len(), devices * usize::from(self.queues));
            return Err(format!(
                "--cores names {cores} cores for {queues} queue pairs: name fewer, or raise --queues"
            ));
        }
        self.check_frames()?;
        self.flows().map(|_| ())
    }

    fn check_frames(&self) -> Result<(), String> {
        let makes_frames = [
            (self.count.is_some(), "--count"),
            (self.rate.is_some(), "--rate"),
            (self.pcap.is_some(), "--pcap"),
            (self.flows > 1, "--flows"),
        ];
        if let Some((_, name)) = makes_frames.iter().find(|(given, _)| *given && !self.mode.generates()) {
            return Err(format!(
                "{name} is for modes tx and txrx; --mode {} sends only what it receives",
                self.mode
            ));
        }
        if self.pcap.is_some() && (self.mode == Mode::Txrx || self.probes || self.flows > 1) {
            return Err(
                "--pcap sends frames as they are: no --mode txrx, --probes or --flows with it".to_owned()
            );
        }
        if self.probes && self.mode.forwards() {
            return Err(format!("--probes is for modes tx and rx; --mode {} looks into no frame", self.mode));
        }
        let tag = if self.vlan.is_some() { 4 } else { 0 };
        let most = self.mtu + 18 + tag;
        match self.size.0.iter().find(|size| **size > most) {
            Some(size) if self.pcap.is_none() => {
                Err(format!("--size {size} needs --mtu {} or more", size - 18 - tag))
            }
            _ => Ok(()),
        }
    }

    /// The flows.
    ///
    /// # Errors
    /// A sentence: there are no such flows.
    pub fn flows(&self) -> Result<Flows, String> {
        let default = if self.flows > 1 { Vary::SRC_IP } else { Vary::none() };
        let vary = self.vary.unwrap_or(default);
        if vary.any(Vary::VLAN) && self.vlan.is_none() {
            return Err("--vary vlan needs frames with a tag: add --vlan 1".to_owned());
        }
        Flows::new(self.flows, vary).map_err(|error| format!("--flows: {error}"))
    }

    /// The frames to generate, in their order.
    pub fn frames(&self, src_mac: [u8; 6], dst_mac: [u8; 6]) -> Vec<FrameSpec> {
        let mut spec = FrameSpec { src_mac, dst_mac, vlan: self.vlan, ..FrameSpec::default() };
        if self.ipv6 {
            // RFC 5180, section 8: the range set aside for benchmarks.
            let address = |last| [0x2001, 2, 0, 0, 0, 0, 0, last].into();
            spec.network = Network::V6(address(1), address(2));
        }
        if self.tcp {
            spec.transport = Transport::Tcp;
        }
        // In a mix, the smallest grow to what their headers take.
        let least = if self.size.0.len() > 1 { spec.least_len(self.numbers()) } else { 0 };
        self.size.0.iter().map(|size| FrameSpec { len: (size - 4).max(least), ..spec.clone() }).collect()
    }

    /// True where sent frames carry probes.
    pub fn numbers(&self) -> bool {
        self.probes || self.mode == Mode::Txrx
    }

    /// The longest frame that a port shall send or receive, bytes without FCS.
    pub fn longest(&self) -> u16 {
        self.mtu + 22
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
