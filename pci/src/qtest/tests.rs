use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use super::*;
use crate::config::{Ari, Express, Msix, SrIov, Structure};
use crate::{Bar, DmaMemory, Error, Function, Sharing};

const SECOND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(50);

/// Registers of the 82576 (data sheet, chapter 8).
mod igb {
    pub const STATUS: usize = 0x08;
    pub const MDIC: usize = 0x20;
    pub const RCTL: usize = 0x100;
    pub const TCTL: usize = 0x400;
    pub const GPIE: usize = 0x1514;
    pub const EICS: usize = 0x1520;
    pub const EIMS: usize = 0x1524;
    pub const EIAC: usize = 0x152c;
    pub const IVAR0: usize = 0x1700;
    pub const RAL0: usize = 0x5400;
    pub const RX: usize = 0xc000;
    pub const TX: usize = 0xe000;
    pub const STATUS_LU: u32 = 1 << 1;
}

fn one() -> (Machine, Arc<dyn Function>, Bar) {
    let machine = Machine::builder().nic("igb").start().unwrap();
    let nic = machine.function(0);
    let bar = nic.bar(0).unwrap();
    (machine, nic, bar)
}

/// Waits until `condition` holds, 10 s at most.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < 10 * SECOND, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Restarts the PHY's autonegotiation (MDIC: write BMCR with enable and restart).
fn bring_link_up(bar: &Bar) {
    bar.write32(igb::MDIC, 1 << 26 | 1 << 21 | 0x1200);
    eventually("link up", || bar.read32(igb::STATUS) & igb::STATUS_LU != 0);
}

/// MSI-X mode, and vectors 0 to 4 enabled; a cause is cleared by its message (EIAC).
fn allow_interrupts(bar: &Bar) {
    bar.write32(igb::GPIE, 1 << 31 | 1 << 4 | 1);
    bar.write32(igb::EIAC, 0x1f);
    bar.write32(igb::EIMS, 0x1f);
}

/// True while there is such a process, and it is not just waiting to be reaped.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// One ring of each direction, 8 descriptors, buffers of 2 KiB: as little of a driver as moves frames.
struct Rings {
    bar: Bar,
    memory: DmaMemory,
    sent: usize,
    received: usize,
}

impl Rings {
    const BUFFERS: usize = 0x1000;

    fn start(nic: &dyn Function) -> Self {
        let bar = nic.bar(0).unwrap();
        let memory = nic.iova_space().allocate(0x1000 + 16 * 2048, Sharing::Private).unwrap();
        nic.set_bus_master(true).unwrap();
        let rings = Self { bar, memory, sent: 0, received: 0 };
        for i in 0..7 {
            rings.put(16 * i, rings.memory.iova() + (Self::BUFFERS + 2048 * i) as u64);
        }
        for (ring, at) in [(igb::RX, 0), (igb::TX, 0x800)] {
            rings.bar.write32(ring, (rings.memory.iova() + at) as u32);
            rings.bar.write32(ring + 4, 0);
            rings.bar.write32(ring + 8, 8 * 16);
        }
        rings.bar.write32(igb::RX + 0xc, 1 << 25 | 2);
        rings.bar.write32(igb::RX + 0x28, 1 << 25);
        rings.bar.write32(igb::RX + 0x18, 7);
        rings.bar.write32(igb::TX + 0x28, 1 << 25);
        // Enabled, promiscuous, FCS stripped; and enabled, padding short frames.
        rings.bar.write32(igb::RCTL, 1 << 1 | 1 << 3 | 1 << 4 | 1 << 15 | 1 << 26);
        rings.bar.write32(igb::TCTL, 1 << 1 | 1 << 3);
        rings
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.memory.len());
        self.memory.base().as_ptr().wrapping_add(offset).cast()
    }

    fn put(&self, offset: usize, value: u64) {
        // SAFETY: `at` checks the bounds; offsets are multiples of 16 or 8.
        unsafe { self.at::<u64>(offset).write_volatile(value) };
    }

    fn word(&self, offset: usize) -> u32 {
        // SAFETY: as for `put`; the device writes it, so the access is atomic.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }.load(Ordering::Acquire)
    }

    fn send(&mut self, frame: &[u8]) {
        let slot = self.sent % 8;
        let (descriptor, buffer) = (0x800 + 16 * slot, Self::BUFFERS + 2048 * (8 + slot));
        for (i, byte) in frame.iter().enumerate() {
            // SAFETY: `at` checks the bounds.
            unsafe { self.at::<u8>(buffer + i).write_volatile(*byte) };
        }
        let len = frame.len() as u64;
        // Data descriptor, one buffer, FCS, report status.
        let command = len | 3 << 20 | 1 << 24 | 1 << 25 | 1 << 27 | 1 << 29;
        self.put(descriptor, self.memory.iova() + buffer as u64);
        self.put(descriptor + 8, command | len << 46);
        self.sent += 1;
        fence(Ordering::Release);
        self.bar.write32(igb::TX + 0x18, (self.sent % 8) as u32);
    }

    fn recv(&mut self) -> Vec<u8> {
        let slot = self.received % 8;
        eventually("a received frame", || self.word(16 * slot + 8) & 1 != 0);
        let len = self.word(16 * slot + 12) & 0xffff;
        self.received += 1;
        let buffer = Self::BUFFERS + 2048 * slot;
        // SAFETY: `at` checks the bounds; the device is done with the buffer.
        (0..len as usize).map(|i| unsafe { self.at::<u8>(buffer + i).read_volatile() }).collect()
    }
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| if i < 6 { 0xff } else { (i as u8).wrapping_mul(7).wrapping_add(seed) }).collect()
}

