//! The datapath: buffers, bursts, queues, workers, counters, capture and traffic generation.
//!
//! It knows no register. A NIC driver implements [`RxQueue`] and [`TxQueue`]; an application moves
//! [`Burst`]s of [`Mbuf`]s between them on a [`worker`].
//!
//! The hot path (everything called once a burst or once a packet) has no lock, allocation, log, panic
//! or `Result`: it returns counts, and what it drops has a name in [`counters`].

pub mod burst;
pub mod capture;
pub mod counters;
pub mod generator;
pub mod mbuf;
pub mod mempool;
pub mod queue;
mod sync;
pub mod worker;

pub use burst::{Burst, MAX_BURST};
pub use counters::{Counter, Drop, QueueCounters};
pub use mbuf::{Mbuf, RxFlags, TxOffload};
pub use mempool::{Mempool, PoolCache, PoolConfig};
pub use queue::{RxInterrupt, RxQueue, TxQueue};
pub use worker::{Idle, Task, Worker};
