//! Checkpoints: the dirty map pages, directory pages and bitmap pages go to new places, then the root moves.
//! They run in small steps beside the I/O.
//!
//! | stage | what is in flight | next |
//! |---|---|---|
//! | Idle | nothing | due, and the log at a page boundary: freeze the state, Writing |
//! | Writing | a few page writes | all written, and the log up to the mark: Flushing |
//! | Flushing | a flush of every device written to | Header |
//! | Header | the shard header, to the copy that the last checkpoint does not use | HeaderFlush; Promoting if the write is durable itself |
//! | HeaderFlush | a flush of the home device | durable: trim the log, Promoting |
//! | Promoting | nothing | no read older than the checkpoint in flight: free what it no longer refers to, Idle |

use crate::marks::{Mark, mark};
use std::collections::VecDeque;

use stillpoint_ondisk::PAGE_BYTES;
use stillpoint_ondisk::directory::RowKind;
use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::map_page::ENTRIES;
use stillpoint_ondisk::page::{self, PageHeader, PageKind};
use zerocopy::{FromZeros, IntoBytes};

use super::{Shard, Tag, give_all};
use crate::command::{EventKind, Notice, Ticket};
use crate::directory::Directory;
use crate::ids::{DeviceAddress, ShardIndex};
use crate::log::LogMark;
use crate::ports::{BufferPool, DeviceError, LogTail, Operation, OperationKind, Segment, Transfer};
use crate::request::RequestError;
use crate::space::Purpose;
use crate::virtual_volume::{snapshot_key, volume_key};

/// Page writes in flight at most.
const WRITES_MAX: u32 = 4;
/// Pages of one write.
const PAGES_PER_WRITE: usize = 16;
/// Bitmap pages freed per turn.
const PROMOTE_PAGES_PER_TURN: usize = 16;
/// Rows that may come to the directory until a checkpoint is due...
const ROWS_MADE_MAX: u64 = 512;
/// ...and the pages kept free for them; a row of a volume or snapshot is far smaller than 1/16 of a page.
const ROW_PAGES_TO_COME: u64 = ROWS_MADE_MAX / 16;
/// errno: no space.
const ENOSPC: i32 = 28;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    Writing,
    Flushing,
    Header,
    HeaderFlush,
    Promoting,
}

/// The checkpoint that is being made, if one is.
#[derive(Debug, Default)]
pub(super) struct Checkpoint {
    stage: Stage,
    wanted: bool,
    begun: u64,
    began_wall_ns: u64,
    promoted: u64,
    generation: u64,
    mark: Option<LogMark>,
    directory: VecDeque<(DeviceAddress, Box<[u8; PAGE_BYTES]>)>,
    /// Rows of the header, taken when the state was frozen.
    header: Option<Box<ShardHeader>>,
    writes_in_flight: u32,
    maps_done: bool,
    bitmaps_done: bool,
    /// Commands that wait for a checkpoint that begins after them, and for the one being made.
    asked: Vec<Ticket>,
    running: Vec<Ticket>,
}

impl Checkpoint {
    /// Makes one as soon as may be.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// Checkpoints begun so far.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// The newest checkpoint (by number) whose freed space is free.
    pub(super) fn promoted(&self) -> u64 {
        self.promoted
    }

    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle && !self.wanted && self.asked.is_empty()
    }

    pub(super) fn is_promoting(&self) -> bool {
        self.stage == Stage::Promoting
    }

    /// A command waits for a checkpoint.
    pub(super) fn ask(&mut self, ticket: Ticket) {
        self.asked.push(ticket);
        self.wanted = true;
    }
}

impl<T: LogTail> Shard<T> {
    /// Whether a checkpoint should begin as soon as the log is at a page boundary.
    pub(super) fn checkpoint_is_due(&self) -> bool {
        if self.checkpoint.stage != Stage::Idle || self.stopped.is_some() {
            return false;
        }
        let dirty = self.cache.dirty_pages();
        let scarce = self.space.free_blocks() / 4;
        let reclaimable = self.space.pending_blocks();
        self.checkpoint.wanted
            || self.log.used_pages() * 2 > self.log.ring_pages()
            || self.rows_made >= ROWS_MADE_MAX
            || dirty * 3 > self.cache.capacity_pages()
            || (dirty as u64 > scarce && dirty > 16)
            || (reclaimable > self.space.room(Purpose::Data) && reclaimable > 1024)
    }

