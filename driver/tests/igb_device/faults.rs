//! Devices that hang, lie or vanish: an error in time that says what and why, and nothing left running.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use driver::igb::Igb;
use driver::igb::hw::regs::*;
use driver::{Error, Event, Link, Port, PortConfig, RssConfig, VlanConfig};
use pci::qtest::{Faulty, Machine};
use pci::{Bar, Bdf, Function, Interrupt, IovaSpace, Notices};

use crate::support::*;

fn faulty() -> (Machine, Arc<Faulty>) {
    let machine = machine();
    let nic = Arc::new(Faulty::new(machine.function(0)));
    (machine, nic)
}

/// Opens, and gives the error.
fn refused(nic: Arc<dyn Function>) -> Error {
    let start = Instant::now();
    let error = Igb::open(nic).err().expect("it does not open");
    assert!(start.elapsed() < PATIENCE, "{error} took {:?}", start.elapsed());
    error
}

fn assert_timeout(error: &Error, of: &str) {
    assert!(matches!(error, Error::Timeout { what, .. } if what.contains(of)), "{error}");
}

fn small() -> PortConfig {
    PortConfig { queues: 2, rx_depth: 64, tx_depth: 64, rx_interrupts: true, ..PortConfig::default() }
}

#[test]
fn a_wait_that_never_ends_is_an_error_that_names_it() {
    let hangs = [
        (CTRL, ctrl::RST, ctrl::RST, "CTRL.RST"),
        (MDIC, mdic::READY, 0, "MDIC.R"),
        (MDIC, mdic::ERROR, mdic::ERROR, "MDIC.E"),
        (EERD, eerd::DONE, 0, "EERD.DONE"),
        (SWSM, swsm::SWESMBI, 0, "SWSM.SWESMBI"),
        (SW_FW_SYNC, 0xffff_0000, 0xffff_0000, "firmware"),
    ];
    for (register, mask, value, name) in hangs {
        let (_machine, nic) = faulty();
        nic.stick((0, register.offset), mask, if value == 0xffff_0000 { 0x7fff_0000 } else { value });
        assert_timeout(&refused(nic), name);
    }
}

#[test]
fn what_another_driver_left_behind_is_no_obstacle() {
    let (_machine, nic) = faulty();
    let bar = nic.bar(0).unwrap();
    nic.set_bus_master(true).unwrap();
    bar.write32(RCTL.offset, rctl::RXEN);
    bar.write32(EIMS.offset, u32::MAX);
    // A bus master that never comes to rest is ended by the reset.
    nic.stick((0, STATUS.offset), status::MASTER_ENABLE, status::MASTER_ENABLE);
    // Semaphores that a driver died with outlive a reset: the PHY's, until it is overwritten, ...
    let held = Arc::new(AtomicU32::new(1 << 1));
    let (read, written) = (held.clone(), held.clone());
    nic.on_read(move |at, value| if at == (0, SW_FW_SYNC.offset) { read.load(Relaxed) } else { value });
    nic.on_write(move |at, value| {
        if at == (0, SW_FW_SYNC.offset) {
            written.store(value, Relaxed);
        }
        Some(value)
    });
    // ... and the one between drivers.
    nic.stick((0, SWSM.offset), swsm::SMBI, swsm::SMBI);
    let port = Igb::open(nic.clone()).unwrap();
    assert_eq!(held.load(Relaxed), 0, "given back");
    assert_eq!(bar.read32(RCTL.offset) & rctl::RXEN, 0);
    let mut command = [0; 2];
    nic.read_config(pci::config::COMMAND, &mut command).unwrap();
    assert_eq!(u16::from_le_bytes(command) & pci::config::COMMAND_BUS_MASTER, 0);
    drop(port);
}

#[test]
fn a_damaged_nvm_is_refused() {
    let (_machine, nic) = faulty();
    nic.on_read(|at, value| if at == (0, EERD.offset) { value ^ 1 << 20 } else { value });
    let error = refused(nic);
    assert!(matches!(&error, Error::Nvm { what, .. } if what.contains("checksum")), "{error}");
    for (low, high) in [(0, rah::AV), (0x0000_0001, rah::AV), (0x1234_5602, 0), (u32::MAX, u32::MAX)] {
        let (_machine, nic) = faulty();
        nic.stick((0, RAL.at(0)), u32::MAX, low);
        nic.stick((0, RAH.at(0)), u32::MAX, high);
        let error = refused(nic);
        assert!(matches!(&error, Error::Nvm { what, .. } if what.contains("MAC address")), "{error}");
    }
}

