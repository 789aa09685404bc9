//! Laws of the catalog in memory and of what mends it.

use std::collections::BTreeMap;

use super::*;
use crate::mailbox::RecoveredShard;
use stillpoint_coordinator::{Marks, SnapshotVolume, Written};
use stillpoint_ondisk::catalog::{FIGURES_MAX, FiguresHead, HoldRow, Key, Value};
use stillpoint_processor::command::{
    HoldFigures, IntermediateSnapshotStatus, ScrubDamage, ScrubPosition, ScrubSide, ScrubState,
    VolumeShareStatus,
};
use stillpoint_processor::ports::DeviceError;
use stillpoint_processor::{DeviceAddress, ShardCommand, ShareBlock, TimeStamp};

const SHARDS: u16 = 2;

/// Rows as shard 0 keeps them.
#[derive(Default)]
struct Rows(BTreeMap<Vec<u8>, Vec<u8>>);

impl Rows {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Put { key, value } => self.0.insert(key, value),
            Change::Delete { key } => self.0.remove(&key),
        };
    }
}

fn volume(id: u32, name: &str) -> Volume {
    Volume {
        id: VolumeId(id),
        name: name.to_owned(),
        size_bytes: 10 << 20,
        block_bytes: 4096,
        object_blocks: 256,
        rotation: (id % u32::from(SHARDS)) as u16,
        created_ns: 5,
        head: VolumeId(id),
        origin: None,
        change_log: None,
    }
}

fn snapshot(id: u64, name: &str, volumes: &[u32]) -> OverallSnapshot {
    OverallSnapshot {
        snapshot: SnapshotId(id),
        name: name.to_owned(),
        time_stamp: TimeStamp(id * 100),
        volumes: volumes
            .iter()
            .map(|&volume| SnapshotVolume {
                volume: VolumeId(volume),
                owner: VolumeId(volume),
                size_bytes: 8 << 20,
            })
            .collect(),
        marks: Marks::default(),
        holds: vec![HoldFigures::default(); usize::from(SHARDS)],
        durable_ns: 9,
        written: Written::default(),
    }
}

fn export(id: u32, name: &str, volume: u32, snapshot: Option<u64>) -> ExportRow {
    ExportRow {
        id,
        name: name.to_owned(),
        view: View {
            volume: VolumeId(volume),
            snapshot: snapshot.map(SnapshotId),
        },
        read_only: false,
        allow_snapshots: snapshot.is_none(),
        created_ns: 6,
    }
}

/// A catalog with two volumes, a snapshot of each, a group snapshot and two exports; and its rows.
fn sample() -> (Catalog, Rows) {
    let mut catalog = Catalog {
        shard_count: SHARDS,
        ..Catalog::default()
    };
    let mut rows = Rows::default();
    for name in ["alpha", "beta"] {
        let (id, counters) = catalog.next_volume();
        counters.into_iter().for_each(|change| rows.apply(change));
        let volume = volume(id.0, name);
        rows.apply(Change::put_volume(&volume));
        catalog.put_volume(volume);
    }
    for (name, volumes) in [("one", &[1][..]), ("one", &[2]), ("both", &[1, 2])] {
        let (id, counters) = catalog.next_snapshot();
        counters.into_iter().for_each(|change| rows.apply(change));
        let snapshot = snapshot(id.0, name, volumes);
        rows.apply(Change::put_snapshot(&snapshot));
        catalog.put_snapshot(snapshot);
    }
    for (name, volume, snapshot) in [("alpha", 1, None), ("beta@both", 2, Some(3))] {
        let (id, counters) = catalog.next_export();
        counters.into_iter().for_each(|change| rows.apply(change));
        let export = export(id, name, volume, snapshot);
        rows.apply(Change::put_export(&export));
        catalog.put_export(export);
    }
    (catalog, rows)
}

/// What the shards hold if nothing went wrong.
fn shards(catalog: &Catalog) -> Vec<RecoveredShard> {
    (0..SHARDS)
        .map(|shard| RecoveredShard {
            shard: ShardIndex(shard),
            volumes: catalog
                .volumes()
                .map(|volume| VolumeShareStatus {
                    volume: volume.id,
                    share_blocks: volume.share_blocks(ShardIndex(shard), SHARDS),
                    mapped_blocks: 0,
                    epoch: 1,
                    snapshots: 0,
                    headless: false,
                    origin: None,
                })
                .collect(),
            snapshots: catalog
                .volumes()
                .map(|volume| {
                    let found = catalog
                        .snapshots_of(volume.id)
                        .map(|snapshot| share(snapshot.snapshot.0));
                    (volume.id, found.collect())
                })
                .collect(),
            catalog: BTreeMap::new(),
            log_records: 0,
            tail_records: 0,
            recovery_ns: 0,
            remarks: Vec::new(),
        })
        .collect()
}

