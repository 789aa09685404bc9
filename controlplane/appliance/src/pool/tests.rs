//! A pool whose shards are a table of answers: what the control plane does when one of its steps fails.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crossbeam_channel::Receiver;
use stillpoint_coordinator::{OverallSnapshot, SnapshotRequest, Written};
use stillpoint_processor::command::{EventKind, IntermediateSnapshotStatus, ShardStatus, VolumeShareStatus};
use stillpoint_processor::{RequestError, ShardCommand, ShardIndex, SnapshotId, TimeStamp, VolumeId};

use super::{OpenedPool, Pool};
use crate::api::model::{
    CloneVolume, CreateChangeLog, CreateExport, CreatePool, CreateSnapshot, CreateVolume, SetVolume,
};
use crate::catalog::Change;
use crate::events::Events;
use crate::mailbox::{MAILBOX_MAX, PoolIndex, ProcessorIndex, RecoveredShard, ToProcessor, Wake, mailbox};
use crate::make::make_pool;

const SHARDS: u16 = 2;
const MIB: u64 = 1 << 20;

/// What a shard does with a command that it was told to be difficult about.
#[derive(Clone, Copy)]
enum Answer {
    /// It is not done, and the answer says so.
    Fails,
    /// Its answer never comes, as from a poll loop that has ended.
    IsLost,
}

/// Which commands are not simply done, and how they are answered.
type Difficult = Box<dyn Fn(&ShardCommand) -> Option<Answer> + Send>;

/// What shares were made of, and their snapshots.
#[derive(Default)]
struct Share {
    origin: Option<(VolumeId, SnapshotId)>,
    snapshots: Vec<SnapshotId>,
}

/// What the shards were told and what is in the catalog.
#[derive(Default)]
struct Shards {
    told: Vec<(ShardIndex, ShardCommand)>,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    shares: BTreeMap<VolumeId, Share>,
    difficult: Option<Difficult>,
}

impl Shards {
    fn answer(&mut self, shard: ShardIndex, command: ShardCommand) -> Option<EventKind> {
        self.told.push((shard, command.clone()));
        match self.difficult.as_ref().and_then(|difficult| difficult(&command)) {
            Some(Answer::Fails) => return Some(EventKind::Failed(RequestError::ShardStopped)),
            Some(Answer::IsLost) => return None,
            None => {}
        }
        match command {
            ShardCommand::CatalogPut { key, value } => drop(self.rows.insert(key, value)),
            ShardCommand::CatalogDelete { key } => drop(self.rows.remove(&key)),
            ShardCommand::CreateVolume { volume, .. } => drop(self.shares.entry(volume).or_default()),
            ShardCommand::CloneVolume {
                volume,
                origin,
                snapshot,
            } => {
                self.shares.entry(volume).or_default().origin = Some((origin, snapshot));
            }
            ShardCommand::Status => {
                let volumes = self.shares.iter().map(|(&volume, known)| VolumeShareStatus {
                    origin: known.origin,
                    ..share(volume)
                });
                let volumes = volumes.collect();
                let status = ShardStatus {
                    volumes,
                    ..ShardStatus::default()
                };
                return Some(EventKind::Status(Box::new(status)));
            }
            ShardCommand::ListSnapshots { volume } => {
                let chain = self.shares[&volume]
                    .snapshots
                    .iter()
                    .map(|&snapshot| frozen(snapshot));
                return Some(EventKind::Snapshots(chain.collect()));
            }
            _ => {}
        }
        Some(EventKind::Done)
    }

    /// A snapshot was taken.
    fn take(&mut self, overall: &OverallSnapshot) {
        for of in &overall.volumes {
            self.shares
                .entry(of.volume)
                .or_default()
                .snapshots
                .push(overall.snapshot);
        }
        self.answer(ShardIndex(0), Change::put_snapshot(overall).command());
    }

    fn was_told(&self, is_it: impl Fn(&ShardCommand) -> bool) -> usize {
        self.told.iter().filter(|(_, command)| is_it(command)).count()
    }
}

struct Quiet;

impl Wake for Quiet {
    fn wake(&self) {}
}

