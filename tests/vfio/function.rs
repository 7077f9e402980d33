//! PCI functions.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use becket::pci::config::{Ari, COMMAND, COMMAND_MEMORY, Express, Msix, SrIov, Structure};
use becket::pci::dma::Sharing;
use becket::pci::sysfs::{Obstacle, Sysfs};
use becket::pci::vfio::{OpenOptions, VfToken, Vfio};
use becket::pci::{Bdf, Error, Function, Interrupt, removal};

use crate::support::*;

/// Registers of the 82576 (data sheet 8.1.3).
mod register {
    pub const STATUS: usize = 0x8;
    pub const GPIE: usize = 0x1514;
    pub const EICS: usize = 0x1520;
    pub const EIMS: usize = 0x1524;
    pub const EIAC: usize = 0x152c;
    pub const VFTA: usize = 0x5600;
}

fn open(bdf: Bdf) -> Arc<dyn Function> {
    Vfio::new().unwrap().open(bdf).unwrap()
}

/// Opens a function that is not expected to open.
fn refused(bdf: Bdf) -> Error {
    match Vfio::new().and_then(|vfio| vfio.open(bdf)) {
        Ok(_) => panic!("{bdf} opened"),
        Err(error) => error,
    }
}

// ---- Another process: this binary again, running `child` with orders in its environment.

/// Carries out `BECKET_CHILD`, says `child: ok` or `child: ERROR`, and stays until its input ends.
#[test]
#[ignore = "run by other tests"]
fn child() {
    let Ok(orders) = std::env::var("BECKET_CHILD") else { return };
    let mut words = orders.split(' ');
    let bdf = words.next().unwrap().parse().unwrap();
    let len = words.next().map(|len| len.parse().unwrap());
    let obey = || {
        let vfio = Vfio::new()?;
        let function = vfio.open(bdf)?;
        let memory = len.map(|len| vfio.iova_space().allocate(len, Sharing::Private)).transpose()?;
        Ok::<_, Error>((function, memory))
    };
    let outcome = obey();
    let answer = outcome.as_ref().map_or_else(|error| format!("{error:?}"), |_| "ok".to_owned());
    println!("\nchild: {answer}");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

struct Other {
    child: Child,
    /// Kept open: the child's test harness has a last word.
    _output: BufReader<ChildStdout>,
}

impl Other {
    /// Starts it, and gives what it says. `limits` are shell commands that come first.
    fn start(orders: &str, limits: &str, uid: u32) -> (Self, String) {
        let exe = std::env::current_exe().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", &format!("{limits} exec \"$0\" --ignored --exact --nocapture function::child")])
            .arg(exe)
            .env("BECKET_CHILD", orders)
            .uid(uid)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut answer = String::new();
        while !answer.starts_with("child: ") {
            answer.clear();
            assert_ne!(output.read_line(&mut answer).unwrap(), 0, "the child said nothing");
        }
        let answer = answer["child: ".len()..].trim_end().to_owned();
        (Self { child, _output: output }, answer)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