#[test]
fn an_igb_is_what_its_configuration_space_says() {
    let (_machine, nic, bar) = one();
    let ids = nic.ids().unwrap();
    assert_eq!((ids.vendor, ids.device, ids.class), (0x8086, 0x10c9, 0x02_0000));
    assert_eq!(Msix::of(&*nic).unwrap().table_size, 10);
    assert_eq!(SrIov::of(&*nic).unwrap().total_vfs, 8);
    assert!(Express::of(&*nic).unwrap().flr);
    Ari::of(&*nic).unwrap();
    assert_eq!((bar.len(), nic.bar(3).unwrap().len()), (0x2_0000, 0x4000));
    assert!(matches!(nic.bar(2), Err(Error::NoBar { index: 2, .. })), "BAR 2 is I/O space");
    assert_eq!(nic.bdf().to_string(), "0000:01:00.0");
    // RAL0, RAH0: the first address that QEMU gives, and that it is valid.
    assert_eq!((bar.read32(igb::RAL0), bar.read32(igb::RAL0 + 4)), (0x1200_5452, 0x8000_5634));
}

#[test]
fn other_models_are_brought_up_just_as_well() {
    let machine = Machine::builder()
        .nic("e1000e,mac=02:00:00:00:00:01")
        .nic("virtio-net-pci,disable-legacy=on,iommu_platform=on")
        .nic("vmxnet3")
        .start()
        .unwrap();
    let ids = [0, 1, 2].map(|i| machine.function(i).ids().unwrap());
    assert_eq!(ids.map(|i| (i.vendor, i.device)), [(0x8086, 0x10d3), (0x1af4, 0x1041), (0x15ad, 0x07b0)]);
    assert_eq!(machine.function(0).bar(0).unwrap().read32(igb::RAL0), 0x0000_0002);
    // virtio's common configuration is at the start of BAR 4, which is 64 bits wide: its second
    // register holds the first 32 features, of which VIRTIO_NET_F_MAC is bit 5.
    assert_ne!(machine.function(1).bar(4).unwrap().read32(4) & 1 << 5, 0);
}

#[test]
fn configuration_space_reads_the_same_in_any_pieces_and_ends() {
    let (_machine, nic, _) = one();
    let mut whole = [0; 64];
    nic.read_config(0, &mut whole).unwrap();
    for at in 0..64 {
        for len in 0..(64 - at).min(9) {
            let mut piece = vec![0; len];
            nic.read_config(at as u16, &mut piece).unwrap();
            assert_eq!(piece, whole[at..at + len]);
        }
    }
    // Cache line size, which the function only stores; and nothing beyond the end.
    nic.write_config(0x0b, &[0x02, 0x40]).unwrap();
    nic.read_config(0x0b, &mut whole[..2]).unwrap();
    assert_eq!(whole[..2], [0x02, 0x40]);
    let mut last = [0; 8];
    nic.read_config(0xffc, &mut last).unwrap();
    assert_eq!(last[4..], [0xff; 4]);
}