/// The poll loop of processor 0: as long as the control plane does not wait for anything, it has no turn.
async fn poll_loop(messages: Receiver<ToProcessor>, shards: Arc<Mutex<Shards>>) {
    loop {
        while let Ok(message) = messages.try_recv() {
            match message {
                ToProcessor::Shard {
                    shard,
                    command,
                    reply,
                    ..
                } => {
                    let answer = shards
                        .lock()
                        .expect("no test panics with it")
                        .answer(shard, command);
                    if let Some(answer) = answer {
                        // The pool may be gone by now.
                        let _ = reply.send(answer);
                    }
                }
                ToProcessor::CreateSnapshot { request, reply, .. } => {
                    let overall = taken(request);
                    shards.lock().expect("no test panics with it").take(&overall);
                    let _ = reply.send(Ok(overall));
                }
                other => panic!("nobody sends {other:?} here"),
            }
        }
        tokio::task::yield_now().await;
    }
}

fn taken(request: SnapshotRequest) -> OverallSnapshot {
    OverallSnapshot {
        snapshot: request.snapshot,
        name: request.name,
        time_stamp: TimeStamp(request.snapshot.0),
        volumes: request.volumes,
        marks: request.marks,
        holds: Vec::new(),
        durable_ns: 0,
        written: Written::default(),
    }
}

/// A pool, what its shards know, and its events.
struct Bench {
    pool: Pool,
    shards: Arc<Mutex<Shards>>,
    events: Arc<Events>,
    directory: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let shards = Arc::new(Mutex::new(Shards::default()));
        Self::open(directory, shards, Vec::new()).await
    }

    /// Opens a pool on a file of `directory`, with these rows in its catalog and these shares on each shard.
    async fn open(
        directory: tempfile::TempDir,
        shards: Arc<Mutex<Shards>>,
        volumes: Vec<VolumeShareStatus>,
    ) -> Self {
        let request = CreatePool {
            name: "p".to_owned(),
            devices: vec![directory.path().join("disk").display().to_string()],
            size_bytes: Some(64 * MIB),
            shards: Some(SHARDS),
            mirror: false,
            force: true,
            force_devices: Vec::new(),
        };
        let (devices, files) = make_pool(&request, 1).expect("a pool");
        let (to_loop, messages) = mailbox(Arc::new(Quiet));
        tokio::spawn(poll_loop(messages, Arc::clone(&shards)));
        let rows = shards.lock().expect("no test panics with it").rows.clone();
        let recovered = |shard: u16| RecoveredShard {
            shard: ShardIndex(shard),
            volumes: volumes.clone(),
            snapshots: Vec::new(),
            catalog: if shard == 0 { rows.clone() } else { BTreeMap::new() },
            log_records: 0,
            tail_records: 0,
            recovery_ns: 0,
            remarks: Vec::new(),
        };
        let opened = OpenedPool {
            index: PoolIndex(0),
            devices,
            files,
            owners: vec![ProcessorIndex(0); usize::from(SHARDS)],
            resync_bytes_per_s: 0,
            notes: Arc::default(),
            first_pass: 0,
            shards: (0..SHARDS).map(recovered).collect(),
        };
        let events = Arc::new(Events::default());
        let pool = Pool::start(opened, Arc::new([to_loop]), Arc::clone(&events)).await;
        Self {
            pool: pool.expect("the pool opens"),
            shards,
            events,
            directory,
        }
    }

    /// A volume with a change log volume and two snapshots, exported.
    async fn with_a_volume() -> Self {
        let bench = Self::new().await;
        bench.create_volume("v").await;
        let change_log = CreateChangeLog {
            name: "cl".to_owned(),
            size_bytes: 16 * MIB,
            pool: None,
            devices: Vec::new(),
            when_full: None,
        };
        bench
            .pool
            .create_change_log(&change_log)
            .await
            .expect("a change log volume");
        let set = SetVolume {
            change_log: Some("cl".to_owned()),
        };
        bench
            .pool
            .set_volume("v", &set)
            .await
            .expect("its change log volume");
        bench.take("a").await;
        bench.take("b").await;
        for view in ["v", "v@b"] {
            let export = CreateExport {
                name: None,
                view: view.to_owned(),
                read_only: false,
                allow_snapshots: false,
                pool: None,
            };
            bench.pool.create_export(&export).await.expect("an export");
        }
        bench
    }

    async fn create_volume(&self, name: &str) {
        let request = CreateVolume {
            name: name.to_owned(),
            size_bytes: 8 * MIB,
            pool: None,
            block_bytes: None,
            object_bytes: None,
            change_log: None,
        };
        self.pool.create_volume(&request).await.expect("a volume");
    }

    async fn take(&self, name: &str) {
        let request = CreateSnapshot {
            volumes: vec!["v".to_owned()],
            name: name.to_owned(),
            pool: None,
            hold_limit_ns: None,
        };
        self.pool.create_snapshot(&request).await.expect("a snapshot");
    }

    fn make_difficult(&self, difficult: impl Fn(&ShardCommand) -> Option<Answer> + Send + 'static) {
        self.shards.lock().expect("no test panics with it").difficult = Some(Box::new(difficult));
    }

    fn was_told(&self, is_it: impl Fn(&ShardCommand) -> bool) -> usize {
        self.shards
            .lock()
            .expect("no test panics with it")
            .was_told(is_it)
    }

    fn head(&self, volume: &str) -> VolumeId {
        self.pool.volume(volume).expect("the volume").head
    }

    fn exports(&self) -> Vec<String> {
        self.pool
            .exports()
            .into_iter()
            .map(|export| export.name)
            .collect()
    }

    fn happened(&self, kind: &str) -> bool {
        self.events
            .list(None, 1000, false)
            .events
            .iter()
            .any(|event| event.kind == kind)
    }
}

