//! The fields of every structure that is found on the devices, so that each can be damaged.

use std::mem::offset_of;
use std::ops::Range;

use stillpoint_ondisk::bitmap::BitmapPage;
use stillpoint_ondisk::directory::DirectoryPage;
use stillpoint_ondisk::header::{DIRECTORY_INDEX_MAX, ShardHeader};
use stillpoint_ondisk::label::{DeviceRow, FeatureFlags, PoolLabel};
use stillpoint_ondisk::log::LogPage;
use stillpoint_ondisk::map_page::{ENTRIES, MapEntry, MapPage};
use stillpoint_ondisk::page::{MAGIC, PAGE_BYTES, PageHeader, PageKind};
use zerocopy::FromBytes;

/// A field of one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) structure: &'static str,
    pub(crate) name: &'static str,
    /// Its bytes within the page.
    pub(crate) bytes: Range<usize>,
}

/// The fields of a structure from `start` on; the last name is its end.
macro_rules! fields {
    ($fields:ident, $start:expr, $structure:ident { $($field:ident),+ $(,)? }) => {
        let offsets = [$((stringify!($field), offset_of!($structure, $field))),+];
        for (index, (name, offset)) in offsets.iter().enumerate() {
            let end = offsets.get(index + 1).map_or(size_of::<$structure>(), |next| next.1);
            $fields.push(Field {
                structure: stringify!($structure),
                name,
                bytes: $start + offset..$start + end,
            });
        }
    };
}

/// Which structure a page is, if it is one.
pub(crate) fn kind_of(page: &[u8]) -> Option<&'static str> {
    let (header, _) = PageHeader::ref_from_prefix(page).ok()?;
    if header.magic != MAGIC {
        return None;
    }
    [
        (PageKind::PoolLabel, "PoolLabel"),
        (PageKind::ShardHeader, "ShardHeader"),
        (PageKind::Bitmap, "BitmapPage"),
        (PageKind::Log, "LogPage"),
        (PageKind::Map, "MapPage"),
        (PageKind::Directory, "DirectoryPage"),
    ]
    .into_iter()
    .find(|(kind, _)| *kind as u16 == header.kind.get())
    .map(|(_, name)| name)
}

/// The fields of a page: those of its head, of every entry in use and of one that is not, every byte of the records and
/// rows in use, every eighth word of a bitmap.
pub(crate) fn fields_of(page: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    fields!(
        fields,
        0,
        PageHeader {
            magic,
            version,
            kind,
            crc32c,
            pool
        }
    );
    match kind_of(page) {
        Some("PoolLabel") => label(page, &mut fields),
        Some("ShardHeader") => header(page, &mut fields),
        Some("BitmapPage") => bitmap(&mut fields),
        Some("LogPage") => log(page, &mut fields),
        Some("MapPage") => map(page, &mut fields),
        Some("DirectoryPage") => directory(page, &mut fields),
        _ => fields.clear(),
    }
    // The header was told field by field.
    fields.retain(|field| field.structure == "PageHeader" || field.name != "header");
    fields
}

/// Every byte of a page.
pub(crate) fn bytes_of(page: &[u8]) -> Vec<Field> {
    let structure = kind_of(page);
    (0..PAGE_BYTES)
        .filter_map(|at| {
            Some(Field {
                structure: structure?,
                name: "a byte",
                bytes: at..at + 1,
            })
        })
        .collect()
}

fn every(piece: usize, range: Range<usize>, name: &'static str, structure: &'static str) -> Vec<Field> {
    range
        .step_by(piece)
        .map(|at| Field {
            structure,
            name,
            bytes: at..at + piece,
        })
        .collect()
}

fn label(page: &[u8], fields: &mut Vec<Field>) {
    fields!(
        fields,
        0,
        PoolLabel {
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
        }
    );
    fields!(
        fields,
        offset_of!(PoolLabel, features),
        FeatureFlags {
            incompatible,
            read_only_compatible,
            compatible
        }
    );
    let label = PoolLabel::ref_from_bytes(page).expect("a whole page");
    for row in 0..usize::from(label.device_count.get()) + 1 {
        let start = offset_of!(PoolLabel, devices) + row * size_of::<DeviceRow>();
        fields!(
            fields,
            start,
            DeviceRow {
                uuid,
                size_blocks,
                slice_blocks
            }
        );
    }
}

