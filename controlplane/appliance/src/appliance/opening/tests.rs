//! An appliance whose processors do what a test says with the pools that they are to open.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crossbeam_channel::Receiver;

use super::*;
use crate::api::model::CreatePool;
use crate::appliance::{Degraded, Options};
use crate::error::{ErrorKind, Result};
use crate::label;
use crate::mailbox::{OpenPoolError, PoolOptions, PoolPart, RecoveredShard, Wake, mailbox};
use crate::make::make_pool;
use crate::state::State;
use stillpoint_export::Seats;
use stillpoint_processor::command::{EventKind as ShardEventKind, VolumeShareStatus};
use stillpoint_processor::mirror::{SideAt, Sides};
use stillpoint_processor::ports::{DeviceError, Side};
use stillpoint_processor::{DeviceIndex, RequestError, ShardIndex, VolumeId};

const PROCESSORS: u16 = 2;
const PLACE: PoolIndex = PoolIndex(0);
const FIRST: SideAt = SideAt {
    device: DeviceIndex(0),
    side: Side::First,
};
const SECOND: SideAt = SideAt {
    device: DeviceIndex(0),
    side: Side::Second,
};
const BROKEN: DeviceError = DeviceError::Os(5);

/// What a processor was told, in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    Opened(Sides, u64),
    Failed,
    Lost,
    Closed,
}

/// What the processors are to do, and what they did.
#[derive(Default)]
struct Plan {
    did: Vec<(u16, Did)>,
    /// The processor that does not open its shards, once.
    fails: Option<u16>,
    /// The processor that does not say that its shards are open until this is taken away.
    recovers: Option<u16>,
    /// Answers rest on one side in the first try.
    keeps_back: bool,
    /// Nobody is left to talk to.
    is_over: bool,
}

struct Quiet;

impl Wake for Quiet {
    fn wake(&self) {}
}

type Shared = Arc<Mutex<Plan>>;

async fn poll_loop(processor: u16, messages: Receiver<ToProcessor>, plan: Shared) {
    let lock = || plan.lock().expect("no test panics with it");
    let did = |what: Did| lock().did.push((processor, what));
    let (mut is_open, mut is_lost, mut tries) = (false, false, 0);
    let (mut recovering, mut kept, mut closing) = (None, Vec::new(), None);
    while !lock().is_over {
        while let Ok(message) = messages.try_recv() {
            match message {
                ToProcessor::OpenPool { part, reply, .. } => {
                    assert!(!is_open, "processor {processor} has a pool in this place");
                    tries += 1;
                    is_lost = false;
                    if lock().fails.take_if(|fails| *fails == processor).is_some() {
                        did(Did::Failed);
                        drop(reply.send(Err(refusal())));
                        continue;
                    }
                    is_open = true;
                    let sides = part.sides.as_ref().expect("it has mirrors")[0];
                    did(Did::Opened(sides, part.first_pass));
                    recovering = Some((reply, recovered(&part)));
                }
                ToProcessor::Shard { reply, .. } if lock().keeps_back && tries == 1 && !is_lost => {
                    kept.push(reply);
                }
                ToProcessor::Shard { reply, .. } => drop(reply.send(ShardEventKind::Done)),
                ToProcessor::Mirror { change, reply, .. } => {
                    if matches!(change, MirrorChange::Lost { .. }) {
                        did(Did::Lost);
                        is_lost = true;
                        kept.drain(..).for_each(|reply| {
                            let _ = reply.send(ShardEventKind::Failed(RequestError::ShardStopped));
                        });
                    }
                    let _ = reply.send(());
                }
                ToProcessor::ClosePool { reply, .. } => closing = Some(reply),
                ToProcessor::Exports { reply, .. } => drop(reply.send(())),
                ToProcessor::MirrorStatus { reply, .. } => drop(reply.send(Vec::new())),
                other => panic!("nobody sends {other:?} here"),
            }
        }
        if lock().recovers != Some(processor)
            && let Some((reply, shards)) = recovering.take()
        {
            drop(reply.send(Ok(shards)));
        }
        if let Some(reply) = closing.take_if(|_| kept.is_empty()) {
            if is_open {
                did(Did::Closed);
            }
            is_open = false;
            drop(reply.send(Ok(())));
        }
        tokio::task::yield_now().await;
    }
}

