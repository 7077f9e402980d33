//! Frames of any shape with any offload posted to an igb TX ring, against a device that checks each
//! descriptor as the datasheet has it, or one that writes what it likes into them: no panic, nothing that
//! hangs the device, every frame accounted for, every buffer home at the end.
#![no_main]

#[path = "../../../driver/tests/igb_model/mod.rs"]
mod igb_model;

use std::cell::RefCell;
use std::sync::Arc;

use dataplane::{Burst, Drop as Reason, Mbuf, Mempool, PoolCache, TxOffload, TxQueue};
use driver::igb::gate::Gate;
use driver::igb::{IgbTx, TxQueueConfig};
use igb_model::*;
use libfuzzer_sys::fuzz_target;

const CAPACITY: u32 = 128;
const ROOM: u16 = 2048;

struct Bench {
    tx: IgbTx,
    cache: PoolCache,
    gate: Arc<Gate>,
    pool: Mempool,
    side: TxSide,
    _nic: Nic,
    burst: Burst,
    taken: u64,
}

impl Bench {
    fn new() -> Self {
        let nic = Nic::default();
        let pool = nic.pool(CAPACITY, ROOM);
        let gate = Arc::new(Gate::new());
        let tx = nic.tx(TxQueueConfig { index: 0, depth: 32, max_frame: 1522 }, &gate);
        let (cache, side) = (pool.cache(), nic.tx_side(0));
        Self { tx, cache, gate, pool, side, _nic: nic, burst: Burst::new(), taken: 0 }
    }

    fn restart(&mut self) {
        self.gate.restart();
        self.tx.reap(&mut self.cache);
        self.side.reset();
    }

    fn mbuf(&mut self, len: u16) -> Option<Mbuf> {
        let mut mbuf = self.cache.take()?;
        assert!(mbuf.set_len(len % (ROOM + 1)));
        Some(mbuf)
    }

    /// Puts a frame into the burst: lengths, segments, offload, tag.
    fn frame(&mut self, shape: &[u8; 16]) {
        let half = |at: usize| u16::from_le_bytes([shape[at], shape[at + 1]]);
        let Some(mut mbuf) = self.mbuf(half(0)) else { return };
        for _ in 0..shape[2] % 48 {
            let Some(next) = self.mbuf(half(4)) else { break };
            mbuf.chain(next);
        }
        let offload = TxOffload {
            flags: shape[6],
            l2_len: shape[7],
            l3_len: half(8),
            l4_len: shape[10],
            segment: half(12),
        };
        mbuf.set_offload(offload, half(14) % 4);
        if let Err(mbuf) = self.burst.push(mbuf) {
            self.cache.give(mbuf);
        }
    }

    /// One step: an operation, its argument, and the shape of a frame or words of a descriptor.
    fn step(&mut self, step: &[u8; 18], wild: bool) {
        let [operation, argument, shape @ ..] = step;
        match operation % 8 {
            0..=3 => self.frame(shape),
            4 => {
                let before = self.burst.len();
                self.taken += self.tx.post(&mut self.cache, &mut self.burst) as u64;
                assert!(self.burst.len() <= before);
            }
            5 if wild => {
                let word = |at: usize| std::array::from_fn(|n| shape[at + n]);
                let (word0, word1) = (u64::from_le_bytes(word(0)), u64::from_le_bytes(word(8)));
                self.side.side.scribble(u32::from(*argument) % 32, word0, word1);
            }
            5 => drop(self.side.send(usize::from(*argument))),
            6 => _ = self.tx.reap(&mut self.cache),
            _ if *argument < 32 => self.restart(),
            _ => clear(&mut self.burst, &mut self.cache),
        }
    }

    fn run(&mut self, input: &[u8]) {
        let (Some(first), counters) = (input.first(), self.tx.counters().clone()) else { return };
        let wild = first % 2 == 1;
        self.restart();
        let refused = || counters.dropped_total() - counters.dropped(Reason::TxFlushed);
        let before = counters.frames.get() + refused();
        self.taken = 0;
        for step in input[1..].as_chunks::<18>().0 {
            self.step(step, wild);
        }
        self.gate.stop();
        self.tx.reap(&mut self.cache);
        clear(&mut self.burst, &mut self.cache);
        assert_eq!(self.taken, counters.frames.get() + refused() - before, "frames unaccounted for");
        let home = counters.completed.get() + counters.dropped(Reason::TxFlushed);
        assert_eq!(counters.frames.get(), home, "frames neither completed nor flushed");
        assert_eq!(self.pool.available() + self.cache.stock(), CAPACITY as usize, "buffers lost");
    }
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

fuzz_target!(|input: &[u8]| BENCH.with_borrow_mut(|bench| bench.run(input)));
