//! A device that writes whatever it likes into an igb RX ring, while an application polls: no panic, no
//! access outside a buffer, every frame delivered or dropped by name, every buffer home at the end.
#![no_main]

#[path = "../../../driver/tests/igb_model/mod.rs"]
mod igb_model;

use std::cell::RefCell;
use std::sync::Arc;

use dataplane::{Burst, Mbuf, Mempool, PoolCache, QueueCounters, RxQueue};
use driver::igb::IgbRx;
use driver::igb::gate::Gate;
use igb_model::*;
use libfuzzer_sys::fuzz_target;

const MAX_FRAME: u32 = 5000;
const BUFFER: u16 = 2048;
const CAPACITY: u32 = 90;

struct Bench {
    rx: IgbRx,
    cache: PoolCache,
    gate: Arc<Gate>,
    pool: Mempool,
    side: Side,
    _nic: Nic,
    // Of this input:
    held: Vec<Mbuf>,
    hold: bool,
    open: bool,
    ended: u64,
}

impl Bench {
    fn new() -> Self {
        let nic = Nic::default();
        let pool = nic.pool(CAPACITY, BUFFER);
        let gate = Arc::new(Gate::new());
        let rx = nic.rx(rx_config(40, BUFFER, MAX_FRAME), &gate);
        let (cache, side) = (pool.cache(), nic.rx_side(0));
        Self { rx, cache, gate, pool, side, _nic: nic, held: Vec::new(), hold: false, open: false, ended: 0 }
    }

    fn restart(&mut self) {
        self.gate.restart();
        self.poll(0);
        self.side.reset();
        self.ended += u64::from(std::mem::take(&mut self.open));
    }

    fn poll(&mut self, max: usize) {
        let mut burst = Burst::new();
        assert_eq!(self.rx.poll(&mut self.cache, &mut burst, max), burst.len());
        assert!(burst.len() <= max);
        for mbuf in burst.iter() {
            assert!((1..=MAX_FRAME).contains(&mbuf.frame_len()) && mbuf.chained().all(|m| m.len() <= BUFFER));
            assert_eq!(mbuf.chained().map(|m| u32::from(m.len())).sum::<u32>(), mbuf.frame_len());
            assert_eq!(mbuf.chained().count(), usize::from(mbuf.segments()));
        }
        if self.hold {
            self.held.extend(burst.drain_front(64));
        }
        clear(&mut burst, &mut self.cache);
    }

    /// One step: an operation, its argument, and the words of a descriptor.
    fn step(&mut self, step: &[u8; 18], wild: bool) {
        let [operation, argument, words @ ..] = step;
        let (word0, word1) = words.split_at(8);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("split in half"));
        let (word0, word1) = (word(word0), word(word1));
        match operation % 8 {
            0..=2 => self.complete(word0, word1 | 1),
            // A length that can be, in a frame that may go on.
            3 => self.complete(word0, (word1 & !(0xf000 << 32)) | 1),
            4 if wild => self.side.scribble(u32::from(*argument) % 40, word0, word1),
            4 | 5 => self.poll(usize::from(*argument) % 70),
            6 => {
                self.hold = argument % 2 == 0;
                self.held.truncate(usize::from(*argument) / 2);
            }
            _ => self.restart(),
        }
    }

    fn complete(&mut self, word0: u64, word1: u64) {
        if self.side.complete(word0, word1) {
            self.open = word1 & 2 == 0;
            self.ended += word1 >> 1 & 1;
        }
    }

    fn run(&mut self, input: &[u8]) {
        let (Some(first), counters) = (input.first(), self.rx.counters().clone()) else { return };
        let wild = first % 2 == 1;
        (self.hold, self.open) = (false, false);
        self.restart();
        (self.ended, self.open) = (0, false);
        let before = accounted(&counters);
        for step in input[1..].as_chunks::<18>().0 {
            self.step(step, wild);
        }
        self.gate.stop();
        self.poll(64);
        self.held.clear();
        let frames = self.ended + u64::from(self.open);
        assert!(wild || frames == accounted(&counters) - before, "frames unaccounted for");
        assert_eq!(self.pool.available() + self.cache.stock(), CAPACITY as usize, "buffers lost");
    }
}

fn accounted(counters: &QueueCounters) -> u64 {
    counters.frames.get() + counters.dropped_total()
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

fuzz_target!(|input: &[u8]| BENCH.with_borrow_mut(|bench| bench.run(input)));
