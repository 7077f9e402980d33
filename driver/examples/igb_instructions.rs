//! Instructions per packet of igb's queues, with the device's side not counted:
//!
//! ```text
//! cargo build --release -p driver --example igb_instructions
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*::measured_*' \
//!     target/release/examples/igb_instructions rx 32
//! ```
//!
//! Arguments: `rx` or `tx`, and the burst. It prints the packets that the instructions collected are to
//! be divided by.

#[path = "../tests/igb_model/mod.rs"]
mod igb_model;

use dataplane::{Burst, PoolCache, RxQueue, TxQueue};
use driver::igb::{IgbRx, IgbTx, TxQueueConfig};
use igb_model::*;

const ROUNDS: usize = 2000;
const FRAME: [u8; 64] = [0x5a; 64];

#[inline(never)]
fn measured_poll(rx: &mut IgbRx, cache: &mut PoolCache, burst: &mut Burst) -> usize {
    rx.poll(cache, burst, 64)
}

#[inline(never)]
fn measured_post(tx: &mut IgbTx, cache: &mut PoolCache, burst: &mut Burst) -> usize {
    tx.post(cache, burst)
}

fn receive(nic: &Nic, size: usize) -> usize {
    let pool = nic.pool(2048, 2048);
    let (mut cache, gate) = (pool.cache(), open_gate());
    let mut rx = nic.rx(rx_config(512, 2048, 1522), &gate);
    rx.start(&mut cache).expect("the model's queue starts");
    let mut side = nic.rx_side(0);
    let mut packets = 0;
    for _ in 0..ROUNDS {
        (0..size).for_each(|_| assert!(side.deliver(&FRAME, IPCS | L4I, Some(7), 0)));
        let mut burst = Burst::new();
        packets += measured_poll(&mut rx, &mut cache, &mut burst);
        clear(&mut burst, &mut cache);
    }
    packets
}

fn transmit(nic: &Nic, size: usize) -> usize {
    let pool = nic.pool(2048, 2048);
    let (mut cache, gate) = (pool.cache(), open_gate());
    let mut tx = nic.tx(TxQueueConfig { index: 0, depth: 512, max_frame: 1522 }, &gate);
    tx.start().expect("the model's queue starts");
    let mut side = nic.tx_side(0);
    let mut packets = 0;
    for _ in 0..ROUNDS {
        let mut burst = Burst::new();
        cache.take_burst(&mut burst, size);
        for mbuf in burst.iter_mut() {
            mbuf.reset();
            assert!(mbuf.append(&FRAME));
        }
        packets += measured_post(&mut tx, &mut cache, &mut burst);
        side.send(64);
    }
    packets
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let direction = arguments.next().unwrap_or_default();
    let size = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(32).clamp(1, 64);
    let nic = Nic::default();
    let packets = match direction.as_str() {
        "rx" => receive(&nic, size),
        "tx" => transmit(&nic, size),
        _ => return eprintln!("say `rx` or `tx`, and the burst (1 to 64)"),
    };
    println!("{packets} packets");
}
