//! The command line and the API as their users meet them: the real program, its exit codes, its JSON, its messages.

mod devices;
mod events;
mod locks;
mod pools;
mod program;
mod stats;
mod volumes;

use crate::support::{Appliance, Told, list, member};
use serde_json::Value;

/// A daemon with two processors and a pool `p`.
fn with_pool() -> Appliance {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 1, "256MiB", &[]);
    appliance
}

/// The same with a volume `v` of 16 MiB in objects of 1 MiB.
fn with_volume() -> Appliance {
    let appliance = with_pool();
    appliance.run(&[
        "volume",
        "create",
        "v",
        "--size",
        "16MiB",
        "--object-size",
        "1MiB",
    ]);
    appliance
}

#[track_caller]
fn refused(told: &Told, code: i32, words: &str) {
    assert_eq!(told.code, code, "{}", told.errors);
    assert!(
        told.errors.contains(words),
        "{words:?} is not in: {}",
        told.errors
    );
}

fn names(values: &Value) -> Vec<&str> {
    list(values, "")
        .iter()
        .map(|value| member(value, "/name").as_str().expect("a text"))
        .collect()
}
