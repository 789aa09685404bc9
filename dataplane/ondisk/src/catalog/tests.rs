//! Laws of the catalog's bytes.

use super::*;
use crate::page::Damage;
use proptest::prelude::*;

fn volume() -> VolumeHead {
    VolumeHead {
        version: VERSION.into(),
        name_bytes: 5.into(),
        rotation: 3.into(),
        reserved: [0; 2],
        block_bytes: 512.into(),
        object_blocks: 16384.into(),
        size_bytes: (10u64 << 30).into(),
        created_ns: 0x1122_3344_5566_7788u64.into(),
    }
}

fn snapshot() -> SnapshotHead {
    SnapshotHead {
        version: VERSION.into(),
        name_bytes: 3.into(),
        volume_count: 2.into(),
        shard_count: 4.into(),
        time_stamp_ns: 7u64.into(),
        durable_ns: 9u64.into(),
    }
}

fn group() -> [SnapshotVolumeRow; 2] {
    [1u32, 2].map(|volume| SnapshotVolumeRow {
        volume: volume.into(),
        owner: 0.into(),
        size_bytes: (u64::from(volume) << 20).into(),
    })
}

fn hold() -> HoldRow {
    HoldRow {
        hold_ns: 100u64.into(),
        answers_held: 20u64.into(),
        answer_held_ns_max: 3u64.into(),
    }
}

fn schedule() -> ScheduleHead {
    ScheduleHead {
        version: VERSION.into(),
        name_bytes: 5.into(),
        cron_bytes: 9.into(),
        zone_bytes: 3.into(),
        volume_count: 2.into(),
        paused: 1,
        reserved_a: 0,
        keep_last: 21.into(),
        keep_hourly: 22.into(),
        keep_daily: 23.into(),
        keep_weekly: 24.into(),
        keep_monthly: 25.into(),
        keep_yearly: 26.into(),
        reserved_b: [0; 4],
        period_ns: 0u64.into(),
        hold_limit_ns: 28u64.into(),
        created_ns: 29u64.into(),
        done_ns: 30u64.into(),
        reserved_c: [0; 8],
    }
}

fn samples() -> Vec<(Key, Vec<u8>)> {
    let counters = CounterRow {
        version: VERSION.into(),
        reserved: [0; 2],
        next_volume: 2.into(),
        next_export: 3.into(),
        next_snapshot: 257u64.into(),
    };
    let export = ExportHead {
        version: VERSION.into(),
        name_bytes: 7.into(),
        volume: 1.into(),
        snapshot: 6u64.into(),
        read_only: 1,
        allow_snapshots: 0,
        reserved: [0; 6],
        created_ns: 5u64.into(),
    };
    let open_export = ExportHead {
        snapshot: 0u64.into(),
        read_only: 0,
        allow_snapshots: 1,
        ..export
    };
    let figures = Key::Figures {
        snapshot: 6,
        first_shard: 64,
    };
    let costly = Key::Figures {
        snapshot: 7,
        first_shard: 0,
    };
    let highest = HighestTimeRow {
        version: VERSION.into(),
        reserved: [0; 6],
        time_ns: 0x0102_0304_0506_0708u64.into(),
    };
    let group_head = GroupHead {
        version: VERSION.into(),
        name_bytes: 4.into(),
        volume_count: 2.into(),
        reserved: [0; 2],
        created_ns: 32u64.into(),
    };
    let marks = MarksRow {
        version: VERSION.into(),
        reserved_a: [0; 6],
        schedule: 4u64.into(),
        locked_until_ns: 5u64.into(),
        reserved_b: [0; 24],
    };
    vec![
        (Key::Counters, Value::Counters(counters).encode()),
        (Key::Export(9), Value::Export(export, "vol@abc").encode()),
        (Key::Export(10), Value::Export(open_export, "vol").encode()),
        (
            figures,
            Value::Figures(FiguresHead::of(0, 0), &[hold(), hold()]).encode(),
        ),
        (
            costly,
            Value::Figures(FiguresHead::of(8 * 0x1234, 8 * 0xfffe), &[hold()]).encode(),
        ),
        (
            Key::Snapshot(6),
            Value::Snapshot(snapshot(), &group(), "abc").encode(),
        ),
        (Key::Volume(1), Value::Volume(volume(), None, "vol-a").encode()),
        (Key::HighestTime, Value::HighestTime(highest).encode()),
        (Key::Marks(6), Value::Marks(marks).encode()),
        (Key::ChangeLog(7), Value::ChangeLog(change_log(), "log").encode()),
        (
            Key::Scrubs { first_shard: 16 },
            Value::Scrubs(ScrubHead::default(), &[scrub(), scrub()]).encode(),
        ),
        (
            Key::ScrubDamage(17),
            Value::ScrubDamage(ScrubHead::default(), &[scrub_damage(), scrub_damage()]).encode(),
        ),
        (
            Key::Group(7),
            Value::Group(group_head, &[1.into(), 2.into()], "trio").encode(),
        ),
        (
            Key::Schedule(8),
            Value::Schedule(schedule(), &[1.into(), 2.into()], ["night", "0 2 * * *", "UTC"]).encode(),
        ),
    ]
}