#[test]
fn a_vector_fires_and_a_masked_one_waits_for_its_unmasking() {
    let (_machine, nic, bar) = one();
    nic.set_bus_master(true).unwrap();
    assert!(matches!(nic.enable_interrupts(11), Err(Error::Vectors { wanted: 11, have: 10, .. })));
    let vectors = nic.enable_interrupts(5).unwrap();
    allow_interrupts(&bar);
    for round in 0..200 {
        let vector = round % 5;
        bar.write32(igb::EICS, 1 << vector);
        assert_eq!(vectors[vector].wait(10 * SECOND).unwrap(), 1, "round {round}");
    }
    assert!(vectors[2].set_masked(true));
    bar.write32(igb::EICS, 1 << 2);
    assert_eq!(vectors[2].wait(SOON).unwrap(), 0);
    assert!(vectors[2].set_masked(false));
    assert_eq!(vectors[2].wait(10 * SECOND).unwrap(), 1);
    assert!(Msix::of(&*nic).unwrap().enabled);
    nic.disable_interrupts().unwrap();
    assert!(!Msix::of(&*nic).unwrap().enabled);
    bar.write32(igb::EICS, 1 << 1);
    assert_eq!(vectors[1].wait(SOON).unwrap(), 0);
    let again = nic.enable_interrupts(2).unwrap();
    // The cause from before is still set, so this may be one message or two.
    bar.write32(igb::EICS, 1 << 1);
    assert!(again[1].wait(10 * SECOND).unwrap() >= 1);
    assert_eq!(vectors[1].take(), 0, "the vector enabled before is replaced");
}

#[test]
fn frames_go_out_and_come_in_on_the_wire_and_raise_the_queue_s_vector() {
    let (machine, nic, bar) = one();
    bring_link_up(&bar);
    let vectors = nic.enable_interrupts(2).unwrap();
    allow_interrupts(&bar);
    // Receive queue 0 raises vector 1.
    bar.write32(igb::IVAR0, 0x81);
    let (mut rings, wire) = (Rings::start(&*nic), machine.wire(0));
    assert_eq!(wire.recv(Duration::ZERO).unwrap(), None);
    for seed in 0..5 {
        let sent = frame(60 + 200 * usize::from(seed), seed);
        rings.send(&sent);
        assert_eq!(wire.recv(10 * SECOND).unwrap().as_ref(), Some(&sent));
        wire.send(&sent).unwrap();
        assert_eq!(rings.recv(), sent);
        assert!(vectors[1].wait(10 * SECOND).unwrap() >= 1);
    }
    assert_eq!(wire.recv(Duration::ZERO).unwrap(), None);
}

#[test]
fn nics_on_a_hub_hear_each_other_and_so_does_a_wire_on_it() {
    let machine = Machine::builder()
        .nic_on_hub("igb", 3)
        .nic_on_hub("igb,mac=02:00:00:00:00:07", 3)
        .wire_on_hub(3)
        .start()
        .unwrap();
    let nics = [machine.function(0), machine.function(1)];
    let bars = [nics[0].bar(0).unwrap(), nics[1].bar(0).unwrap()];
    assert_eq!(bars[1].read32(igb::RAL0), 0x0000_0002);
    assert_eq!(bars[1].read32(igb::RAL0 + 4), 0x8000_0700);
    bars.iter().for_each(bring_link_up);
    let [mut first, mut second] = nics.each_ref().map(|nic| Rings::start(&**nic));
    first.send(&frame(100, 1));
    assert_eq!(second.recv(), frame(100, 1));
    assert_eq!(machine.hub_wire(3).recv(10 * SECOND).unwrap(), Some(frame(100, 1)));
    machine.hub_wire(3).send(&frame(90, 2)).unwrap();
    assert_eq!((first.recv(), second.recv()), (frame(90, 2), frame(90, 2)));
}

