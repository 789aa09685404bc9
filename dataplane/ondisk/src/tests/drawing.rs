//! `docs/on-disk-format.md` is true: its tables give the name, offset and size of every field of every
//! structure, checked here against the compiler's own figures.

use core::mem::{offset_of, size_of};
use std::collections::BTreeMap;

use crate::bitmap::{BLOCKS_PER_PAGE, BitmapPage};
use crate::catalog::{
    ChangeLogHead, CounterRow, ExportHead, FiguresHead, GroupHead, HighestTimeRow, HoldRow, MarksRow,
    ScheduleHead, ScrubDamageRow, ScrubHead, ScrubRow, ScrubSideRow, SnapshotHead, SnapshotVolumeRow,
    VolumeHead, VolumeMore,
};
use crate::directory::{DirectoryPage, OriginRow, ROW_HEADER_BYTES, SnapshotRow, VolumeRow};
use crate::header::ShardHeader;
use crate::label::{DeviceRow, FeatureFlags, MIRRORS_MAX, MirrorRow, PoolLabel};
use crate::log::LogPage;
use crate::map_page::{MapEntry, MapPage};
use crate::page::{PageHeader, PageKind, VERSION};
use crate::record::{CloneBody, CutBody, DiscardBody, RecordHeader, VolumeBody, WriteBody};
use crate::stale::{STALE_REGION_BLOCKS_MIN, STALE_REGIONS_MAX, StalePage};
use crate::tail::{FILE_BYTES, SEGMENT_BYTES, SegmentHeader, TailHeader};
use crate::{layout, tests::samples};

/// A row of a table: offset, size, field.
type Field = (usize, usize, String);

fn size_of_field<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! structure {
    ($type:ident { $($field:ident),* $(,)? }) => {
        (
            stringify!($type),
            size_of::<$type>(),
            vec![$((
                offset_of!($type, $field),
                size_of_field(|s: &$type| &s.$field),
                stringify!($field).to_string(),
            )),*],
        )
    };
}

