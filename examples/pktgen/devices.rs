//! The ports: opened, started, stopped; and the list of those there are.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use becket::dataplane::{Mempool, PoolConfig};
use becket::driver::{self, Link, MacAddr, Port, PortConfig, PortStatistics, QueuePair, loopback, null};
use becket::pci::sysfs::Sysfs;
use becket::pci::vfio::Vfio;
use becket::pci::{IovaSpace, PageSize, Sharing};

use crate::Failure;
use crate::args::{Args, DeviceName};
use crate::signal;

/// Frames between the ends of a loop.
const LOOP_DEPTH: usize = 512;
/// Buffers that one core's cache and bursts may hold beside what is in rings.
const PER_CORE: u32 = 768;
/// How long a link may take to come up.
const LINK_WAIT: Duration = Duration::from_secs(10);

/// A port, and what it is called.
pub struct Device {
    pub name: String,
    pub port: Option<Box<dyn Port>>,
    kind: DeviceName,
}

/// All ports of a run, and the pool they share.
pub struct Devices {
    pub all: Vec<Device>,
    pub pool: Mempool,
    _vfio: Option<Arc<Vfio>>,
}

impl Devices {
    /// Opens the ports. Nothing moves yet.
    pub fn open(args: &Args) -> Result<Self, Failure> {
        let is_pci = |name: &DeviceName| matches!(name, DeviceName::Pci(_));
        let vfio = if args.devices.iter().any(is_pci) { Some(Vfio::new()?) } else { None };
        let mut all = Vec::new();
        for (at, &kind) in args.devices.iter().enumerate() {
            let port = match (kind, &vfio) {
                (DeviceName::Pci(bdf), Some(vfio)) => Some(driver::open(vfio.open(bdf)?)?),
                _ => None,
            };
            let name = if is_pci(&kind) { kind.to_string() } else { format!("{kind}{at}") };
            if let Some(port) = &port
                && args.queues > port.info().max_queues
            {
                let most = port.info().max_queues;
                return Err(Failure::Usage(format!("--queues {}: {name} has 1 to {most}", args.queues)));
            }
            all.push(Device { name, port, kind });
        }
        let space = vfio.as_ref().map_or_else(IovaSpace::software, |vfio| vfio.iova_space().clone());
        let pool = Mempool::new(&space, pool_config(args))?;
        if vfio.is_some() && pool.page() == PageSize::Small4K {
            eprintln!(
                "no huge pages are free, so buffers have 4 KiB pages: `sysctl vm.nr_hugepages=64` is faster"
            );
        }
        Ok(Self { all, pool, _vfio: vfio })
    }

    /// Starts the ports: the queue pairs of each.
    pub fn start(&mut self, args: &Args) -> Result<Vec<Vec<QueuePair>>, Failure> {
        let mut pairs = Vec::new();
        for device in &mut self.all {
            pairs.push(match (device.kind, &mut device.port) {
                (_, Some(port)) => port.start(&port_config(args), &self.pool)?,
                (DeviceName::Loop, _) => loopback::open(args.queues, LOOP_DEPTH),
                _ => null::open(args.queues, args.size.0[0] - 4),
            });
        }
        self.wait_for_links()?;
        Ok(pairs)
    }

    fn wait_for_links(&self) -> Result<(), Failure> {
        let start = Instant::now();
        let down = || self.all.iter().find(|device| !device.link().up);
        while let Some(device) = down() {
            if start.elapsed() > LINK_WAIT || signal::stopped() {
                let seconds = LINK_WAIT.as_secs();
                return Err(Failure::Run(format!(
                    "{}: no link after {seconds} s: plug a cable in, or bring the other end up",
                    device.name
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Stops the ports that can be stopped; the first error.
    pub fn stop(&mut self) -> Result<(), Failure> {
        let ports = self.all.iter_mut().filter_map(|device| device.port.as_mut());
        // All of them, whatever the first says.
        let stopped: Vec<_> = ports.map(|port| port.stop()).collect();
        Ok(stopped.into_iter().collect::<driver::Result<()>>()?)
    }

    /// Where the frames of a port go by default: to the port beside it.
    pub fn peer_mac(&self, at: usize) -> MacAddr {
        let peer = self.all.get(at ^ 1).and_then(|device| device.port.as_ref());
        peer.map_or(MacAddr([2, 0, 0, 0, 0, 2]), |port| port.info().mac)
    }
}

impl Device {
    pub fn mac(&self) -> MacAddr {
        self.port.as_ref().map_or(MacAddr([2, 0, 0, 0, 0, 1]), |port| port.info().mac)
    }

    /// The link. Where there is no device it is up, and of no speed.
    pub fn link(&self) -> Link {
        self.port.as_ref().map_or(Link { up: true, speed: 0, full_duplex: true }, |port| port.link())
    }

    pub fn statistics(&mut self) -> Option<PortStatistics> {
        self.port.as_mut().map(|port| port.statistics())
    }
}

fn port_config(args: &Args) -> PortConfig {
    PortConfig { queues: args.queues, mtu: args.mtu, promiscuous: args.promiscuous, ..PortConfig::default() }
}

/// As many buffers as rings, cores and bursts can hold at once, and some to spare.
fn pool_config(args: &Args) -> PoolConfig {
    let config = PortConfig::default();
    let pairs = (args.devices.len() * usize::from(args.queues)) as u32;
    let rings = u32::from(config.rx_depth) + u32::from(config.tx_depth);
    let capacity = (pairs * (rings + PER_CORE)).max(2048).next_power_of_two();
    let room = args.longest().max(2048).next_multiple_of(64);
    PoolConfig { capacity, room, sharing: Sharing::Private }
}

/// What could be driven, and what to type.
pub fn list() -> String {
    let sysfs = Sysfs::default();
    let functions = sysfs.functions().unwrap_or_default();
    let program = std::env::args().next().unwrap_or_else(|| "pktgen".to_owned());
    let mut text = String::from("No --device is given. There is:\n\n");
    let mut ready = Vec::new();
    for function in functions.iter().filter(|function| function.is_network()) {
        let (bdf, ids) = (function.bdf, function.ids);
        let Some(model) = driver::supported(ids.vendor, ids.device) else { continue };
        let missing = sysfs.readiness(bdf).unwrap_or_default();
        let _ = writeln!(text, "  {bdf}  {model}{}", if missing.is_empty() { ": ready" } else { "" });
        for obstacle in &missing {
            let _ = writeln!(text, "      {obstacle}: {}", obstacle.remedy());
        }
        if missing.is_empty() {
            ready.push(bdf.to_string());
        }
    }
    text += "  null          frames from nowhere, to nowhere: what the datapath itself costs\n";
    text += "  loop          receives what it sends\n\nTry:\n";
    for bdf in &ready {
        let _ = writeln!(text, "  {program} --device {bdf} --mode tx --rate 10% --duration 10");
    }
    let _ = writeln!(text, "  {program} --device loop --mode txrx --count 1000000");
    let _ = writeln!(text, "  {program} --device null --mode forward --duration 3");
    let _ = writeln!(text, "\n{program} --help explains the rest.");
    text
}
