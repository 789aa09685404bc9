//! A pool with mirrors whose processors only write down what they are told, and when.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crossbeam_channel::Receiver;
use stillpoint_hw::device::{DeviceFile, Occupant, PoolFiles};
use stillpoint_processor::ShardIndex;
use stillpoint_processor::command::EventKind as ShardEventKind;
use stillpoint_processor::ports::OperationKind;

use super::*;
use crate::api::model::{CreatePool, ReplaceDevice};
use crate::error::ErrorKind;
use crate::events::Events;
use crate::label::Found;
use crate::mailbox::{PoolIndex, RecoveredShard, Stall, Wake, mailbox};
use crate::make::make_pool;
use crate::pool::OpenedPool;
use crate::state::State;

const PROCESSORS: u16 = 2;
const FIRST: SideAt = SideAt {
    device: DeviceIndex(0),
    side: Side::First,
};
const SECOND: SideAt = SideAt {
    device: DeviceIndex(0),
    side: Side::Second,
};
const BROKEN: DeviceError = DeviceError::Os(5);

/// What a processor was told, and which sequence of labels `mirrors.json` had then.
#[derive(Clone, Copy, Debug)]
struct Told {
    processor: u16,
    change: MirrorChange,
    kept: u64,
}

struct Quiet;

impl Wake for Quiet {
    fn wake(&self) {}
}

