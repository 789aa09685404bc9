//! One sample of every structure, with a different value in every field, so that swapped fields show.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::bitmap::{BLOCKS_PER_PAGE, BitmapPage, WORDS_PER_PAGE};
use crate::catalog::{
    self, ChangeLogHead, CounterRow, ExportHead, FiguresHead, GroupHead, HighestTimeRow, HoldRow, Key,
    MarksRow, SCRUB_DATA, ScheduleHead, ScrubDamageRow, ScrubHead, ScrubRow, ScrubSideRow, SnapshotHead,
    SnapshotVolumeRow, Value, VolumeHead, VolumeMore,
};
use crate::directory::{self, DirectoryPage, OriginRow, Row, RowKind, SnapshotRow, VolumeRow};
use crate::header::{DIRECTORY_INDEX_MAX, ShardHeader};
use crate::label::{DeviceRow, FEATURE_MIRRORS, FeatureFlags, MIRRORS_MAX, MirrorRow, PoolLabel};
use crate::log::{self, LogPage};
use crate::map_page::{ENTRIES, MapEntry, MapPage, MapPageIdentity};
use crate::page::{self, Damage, PageHeader, PageKind};
use crate::record::Record;
use crate::stale::StalePage;
use crate::tail::{SEGMENT_BYTES, SegmentHeader, TailHeader};
use crate::{DEVICES_MAX, PAGE_BYTES};

pub const POOL: [u8; 16] = *b"pool-uuid-000001";
pub const BOOT: [u8; 16] = *b"boot-uuid-000002";
pub const SHARD: u16 = 3;
pub const GENERATION: u64 = 0x0102_0304_0506_0708;

/// A structure's name, its bytes, and how a reader accepts it.
pub struct Sample {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub parse: fn(&[u8]) -> Result<(), Damage>,
}

fn sample(name: &'static str, page: &[u8], parse: fn(&[u8]) -> Result<(), Damage>) -> Sample {
    let mut bytes = page.to_vec();
    page::seal(&mut bytes);
    Sample { name, bytes, parse }
}

/// Pages with what came with clones.
pub fn pages_of_clones() -> Vec<Sample> {
    vec![
        sample("log-clones", log_page_of(&records_of_clones()).as_bytes(), |b| {
            LogPage::parse(b, POOL, SHARD, 900, 0xC0FF_EE00).map(drop)
        }),
        sample("directory-clones", directory_page_of_clones().as_bytes(), |b| {
            DirectoryPage::parse(b, POOL, SHARD, 5, GENERATION as u32)?
                .rows()
                .map(drop)
        }),
    ]
}

/// Pages with what came with mirrors.
pub fn pages_of_mirrors() -> Vec<Sample> {
    vec![sample("label-mirrors", label_of_mirrors().as_bytes(), |b| {
        PoolLabel::parse(b).map(drop)
    })]
}

/// Every kind of sealed page.
pub fn pages() -> Vec<Sample> {
    vec![
        sample("label", label().as_bytes(), |b| PoolLabel::parse(b).map(drop)),
        sample("header", header().as_bytes(), |b| {
            ShardHeader::parse(b, POOL, SHARD).map(drop)
        }),
        sample("bitmap", bitmap().as_bytes(), |b| {
            BitmapPage::parse(b, POOL, SHARD, 1, 7).map(drop)
        }),
        sample("log", log_page().as_bytes(), |b| {
            LogPage::parse(b, POOL, SHARD, 900, 0xC0FF_EE00).map(drop)
        }),
        sample("map", map_page().as_bytes(), |b| {
            MapPage::parse(b, POOL, &map_identity()).map(drop)
        }),
        sample("directory", directory_page().as_bytes(), |b| {
            DirectoryPage::parse(b, POOL, SHARD, 5, GENERATION as u32)?
                .rows()
                .map(drop)
        }),
        sample("tail", TailHeader::new(POOL, BOOT, SHARD).as_bytes(), |b| {
            TailHeader::check(b, POOL, BOOT, SHARD)
        }),
        sample("stale", stale().as_bytes(), |b| {
            StalePage::parse(b, POOL, 10, SHARD, 1, STALE_SLICE_BLOCKS).map(drop)
        }),
    ]
}