fn structures() -> Vec<(&'static str, usize, Vec<Field>)> {
    vec![
        structure!(PageHeader {
            magic,
            version,
            kind,
            crc32c,
            pool
        }),
        structure!(PoolLabel {
            header,
            name,
            features,
            created_ns,
            sequence,
            device_count,
            device_index,
            shard_count,
            side,
            log_pages,
            reserved_b,
            devices,
            mirrors,
            reserved,
        }),
        structure!(FeatureFlags {
            incompatible,
            read_only_compatible,
            compatible
        }),
        structure!(DeviceRow {
            uuid,
            size_blocks,
            slice_blocks
        }),
        structure!(MirrorRow { uuid, out_since }),
        structure!(StalePage {
            header,
            episode,
            region_blocks,
            shard,
            device,
            reserved,
            words,
            reserved_b,
        }),
        structure!(ShardHeader {
            header,
            generation,
            shard,
            directory_index_count,
            directory_pages,
            log_sequence,
            log_lsn,
            log_previous_crc32c,
            bitmap_check,
            written_ns,
            reserved_b,
            directory_index,
            reserved_c,
        }),
        structure!(BitmapPage {
            header,
            generation,
            index,
            shard,
            device,
            used_blocks,
            reserved,
            words,
        }),
        structure!(LogPage {
            header,
            sequence,
            first_lsn,
            durable_lsn,
            previous_crc32c,
            shard,
            used_bytes,
            payload,
        }),
        structure!(RecordHeader {
            crc32c,
            length_bytes,
            kind,
            flags,
            lsn
        }),
        structure!(WriteBody {
            volume,
            birth,
            first,
            address
        }),
        structure!(DiscardBody {
            volume,
            birth,
            first,
            count
        }),
        structure!(VolumeBody {
            volume,
            family,
            share_blocks
        }),
        structure!(CutBody {
            volume,
            epoch,
            snapshot,
            time_stamp_ns
        }),
        structure!(CloneBody {
            volume,
            origin,
            snapshot
        }),
        structure!(OriginRow {
            volume,
            reserved,
            snapshot
        }),
        structure!(MapPage {
            header,
            index,
            generation,
            volume,
            birth,
            shard,
            level,
            reserved_a,
            entries,
            reserved_b,
        }),
        structure!(MapEntry {
            address,
            check,
            birth,
            flags
        }),
        structure!(DirectoryPage {
            header,
            generation,
            index,
            shard,
            used_bytes,
            reserved,
            payload,
        }),
        structure!(VolumeRow {
            family,
            epoch,
            root,
            root_level,
            state,
            reserved,
            share_blocks,
            mapped_blocks,
            cursor_leaf,
            changed_blocks,
            first_change_ns,
            last_change_ns,
        }),
        structure!(SnapshotRow {
            epoch,
            root,
            root_level,
            state,
            reserved,
            share_blocks,
            mapped_blocks,
            cursor_leaf,
            time_stamp_ns,
            changed_blocks,
            first_change_ns,
            last_change_ns,
        }),
        structure!(CounterRow {
            version,
            reserved,
            next_volume,
            next_export,
            next_snapshot
        }),
        structure!(VolumeHead {
            version,
            name_bytes,
            rotation,
            reserved,
            block_bytes,
            object_blocks,
            size_bytes,
            created_ns,
        }),
        structure!(SnapshotHead {
            version,
            name_bytes,
            volume_count,
            shard_count,
            time_stamp_ns,
            durable_ns,
        }),
        structure!(VolumeMore {
            head,
            origin_volume,
            origin_snapshot,
            change_log,
            reserved,
        }),
        structure!(SnapshotVolumeRow {
            volume,
            owner,
            size_bytes
        }),
        structure!(FiguresHead {
            version,
            count,
            log_words,
            metadata_words
        }),
        structure!(HoldRow {
            hold_ns,
            answers_held,
            answer_held_ns_max
        }),
        structure!(GroupHead {
            version,
            name_bytes,
            volume_count,
            reserved,
            created_ns
        }),
        structure!(ScheduleHead {
            version,
            name_bytes,
            cron_bytes,
            zone_bytes,
            volume_count,
            paused,
            reserved_a,
            keep_last,
            keep_hourly,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_yearly,
            reserved_b,
            period_ns,
            hold_limit_ns,
            created_ns,
            done_ns,
            reserved_c
        }),
        structure!(HighestTimeRow {
            version,
            reserved,
            time_ns
        }),
        structure!(ChangeLogHead {
            version,
            name_bytes,
            when_full,
            reserved_a,
            devices,
            size_bytes,
            created_ns,
            reserved_b
        }),
        structure!(MarksRow {
            version,
            reserved_a,
            schedule,
            locked_until_ns,
            reserved_b
        }),
        structure!(ScrubHead {
            version,
            count,
            reserved
        }),
        structure!(ScrubRow {
            state,
            pages_read,
            reserved,
            volume,
            epoch,
            until,
            slot,
            leaf,
            rate_bytes_per_s,
            started_ns,
            ended_ns,
            running_ns,
            checked_blocks,
            damaged_blocks,
            sides
        }),
        structure!(ScrubSideRow {
            read_blocks,
            repaired_blocks,
            unrepaired_blocks
        }),
        structure!(ScrubDamageRow {
            volume,
            map_level,
            error,
            reserved_a,
            snapshot,
            first,
            address,
            code,
            reserved_b
        }),
        structure!(ExportHead {
            version,
            name_bytes,
            volume,
            snapshot,
            read_only,
            allow_snapshots,
            reserved,
            created_ns,
        }),
        structure!(TailHeader {
            header,
            boot,
            shard,
            reserved_a,
            segment_bytes,
            reserved
        }),
        structure!(SegmentHeader {
            crc32c,
            previous_crc32c,
            sequence,
            first_lsn,
            trusted_lsn
        }),
    ]
}

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/on-disk-format.md");
    std::fs::read_to_string(path).expect("the format is documented")
}

/// The cells of a table line; `None` for any other line.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// The drawings: after a heading such as `### ``MapEntry``, 15 bytes`, rows `| offset | size | ``field`` | ... |`.
fn drawings() -> BTreeMap<String, (usize, Vec<Field>)> {
    let mut drawings = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in document().lines() {
        if line.starts_with('#') {
            current = line.split('`').nth(1).map(str::to_string);
            let size = line
                .split(", ")
                .nth(1)
                .and_then(|rest| rest.strip_suffix(" bytes"));
            match (&current, size.and_then(|size| size.parse().ok())) {
                (Some(name), Some(size)) => {
                    let before = drawings.insert(name.clone(), (size, Vec::new()));
                    assert!(before.is_none(), "{name} is drawn twice");
                }
                _ => current = None,
            }
        }
        let (Some(name), Some(cells)) = (&current, cells(line)) else {
            continue;
        };
        if let (Ok(offset), Ok(size)) = (cells[0].parse(), cells[1].parse()) {
            let field = cells[2].trim_matches('`').to_string();
            drawings
                .get_mut(name)
                .expect("inserted above")
                .1
                .push((offset, size, field));
        }
    }
    drawings
}