#[test]
fn a_removal_at_any_moment_of_open_and_start_ends_in_an_error() {
    let (machine, nic) = faulty();
    let pool = dataplane::Mempool::new(
        machine.iova_space(),
        dataplane::PoolConfig { capacity: 512, ..dataplane::PoolConfig::default() },
    );
    let pool = pool.unwrap();
    let idle = (machine.iova_space().mappings(), pool.available());
    let (mut accesses, mut opened) = (0, 0);
    loop {
        nic.heal();
        nic.remove_after(accesses);
        let start = Instant::now();
        let mut port = Igb::open(nic.clone());
        let queues = match &mut port {
            Ok(port) => {
                opened += 1;
                port.start(&small(), &pool)
            }
            Err(_) => Err(Error::Removed { bdf: nic.bdf() }),
        };
        let done = queues.is_ok() && port.as_mut().unwrap().stop().is_ok();
        drop((queues, port));
        assert!(start.elapsed() < PATIENCE, "{accesses} accesses: {:?}", start.elapsed());
        assert_eq!((machine.iova_space().mappings(), pool.available()), idle, "{accesses} accesses");
        if done {
            break;
        }
        accesses += 97;
    }
    assert!(opened > 3 && accesses > 1000, "{opened} opens, {accesses} accesses");
}

#[test]
fn a_removal_under_traffic_is_told_once_and_frees_everything() {
    let (mut bench, mut served) = Bench::started(&small());
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 64)]), [1]);
    assert!(served.send(0, &frame(BROADCAST, 1, 64)));
    bench.port.events();
    let before = bench.port.statistics();
    bench.machine.remove(0).unwrap();
    assert!(bench.port.wait_event(PATIENCE));
    assert_eq!(bench.port.events(), [Event::Removed]);
    assert_eq!(bench.port.events(), []);
    assert!(!bench.port.wait_event(Duration::from_millis(10)));
    assert_eq!(bench.port.link(), Link::default());
    assert_eq!(bench.port.statistics(), before);
    assert!(served.poll().is_empty());
    served.send(0, &frame(BROADCAST, 1, 64));
    let removed = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Removed { .. }), "{error}");
    };
    removed(bench.port.set_promiscuous(true));
    removed(bench.port.add_mac(STRANGER));
    removed(bench.port.set_rss(&RssConfig::default()));
    removed(bench.port.recover());
    removed(bench.port.stop());
    removed(bench.port.start(&small(), &bench.pool).map(drop));
    drop(served);
    assert_eq!(bench.pool.available(), bench.pool.capacity());
    let Bench { port, nic, machine, .. } = bench;
    drop((port, nic));
    let error = refused(machine.function(0));
    assert!(matches!(error, Error::Removed { .. } | Error::Pci(pci::Error::Removed { .. })), "{error}");
}

#[test]
fn settings_that_the_device_cannot_have_are_refused_with_those_it_can() {
    let mut bench = Bench::open();
    let config = PortConfig::default;
    let vlan = |filter| VlanConfig { strip: false, filter: Some(filter) };
    let rss = |table| RssConfig { table, ..RssConfig::default() };
    let cases = [
        (PortConfig { queues: 0, ..config() }, "1 to 16"),
        (PortConfig { queues: 17, ..config() }, "1 to 16"),
        (PortConfig { mtu: 67, ..config() }, "68 to 9706"),
        (PortConfig { mtu: 9707, ..config() }, "68 to 9706"),
        (PortConfig { mtu: 65_535, ..config() }, "68 to 9706"),
        (PortConfig { rx_depth: 24, ..config() }, "32 to 4096"),
        (PortConfig { tx_depth: 8192, ..config() }, "32 to 4096"),
        (PortConfig { tx_depth: 100, ..config() }, "steps of 8"),
        (PortConfig { rss: rss(vec![0; 127]), ..config() }, "128 entries"),
        (PortConfig { rss: rss(vec![1; 128]), ..config() }, "queues 0 to 0"),
        (PortConfig { vlan: vlan(vec![1, 4095]), ..config() }, "0 to 4094"),
    ];
    for (config, allows) in cases {
        let error = bench.port.start(&config, &bench.pool).err().unwrap();
        assert!(matches!(&error, Error::Setting { allowed, .. } if allowed.contains(allows)), "{error}");
        assert!(!bench.is_master());
    }
    // None of them has left a trace.
    let mut served = bench.start(&config());
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 64)]), [1]);
    let error = bench.port.start(&config(), &bench.pool).err().unwrap();
    assert!(matches!(error, Error::State { .. }), "{error}");
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 2, 64)]), [2]);
}

