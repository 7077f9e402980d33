//! The device's counters: registers that reading clears, added up in 64 bits (82576EB datasheet 8.19).
//!
//! The 32-bit ones of a gigabit link fill in 48 minutes at the least and stay full; the byte counters are
//! 64 bits in two registers. All ones is what a device that is gone answers: never added.

use super::device::Device;
use super::hw::regs::*;
use crate::PortStatistics;

/// Adds what the device has counted since the last time. `queues` is how many RX queues run.
pub(super) fn harvest(device: &Device, queues: u16, sum: &mut PortStatistics) {
    let count = |register: Register| count(device.read(register));
    // Wrapping: what a device says in its byte counters may be anything.
    let add = |sum: &mut u64, more: u64| *sum = sum.wrapping_add(more);
    add(&mut sum.rx_frames, count(GPRC));
    add(&mut sum.rx_bytes, bytes(device, GORCL, GORCH));
    add(&mut sum.rx_multicast, count(MPRC));
    add(&mut sum.rx_broadcast, count(BPRC));
    add(&mut sum.rx_crc_errors, count(CRCERRS));
    add(&mut sum.rx_errors, [ALGNERRC, RXERRC, RLEC, RFC].map(count).iter().sum());
    add(&mut sum.rx_missed, count(MPC) + dropped(device, queues));
    add(&mut sum.tx_frames, count(GPTC));
    add(&mut sum.tx_bytes, bytes(device, GOTCL, GOTCH));
    add(&mut sum.tx_multicast, count(MPTC));
    add(&mut sum.tx_broadcast, count(BPTC));
    add(&mut sum.tx_errors, [ECOL, LATECOL, TNCRS].map(count).iter().sum());
}

/// Clears what was counted before the driver came (4.5, initialization of statistics).
pub(super) fn clear(device: &Device, queues: u16) {
    harvest(device, queues, &mut PortStatistics::default());
}

fn dropped(device: &Device, queues: u16) -> u64 {
    (0..usize::from(queues)).map(|queue| count(device.read_at(RQDPC, queue))).sum()
}

fn count(value: u32) -> u64 {
    if value == u32::MAX { 0 } else { value.into() }
}

/// Reading the high half clears both, so the low half comes first. A high half of all ones would take
/// centuries: the device is gone.
fn bytes(device: &Device, low: Register, high: Register) -> u64 {
    let low = device.read(low);
    match device.read(high) {
        u32::MAX => 0,
        high => u64::from(high) << 32 | u64::from(low),
    }
}
