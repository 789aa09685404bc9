//! The writer of a shard's log: records go into pages and into the log tail; pages go to the ring.
//!
//! ```text
//! append ──> page being filled ──┬─> tail segment (before the acknowledgement; survives kill -9)
//!                                └─> start_write ─> ring ─> written ─> device flush ─> durable
//! ```
//! Invariants:
//! - at most one log write is in flight; the records it carries stay in their tail segment until it is done;
//! - `durable_lsn <= written_lsn <= next_lsn`;
//! - a page never overwrites one at or after the mark of the last durable checkpoint.

use stillpoint_ondisk::log::{LogPage, PAYLOAD_BYTES};
use stillpoint_ondisk::page::{self, PAGE_BYTES, PageHeader, PageKind};
use stillpoint_ondisk::record::{RECORD_BYTES_MAX, Record};
use stillpoint_ondisk::tail::{SEGMENT_BYTES, SegmentHeader};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::PART_BYTES_MAX;
use crate::ids::ShardIndex;
use crate::ports::LogTail;

/// Pages that may wait for a log write: what one device write carries.
const PENDING_PAGES_MAX: usize = PART_BYTES_MAX / PAGE_BYTES / 2;
/// Pages of the ring kept free for records that must not wait (cuts, aborts, deletes).
const RING_SLACK_PAGES: u64 = 4;
const SEGMENT_HEADER_BYTES: usize = size_of::<SegmentHeader>();
/// Bytes of records that may gather before they are written unasked.
const EAGER_BYTES: usize = 128 * 1024;

/// Where in the log a checkpoint stands: replay begins here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMark {
    /// Sequence of the first page.
    pub sequence: u64,
    /// LSN of the first record.
    pub lsn: u64,
    /// CRC32C of the page before.
    pub previous_crc32c: u32,
}

/// The log of one shard.
#[derive(Debug)]
pub struct LogWriter<T> {
    pool: [u8; 16],
    shard: ShardIndex,
    ring_pages: u64,
    tail: T,
    segment: usize,
    segment_used: usize,
    /// Pages being filled; the header of each is made when it is sealed.
    pages: Vec<LogPage>,
    next_lsn: u64,
    next_sequence: u64,
    previous_crc32c: u32,
    writing_until_lsn: Option<u64>,
    written_lsn: u64,
    durable_lsn: u64,
    /// The mark of the last durable checkpoint: older pages may be overwritten.
    trimmed: LogMark,
    /// Records from here on were logged since the power came on.
    trusted_lsn: u64,
    /// Until a checkpoint passes the first LSN, no page may say that more than the second is durable.
    distrusted: Option<(u64, u64)>,
    /// The highest `durable_lsn` of a page that was given out to be written.
    marked_lsn: u64,
}

impl<T: LogTail> LogWriter<T> {
    /// A log that goes on at `at`, with `trimmed` the mark of the checkpoint that was opened. Everything
    /// before `at` counts as durable; records from `trusted_lsn` on were logged since the power came on.
    pub fn new(
        pool: [u8; 16],
        shard: ShardIndex,
        ring_pages: u32,
        tail: T,
        trimmed: LogMark,
        at: LogMark,
        trusted_lsn: u64,
    ) -> Self {
        let mut log = Self {
            pool,
            shard,
            ring_pages: u64::from(ring_pages),
            tail,
            segment: 0,
            segment_used: 0,
            pages: Vec::with_capacity(PENDING_PAGES_MAX),
            next_lsn: at.lsn,
            next_sequence: at.sequence,
            previous_crc32c: at.previous_crc32c,
            writing_until_lsn: None,
            written_lsn: at.lsn,
            durable_lsn: at.lsn,
            trimmed,
            trusted_lsn,
            distrusted: None,
            marked_lsn: at.lsn,
        };
        if log.tail.is_there() {
            log.tail.segment(1)[..SEGMENT_HEADER_BYTES].fill(0);
        }
        log.start_segment(0);
        log
    }

    /// Recovery dropped records from `lsn` on: until a checkpoint has left them behind, pages go on saying that
    /// they need to be verified.
    pub fn distrust_from(&mut self, lsn: u64) {
        self.distrusted = Some((self.next_lsn, lsn));
    }

