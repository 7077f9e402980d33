//! [`Builder`]: the command line of a QEMU with NICs, cables and no guest.

use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;

use memmap2::MmapRaw;

use super::bus::Slot;
use super::link::Link;
use super::machine::Machine;
use super::process::{Process, memory_file, program};
use super::vectors::Vectors;
use super::wire::Wire;
use crate::{Error, Result};

/// The machine's memory in MiB. Only what is touched takes memory of the host.
const RAM_MIB: u64 = 64;
/// Root ports have device numbers 1 to 28 on bus 0, where the chipset has 0 and 31.
const MOST_NICS: usize = 28;
/// The chipset's own devices that no test wants: QEMU starts faster without.
const MACHINE: &str =
    "q35,memory-backend=m,usb=off,smbus=off,sata=off,hpet=off,vmport=off,i8042=off,graphics=off";

/// Which NICs a [`Machine`] has, and what their cables lead to.
#[derive(Debug, Default)]
pub struct Builder {
    /// Model with its properties, and the hub if it is on one.
    nics: Vec<(String, Option<u8>)>,
    /// Hubs with a wire of ours on them.
    hub_wires: Vec<u8>,
}

impl Builder {
    /// Adds a NIC whose cable leads to this process: [`Machine::wire`].
    ///
    /// `model` is one of QEMU's, with properties if wanted: `igb`, `igb,mac=02:00:00:00:00:01`.
    /// Without a `mac`, the first NIC has 52:54:00:12:34:56 and each further one the next.
    pub fn nic(mut self, model: &str) -> Self {
        self.nics.push((model.to_owned(), None));
        self
    }

    /// Adds a NIC on the hub of that number: what one sends, all others on the hub receive.
    pub fn nic_on_hub(mut self, model: &str, hub: u8) -> Self {
        self.nics.push((model.to_owned(), Some(hub)));
        self
    }

    /// Adds a wire from this process to the hub of that number: [`Machine::hub_wire`].
    pub fn wire_on_hub(mut self, hub: u8) -> Self {
        self.hub_wires.push(hub);
        self
    }

    /// Starts QEMU and does what firmware would: bus numbers, BAR addresses, memory decoding.
    ///
    /// # Errors
    /// [`Error::System`] where QEMU cannot be started, [`Error::Peer`] where it refuses the
    /// configuration, with what it said.
    pub fn start(self) -> Result<Machine> {
        if self.nics.is_empty() || self.nics.len() > MOST_NICS {
            let what = format!("{} NICs asked for: ask for 1 to {MOST_NICS}", self.nics.len());
            return Err(Error::Peer { peer: "QEMU".into(), what });
        }
        let mut line = CommandLine::default();
        let ram = line.computer()?;
        let (qtest, qmp) = line.control()?;
        let wires = line.cards(&self)?;
        let stderr = memory_file(c"qtest-stderr", 0, &[])?;
        let vectors = Arc::new(Vectors::new(ram.clone()));
        let process = Process::start(program(), line.arguments, line.inherited, &stderr, vectors.clone())?;
        let link = Arc::new(Link::new(qtest, qmp, stderr)?);
        Machine::new(process, link, &ram, vectors, wires).map_err(remedy)
    }
}

/// QEMU says what it does not like; this says what to do about it.
fn remedy(error: Error) -> Error {
    match error {
        Error::Peer { peer, what } if what.contains("not a valid device model name") => {
            let what = format!(
                "{what}; `qemu-system-x86_64 -device help` lists its models (igb: QEMU 8.0 or later), \
                 BECKET_QEMU names another QEMU"
            );
            Error::Peer { peer, what }
        }
        other => other,
    }
}

/// This process's ends of the cables.
#[derive(Default)]
pub(super) struct Wires {
    /// One for each NIC; none for those on a hub.
    pub(super) of_nics: Vec<Option<Wire>>,
    /// Hubs and the wire on each.
    pub(super) on_hubs: Vec<(u8, Wire)>,
}

/// Arguments, and the descriptors that they name.
#[derive(Default)]
struct CommandLine {
    arguments: Vec<OsString>,
    inherited: Vec<OwnedFd>,
}

