//! Device models inside a QEMU that runs no guest, driven from this process.
//!
//! QEMU's processor is halted; its memory is a file that this process maps too, and every register
//! access is a message of the qtest protocol (QEMU `docs/devel/testing/qtest.rst`). So a driver test
//! runs against a real device model as an ordinary unit test, with no kernel driver, no IOMMU and no
//! root, some 50 ms after it starts:
//!
//! ```no_run
//! use std::time::Duration;
//! use pci::{Sharing, qtest::Machine};
//!
//! # fn main() -> pci::Result<()> {
//! // An igb on a wire that this process holds the other end of, and two on a hub of their own.
//! let machine = Machine::builder().nic("igb").nic_on_hub("igb", 0).nic_on_hub("igb", 0).start()?;
//!
//! let nic = machine.function(0);                        // Arc<dyn Function>, as from VFIO
//! let registers = nic.bar(0)?;
//! let ring = nic.iova_space().allocate(4096, Sharing::Private)?;
//! nic.set_bus_master(true)?;
//! registers.write32(0xe000, ring.iova() as u32);
//!
//! let wire = machine.wire(0);                           // the far end of nic 0's cable
//! wire.send(&[0xff; 64])?;                              // into the NIC
//! let sent = wire.recv(Duration::from_millis(100))?;    // what the NIC sent, if anything
//! # drop(sent);
//!
//! machine.set_link(0, false)?;                          // pull the cable
//! machine.remove(0)?;                                   // pull the card
//! # Ok(())
//! # }
//! ```
//!
//! What to know when writing tests on it:
//!
//! * A register access is complete when it returns, and so is the DMA that a model does inside it.
//!   What comes from the wire, and interrupts, come later: wait for them with a limit.
//! * Interrupts are merged while nobody looks, as with any edge: one event stands for one or more.
//! * BARs answer 32-bit accesses, as [`RegisterIo`](crate::RegisterIo) has them.
//! * QEMU is looked for as `qemu-system-x86_64` in `PATH`; the environment variable `BECKET_QEMU` names
//!   another. igb came with QEMU 8.0.
//! * Once QEMU is gone, or a card was removed, registers read all ones and writes are dropped;
//!   [`Machine::failure`] says why QEMU is gone.
//! * QEMU ends with its [`Machine`], also when the test panics or is killed, and leaves no files: its
//!   memory and sockets are inherited descriptors.
//!
//! [`Faulty`] wraps any function and breaks it in the ways hardware breaks.

mod builder;
mod bus;
mod device;
mod fault;
mod link;
mod machine;
mod process;
mod vectors;
mod wire;

pub use builder::Builder;
pub use fault::{Faulty, Register};
pub use machine::Machine;
pub use wire::Wire;

#[cfg(test)]
#[allow(unsafe_code)]
mod tests;