    fn start_segment(&mut self, segment: usize) {
        self.segment = segment;
        self.segment_used = SEGMENT_HEADER_BYTES;
        if self.tail.is_there() {
            let header = SegmentHeader::new(
                self.next_sequence,
                self.previous_crc32c,
                self.next_lsn,
                self.trusted_lsn,
            );
            let bytes = self.tail.segment(segment);
            // First no record, then the header: a reader never takes old records for the new ones.
            bytes[SEGMENT_HEADER_BYTES..SEGMENT_HEADER_BYTES + 16].fill(0);
            bytes[..SEGMENT_HEADER_BYTES].copy_from_slice(header.as_bytes());
        }
    }

    /// Takes the log tail back out.
    pub fn into_tail(self) -> T {
        self.tail
    }

    /// The log tail.
    pub fn tail(&self) -> &T {
        &self.tail
    }

    /// Whether a durable checkpoint has left every record behind: nothing in the log or its tail counts any more.
    pub fn is_left_behind(&self) -> bool {
        self.next_lsn == self.trimmed.lsn
    }

    /// Whether records survive kill -9 as soon as they are appended.
    pub fn has_tail(&self) -> bool {
        self.tail.is_there()
    }

    /// Whether `bytes` of records (each at most [`RECORD_BYTES_MAX`]) can be appended now.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.has_room_besides(bytes, RING_SLACK_PAGES)
    }

    /// The same for records that may use the last pages of the ring.
    pub fn has_urgent_room(&self, bytes: usize) -> bool {
        self.has_room_besides(bytes, 0)
    }

    fn has_room_besides(&self, bytes: usize, slack_pages: u64) -> bool {
        // A record does not straddle pages: the rest of a page may be lost to each.
        let pages = bytes.div_ceil(PAYLOAD_BYTES - RECORD_BYTES_MAX) as u64 + 1;
        let waiting = self.pages.len() as u64;
        let ring_free = self.ring_pages - (self.next_sequence - self.trimmed.sequence);
        let slack_bytes = slack_pages as usize * PAGE_BYTES;
        waiting + pages + slack_pages <= PENDING_PAGES_MAX as u64
            && waiting + pages + slack_pages < ring_free
            && self.segment_used + bytes + slack_bytes <= SEGMENT_BYTES
    }

    /// Appends a record; gives its LSN. There must be room.
    pub fn append(&mut self, record: &Record<'_>) -> u64 {
        let length = record.encoded_bytes();
        let fits = |page: &LogPage| usize::from(page.used_bytes.get()) + length <= PAYLOAD_BYTES;
        if !self.pages.last().is_some_and(fits) {
            assert!(
                self.pages.len() < PENDING_PAGES_MAX,
                "has_room was asked before append"
            );
            let mut page = LogPage::new_zeroed();
            page.first_lsn = self.next_lsn.into();
            self.pages.push(page);
        }
        let page = self.pages.last_mut().expect("a page with room");
        let start = usize::from(page.used_bytes.get());
        let lsn = self.next_lsn;
        record.encode(lsn, &mut page.payload[start..]);
        page.used_bytes = ((start + length) as u16).into();
        if self.tail.is_there() {
            // The record after this one must not look sound before it is written: clear its header first.
            let segment = self.tail.segment(self.segment);
            let end = self.segment_used + length;
            assert!(end <= SEGMENT_BYTES, "has_room was asked before append");
            let after = (end + 16).min(SEGMENT_BYTES);
            segment[end..after].fill(0);
            segment[self.segment_used..end].copy_from_slice(&page.payload[start..start + length]);
            self.segment_used = end;
        }
        self.next_lsn += 1;
        lsn
    }

    /// LSN of the next record.
    pub fn next_lsn(&self) -> u64 {
        self.next_lsn
    }

    /// Every record below this has been written to the device.
    pub fn written_lsn(&self) -> u64 {
        self.written_lsn
    }

    /// Every record below this, with the data it names, is durable.
    pub fn durable_lsn(&self) -> u64 {
        self.durable_lsn
    }

    /// Whether a log write is in flight.
    pub fn is_writing(&self) -> bool {
        self.writing_until_lsn.is_some()
    }

    /// Whether records wait to be written.
    pub fn has_pending(&self) -> bool {
        !self.pages.is_empty()
    }

    /// Whether enough records wait that they should be written unasked.
    pub fn is_eager(&self) -> bool {
        self.segment_used > EAGER_BYTES || self.pages.len() > PENDING_PAGES_MAX / 2
    }

    /// Pages of the ring that hold records which the last durable checkpoint does not cover.
    pub fn used_pages(&self) -> u64 {
        self.next_sequence - self.trimmed.sequence + self.pages.len() as u64
    }

    /// Pages of the ring.
    pub fn ring_pages(&self) -> u64 {
        self.ring_pages
    }

    /// What the pages on the device say to be durable, as recovery found it.
    pub fn found_marked(&mut self, lsn: u64) {
        self.marked_lsn = lsn;
    }

    /// Whether records are durable that no page says to be. Should the last page be damaged, nothing would tell it from
    /// one that never was durable; the same goes for the header of the last checkpoint.
    pub fn needs_mark(&self) -> bool {
        self.stated_durable_lsn() > self.marked_lsn
    }

    /// Sees to it that a page waits to be written, if only to say what is durable; false if there is no room.
    pub fn push_mark(&mut self) -> bool {
        if self.has_pending() {
            return true;
        }
        if !self.has_room(0) {
            return false;
        }
        let mut page = LogPage::new_zeroed();
        page.first_lsn = self.next_lsn.into();
        self.pages.push(page);
        true
    }

    fn stated_durable_lsn(&self) -> u64 {
        self.distrusted.map_or(self.durable_lsn, |(_, lsn)| lsn)
    }

    /// Bytes that [`Self::start_write`] needs.
    pub fn pending_bytes(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// Seals the waiting pages into `into` and starts the other tail segment; gives the first page's place
    /// in the ring. The caller writes the pages there, wrapping at the end of the ring.
    pub fn start_write(&mut self, into: &mut [u8]) -> u64 {
        assert!(
            !self.is_writing() && self.has_pending(),
            "one log write at a time"
        );
        assert!(
            self.used_pages() <= self.ring_pages,
            "the log does not overtake its mark"
        );
        let first = self.next_sequence % self.ring_pages;
        let durable_lsn = self.stated_durable_lsn();
        self.marked_lsn = self.marked_lsn.max(durable_lsn);
        for (page, bytes) in self.pages.iter_mut().zip(into.chunks_exact_mut(PAGE_BYTES)) {
            page.header = PageHeader::new(PageKind::Log, self.pool);
            page.sequence = self.next_sequence.into();
            page.durable_lsn = durable_lsn.into();
            page.previous_crc32c = self.previous_crc32c.into();
            page.shard = self.shard.0.into();
            bytes.copy_from_slice(page.as_bytes());
            page::seal(bytes);
            let (header, _) = PageHeader::ref_from_prefix(bytes).expect("a page starts with its header");
            self.previous_crc32c = header.crc32c.get();
            self.next_sequence += 1;
        }
        self.pages.clear();
        self.writing_until_lsn = Some(self.next_lsn);
        self.start_segment(1 - self.segment);
        first
    }

    /// The log write is done.
    pub fn written(&mut self) {
        self.written_lsn = self.writing_until_lsn.take().expect("a log write was in flight");
    }

    /// A device flush that began after every record below `lsn` was written is done.
    pub fn flushed(&mut self, lsn: u64) {
        assert!(lsn <= self.written_lsn, "flushed before it was written");
        self.durable_lsn = self.durable_lsn.max(lsn);
    }

    /// Where a checkpoint begun now stands. No record may be waiting to be written.
    pub fn mark(&self) -> LogMark {
        assert!(!self.has_pending(), "a checkpoint begins at a page boundary");
        LogMark {
            sequence: self.next_sequence,
            lsn: self.next_lsn,
            previous_crc32c: self.previous_crc32c,
        }
    }

    /// A checkpoint at `mark` is durable: what is older needs no replay.
    pub fn trim(&mut self, mark: LogMark) {
        assert!(mark.sequence >= self.trimmed.sequence, "checkpoints go forward");
        self.trimmed = mark;
        self.distrusted = self.distrusted.filter(|(until, _)| mark.lsn < *until);
        if self.written_lsn >= mark.lsn {
            self.durable_lsn = self.durable_lsn.max(mark.lsn);
        }
    }
}