    pub(super) fn drive_checkpoint(&mut self, buffers: &mut impl BufferPool) {
        if self.stopped.is_some() {
            self.fail_checkpoint();
            return;
        }
        match self.checkpoint.stage {
            Stage::Idle => {
                if self.checkpoint_is_due() && !self.log.has_pending() {
                    self.begin_checkpoint();
                }
            }
            Stage::Writing => self.write_pages(buffers),
            Stage::Promoting => self.promote(),
            Stage::Flushing | Stage::Header | Stage::HeaderFlush => {}
        }
        if self.checkpoint.stage == Stage::Header && self.checkpoint.header.is_some() {
            self.write_header(buffers);
        }
    }

    fn fail_checkpoint(&mut self) {
        if self.checkpoint.stage != Stage::Idle {
            mark(Mark::CheckpointFailed);
        }
        let asked = core::mem::take(&mut self.checkpoint.asked);
        let running = core::mem::take(&mut self.checkpoint.running);
        for ticket in asked.into_iter().chain(running) {
            self.event(Some(ticket), EventKind::Failed(RequestError::ShardStopped));
        }
        if self.checkpoint.writes_in_flight == 0 {
            self.checkpoint.stage = Stage::Idle;
            self.checkpoint.wanted = false;
        }
    }

    /// Freezes the state: everything logged before the mark is in it, nothing after.
    fn begin_checkpoint(&mut self) {
        if !self.checkpoint.asked.is_empty() {
            mark(Mark::CheckpointAsked);
        } else if self.log.used_pages() * 2 > self.log.ring_pages() {
            mark(Mark::CheckpointLog);
        } else if self.cache.dirty_pages() * 3 > self.cache.capacity_pages() {
            mark(Mark::CheckpointDirty);
        }
        self.refresh_rows();
        if self.space.free_blocks() < self.directory.pages_to_write() as u64 {
            return self.stop("checkpoint: no space for the directory", DeviceError::Os(ENOSPC));
        }
        let mark = self.log.mark();
        let generation = self.cache.begin_checkpoint();
        let space = &mut self.space;
        let page_generation = self.cache.page_generation(generation);
        let image = self.directory.checkpoint(page_generation, || {
            let extent = space.reserve(1, Purpose::Checkpoint).expect("room was checked");
            space.commit(extent);
            extent.address
        });
        for place in image.replaced {
            self.space.free(place, 1);
        }
        self.reserve_for_checkpoint();
        self.space.begin_checkpoint();
        let header = header_of(
            &self.layout.pool,
            self.shard,
            generation,
            &mark,
            &self.directory,
            self.now.wall_ns,
        );
        let checkpoint = &mut self.checkpoint;
        checkpoint.stage = Stage::Writing;
        checkpoint.wanted = false;
        checkpoint.begun += 1;
        checkpoint.began_wall_ns = self.now.wall_ns;
        checkpoint.generation = generation;
        checkpoint.mark = Some(mark);
        checkpoint.directory = image.pages.into();
        checkpoint.header = Some(header);
        checkpoint.maps_done = false;
        checkpoint.bitmaps_done = false;
        checkpoint.running = core::mem::take(&mut checkpoint.asked);
        self.progress = true;
    }

    /// Sees to it that everything else leaves room for the directory, should the next checkpoint write all of it.
    pub(super) fn reserve_for_checkpoint(&mut self) {
        let pages = u64::from(self.directory.page_count());
        let indexes = pages.div_ceil(ENTRIES as u64);
        self.space
            .set_checkpoint_reserve(pages + indexes + ROW_PAGES_TO_COME);
        self.rows_made = 0;
    }

