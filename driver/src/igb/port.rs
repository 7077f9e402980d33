//! Start, stop and all that a running port is asked (82576EB datasheet 4.5).

use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::Mempool;
use pci::Interrupt;
use pci::interrupt::wait_any;

use super::filter::{self, Modes};
use super::gate::Gate;
use super::hw::regs::*;
use super::irq::{self, Vectors};
use super::model::RSS_TABLE;
use super::queue::QueueRegs;
use super::recover::HangWatch;
use super::rx::{IgbRx, RxQueueConfig};
use super::tx::{IgbTx, TxQueueConfig};
use super::{Igb, OVERHEAD, init, rss, stats};
use crate::{
    Error, Event, Link, MacAddr, Port, PortConfig, PortInfo, PortStatistics, QueuePair, Result, RssConfig,
    Rx, Tx, VlanConfig,
};

/// Smallest MTU: IPv4's (RFC 791).
const LEAST_MTU: u16 = 68;
/// How often a port that sleeps looks at the link itself: an interrupt may get lost.
const LOOK: Duration = Duration::from_millis(100);

/// What a started port has, and needs to come up again after a reset.
pub(super) struct Running {
    pub(super) queues: Vec<QueueGates>,
    pub(super) vectors: Vectors,
    pub(super) watch: HangWatch,
    modes: Modes,
    mtu: u16,
    vlan: VlanConfig,
    key: [u8; 40],
    table: [u8; RSS_TABLE],
}

/// The gates of one queue pair.
pub(super) struct QueueGates {
    pub(super) rx: Arc<Gate>,
    pub(super) tx: Arc<Gate>,
}

impl Running {
    pub(super) fn count(&self) -> u16 {
        self.queues.len() as u16
    }

    pub(super) fn gates(&self) -> impl Iterator<Item = &Gate> {
        self.queues.iter().flat_map(|queue| [&*queue.rx, &*queue.tx])
    }
}

impl Igb {
    fn check(&self, config: &PortConfig) -> Result<[u8; RSS_TABLE]> {
        let setting = |what: String, allowed: String| Err(self.device.setting(what, allowed));
        let PortConfig { queues, mtu, .. } = *config;
        if queues == 0 || queues > self.info.max_queues {
            return setting(format!("{queues} queue pairs"), format!("1 to {}", self.info.max_queues));
        }
        if !(LEAST_MTU..=self.info.max_mtu).contains(&mtu) {
            return setting(format!("MTU {mtu}"), format!("{LEAST_MTU} to {}", self.info.max_mtu));
        }
        let (least, most, step) = self.info.depth;
        for (name, depth) in [("RX", config.rx_depth), ("TX", config.tx_depth)] {
            if !(least..=most).contains(&depth) || !depth.is_multiple_of(step) {
                let allowed = format!("{least} to {most} in steps of {step}");
                return setting(format!("{name} ring of {depth} descriptors"), allowed);
            }
        }
        filter::check_vlans(&self.device, &config.vlan)?;
        rss::table(&self.device, &config.rss, queues)
    }

