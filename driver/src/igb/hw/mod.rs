//! Layouts of the hardware: registers and descriptors. No I/O.

pub mod regs;
pub mod rx_desc;
pub mod tx_desc;
