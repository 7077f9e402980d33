//! The igb port against QEMU's 82576: what the device does on the wire, and how the port takes faults.

mod faults;
mod filters;
mod interrupts;
mod lifecycle;
mod recovery;
mod rss;
mod statistics;
mod support;