fn entry(start: usize, fields: &mut Vec<Field>) {
    fields!(
        fields,
        start,
        MapEntry {
            address,
            check,
            birth,
            flags
        }
    );
}

fn header(page: &[u8], fields: &mut Vec<Field>) {
    fields!(
        fields,
        0,
        ShardHeader {
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
        }
    );
    let header = ShardHeader::ref_from_bytes(page).expect("a whole page");
    let used = usize::from(header.directory_index_count.get());
    for index in 0..(used + 1).min(DIRECTORY_INDEX_MAX) {
        entry(
            offset_of!(ShardHeader, directory_index) + index * size_of::<MapEntry>(),
            fields,
        );
    }
}

fn bitmap(fields: &mut Vec<Field>) {
    fields!(
        fields,
        0,
        BitmapPage {
            header,
            generation,
            index,
            shard,
            device,
            used_blocks,
            reserved,
            words
        }
    );
    let words = offset_of!(BitmapPage, words)..PAGE_BYTES;
    fields.extend(every(64, words, "eight words", "BitmapPage"));
}

fn log(page: &[u8], fields: &mut Vec<Field>) {
    fields!(
        fields,
        0,
        LogPage {
            header,
            sequence,
            first_lsn,
            durable_lsn,
            previous_crc32c,
            shard,
            used_bytes,
            payload
        }
    );
    let log = LogPage::ref_from_bytes(page).expect("a whole page");
    let start = offset_of!(LogPage, payload);
    let used = start..start + usize::from(log.used_bytes.get());
    fields.extend(every(1, used, "a byte of a record", "LogPage"));
}

fn map(page: &[u8], fields: &mut Vec<Field>) {
    fields!(
        fields,
        0,
        MapPage {
            header,
            index,
            generation,
            volume,
            birth,
            shard,
            level,
            reserved_a,
            entries,
            reserved_b
        }
    );
    let map = MapPage::ref_from_bytes(page).expect("a whole page");
    let unused = map.entries.iter().position(|entry| entry.address() == 0);
    for index in 0..ENTRIES {
        if map.entries[index].address() != 0 || Some(index) == unused {
            entry(
                offset_of!(MapPage, entries) + index * size_of::<MapEntry>(),
                fields,
            );
        }
    }
}

fn directory(page: &[u8], fields: &mut Vec<Field>) {
    fields!(
        fields,
        0,
        DirectoryPage {
            header,
            generation,
            index,
            shard,
            used_bytes,
            reserved,
            payload
        }
    );
    let directory = DirectoryPage::ref_from_bytes(page).expect("a whole page");
    let start = offset_of!(DirectoryPage, payload);
    let used = start..start + usize::from(directory.used_bytes.get());
    fields.extend(every(1, used, "a byte of a row", "DirectoryPage"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_ondisk::page::seal;
    use zerocopy::{FromZeros, IntoBytes};

    #[test]
    fn the_fields_of_a_structure_cover_all_of_it() {
        let kinds = [
            PageKind::PoolLabel,
            PageKind::ShardHeader,
            PageKind::Bitmap,
            PageKind::Log,
            PageKind::Map,
            PageKind::Directory,
        ];
        for kind in kinds {
            let mut page = [0u8; PAGE_BYTES];
            let header = PageHeader::new(kind, [1; 16]);
            page[..size_of::<PageHeader>()].copy_from_slice(header.as_bytes());
            seal(&mut page);
            let mut covered = [false; PAGE_BYTES];
            for field in fields_of(&page) {
                covered[field.bytes].fill(true);
            }
            assert!(covered.iter().all(|covered| *covered), "{kind:?}");
        }
        assert!(
            fields_of(PoolLabel::new_zeroed().as_bytes()).is_empty(),
            "no page"
        );
    }
}