    /// Brings the directory rows of whatever changed up to date.
    fn refresh_rows(&mut self) {
        for volume in self.volumes.values_mut() {
            if core::mem::take(&mut volume.dirty) {
                let key = volume_key(volume.id);
                self.directory
                    .put(RowKind::Volume, &key, volume.row_bytes())
                    .expect("admitted when created");
            }
            while let Some(snapshot) = volume.snapshots.next_changed() {
                let key = snapshot_key(volume.id, snapshot.snapshot);
                let row = snapshot.row();
                self.directory
                    .put(RowKind::Snapshot, &key, row.as_bytes().to_vec())
                    .expect("admitted when prepared");
            }
        }
    }

    fn write_pages(&mut self, buffers: &mut impl BufferPool) {
        while self.checkpoint.writes_in_flight < WRITES_MAX {
            let Some(buffer) = buffers.take(PAGES_PER_WRITE * PAGE_BYTES) else {
                self.short_of_buffers = true;
                return;
            };
            let mut operation = self.operation(OperationKind::Write, Tag::CheckpointWrite);
            operation.buffers.push(buffer);
            for slot in 0..PAGES_PER_WRITE {
                let offset = slot * PAGE_BYTES;
                let into = &mut operation.buffers[0].bytes_mut()[offset..offset + PAGE_BYTES];
                let Some(address) = self.next_page(into) else {
                    break;
                };
                push_page(&mut operation, address, offset as u32);
            }
            if operation.transfers.is_empty() {
                give_all(&mut operation, buffers);
                self.recycle(operation);
                break;
            }
            self.checkpoint.writes_in_flight += 1;
            self.progress = true;
            self.issue(operation);
        }
        #[cfg(feature = "planted-bugs")]
        if self.planted(crate::PlantedBug::RootBeforePages) && self.checkpoint.bitmaps_done {
            self.checkpoint.stage = Stage::Header;
            return;
        }
        let mark = self.checkpoint.mark.expect("a checkpoint is being made");
        if self.checkpoint.writes_in_flight == 0 && self.log.written_lsn() >= mark.lsn {
            self.checkpoint.stage = Stage::Flushing;
            let devices = self.durability.take_dirty_for_checkpoint();
            self.issue_flush(Tag::CheckpointFlush, devices);
        }
    }

    /// The next page of the frozen state, and where it goes.
    fn next_page(&mut self, into: &mut [u8]) -> Option<DeviceAddress> {
        if !self.checkpoint.maps_done {
            if let Some(address) = self.cache.next_dirty(into) {
                return Some(address);
            }
            self.checkpoint.maps_done = true;
        }
        if let Some((address, bytes)) = self.checkpoint.directory.pop_front() {
            into.copy_from_slice(bytes.as_slice());
            return Some(address);
        }
        if !self.checkpoint.bitmaps_done {
            if let Some((device, page, slot)) = self.space.next_image(self.checkpoint.generation, into) {
                let device = usize::from(device.0);
                let block = self
                    .layout
                    .bitmap_block(self.shard.0, device, page, u64::from(slot));
                return Some(DeviceAddress::new(self.home(), block));
            }
            self.checkpoint.bitmaps_done = true;
        }
        None
    }

    fn write_header(&mut self, buffers: &mut impl BufferPool) {
        let Some(mut buffer) = buffers.take(PAGE_BYTES) else {
            self.short_of_buffers = true;
            return;
        };
        let mut header = self
            .checkpoint
            .header
            .take()
            .expect("taken when the state was frozen");
        header.bitmap_check = self.space.bitmap_check().into();
        page::seal(header.as_mut_bytes());
        buffer.bytes_mut()[..PAGE_BYTES].copy_from_slice(header.as_bytes());
        let block = self
            .layout
            .header_block(self.shard.0, self.checkpoint.generation % 2);
        let mut operation = self.operation(OperationKind::Write, Tag::HeaderWrite);
        // All that it refers to was flushed.
        operation.durable = self.durable_writes;
        operation.buffers.push(buffer);
        push_page(&mut operation, DeviceAddress::new(self.home(), block), 0);
        self.progress = true;
        self.issue(operation);
    }

