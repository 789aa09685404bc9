//! What was logged after the root: the valid part of the ring, and the tail that goes on from it.

use crate::marks::{Mark, mark};
use stillpoint_ondisk::log::LogPage;
use stillpoint_ondisk::page::PAGE_BYTES;
use stillpoint_ondisk::record::Record;
use stillpoint_ondisk::tail::SegmentHeader;
use zerocopy::FromBytes;

use super::{OpenError, Opening, READ_AHEAD_PAGES, RUN_PAGES_MAX, read_one};
use crate::BLOCK_BYTES;
use crate::ids::{DeviceAddress, DeviceIndex};
use crate::log::{LogMark, LogWriter};
use crate::ports::{NoTail, OpenDevice, Transferred};

/// The valid part of the log ring.
pub(in crate::shard) struct FoundLog {
    /// Whole pages, in order.
    pub(in crate::shard) pages: Vec<u8>,
    pub(in crate::shard) end: LogMark,
    pub(in crate::shard) durable_lsn: u64,
}

/// A record to replay.
pub(in crate::shard) struct Replay<'a> {
    pub(in crate::shard) lsn: u64,
    pub(in crate::shard) record: Record<'a>,
}

impl<D: OpenDevice> Opening<'_, D> {
    /// Reads the log from the root's mark up to the first page that does not chain on.
    pub(in crate::shard) fn find_log(&mut self, mark: LogMark) -> Result<FoundLog, OpenError> {
        let ring = u64::from(self.layout.log_pages);
        let start = self.layout.log_start_block(self.shard.0);
        let mut found = FoundLog {
            pages: Vec::new(),
            end: mark,
            durable_lsn: mark.lsn,
        };
        while found.end.sequence < mark.sequence + ring {
            let ahead = (mark.sequence + ring - found.end.sequence).min(READ_AHEAD_PAGES as u64);
            let places: Vec<DeviceAddress> = (found.end.sequence..found.end.sequence + ahead)
                .map(|sequence| DeviceAddress::new(self.home(), start + sequence % ring))
                .collect();
            let bytes = self.read_pages("log", &places)?;
            #[cfg(feature = "planted-bugs")]
            let bytes = self.seal_torn_pages(bytes);
            for page in bytes.chunks_exact(PAGE_BYTES) {
                let end = &mut found.end;
                let parsed = LogPage::parse(
                    page,
                    self.layout.pool,
                    self.shard.0,
                    end.sequence,
                    end.previous_crc32c,
                );
                let Some(next_lsn) = parsed.ok().and_then(|page| records_end(page, end.lsn)) else {
                    self.check_nothing_is_lost(mark, &found, bytes)?;
                    return Ok(found);
                };
                let sound = LogPage::ref_from_bytes(page).expect("parsed before");
                end.sequence += 1;
                end.previous_crc32c = sound.header.crc32c.get();
                end.lsn = next_lsn;
                found.durable_lsn = found.durable_lsn.max(sound.durable_lsn.get());
                found.pages.extend_from_slice(page);
            }
        }
        Ok(found)
    }

    /// Tells the end of the log from damage in its middle. Every page says which records were durable when it was
    /// written, and what was durable in one life is there in every later one: so no sound page of this shard, of whichever
    /// turn of the ring and whichever life, may say more than the log holds. A page that a crash tore or lost was not
    /// durable, and no page says that it was. `memory` is what it is read into.
    fn check_nothing_is_lost(
        &mut self,
        mark: LogMark,
        found: &FoundLog,
        mut memory: Vec<u8>,
    ) -> Result<(), OpenError> {
        let ring = u64::from(self.layout.log_pages);
        let start = self.layout.log_start_block(self.shard.0);
        let mut durable_lsn = 0;
        // No more memory than what is left of the ring: to zero it took longer than all else of opening a small one.
        let pages_left = (mark.sequence + ring - found.end.sequence) as usize;
        memory.resize(pages_left.min(READ_AHEAD_PAGES) * PAGE_BYTES, 0);
        for first in (found.end.sequence..mark.sequence + ring).step_by(READ_AHEAD_PAGES) {
            let end = (mark.sequence + ring).min(first + READ_AHEAD_PAGES as u64);
            let until_wrap = ring - first % ring;
            let middle = end.min(first + until_wrap);
            for (from, to) in [(first, middle), (middle, end)] {
                let bytes = &mut memory[..(to - from) as usize * PAGE_BYTES];
                self.read_what_can_be_read(start + from % ring, bytes);
                let sound = bytes
                    .chunks_exact(PAGE_BYTES)
                    .filter_map(|page| LogPage::any(page, self.layout.pool, self.shard.0));
                durable_lsn = sound.fold(durable_lsn, |most, page| most.max(page.durable_lsn.get()));
            }
        }
        if durable_lsn <= found.end.lsn {
            return Ok(());
        }
        Err(OpenError::LogLost {
            shard: self.shard.0,
            sequence: found.end.sequence,
            lsn: found.end.lsn,
            until_lsn: durable_lsn,
            tail: false,
        })
    }

    /// Reads pages of the home device that follow each other; zeros for those that cannot be read.
    fn read_what_can_be_read(&mut self, first_block: u64, bytes: &mut [u8]) {
        let home = self.home();
        let mut reads: Vec<Transferred<'_>> = (first_block..)
            .step_by(RUN_PAGES_MAX)
            .zip(bytes.chunks_mut(RUN_PAGES_MAX * PAGE_BYTES))
            .map(|(block, bytes)| Transferred {
                device: home,
                offset_bytes: block * BLOCK_BYTES as u64,
                bytes,
                result: Ok(()),
            })
            .collect();
        self.device.read_all(&mut reads);
        for read in reads.iter_mut().filter(|read| read.result.is_err()) {
            let first_block = read.offset_bytes / BLOCK_BYTES as u64;
            for (block, page) in (first_block..).zip(read.bytes.chunks_exact_mut(PAGE_BYTES)) {
                if read_one(self.device, home, block, page).is_err() {
                    page.fill(0);
                }
            }
        }
    }

    /// A planted bug: torn pages, with their records as far as these make sense, get the CRCs that they should have.
    #[cfg(feature = "planted-bugs")]
    fn seal_torn_pages(&self, mut pages: Vec<u8>) -> Vec<u8> {
        use stillpoint_ondisk::page::{PageKind, seal, verify};
        use stillpoint_ondisk::record::RecordHeader;
        let is_torn = |page: &[u8]| {
            verify(page, PageKind::Log, None) == Err(stillpoint_ondisk::Damage::Checksum)
                && self.planted_bug == Some(crate::PlantedBug::TornLogPageAccepted)
        };
        for page in pages.chunks_exact_mut(PAGE_BYTES).filter(|page| is_torn(page)) {
            let log = LogPage::mut_from_bytes(page).expect("a page is a page");
            let used = usize::from(log.used_bytes.get()).min(log.payload.len());
            let mut at = 0;
            while let Ok((header, _)) = RecordHeader::read_from_prefix(&log.payload[at..used]) {
                let end = at + usize::from(header.length_bytes.get());
                if end < at + size_of::<RecordHeader>() || end > used {
                    break;
                }
                let crc = stillpoint_ondisk::crc32c(&log.payload[at + 4..end]);
                log.payload[at..at + 4].copy_from_slice(&crc.to_le_bytes());
                if Record::decode(&log.payload[at..end]).is_none() {
                    break;
                }
                at = end;
            }
            log.used_bytes = (at as u16).into();
            seal(page);
        }
        pages
    }

    /// The records of the log tail that go on after the log's; empty if no segment fits.
    ///
    /// A segment is begun only when the records before the other segment's are on the device. So one that goes on from
    /// beyond the log's end tells that the device lost pages which it had.
    pub(in crate::shard) fn fitting_tail_records<'s>(
        &mut self,
        found: &FoundLog,
        first_lsn: u64,
        segments: &'s [Vec<u8>; 2],
    ) -> Result<Vec<Replay<'s>>, OpenError> {
        let mut headers: Vec<(SegmentHeader, &[u8])> = segments
            .iter()
            .filter_map(|segment| {
                Some((
                    SegmentHeader::parse(segment)?,
                    &segment[size_of::<SegmentHeader>()..],
                ))
            })
            .filter(|(header, _)| header.first_lsn.get() >= first_lsn)
            .collect();
        headers.sort_by_key(|(header, _)| header.first_lsn.get());
        let mut newest = Vec::new();
        let mut next_lsn = found.end.lsn;
        for (header, bytes) in &headers {
            let goes_on = self.report.tail_fitted && header.first_lsn.get() == next_lsn;
            if !goes_on && !found.has_boundary(header) {
                mark(Mark::RecoveryTailStale);
                continue;
            }
            let records = segment_records(bytes, header.first_lsn.get());
            if !found.agrees_with(&records) {
                continue;
            }
            self.report.tail_fitted = true;
            self.trusted_lsn = self.trusted_lsn.min(header.trusted_lsn.get());
            for replay in records {
                if replay.lsn == next_lsn {
                    mark(Mark::RecoveryTail);
                    next_lsn += 1;
                    newest.push(replay);
                }
            }
        }
        match headers.last() {
            Some((ahead, _)) if ahead.first_lsn.get() > next_lsn => Err(OpenError::LogLost {
                shard: self.shard.0,
                sequence: found.end.sequence,
                lsn: next_lsn,
                until_lsn: ahead.first_lsn.get(),
                tail: true,
            }),
            _ => Ok(newest),
        }
    }

    /// Brings the tail's records into the log on the device; gives where the log goes on.
    pub(in crate::shard) fn relog(
        &mut self,
        found: &FoundLog,
        mark: LogMark,
        newest: &[Replay<'_>],
    ) -> Result<LogMark, OpenError> {
        let failed = |error| OpenError::Device {
            what: String::from("writing the log tail to the log"),
            error,
        };
        let (pool, pages) = (self.layout.pool, self.layout.log_pages);
        let mut log = LogWriter::new(pool, self.shard, pages, NoTail, mark, found.end, found.end.lsn);
        // Until the flush below, the data that these and older records name may still be lost with the power.
        log.distrust_from(found.durable_lsn);
        let start = self.layout.log_start_block(self.shard.0);
        let mut left = newest;
        while !left.is_empty() {
            while let Some((replay, rest)) = left.split_first()
                && log.has_urgent_room(replay.record.encoded_bytes())
            {
                assert_eq!(
                    log.append(&replay.record),
                    replay.lsn,
                    "the tail goes on where the log ends"
                );
                left = rest;
            }
            if !log.has_pending() {
                return Err(OpenError::Replay {
                    lsn: left[0].lsn,
                    what: "the log has no room for the log tail",
                });
            }
            let mut bytes = vec![0; log.pending_bytes()];
            let first = log.start_write(&mut bytes);
            let until_end = (u64::from(pages) - first) as usize * PAGE_BYTES;
            let (here, wrapped) = bytes.split_at(until_end.min(bytes.len()));
            for (page, bytes) in [(first, here), (0, wrapped)] {
                if !bytes.is_empty() {
                    self.device
                        .write(self.home(), (start + page) * BLOCK_BYTES as u64, bytes)
                        .map_err(failed)?;
                }
            }
            log.written();
        }
        for device in 0..self.layout.devices.len() {
            self.device.flush(DeviceIndex(device as u8)).map_err(failed)?;
        }
        Ok(log.mark())
    }
}

