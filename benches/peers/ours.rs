//! The same work in Becket, through the queues an application holds.

use std::time::{Duration, Instant};

use becket::dataplane::generator::{Flows, FrameSpec, TxGenerator, Vary};
use becket::dataplane::{Burst, Mempool, PoolCache, PoolConfig, RxQueue, TxQueue, worker};
use becket::driver::{QueuePair, null};
use becket::pci::IovaSpace;

use crate::{Case, Work};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Turns between two looks at the clock.
const TURNS: u32 = 1024;
/// As net_null's.
const RECEIVED: u16 = 64;

struct Bench {
    queues: QueuePair,
    cache: PoolCache,
    burst: Burst,
    size: usize,
    generator: TxGenerator,
}

impl Bench {
    fn new(case: Case) -> Result<Self> {
        let pool = Mempool::new(&IovaSpace::software(), PoolConfig::default())?;
        let queues = null::open(1, RECEIVED).pop().ok_or("no queue pair")?;
        // As many flows as testpmd has, told apart by the destination address as there; and frames as long.
        let (flows, len) = match case.work {
            Work::Flowgen => (Flows::new(1024, Vary::DST_IP)?, 60),
            Work::Io | Work::Txonly | Work::Rxonly => (Flows::ONE, 64),
        };
        let generator = TxGenerator::new(&[FrameSpec { len, ..FrameSpec::default() }], flows, None)?;
        Ok(Self { queues, cache: pool.cache(), burst: Burst::new(), size: case.burst, generator })
    }

    /// Runs `turn` until `done` says so, asked every so many turns; frames sent.
    #[inline(always)]
    fn run(&mut self, mut turn: impl FnMut(&mut Self), mut done: impl FnMut(u64) -> bool) -> u64 {
        let before = self.sent();
        loop {
            for _ in 0..TURNS {
                turn(self);
            }
            if done(self.sent() - before) {
                return self.sent() - before;
            }
        }
    }

    fn sent(&self) -> u64 {
        self.queues.tx.counters().frames.get()
    }

    #[inline(always)]
    fn io(&mut self) {
        self.queues.rx.poll(&mut self.cache, &mut self.burst, self.size);
        self.queues.tx.post(&mut self.cache, &mut self.burst);
    }

    #[inline(always)]
    fn txonly(&mut self) {
        self.generator.fill(&mut self.cache, &mut self.burst, self.size, 0);
        self.queues.tx.post(&mut self.cache, &mut self.burst);
    }

    /// As testpmd's: what comes in is dropped, flows go out.
    #[inline(always)]
    fn flowgen(&mut self) {
        let received = self.queues.rx.poll(&mut self.cache, &mut self.burst, self.size);
        self.cache.give_burst(&mut self.burst, received);
        self.txonly();
    }
}

fn until(case: Case, done: impl FnMut(u64) -> bool) -> Result<u64> {
    let mut bench = Bench::new(case)?;
    Ok(match case.work {
        Work::Io => bench.run(Bench::io, done),
        Work::Txonly => bench.run(Bench::txonly, done),
        Work::Flowgen => bench.run(Bench::flowgen, done),
        Work::Rxonly => return Err("receiving only needs a NIC: it is measured in the guest".into()),
    })
}

/// Works for about `duration` on `core`; packets a second.
pub fn slice(case: Case, core: usize, duration: Duration) -> Result<f64> {
    let body = move || {
        worker::pin(core).map_err(|e| format!("core {core}: {e}"))?;
        let begun = Instant::now();
        let mut elapsed = Duration::ZERO;
        let frames = until(case, |_| {
            elapsed = begun.elapsed();
            elapsed >= duration
        })
        .map_err(|e| e.to_string())?;
        Ok::<_, String>(frames as f64 / elapsed.as_secs_f64())
    };
    Ok(std::thread::spawn(body).join().map_err(|_| "our slice panicked")??)
}

/// Works until `frames` frames are sent.
pub fn frames(case: Case, frames: u64) -> Result<u64> {
    until(case, |sent| sent >= frames)
}