fn share(volume: VolumeId) -> VolumeShareStatus {
    VolumeShareStatus {
        volume,
        share_blocks: 8 * MIB / 4096,
        mapped_blocks: 0,
        epoch: 1,
        snapshots: 0,
        headless: false,
        origin: None,
    }
}

fn frozen(snapshot: SnapshotId) -> IntermediateSnapshotStatus {
    IntermediateSnapshotStatus {
        snapshot,
        epoch: 1,
        time_stamp: TimeStamp(snapshot.0),
        mapped_blocks: 0,
        changed_blocks: 0,
        first_change_ns: 0,
        last_change_ns: 0,
        deleting: false,
    }
}

fn attaches(command: &ShardCommand) -> Option<Answer> {
    matches!(command, ShardCommand::AttachChangeLog { .. }).then_some(Answer::IsLost)
}

/// The row decides: what cannot be told to the shards behind it leaves nothing of the rollback undone.
#[tokio::test]
async fn a_rollback_whose_change_log_volume_cannot_be_told_frees_what_it_replaced() {
    let bench = Bench::with_a_volume().await;
    let old = bench.head("v");
    bench.make_difficult(attaches);
    let error = bench.pool.roll_back("v", "a", None).await.expect_err("half done");
    assert!(error.message.contains("volume v is rolled back"), "{error}");
    assert!(error.hint.is_some(), "{error}");
    assert_ne!(bench.head("v"), old);
    let frees = |command: &ShardCommand| *command == ShardCommand::DeleteHead { volume: old };
    assert_eq!(bench.was_told(frees), usize::from(SHARDS));
    assert!(bench.happened("volume_rolled_back"));
}

#[tokio::test]
async fn what_is_done_is_an_event_even_if_a_change_log_volume_cannot_be_told() {
    let bench = Bench::with_a_volume().await;
    bench.make_difficult(attaches);
    let set = SetVolume { change_log: None };
    let error = bench.pool.set_volume("v", &set).await.expect_err("half done");
    assert!(error.message.contains("volume v is set"), "{error}");
    assert_eq!(bench.pool.volume("v").expect("the volume").change_log, None);
    let events = bench.events.list(None, 1000, false).events;
    let told = events.iter().filter(|event| event.kind == "volume_set").count();
    assert_eq!(told, 2, "when it was named, and when it was taken away");
}

