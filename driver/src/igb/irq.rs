//! MSI-X: vector 0 for the link and faults, then one for each RX queue if wanted
//! (82576EB datasheet 7.3).
//!
//! A vector masks itself and forgets its cause when its message is sent (EIAM, EIAC): one message for
//! each arming, which is a write of the vector's bit to EIMS. What came in while it was masked fires it
//! then.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use pci::config::Structure;
use pci::{Function, Interrupt, config};

use super::device::Device;
use super::hw::regs::*;
use super::model::Generation;
use crate::queue::RxInterrupt;
use crate::{Error, Result};

/// The vector of everything that is not a queue.
const MISC: u16 = 0;
/// Least time between two interrupts of an RX queue, microseconds: 50,000 a second.
const RX_INTERVAL_US: u32 = 20;
/// Causes of ICR that fire the vector.
const CAUSES: u32 = icr::LSC | icr::FAULTS;

/// The vectors in use.
#[derive(Debug)]
pub(super) struct Vectors {
    /// Fires on link changes and faults. None where the function has no MSI-X: everything is polled then.
    pub(super) misc: Option<Interrupt>,
    /// Second handles of the RX queues' eventfds: queue n has vector n + 1.
    wakers: Vec<File>,
}

impl Vectors {
    /// Enables one vector, and one for each of `rx_queues` queues. Nothing fires before
    /// [`Vectors::program`].
    ///
    /// # Errors
    /// [`Error::Setting`] where there are fewer vectors: two cores cannot wait for one, since whoever is
    /// first takes its count. Without `rx_queues`, a function without MSI-X is no error.
    pub(super) fn enable(
        function: &dyn Function,
        device: &Device,
        rx_queues: u16,
    ) -> Result<(Self, Vec<Interrupt>)> {
        let have = match config::Msix::of(function) {
            Ok(msix) => msix.table_size.min(EITR.count as u16),
            Err(pci::Error::NoCapability { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        if have == 0 && rx_queues == 0 {
            return Ok((Self { misc: None, wakers: Vec::new() }, Vec::new()));
        }
        if have < rx_queues + 1 {
            let what = format!("RX interrupts for {rx_queues} queues");
            let most = have.saturating_sub(1);
            return Err(
                device.setting(what, format!("at most {most} queues: the function has {have} vectors"))
            );
        }
        let mut interrupts = function.enable_interrupts(rx_queues + 1)?.into_iter();
        let misc = interrupts.next();
        let rx: Vec<Interrupt> = interrupts.collect();
        let waker = |vector: &Interrupt| vector.as_fd().try_clone_to_owned().map(File::from);
        let wakers: io::Result<_> = rx.iter().map(waker).collect();
        let wakers = wakers.map_err(|e| pci::Error::io("duplicating a vector's eventfd", e))?;
        Ok((Self { misc, wakers }, rx))
    }

    /// Maps causes to vectors and lets the first vector through; queues are armed by their cores.
    pub(super) fn program(&self, device: &Device, generation: Generation) {
        if self.misc.is_none() {
            return;
        }
        // 7.3.2.11: the mode comes first, the other registers mean something else without it.
        device.write(GPIE, gpie::MULTIPLE_MSIX | gpie::PBA | gpie::EIAME | gpie::NSICR);
        let all = (0..=self.wakers.len()).fold(0, |bits, vector| bits | 1 << vector);
        device.write(EIAC, all);
        device.write(EIAM, all);
        device.write(IVAR_MISC, (ivar::VALID | u32::from(MISC)) << 8);
        device.write_at(EITR, usize::from(MISC), 0);
        for queue in 0..self.wakers.len() as u16 {
            let (register, shift) = generation.ivar(queue);
            let vector = queue + 1;
            let old = device.read_at(IVAR, register) & !(0xff << shift);
            device.write_at(IVAR, register, old | (ivar::VALID | u32::from(vector)) << shift);
            device.write_at(EITR, usize::from(vector), RX_INTERVAL_US << 2);
        }
        let _ = device.read(ICR);
        device.write(IMS, CAUSES);
        self.arm_misc(device);
    }

    /// Lets the next link change or fault fire.
    pub(super) fn arm_misc(&self, device: &Device) {
        if self.misc.is_some() {
            device.write(EIMS, 1 << MISC);
        }
    }

    /// Wakes every core that waits for frames: to bring its queue up after a reset, or to see that it is
    /// stopped. Nothing else would, so this goes past the device.
    pub(super) fn wake_all(&self) {
        for mut eventfd in &self.wakers {
            // It fails only where the count is full: the core is awake then.
            let _ = eventfd.write(&1u64.to_ne_bytes());
        }
    }
}

/// What the core of the queue with `vector` gets.
pub(super) fn rx_interrupt(device: &Device, vector: Interrupt) -> RxInterrupt {
    let (bar, bit) = (device.bar.clone(), 1u32 << (vector.vector() & 31));
    RxInterrupt { vector, arm: Box::new(move || bar.write32(EIMS.offset, bit)) }
}

/// What has happened since the last time, as bits of ICR; reading forgets it.
///
/// # Errors
/// [`Error::Removed`].
pub(super) fn take_causes(device: &Device) -> Result<u32> {
    match device.read(ICR) {
        u32::MAX => Err(Error::Removed { bdf: device.bdf }),
        causes => Ok(causes),
    }
}