fn refusal() -> OpenPoolError {
    OpenPoolError {
        shard: Some(ShardIndex(1)),
        device: None,
        side: None,
        message: "it is damaged".to_owned(),
    }
}

/// A share that no row knows: opening the pool deletes it, so that there is a command to wait for.
fn recovered(part: &PoolPart) -> Vec<RecoveredShard> {
    let share = VolumeShareStatus {
        volume: VolumeId(1),
        share_blocks: 1024,
        mapped_blocks: 0,
        epoch: 1,
        snapshots: 0,
        headless: false,
        origin: None,
    };
    let one = |&shard: &ShardIndex| RecoveredShard {
        shard,
        volumes: vec![share],
        snapshots: Vec::new(),
        catalog: BTreeMap::new(),
        log_records: 0,
        tail_records: 0,
        recovery_ns: 0,
        remarks: Vec::new(),
    };
    part.shards.iter().map(one).collect()
}

/// A pool `p` of one device with two sides that no appliance has opened yet.
struct Bench {
    appliance: Appliance,
    plan: Shared,
    directory: tempfile::TempDir,
}

/// An appliance that remembers what this directory says.
fn appliance(state: &Path, plan: &Shared) -> Appliance {
    let mailboxes: Vec<_> = (0..PROCESSORS)
        .map(|processor| {
            let (to_loop, messages) = mailbox(Arc::new(Quiet));
            tokio::spawn(poll_loop(processor, messages, Arc::clone(plan)));
            to_loop
        })
        .collect();
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
    let state = State::open(state).expect("made");
    Appliance::new(options, state, mailboxes.into())
}

