//! Hangs and faults: how they are noticed, and how the device comes back.

use std::time::{Duration, Instant};

use super::gate::Gate;
use super::hw::regs::icr;
use super::queue::{QueueRegs, offset};
use super::{Igb, init, irq, stats};
use crate::{Link, Result};

/// A TX queue with work that has not moved for this long, while the link is up, hangs. The longest frame
/// takes 8 ms at 10 Mb/s.
const HANG: Duration = Duration::from_secs(1);

/// A queue that hangs again so soon after it alone was restarted has a cause outside it.
const RELAPSE: Duration = Duration::from_secs(10);

/// What was last seen of one TX queue that has work.
#[derive(Clone, Copy, Debug)]
struct Seen {
    head: u32,
    since: Instant,
    /// Looks since then: time alone proves nothing for a port that was not looked at.
    looks: u32,
    told: bool,
}

/// Watches TX queues for progress.
#[derive(Debug)]
pub(super) struct HangWatch {
    queues: Vec<Option<Seen>>,
    /// A fault was told and nobody has recovered since.
    faulted: bool,
    /// When queues alone were restarted last.
    restarted: Option<Instant>,
}

impl HangWatch {
    pub(super) fn new(queues: u16) -> Self {
        Self { queues: vec![None; queues.into()], faulted: false, restarted: None }
    }

    /// True once for each hang: the queue has work (`head` is not `tail`) and stands still.
    fn hangs(&mut self, queue: usize, head: u32, tail: u32, now: Instant) -> bool {
        let Some(seen) = self.queues.get_mut(queue) else { return false };
        let moved = seen.is_none_or(|seen| seen.head != head);
        if head == tail {
            *seen = None;
        } else if moved {
            *seen = Some(Seen { head, since: now, looks: 0, told: false });
        }
        let Some(seen) = seen else { return false };
        if moved {
            return false;
        }
        seen.looks += 1;
        let hangs = seen.looks >= 2 && now.saturating_duration_since(seen.since) >= HANG && !seen.told;
        seen.told |= hangs;
        hangs
    }

    /// Queues told to hang.
    fn hung(&self) -> Vec<u16> {
        let told = |seen: &Option<Seen>| seen.is_some_and(|seen| seen.told);
        (0..).zip(&self.queues).filter(|(_, seen)| told(seen)).map(|(queue, _)| queue).collect()
    }

    /// True where restarting the queues that hang is worth trying: nothing else is wrong, and it was not
    /// tried just now.
    fn is_theirs(&self, now: Instant) -> bool {
        let relapse = self.restarted.is_some_and(|at| now.saturating_duration_since(at) < RELAPSE);
        !self.faulted && !relapse
    }

    fn forget(&mut self) {
        self.queues.fill(None);
        self.faulted = false;
    }
}

impl Igb {
    /// Reads the interrupt causes, arms the vector again, and says whether there is a fault to be told:
    /// one that the device or PCI Express reports, or a queue that could not bring itself up.
    pub(super) fn take_faults(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        // Its count first: what fires from here on has something new to tell.
        running.vectors.misc.as_ref().map(pci::Interrupt::take);
        let causes = irq::take_causes(&self.device).unwrap_or(0);
        running.vectors.arm_misc(&self.device);
        let broken = running.gates().any(Gate::is_broken);
        let error = self.function.notices().is_some_and(|notices| notices.error.take() > 0);
        let reported = causes & icr::FAULTS != 0 || error;
        // A broken queue stays so until it is recovered: told once.
        let new = reported || (broken && !running.watch.faulted);
        running.watch.faulted |= new;
        new
    }

