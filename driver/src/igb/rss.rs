//! How flows spread over the queues (82576EB datasheet 7.1, 8.10).
//!
//! Hashed are: TCP and UDP over IPv4 and over IPv6 with addresses and ports; other IPv4 and IPv6, and
//! fragments, with addresses. What is not IP has no hash and goes to queue 0.

use super::device::Device;
use super::hw::regs::*;
use super::model::RSS_TABLE;
use crate::{Result, RssConfig};

const FIELDS: u32 = mrqc::IPV4
    | mrqc::IPV4_TCP
    | mrqc::IPV4_UDP
    | mrqc::IPV6
    | mrqc::IPV6_TCP
    | mrqc::IPV6_TCP_EX
    | mrqc::IPV6_UDP;

/// The queue of each bucket: the table as given, or round robin.
///
/// # Errors
/// [`crate::Error::Setting`] for a table of another length than [`RSS_TABLE`], or with a queue that is
/// not there.
pub(super) fn table(device: &Device, rss: &RssConfig, queues: u16) -> Result<[u8; RSS_TABLE]> {
    if rss.table.is_empty() {
        return Ok(std::array::from_fn(|bucket| (bucket % usize::from(queues.max(1))) as u8));
    }
    let Ok(table) = <[u8; RSS_TABLE]>::try_from(rss.table.as_slice()) else {
        let what = format!("RSS table of {} entries", rss.table.len());
        return Err(device.setting(what, format!("{RSS_TABLE} entries, or none for round robin")));
    };
    match table.iter().find(|&&queue| u16::from(queue) >= queues) {
        Some(queue) => {
            Err(device
                .setting(format!("RSS table with queue {queue}"), format!("queues 0 to {}", queues - 1)))
        }
        None => Ok(table),
    }
}

/// Writes key and table. Under traffic each frame sees the old or the new queue of its bucket.
pub(super) fn program(device: &Device, key: &[u8; 40], table: &[u8; RSS_TABLE]) {
    for (index, word) in words(key).enumerate() {
        device.write_at(RSSRK, index, word);
    }
    for (index, word) in words(table).enumerate() {
        device.write_at(RETA, index, word);
    }
}

/// Turns RSS on, with one queue too: frames carry their hash then.
pub(super) fn enable(device: &Device) {
    device.write(MRQC, mrqc::RSS | FIELDS);
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four))
}