fn change_log() -> ChangeLogHead {
    ChangeLogHead {
        version: VERSION.into(),
        name_bytes: 3.into(),
        when_full: 1,
        reserved_a: [0; 3],
        devices: 6u64.into(),
        size_bytes: 8192u64.into(),
        created_ns: 9u64.into(),
        reserved_b: [0; 16],
    }
}

fn scrub() -> ScrubRow {
    ScrubRow {
        state: 2,
        pages_read: 1,
        leaf: 0x0102_0304_0506_0708.into(),
        sides: [ScrubSideRow {
            read_blocks: 1.into(),
            repaired_blocks: 2.into(),
            unrepaired_blocks: 3.into(),
        }; 2],
        ..ScrubRow::default()
    }
}

fn scrub_damage() -> ScrubDamageRow {
    ScrubDamageRow {
        volume: 1.into(),
        map_level: SCRUB_DATA,
        error: 4,
        snapshot: 2.into(),
        first: 3.into(),
        address: 4.into(),
        code: 0x281.into(),
        ..ScrubDamageRow::default()
    }
}

#[test]
fn a_scrub_that_cannot_be_is_refused() {
    let decoded = |change: fn(&mut ScrubRow)| {
        let mut row = scrub();
        change(&mut row);
        let bytes = Value::Scrubs(ScrubHead::default(), &[scrub(), row]).encode();
        Value::decode(Key::Scrubs { first_shard: 0 }, &bytes).map(|_| ())
    };
    assert_eq!(decoded(|_| ()), Ok(()));
    assert_eq!(decoded(|row| row.state = 5), Err(Damage::Field("state")));
    assert_eq!(
        decoded(|row| row.pages_read = 2),
        Err(Damage::Field("pages_read"))
    );
    let damage = ScrubDamageRow {
        error: 5,
        ..scrub_damage()
    };
    let bytes = Value::ScrubDamage(ScrubHead::default(), &[damage]).encode();
    let decoded = Value::decode(Key::ScrubDamage(0), &bytes);
    assert_eq!(decoded, Err(Damage::Field("error")));
}