#[test]
fn a_queue_that_does_not_come_up_fails_the_start_and_the_next_one_works() {
    let mut bench = Bench::open();
    let idle = (bench.machine.iova_space().mappings(), bench.pool.available());
    for block in [0xc028, 0xe028] {
        // Queue 1's: queue 0 runs by then.
        bench.nic.stick((0, block + 0x40), 1 << 25, 0);
        let error = bench.port.start(&small(), &bench.pool).err().unwrap();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        bench.nic.heal();
        assert!(!bench.is_master());
        assert_eq!(bench.registers().read32(RCTL.offset) & rctl::RXEN, 0);
        assert_eq!((bench.machine.iova_space().mappings(), bench.pool.available()), idle);
    }
    let mut served = bench.start(&small());
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 64)]), [1]);
}

#[test]
fn a_pool_that_cannot_be_used_fails_the_start() {
    let mut bench = Bench::open();
    let config = dataplane::PoolConfig { capacity: 64, room: 512, ..dataplane::PoolConfig::default() };
    let pool = dataplane::Mempool::new(bench.machine.iova_space(), config).unwrap();
    let error = bench.port.start(&PortConfig::default(), &pool).err().unwrap();
    assert!(matches!(&error, Error::Setting { allowed, .. } if allowed.contains("1024")), "{error}");
    assert!(!bench.is_master());
}

#[test]
fn a_stop_that_the_device_does_not_obey_resets_it() {
    let (mut bench, served) = Bench::started(&PortConfig::default());
    bench.nic.stick((0, STATUS.offset), status::MASTER_ENABLE, status::MASTER_ENABLE);
    let resets = bench.nic.writes((0, GCR.offset));
    assert_timeout(&bench.port.stop().unwrap_err(), "Master");
    assert_eq!(bench.nic.writes((0, GCR.offset)), resets + 1);
    assert!(!bench.is_master());
    bench.nic.heal();
    drop(served);
    let mut served = bench.start(&PortConfig::default());
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 64)]), [1]);
}

#[test]
fn whatever_registers_answer_nothing_panics_and_everything_ends() {
    for seed in 1..=3u64 {
        let mut bench = Bench::open();
        let numbers = AtomicU64::new(seed);
        bench.nic.on_read(move |_, _| {
            let step = |n: u64| Some(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed));
            let old = numbers.fetch_update(Relaxed, Relaxed, step);
            (old.unwrap() >> 32) as u32
        });
        for _ in 0..3 {
            let mut queues = bench.port.start(&small(), &bench.pool);
            bench.port.events();
            bench.port.wait_event(Duration::from_millis(1));
            bench.port.statistics();
            let _ = bench.port.add_mac(STRANGER);
            let _ = bench.port.recover();
            bench.port.events();
            let _ = bench.port.stop();
            if let Ok(queues) = &mut queues {
                queues.clear();
            }
        }
        bench.nic.heal();
        let mut served = bench.start(&small());
        assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 64)]), [1], "seed {seed}");
    }
}

/// A function that says it is another device, or has notices of a kernel.
struct Disguised {
    inner: Arc<Faulty>,
    device: u16,
    notices: Option<Notices>,
}

impl Function for Disguised {
    fn bdf(&self) -> Bdf {
        self.inner.bdf()
    }
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }
    fn read_config(&self, offset: u16, buf: &mut [u8]) -> pci::Result<()> {
        self.inner.read_config(offset, buf)?;
        if offset == 0 && buf.len() >= 4 {
            buf[2..4].copy_from_slice(&self.device.to_le_bytes());
        }
        Ok(())
    }
    fn write_config(&self, offset: u16, buf: &[u8]) -> pci::Result<()> {
        self.inner.write_config(offset, buf)
    }
    fn bar(&self, index: u8) -> pci::Result<Bar> {
        self.inner.bar(index)
    }
    fn iova_space(&self) -> &Arc<IovaSpace> {
        self.inner.iova_space()
    }
    fn enable_interrupts(&self, count: u16) -> pci::Result<Vec<Interrupt>> {
        self.inner.enable_interrupts(count)
    }
    fn disable_interrupts(&self) -> pci::Result<()> {
        self.inner.disable_interrupts()
    }
    fn reset(&self) -> pci::Result<()> {
        self.inner.reset()
    }
    fn notices(&self) -> Option<&Notices> {
        self.notices.as_ref()
    }
}

/// A port on a kernel's function, and what fires its notices: removal, error.
fn with_notices() -> (Bench, [File; 2]) {
    let mut bench = Bench::open();
    let notices =
        Notices { removal: Interrupt::new(0, None).unwrap(), error: Interrupt::new(0, None).unwrap() };
    let fire =
        [&notices.removal, &notices.error].map(|n| File::from(n.as_fd().try_clone_to_owned().unwrap()));
    let nic = Disguised { inner: bench.nic.clone(), device: 0x10c9, notices: Some(notices) };
    bench.port = Igb::open(Arc::new(nic)).unwrap();
    (bench, fire)
}

