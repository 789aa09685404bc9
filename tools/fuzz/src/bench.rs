//! What the program makes of job files, compiled here as it is.

#[path = "../../stillpoint/src/bench/arguments.rs"]
mod arguments;
#[path = "../../stillpoint/src/bench/words.rs"]
pub mod words;

pub use arguments::BenchCommand;
