//! Fuzz targets for every parser: what comes over the wire, what lies on devices, what people write.
//!
//! A target takes any bytes and must return: no panic, no endless loop, no memory without bound. What it accepts it checks
//! further: what was read is written again and must be the same, what a label describes must fit its devices.
//!
//! The same functions are run in three ways: `tests/corpus.rs` replays `corpus/<target>/*` with every test run, the
//! program of this crate mutates the corpora for a while on any compiler, and `libfuzzer/` hands them to cargo-fuzz.

#[allow(dead_code)]
mod bench;
// The program's own modules, compiled here too: a program has no library to import.
#[path = "../../stillpoint/src/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "../../stillpoint/src/config.rs"]
#[allow(dead_code)]
mod config;
#[path = "../../stillpoint/src/keep.rs"]
#[allow(dead_code)]
mod keep;
pub mod mutate;
#[path = "../../stillpoint/src/size.rs"]
#[allow(dead_code)]
mod size;
mod targets;
#[path = "../../stillpoint/src/when.rs"]
#[allow(dead_code)]
mod when;

pub use targets::{Target, all, find};

use std::path::PathBuf;

/// Runs the target of this name.
///
/// # Panics
/// If there is no such target, or what must hold does not.
pub fn run(target: &str, data: &[u8]) {
    let target = find(target).unwrap_or_else(|| panic!("there is no target {target}"));
    (target.run)(data);
}

/// Where the corpus of a target lies.
#[must_use]
pub fn corpus_directory(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

/// The corpus of a target, by name.
///
/// # Panics
/// If it cannot be read, or is empty: then a target would run on nothing.
#[must_use]
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = corpus_directory(target);
    let entries =
        std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut inputs: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("an input"))
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", directory.display());
    inputs
}