async fn poll_loop(
    processor: u16,
    messages: Receiver<ToProcessor>,
    told: Arc<Mutex<Vec<Told>>>,
    kept_in: PathBuf,
) {
    loop {
        while let Ok(message) = messages.try_recv() {
            match message {
                ToProcessor::Shard { reply, .. } => drop(reply.send(ShardEventKind::Done)),
                ToProcessor::Mirror { change, reply, .. } => {
                    let kept = sequence_in(&kept_in);
                    let one = Told {
                        processor,
                        change,
                        kept,
                    };
                    told.lock().expect("no test panics with it").push(one);
                    let _ = reply.send(());
                }
                other => panic!("nobody sends {other:?} here"),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// What the file says of the only pool in it.
fn sequence_in(path: &Path) -> u64 {
    let Ok(bytes) = fs::read(path) else { return 0 };
    let known: BTreeMap<String, u64> = serde_json::from_slice(&bytes).expect("numbers by pool");
    known.into_values().next().unwrap_or(0)
}

struct Bench {
    pool: Pool,
    told: Arc<Mutex<Vec<Told>>>,
    directory: tempfile::TempDir,
    kept: State,
}

impl Bench {
    /// A pool of one device with two sides, `p-0` and `p-1`, and a shard for each of two processors.
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let state = State::open(&directory.path().join("state")).expect("made");
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
        let (devices, files) = make_pool(&request, usize::from(PROCESSORS)).expect("a pool");
        let told = Arc::new(Mutex::new(Vec::new()));
        let mailboxes: Vec<_> = (0..PROCESSORS)
            .map(|processor| {
                let (to_loop, messages) = mailbox(Arc::new(Quiet));
                let kept_in = directory.path().join("state/mirrors.json");
                tokio::spawn(poll_loop(processor, messages, Arc::clone(&told), kept_in));
                to_loop
            })
            .collect();
        let recovered = |shard: u16| RecoveredShard {
            shard: ShardIndex(shard),
            volumes: Vec::new(),
            snapshots: Vec::new(),
            catalog: BTreeMap::new(),
            log_records: 0,
            tail_records: 0,
            recovery_ns: 0,
            remarks: Vec::new(),
        };
        let opened = OpenedPool {
            index: PoolIndex(0),
            devices,
            files,
            owners: (0..PROCESSORS).map(ProcessorIndex).collect(),
            shards: (0..PROCESSORS).map(recovered).collect(),
            resync_bytes_per_s: 0,
            notes: Arc::clone(state.mirrors()),
            first_pass: 0,
        };
        let pool = Pool::start(opened, mailboxes.into(), Arc::new(Events::default())).await;
        Self {
            pool: pool.expect("the pool opens"),
            told,
            directory,
            kept: state,
        }
    }

    async fn fails(&self, processor: u16, pass: u64, at: SideAt) {
        let notice = MirrorNotice::SideFailed { at, error: BROKEN };
        let processor = ProcessorIndex(processor);
        self.pool.mirror_told(processor, pass, notice).await;
    }

    async fn resynced(&self, processor: u16, pass: u64, at: SideAt) {
        let notice = MirrorNotice::Resynced { at };
        let processor = ProcessorIndex(processor);
        self.pool.mirror_told(processor, pass, notice).await;
    }

    /// The second side is there again.
    async fn second_returns(&self) {
        let path = self.directory.path().join("p-1");
        self.pool
            .side_returned(1, &path, None)
            .await
            .expect("it is taken");
    }

    /// The places of sides of which it is kept that they were too small, as a start of the appliance would read it.
    fn cut_off(&self) -> Vec<usize> {
        let label = self.newest_label();
        let noted = self.kept.mirrors().cut_off(&self.pool.devices.id_text());
        let kept = fs::read_to_string(self.directory.path().join("state/cut-off.json"));
        let kept = kept.unwrap_or_default();
        let is_noted = |at: &SideAt| noted.contains(&label::id_text(&label.uuid(*at)));
        let is_kept = |at: &SideAt| kept.contains(&label::id_text(&label.uuid(*at)));
        assert!(label.all().all(|at| is_noted(&at) == is_kept(&at)), "{kept}");
        label
            .all()
            .filter(is_kept)
            .map(|at| usize::from(at.below().0))
            .collect()
    }

    /// What the processors were told since this was asked last.
    fn told(&self) -> Vec<Told> {
        core::mem::take(&mut *self.told.lock().expect("no test panics with it"))
    }

    /// The changes that every processor was told since this was asked last.
    fn changes(&self) -> Vec<MirrorChange> {
        let told = self.told();
        let of = |processor: u16| -> Vec<MirrorChange> {
            let of_processor = told.iter().filter(|told| told.processor == processor);
            of_processor.map(|told| told.change).collect()
        };
        assert_eq!(of(0), of(1), "all are told the same");
        of(0)
    }

    fn state(&self, at: SideAt) -> SideState {
        let sides = self.pool.sides().expect("it has mirrors");
        sides.known().record(at).state
    }

    fn newest_label(&self) -> MirrorLabel {
        self.pool.sides().expect("it has mirrors").known().label.clone()
    }

    /// As if the device of a side that is out had been written to by somebody else.
    fn write_label(&self, label: &MirrorLabel, at: SideAt) {
        let number = usize::from(at.below().0);
        let path = self.directory.path().join(format!("p-{number}"));
        let mut files: Vec<Option<DeviceFile>> = (0..number).map(|_| None).collect();
        files.push(Some(DeviceFile::open(&path).expect("nobody has it")));
        let files = PoolFiles::with_missing(files);
        let written = label.write(&self.pool.devices.layout, &files, [at]);
        written.expect("it can be written");
    }

    /// What the label of a side says: its sequence, and since when the second side is out.
    fn label(&self, name: &str) -> (u64, u64) {
        match label::look(&self.directory.path().join(name)).expect("it can be read") {
            Found::Label { label, .. } => (label.sequence.get(), label.mirrors[0].out_since[1].get()),
            other => panic!("{other:?}"),
        }
    }
}

/// A processor that had copied everything before the side went out again has not copied what it missed since.
#[tokio::test]
async fn what_was_copied_in_an_earlier_pass_does_not_count_for_a_later_one() {
    let bench = Bench::new().await;
    bench.fails(0, 0, SECOND).await;
    bench.second_returns().await;
    bench.resynced(0, 1, SECOND).await;
    bench.fails(1, 1, SECOND).await;
    assert_eq!(bench.state(SECOND), SideState::Out);
    bench.second_returns().await;
    bench.told();
    bench.resynced(1, 2, SECOND).await;
    assert_eq!(
        bench.state(SECOND),
        SideState::Resync,
        "one of two has not copied it"
    );
    // Said before it went out, and heard only now.
    bench.resynced(0, 1, SECOND).await;
    assert_eq!(bench.state(SECOND), SideState::Resync, "of the pass before");
    assert_ne!(bench.label("p-0").1, 0, "and the labels say so");
    bench.resynced(0, 2, SECOND).await;
    assert_eq!(bench.state(SECOND), SideState::InSync);
    assert_eq!(bench.label("p-0"), bench.label("p-1"));
    assert_eq!(bench.changes(), [MirrorChange::Joined { at: SECOND }]);
}

/// It begins another pass, of which nothing is done yet.
#[tokio::test]
async fn trying_again_is_a_pass_of_its_own_and_no_new_attachment() {
    let bench = Bench::new().await;
    bench.fails(0, 0, SECOND).await;
    bench.second_returns().await;
    bench.resynced(0, 1, SECOND).await;
    bench.pool.resync(None, None).await.expect("tried again");
    bench.resynced(0, 1, SECOND).await;
    bench.resynced(1, 2, SECOND).await;
    assert_eq!(
        bench.state(SECOND),
        SideState::Resync,
        "the first has not done this pass"
    );
    // It was attached with pass 1: what failed since then counts.
    bench.fails(0, 1, SECOND).await;
    assert_eq!(bench.state(SECOND), SideState::Out);
}

/// An operation that failed before the side was given back says nothing of the side that is there now.
#[tokio::test]
async fn what_failed_before_a_side_was_attached_again_does_not_put_it_out() {
    let bench = Bench::new().await;
    bench.fails(0, 0, SECOND).await;
    let episode = bench.label("p-0").0;
    assert_eq!(bench.label("p-0"), (episode, episode));
    assert_eq!(bench.changes(), [MirrorChange::Out { at: SECOND, episode }]);
    // The other processor noticed too: it is told again, and it is the same time.
    bench.fails(1, 0, SECOND).await;
    assert_eq!(bench.changes(), [MirrorChange::Out { at: SECOND, episode }]);
    bench.second_returns().await;
    bench.told();
    bench.fails(1, 0, SECOND).await;
    assert_eq!(bench.state(SECOND), SideState::Resync, "heard too late");
    assert!(bench.changes().is_empty());
    bench.fails(1, 1, SECOND).await;
    assert_eq!(bench.state(SECOND), SideState::Out);
}

#[tokio::test]
async fn a_replaced_side_lacks_everything_since_the_episode_of_the_labels() {
    let bench = Bench::new().await;
    let new = bench.directory.path().join("new");
    fs::write(&new, []).expect("written");
    let file = fs::File::options().write(true).open(&new).expect("there");
    file.set_len(64 << 20).expect("it grows");
    let request = ReplaceDevice {
        device: "0.1".to_owned(),
        with: new.display().to_string(),
        force: true,
    };
    bench.pool.replace_side(&request, None).await.expect("replaced");
    let changes = bench.changes();
    let (sequence, episode) = bench.label("p-0");
    assert_eq!(bench.label("new"), (sequence, episode));
    // The episode of the labels is that of the pages in which the processors note how far they are.
    let [.., last, MirrorChange::Attach { at: SECOND, .. }] = changes[..] else {
        panic!("{changes:?}");
    };
    assert_eq!(last, MirrorChange::Replaced { at: SECOND, episode });
}

/// It may have its size back when it is there again, and something else, or nothing, where its end was.
#[tokio::test]
async fn a_side_that_has_become_smaller_lacks_everything() {
    let bench = Bench::new().await;
    let error = DeviceError::Shrunk;
    let notice = MirrorNotice::SideFailed { at: SECOND, error };
    bench.pool.mirror_told(ProcessorIndex(0), 0, notice).await;
    let (_, episode) = bench.label("p-0");
    assert_eq!(bench.changes(), [MirrorChange::Replaced { at: SECOND, episode }]);
    assert!(bench.cut_off().is_empty(), "the labels say it");
}

/// The other side is to say it, and cannot: it would be in sync by all labels there are.
#[tokio::test]
async fn a_side_that_has_become_smaller_is_kept_in_mind_until_a_label_says_so() {
    let bench = Bench::new().await;
    drop(bench.pool.files.take(0));
    let error = DeviceError::Shrunk;
    let notice = MirrorNotice::SideFailed { at: SECOND, error };
    bench.pool.mirror_told(ProcessorIndex(0), 0, notice).await;
    assert_eq!(bench.cut_off(), [1]);
}

/// It went out for another reason, and comes back without its end: once that was seen, it lacks everything, whatever size it has then.
#[tokio::test]
async fn a_side_that_is_seen_too_small_while_it_is_out_lacks_everything() {
    let bench = Bench::new().await;
    bench.fails(0, 0, SECOND).await;
    let (_, before) = bench.label("p-0");
    bench.told();
    bench.pool.side_is_too_small(1).await;
    let (_, episode) = bench.label("p-0");
    assert!(episode > before, "an episode of its own");
    assert_eq!(bench.changes(), [MirrorChange::Replaced { at: SECOND, episode }]);
    bench.pool.side_is_too_small(1).await;
    assert_eq!(bench.changes(), [], "it is known");
    // A side that is in use tells of itself.
    bench.pool.side_is_too_small(0).await;
    assert_eq!(bench.changes(), []);
    bench.second_returns().await;
    bench.resynced(0, 1, SECOND).await;
    bench.resynced(1, 1, SECOND).await;
    assert_eq!(bench.state(SECOND), SideState::InSync);
}

/// Some devices tell it with an error of their own before anybody looks at their size.
#[tokio::test]
async fn an_error_of_a_side_that_is_too_small_says_that_it_lacks_everything() {
    let bench = Bench::new().await;
    let file = fs::File::options()
        .write(true)
        .open(bench.directory.path().join("p-1"));
    file.expect("there").set_len(32 << 20).expect("cut off");
    bench.fails(0, 0, SECOND).await;
    let (_, episode) = bench.label("p-0");
    assert_eq!(bench.changes(), [MirrorChange::Replaced { at: SECOND, episode }]);
}

/// Its server may be gone, and what waits for the labels would wait for it.
#[tokio::test]
async fn nobody_asks_for_the_size_of_another_side_before_the_labels_are_written() {
    let bench = Bench::new().await;
    let known = bench.pool.size_bytes_now(0);
    let file = fs::File::options()
        .write(true)
        .open(bench.directory.path().join("p-0"));
    file.expect("there").set_len(known + 4096).expect("grown");
    bench.fails(0, 0, SECOND).await;
    assert_eq!(bench.state(SECOND), SideState::Out);
    assert_eq!(
        bench.pool.size_bytes_now(0),
        known,
        "it was not asked how large it is"
    );
    bench.pool.look_after_sides().await;
    assert_eq!(bench.pool.size_bytes_now(0), known + 4096);
}

/// A history of its own: what was written to it there is not on the other side here, and nothing says which regions these are.
#[tokio::test]
async fn a_side_that_was_used_elsewhere_is_not_taken_back() {
    let bench = Bench::new().await;
    let path = bench.directory.path().join("p-1");
    let before = bench.newest_label();
    bench.fails(0, 0, SECOND).await;
    // Somewhere the other side was missing, then another device took its place and got everything.
    let alone = before.with_out(&[FIRST]).expect("one is left");
    let replaced = before.with_replaced(FIRST, [77; 16]).expect("one is left");
    let joined = replaced.with_joined(FIRST);
    // Or it was missing for a while, and got what it lacked.
    let mut later = alone.with_joined(FIRST);
    for _ in 0..5 {
        later = later.with_joined(FIRST);
    }
    for (label, words) in [
        (alone, "was used without the other side of pool p"),
        (replaced, "was used without the other side of pool p"),
        (
            joined,
            "was used as a part of pool p with another device as its other side",
        ),
        (
            later,
            "was used as a part of pool p elsewhere after it went out here",
        ),
    ] {
        bench.write_label(&label, SECOND);
        let refused = bench.pool.side_returned(1, &path, None).await;
        let error = refused.expect_err("it is another history");
        assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
        let text = error.to_string();
        assert!(
            text.contains(words) && text.contains("stillpoint pool replace p 0.1"),
            "{text}"
        );
        assert_eq!(bench.state(SECOND), SideState::Out);
    }
    bench.write_label(&before, SECOND);
    bench.second_returns().await;
    assert_eq!(bench.state(SECOND), SideState::Resync);
}

/// Its label is as new as the change that put it in its place.
#[tokio::test]
async fn a_device_that_took_the_place_of_a_side_and_went_away_is_taken_back() {
    let bench = Bench::new().await;
    let new = bench.directory.path().join("p-1-new");
    let request = ReplaceDevice {
        device: "0.1".to_owned(),
        with: new.display().to_string(),
        force: false,
    };
    bench.pool.replace_side(&request, None).await.expect("replaced");
    let pass = bench
        .pool
        .sides()
        .expect("mirrors")
        .known()
        .record(SECOND)
        .attached;
    bench.fails(0, pass, SECOND).await;
    assert_eq!(bench.state(SECOND), SideState::Out);
    bench
        .pool
        .side_returned(1, &new, None)
        .await
        .expect("it is taken");
    assert_eq!(bench.state(SECOND), SideState::Resync);
}

/// Nothing is left to be told after that, however often it is looked at.
#[tokio::test]
async fn the_last_side_is_lost_once() {
    let bench = Bench::new().await;
    bench.fails(0, 0, SECOND).await;
    bench.told();
    let file = fs::File::options()
        .write(true)
        .open(bench.directory.path().join("p-0"));
    file.expect("there").set_len(32 << 20).expect("cut off");
    for _ in 0..3 {
        bench.pool.look_after_sides().await;
    }
    let device = DeviceIndex(0);
    let error = DeviceError::Shrunk;
    assert_eq!(bench.changes(), [MirrorChange::Lost { device, error }]);
}

/// A label that nobody has would make the last side older than the labels are known to be: it could not be opened when it is back.
#[tokio::test]
async fn no_label_is_made_while_nothing_is_left_of_the_last_side() {
    let bench = Bench::new().await;
    bench.fails(0, 0, SECOND).await;
    let path = bench.directory.path().join("p-0");
    let file = fs::File::options().write(true).open(&path).expect("there");
    let whole = file.metadata().expect("there").len();
    let label = fs::read(&path).expect("read")[..4096].to_vec();
    let kept = || sequence_in(&bench.directory.path().join("state/mirrors.json"));
    let before = kept();
    file.set_len(0).expect("cut off");
    bench.pool.look_after_sides().await;
    bench.told();
    bench.pool.side_is_too_small(1).await;
    bench.fails(0, 0, SECOND).await;
    assert_eq!((kept(), file.metadata().expect("there").len()), (before, 0));
    assert_eq!(bench.cut_off(), [1], "it is to be told when there is a label");
    let request = ReplaceDevice {
        device: "0.1".to_owned(),
        with: bench.directory.path().join("new").display().to_string(),
        force: false,
    };
    let refused = bench.pool.replace_side(&request, None).await;
    refused.expect_err("there is nothing to copy from");
    fs::write(&path, &label).expect("given back");
    file.set_len(whole).expect("given back");
    assert_eq!(
        bench.label("p-0").0,
        before,
        "as new as the labels are known to be"
    );
    assert_eq!(
        bench.pool.lost_devices().keys().copied().collect::<Vec<_>>(),
        [0],
        "until the pool is opened again"
    );
}

/// Were it noted, the side that is back first would be refused as older than labels that nobody has.
#[tokio::test]
async fn a_label_that_no_side_took_is_not_kept_as_the_newest() {
    let bench = Bench::new().await;
    let kept = || sequence_in(&bench.directory.path().join("state/mirrors.json"));
    let before = kept();
    // It is gone, and nobody has noticed yet.
    drop(bench.pool.files.take(0));
    bench.fails(0, 0, SECOND).await;
    let lost = bench.pool.lost_devices();
    assert_eq!(lost.keys().copied().collect::<Vec<_>>(), [0]);
    assert_eq!(kept(), before);
}

/// It would be in resynchronisation when the pool is opened again, and what is known of its end would be said to nobody.
#[tokio::test]
async fn a_side_does_not_come_back_before_the_last_one_that_was_lost() {
    let bench = Bench::new().await;
    bench.fails(0, 0, SECOND).await;
    let first = fs::File::options()
        .write(true)
        .open(bench.directory.path().join("p-0"))
        .expect("there");
    first.set_len(0).expect("cut off");
    bench.pool.look_after_sides().await;
    bench.pool.side_is_too_small(1).await;
    let second = bench.directory.path().join("p-1");
    let waits = bench.pool.side_returned(1, &second, None).await;
    let waits = waits.expect_err("there is nothing to copy from");
    // It is not told of as refused, but asked again.
    assert!(
        waits.kind == ErrorKind::Conflict && waits.hint.is_none(),
        "{waits}"
    );
    assert_eq!(bench.state(SECOND), SideState::Out);
    assert_eq!(bench.cut_off(), [1], "it is still to be told");
}

/// Were an answer to rest on labels whose sequence nobody keeps, the side that missed it could be opened alone after a crash.
#[tokio::test]
async fn how_new_the_labels_are_is_kept_before_anybody_is_told_what_they_say() {
    let bench = Bench::new().await;
    bench.fails(0, 0, SECOND).await;
    bench.second_returns().await;
    bench.resynced(0, 1, SECOND).await;
    bench.resynced(1, 1, SECOND).await;
    bench.fails(1, 1, FIRST).await;
    let told = bench.told();
    let rest_on_labels = told.iter().filter_map(|told| match told.change {
        MirrorChange::Out { episode, .. } => Some((told, episode)),
        MirrorChange::Replaced { episode, .. } => Some((told, episode)),
        MirrorChange::Joined { .. } => Some((told, 3)),
        _ => None,
    });
    let rest_on_labels: Vec<_> = rest_on_labels.collect();
    assert_eq!(rest_on_labels.len(), 3 * usize::from(PROCESSORS), "{told:?}");
    for (told, sequence) in rest_on_labels {
        assert!(told.kept >= sequence, "{told:?}: the labels have {sequence}");
    }
    assert_eq!(bench.label("p-1").0, 4, "out, in sync, and the other out");
}

#[tokio::test]
async fn a_stall_is_told_once_and_its_end_when_nobody_waits_any_more() {
    let bench = Bench::new().await;
    let pool = &bench.pool;
    let lasts = |began_wall_ns| Stall::Lasts {
        kind: OperationKind::Write,
        began_wall_ns,
    };
    let device = Occupant { place: 1, nth: 1 };
    let tell = |processor, stall| pool.stall_told(ProcessorIndex(processor), device, stall);
    let stalled_since = |place| {
        let file = pool.files.get(place).expect("in its place");
        pool.stalled_since(place, &file)
    };
    let told = || {
        let events = pool.events.list(None, 100, false).events;
        let about = events
            .into_iter()
            .filter(|event| event.kind.starts_with("device_stall"));
        about
            .map(|event| (event.kind, event.subject, event.began_ns))
            .collect::<Vec<_>>()
    };
    let path = bench.directory.path().join("p-1").display().to_string();
    let event = |kind: &str| (kind.to_owned(), path.clone(), Some(7));
    tell(0, lasts(7));
    tell(1, lasts(9));
    tell(0, lasts(7));
    assert_eq!(told(), [event("device_stalled")]);
    assert_eq!([0, 1].map(stalled_since), [None, Some(7)]);
    tell(0, Stall::Ended);
    assert_eq!(stalled_since(1), Some(7), "the other processor waits");
    tell(1, Stall::Ended);
    tell(1, Stall::Ended);
    assert_eq!(told(), [event("device_stalled"), event("device_stall_ended")]);
    assert_eq!(stalled_since(1), None);
    // Whoever waits longest was there first, whoever tells first.
    tell(1, lasts(9));
    tell(0, lasts(7));
    assert_eq!(stalled_since(1), Some(7));
    // When the pool is closed nobody is left to say that it ended.
    pool.end_stalls();
    assert_eq!(told().last(), Some(&event("device_stall_ended")));
    assert_eq!((told().len(), stalled_since(1)), (4, None));
}

/// A side that is put out may have to answer what clients wait for.
#[tokio::test]
async fn the_stall_of_a_side_that_is_out_goes_on_and_is_not_that_of_another_in_its_place() {
    let bench = Bench::new().await;
    let pool = &bench.pool;
    let lasts = Stall::Lasts {
        kind: OperationKind::Write,
        began_wall_ns: 7,
    };
    let tell = |nth, stall| pool.stall_told(ProcessorIndex(0), Occupant { place: 1, nth }, stall);
    let told = || {
        let events = pool.events.list(None, 100, false).events;
        let about = events.into_iter();
        about
            .filter(|event| event.kind.starts_with("device_stall"))
            .map(|event| (event.kind, event.subject))
            .collect::<Vec<_>>()
    };
    let path = |name: &str| bench.directory.path().join(name).display().to_string();
    let event = |kind: &str, name| (kind.to_owned(), path(name));
    bench.fails(0, 0, SECOND).await;
    bench.fails(1, 0, SECOND).await;
    assert!(pool.files.get(1).is_none(), "it is out");
    tell(1, lasts);
    assert_eq!(told(), [event("device_stalled", "p-1")], "and yet it has a name");
    let other = bench.directory.path().join("other");
    pool.files
        .put(1, DeviceFile::create(&other, 1 << 20).expect("made"));
    let stalled_since = || pool.stalled_since(1, &pool.files.get(1).expect("in its place"));
    assert_eq!(stalled_since(), None, "it answers");
    tell(2, lasts);
    assert_eq!(told()[1..], [event("device_stalled", "other")]);
    assert_eq!(stalled_since(), Some(7));
    tell(1, Stall::Ended);
    assert_eq!(told()[2..], [event("device_stall_ended", "p-1")]);
    assert_eq!(stalled_since(), Some(7));
    tell(2, Stall::Ended);
    assert_eq!(told()[3..], [event("device_stall_ended", "other")]);
    assert_eq!(stalled_since(), None);
}