fn share(snapshot: u64) -> IntermediateSnapshotStatus {
    IntermediateSnapshotStatus {
        snapshot: SnapshotId(snapshot),
        epoch: 1,
        time_stamp: TimeStamp(1),
        mapped_blocks: 0,
        changed_blocks: 0,
        first_change_ns: 0,
        last_change_ns: 0,
        deleting: false,
    }
}

#[test]
fn a_catalog_comes_back_from_its_rows() {
    let (catalog, rows) = sample();
    let (loaded, left_over) = Catalog::load(&rows.0, SHARDS).expect("sound rows");
    assert!(left_over.is_empty());
    assert!(loaded.volumes().eq(catalog.volumes()));
    assert!(loaded.snapshots().eq(catalog.snapshots()));
    assert!(loaded.exports().eq(catalog.exports()));
}

#[test]
fn numbers_are_never_given_out_twice_even_after_a_restart() {
    let (mut catalog, mut rows) = sample();
    let mut given = Vec::new();
    for round in 0..40 {
        let (id, counters) = catalog.next_volume();
        counters.into_iter().for_each(|change| rows.apply(change));
        assert!(!given.contains(&id), "round {round}");
        assert!(catalog.volume_by_id(id).is_none());
        given.push(id);
        if round % 3 == 0 {
            catalog = Catalog::load(&rows.0, SHARDS).expect("sound rows").0;
        }
    }
}

#[test]
fn a_row_that_cannot_be_read_stops_the_pool_and_names_the_row() {
    let (_, mut rows) = sample();
    rows.0
        .get_mut(&Key::Volume(1).encode())
        .expect("there")
        .truncate(7);
    let error = Catalog::load(&rows.0, SHARDS).expect_err("damaged");
    assert!(error.message.contains("catalog row"), "{error}");
    let (_, mut rows) = sample();
    rows.apply(Change::Delete {
        key: Key::Counters.encode(),
    });
    assert!(
        Catalog::load(&rows.0, SHARDS).is_err(),
        "numbers would be given out again"
    );
}

#[test]
fn figures_belong_to_their_snapshot_and_those_of_no_snapshot_are_removed() {
    let (_, mut rows) = sample();
    let row = HoldRow {
        hold_ns: 7u64.into(),
        answers_held: 8u64.into(),
        answer_held_ns_max: 9u64.into(),
    };
    let mut put = |snapshot, first_shard| {
        let key = Key::Figures {
            snapshot,
            first_shard,
        };
        rows.0.insert(
            key.encode(),
            Value::Figures(FiguresHead::of(24, 40), &[row]).encode(),
        );
        key
    };
    put(1, 1);
    let orphan = put(99, FIGURES_MAX as u16);
    let (catalog, left_over) = Catalog::load(&rows.0, SHARDS).expect("sound rows");
    let holds = &catalog.snapshot_by_id(SnapshotId(1)).expect("there").holds;
    assert_eq!(
        (holds[0].hold_ns, holds[1].hold_ns, holds[1].answers_held),
        (0, 7, 8)
    );
    let written = catalog.snapshot_by_id(SnapshotId(1)).expect("there").written;
    assert_eq!((written.log_bytes, written.metadata_bytes), (24, 40));
    assert_eq!(left_over, [Change::Delete { key: orphan.encode() }]);
}

#[test]
fn marks_belong_to_their_snapshot_and_those_of_no_snapshot_are_removed() {
    let (_, mut rows) = sample();
    let marks = Marks {
        schedule: 4,
        locked_until_ns: 5000,
    };
    rows.apply(Change::put_marks(SnapshotId(2), marks));
    rows.apply(Change::put_marks(SnapshotId(98), marks));
    rows.apply(Change::put_highest_time(4000));
    let (mut catalog, left_over) = Catalog::load(&rows.0, SHARDS).expect("sound rows");
    let orphan = Key::Marks(98).encode();
    assert_eq!(left_over, [Change::Delete { key: orphan }]);
    let found = |id| catalog.snapshot_by_id(SnapshotId(id)).expect("there").marks;
    assert_eq!((found(1), found(2)), (Marks::default(), marks));
    assert_eq!(catalog.lock_end(), 5000);
    assert_eq!(catalog.saw_time(3999), 4000, "time does not go back");
    // With the snapshot its marks go.
    let snapshot = catalog.snapshot_by_id(SnapshotId(2)).expect("there").clone();
    for change in Change::delete_snapshot(&snapshot) {
        rows.apply(change);
    }
    assert!(!rows.0.contains_key(&Key::Marks(2).encode()));
}

