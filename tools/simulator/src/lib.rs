//! The shipping data plane and coordinator over simulated devices, messages and time, replayed from a seed.

pub mod device;
pub mod model;
pub mod random;
pub mod stamp;
