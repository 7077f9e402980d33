//! What each piece of the hot path costs, a burst at a time: `cargo bench --bench hot`.

use std::hint::black_box;

use becket::dataplane::generator::{Flows, FrameSpec, TxGenerator, Vary};
use becket::dataplane::{Burst, Mempool, PoolConfig, RxQueue, TxQueue};
use becket::driver::{loopback, null};
use becket::pci::IovaSpace;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BURSTS: [usize; 3] = [1, 8, 32];

fn hot_path(criterion: &mut Criterion) {
    let pool = Mempool::new(&IovaSpace::software(), PoolConfig::default()).expect("a pool of 18 MiB");
    let mut cache = pool.cache();
    let mut burst = Burst::new();
    let mut group = criterion.benchmark_group("burst");
    for size in BURSTS {
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("pool: take and give", size), |b| {
            b.iter(|| {
                cache.take_burst(&mut burst, size);
                cache.give_burst(black_box(&mut burst), size);
            });
        });
        let mut port = null::open(1, 64).pop().expect("one queue pair");
        group.bench_function(BenchmarkId::new("null port: receive and send", size), |b| {
            b.iter(|| {
                port.rx.poll(&mut cache, &mut burst, size);
                port.tx.post(&mut cache, black_box(&mut burst))
            });
        });
        let mut port = loopback::open(1, 512).pop().expect("one queue pair");
        for (name, flows) in
            [("one flow", Flows::ONE), ("1024 flows", Flows::new(1024, Vary::SRC_IP).expect("in range"))]
        {
            let spec = [FrameSpec::default()];
            let mut generator = TxGenerator::new(&spec, flows, None).expect("60 bytes hold UDP");
            group.bench_function(BenchmarkId::new(format!("generate {name}, loop, receive"), size), |b| {
                b.iter(|| {
                    generator.fill(&mut cache, &mut burst, size, 0);
                    port.tx.post(&mut cache, &mut burst);
                    port.rx.poll(&mut cache, &mut burst, size);
                    cache.give_burst(black_box(&mut burst), size);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