/// One catalog row of every kind: key length (u16), key, value length (u16), value.
pub fn catalog_rows() -> Vec<u8> {
    let version = catalog::VERSION.into();
    let counters = CounterRow {
        version,
        reserved: [0; 2],
        next_volume: 11.into(),
        next_export: 12.into(),
        next_snapshot: 13.into(),
    };
    let export = ExportHead {
        version,
        name_bytes: 0.into(),
        volume: 10.into(),
        snapshot: 50.into(),
        read_only: 1,
        allow_snapshots: 0,
        reserved: [0; 6],
        created_ns: 14.into(),
    };
    let holds = [1u64, 4].map(|n| HoldRow {
        hold_ns: n.into(),
        answers_held: (n + 1).into(),
        answer_held_ns_max: (n + 2).into(),
    });
    let snapshot = SnapshotHead {
        version,
        name_bytes: 0.into(),
        volume_count: 0.into(),
        shard_count: 2.into(),
        time_stamp_ns: 15.into(),
        durable_ns: 16.into(),
    };
    let volumes = [9u32, 10].map(|volume| SnapshotVolumeRow {
        volume: volume.into(),
        owner: 0.into(),
        size_bytes: (u64::from(volume) << 20).into(),
    });
    let volume = VolumeHead {
        version,
        name_bytes: 0.into(),
        rotation: 1.into(),
        reserved: [0; 2],
        block_bytes: 512.into(),
        object_blocks: 16_384.into(),
        size_bytes: (10 << 20).into(),
        created_ns: 17.into(),
    };
    let figures = Key::Figures {
        snapshot: 50,
        first_shard: 0,
    };
    let group = GroupHead {
        version,
        name_bytes: 0.into(),
        volume_count: 0.into(),
        reserved: [0; 2],
        created_ns: 32.into(),
    };
    let volumes_of_schedule = [9u32, 10].map(U32::from);
    let highest = HighestTimeRow {
        version,
        reserved: [0; 6],
        time_ns: 18.into(),
    };
    let schedule = ScheduleHead {
        version,
        name_bytes: 0.into(),
        cron_bytes: 0.into(),
        zone_bytes: 0.into(),
        volume_count: 0.into(),
        paused: 1,
        reserved_a: 0,
        keep_last: 21.into(),
        keep_hourly: 22.into(),
        keep_daily: 23.into(),
        keep_weekly: 24.into(),
        keep_monthly: 25.into(),
        keep_yearly: 26.into(),
        reserved_b: [0; 4],
        period_ns: 0.into(),
        hold_limit_ns: 28u64.into(),
        created_ns: 29u64.into(),
        done_ns: 30u64.into(),
        reserved_c: [0; 8],
    };
    let marks = MarksRow {
        version,
        reserved_a: [0; 6],
        schedule: 19.into(),
        locked_until_ns: 20.into(),
        reserved_b: [0; 24],
    };
    encoded([
        (Key::Counters, Value::Counters(counters)),
        (Key::Export(3), Value::Export(export, "data@monday")),
        (figures, Value::Figures(FiguresHead::of(0, 0), &holds)),
        (Key::Snapshot(50), Value::Snapshot(snapshot, &volumes, "monday")),
        (Key::Volume(10), Value::Volume(volume, None, "data")),
        // Kinds that came later are put behind: what was there does not change.
        (Key::HighestTime, Value::HighestTime(highest)),
        (Key::Marks(50), Value::Marks(marks)),
        (
            Key::Schedule(31),
            Value::Schedule(
                schedule,
                &volumes_of_schedule,
                ["nightly", "30 2 * * *", "Europe/Berlin"],
            ),
        ),
        (Key::Group(33), Value::Group(group, &volumes_of_schedule, "both")),
    ])
}

/// Catalog rows with what came with clones, as in [`catalog_rows`].
pub fn catalog_rows_of_clones() -> Vec<u8> {
    let volumes = [SnapshotVolumeRow {
        volume: 9.into(),
        owner: 12.into(),
        size_bytes: (9 << 20).into(),
    }];
    let snapshot = SnapshotHead {
        version: catalog::VERSION.into(),
        name_bytes: 0.into(),
        volume_count: 0.into(),
        shard_count: 2.into(),
        time_stamp_ns: 15.into(),
        durable_ns: 16.into(),
    };
    let volume = VolumeHead {
        version: catalog::VERSION_VOLUME_MORE.into(),
        name_bytes: 0.into(),
        rotation: 1.into(),
        reserved: [0; 2],
        block_bytes: 512.into(),
        object_blocks: 16_384.into(),
        size_bytes: (10 << 20).into(),
        created_ns: 17.into(),
    };
    let more = VolumeMore {
        head: 13.into(),
        origin_volume: 10.into(),
        origin_snapshot: 50.into(),
        change_log: 18.into(),
        reserved: [0; 12],
    };
    encoded([
        (Key::Snapshot(51), Value::Snapshot(snapshot, &volumes, "tuesday")),
        (Key::Volume(12), Value::Volume(volume, Some(more), "copy")),
    ])
}

