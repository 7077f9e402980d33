//! Becket on the kernel's VFIO, in a virtual machine.
//!
//! The first words of a test's name are the machine that it needs, see `tests/vm/run`:
//!
//! * `two_ports`: two igb ports on one wire, in IOMMU groups of their own.
//! * `four_ports`: four of them, on two wires: the first two, the last two.
//! * `shared_group`: two igb functions of one card, in one group.
//! * `no_iommu`: an igb port, and no IOMMU.
//! * `unsupported`: besides, an e1000e, which no family drives.

mod function;
mod pktgen;
mod support;
mod traffic;