    /// TX queues that were found to hang just now.
    pub(super) fn hung_queues(&mut self, link: Link) -> Vec<u16> {
        let Some(running) = &mut self.running else { return Vec::new() };
        if !link.up {
            // Frames may wait for the link as long as it takes.
            running.watch.queues.fill(None);
            return Vec::new();
        }
        let now = Instant::now();
        let hangs = |queue: &u16| {
            let regs = QueueRegs::pf_tx(self.device.bar.clone(), *queue);
            let (head, tail) = (regs.head(), regs.read(offset::TAIL));
            // One that its core has dropped, or not brought up yet, has work that it will never do.
            let tail = if head == tail || regs.is_enabled() { tail } else { head };
            head != u32::MAX && running.watch.hangs(usize::from(*queue), head, tail, now)
        };
        (0..running.queues.len() as u16).filter(hangs).collect()
    }

    /// Single TX queues where only they hang, the whole device otherwise.
    pub(super) fn recover_device(&mut self) -> Result<()> {
        self.device.present()?;
        let Some(running) = &mut self.running else {
            self.pristine = false;
            init::reset(&self.device, self.model)?;
            self.medium.bring_up(&self.device, self.model.generation)?;
            self.pristine = true;
            return Ok(());
        };
        let hung = running.watch.hung();
        let now = Instant::now();
        let alone = !hung.is_empty() && running.watch.is_theirs(now);
        if alone
            && hung
                .iter()
                .all(|&queue| restart_queue(&self.device, &running.queues[usize::from(queue)].tx, queue))
        {
            running.watch.forget();
            running.watch.restarted = Some(now);
            running.vectors.wake_all();
            return Ok(());
        }
        let result = self.reset_running();
        if result.is_err() {
            // Half configured is worse than stopped: no DMA, and the queues know.
            let _ = self.halt();
        }
        result
    }

    fn reset_running(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let quiet = init::stop_master(&self.device);
        stats::harvest(&self.device, running.count(), &mut self.statistics);
        // The queues may be told as soon as there is no more DMA, at the latest when the reset is done:
        // the earlier, the surer is that none is busy with its registers when they are configured.
        if quiet.is_ok() {
            running.gates().for_each(Gate::stop);
        }
        init::reset(&self.device, self.model)?;
        running.gates().for_each(Gate::stop);
        running.watch.forget();
        self.medium.bring_up(&self.device, self.model.generation)?;
        self.configure()?;
        let Some(running) = &self.running else { return Ok(()) };
        running.gates().for_each(Gate::run);
        running.vectors.wake_all();
        Ok(())
    }
}

/// Restarts one TX queue; false where the device does not let it go.
fn restart_queue(device: &super::device::Device, gate: &Gate, queue: u16) -> bool {
    let regs = QueueRegs::pf_tx(device.bar.clone(), queue);
    let stopped = regs.disable(device.bdf, "disabling a hung TX queue (TXDCTL.ENABLE)").is_ok();
    if stopped {
        gate.restart();
    }
    stopped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> (HangWatch, Instant) {
        (HangWatch::new(2), Instant::now())
    }

    #[test]
    fn a_queue_with_work_that_stands_still_hangs_once() {
        let (mut watch, start) = watch();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!watch.hangs(1, 5, 9, at(0)));
        assert!(!watch.hangs(1, 5, 12, at(999)));
        assert!(watch.hangs(1, 5, 12, at(1000)));
        assert!(!watch.hangs(1, 5, 12, at(1100)), "told already");
        assert_eq!(watch.hung(), [1]);
        watch.forget();
        assert!(watch.hung().is_empty());
    }

    #[test]
    fn progress_and_idleness_are_no_hang() {
        let (mut watch, start) = watch();
        for second in 0..10 {
            let now = start + Duration::from_secs(second);
            assert!(!watch.hangs(0, second as u32, 99, now), "it moves");
            assert!(!watch.hangs(1, 7, 7, now), "it has nothing to do");
        }
    }

    #[test]
    fn one_late_look_is_no_hang_and_unknown_queues_are_none() {
        let (mut watch, start) = watch();
        assert!(!watch.hangs(0, 1, 2, start));
        assert!(!watch.hangs(0, 1, 2, start + Duration::from_secs(60)), "seen standing once only");
        assert!(watch.hangs(0, 1, 2, start + Duration::from_secs(61)));
        assert!(!watch.hangs(2, 1, 2, start));
    }
}