/// Catalog rows with what came with change log volumes, as in [`catalog_rows`].
pub fn catalog_rows_of_change_logs() -> Vec<u8> {
    let head = ChangeLogHead {
        version: catalog::VERSION.into(),
        name_bytes: 0.into(),
        when_full: 1,
        reserved_a: [0; 3],
        devices: 0x8000_0000_0000_0005.into(),
        size_bytes: (20u64 << 30).into(),
        created_ns: 18u64.into(),
        reserved_b: [0; 16],
    };
    encoded([(Key::ChangeLog(14), Value::ChangeLog(head, "log"))])
}

/// Catalog rows with how a scrub stands and what it found, as in [`catalog_rows`].
pub fn catalog_rows_of_scrubs() -> Vec<u8> {
    let side = |from: u64| ScrubSideRow {
        read_blocks: from.into(),
        repaired_blocks: (from + 1).into(),
        unrepaired_blocks: (from + 2).into(),
    };
    let running = ScrubRow {
        state: 1,
        pages_read: 1,
        reserved: [0; 6],
        volume: 9.into(),
        epoch: 41.into(),
        until: 42.into(),
        slot: 43.into(),
        leaf: 44.into(),
        rate_bytes_per_s: (64 << 20).into(),
        started_ns: 45.into(),
        ended_ns: 46.into(),
        running_ns: 47.into(),
        checked_blocks: 48.into(),
        damaged_blocks: 2.into(),
        sides: [side(50), side(60)],
    };
    let done = ScrubRow {
        state: 3,
        pages_read: 0,
        ..running
    };
    let data = ScrubDamageRow {
        volume: 9.into(),
        map_level: SCRUB_DATA,
        error: 0,
        reserved_a: [0; 2],
        snapshot: 50.into(),
        first: 71.into(),
        address: ((1 << 40) | 72).into(),
        code: 0.into(),
        reserved_b: [0; 4],
    };
    let page = ScrubDamageRow {
        map_level: 1,
        error: 1,
        snapshot: 0.into(),
        code: 5.into(),
        ..data
    };
    let head = ScrubHead::default();
    encoded([
        (
            Key::Scrubs { first_shard: 16 },
            Value::Scrubs(head, &[running, done]),
        ),
        (Key::ScrubDamage(17), Value::ScrubDamage(head, &[data, page])),
    ])
}

fn encoded<'a>(rows: impl IntoIterator<Item = (Key, Value<'a>)>) -> Vec<u8> {
    rows.into_iter()
        .flat_map(|(key, value)| [key.encode(), value.encode()])
        .flat_map(|bytes| [&(bytes.len() as u16).to_le_bytes()[..], &bytes].concat())
        .collect()
}

/// The start of a segment of the log tail.
pub fn segment_header() -> SegmentHeader {
    SegmentHeader::new(901, 0xC0FF_EE00, FIRST_LSN, 69_998)
}

pub fn label() -> PoolLabel {
    let mut name = [0; 64];
    name[..6].copy_from_slice("größ".as_bytes());
    let mut devices = [DeviceRow {
        uuid: [0; 16],
        size_blocks: 0.into(),
        slice_blocks: 0.into(),
    }; DEVICES_MAX];
    for (row, size_blocks) in devices.iter_mut().zip([65_536u64, 131_072]) {
        row.uuid = [size_blocks.leading_zeros() as u8; 16];
        row.size_blocks = size_blocks.into();
        row.slice_blocks = ((size_blocks - 257) / 4).into();
    }
    PoolLabel {
        header: PageHeader::new(PageKind::PoolLabel, POOL),
        name,
        features: FeatureFlags {
            incompatible: 0.into(),
            read_only_compatible: 0.into(),
            compatible: 0x8000_0000_0000_0001.into(),
        },
        created_ns: 1_700_000_000_000_000_001.into(),
        sequence: 11.into(),
        device_count: 2.into(),
        device_index: 1.into(),
        shard_count: 4.into(),
        side: 0.into(),
        log_pages: 255.into(),
        reserved_b: 0.into(),
        devices,
        mirrors: [MirrorRow {
            uuid: [0; 16],
            out_since: [0.into(); 2],
        }; MIRRORS_MAX],
        reserved: [0; 872],
    }
}