#[test]
fn a_change_log_volume_that_cannot_be_is_refused() {
    let decoded = |change: fn(&mut ChangeLogHead), name: &str| {
        let mut row = change_log();
        change(&mut row);
        let bytes = Value::ChangeLog(row, name).encode();
        Value::decode(Key::ChangeLog(1), &bytes).map(|_| ())
    };
    assert_eq!(decoded(|_| (), "a"), Ok(()));
    assert!(decoded(|_| (), "").is_err());
    assert!(decoded(|row| row.when_full = 2, "a").is_err());
    assert!(decoded(|row| row.size_bytes = 0u64.into(), "a").is_err());
    assert!(decoded(|row| row.size_bytes = 4097u64.into(), "a").is_err());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn these_bytes_are_version_1() {
    let expected = [
        ("43", "0100000002000000030000000101000000000000"),
        (
            "4500000009",
            "0100070001000000060000000000000001000000000000000500000000000000766f6c40616263",
        ),
        (
            "450000000a",
            "0100030001000000000000000000000000010000000000000500000000000000766f6c",
        ),
        (
            "4600000000000000060040",
            "0100020000000000640000000000000014000000000000000300000000000000640000000000000014000000000000000300000000000000",
        ),
        (
            "4600000000000000070000",
            "010001003412feff640000000000000014000000000000000300000000000000",
        ),
        (
            "530000000000000006",
            "0100030002000400070000000000000009000000000000000100000000000000000010000000000002000000000000000000200000000000616263",
        ),
        (
            "5600000001",
            "0100050003000000000200000040000000000080020000008877665544332211766f6c2d61",
        ),
        ("48", "01000000000000000807060504030201"),
        (
            "4d0000000000000006",
            "010000000000000004000000000000000500000000000000000000000000000000000000000000000000000000000000",
        ),
        (
            "4c00000007",
            "0100030001000000060000000000000000200000000000000900000000000000000000000000000000000000000000006c6f67",
        ),
        (
            "520010",
            "010002000000000002010000000000000000000000000000000000000000000008070605040302010000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000100000000000000020000000000000003000000000000000100000000000000020000000000000003000000000000000201000000000000000000000000000000000000000000000807060504030201000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000010000000000000002000000000000000300000000000000010000000000000002000000000000000300000000000000",
        ),
        (
            "440011",
            "010002000000000001000000ff040000020000000000000003000000000000000400000000000000810200000000000001000000ff0400000200000000000000030000000000000004000000000000008102000000000000",
        ),
        (
            "4e0000000000000007",
            "0100040002000000200000000000000001000000020000007472696f",
        ),
        (
            "470000000000000008",
            "01000500090003000200010015000000160000001700000018000000190000001a0000000000000000000000000000001c000000000000001d000000000000001e00000000000000000000000000000001000000020000006e69676874302032202a202a202a555443",
        ),
    ];
    for ((key, value), (key_hex, value_hex)) in samples().iter().zip(expected) {
        assert_eq!(hex(&key.encode()), key_hex);
        assert_eq!(hex(value), value_hex, "{key:?}");
    }
}

#[test]
fn what_was_encoded_is_decoded() {
    for (key, bytes) in samples() {
        assert_eq!(Key::decode(&key.encode()), Ok(key));
        let value = Value::decode(key, &bytes).expect("just encoded");
        assert_eq!(value.encode(), bytes);
    }
}

#[test]
fn keys_of_a_kind_are_in_the_order_of_their_numbers() {
    let numbers = [0u64, 1, 255, 256, 65_535, 1 << 32, u64::MAX];
    assert!(numbers.map(|n| Key::Snapshot(n).encode()).is_sorted());
}

#[test]
fn a_value_cut_short_or_too_long_is_refused() {
    for (key, bytes) in samples() {
        for length in 0..bytes.len() {
            assert!(
                Value::decode(key, &bytes[..length]).is_err(),
                "{key:?} cut at {length}"
            );
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Value::decode(key, &longer).is_err(), "{key:?} and one byte");
    }
}

#[test]
fn a_newer_version_is_refused_as_newer() {
    for (key, mut bytes) in samples() {
        bytes[0] = 3;
        assert_eq!(Value::decode(key, &bytes), Err(Damage::Version(3)));
    }
}

#[test]
fn sums_of_figures_are_rounded_up_to_words_and_end_at_the_highest() {
    let sums = |log_bytes, metadata_bytes| {
        let head = FiguresHead::of(log_bytes, metadata_bytes);
        (head.log_bytes(), head.metadata_bytes())
    };
    assert_eq!(sums(0, 1), (0, 8));
    assert_eq!(sums(8, 9), (8, 16));
    assert_eq!(sums(8 * 0xffff, u64::MAX), (8 * 0xffff, 8 * 0xffff));
}

#[test]
fn an_export_that_cannot_be_is_refused() {
    let bytes = samples()
        .into_iter()
        .find(|(key, _)| *key == Key::Export(9))
        .map(|(_, bytes)| bytes);
    let bytes = bytes.expect("a sample");
    for flag in [16, 17] {
        let mut bytes = bytes.clone();
        bytes[flag] = 2;
        assert!(Value::decode(Key::Export(9), &bytes).is_err(), "byte {flag}");
    }
}

#[test]
fn a_volume_that_cannot_be_is_refused() {
    let bad = |change: fn(&mut VolumeHead)| {
        let mut row = volume();
        change(&mut row);
        let bytes = Value::Volume(row, None, "a").encode();
        assert!(Value::decode(Key::Volume(1), &bytes).is_err());
    };
    bad(|row| row.block_bytes = 1024.into());
    bad(|row| row.object_blocks = 255.into());
    bad(|row| row.object_blocks = 300.into());
    bad(|row| row.size_bytes = 0u64.into());
    bad(|row| row.size_bytes = 513u64.into());
}

#[test]
fn a_schedule_that_cannot_be_is_refused() {
    let decoded = |change: fn(&mut ScheduleHead), texts: [&str; 3]| {
        let mut row = schedule();
        change(&mut row);
        let bytes = Value::Schedule(row, &[1.into()], texts).encode();
        Value::decode(Key::Schedule(1), &bytes).map(|_| ())
    };
    assert_eq!(decoded(|_| (), ["a", "* * * * *", "UTC"]), Ok(()));
    assert_eq!(
        decoded(|row| row.period_ns = 5u64.into(), ["a", "", "UTC"]),
        Ok(())
    );
    assert!(
        decoded(|_| (), ["a", "", "UTC"]).is_err(),
        "neither period nor line"
    );
    assert!(decoded(|row| row.period_ns = 5u64.into(), ["a", "* * * * *", "UTC"]).is_err());
    assert!(decoded(|row| row.paused = 2, ["a", "* * * * *", "UTC"]).is_err());
    for texts in [["", "* * * * *", "UTC"], ["a", "* * * * *", ""]] {
        assert!(decoded(|_| (), texts).is_err());
    }
    let long = "x".repeat(CRON_BYTES_MAX + 1);
    assert!(decoded(|_| (), ["a", &long, "UTC"]).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_mean_exactly_themselves(
        key in prop::collection::vec(any::<u8>(), 0..12),
        mut value in prop::collection::vec(any::<u8>(), 2..200),
    ) {
        value[0] = 1;
        value[1] = 0;
        let keys = samples().into_iter().map(|(key, _)| key).chain(Key::decode(&key).ok());
        for key in keys {
            if let Ok(decoded) = Value::decode(key, &value) {
                prop_assert_eq!(decoded.encode(), value.clone());
            }
        }
    }
}