#[test]
fn a_pulled_cable_is_seen_in_the_status_register() {
    let machine = Machine::builder().nic("igb").nic("igb").start().unwrap();
    let bars = [0, 1].map(|i| machine.function(i).bar(0).unwrap());
    bars.iter().for_each(bring_link_up);
    machine.set_link(0, false).unwrap();
    eventually("link down", || bars[0].read32(igb::STATUS) & igb::STATUS_LU == 0);
    assert_ne!(bars[1].read32(igb::STATUS) & igb::STATUS_LU, 0);
    machine.set_link(0, true).unwrap();
    eventually("link up again", || bars[0].read32(igb::STATUS) & igb::STATUS_LU != 0);
    let refused = machine.set_link(2, true).unwrap_err().to_string();
    assert!(refused.contains("nic2") && refused.contains("set_link"), "{refused}");
    assert!(machine.failure().is_none(), "a refused command is no failure of the machine");
}

#[test]
fn a_reset_clears_registers_and_leaves_bars_vectors_and_bus_mastering() {
    let (_machine, nic, bar) = one();
    nic.set_bus_master(true).unwrap();
    let vectors = nic.enable_interrupts(3).unwrap();
    bar.write32(igb::RX, 0x20_0000);
    assert_eq!(bar.read32(igb::RX), 0x20_0000);
    nic.reset().unwrap();
    assert_eq!(bar.read32(igb::RX), 0);
    assert_eq!(bar.read32(igb::RAL0), 0x1200_5452);
    allow_interrupts(&bar);
    bar.write32(igb::EICS, 1 << 2);
    assert_eq!(vectors[2].wait(10 * SECOND).unwrap(), 1);
}

#[test]
fn a_function_is_quiet_once_its_last_holder_drops_it() {
    let (machine, nic, bar) = one();
    nic.set_bus_master(true).unwrap();
    let vectors = nic.enable_interrupts(1).unwrap();
    assert!(Arc::ptr_eq(&nic, &machine.function(0)), "one function, however often it is asked for");
    drop(nic);
    allow_interrupts(&bar);
    bar.write32(igb::EICS, 1);
    assert_eq!(vectors[0].wait(SOON).unwrap(), 0);
    let mut command = [0; 2];
    machine.function(0).read_config(crate::config::COMMAND, &mut command).unwrap();
    assert_eq!(command, [2, 0], "memory decoding only");
}

#[test]
fn virtual_functions_have_ids_registers_vectors_and_a_reset() {
    let (machine, _nic, bar) = one();
    // CTRL_EXT.PFRSTD lets VFs out of reset.
    bar.write32(0x18, 1 << 14);
    let vfs = machine.enable_vfs(0, 7).unwrap();
    let bdfs: Vec<_> = vfs.iter().map(|vf| vf.bdf().to_string()).collect();
    assert_eq!((bdfs[0].as_str(), bdfs[6].as_str()), ("0000:01:10.0", "0000:01:11.4"));
    for (i, vf) in vfs.iter().enumerate() {
        let ids = vf.ids().unwrap();
        assert_eq!((ids.vendor, ids.device), (0x8086, 0x10ca));
        // Each VF has mailbox memory of its own.
        vf.bar(0).unwrap().write32(0x800, 0x1000 + i as u32);
    }
    for (i, vf) in vfs.iter().enumerate() {
        assert_eq!(vf.bar(0).unwrap().read32(0x800), 0x1000 + i as u32, "VF {i}");
        vf.set_bus_master(true).unwrap();
        assert_eq!(vf.enable_interrupts(3).unwrap().len(), 3);
        vf.reset().unwrap();
        assert_eq!(vf.bar(0).unwrap().read32(0x800), 0x1000 + i as u32, "VF {i} after its reset");
    }
    assert!(matches!(machine.enable_vfs(0, 9), Err(Error::NumVfs { wanted: 9, total: 8, .. })));
    machine.enable_vfs(0, 0).unwrap();
    assert!(matches!(vfs[0].ids(), Err(Error::Removed { .. })));
}

#[test]
fn a_pulled_card_reads_all_ones_and_its_neighbour_works() {
    let machine = Machine::builder().nic("igb").nic("igb").start().unwrap();
    let nics = [machine.function(0), machine.function(1)];
    let bars = [0, 1].map(|i: usize| nics[i].bar(0).unwrap());
    let _vectors = nics[0].enable_interrupts(3).unwrap();
    machine.remove(0).unwrap();
    assert_eq!((bars[0].read32(igb::STATUS), bars[0].read32(0)), (u32::MAX, u32::MAX));
    assert!(matches!(nics[0].ids(), Err(Error::Removed { bdf }) if bdf == nics[0].bdf()));
    assert!(matches!(nics[0].reset(), Err(Error::Removed { .. })));
    assert!(matches!(nics[0].enable_interrupts(1), Err(Error::Removed { .. })));
    assert!(nics[1].is_present());
    assert_eq!(bars[1].read32(igb::RAL0), 0x1200_5452);
}