    /// Everything but the queues, for a device that was just reset.
    pub(super) fn configure(&mut self) -> Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        let (device, generation) = (&self.device, self.model.generation);
        self.pristine = false;
        self.addresses.program_all(device);
        filter::program_vlans(device, generation, &running.vlan, self.info.max_queues);
        rss::program(device, &running.key, &running.table);
        rss::enable(device);
        // 8.10, RXCSUM.PCSD: the hash takes the place of the fragment checksum, the other checksums stay.
        device.write(RXCSUM, rxcsum::IPOFLD | rxcsum::TUOFLD | rxcsum::CRCOFLD | rxcsum::PCSD);
        device.write(RLPML, u32::from(running.mtu + OVERHEAD));
        device.modify(TCTL_EXT, tctl_ext::COLD, tctl_ext::COLD_63);
        device.write(TIPG, tipg::RECOMMENDED);
        running.vectors.program(device, generation);
        device.modify(CTRL_EXT, 0, ctrl_ext::DRV_LOAD);
        self.function.set_bus_master(true)?;
        // 8.10.10, 8.12.13: a queue's enable bit stays zero while the receiver or the transmitter is off, so
        // these come first. Frames that arrive before their queue is enabled are dropped.
        device.write(RCTL, rctl::RXEN | rctl::LPE | rctl::BAM | rctl::SECRC | running.modes.rctl());
        device.modify(TCTL, tctl::CT, tctl::EN | tctl::PSP | tctl::RTLC | tctl::CT_15);
        device.present()
    }

    fn create(&self, config: &PortConfig, pool: &Mempool) -> Result<Vec<(IgbRx, IgbTx)>> {
        let Some(running) = &self.running else { return Ok(Vec::new()) };
        let (bdf, space) = (self.device.bdf, self.function.iova_space());
        let mut cache = pool.cache();
        let buffer_len = cache.take().map_or(0, |mbuf| mbuf.room());
        let max_frame = u32::from(config.mtu + OVERHEAD - 4);
        // Ports are told apart by where they are: bus, device and function fit 16 bits.
        let port = u16::from(bdf.bus) << 8 | u16::from(bdf.device) << 3 | u16::from(bdf.function);
        let pair = |(index, gates): (u16, &QueueGates)| {
            let rx_config = RxQueueConfig {
                index,
                depth: config.rx_depth,
                buffer_len,
                strip_vlan: config.vlan.strip,
                max_frame,
                drop_when_full: config.queues > 1,
                loopback_vlan_swapped: self.model.generation == super::model::Generation::I350,
            };
            let tx_config = TxQueueConfig { index, depth: config.tx_depth, max_frame };
            let bar = || self.device.bar.clone();
            let regs = QueueRegs::pf_rx(bar(), index);
            let mut rx = IgbRx::new(regs, space, rx_config, gates.rx.clone(), port, bdf)?;
            let mut tx = IgbTx::new(QueueRegs::pf_tx(bar(), index), space, tx_config, gates.tx.clone(), bdf)?;
            gates.rx.run();
            rx.start(&mut cache)?;
            gates.tx.run();
            tx.start()?;
            Ok((rx, tx))
        };
        (0..).zip(&running.queues).map(pair).collect()
    }

    fn bring_up(
        &mut self,
        config: &PortConfig,
        table: [u8; RSS_TABLE],
        pool: &Mempool,
    ) -> Result<Vec<QueuePair>> {
        if !self.pristine {
            init::reset(&self.device, self.model)?;
            self.medium.bring_up(&self.device, self.model.generation)?;
        }
        let wanted = if config.rx_interrupts { config.queues } else { 0 };
        let (vectors, interrupts) = Vectors::enable(&*self.function, &self.device, wanted)?;
        let gates = || QueueGates { rx: Arc::new(Gate::new()), tx: Arc::new(Gate::new()) };
        self.running = Some(Running {
            queues: (0..config.queues).map(|_| gates()).collect(),
            vectors,
            watch: HangWatch::new(config.queues),
            modes: Modes {
                promiscuous: config.promiscuous,
                all_multicast: config.all_multicast,
                vlan_filter: config.vlan.filter.is_some(),
            },
            mtu: config.mtu,
            vlan: config.vlan.clone(),
            key: config.rss.key,
            table,
        });
        self.configure()?;
        let queues = self.create(config, pool)?;
        Ok(self.pairs(queues, interrupts))
    }

    fn pairs(&self, queues: Vec<(IgbRx, IgbTx)>, interrupts: Vec<Interrupt>) -> Vec<QueuePair> {
        let mut interrupts = interrupts.into_iter().map(|vector| irq::rx_interrupt(&self.device, vector));
        (0..)
            .zip(queues)
            .map(|(index, (rx, tx))| QueuePair {
                index,
                rx: Rx::Igb(rx),
                tx: Tx::Igb(tx),
                interrupt: interrupts.next(),
            })
            .collect()
    }

    /// Ends all DMA, then tells the queues; the device is left unconfigured. The first error is returned,
    /// the rest is done all the same.
    pub(super) fn halt(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        init::mask_interrupts(&self.device);
        let mut result = self.disable_queues(running.count());
        result = result.and(init::stop_master(&self.device));
        stats::harvest(&self.device, running.count(), &mut self.statistics);
        if matches!(result, Err(Error::Timeout { .. })) {
            let _ = init::reset(&self.device, self.model);
        }
        // Whatever the device thinks, it reaches no memory from here on.
        result = result.and(init::silence(&*self.function));
        running.gates().for_each(Gate::stop);
        running.vectors.wake_all();
        self.pristine = false;
        result.and(self.function.disable_interrupts().map_err(Error::from))
    }

    /// 4.5, disabling of queues. All are told, also where one does not stop.
    fn disable_queues(&self, count: u16) -> Result<()> {
        let (bar, bdf) = (&self.device.bar, self.device.bdf);
        let mut result = Ok(());
        for queue in 0..count {
            result = result.and(
                QueueRegs::pf_tx(bar.clone(), queue).disable(bdf, "disabling a TX queue (TXDCTL.ENABLE)"),
            );
            result = result.and(
                QueueRegs::pf_rx(bar.clone(), queue).disable(bdf, "disabling an RX queue (RXDCTL.ENABLE)"),
            );
        }
        result
    }

    fn set_modes(&mut self, change: impl FnOnce(&mut Modes)) -> Result<()> {
        let what = "receive modes: start the port first, with them in its configuration";
        let running = self.running.as_mut().ok_or(Error::State { bdf: self.device.bdf, what })?;
        change(&mut running.modes);
        running.modes.apply(&self.device)
    }

    /// True where [`Port::events`] would tell something that no interrupt may have told.
    fn has_news(&self) -> bool {
        !self.told_removal && (self.link() != self.told_link || self.device.is_gone())
    }

    /// True once the device is gone, or the kernel wants it back.
    fn is_lost(&self) -> bool {
        self.device.is_gone() || self.function.notices().is_some_and(|notices| notices.removal.take() > 0)
    }

    /// Told once: the link that went down with it is part of that news, and so are queues that wait.
    fn tell_removal(&mut self) -> Vec<Event> {
        self.told_link = Link::default();
        if let Some(running) = &self.running {
            running.vectors.wake_all();
        }
        if std::mem::replace(&mut self.told_removal, true) { Vec::new() } else { vec![Event::Removed] }
    }

    /// Sleeps until an interrupt or a notice of the kernel comes; true where one did.
    fn sleep(&self, limit: Duration) -> bool {
        let misc = self.running.as_ref().and_then(|running| running.vectors.misc.as_ref());
        let notices = self.function.notices().map(|notices| [&notices.removal, &notices.error]);
        let sources: Vec<&Interrupt> = misc.into_iter().chain(notices.into_iter().flatten()).collect();
        // A device whose removal was told has nothing more to tell.
        if sources.is_empty() || self.told_removal {
            std::thread::sleep(limit);
            return false;
        }
        // Notices keep their count for events. Where poll(2) fails, time must pass all the same.
        let fired = wait_any(&sources, limit).unwrap_or_else(|_| {
            std::thread::sleep(limit);
            false
        });
        misc.map(Interrupt::take);
        fired
    }
}