impl Bench {
    fn new(plan: Plan) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let plan = Arc::new(Mutex::new(plan));
        let appliance = appliance(&directory.path().join("state"), &plan);
        let side = |name: &str| directory.path().join(name).display().to_string();
        let request = CreatePool {
            name: "p".to_owned(),
            devices: vec![side("p-0"), side("p-1")],
            size_bytes: Some(64 << 20),
            shards: Some(PROCESSORS),
            mirror: true,
            force: false,
            force_devices: Vec::new(),
        };
        drop(make_pool(&request, usize::from(PROCESSORS)).expect("a pool"));
        Self {
            appliance,
            plan,
            directory,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Another appliance, that remembers what this one has written down.
    fn restarted(&self) -> Appliance {
        let (state, copy) = (self.path("state"), self.path("copy"));
        std::fs::create_dir(&copy).expect("made");
        for name in ["mirrors.json", "cut-off.json"] {
            if state.join(name).exists() {
                std::fs::copy(state.join(name), copy.join(name)).expect("copied");
            }
        }
        appliance(&copy, &self.plan)
    }

    async fn open(&self, names: &[&str], degraded: Degraded) -> Result<Arc<Pool>> {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        self.appliance.open_pool(&paths, degraded).await
    }

    async fn open_both(&self) -> Result<Arc<Pool>> {
        self.open(&["p-0", "p-1"], Degraded::Refused).await
    }

    async fn close(&self) {
        self.appliance.close_pool("p").await.expect("it is closed");
    }

    fn did(&self) -> Vec<(u16, Did)> {
        self.plan.lock().expect("no test panics with it").did.clone()
    }

    /// Waits until every processor has been told to open its shards so often; gives the number of the last try.
    async fn tries(&self, count: usize) -> u64 {
        loop {
            let opened = self.did().into_iter().filter_map(|(_, did)| match did {
                Did::Opened(_, first_pass) => Some(first_pass),
                _ => None,
            });
            let passes: Vec<u64> = opened.collect();
            if passes.len() == count * usize::from(PROCESSORS) {
                return *passes.last().expect("one at least");
            }
            tokio::task::yield_now().await;
        }
    }

    async fn fails(&self, pass: u64, at: SideAt) {
        let notice = MirrorNotice::SideFailed { at, error: BROKEN };
        let told = self.appliance.mirror_told(PLACE, ProcessorIndex(0), pass, notice);
        told.await;
    }

    fn is_opening(&self) -> bool {
        !self.appliance.lock().opening.is_empty()
    }

    /// Since when the second side is out, by the label of the first.
    fn out_since(&self) -> u64 {
        match label::look(&self.path("p-0")).expect("it can be read") {
            label::Found::Label { label, .. } => label.mirrors[0].out_since[1].get(),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Ok(mut plan) = self.plan.lock() {
            plan.is_over = true;
        }
    }
}

fn of(processor: u16, did: &[(u16, Did)]) -> Vec<Did> {
    let of_processor = did.iter().filter(|(of, _)| *of == processor);
    of_processor.map(|(_, did)| did.clone()).collect()
}

#[tokio::test]
async fn an_opening_that_fails_leaves_nothing_open() {
    let bench = Bench::new(Plan {
        fails: Some(1),
        ..Plan::default()
    });
    let error = bench.open_both().await.expect_err("one processor cannot");
    assert!(error.message.contains("it is damaged"), "{error}");
    assert!(matches!(of(0, &bench.did())[..], [Did::Opened(..), Did::Closed]));
    assert!(!bench.is_opening());
    // A processor that still had its shards would say so.
    bench.open_both().await.expect("whatever it was is over");
    assert!(!bench.is_opening());
    bench.close().await;
}

/// What answers rest on waits for labels, which only a pool that is open can have written.
#[tokio::test]
async fn a_pool_whose_side_fails_while_it_is_opened_opens_without_it_by_itself() {
    let bench = Bench::new(Plan {
        keeps_back: true,
        ..Plan::default()
    });
    let fails = async {
        let pass = bench.tries(1).await;
        bench.fails(pass, SECOND).await;
        pass
    };
    let (pool, first_try) = tokio::join!(bench.open_both(), fails);
    let pool = pool.expect("it opens without the side");
    let episode = bench.out_since();
    assert_ne!(episode, 0);
    assert!(pool.remarks.iter().any(|remark| remark.contains("p-1 is out")));
    for processor in 0..PROCESSORS {
        let did = of(processor, &bench.did());
        let [
            Did::Opened(Sides::Both, _),
            Did::Lost,
            Did::Closed,
            Did::Opened(
                Sides::Only {
                    side, episode: since, ..
                },
                _,
            ),
        ] = did[..]
        else {
            panic!("{did:?}");
        };
        assert_eq!((side, since), (Side::First, episode));
    }
    assert!(!bench.is_opening());
    // Something that was said in the first try, and is heard only now, is about no side of this one.
    let before = bench.did();
    bench.fails(first_try, FIRST).await;
    assert_eq!(bench.did(), before);
    bench.close().await;
}

#[tokio::test]
async fn a_side_that_fails_while_another_shard_recovers_is_done_without_however_long_that_takes() {
    let bench = Bench::new(Plan {
        recovers: Some(1),
        ..Plan::default()
    });
    let fails = async {
        let pass = bench.tries(1).await;
        bench.fails(pass, SECOND).await;
        assert!(bench.is_opening());
        bench.plan.lock().expect("no test panics with it").recovers = None;
    };
    let (pool, ()) = tokio::join!(bench.open_both(), fails);
    pool.expect("it opens without the side");
    assert_ne!(bench.out_since(), 0);
    assert!(!bench.is_opening());
    bench.close().await;
}

/// Nobody opens it without that side in the end: whatever fails while it is closed is told at once, or closing would never end.
#[tokio::test]
async fn what_fails_while_an_opening_is_given_up_keeps_nothing_back() {
    let bench = Bench::new(Plan::default());
    let pass = bench.appliance.begin_try(PLACE, "p");
    bench.appliance.end_try(PLACE).await;
    bench.fails(pass - 1, SECOND).await;
    assert!(bench.did().is_empty(), "of another try");
    let told = async {
        bench.fails(pass, SECOND).await;
        while bench.did().len() < usize::from(PROCESSORS) {
            tokio::task::yield_now().await;
        }
    };
    told.await;
    for processor in 0..PROCESSORS {
        assert_eq!(of(processor, &bench.did()), [Did::Lost]);
    }
}

/// Copying may be done before the pool is open, if there was nothing to copy.
#[tokio::test]
async fn what_was_copied_while_a_pool_was_opened_counts_when_it_is_open() {
    let bench = Bench::new(Plan::default());
    bench.open_both().await.expect("it opens");
    let pass = bench.tries(1).await;
    bench.fails(pass, SECOND).await;
    assert_ne!(bench.out_since(), 0);
    bench.close().await;
    // The side is there, and behind.
    bench.plan.lock().expect("no test panics with it").recovers = Some(1);
    let resynced = async {
        let pass_before = pass;
        let pass = bench.tries(2).await;
        for (processor, pass) in [(0, pass), (1, pass_before)] {
            let notice = MirrorNotice::Resynced { at: SECOND };
            let processor = ProcessorIndex(processor);
            bench.appliance.mirror_told(PLACE, processor, pass, notice).await;
        }
        bench.plan.lock().expect("no test panics with it").recovers = None;
        pass
    };
    let (pool, pass) = tokio::join!(bench.open_both(), resynced);
    pool.expect("it opens");
    assert_ne!(bench.out_since(), 0, "one processor said so in an earlier life");
    let notice = MirrorNotice::Resynced { at: SECOND };
    bench
        .appliance
        .mirror_told(PLACE, ProcessorIndex(1), pass, notice)
        .await;
    assert_eq!(bench.out_since(), 0);
    bench.close().await;
}

/// The sequence of the labels says whether what was written last lies on what is missing.
#[tokio::test]
async fn labels_that_are_older_than_what_was_seen_open_nothing_while_a_side_is_missing() {
    let bench = Bench::new(Plan::default());
    bench.open_both().await.expect("it opens");
    let pass = bench.tries(1).await;
    bench.fails(pass, SECOND).await;
    bench.close().await;
    let error = bench.open(&["p-1"], Degraded::AsNew).await;
    let error = error.expect_err("it missed what was written last");
    assert_eq!(error.kind, ErrorKind::Failure);
    let expected = "was used without the sides that are there now";
    assert!(error.message.contains(expected), "{error}");
    assert!(
        error
            .hint
            .as_ref()
            .is_some_and(|hint| hint.contains("--degraded"))
    );
    assert_eq!(
        bench.did().len(),
        2 * usize::from(PROCESSORS),
        "nothing was opened"
    );
    // The newest opens alone by itself: nothing is missing that was in sync.
    bench
        .open(&["p-0"], Degraded::AsNew)
        .await
        .expect("it has everything");
    bench.close().await;
    // By hand the other one opens too, and what it says counts from then on.
    bench
        .open(&["p-1"], Degraded::Allowed)
        .await
        .expect("somebody wants it");
    bench.close().await;
    bench
        .open(&["p-1"], Degraded::AsNew)
        .await
        .expect("its labels are the newest now");
    bench.close().await;
}

#[tokio::test]
async fn a_side_that_was_in_sync_is_not_done_without_unless_somebody_says_so() {
    let bench = Bench::new(Plan::default());
    let error = bench.open(&["p-0"], Degraded::Refused).await;
    let error = error.expect_err("the other side is missing");
    assert!(error.message.contains("some were in sync"), "{error}");
    assert!(bench.did().is_empty());
    assert_eq!(bench.out_since(), 0, "nothing was changed");
    bench
        .open(&["p-0"], Degraded::AsNew)
        .await
        .expect("it is as new as can be");
    assert_ne!(bench.out_since(), 0);
    bench.close().await;
}

/// What the processors were told of the first device when the pool was opened last.
fn sides(bench: &Bench) -> (Side, bool) {
    let opened = bench.did().into_iter().rev().find_map(|(_, did)| match did {
        Did::Opened(Sides::Only { side, begins, .. }, _) => Some((side, begins)),
        Did::Opened(Sides::Both, _) => panic!("both are there"),
        _ => None,
    });
    opened.expect("it was opened")
}

#[tokio::test]
async fn only_a_side_that_is_away_and_was_in_sync_by_the_newest_labels_lacks_little() {
    let bench = Bench::new(Plan::default());
    bench.open(&["p-0"], Degraded::AsNew).await.expect("it opens");
    assert_eq!(sides(&bench), (Side::First, true));
    bench.close().await;
    bench.open(&["p-0"], Degraded::AsNew).await.expect("it opens");
    assert_eq!(sides(&bench), (Side::First, false), "it is out for longer now");
    bench.close().await;
    // By labels of which newer ones were seen.
    bench.open(&["p-1"], Degraded::Allowed).await.expect("it opens");
    assert_eq!(sides(&bench), (Side::Second, false));
    bench.close().await;

    // What else has one lost that has become smaller?
    let bench = Bench::new(Plan::default());
    let file = std::fs::File::options().write(true).open(bench.path("p-1"));
    file.expect("there").set_len(32 << 20).expect("cut off");
    bench
        .open(&["p-0", "p-1"], Degraded::AsNew)
        .await
        .expect("it opens");
    assert_eq!(sides(&bench), (Side::First, false));
    bench.close().await;
}

/// A pool whose second side is out and was seen too small while nothing was left of the first one, which has all its bytes again. Gives
/// since when the second one is out.
async fn cut_off_beside_a_lost_side() -> (Bench, u64) {
    let bench = Bench::new(Plan::default());
    let pool = bench.open_both().await.expect("it opens");
    let pass = bench.tries(1).await;
    bench.fails(pass, SECOND).await;
    let episode = bench.out_since();
    let first = std::fs::File::options()
        .read(true)
        .write(true)
        .open(bench.path("p-0"))
        .expect("there");
    let bytes = std::fs::read(bench.path("p-0")).expect("read");
    first.set_len(0).expect("cut off");
    pool.look_after_sides().await;
    pool.side_is_too_small(1).await;
    drop(pool);
    bench.close().await;
    std::fs::write(bench.path("p-0"), bytes).expect("given back");
    assert_eq!(bench.out_since(), episode, "no label could say it");
    (bench, episode)
}

/// What its stale pages say is less than it lacks.
#[tokio::test]
async fn a_side_that_was_cut_off_beside_a_lost_one_lacks_everything_after_an_opening_that_fails() {
    let (bench, episode) = cut_off_beside_a_lost_side().await;
    bench.plan.lock().expect("no test panics with it").fails = Some(1);
    bench.open_both().await.expect_err("one processor cannot");
    bench.open_both().await.expect("whatever it was is over");
    assert!(bench.out_since() > episode, "an episode of its own");
    assert_eq!(sides(&bench), (Side::First, false));
    // It is said once.
    let episode = bench.out_since();
    bench.close().await;
    bench.open_both().await.expect("it opens");
    assert_eq!(bench.out_since(), episode);
    bench.close().await;
}

#[tokio::test]
async fn a_side_that_was_cut_off_beside_a_lost_one_lacks_everything_after_a_restart() {
    let (bench, episode) = cut_off_beside_a_lost_side().await;
    let restarted = bench.restarted();
    let paths = ["p-0", "p-1"].map(|name| bench.path(name));
    let opened = restarted.open_pool(&paths, Degraded::AsNew).await;
    opened.expect("it opens");
    assert!(bench.out_since() > episode, "an episode of its own");
    assert_eq!(sides(&bench), (Side::First, false));
    restarted.close_pool("p").await.expect("it is closed");
}

/// The daemon died before a label said it.
#[tokio::test]
async fn a_side_that_is_noted_as_cut_off_is_in_sync_no_more() {
    let bench = Bench::new(Plan::default());
    let pool = bench.open_both().await.expect("it opens");
    let (id, label) = (pool.devices.id_text(), pool.devices.mirrors.clone());
    drop(pool);
    bench.close().await;
    let side = label::id_text(&label.expect("it has mirrors").uuid(SECOND));
    let notes = bench.appliance.state.mirrors();
    notes.note_cut_off(&id, &side).expect("written");
    let error = bench.open(&["p-1"], Degraded::AsNew).await;
    let error = error.expect_err("the other side has what it lost");
    for words in [
        "p-1",
        "too small for a while",
        "--degraded",
        "bring that one back",
    ] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(bench.out_since(), 0, "nothing was changed");
    bench.open_both().await.expect("it opens");
    assert_eq!(sides(&bench), (Side::First, false));
    assert!(bench.appliance.state.mirrors().cut_off(&id).is_empty());
    bench.close().await;
}
