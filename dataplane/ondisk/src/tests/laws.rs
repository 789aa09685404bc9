//! Laws over all structures: what is written is read back, what is damaged is refused, and no bytes
//! whatever make a reader panic.

use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::samples::{self, pages};
use crate::directory::{self, DirectoryPage, Row, RowKind};
use crate::label::PoolLabel;
use crate::page::{self, Damage, PAGE_BYTES, PageHeader};
use crate::record::{CATALOG_KEY_BYTES_MAX, CATALOG_VALUE_BYTES_MAX, Record, WRITE_BLOCKS_MAX};
use crate::stale::{self, StalePage};
use crate::tail::SegmentHeader;

/// A record that owns what [`Record`] borrows.
#[derive(Clone, Debug)]
struct Owned {
    kind: u8,
    small: [u32; 2],
    large: [u64; 2],
    crcs: Vec<u32>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Owned {
    fn with<R>(&self, use_it: impl FnOnce(Record<'_>) -> R) -> R {
        let [volume, other] = self.small;
        let [first, count] = self.large;
        let crcs: Vec<U32> = self.crcs.iter().map(|&crc| crc.into()).collect();
        use_it(match self.kind {
            0 => Record::Write {
                volume,
                birth: other,
                first,
                address: count >> 16,
                crcs: &crcs,
            },
            1 => Record::Discard {
                volume,
                birth: other,
                first,
                count,
            },
            2 => Record::VolumeCreate {
                volume,
                family: other,
                share_blocks: first,
            },
            3 => Record::VolumeResize {
                volume,
                share_blocks: first,
            },
            4 => Record::VolumeDelete { volume },
            5 => Record::Cut {
                volume,
                epoch: other,
                snapshot: first,
                time_stamp_ns: count,
            },
            6 => Record::SnapshotDelete {
                volume,
                snapshot: first,
            },
            7 => Record::CatalogPut {
                key: &self.key,
                value: &self.value,
            },
            8 => Record::CatalogDelete { key: &self.key },
            _ => Record::Opened { wall_ns: first },
        })
    }
}

fn any_record() -> impl Strategy<Value = Owned> {
    (
        0..10u8,
        any::<[u32; 2]>(),
        any::<[u64; 2]>(),
        vec(any::<u32>(), 1..=WRITE_BLOCKS_MAX),
        vec(any::<u8>(), 0..=CATALOG_KEY_BYTES_MAX),
        vec(any::<u8>(), 0..=CATALOG_VALUE_BYTES_MAX),
    )
        .prop_map(|(kind, small, large, crcs, key, value)| Owned {
            kind,
            small,
            large,
            crcs,
            key,
            value,
        })
}

proptest! {
    #[test]
    fn a_record_is_read_back_as_it_was_written(owned in any_record(), lsn: u64, junk in vec(any::<u8>(), 0..64)) {
        owned.with(|record| {
            let mut bytes = vec![0xA5; record.encoded_bytes()];
            let length_bytes = record.encode(lsn, &mut bytes);
            prop_assert_eq!(length_bytes, bytes.len());
            bytes.extend(&junk);
            prop_assert_eq!(Record::decode(&bytes), Some((lsn, record, length_bytes)));
            Ok(())
        })?;
    }

    #[test]
    fn a_record_with_a_flipped_bit_or_cut_short_is_no_record(
        owned in any_record(),
        at: prop::sample::Index,
        bit in 0..8u8,
    ) {
        owned.with(|record| {
            let mut bytes = vec![0; record.encoded_bytes()];
            record.encode(7, &mut bytes);
            let at = at.index(bytes.len());
            prop_assert_eq!(Record::decode(&bytes[..at]), None);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Record::decode(&bytes), None);
            Ok(())
        })?;
    }

    #[test]
    fn no_bytes_make_a_record_reader_panic(mut bytes in vec(any::<u8>(), 0..512), kind in 0..12u8) {
        prop_assert_eq!(Record::decode(&bytes), None, "a random CRC does not match");
        // The same body under a sound header gets past the CRC to the readers of the bodies.
        if bytes.len() >= 16 {
            let length = bytes.len() as u16;
            bytes[4..6].copy_from_slice(&length.to_le_bytes());
            bytes[6] = kind;
            bytes[7] = 0;
            let crc = crate::crc32c(&bytes[4..]);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
            if let Some((_, record, length)) = Record::decode(&bytes) {
                prop_assert_eq!(length, bytes.len());
                prop_assert_eq!(record.encoded_bytes(), length);
            }
        }
    }

    #[test]
    fn no_bytes_make_a_page_reader_panic(
        junk in vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        which: prop::sample::Index,
        reseal: bool,
    ) {
        let samples = pages();
        let sample = &samples[which.index(samples.len())];
        let mut bytes = sample.bytes.clone();
        for (at, byte) in junk {
            bytes[at.index(PAGE_BYTES)] = byte;
        }
        if reseal {
            // What a hostile pool image would do: any content under a right CRC.
            page::seal(&mut bytes);
            let _ = (sample.parse)(&bytes);
        } else if bytes != sample.bytes {
            prop_assert!((sample.parse)(&bytes).is_err());
        }
    }

    #[test]
    fn rows_are_read_back_as_they_were_written(
        rows in vec((1..=3u8, vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..200)), 0..15),
    ) {
        let rows: Vec<Row<'_>> = rows
            .iter()
            .map(|(kind, key, value)| Row {
                kind: match kind {
                    1 => RowKind::Volume,
                    2 => RowKind::Snapshot,
                    _ => RowKind::Catalog,
                },
                key,
                value,
            })
            .collect();
        let mut page = samples::directory_page();
        page.payload = [0; directory::PAYLOAD_BYTES];
        let used = rows.iter().fold(0, |used, row| used + row.encode(&mut page.payload[used..]));
        page.used_bytes = (used as u16).into();
        prop_assert_eq!(page.rows(), Ok(rows));
    }