// ---- Two ports, each in a group of its own.

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_open_and_close_leave_nothing_behind() {
    let ports = Ports::take();
    let vfio = Vfio::new().unwrap();
    let function = vfio.open(ports.first()).unwrap();
    let bar = function.bar(0).unwrap();
    let vectors = function.enable_interrupts(3).unwrap();
    function.set_bus_master(true).unwrap();
    assert_ne!(command_of(ports.first()) & 4, 0, "bus mastering is on");
    assert!(held().iter().any(|line| line.contains("vfio-device")), "{:?}", held());
    drop((bar, vectors, function));
    assert_eq!(command_of(ports.first()) & 4, 0, "bus mastering is off");
    drop(vfio);
    assert_eq!(held(), Vec::<String>::new());
    // And again: nothing of it is left in the kernel either.
    drop(open(ports.first()));
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_a_register_view_outlives_its_function() {
    let ports = Ports::take();
    let bar = open(ports.first()).bar(0).unwrap();
    // The function is dropped: quiet, but its group stays as long as its registers are mapped.
    assert_eq!(command_of(ports.first()) & 4, 0);
    assert_ne!(bar.read32(register::STATUS), u32::MAX);
    drop(bar);
    assert_eq!(held(), Vec::<String>::new());
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_configuration_and_capabilities() {
    let ports = Ports::take();
    let port = open(ports.first());
    let ids = port.ids().unwrap();
    assert_eq!((ids.vendor, ids.device, ids.class >> 16), (IGB.0, IGB.1, 2));
    let msix = Msix::of(&*port).unwrap();
    assert_eq!((msix.table_size, msix.table_bar, msix.enabled), (10, 3, false));
    assert!(Express::of(&*port).unwrap().flr);
    // The 82576 has eight pools, one of which its own driver keeps for the PF.
    assert_eq!(SrIov::of(&*port).unwrap().total_vfs, 8);
    Ari::of(&*port).unwrap();
    assert!(port.capabilities().unwrap().len() >= 6);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_registers_and_reset() {
    let ports = Ports::take();
    let port = open(ports.first());
    let bar = port.bar(0).unwrap();
    assert_eq!(format!("{bar:?}"), "Bar(mapped, 0x20000 bytes)");
    assert_ne!(bar.read32(register::STATUS), u32::MAX);
    bar.write32(register::VFTA, 0x1234);
    assert_eq!(port.bar(0).unwrap().read32(register::VFTA), 0x1234);
    port.set_bus_master(true).unwrap();
    port.reset().unwrap();
    assert_eq!(bar.read32(register::VFTA), 0, "the reset reached the device");
    assert_eq!(command_of(ports.first()) & 4, 0, "a reset function starts no DMA");
    assert!(port.is_present());
    for absent in [2, 5, 6] {
        assert!(matches!(port.bar(absent), Err(Error::NoBar { .. })), "BAR {absent}");
    }
}

/// Has the device raise the vector of an extended interrupt cause, one to one with MSI-X vectors here.
fn raise(port: &dyn Function, vector: &Interrupt) {
    port.bar(0).unwrap().write32(register::EICS, 1 << vector.vector());
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_each_vector_fires_and_can_be_masked() {
    let ports = Ports::take();
    let port = open(ports.first());
    let (some, long) = (Duration::from_millis(100), Duration::from_secs(5));
    assert!(matches!(port.enable_interrupts(11), Err(Error::Vectors { wanted: 11, have: 10, .. })));
    assert!(matches!(port.enable_interrupts(0), Err(Error::Vectors { .. })));
    let vectors = port.enable_interrupts(10).unwrap();
    port.set_bus_master(true).unwrap();
    let bar = port.bar(0).unwrap();
    // Multiple MSI-X (data sheet 8.8.1, bit 4), all causes unmasked and cleared by their message.
    bar.write32(register::GPIE, 1 << 4);
    bar.write32(register::EIAC, 0x3ff);
    bar.write32(register::EIMS, 0x3ff);
    for vector in &vectors {
        raise(&*port, vector);
        assert_ne!(vector.wait(long).unwrap(), 0, "vector {}", vector.vector());
    }
    assert!(vectors.iter().all(|vector| vector.take() == 0), "each fires its own only");
    assert!(vectors[4].set_masked(true));
    raise(&*port, &vectors[4]);
    assert_eq!(vectors[4].wait(some).unwrap(), 0, "masked");
    assert!(vectors[4].set_masked(false));
    assert_ne!(vectors[4].wait(long).unwrap(), 0, "kept pending while it was masked");
    // Fewer, in place of those.
    let fewer = port.enable_interrupts(2).unwrap();
    raise(&*port, &fewer[1]);
    assert_ne!(fewer[1].wait(long).unwrap(), 0);
    port.disable_interrupts().unwrap();
    raise(&*port, &fewer[0]);
    assert_eq!(fewer[0].wait(some).unwrap(), 0);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_in_one_container_share_one_space() {
    let ports = Ports::take();
    let vfio = Vfio::new().unwrap();
    let early = vfio.iova_space().allocate(8192, Sharing::Private).unwrap();
    let first = vfio.open(ports.first()).unwrap();
    let between = first.iova_space().allocate(3 << 20, Sharing::Private).unwrap();
    let second = vfio.open(ports.second()).unwrap();
    assert!(Arc::ptr_eq(first.iova_space(), second.iova_space()));
    let late = second.iova_space().allocate(4096, Sharing::Shared).unwrap();
    for memory in [&early, &between, &late] {
        let (start, end) = (memory.iova(), memory.iova() + memory.len() as u64);
        assert!(start >= 0x1_0000 && (end <= 0xfee0_0000 || start >= 0xfef0_0000), "{start:#x}");
    }
    drop(between);
    // The kernel forgets the tables with the last group, and gets them back with the next.
    drop((first, second));
    let again = vfio.open(ports.second()).unwrap();
    assert_eq!(vfio.iova_space().mappings(), 2);
    drop((early, late));
    assert_eq!(again.iova_space().mapped_bytes(), 0);
    // Freed addresses are given out again, so the kernel agreed to the unmapping.
    for _ in 0..4 {
        drop(again.iova_space().allocate(2 << 20, Sharing::Private).unwrap());
    }
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_what_is_absent_or_not_bound_is_said() {
    let ports = Ports::take();
    let absent = "0000:7f:1f.7".parse().unwrap();
    assert!(matches!(refused(absent), Error::NotFound { bdf } if bdf == absent));
    let sysfs = Sysfs::default();
    sysfs.unbind_vfio(ports.first()).unwrap();
    assert!(matches!(refused(ports.first()), Error::NotBound { .. }));
    assert!(matches!(sysfs.readiness(ports.first()).unwrap()[..], [Obstacle::NotBound { .. }]));
    assert_eq!(sysfs.readiness(ports.second()).unwrap(), []);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_a_function_opens_once() {
    let ports = Ports::take();
    let vfio = Vfio::new().unwrap();
    let function = vfio.open(ports.first()).unwrap();
    assert!(matches!(vfio.open(ports.first()), Err(Error::AlreadyOpen { .. })));
    drop(function);
    let (other, answer) = Other::start(&ports.first().to_string(), "", 0);
    assert_eq!(answer, "ok");
    assert!(matches!(refused(ports.first()), Error::Busy { .. }));
    drop(open(ports.second()));
    drop(other);
    drop(open(ports.first()));
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_another_user_needs_the_groups_node() {
    let ports = Ports::take();
    let group = Sysfs::default().function(ports.first()).unwrap().group.unwrap();
    let node = format!("/dev/vfio/{group}");
    let orders = ports.first().to_string();
    let (_, answer) = Other::start(&orders, "", NOBODY);
    assert!(answer.starts_with("Permission") && answer.contains(&node), "{answer}");
    chown(&node, Some(NOBODY), None).unwrap();
    assert_eq!(Other::start(&orders, "", NOBODY).1, "ok");
    let (_, answer) = Other::start(&format!("{orders} 524288"), "ulimit -l 64;", NOBODY);
    chown(&node, Some(0), None).unwrap();
    assert_eq!(answer, "LockedMemory { len: 524288 }");
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_the_kernels_limit_of_mappings_is_told_from_that_of_memory() {
    let ports = Ports::take();
    let limit = set_parameter("vfio_iommu_type1/parameters/dma_entry_limit", "2");
    let port = open(ports.first());
    set_parameter("vfio_iommu_type1/parameters/dma_entry_limit", &limit);
    let allocate = || port.iova_space().allocate(4096, Sharing::Private);
    let two = (allocate().unwrap(), allocate().unwrap());
    assert!(matches!(allocate(), Err(Error::DmaMappings { len: 4096 })));
    drop(two);
    assert_eq!(port.iova_space().mappings(), 0);
    allocate().unwrap();
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_without_the_module_it_is_named() {
    let ports = Ports::take();
    let sysfs = Sysfs::default();
    for bdf in &ports.bdfs {
        sysfs.unbind_vfio(*bdf).unwrap();
    }
    let modprobe =
        |arguments: &[&str]| assert!(Command::new("modprobe").args(arguments).status().unwrap().success());
    modprobe(&["-r", "vfio-pci", "vfio_iommu_type1"]);
    let absent = Vfio::new().map(drop);
    let unbound = sysfs.bind_vfio(ports.first()).map(drop);
    let missing = sysfs.readiness(ports.first()).unwrap();
    modprobe(&["vfio-pci", "enable_sriov=1"]);
    assert!(matches!(absent, Err(Error::NoVfio { .. })), "{absent:?}");
    assert!(matches!(unbound, Err(Error::NoVfio { .. })), "{unbound:?}");
    assert!(matches!(missing[..], [Obstacle::NoModule(_), Obstacle::NotBound { .. }]), "{missing:?}");
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_a_killed_process_leaves_a_function_that_opens() {
    let ports = Ports::take();
    let (mut other, answer) = Other::start(&ports.first().to_string(), "", 0);
    assert_eq!(answer, "ok");
    other.child.kill().unwrap();
    other.child.wait().unwrap();
    assert_eq!(command_of(ports.first()) & 4, 0);
    let port = open(ports.first());
    assert!(port.is_present());
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_binding_gives_the_old_driver_back() {
    let ports = Ports::unbound();
    let (sysfs, bdf) = (Sysfs::default(), ports.first());
    assert!(Command::new("modprobe").arg("igb").status().unwrap().success());
    assert_eq!(sysfs.unbind_vfio(bdf).unwrap().as_deref(), Some("igb"));
    let interfaces = || sysfs.function(bdf).unwrap().interfaces;
    assert_eq!(interfaces().len(), 1);
    let binding = sysfs.bind_vfio(bdf).unwrap();
    assert_eq!((binding.previous(), interfaces().len()), (Some("igb"), 0));
    drop(open(bdf));
    binding.restore().unwrap();
    assert_eq!(sysfs.function(bdf).unwrap().driver.as_deref(), Some("igb"));
    assert_eq!(interfaces().len(), 1);
    assert!(matches!(refused(bdf), Error::NotBound { driver: Some(driver), .. } if driver == "igb"));
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_a_vf_opens_with_its_pfs_token_only() {
    let ports = Ports::take();
    let (sysfs, pf) = (Sysfs::default(), ports.first());
    let (token, wrong) = (VfToken::random().unwrap(), VfToken::random().unwrap());
    let with = |token| OpenOptions { vf_token: Some(token) };
    let vfio = Vfio::new().unwrap();
    let port = vfio.open_with(pf, with(token)).unwrap();
    assert!(matches!(sysfs.set_num_vfs(pf, 9), Err(Error::NumVfs { wanted: 9, total: 8, .. })));
    let allowed = set_parameter("vfio_pci/parameters/enable_sriov", "N");
    assert!(matches!(sysfs.set_num_vfs(pf, 2), Err(Error::SriovDisabled { .. })));
    set_parameter("vfio_pci/parameters/enable_sriov", &allowed);
    sysfs.set_num_vfs(pf, 2).unwrap();
    let vfs = sysfs.function(pf).unwrap().vfs.unwrap().present;
    assert_eq!(vfs.len(), 2);
    let sriov = SrIov::of(&*port).unwrap();
    assert_eq!([sriov.vf_bdf(pf, 0), sriov.vf_bdf(pf, 1)], [Some(vfs[0]), Some(vfs[1])]);
    let _ = sysfs.bind_vfio(vfs[0]).unwrap();
    assert_eq!(sysfs.function(vfs[0]).unwrap().physical, Some(pf));

    for options in [OpenOptions::default(), with(wrong)] {
        let refused = vfio.open_with(vfs[0], options).map(drop);
        assert!(matches!(refused, Err(Error::VfToken { .. })), "{refused:?}");
    }
    let vf = vfio.open_with(vfs[0], with(token)).unwrap();
    assert_eq!(vf.ids().unwrap().device, sriov.vf_device_id);
    assert_ne!(vf.bar(0).unwrap().read32(register::STATUS), u32::MAX, "a VF decodes memory by itself");
    assert!(Arc::ptr_eq(vf.iova_space(), port.iova_space()));
    drop(vf);
    sysfs.set_num_vfs(pf, 0).unwrap();
    assert_eq!(sysfs.function(pf).unwrap().vfs.unwrap().present, []);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_registers_that_vanish_read_ones() {
    let ports = Ports::take();
    let port = open(ports.first());
    let bar = port.bar(0).unwrap();
    assert_ne!(bar.read32(register::STATUS), u32::MAX);
    let before = removal::lost_mappings();
    // Without memory decoding the kernel takes the BAR out of this process: a true SIGBUS.
    port.write_config(COMMAND, &[0, 0]).unwrap();
    assert_eq!(bar.read32(register::STATUS), u32::MAX);
    bar.write32(register::VFTA, 1);
    assert_eq!(removal::lost_mappings(), before + 1);
    assert!(!port.is_present());
    drop((bar, port));
    let port = open(ports.first());
    assert!(port.is_present() && port.bar(0).unwrap().read32(register::STATUS) != u32::MAX);
    let mut command = [0; 2];
    port.read_config(COMMAND, &mut command).unwrap();
    assert_ne!(u16::from_le_bytes(command) & COMMAND_MEMORY, 0);
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_an_unplugged_port_is_let_go() {
    let ports = Ports::take();
    let (sysfs, bdf) = (Sysfs::default(), ports.second());
    let mut plug = Plug::of(bdf);
    let vfio = Vfio::new().unwrap();
    let (stays, goes) = (vfio.open(ports.first()).unwrap(), vfio.open(bdf).unwrap());
    let memory = goes.iova_space().allocate(4096, Sharing::Private).unwrap();
    let notices = goes.notices().unwrap();
    assert_eq!(notices.removal.take(), 0);
    plug.pull();
    let told = notices.removal.wait(Duration::from_secs(20)).unwrap();
    assert_ne!(told, 0, "the kernel asks for the function");
    assert!(sysfs.function(bdf).is_ok(), "and waits");
    drop(goes);
    wait_until("the function's end", Duration::from_secs(20), || sysfs.function(bdf).is_err());
    assert!(matches!(vfio.open(bdf), Err(Error::NotFound { .. })));
    assert!(stays.is_present() && stays.bar(0).unwrap().read32(register::STATUS) != u32::MAX);
    drop((stays, memory));
    assert_eq!(vfio.iova_space().mappings(), 0);

    plug.put_back();
    let _ = sysfs.bind_vfio(bdf).unwrap();
    assert!(vfio.open(bdf).unwrap().is_present());
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn two_ports_the_last_group_may_vanish_with_memory_mapped() {
    let ports = Ports::take();
    let (sysfs, bdf) = (Sysfs::default(), ports.second());
    let mut plug = Plug::of(bdf);
    let vfio = Vfio::new().unwrap();
    let goes = vfio.open(bdf).unwrap();
    let memory = goes.iova_space().allocate(4096, Sharing::Private).unwrap();
    plug.pull();
    assert_ne!(goes.notices().unwrap().removal.wait(Duration::from_secs(20)).unwrap(), 0);
    drop(goes);
    wait_until("the function's end", Duration::from_secs(20), || sysfs.function(bdf).is_err());
    // The memory goes with the next first group, at the same address.
    let other = vfio.open(ports.first()).unwrap();
    let address = memory.iova();
    drop(memory);
    assert_eq!(other.iova_space().allocate(4096, Sharing::Private).unwrap().iova(), address);
    plug.put_back();
}

// ---- Two functions in one group.

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn shared_group_that_a_kernel_driver_shares_is_refused_by_name() {
    let ports = Ports::take();
    let (sysfs, (ours, theirs)) = (Sysfs::default(), (ports.first(), ports.second()));
    let group = sysfs.function(ours).unwrap().group;
    assert_eq!(group, sysfs.function(theirs).unwrap().group, "the machine has them in one group");
    // A driver that has the function and keeps it to itself: the group is the kernel's then.
    assert!(Command::new("modprobe").arg("igb").status().unwrap().success());
    sysfs.unbind_vfio(ours).unwrap();
    assert_eq!(sysfs.unbind_vfio(theirs).unwrap().as_deref(), Some("igb"));
    let _ = sysfs.bind_vfio(ours).unwrap();
    let missing = sysfs.readiness(ours).unwrap();
    let group = group.unwrap();
    assert_eq!(missing, [Obstacle::GroupNotViable { bdf: ours, group, others: vec![theirs] }]);
    assert!(matches!(refused(ours), Error::GroupNotViable { others, .. } if others == [theirs]));
    // Handing over the other one too, as the remedy says, makes it work.
    let _ = sysfs.bind_vfio(theirs).unwrap();
    assert!(open(ours).is_present());
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn shared_group_with_one_function_idle_opens() {
    let ports = Ports::take();
    let (_, idle) = (ports.first(), ports.second());
    fs::write(format!("/sys/bus/pci/devices/{idle}/driver/unbind"), idle.to_string()).unwrap();
    assert_eq!(Sysfs::default().readiness(ports.first()).unwrap(), []);
    assert!(open(ports.first()).is_present());
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn shared_group_serves_both_functions_until_the_last_closes() {
    let ports = Ports::take();
    let vfio = Vfio::new().unwrap();
    let (first, second) = (vfio.open(ports.first()).unwrap(), vfio.open(ports.second()).unwrap());
    drop(first);
    assert!(second.is_present() && second.bar(0).unwrap().read32(register::STATUS) != u32::MAX);
    drop(vfio.open(ports.first()).unwrap());
    let memory = vfio.iova_space().allocate(4096, Sharing::Private).unwrap();
    drop((second, memory, vfio));
    assert_eq!(held(), Vec::<String>::new());
}

// ---- No IOMMU.

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn no_iommu_is_said_before_anything_is_tried() {
    let ports = Ports::unbound();
    let sysfs = Sysfs::default();
    let missing = sysfs.readiness(ports.first()).unwrap();
    assert!(matches!(missing[0], Obstacle::NoIommu(_)), "{missing:?}");
    assert!(matches!(refused(ports.first()), Error::NoIommu { .. }));
}

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn no_iommu_binding_fails_and_rolls_back() {
    let ports = Ports::unbound();
    let (sysfs, bdf) = (Sysfs::default(), ports.first());
    assert!(Command::new("modprobe").arg("igb").status().unwrap().success());
    assert_eq!(sysfs.unbind_vfio(bdf).unwrap().as_deref(), Some("igb"));
    let error = sysfs.bind_vfio(bdf).unwrap_err();
    assert!(matches!(error, Error::NoIommu { .. }), "{error}");
    assert_eq!(sysfs.function(bdf).unwrap().driver.as_deref(), Some("igb"));
}

// ---- A NIC that no family drives.

#[test]
#[ignore = "needs VFIO: run by ./test in a virtual machine"]
fn unsupported_nics_are_refused_by_name() {
    let _ports = Ports::take();
    let bdf = functions_with((0x8086, 0x10d3))[0];
    let _ = Sysfs::default().bind_vfio(bdf).unwrap();
    let function = open(bdf);
    assert_eq!(becket::driver::supported(0x8086, 0x10d3), None);
    let Err(error) = becket::driver::open(function) else { panic!("{bdf} has a driver") };
    assert!(error.to_string().contains(&bdf.to_string()), "{error}");
    drop(open(bdf));
}