#[test]
fn the_document_draws_every_structure_field_by_field() {
    let mut drawings = drawings();
    for (name, size, fields) in structures() {
        let Some((drawn_size, drawn)) = drawings.remove(name) else {
            panic!("docs/on-disk-format.md does not draw {name}");
        };
        assert_eq!(drawn_size, size, "size of {name}");
        assert_eq!(drawn, fields, "fields of {name}");
    }
    assert!(
        drawings.is_empty(),
        "drawn, but not in the code: {:?}",
        drawings.keys()
    );
}

#[test]
fn the_structures_have_no_gaps_and_the_list_above_forgets_no_field() {
    for (name, size, fields) in structures() {
        let mut end = 0;
        for (offset, size, field) in fields {
            assert_eq!(
                offset, end,
                "{name}.{field} begins where the field before it ends"
            );
            end = offset + size;
        }
        assert_eq!(end, size, "{name} ends with its last field");
    }
}

#[test]
fn the_document_numbers_the_kinds_as_the_code_does() {
    let document = document();
    let has = |row: String| {
        assert!(
            document.contains(&row),
            "docs/on-disk-format.md lacks the line `{row}`"
        );
    };
    for (kind, name) in [
        (PageKind::PoolLabel, "PoolLabel"),
        (PageKind::ShardHeader, "ShardHeader"),
        (PageKind::Bitmap, "BitmapPage"),
        (PageKind::Log, "LogPage"),
        (PageKind::Map, "MapPage"),
        (PageKind::Directory, "DirectoryPage"),
        (PageKind::TailHeader, "TailHeader"),
        (PageKind::Stale, "StalePage"),
    ] {
        has(format!("| {} | `{name}` |", kind as u16));
    }
    for record in samples::records().into_iter().chain(samples::records_of_clones()) {
        let mut bytes = [0; 128];
        record.encode(1, &mut bytes);
        let debug = format!("{record:?}");
        let name = debug.split(' ').next().expect("a name");
        has(format!("| {} | `{name}` |", bytes[6]));
    }
}

#[test]
fn the_document_gives_the_constants_of_the_code() {
    let document = document();
    for (name, value) in [
        ("VERSION", u64::from(VERSION)),
        ("BLOCK_BYTES", crate::BLOCK_BYTES as u64),
        ("DEVICES_MAX", crate::DEVICES_MAX as u64),
        ("SHARDS_MAX", u64::from(crate::SHARDS_MAX)),
        ("FIRST_SLICE_BLOCK", layout::FIRST_SLICE_BLOCK),
        ("MIRRORS_MAX", MIRRORS_MAX as u64),
        ("MIRRORED_SHARDS_MAX", u64::from(layout::MIRRORED_SHARDS_MAX)),
        ("FIRST_STALE_BLOCK", layout::FIRST_STALE_BLOCK),
        ("STALE_REGIONS_MAX", STALE_REGIONS_MAX as u64),
        ("STALE_REGION_BLOCKS_MIN", STALE_REGION_BLOCKS_MIN),
        ("SLICE_BLOCKS_MIN", layout::SLICE_BLOCKS_MIN),
        ("LOG_PAGES_MIN", u64::from(layout::LOG_PAGES_MIN)),
        ("LOG_PAGES_MAX", u64::from(layout::LOG_PAGES_MAX)),
        ("LOG_PAGES_NEW_MAX", u64::from(layout::LOG_PAGES_NEW_MAX)),
        ("BLOCKS_PER_PAGE", BLOCKS_PER_PAGE as u64),
        ("WRITE_BLOCKS_MAX", crate::record::WRITE_BLOCKS_MAX as u64),
        (
            "CATALOG_KEY_BYTES_MAX",
            crate::record::CATALOG_KEY_BYTES_MAX as u64,
        ),
        (
            "CATALOG_VALUE_BYTES_MAX",
            crate::record::CATALOG_VALUE_BYTES_MAX as u64,
        ),
        ("RECORD_BYTES_MAX", crate::record::RECORD_BYTES_MAX as u64),
        ("ENTRIES", crate::map_page::ENTRIES as u64),
        ("LEVEL_MAX", u64::from(crate::map_page::LEVEL_MAX)),
        ("DIRECTORY_INDEX_MAX", crate::header::DIRECTORY_INDEX_MAX as u64),
        ("ROW_HEADER_BYTES", ROW_HEADER_BYTES as u64),
        ("SEGMENT_BYTES", SEGMENT_BYTES as u64),
        ("FILE_BYTES", FILE_BYTES as u64),
    ] {
        let row = format!("| `{name}` | {value} |");
        assert!(
            document.contains(&row),
            "docs/on-disk-format.md lacks the line `{row}`"
        );
    }
}