    #[test]
    fn no_payload_makes_the_row_reader_panic(payload in vec(any::<u8>(), 1..300)) {
        let mut page = samples::directory_page();
        page.payload[..payload.len()].copy_from_slice(&payload);
        page.used_bytes = (payload.len() as u16).into();
        let _ = page.rows();
    }
}

#[test]
fn every_single_byte_flip_of_every_sealed_page_is_refused() {
    for sample in pages() {
        for at in 0..PAGE_BYTES {
            for flip in [0x01, 0x80, 0xFF] {
                let mut bytes = sample.bytes.clone();
                bytes[at] ^= flip;
                assert!(
                    (sample.parse)(&bytes).is_err(),
                    "{} with byte {at} changed by {flip:#x} was accepted",
                    sample.name
                );
            }
        }
    }
}

#[test]
fn every_single_byte_flip_of_a_segment_header_is_refused() {
    let header = samples::segment_header();
    for at in 0..size_of::<SegmentHeader>() {
        for flip in 1..=255 {
            let mut bytes = header.as_bytes().to_vec();
            assert!(SegmentHeader::parse(&bytes[..at]).is_none());
            bytes[at] ^= flip;
            assert_eq!(SegmentHeader::parse(&bytes), None, "byte {at}");
        }
    }
}

/// Found by a fuzz target: such a record was read as one that is shorter than what lies there.
#[test]
fn a_catalog_row_that_goes_away_has_no_value() {
    let mut bytes = vec![0; 64];
    let length = Record::CatalogPut {
        key: b"V",
        value: b"left",
    }
    .encode(7, &mut bytes);
    bytes.truncate(length);
    bytes[6] = 9;
    let crc = crate::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Record::decode(&bytes), None);
}

#[test]
fn a_page_is_refused_in_the_place_of_every_other_kind() {
    let samples = pages();
    for (i, sample) in samples.iter().enumerate() {
        for (j, other) in samples.iter().enumerate().filter(|(j, _)| *j != i) {
            assert!(
                matches!((sample.parse)(&other.bytes), Err(Damage::Kind(_))),
                "{i} took {j}"
            );
        }
    }
}

#[test]
fn a_newer_version_is_refused_as_newer_and_not_as_damaged() {
    for sample in pages() {
        let mut bytes = sample.bytes.clone();
        bytes[8..10].copy_from_slice(&(page::VERSION + 1).to_le_bytes());
        // Not sealed: the new version may compute its checksum in another way.
        let expected = Err(Damage::Version(page::VERSION + 1));
        assert_eq!((sample.parse)(&bytes), expected, "{}", sample.name);
    }
}

#[test]
fn a_page_of_another_pool_is_refused() {
    for sample in pages().iter().filter(|sample| sample.name != "label") {
        let mut bytes = sample.bytes.clone();
        bytes[16] ^= 1;
        page::seal(&mut bytes);
        assert_eq!((sample.parse)(&bytes), Err(Damage::Pool), "{}", sample.name);
    }
}

#[test]
fn unwritten_space_is_told_from_damage() {
    for sample in pages() {
        for fill in [0x00, 0xFF, 0xA5] {
            assert_eq!((sample.parse)(&[fill; PAGE_BYTES]), Err(Damage::Magic));
        }
    }
}

#[test]
fn unknown_features_follow_their_grade() {
    let parse = |change: fn(&mut PoolLabel)| {
        let mut label = samples::label();
        change(&mut label);
        page::seal(label.as_mut_bytes());
        PoolLabel::parse(label.as_bytes()).map(drop)
    };
    assert_eq!(parse(|l| l.features.compatible = u64::MAX.into()), Ok(()));
    assert_eq!(
        parse(|l| l.features.read_only_compatible = 4.into()),
        Err(Damage::Feature("read-only compatible"))
    );
    assert_eq!(
        parse(|l| l.features.incompatible = 4.into()),
        Err(Damage::Feature("incompatible"))
    );
}