/// The label of the second side of a mirror whose first side is out, and of a whole mirror beside it.
pub fn label_of_mirrors() -> PoolLabel {
    let mut label = label();
    label.features.incompatible = FEATURE_MIRRORS.into();
    label.side = 1.into();
    label.mirrors[0] = MirrorRow {
        uuid: [0xA1; 16],
        out_since: [0.into(), 0.into()],
    };
    label.mirrors[1] = MirrorRow {
        uuid: [0xA2; 16],
        out_since: [10.into(), 0.into()],
    };
    page::seal(label.as_mut_bytes());
    label
}

/// Blocks of the slice that [`stale`] tells of: 33 regions of 64 blocks, the last one short.
pub const STALE_SLICE_BLOCKS: u64 = 32 * 64 + 1;

pub fn stale() -> StalePage {
    let mut stale = *StalePage::new(POOL, 10, SHARD, 1, STALE_SLICE_BLOCKS);
    stale.words[0] = 0x1_8000_0001.into();
    page::seal(stale.as_mut_bytes());
    stale
}

pub fn header() -> ShardHeader {
    let mut directory_index = [MapEntry::default(); DIRECTORY_INDEX_MAX];
    directory_index[0] = MapEntry::new(0x0100_0000_1000, 41, 0);
    directory_index[1] = MapEntry::new(0x0000_0000_2000, 42, 0);
    ShardHeader {
        header: PageHeader::new(PageKind::ShardHeader, POOL),
        generation: GENERATION.into(),
        shard: SHARD.into(),
        directory_index_count: 2.into(),
        directory_pages: 257.into(),
        log_sequence: 901.into(),
        log_lsn: 70_001.into(),
        log_previous_crc32c: 0xC0FF_EE00.into(),
        bitmap_check: 0.into(),
        written_ns: 1_700_000_000_000_000_002.into(),
        reserved_b: [0; 128],
        directory_index,
        reserved_c: [0; 48],
    }
}

pub fn bitmap() -> BitmapPage {
    let mut words = [zerocopy::little_endian::U64::from(0); WORDS_PER_PAGE];
    for block in [0, 1, 63, 64, 1000, BLOCKS_PER_PAGE - 1] {
        words[block / 64].set(words[block / 64].get() | 1 << (block % 64));
    }
    BitmapPage {
        header: PageHeader::new(PageKind::Bitmap, POOL),
        generation: GENERATION.into(),
        index: 7.into(),
        shard: SHARD.into(),
        device: 1.into(),
        used_blocks: 6.into(),
        reserved: [0; 8],
        words,
    }
}

/// Two CRCs for the write record.
pub static CRCS: [U32; 2] = [U32::from_bytes([1, 2, 3, 4]), U32::from_bytes([5, 6, 7, 8])];

/// One record of every kind, with consecutive LSNs from [`FIRST_LSN`].
pub fn records() -> Vec<Record<'static>> {
    vec![
        Record::VolumeCreate {
            volume: 10,
            family: 9,
            share_blocks: 4096,
        },
        Record::Write {
            volume: 10,
            birth: 20,
            first: 30,
            address: 0x0100_0000_0028,
            crcs: &CRCS,
        },
        Record::Discard {
            volume: 10,
            birth: 21,
            first: 31,
            count: 41,
        },
        Record::VolumeResize {
            volume: 10,
            share_blocks: 8192,
        },
        Record::Cut {
            volume: 10,
            epoch: 22,
            snapshot: 50,
            time_stamp_ns: 1_700_000_000_000_000_003,
        },
        Record::SnapshotDelete {
            volume: 10,
            snapshot: 50,
        },
        Record::CatalogPut {
            key: b"volume/data",
            value: b"{\"id\":10}",
        },
        Record::CatalogDelete { key: b"volume/data" },
        Record::VolumeDelete { volume: 10 },
        Record::Opened {
            wall_ns: 1_700_000_000_000_000_004,
        },
    ]
}

/// The records that came with clones.
pub fn records_of_clones() -> Vec<Record<'static>> {
    vec![
        Record::VolumeClone {
            volume: 12,
            origin: 10,
            snapshot: 50,
        },
        Record::HeadDelete { volume: 10 },
    ]
}

pub const FIRST_LSN: u64 = 70_001;

pub fn log_page() -> LogPage {
    log_page_of(&records())
}

