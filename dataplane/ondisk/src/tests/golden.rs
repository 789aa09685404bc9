//! Pools that users have today must open tomorrow: today's code writes exactly the bytes of `golden/*.bin`
//! and reads them back. A change of these files is a change of the format and needs a new version.
//!
//! `STILLPOINT_WRITE_GOLDEN=1 cargo test -p stillpoint-ondisk` writes them anew.

use std::path::PathBuf;

use zerocopy::{FromBytes, IntoBytes};

use super::samples;
use crate::catalog::{Key, Value};
use crate::directory::{DirectoryPage, OriginRow, RowKind, SnapshotRow, VolumeRow};
use crate::log::LogPage;
use crate::record::Record;
use crate::tail::SegmentHeader;

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/{name}.bin"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn todays_code_writes_exactly_the_golden_bytes() {
    let pages = samples::pages()
        .into_iter()
        .chain(samples::pages_of_clones())
        .chain(samples::pages_of_mirrors())
        .map(|sample| (sample.name, sample.bytes));
    let segment = ("segment", samples::segment_header().as_bytes().to_vec());
    let catalogs = [
        ("catalog", samples::catalog_rows()),
        ("catalog-clones", samples::catalog_rows_of_clones()),
        ("catalog-change-logs", samples::catalog_rows_of_change_logs()),
        ("catalog-scrubs", samples::catalog_rows_of_scrubs()),
    ];
    for (name, bytes) in pages.chain([segment]).chain(catalogs) {
        if std::env::var_os("STILLPOINT_WRITE_GOLDEN").is_some() {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/{name}.bin"));
            std::fs::write(&path, &bytes).expect("the source tree is writable");
        }
        let expected = golden(name);
        let difference = (0..expected.len()).find(|&i| bytes.get(i) != expected.get(i));
        assert_eq!(
            difference, None,
            "{name}.bin differs at this byte: a new format version?"
        );
        assert_eq!(bytes.len(), expected.len(), "{name}.bin");
    }
}

#[test]
fn todays_code_reads_the_golden_bytes() {
    let newer = samples::pages_of_clones()
        .into_iter()
        .chain(samples::pages_of_mirrors());
    for sample in samples::pages().into_iter().chain(newer) {
        assert_eq!(
            (sample.parse)(&golden(sample.name)),
            Ok(()),
            "{}.bin",
            sample.name
        );
    }
    let segment = SegmentHeader::parse(&golden("segment"));
    assert_eq!(segment, Some(samples::segment_header()));
}

#[test]
fn the_golden_log_page_holds_every_kind_of_record_in_order() {
    let bytes = golden("log");
    let page = LogPage::ref_from_bytes(&bytes).expect("a page");
    let mut rest = &page.payload[..usize::from(page.used_bytes.get())];
    for (lsn, expected) in (samples::FIRST_LSN..).zip(samples::records()) {
        let (found_lsn, found, length_bytes) = Record::decode(rest).expect("a sound record");
        assert_eq!((found_lsn, found), (lsn, expected));
        rest = &rest[length_bytes..];
    }
    assert!(rest.is_empty());
}

#[test]
fn the_golden_pages_of_clones_hold_what_came_with_them() {
    let bytes = golden("log-clones");
    let page = LogPage::ref_from_bytes(&bytes).expect("a page");
    let mut rest = &page.payload[..usize::from(page.used_bytes.get())];
    for (lsn, expected) in (samples::FIRST_LSN..).zip(samples::records_of_clones()) {
        let (found_lsn, found, length_bytes) = Record::decode(rest).expect("a sound record");
        assert_eq!((found_lsn, found), (lsn, expected));
        rest = &rest[length_bytes..];
    }
    assert!(rest.is_empty());
    let bytes = golden("directory-clones");
    let page = DirectoryPage::ref_from_bytes(&bytes).expect("a page");
    let rows = page.rows().expect("sound rows");
    let (row, origin) = rows[0].value.split_at(size_of::<VolumeRow>());
    assert_eq!(VolumeRow::read_from_bytes(row).map(|row| row.state), Ok(2));
    assert_eq!(OriginRow::read_from_bytes(origin), Ok(samples::origin_row()));
}

#[test]
fn the_golden_directory_page_holds_every_kind_of_row_with_its_values() {
    let bytes = golden("directory");
    let page = DirectoryPage::ref_from_bytes(&bytes).expect("a page");
    let rows = page.rows().expect("sound rows");
    let kinds: Vec<_> = rows.iter().map(|row| row.kind).collect();
    assert_eq!(kinds, [RowKind::Volume, RowKind::Snapshot, RowKind::Catalog]);
    assert_eq!(
        VolumeRow::read_from_bytes(rows[0].value),
        Ok(samples::volume_row())
    );
    assert_eq!(
        SnapshotRow::read_from_bytes(rows[1].value),
        Ok(samples::snapshot_row())
    );
    assert_eq!(
        (rows[2].key, rows[2].value),
        (&b"volume/data"[..], &b"{\"id\":10}"[..])
    );
}

#[test]
fn the_golden_catalogs_hold_every_kind_of_row() {
    assert_eq!(kinds_in("catalog"), *b"CEFSVHMGN");
    assert_eq!(kinds_in("catalog-clones"), *b"SV");
    assert_eq!(kinds_in("catalog-change-logs"), *b"L");
    assert_eq!(kinds_in("catalog-scrubs"), *b"RD");
}

fn kinds_in(name: &str) -> Vec<u8> {
    let bytes = golden(name);
    let mut rest = &bytes[..];
    let mut next = || {
        let (length, after) = rest.split_at_checked(2)?;
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        let (found, after) = after.split_at(length);
        rest = after;
        Some(found)
    };
    let mut kinds = Vec::new();
    while let (Some(key), Some(value)) = (next(), next()) {
        let decoded = Key::decode(key).expect("a sound key");
        let row = Value::decode(decoded, value).expect("a sound value");
        assert_eq!(row.encode(), value);
        kinds.push(key[0]);
    }
    kinds
}