#[test]
fn a_killed_qemu_reads_all_ones_at_once_and_says_why() {
    let (machine, nic, bar) = one();
    let (_vectors, wire) = (nic.enable_interrupts(1).unwrap(), machine.wire(0));
    machine.kill();
    eventually("QEMU's end", || !runs(machine.pid()));
    let start = Instant::now();
    assert_eq!(bar.read32(igb::STATUS), u32::MAX);
    bar.write32(igb::STATUS, 0);
    let mut bytes = [0; 4];
    assert!(matches!(nic.read_config(0, &mut bytes), Err(Error::Peer { .. })));
    assert_eq!(bytes, [0xff; 4]);
    assert!(!nic.is_present() && nic.reset().is_err() && machine.set_link(0, true).is_err());
    assert!(wire.send(&[0; 60]).is_err());
    assert_eq!(wire.recv(SOON).unwrap(), None);
    let reason = machine.failure().unwrap();
    assert!(reason.contains("has ended"), "{reason}");
    assert!(start.elapsed() < SECOND, "nothing waits for the dead");
}

#[test]
fn an_answer_that_makes_no_sense_is_a_failure_that_is_kept() {
    for nonsense in ["FAIL Unknown command", "OK 12", "OK 0xno", "", "IRQ raise 3"] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (qmp, _qmp) = UnixStream::pair().unwrap();
        let stderr = process::memory_file(c"stderr", 0, b"qemu: oh\nno\n").unwrap();
        let link = link::Link::new(ours, qmp, stderr).unwrap();
        theirs.write_all(format!("OK 0x0000000000000007\nOK\n{nonsense}\nOK 0x1\n").as_bytes()).unwrap();
        let read = || link.read(link::Width::Long, 0x1000);
        assert_eq!(read().unwrap(), 7);
        link.write(link::Width::Byte, 0x1000, 1).unwrap();
        let reasons = [read(), read()].map(|answer| answer.unwrap_err().to_string());
        assert_eq!(reasons[0], reasons[1], "'OK 0x1' is not taken for the answer to the second");
        assert!(
            reasons[0].contains(nonsense) && reasons[0].ends_with("it said: qemu: oh; no"),
            "{reasons:?}"
        );
        let mut asked = [0; 80];
        let len = theirs.read(&mut asked).unwrap();
        assert_eq!(&asked[..len], b"readl 0x1000\nwriteb 0x1000 0x1\nreadl 0x1000\n");
    }
}

#[test]
fn an_unknown_model_is_refused_with_what_to_do() {
    let error = Machine::builder().nic("igc-that-is-not").start().err().unwrap().to_string();
    for part in ["'igc-that-is-not' is not a valid device model name", "-device help", "BECKET_QEMU"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(Machine::builder().start().is_err(), "no NICs");
}

#[test]
fn a_missing_qemu_is_an_error_with_what_to_do() {
    let stderr = process::memory_file(c"none", 0, &[]).unwrap();
    let ram = Arc::new(memmap2::MmapRaw::map_raw(&process::memory_file(c"ram", 4096, &[]).unwrap()).unwrap());
    let vectors = Arc::new(vectors::Vectors::new(ram));
    let program = "/nonexistent/qemu".into();
    let error = process::Process::start(program, vec![], vec![], &stderr, vectors).err().unwrap();
    assert!(error.to_string().contains("/nonexistent/qemu (install QEMU"), "{error}");
}

#[test]
fn threads_share_a_machine_and_never_see_each_others_answers() {
    let machine = Machine::builder().nic("igb").nic("igb").start().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let bar = machine.function(thread % 2).bar(0).unwrap();
            scope.spawn(move || {
                let own = igb::RAL0 + 8 * (1 + thread);
                for i in 0..200 {
                    bar.write32(own, i);
                    assert_eq!(bar.read32(own), i);
                }
            });
        }
    });
}