impl CommandLine {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.arguments.extend([option.into(), value.into()]);
    }

    /// Hands a descriptor down; QEMU sees it under the number returned.
    fn hand_down(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        self.inherited.push(fd.into());
        self.inherited[self.inherited.len() - 1].as_raw_fd()
    }

    fn hand_down_file(&mut self, name: &CStr, len: u64, content: &[u8]) -> Result<RawFd> {
        Ok(self.hand_down(memory_file(name, len, content)?))
    }

    /// A PC that halts: its RAM is the mapping returned.
    fn computer(&mut self) -> Result<Arc<MmapRaw>> {
        let file = memory_file(c"qtest-ram", RAM_MIB << 20, &[])?;
        let map = MmapRaw::map_raw(&file).map_err(|e| Error::io("mapping QEMU's RAM", e))?;
        let ram = self.hand_down(file);
        // The reset vector is 16 bytes below 4 GiB, where the image ends: cli; hlt; jmp to the hlt.
        let mut image = vec![0; 64 << 10];
        let reset = image.len() - 16;
        image[reset..reset + 4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
        let bios = self.hand_down_file(c"qtest-bios", image.len() as u64, &image)?;
        let backend = format!("memory-backend-file,id=m,size={RAM_MIB}M,mem-path=/dev/fd/{ram},share=on");
        self.arguments.extend(["-no-user-config", "-nodefaults"].map(Into::into));
        self.add("-machine", MACHINE);
        self.add("-accel", "tcg,tb-size=1");
        self.add("-m", RAM_MIB.to_string());
        self.add("-object", backend);
        self.add("-bios", format!("/dev/fd/{bios}"));
        self.add("-display", "none");
        // Cards are pulled through their root ports, not through ACPI, which needs a guest.
        self.add("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off");
        Ok(Arc::new(map))
    }

    /// The qtest and QMP sockets, our ends.
    fn control(&mut self) -> Result<(UnixStream, UnixStream)> {
        let pair = || UnixStream::pair().map_err(no_socket);
        let ((qtest, theirs), (qmp, monitor)) = (pair()?, pair()?);
        let (theirs, monitor) = (self.hand_down(theirs), self.hand_down(monitor));
        self.add("-chardev", format!("socket,id=qtest,fd={theirs}"));
        self.add("-qtest", "chardev:qtest");
        self.add("-qtest-log", "/dev/null");
        self.add("-chardev", format!("socket,id=qmp,fd={monitor}"));
        self.add("-mon", "chardev=qmp,mode=control");
        Ok((qtest, qmp))
    }

    /// Cards, each behind a root port of its own, from which it can be pulled; and their cables.
    fn cards(&mut self, wanted: &Builder) -> Result<Wires> {
        let mut wires = Wires::default();
        for (nic, (model, hub)) in wanted.nics.iter().enumerate() {
            let slot = Slot::number(nic);
            wires.of_nics.push(match hub {
                Some(hub) => {
                    self.add("-netdev", format!("hubport,id=net{nic},hubid={hub}"));
                    None
                }
                None => Some(self.wire(&format!("net{nic}"))?),
            });
            self.add("-device", format!("pcie-root-port,id=port{nic},chassis={slot},addr={slot:#x}"));
            self.add("-device", format!("{model},id=nic{nic},bus=port{nic},netdev=net{nic},romfile="));
        }
        for (index, &hub) in wanted.hub_wires.iter().enumerate() {
            wires.on_hubs.push((hub, self.wire(&format!("far{index}"))?));
            self.add("-netdev", format!("hubport,id=near{index},hubid={hub},netdev=far{index}"));
        }
        Ok(wires)
    }

    fn wire(&mut self, id: &str) -> Result<Wire> {
        let (ours, theirs) = UnixDatagram::pair().map_err(no_socket)?;
        let theirs = self.hand_down(theirs);
        self.add("-netdev", format!("dgram,id={id},local.type=fd,local.str={theirs}"));
        Wire::new(ours)
    }
}

fn no_socket(error: io::Error) -> Error {
    Error::io("a pair of sockets to QEMU", error)
}