/// The LSN after the records of a page; `None` if they do not go on from `lsn`.
fn records_end(page: &LogPage, mut lsn: u64) -> Option<u64> {
    if page.first_lsn.get() != lsn {
        return None;
    }
    let mut rest = &page.payload[..usize::from(page.used_bytes.get())];
    while !rest.is_empty() {
        let (found, _, length) = Record::decode(rest)?;
        if found != lsn {
            return None;
        }
        lsn += 1;
        rest = &rest[length..];
    }
    Some(lsn)
}

fn segment_records(mut bytes: &[u8], mut lsn: u64) -> Vec<Replay<'_>> {
    let mut records = Vec::new();
    while let Some((found, record, length)) = Record::decode(bytes)
        && found == lsn
    {
        records.push(Replay { lsn, record });
        lsn += 1;
        bytes = &bytes[length..];
    }
    records
}

impl FoundLog {
    fn pages(&self) -> impl Iterator<Item = &LogPage> {
        let pages = self.pages.chunks_exact(PAGE_BYTES);
        pages.map(|page| LogPage::ref_from_bytes(page).expect("parsed when it was found"))
    }

    pub(in crate::shard) fn records(&self) -> Vec<Replay<'_>> {
        let payloads = self
            .pages()
            .map(|page| (page, &page.payload[..usize::from(page.used_bytes.get())]));
        payloads
            .flat_map(|(page, payload)| segment_records(payload, page.first_lsn.get()))
            .collect()
    }

    /// Whether a tail segment begins where a page of this log begins, or where the log ends.
    fn has_boundary(&self, header: &SegmentHeader) -> bool {
        let (sequence, lsn) = (header.sequence.get(), header.first_lsn.get());
        let crc = header.previous_crc32c.get();
        let ends = self.end
            == LogMark {
                sequence,
                lsn,
                previous_crc32c: crc,
            };
        ends || self.pages().any(|page| {
            page.sequence.get() == sequence
                && page.first_lsn.get() == lsn
                && page.previous_crc32c.get() == crc
        })
    }

    /// Whether the log holds these very records (in order, without gaps), as far as it goes.
    fn agrees_with(&self, records: &[Replay<'_>]) -> bool {
        let Some(first) = records.first() else { return true };
        let pages: Vec<&LogPage> = self.pages().collect();
        let after = pages.partition_point(|page| page.first_lsn.get() <= first.lsn);
        let held = pages[after.saturating_sub(1)..].iter().flat_map(|page| {
            let payload = &page.payload[..usize::from(page.used_bytes.get())];
            segment_records(payload, page.first_lsn.get())
        });
        let mut held = held.skip_while(|found| found.lsn < first.lsn);
        let mut within = records.iter().take_while(|record| record.lsn < self.end.lsn);
        within.all(|record| {
            held.next()
                .is_some_and(|found| found.lsn == record.lsn && found.record == record.record)
        })
    }
}