#[test]
fn a_locked_snapshot_is_not_removed_before_its_time() {
    let (mut catalog, _) = sample();
    let mut both = catalog.snapshot_by_id(SnapshotId(3)).expect("there").clone();
    both.marks.locked_until_ns = 5000;
    catalog.put_snapshot(both.clone());
    for volume in [None, Some(VolumeId(1)), Some(VolumeId(2))] {
        let error = catalog.check_removal(&both, volume, 4999).expect_err("locked");
        assert!(
            error.message.contains("locked until 1970-01-01T00:00:00Z"),
            "{error}"
        );
    }
    assert!(catalog.check_removal(&both, Some(VolumeId(1)), 5000).is_ok());
    for volume in [None, Some(VolumeId(2))] {
        let error = catalog.check_removal(&both, volume, 5000).expect_err("exported");
        assert!(error.message.contains("exported as beta@both"), "{error}");
    }
    let one = catalog.snapshot_by_id(SnapshotId(1)).expect("there");
    assert!(catalog.check_removal(one, None, 0).is_ok());
}

#[test]
fn a_name_is_taken_from_the_moment_the_snapshot_is_asked_for() {
    let (mut catalog, _) = sample();
    let both = [VolumeId(1), VolumeId(2)];
    assert!(catalog.reserve_snapshot_name(&both, "one").is_err());
    catalog.reserve_snapshot_name(&both, "new").expect("free");
    let error = catalog
        .reserve_snapshot_name(&[VolumeId(2)], "new")
        .expect_err("taken");
    assert!(error.message.contains("beta@new"), "{error}");
    catalog.free_snapshot_name(&both, "new");
    catalog
        .reserve_snapshot_name(&[VolumeId(2)], "new")
        .expect("free again");
}

#[test]
fn a_snapshot_is_seen_with_its_own_size_and_never_written() {
    let (catalog, _) = sample();
    let volume = View {
        volume: VolumeId(1),
        snapshot: None,
    };
    let live = catalog.host_view(volume, false).expect("there");
    assert_eq!((live.size_bytes, live.read_only), (10 << 20, false));
    let frozen = catalog
        .host_view(
            View {
                snapshot: Some(SnapshotId(1)),
                ..volume
            },
            false,
        )
        .expect("there");
    assert_eq!((frozen.size_bytes, frozen.read_only), (8 << 20, true));
    assert_eq!(
        catalog.host_view(
            View {
                snapshot: Some(SnapshotId(2)),
                ..volume
            },
            false
        ),
        None
    );
    assert_eq!(catalog.view_name(frozen.view), "alpha@one");
}

#[test]
fn nothing_is_mended_when_nothing_went_wrong() {
    let (mut catalog, _) = sample();
    let shards = shards(&catalog);
    assert_eq!(reconcile(&mut catalog, &shards), Mending::default());
}

#[test]
fn an_intermediate_snapshot_without_a_commit_record_is_deleted() {
    let (mut catalog, _) = sample();
    let mut shards = shards(&catalog);
    shards[1].snapshots[0].1.push(share(77));
    shards[0].snapshots[0].1.push(IntermediateSnapshotStatus {
        deleting: true,
        ..share(78)
    });
    let mending = reconcile(&mut catalog, &shards);
    let (volume, snapshot) = (VolumeId(1), SnapshotId(77));
    assert_eq!(
        mending.commands,
        [(ShardIndex(1), ShardCommand::DeleteSnapshot { volume, snapshot })]
    );
    assert!(mending.remarks.is_empty() && mending.changes.is_empty());
}

#[test]
fn shares_are_made_to_agree_with_the_catalog() {
    let (mut catalog, _) = sample();
    let mut shards = shards(&catalog);
    shards[0].volumes.remove(0);
    shards[0].snapshots.clear();
    shards[1].volumes[1].share_blocks += 256;
    let stray = VolumeShareStatus {
        volume: VolumeId(55),
        ..shards[1].volumes[0]
    };
    shards[1].volumes.push(stray);
    let mending = reconcile(&mut catalog, &shards);
    let blocks = |volume: u32, shard| {
        let volume = catalog.volume_by_id(VolumeId(volume)).expect("there");
        volume.share_blocks(ShardIndex(shard), SHARDS)
    };
    let expected = [
        (
            ShardIndex(0),
            ShardCommand::CreateVolume {
                volume: VolumeId(1),
                share_blocks: blocks(1, 0),
            },
        ),
        (
            ShardIndex(1),
            ShardCommand::ResizeVolume {
                volume: VolumeId(2),
                share_blocks: blocks(2, 1),
            },
        ),
        (ShardIndex(1), ShardCommand::DeleteVolume { volume: VolumeId(55) }),
    ];
    assert_eq!(mending.commands, expected);
    assert_eq!(
        mending.damage.len(),
        4,
        "four intermediate snapshots are missing: {:?}",
        mending.damage
    );
}