#[test]
fn qemu_has_no_files_and_ends_with_its_machine_or_a_panic() {
    let (machine, nic, bar) = one();
    let pid = machine.pid();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap().display().to_string();
        let nameless = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/"];
        assert!(nameless.iter().any(|start| target.starts_with(start)), "QEMU holds {target}");
    }
    let memory = nic.iova_space().allocate(4096, Sharing::Private).unwrap();
    drop(machine);
    assert!(!runs(pid));
    assert_eq!(bar.read32(igb::STATUS), u32::MAX);
    assert!(matches!(nic.ids(), Err(Error::Peer { what, .. }) if what.contains("dropped")));
    // SAFETY: the memory is ours; that it is still mapped is what is tested.
    unsafe { memory.base().as_ptr().write_volatile(1) };

    let panicked = std::thread::spawn(|| {
        let machine = Machine::builder().nic("igb").start().unwrap();
        std::panic::panic_any(machine.pid());
    });
    let pid = *panicked.join().unwrap_err().downcast::<u32>().unwrap();
    assert!(!runs(pid));
}

#[test]
fn a_machine_outlives_the_thread_that_started_it() {
    let machine = std::thread::spawn(|| Machine::builder().nic("igb").start().unwrap()).join().unwrap();
    std::thread::sleep(SOON);
    assert!(machine.function(0).is_present());
}

#[test]
fn qemu_ends_when_its_process_is_killed() {
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "qtest::tests::holds_a_machine"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("pid=")?.1.to_owned()));
    let pid: u32 = said.unwrap().parse().unwrap();
    assert!(runs(pid));
    holder.kill().unwrap();
    holder.wait().unwrap();
    eventually("QEMU's end", || !runs(pid));
}

#[test]
#[ignore = "the process that qemu_ends_when_its_process_is_killed kills"]
fn holds_a_machine() {
    let machine = Machine::builder().nic("igb").start().unwrap();
    println!("\npid={}", machine.pid());
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_stuck_bit_a_dropped_write_and_a_hook_are_what_the_driver_sees() {
    let (_machine, nic, bar) = one();
    let faulty = Arc::new(Faulty::new(nic));
    let driven: Arc<dyn Function> = faulty.clone();
    let seen = driven.bar(0).unwrap();
    faulty.stick((0, igb::RAL0), 0xff, 0xaa);
    assert_eq!(seen.read32(igb::RAL0), 0x1200_54aa);
    faulty.drop_writes((0, igb::RX));
    seen.write32(igb::RX, 0x20_0000);
    seen.write32(igb::RX + 4, 1);
    assert_eq!((bar.read32(igb::RX), bar.read32(igb::RX + 4)), (0, 1));
    assert_eq!(faulty.written(), [(0, igb::RX), (0, igb::RX + 4)]);
    assert_eq!((faulty.writes((0, igb::RX)), faulty.reads((0, igb::RAL0))), (1, 1));
    // A hook may break the very device that it is called by.
    let other = faulty.clone();
    faulty.on_read(move |at, value| {
        if at == (0, igb::STATUS) {
            other.remove();
        }
        value
    });
    assert_ne!(seen.read32(igb::STATUS), u32::MAX);
    assert_eq!(seen.read32(igb::STATUS), u32::MAX);
    faulty.heal();
    assert_eq!(seen.read32(igb::RAL0), 0x1200_5452);
}

#[test]
fn a_device_removed_amid_accesses_is_gone_everywhere() {
    let (_machine, nic, bar) = one();
    let faulty = Faulty::new(nic);
    let seen = faulty.bar(0).unwrap();
    let vectors = faulty.enable_interrupts(2).unwrap();
    assert!(faulty.spurious(1) && !faulty.spurious(2));
    assert_eq!((vectors[0].take(), vectors[1].take()), (0, 1));
    faulty.refuse_reset();
    assert!(matches!(faulty.reset(), Err(Error::NoReset { .. })));
    faulty.remove_after(2);
    let reads = [0; 4].map(|_| seen.read32(igb::RAL0));
    assert_eq!(reads, [0x1200_5452, 0x1200_5452, u32::MAX, u32::MAX]);
    seen.write32(igb::RX, 0x20_0000);
    assert_eq!(bar.read32(igb::RX), 0);
    assert!(matches!(faulty.ids(), Err(Error::Removed { .. })) && faulty.reset().is_err());
}
