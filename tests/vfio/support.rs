//! What all tests have: the ports, the machine around them, waits that end.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use becket::pci::Bdf;
use becket::pci::config::COMMAND;
use becket::pci::sysfs::Sysfs;

pub const IGB: (u16, u16) = (0x8086, 0x10c9);
pub const NOBODY: u32 = 65534;

/// How long anything may take: an emulated machine on a busy host is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The igb ports in address order, bound to vfio-pci, for one test at a time.
pub struct Ports {
    pub bdfs: Vec<Bdf>,
    _alone: MutexGuard<'static, ()>,
}

impl Ports {
    pub fn take() -> Self {
        let ports = Self::unbound();
        for bdf in &ports.bdfs {
            let _ = Sysfs::default().bind_vfio(*bdf).unwrap();
        }
        ports
    }

    pub fn unbound() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { bdfs: functions_with(IGB), _alone: alone }
    }

    pub fn first(&self) -> Bdf {
        self.bdfs[0]
    }

    pub fn second(&self) -> Bdf {
        self.bdfs[1]
    }
}

pub fn functions_with(id: (u16, u16)) -> Vec<Bdf> {
    let functions = Sysfs::default().functions().unwrap().into_iter();
    functions.filter(|f| (f.ids.vendor, f.ids.device) == id).map(|f| f.bdf).collect()
}

/// The command register, past VFIO.
pub fn command_of(bdf: Bdf) -> u16 {
    let mut bytes = [0; 2];
    let config = fs::File::open(format!("/sys/bus/pci/devices/{bdf}/config")).unwrap();
    config.read_exact_at(&mut bytes, COMMAND.into()).unwrap();
    u16::from_le_bytes(bytes)
}

/// What of VFIO this process has mapped or open, besides containers.
pub fn held() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let is_vfio = |name: &str| name.contains("[vfio") || name.contains("/dev/vfio");
    let mut held: Vec<_> = maps.lines().filter(|line| is_vfio(line)).map(str::to_owned).collect();
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
        if is_vfio(&target) {
            held.push(target);
        }
    }
    held
}

pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sets a parameter of a kernel module, and gives the one before.
pub fn set_parameter(parameter: &str, value: &str) -> String {
    let path = format!("/sys/module/{parameter}");
    let before = fs::read_to_string(&path).unwrap().trim().to_owned();
    fs::write(&path, value).unwrap();
    before
}

/// Has the guest's own QEMU carry out a command.
pub fn qmp(command: &str) {
    let path = std::env::var("BECKET_QMP").unwrap_or_else(|_| "/dev/virtio-ports/qmp".to_owned());
    let mut port = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    writeln!(port, "{command}").unwrap();
    let mut lines = BufReader::new(port).lines();
    let answer =
        lines.find_map(|line| line.ok().filter(|l| l.contains("\"return\"") || l.contains("\"error\"")));
    assert!(answer.as_deref().is_some_and(|line| line.contains("\"return\"")), "{command}: {answer:?}");
}

/// The number of an igb port in names of QEMU's: every port is behind a root port of its own.
fn number(bdf: Bdf) -> u8 {
    bdf.bus - 1
}

/// Pulls the cable of a port, or plugs it in.
pub fn set_link(bdf: Bdf, up: bool) {
    let name = number(bdf);
    qmp(&format!(r#"{{"execute":"set_link","arguments":{{"name":"nic{name}","up":{up}}}}}"#));
}

/// The slot of an igb port. What was pulled out of it is back when this is dropped.
pub struct Plug {
    bdf: Bdf,
    out: bool,
}

impl Plug {
    pub fn of(bdf: Bdf) -> Self {
        Self { bdf, out: false }
    }

    fn is_there(&self) -> bool {
        Sysfs::default().function(self.bdf).is_ok()
    }

    /// Asks for the port. It goes when its owner lets it go.
    pub fn pull(&mut self) {
        let name = number(self.bdf);
        self.out = true;
        qmp(&format!(r#"{{"execute":"device_del","arguments":{{"id":"nic{name}"}}}}"#));
    }

    pub fn wait_gone(&self) {
        wait_until("the function's end", PATIENCE, || !self.is_there());
    }

    /// The same port once more.
    pub fn put_back(&mut self) {
        let name = number(self.bdf);
        qmp(&format!(
            concat!(
                r#"{{"execute":"device_add","arguments":{{"driver":"igb","id":"nic{0}","netdev":"h{0}","#,
                r#""mac":"52:54:00:be:c0:{0:02x}","romfile":"","bus":"rp{0}"}}}}"#
            ),
            name
        ));
        self.out = false;
        wait_until("the port's return", PATIENCE, || self.is_there());
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        if self.out {
            self.wait_gone();
            self.put_back();
        }
    }
}

/// Lines of the kernel's log that hold `text`.
pub fn kernel_said(text: &str) -> usize {
    let log = Command::new("dmesg").output().unwrap().stdout;
    String::from_utf8_lossy(&log).lines().filter(|line| line.contains(text)).count()
}

/// How often the kernel took an MSI-X vector of a function.
pub fn interrupts(bdf: Bdf, vector: u16) -> u64 {
    let name = format!("vfio-msix[{vector}]({bdf})");
    let table = fs::read_to_string("/proc/interrupts").unwrap();
    let line = table.lines().find(|line| line.ends_with(&name)).unwrap_or_else(|| panic!("no {name}"));
    line.split_whitespace().skip(1).map_while(|count| count.parse::<u64>().ok()).sum()
}
