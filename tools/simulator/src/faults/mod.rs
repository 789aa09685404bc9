//! Devices that do what they should not: one fault at a time, of every kind, and damage to every field of every
//! structure. What is read is right or refused, never wrong.
//!
//! | file | what it does |
//! |---|---|
//! | `fault.rs`, `live.rs` | a device that does one thing wrong while a script is played |
//! | `fields.rs`, `damage.rs` | every field of every structure on the devices, flipped |
//! | `full.rs` | a pool that is full |
//! | `outcome.rs` | what becomes of the pool then |

pub mod damage;
mod fault;
mod fields;
pub mod full;
pub mod live;
mod outcome;

pub(crate) use fault::Fault;