#[test]
fn a_label_names_the_field_that_cannot_be() {
    let parse = |change: fn(&mut PoolLabel)| {
        let mut label = samples::label();
        change(&mut label);
        page::seal(label.as_mut_bytes());
        PoolLabel::parse(label.as_bytes()).map(drop)
    };
    assert_eq!(
        parse(|l| l.device_count = 0.into()),
        Err(Damage::Field("device_count"))
    );
    assert_eq!(
        parse(|l| l.device_count = 65.into()),
        Err(Damage::Field("device_count"))
    );
    assert_eq!(
        parse(|l| l.device_index = 2.into()),
        Err(Damage::Field("device_index"))
    );
    assert_eq!(
        parse(|l| l.shard_count = 257.into()),
        Err(Damage::Field("shard_count"))
    );
    assert_eq!(parse(|l| l.log_pages = 1.into()), Err(Damage::Field("log_pages")));
    assert_eq!(
        parse(|l| l.devices[0].slice_blocks = u64::MAX.into()),
        Err(Damage::Field("slice_blocks"))
    );
}

#[test]
fn a_label_of_mirrors_names_the_field_that_cannot_be() {
    let parse = |change: fn(&mut PoolLabel)| {
        let mut label = samples::label_of_mirrors();
        change(&mut label);
        page::seal(label.as_mut_bytes());
        PoolLabel::parse(label.as_bytes()).map(drop)
    };
    assert_eq!(parse(|_| {}), Ok(()));
    assert_eq!(parse(|l| l.side = 2.into()), Err(Damage::Field("side")));
    let no_side_left = |l: &mut PoolLabel| l.mirrors[1].out_since[1] = 9.into();
    assert_eq!(parse(no_side_left), Err(Damage::Field("out_since")));
    let of_the_future = |l: &mut PoolLabel| l.mirrors[0].out_since[0] = 12.into();
    assert_eq!(parse(of_the_future), Err(Damage::Field("out_since")));
    // Of devices that the pool does not have.
    assert_eq!(parse(|l| l.mirrors[2].out_since = [9.into(); 2]), Ok(()));
    let many = |l: &mut PoolLabel| {
        l.devices = [l.devices[0]; crate::DEVICES_MAX];
        l.device_count = 33.into();
    };
    assert_eq!(parse(many), Err(Damage::Field("device_count")));
    assert_eq!(
        parse(|l| {
            l.shard_count = 256.into();
            for row in &mut l.devices {
                row.size_blocks = (1u64 << 30).into();
                row.slice_blocks = (1u64 << 20).into();
            }
        }),
        Err(Damage::Field("shard_count"))
    );
}

#[test]
fn a_stale_page_of_another_place_or_time_says_nothing() {
    let bytes = samples::stale();
    let parse = |episode, shard, device, slice_blocks| {
        StalePage::parse(
            bytes.as_bytes(),
            samples::POOL,
            episode,
            shard,
            device,
            slice_blocks,
        )
        .map(drop)
    };
    let blocks = samples::STALE_SLICE_BLOCKS;
    assert_eq!(parse(10, samples::SHARD, 1, blocks), Ok(()));
    assert_eq!(parse(11, samples::SHARD, 1, blocks), Err(Damage::Place));
    assert_eq!(parse(10, samples::SHARD + 1, 1, blocks), Err(Damage::Place));
    assert_eq!(parse(10, samples::SHARD, 0, blocks), Err(Damage::Place));
    let larger = stale::STALE_REGIONS_MAX as u64 * stale::STALE_REGION_BLOCKS_MIN;
    assert_eq!(parse(10, samples::SHARD, 1, larger), Ok(()));
    assert_eq!(
        parse(10, samples::SHARD, 1, larger + 1),
        Err(Damage::Field("region_blocks"))
    );
    // Its last region is the 33rd.
    assert_eq!(
        parse(10, samples::SHARD, 1, blocks - 1),
        Err(Damage::Field("words"))
    );
}

proptest! {
    #[test]
    fn regions_cover_a_slice_and_fit_a_page(slice_blocks in 1u64..1 << 40) {
        let (blocks, count) = (stale::region_blocks(slice_blocks), stale::region_count(slice_blocks));
        prop_assert!(count <= stale::STALE_REGIONS_MAX);
        prop_assert!(blocks * count as u64 >= slice_blocks && blocks * (count as u64 - 1) < slice_blocks);
    }
}

#[test]
fn a_name_is_read_up_to_its_padding() {
    assert_eq!(samples::label().name(), "größ");
}

#[test]
fn the_checksum_covers_the_page_but_not_itself() {
    let sample = &pages()[0];
    let (header, _) = PageHeader::ref_from_prefix(&sample.bytes).expect("a page");
    let mut zeroed = sample.bytes.clone();
    zeroed[12..16].fill(0);
    assert_eq!(header.crc32c.get(), ::crc32c::crc32c(&zeroed));
    assert!(
        DirectoryPage::ref_from_bytes(&sample.bytes).is_ok(),
        "all pages have one size"
    );
}
