//! What lies on devices. A page is tried as it is, and again with a right checksum: so that its fields are reached, and
//! because a checksum is no protection against somebody who hands over a device.

use stillpoint_ondisk::bitmap::BitmapPage;
use stillpoint_ondisk::catalog::{Key, Value};
use stillpoint_ondisk::crc32c;
use stillpoint_ondisk::directory::DirectoryPage;
use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::label::PoolLabel;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::log::LogPage;
use stillpoint_ondisk::map_page::{MapPage, MapPageIdentity};
use stillpoint_ondisk::page::{MAGIC, PAGE_BYTES, PageHeader, PageKind, VERSION, seal};
use stillpoint_ondisk::record::{RECORD_BYTES_MAX, Record};
use stillpoint_ondisk::tail::{SegmentHeader, TailHeader};
use stillpoint_processor::intermediate_snapshot::IntermediateSnapshot;
use stillpoint_processor::virtual_volume::VirtualVolume;
use zerocopy::{FromBytes, IntoBytes};

/// Calls `parse` with a page as it came, and with one that is sealed and says that it is of this kind. The second argument
/// is the pool that the page names.
fn page(data: &[u8], kind: PageKind, parse: impl Fn(&[u8], [u8; 16])) {
    let mut bytes = vec![0; PAGE_BYTES];
    let length = data.len().min(PAGE_BYTES);
    bytes[..length].copy_from_slice(&data[..length]);
    let (header, _) = PageHeader::read_from_prefix(&bytes).expect("a page is longer");
    parse(&bytes, header.pool);
    let header = PageHeader {
        magic: MAGIC,
        version: VERSION.into(),
        kind: (kind as u16).into(),
        ..header
    };
    bytes[..size_of::<PageHeader>()].copy_from_slice(header.as_bytes());
    seal(&mut bytes);
    parse(&bytes, header.pool);
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn label(data: &[u8]) {
    page(data, PageKind::PoolLabel, |bytes, _| {
        let Ok(label) = PoolLabel::parse(bytes) else {
            return;
        };
        let layout = Layout::of(&label).expect("checked when it was read");
        // Everything that lies on a device lies within it, and in its slice.
        for shard in [0, layout.shard_count - 1] {
            let home = layout.home(shard);
            let end = layout.slice_start_block(shard, home) + layout.devices[home].slice_blocks;
            assert!(layout.data_start_block(shard, home) < end);
            assert!(end < layout.devices[home].size_blocks);
            assert!(layout.log_start_block(shard) > layout.header_block(shard, 1));
        }
        assert!(layout.data_bytes() > 0);
        let _ = label.name();
    });
}

pub(super) fn shard_header(data: &[u8]) {
    page(data, PageKind::ShardHeader, |bytes, pool| {
        let shard = u16_at(bytes, 40);
        if let Ok(header) = ShardHeader::parse(bytes, pool, shard) {
            let indexes = usize::from(header.directory_index_count.get());
            assert!(header.directory_index.get(..indexes).is_some());
        }
    });
}

pub(super) fn bitmap_page(data: &[u8]) {
    page(data, PageKind::Bitmap, |bytes, pool| {
        let index = u64::from_le_bytes(bytes[40..48].try_into().expect("eight bytes"));
        let _ = BitmapPage::parse(bytes, pool, u16_at(bytes, 48), u16_at(bytes, 50), index);
    });
}

pub(super) fn log_page(data: &[u8]) {
    page(data, PageKind::Log, |bytes, pool| {
        let found = LogPage::ref_from_bytes(bytes).expect("a page");
        let (sequence, before) = (found.sequence.get(), found.previous_crc32c.get());
        if let Ok(page) = LogPage::parse(bytes, pool, found.shard.get(), sequence, before) {
            records(&page.payload[..usize::from(page.used_bytes.get())]);
        }
    });
}

/// Reads records up to the first that is not sound; each is written again and must be the same.
fn records(mut bytes: &[u8]) {
    while let Some((lsn, record, length)) = Record::decode(bytes) {
        assert!(length > 0 && length <= bytes.len() && length <= RECORD_BYTES_MAX);
        assert_eq!(record.encoded_bytes(), length);
        let mut again = vec![0; length];
        assert_eq!(record.encode(lsn, &mut again), length);
        let (found_lsn, found, _) = Record::decode(&again).expect("what was written can be read");
        assert_eq!((found_lsn, found), (lsn, record));
        bytes = &bytes[length..];
    }
}

pub(super) fn record(data: &[u8]) {
    records(data);
    // With a right checksum over as many bytes as the record says it has.
    if data.len() >= 16 {
        let length = usize::from(u16_at(data, 4)).clamp(16, data.len());
        let mut sealed = data[..length].to_vec();
        sealed[4..6].copy_from_slice(&(length as u16).to_le_bytes());
        let crc = crc32c(&sealed[4..]);
        sealed[..4].copy_from_slice(&crc.to_le_bytes());
        records(&sealed);
    }
}

pub(super) fn map_page(data: &[u8]) {
    page(data, PageKind::Map, |bytes, pool| {
        let found = MapPage::ref_from_bytes(bytes).expect("a page");
        let identity = MapPageIdentity {
            shard: found.shard.get(),
            volume: found.volume.get(),
            level: found.level,
            index: found.index.get(),
            generation: found.generation.get() as u32,
        };
        if let Ok(page) = MapPage::parse(bytes, pool, &identity) {
            assert!(page.entries.iter().all(|entry| entry.address() < 1 << 48));
        }
    });
}

pub(super) fn directory_page(data: &[u8]) {
    page(data, PageKind::Directory, |bytes, pool| {
        let found = DirectoryPage::ref_from_bytes(bytes).expect("a page");
        let (shard, index) = (found.shard.get(), found.index.get());
        let generation = found.generation.get() as u32;
        let Ok(page) = DirectoryPage::parse(bytes, pool, shard, index, generation) else {
            return;
        };
        let Ok(rows) = page.rows() else { return };
        let length: usize = rows.iter().map(|row| row.encoded_bytes()).sum();
        assert_eq!(length, usize::from(page.used_bytes.get()));
    });
}

/// Keys and values of the directory: a length of the key, the key, the value.
pub(super) fn directory_rows(data: &[u8]) {
    let Some((&length, rest)) = data.split_first() else {
        return;
    };
    let (key, value) = rest.split_at(usize::from(length).min(rest.len()));
    if let Some(volume) = VirtualVolume::from_row(key, value) {
        let bytes = volume.row_bytes();
        assert_eq!(bytes.len(), value.len());
        let again = VirtualVolume::from_row(key, &bytes).expect("its own row");
        assert_eq!(again.row_bytes(), bytes);
    }
    let _ = IntermediateSnapshot::from_row(key, value);
}

pub(super) fn tail_header(data: &[u8]) {
    page(data, PageKind::TailHeader, |bytes, pool| {
        let boot: [u8; 16] = bytes[32..48].try_into().expect("sixteen bytes");
        let _ = TailHeader::check(bytes, pool, boot, u16_at(bytes, 48));
    });
}

pub(super) fn tail_segment(data: &[u8]) {
    if SegmentHeader::parse(data).is_some() {
        records(&data[size_of::<SegmentHeader>()..]);
    }
    if let Some(rest) = data.get(size_of::<SegmentHeader>()..) {
        records(rest);
    }
}

/// A length of the key, the key, the value.
pub(super) fn catalog(data: &[u8]) {
    let Some((&length, rest)) = data.split_first() else {
        return;
    };
    let (key_bytes, bytes) = rest.split_at(usize::from(length).min(rest.len()));
    let Ok(key) = Key::decode(key_bytes) else { return };
    assert_eq!(key.encode(), key_bytes, "a key has one form");
    if let Ok(value) = Value::decode(key, bytes) {
        let again = value.encode();
        assert_eq!(
            Value::decode(key, &again),
            Ok(value),
            "what was written can be read"
        );
    }
}