    pub(super) fn checkpoint_operation_done(
        &mut self,
        tag: Tag,
        operation: &mut Operation,
        buffers: &mut impl BufferPool,
    ) {
        give_all(operation, buffers);
        if tag == Tag::CheckpointWrite {
            self.checkpoint.writes_in_flight -= 1;
        }
        if let Err(error) = operation.result {
            self.stop("checkpoint", error);
            return;
        }
        match tag {
            Tag::CheckpointFlush => self.checkpoint.stage = Stage::Header,
            Tag::HeaderWrite if operation.durable => {
                mark(Mark::HeaderDurably);
                self.checkpoint_is_durable();
            }
            Tag::HeaderWrite => {
                self.checkpoint.stage = Stage::HeaderFlush;
                let devices = self.durability.take_dirty_for_checkpoint();
                self.issue_flush(Tag::HeaderFlush, devices);
            }
            Tag::HeaderFlush => self.checkpoint_is_durable(),
            _ => {}
        }
    }

    fn checkpoint_is_durable(&mut self) {
        self.cache.checkpoint_durable();
        self.space.checkpoint_durable();
        self.log
            .trim(self.checkpoint.mark.take().expect("a checkpoint was being made"));
        self.mark_soon();
        self.status.checkpoints += 1;
        self.notice(Notice::Checkpointed {
            began_wall_ns: self.checkpoint.began_wall_ns,
            ended_wall_ns: self.now.wall_ns,
        });
        self.checkpoint.stage = Stage::Promoting;
        assert_eq!(
            self.reads_in_flight[1 - self.read_half],
            0,
            "the last promotion waited for these"
        );
        self.read_half = 1 - self.read_half;
        for ticket in core::mem::take(&mut self.checkpoint.running) {
            self.event(Some(ticket), EventKind::Done);
        }
        self.unstall();
    }

    /// Space that the durable checkpoint no longer refers to comes free, once no read of it can be in flight (I5).
    fn promote(&mut self) {
        let wait = self.reads_in_flight[1 - self.read_half] > 0;
        #[cfg(feature = "planted-bugs")]
        let wait = wait && !self.planted(crate::PlantedBug::FreedSpaceReusedWhileRead);
        if wait {
            return;
        }
        self.progress = true;
        if self.space.promote_step(PROMOTE_PAGES_PER_TURN) {
            self.checkpoint.stage = Stage::Idle;
            self.checkpoint.promoted = self.checkpoint.begun;
            self.unstall();
        }
    }
}

fn header_of(
    pool: &[u8; 16],
    shard: ShardIndex,
    generation: u64,
    mark: &LogMark,
    directory: &Directory,
    wall_ns: u64,
) -> Box<ShardHeader> {
    let mut header = Box::new(ShardHeader::new_zeroed());
    header.header = PageHeader::new(PageKind::ShardHeader, *pool);
    header.generation = generation.into();
    header.shard = shard.0.into();
    header.directory_index_count = (directory.indexes().len() as u16).into();
    header.directory_pages = directory.page_count().into();
    header.log_sequence = mark.sequence.into();
    header.log_lsn = mark.lsn.into();
    header.log_previous_crc32c = mark.previous_crc32c.into();
    header.written_ns = wall_ns.into();
    header.directory_index[..directory.indexes().len()].copy_from_slice(directory.indexes());
    header
}

/// Adds one page; pages that follow each other on the device go as one transfer.
fn push_page(operation: &mut Operation, address: DeviceAddress, offset_bytes: u32) {
    let page_bytes = PAGE_BYTES as u64;
    if let Some(last) = operation.transfers.last_mut()
        && last.device == address.device()
        && last.offset_bytes + last.length_bytes == address.offset_bytes()
    {
        last.length_bytes += page_bytes;
        let segment = operation.segments.last_mut().expect("a transfer has a segment");
        segment.length_bytes += PAGE_BYTES as u32;
        return;
    }
    operation.transfers.push(Transfer {
        device: address.device(),
        offset_bytes: address.offset_bytes(),
        length_bytes: page_bytes,
        first_segment: operation.segments.len() as u32,
        segment_count: 1,
    });
    operation.segments.push(Segment {
        buffer: 0,
        offset_bytes,
        length_bytes: PAGE_BYTES as u32,
    });
}
