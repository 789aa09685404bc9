//! The session against a client made of bytes, shards made of a map, and a pool that counts.

mod client;
mod contexts;
mod handshake;
pub mod harness;
mod limits;
mod malformed;
mod model;
mod taking;
mod transmission;
