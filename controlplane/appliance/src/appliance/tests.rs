use super::*;
use crate::api::model::CreatePool;
use crate::error::ErrorKind;
use std::cell::RefCell;
use std::fs::File;

/// An appliance without processors, with its state in this directory.
pub(crate) fn without_processors(directory: &std::path::Path) -> Appliance {
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
    let appliance = without_processors(directory.path());
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
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

#[test]
fn a_device_that_does_not_answer_is_waited_for_without_the_structure() {
    let directory = tempfile::tempdir().expect("a directory");
    let appliance = without_processors(directory.path());
    // Nobody has opened it who writes: whoever opens it to read waits.
    let silent = directory.path().join("silent");
    let made = std::process::Command::new("mkfifo").arg(&silent).status();
    assert!(made.expect("it is there").success());
    let missing = directory.path().join("missing");
    let order = RefCell::new(Vec::new());
    let open = |path: PathBuf, what: &'static str| {
        let (order, appliance) = (&order, &appliance);
        async move {
            let opened = appliance.open_pool(&[path], Degraded::Refused).await;
            order.borrow_mut().push(what);
            opened.expect_err("it is no pool")
        }
    };
    let runtime = crate::patience::builder().enable_time().build();
    let (first, again) = runtime.expect("a runtime").block_on(async {
        let other = async {
            let error = open(missing, "another pool").await;
            // It answers from here on, and is no device.
            let writer = File::options()
                .read(true)
                .write(true)
                .open(&silent)
                .expect("opened");
            (error, writer)
        };
        let (first, again, (other, _writer)) = tokio::join!(
            open(silent.clone(), "a pool"),
            open(silent.clone(), "a pool"),
            other
        );
        assert_eq!(other.kind, ErrorKind::NotFound, "{other}");
        (first, again)
    });
    assert_eq!(*order.borrow(), ["another pool", "a pool", "a pool"]);
    for error in [first, again] {
        assert!(error.to_string().contains("cannot read"), "{error}");
    }
}