#[test]
fn the_kernels_notices_are_events() {
    let (mut bench, [mut removal, mut error]) = with_notices();
    let served = bench.start(&small());
    bench.port.events();
    while bench.port.wait_event(Duration::from_millis(20)) {
        bench.port.events();
    }
    error.write_all(&1u64.to_ne_bytes()).unwrap();
    assert!(bench.port.wait_event(PATIENCE));
    assert_eq!(bench.port.events(), [Event::DeviceFault]);
    assert_eq!(bench.port.events(), []);
    removal.write_all(&1u64.to_ne_bytes()).unwrap();
    assert!(bench.port.wait_event(PATIENCE));
    assert_eq!(bench.port.events(), [Event::Removed]);
    // The kernel asks again and again; whoever waits for frames is woken to let go.
    removal.write_all(&1u64.to_ne_bytes()).unwrap();
    assert!(!bench.port.wait_event(Duration::from_millis(10)));
    assert_eq!(bench.port.events(), []);
    for pair in &served.pairs {
        assert!(pair.interrupt.as_ref().unwrap().vector.take() > 0);
    }
    bench.port.stop().unwrap();
}

/// QEMU has no I350: what is written is what its datasheet asks for, what passes is the 82576's doing.
#[test]
fn an_i350_is_given_its_own_registers() {
    let mut bench = Bench::open();
    let nic = Arc::new(Faulty::new(bench.nic.clone()));
    bench.port =
        Igb::open(Arc::new(Disguised { inner: nic.clone(), device: 0x1521, notices: None })).unwrap();
    let info = bench.port.info();
    assert_eq!((info.model, info.max_queues), ("Intel I350", 8));
    assert_eq!(nic.writes((0, PHPM.offset)), 1);
    let vlan = VlanConfig { strip: true, filter: Some(vec![5]) };
    let mut served = bench.start(&PortConfig { vlan, ..small() });
    assert!((0..128).all(|word| nic.writes((0, VFTA.at(word))) == 10));
    assert!((0..8).all(|queue| nic.writes((0, DVMOLR.at(queue))) == 1));
    assert!((0..16).all(|index| nic.writes((0, RAH_HIGH.at(index))) >= 1), "32 addresses");
    let bar = bench.registers();
    assert_eq!(bar.read32(IVAR.at(0)), 0x0082_0081, "two queues to a register, in order");
    assert_eq!(bench.passes(&mut served, &[frame(OWN, 1, 64)]), [1]);
    let error = bench.port.start(&PortConfig::default(), &bench.pool).err().unwrap();
    assert!(matches!(error, Error::State { .. }), "{error}");
}

#[test]
fn serdes_takes_its_link_from_the_pcs_and_an_external_phy_is_refused() {
    let (_machine, nic) = faulty();
    nic.stick((0, CTRL_EXT.offset), 3 << 22, 2 << 22);
    let error = refused(nic);
    assert!(matches!(&error, Error::Setting { what, .. } if what.contains("SGMII")), "{error}");
    // The last: an 82576 whose NVM forbids the negotiation. Bit 14 of word 3, taken out of word 4.
    for (mode, forbidden, restarts) in [(1, false, false), (3, false, true), (3, true, false)] {
        let (_machine, nic) = faulty();
        if forbidden {
            nic.on_read(|at, value| match value >> 2 & 0x3fff {
                3 if at == (0, EERD.offset) => value.wrapping_add(1 << 30),
                4 if at == (0, EERD.offset) => value.wrapping_sub(1 << 30),
                _ => value,
            });
        }
        let mode = mode << 22;
        nic.stick((0, CTRL_EXT.offset), 3 << 22, mode);
        let lctl = Arc::new(AtomicU32::new(0));
        let written = lctl.clone();
        nic.on_write(move |at, value| {
            if at == (0, PCS_LCTL.offset) {
                written.store(value, Relaxed);
            }
            Some(value)
        });
        let port = Igb::open(nic.clone()).unwrap();
        assert_eq!(nic.writes((0, MDIC.offset)), 0, "no PHY is asked");
        let lctl = lctl.load(Relaxed);
        assert_eq!(lctl & pcs::AN_RESTART != 0, restarts);
        assert_eq!(port.link(), Link::default());
        nic.stick((0, PCS_LSTAT.offset), u32::MAX, 1 << 16 | 2 << 1 | pcs_lstat::FULL | pcs_lstat::LINK_OK);
        assert_eq!(port.link(), Link { up: true, speed: 1000, full_duplex: true });
    }
}