#[test]
fn what_depends_on_a_volume_goes_with_it() {
    let (mut catalog, _) = sample();
    let shards = shards(&catalog);
    catalog.remove_volume(VolumeId(2));
    let mending = reconcile(&mut catalog, &shards);
    let names: Vec<&str> = catalog
        .snapshots()
        .map(|snapshot| snapshot.name.as_str())
        .collect();
    assert_eq!(names, ["one", "both"]);
    assert_eq!(
        catalog
            .exports()
            .map(|export| export.name.as_str())
            .collect::<Vec<_>>(),
        ["alpha"]
    );
    let deletes = (0..SHARDS)
        .map(|shard| {
            (
                ShardIndex(shard),
                ShardCommand::DeleteVolume { volume: VolumeId(2) },
            )
        })
        .collect::<Vec<_>>();
    assert_eq!(mending.commands, deletes);
    let mut again = catalog.clone();
    assert!(
        reconcile(&mut again, &[]).changes.is_empty(),
        "the second time there is nothing left to do"
    );
    assert_eq!(again, catalog);
}

fn scrub(state: ScrubState, damage: &[ScrubDamage]) -> ScrubStatus {
    ScrubStatus {
        state,
        rate_bytes_per_s: 1,
        position: ScrubPosition {
            volume: 2,
            epoch: 3,
            until: 4,
            leaf: 5,
            pages_read: true,
            slot: 6,
        },
        checked_blocks: 7,
        damaged_blocks: 8,
        damage: damage.to_vec(),
        sides: [9, 12].map(|from| ScrubSide {
            read_blocks: from,
            repaired_blocks: from + 1,
            unrepaired_blocks: from + 2,
        }),
        started_ns: 15,
        ended_ns: 16,
        running_ns: 17,
    }
}

/// A damaged block for every reason that there is.
fn scrub_damages() -> Vec<ScrubDamage> {
    let nvme = DeviceError::Nvme {
        status: 0x281,
        meaning: stillpoint_hw::device::nvme::status::meaning(0x281),
    };
    let errors = [DeviceError::Os(-5), DeviceError::Short, DeviceError::Gone, nvme];
    let reasons = errors.into_iter().map(Some).chain([None]);
    let damage = |(number, device_error): (u64, Option<DeviceError>)| ScrubDamage {
        view: View {
            volume: VolumeId(1),
            snapshot: (number > 0).then_some(SnapshotId(number)),
        },
        map_level: (number > 1).then(|| number as u8 - 2),
        first: ShareBlock(20 + number),
        address: DeviceAddress(30 + number),
        device_error,
    };
    (0..).zip(reasons).map(damage).collect()
}

#[test]
fn a_scrub_comes_back_from_its_rows_as_it_was() {
    let shards = 35;
    let states = [
        ScrubState::Running,
        ScrubState::Paused,
        ScrubState::Done,
        ScrubState::Stopped,
    ];
    let mut scrubs: Vec<ScrubStatus> = (0..shards).map(|i| scrub(states[i % 4], &[])).collect();
    scrubs[3] = ScrubStatus::default();
    scrubs[34].damage = scrub_damages();
    let mut rows = Rows::default();
    let keep = |rows: &mut Rows, before: &[ScrubStatus], now: &[ScrubStatus]| {
        let changes = Change::put_scrubs(before, now);
        let count = changes.len();
        changes.into_iter().for_each(|change| rows.apply(change));
        let (catalog, left_over) = Catalog::load(&rows.0, shards as u16).expect("sound rows");
        assert_eq!(left_over, []);
        assert_eq!(catalog.scrubs(), now);
        count
    };
    assert_eq!(
        keep(&mut rows, &[], &scrubs),
        4,
        "three rows of 16 shards at most, and damage"
    );
    // Only what is different is written.
    let before = scrubs.clone();
    assert_eq!(keep(&mut rows, &before, &scrubs), 0);
    scrubs[20].position.leaf += 1;
    assert_eq!(keep(&mut rows, &before, &scrubs), 1);
    let before = scrubs.clone();
    scrubs[34].damage.clear();
    scrubs[0].damage = scrub_damages();
    assert_eq!(keep(&mut rows, &before, &scrubs), 2, "one row comes and one goes");
    // A pool never scrubbed has no row, and no scrub.
    assert!(Catalog::default().scrubs().is_empty());
}
