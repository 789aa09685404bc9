use super::*;
use crate::api::model::CreatePool;
use crate::error::ErrorKind;
use std::cell::RefCell;
use std::fs::File;

/// An appliance without processors, with its state in this directory.
fn appliance(directory: &std::path::Path) -> Appliance {
    let options = Options {
        pool: PoolOptions {
            map_cache_bytes: 1 << 20,
            tail_directory: None,
        },
        nvme_commands: None,
        buffer_bytes: 1 << 20,
        listeners: Vec::new(),
        connections: Seats::new(1),
        export_connection_limit: 1,
    };
    let state = State::open(&directory.join("state")).expect("made");
    Appliance::new(options, state, Arc::new([]))
}

#[test]
fn a_device_that_keeps_one_waiting_keeps_nobody_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let appliance = appliance(directory.path());
    let path = directory.path().join("disk");
    let held = File::create(&path).expect("made");
    held.set_len(64 << 20).expect("it grows");
    // Somebody has it, and may let go of it soon: it is tried for half a second.
    held.lock().expect("locked");
    let request = CreatePool {
        name: "p".to_owned(),
        devices: vec![path.display().to_string()],
        size_bytes: None,
        shards: Some(2),
        mirror: false,
        force: false,
        force_devices: Vec::new(),
    };
    let order = RefCell::new(Vec::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let refused = runtime.expect("a runtime").block_on(async {
        let made = async {
            let made = appliance.create_pool(&request).await;
            order.borrow_mut().push("a pool");
            made
        };
        let other = async { order.borrow_mut().push("somebody else") };
        tokio::join!(made, other).0.expect_err("it is in use")
    });
    assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    assert_eq!(*order.borrow(), ["somebody else", "a pool"]);
}