impl Port for Igb {
    fn info(&self) -> &PortInfo {
        &self.info
    }

    fn start(&mut self, config: &PortConfig, pool: &Mempool) -> Result<Vec<QueuePair>> {
        if self.running.is_some() {
            return Err(Error::State { bdf: self.device.bdf, what: "the port is started: stop it first" });
        }
        if !Arc::ptr_eq(pool.space(), self.function.iova_space()) {
            let what =
                "give the port a pool of its own function's I/O address space (`function.iova_space()`)";
            return Err(Error::State { bdf: self.device.bdf, what });
        }
        self.device.present()?;
        let table = self.check(config)?;
        let started = self.bring_up(config, table, pool);
        if started.is_err() {
            let _ = self.halt();
            let _ = self.function.disable_interrupts();
            let _ = init::silence(&*self.function);
        }
        started
    }

    fn stop(&mut self) -> Result<()> {
        self.halt()
    }

    fn link(&self) -> Link {
        self.medium.link(&self.device)
    }

    fn events(&mut self) -> Vec<Event> {
        if self.told_removal || self.is_lost() {
            return self.tell_removal();
        }
        let mut events = Vec::new();
        // Causes first: what comes after this read fires, or is seen in the registers below.
        let faults = self.take_faults();
        let link = self.link();
        if std::mem::replace(&mut self.told_link, link) != link {
            events.push(Event::Link(link));
        }
        if faults {
            events.push(Event::DeviceFault);
        }
        events.extend(self.hung_queues(link).into_iter().map(|queue| Event::TxHang { queue }));
        events
    }

    fn wait_event(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if self.has_news() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if self.sleep(left.min(LOOK)) {
                return true;
            }
        }
    }

    fn statistics(&mut self) -> PortStatistics {
        let queues = self.running.as_ref().map_or(0, Running::count);
        stats::harvest(&self.device, queues, &mut self.statistics);
        self.statistics
    }

    fn recover(&mut self) -> Result<()> {
        self.recover_device()
    }

    fn set_promiscuous(&mut self, on: bool) -> Result<()> {
        self.set_modes(|modes| modes.promiscuous = on)
    }

    fn set_all_multicast(&mut self, on: bool) -> Result<()> {
        self.set_modes(|modes| modes.all_multicast = on)
    }

    fn add_mac(&mut self, mac: MacAddr) -> Result<()> {
        self.addresses.add(&self.device, mac)
    }

    fn remove_mac(&mut self, mac: MacAddr) -> Result<()> {
        self.addresses.remove(&self.device, mac)
    }

    fn set_rss(&mut self, config: &RssConfig) -> Result<()> {
        let what = "RSS: start the port first, with it in its configuration";
        let running = self.running.as_mut().ok_or(Error::State { bdf: self.device.bdf, what })?;
        let table = rss::table(&self.device, config, running.count())?;
        self.device.present()?;
        rss::program(&self.device, &config.key, &table);
        (running.key, running.table) = (config.key, table);
        Ok(())
    }
}
