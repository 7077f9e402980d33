//! Forwards between two NIC ports: what one receives, the other sends.
//!
//! `cargo run --release --example l2fwd -- 0000:01:00.0 0000:01:00.1`, as root, with both ports bound to
//! vfio-pci (`cargo run --example list` shows how). Ctrl-C ends it; the kernel then resets the devices.

use std::error::Error;
use std::time::Duration;

use becket::dataplane::{Burst, Drop, Idle, Mempool, PoolCache, PoolConfig, RxQueue, Task, TxQueue, Worker};
use becket::driver::{self, PortConfig, Rx, Tx};
use becket::pci::vfio::Vfio;

/// Both directions, on one core.
struct Forward {
    pool: PoolCache,
    wires: [(Rx, Tx); 2],
}

impl Task for Forward {
    fn turn(&mut self) -> usize {
        let mut moved = 0;
        for (rx, tx) in &mut self.wires {
            let mut burst = Burst::new();
            let got = rx.poll(&mut self.pool, &mut burst, 32);
            if got == 0 {
                // Nothing came: fetch back the buffers of frames that are sent.
                tx.reap(&mut self.pool);
                continue;
            }
            moved += got;
            tx.post(&mut self.pool, &mut burst);
            // What the other port's ring had no room for is dropped, and counted.
            let left = burst.len();
            tx.counters().drop_frames(Drop::RingFull, left as u64);
            self.pool.give_burst(&mut burst, left);
        }
        moved
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let addresses: Vec<String> = std::env::args().skip(1).collect();
    let [a, b] = &addresses[..] else { return Err("usage: l2fwd 0000:01:00.0 0000:01:00.1".into()) };

    // Devices of one container see the same memory: a buffer received by one is sent by the other as it is.
    let vfio = Vfio::new()?;
    let mut ports = [driver::open(vfio.open(a.parse()?)?)?, driver::open(vfio.open(b.parse()?)?)?];
    let pool = Mempool::new(vfio.iova_space(), PoolConfig::default())?;

    let config = PortConfig { promiscuous: true, ..PortConfig::default() };
    let mut pairs = Vec::new();
    for port in &mut ports {
        pairs.extend(port.start(&config, &pool)?);
    }
    let [a, b] = pairs.try_into().map_err(|_| "each port was asked for one queue pair")?;
    let watched = [a.rx.counters().clone(), b.rx.counters().clone()];

    let wires = [(a.rx, b.tx), (b.rx, a.tx)];
    let worker = Worker::spawn("l2fwd", Some(0), Idle::Poll, Forward { pool: pool.cache(), wires })?;
    while !worker.is_finished() {
        std::thread::sleep(Duration::from_secs(1));
        println!("received {} and {} frames", watched[0].frames.get(), watched[1].frames.get());
    }
    worker.stop()?;
    Ok(())
}
