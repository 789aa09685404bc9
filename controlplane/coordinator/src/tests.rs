//! Laws of the cut, over every order of messages and every single fault, with model shards.

mod interleavings;
mod model;
mod queue;
mod random;