/// Nobody may write to a volume of which only the next opening tells what it is.
#[tokio::test]
async fn a_rollback_in_doubt_keeps_exports_of_the_volume_back_until_the_pool_is_opened_again() {
    let bench = Bench::with_a_volume().await;
    assert_eq!(bench.exports(), ["v", "v@b"]);
    let old = bench.head("v");
    bench.make_difficult(|command| match command {
        // The row of the volume; everything that is written for the safety snapshot is let through.
        ShardCommand::CatalogPut { value, .. } if value.ends_with(b"v") => Some(Answer::Fails),
        _ => None,
    });
    let error = bench.pool.roll_back("v", "a", None).await.expect_err("in doubt");
    assert!(error.message.contains("not known whether it is done"), "{error}");
    assert!(
        error
            .hint
            .as_ref()
            .is_some_and(|hint| hint.contains("open it again")),
        "{error}"
    );
    assert_eq!(bench.exports(), ["v@b"], "snapshots are what they were");
    assert_eq!(bench.head("v"), old);
    let frees = |command: &ShardCommand| {
        matches!(
            command,
            ShardCommand::DeleteHead { .. } | ShardCommand::DeleteVolume { .. }
        )
    };
    assert_eq!(bench.was_told(frees), 0, "either of the two may be the volume");
    let made = bench
        .shards
        .lock()
        .expect("no test panics with it")
        .told
        .iter()
        .rev()
        .find_map(|(_, command)| match command {
            ShardCommand::CloneVolume { volume, .. } => Some(*volume),
            _ => None,
        });
    let made = made.expect("shares were made");

    // The row was not written after all: the volume is what it was, and what it would have become goes.
    let Bench {
        pool,
        shards,
        directory,
        ..
    } = bench;
    drop(pool);
    shards.lock().expect("no test panics with it").difficult = None;
    let bench = Bench::open(directory, shards, vec![share(old), share(made)]).await;
    assert_eq!(bench.exports(), ["v", "v@b"]);
    assert_eq!(bench.head("v"), old);
    let frees = |command: &ShardCommand| *command == ShardCommand::DeleteVolume { volume: made };
    assert_eq!(bench.was_told(frees), usize::from(SHARDS));
}

/// What is left of a volume when its snapshots are a clone's is in no change log volume any more: it would count where nobody
/// could drop it.
#[tokio::test]
async fn snapshots_that_a_clone_took_over_leave_the_change_log_volume_with_their_origin() {
    let bench = Bench::with_a_volume().await;
    let clone = CloneVolume {
        name: "c".to_owned(),
        snapshot: "b".to_owned(),
    };
    bench.pool.clone_volume("v", &clone).await.expect("a clone");
    assert_eq!(bench.pool.promote("c").await.expect("promoted"), 2);
    bench.pool.delete_export("v").await.expect("the export goes");
    let volume = bench.head("v");
    let detach = ShardCommand::AttachChangeLog {
        volume,
        change_log: None,
    };
    assert_eq!(
        bench.was_told(|command| *command == detach),
        0,
        "its own changes still count"
    );
    bench
        .pool
        .delete_volume("v", false)
        .await
        .expect("the origin goes");
    assert_eq!(bench.was_told(|command| *command == detach), usize::from(SHARDS));
    let head = |command: &ShardCommand| *command == ShardCommand::DeleteHead { volume };
    assert_eq!(
        bench.was_told(head),
        usize::from(SHARDS),
        "and its snapshots stay"
    );
}

/// A mailbox takes only so many messages, a volume may have any number of snapshots.
#[tokio::test]
async fn a_change_of_more_rows_than_a_mailbox_takes_is_made() {
    let bench = Bench::new().await;
    bench.create_volume("v").await;
    let count = MAILBOX_MAX + MAILBOX_MAX / 2;
    for number in 0..count {
        bench.take(&format!("s{number}")).await;
    }
    let clone = CloneVolume {
        name: "c".to_owned(),
        snapshot: "s0".to_owned(),
    };
    bench.pool.clone_volume("v", &clone).await.expect("a clone");
    bench.pool.delete_volume("c", true).await.expect("the clone goes");
    bench.pool.delete_volume("v", true).await.expect("all goes");
    let rows = bench.was_told(|command| matches!(command, ShardCommand::CatalogDelete { .. }));
    assert!(rows > count, "{rows} rows went");
    assert_eq!(bench.pool.catalog().snapshots().count(), 0);
}