fn log_page_of(records: &[Record<'_>]) -> LogPage {
    let mut payload = [0; log::PAYLOAD_BYTES];
    let mut used = 0;
    for (lsn, record) in (FIRST_LSN..).zip(records) {
        used += record.encode(lsn, &mut payload[used..]);
    }
    LogPage {
        header: PageHeader::new(PageKind::Log, POOL),
        sequence: 900.into(),
        first_lsn: FIRST_LSN.into(),
        durable_lsn: 69_999.into(),
        previous_crc32c: 0xC0FF_EE00.into(),
        shard: SHARD.into(),
        used_bytes: (used as u16).into(),
        payload,
    }
}

pub fn map_identity() -> MapPageIdentity {
    MapPageIdentity {
        shard: SHARD,
        volume: 10,
        level: 1,
        index: 12,
        generation: GENERATION as u32,
    }
}

pub fn map_page() -> MapPage {
    let mut entries = [MapEntry::default(); ENTRIES];
    entries[0] = MapEntry::new(0x0000_0000_1001, 0x1111_1111, 1);
    entries[1] = MapEntry::new(0, 0, 2);
    entries[255] = MapEntry::new(0xFFFF_FFFF_FFFF, u32::MAX, u32::MAX);
    MapPage {
        header: PageHeader::new(PageKind::Map, POOL),
        index: 12.into(),
        generation: GENERATION.into(),
        volume: 10.into(),
        birth: 13.into(),
        shard: SHARD.into(),
        level: 1,
        reserved_a: [0; 5],
        entries,
        reserved_b: [0; 192],
    }
}

pub fn volume_row() -> VolumeRow {
    VolumeRow {
        family: 9.into(),
        epoch: 22.into(),
        root: MapEntry::new(0x0100_0000_3000, 77, 22),
        root_level: 2,
        state: 1,
        reserved: [0; 7],
        share_blocks: 101.into(),
        mapped_blocks: 102.into(),
        cursor_leaf: 103.into(),
        changed_blocks: 104.into(),
        first_change_ns: 105.into(),
        last_change_ns: 106.into(),
    }
}

pub fn snapshot_row() -> SnapshotRow {
    SnapshotRow {
        epoch: 21.into(),
        root: MapEntry::new(0x0100_0000_4000, 78, 21),
        root_level: 1,
        state: 1,
        reserved: [0; 3],
        share_blocks: 201.into(),
        mapped_blocks: 202.into(),
        cursor_leaf: 203.into(),
        time_stamp_ns: 204.into(),
        changed_blocks: 205.into(),
        first_change_ns: 206.into(),
        last_change_ns: 207.into(),
    }
}

pub fn directory_page() -> DirectoryPage {
    let (volume, snapshot) = (volume_row(), snapshot_row());
    let rows = [
        Row {
            kind: RowKind::Volume,
            key: &10u32.to_le_bytes(),
            value: volume.as_bytes(),
        },
        Row {
            kind: RowKind::Snapshot,
            key: &[10, 0, 0, 0, 50, 0, 0, 0, 0, 0, 0, 0],
            value: snapshot.as_bytes(),
        },
        Row {
            kind: RowKind::Catalog,
            key: b"volume/data",
            value: b"{\"id\":10}",
        },
    ];
    directory_page_with(&rows)
}

/// A share that was made of a snapshot, in a row with its origin.
pub fn origin_row() -> OriginRow {
    OriginRow {
        volume: 10.into(),
        reserved: [0; 4],
        snapshot: 50.into(),
    }
}

fn directory_page_of_clones() -> DirectoryPage {
    let mut volume = volume_row();
    volume.state = 2;
    let value = [volume.as_bytes(), origin_row().as_bytes()].concat();
    directory_page_with(&[Row {
        kind: RowKind::Volume,
        key: &12u32.to_le_bytes(),
        value: &value,
    }])
}

fn directory_page_with(rows: &[Row<'_>]) -> DirectoryPage {
    let mut payload = [0; directory::PAYLOAD_BYTES];
    let used = rows
        .iter()
        .fold(0, |used, row| used + row.encode(&mut payload[used..]));
    DirectoryPage {
        header: PageHeader::new(PageKind::Directory, POOL),
        generation: GENERATION.into(),
        index: 5.into(),
        shard: SHARD.into(),
        used_bytes: (used as u16).into(),
        reserved: [0; 16],
        payload,
    }
}

#[test]
fn samples_are_whole_pages_of_the_size_that_the_tail_file_expects() {
    assert!(pages().iter().all(|sample| sample.bytes.len() == PAGE_BYTES));
    assert_eq!(SEGMENT_BYTES % PAGE_BYTES, 0);
}
