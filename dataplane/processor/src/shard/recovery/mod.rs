//! Opening a shard: the newest valid root, then the log, then the log tail.
//!
//! | what is found | what is done |
//! |---|---|
//! | two sound headers | the one of the higher generation is the root |
//! | one sound header | it is the root: the other was being written, or never was |
//! | no sound header, or one that the device cannot read | the shard is not opened |
//! | log pages that chain on from the root's mark | their records are replayed in order |
//! | the first page that does not, and no sound page anywhere in the ring says that a later record was durable | the end of the log |
//! | the same, but some page says so | damage, not a crash: the shard is not opened |
//! | a bitmap slot older than the one that the root counted on | the shard is not opened |
//! | a tail segment whose header names a boundary of that chain | its records go on after the log's |
//! | a tail segment that goes on from a record beyond the log's end | damage: the shard is not opened |
//! | any other tail segment | ignored: it belongs to another life of the pool |
//! | records not known to be durable, logged before the power came on | the data they name is verified by CRC, and a block that fails keeps its older content |
//! | records not known to be durable, logged since, on devices with two sides | the sides are compared, and both become what fits the CRC |
//!
//! Whether the power was cut says the tail: its segments name the first record that was logged since. Without a tail
//! that fits, no record counts as logged since.
//!
//! Opening writes nothing but the tail's records, into the log; what is replayed becomes durable with the next
//! checkpoint, which begins at once. Without a tail that fits, the first record of the new life is
//! [`Record::Opened`]: of several log pages that were not flushed, a power cut may have lost the first and left the
//! others, and they must not chain on to what is logged now. Opening twice gives the same.

pub(super) mod found_log;
mod replay;
mod roots;

use crate::marks::{Mark, mark};
use core::fmt;
use std::collections::VecDeque;

use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::page::PAGE_BYTES;
use stillpoint_ondisk::record::Record;
use stillpoint_ondisk::{Damage, crc32c};

use super::checkpoint::Checkpoint;
use super::durability::Durability;
use super::loads::Loads;
use super::reclaim::Reclaim;
use super::slots::Slots;
use super::write::Batches;
use super::{Shard, ShardOptions};
use crate::BLOCK_BYTES;
use crate::command::ShardStatus;
use crate::directory::Directory;
use crate::ids::{DeviceAddress, DeviceIndex, Now, ShardIndex, VolumeId};
use crate::log::{LogMark, LogWriter};
use crate::map::PageCache;
use crate::ports::{DeviceError, LogTail, OpenDevice, Transferred};
use crate::space::Space;
use crate::stages::Stages;
use crate::virtual_volume::VirtualVolume;

/// Pages read at once.
const READ_AHEAD_PAGES: usize = 2048;
/// Pages that follow each other on a device are one read, of so many at most.
const RUN_PAGES_MAX: usize = 256;
/// Why a shard cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// A device failed.
    Device {
        /// While doing what.
        what: String,
        /// How.
        error: DeviceError,
    },
    /// A structure is damaged.
    Damaged {
        /// Which.
        what: String,
        /// How.
        damage: Damage,
    },
    /// A record of the log does not fit the state it is replayed on.
    Replay {
        /// LSN of the record.
        lsn: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// A page of the log is damaged or was never written, and it is not a page that a crash may have caught: records
    /// that were durable lay in it or behind it.
    LogLost {
        /// The shard.
        shard: u16,
        /// Sequence of the first page that is not there.
        sequence: u64,
        /// LSN of the first record that cannot be found.
        lsn: u64,
        /// Every record below this was durable (or, if `tail` is set, was on the device when the process ended).
        until_lsn: u64,
        /// The log tail says so, and not another log page.
        tail: bool,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { what, error } => write!(f, "{what}: {error}"),
            Self::Damaged { what, damage } => write!(f, "{what}: {damage}"),
            Self::Replay { lsn, what } => write!(f, "log record {lsn}: {what}"),
            Self::LogLost {
                shard,
                sequence,
                lsn,
                until_lsn,
                tail,
            } => {
                write!(
                    f,
                    "log page {sequence} of shard {shard} is damaged: it ends the log at record {lsn}, but records up to \
                     {until_lsn} "
                )?;
                if *tail {
                    write!(
                        f,
                        "were on the device, says the log tail (if this pool was in use on another machine since, or \
                         is an older copy, delete its log tail); nothing was changed"
                    )
                } else {
                    write!(f, "were durable; nothing was changed")
                }
            }
        }
    }
}

impl std::error::Error for OpenError {}

/// What opening a shard did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Generation of the root.
    pub generation: u64,
    /// Records replayed from the log.
    pub log_records: u64,
    /// Records replayed from the log tail.
    pub tail_records: u64,
    /// Whether the log tail fitted: no power was lost since.
    pub tail_fitted: bool,
    /// Blocks whose data was verified because it was not known to be durable, or not on both sides.
    pub verified_blocks: u64,
    /// Blocks of these that had not reached the device; they keep their older content.
    pub dropped_blocks: u64,
}

/// A shard that is being opened, or checked.
pub(super) struct Opening<'a, D> {
    pub(super) layout: &'a Layout,
    pub(super) shard: ShardIndex,
    pub(super) device: &'a mut D,
    pub(super) space: Space,
    pub(super) cache: PageCache,
    pub(super) directory: Directory,
    pub(super) volumes: std::collections::BTreeMap<VolumeId, VirtualVolume>,
    pub(super) now: Now,
    /// What records from here on name reached the devices: they were logged since the power came on.
    pub(super) trusted_lsn: u64,
    pub(super) report: RecoveryReport,
    #[cfg(feature = "planted-bugs")]
    pub(super) planted_bug: Option<crate::PlantedBug>,
}

impl<T: LogTail> Shard<T> {
    /// Opens a shard and replays what it logged.
    ///
    /// # Errors
    /// [`OpenError`] that names the structure and what is wrong with it. Nothing has been changed then.
    pub fn open(
        layout: &Layout,
        shard: ShardIndex,
        device: &mut impl OpenDevice,
        mut tail: T,
        options: ShardOptions,
        now: Now,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let header = read_header(layout, shard, device)?;
        let generation = header.generation.get();
        let mark = LogMark {
            sequence: header.log_sequence.get(),
            lsn: header.log_lsn.get(),
            previous_crc32c: header.log_previous_crc32c.get(),
        };
        let mut opening = Opening::new(layout, shard, device, options, generation, now);
        opening.load_directory(&header)?;
        opening.load_bitmaps(&header)?;
        opening.load_volumes()?;
        let found = opening.find_log(mark)?;
        opening.cache.set_salt(salt_of(now, &found.end));
        let segments = if tail.is_there() {
            [tail.segment(0).to_vec(), tail.segment(1).to_vec()]
        } else {
            [Vec::new(), Vec::new()]
        };
        let newest = opening.fitting_tail_records(&found, mark.lsn, &segments)?;
        opening.replay(&found, &newest)?;
        let at = opening.relog(&found, mark, &newest)?;
        let report = opening.report.clone();
        let trusted_lsn = opening.trusted_lsn.min(at.lsn);
        let mut log = LogWriter::new(layout.pool, shard, layout.log_pages, tail, mark, at, trusted_lsn);
        log.found_marked(found.durable_lsn);
        if at.lsn > found.durable_lsn {
            // A record that was dropped must not count as durable should the next crash come before a checkpoint.
            log.distrust_from(found.durable_lsn);
        }
        let opened = Record::Opened { wall_ns: now.wall_ns };
        if !report.tail_fitted && log.has_urgent_room(opened.encoded_bytes()) {
            // Pages of the life before may lie further on in the ring, behind the one that was lost.
            log.append(&opened);
        }
        let Opening {
            space,
            cache,
            directory,
            volumes,
            ..
        } = opening;
        Ok((
            Self::assemble(
                layout.clone(),
                shard,
                options,
                now,
                space,
                cache,
                directory,
                log,
                volumes,
            ),
            report,
        ))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a shard, named once")]
    fn assemble(
        layout: Layout,
        shard: ShardIndex,
        options: ShardOptions,
        now: Now,
        space: Space,
        cache: PageCache,
        directory: Directory,
        log: LogWriter<T>,
        volumes: std::collections::BTreeMap<VolumeId, VirtualVolume>,
    ) -> Self {
        let mut checkpoint = Checkpoint::default();
        if log.used_pages() > 0 {
            checkpoint.want();
        }
        let mut reclaim = Reclaim::default();
        reclaim.wake();
        for volume in volumes.values().filter(|volume| !volume.deleting) {
            reclaim.trim_again(volume.id, volume.share_blocks);
        }
        let mut opened = Self {
            layout,
            shard,
            options,
            now,
            space,
            cache,
            directory,
            log,
            volumes,
            slots: Slots::new(options.in_flight_max),
            ready: VecDeque::new(),
            stalled: VecDeque::new(),
            write_queue: VecDeque::new(),
            batches: Batches::default(),
            loads: Loads::default(),
            durability: Durability::default(),
            checkpoint,
            cuts: Vec::new(),
            commands: VecDeque::new(),
            command_waits: false,
            reclaim,
            discards: super::discard::Discards::default(),
            change_logs: super::change_logs::ChangeLogs::default(),
            scrub: super::scrub::Scrub::default(),
            rows_made: 0,
            no_space_since: None,
            outgoing: VecDeque::new(),
            spare_operations: Vec::new(),
            reads_in_flight: [0; 2],
            read_half: 0,
            repairs: super::repair::Repairs::default(),
            operations_in_flight: 0,
            held_answers: 0,
            answers: Vec::new(),
            events: Vec::new(),
            stopped: None,
            status: ShardStatus::default(),
            stages: Stages::default(),
            short_of_buffers: false,
            durable_writes: false,
            progress: true,
        };
        opened.reserve_for_checkpoint();
        opened
    }
}

/// What no other life of the shard has.
fn salt_of(now: Now, end: &LogMark) -> u32 {
    let numbers = [
        now.wall_ns,
        now.monotonic_ns,
        end.sequence,
        end.lsn,
        u64::from(end.previous_crc32c),
    ];
    let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
    crc32c(&bytes)
}

pub(super) fn read_header(
    layout: &Layout,
    shard: ShardIndex,
    device: &mut impl OpenDevice,
) -> Result<ShardHeader, OpenError> {
    let home = DeviceIndex(layout.home(shard.0) as u8);
    let mut best: Option<ShardHeader> = None;
    let mut worst = None;
    for copy in 0..2 {
        let what = || format!("shard {} header copy {copy} on device {}", shard.0, home.0);
        let mut bytes = vec![0; PAGE_BYTES];
        let block = layout.header_block(shard.0, copy);
        // A copy that cannot be read may be the newest: going back to the other would be a silent loss.
        read_one(device, home, block, &mut bytes)
            .map_err(|error| OpenError::Device { what: what(), error })?;
        match ShardHeader::parse(&bytes, layout.pool, shard.0) {
            Ok(found) => {
                if best
                    .as_ref()
                    .is_none_or(|best| found.generation.get() > best.generation.get())
                {
                    best = Some(found);
                }
            }
            Err(damage @ Damage::Version(_)) => return Err(OpenError::Damaged { what: what(), damage }),
            Err(damage) => {
                mark(Mark::RecoveryOneHeader);
                worst = Some(OpenError::Damaged { what: what(), damage });
            }
        }
    }
    best.ok_or_else(|| worst.expect("two copies were looked at"))
}

pub(super) fn read_one(
    device: &mut impl OpenDevice,
    index: DeviceIndex,
    block: u64,
    bytes: &mut [u8],
) -> Result<(), DeviceError> {
    let mut reads = [Transferred {
        device: index,
        offset_bytes: block * BLOCK_BYTES as u64,
        bytes,
        result: Ok(()),
    }];
    device.read_all(&mut reads);
    reads[0].result
}

/// Cuts places into runs that follow each other on a device.
fn runs(mut places: &[DeviceAddress]) -> impl Iterator<Item = &[DeviceAddress]> {
    core::iter::from_fn(move || {
        let first = *places.first()?;
        let most = places.len().min(RUN_PAGES_MAX);
        let end = (1..most).find(|&at| places[at].0 != first.0 + at as u64);
        let (run, later) = places.split_at(end.unwrap_or(most));
        places = later;
        Some(run)
    })
}

impl<'a, D: OpenDevice> Opening<'a, D> {
    /// Nothing is loaded yet; `generation` is the root's.
    pub(super) fn new(
        layout: &'a Layout,
        shard: ShardIndex,
        device: &'a mut D,
        options: ShardOptions,
        generation: u64,
        now: Now,
    ) -> Self {
        Self {
            layout,
            shard,
            device,
            space: Space::new(layout, shard),
            cache: PageCache::new(layout.pool, shard, options.map_cache_pages, generation + 1),
            directory: Directory::new(layout.pool, shard),
            volumes: std::collections::BTreeMap::new(),
            now,
            trusted_lsn: u64::MAX,
            report: RecoveryReport {
                generation,
                ..RecoveryReport::default()
            },
            #[cfg(feature = "planted-bugs")]
            planted_bug: options.planted_bug,
        }
    }
}

impl<D: OpenDevice> Opening<'_, D> {
    fn home(&self) -> DeviceIndex {
        DeviceIndex(self.layout.home(self.shard.0) as u8)
    }

    /// Reads pages at these places into one piece of memory.
    fn read_pages(&mut self, what: &str, places: &[DeviceAddress]) -> Result<Vec<u8>, OpenError> {
        let mut memory = vec![0; places.len() * PAGE_BYTES];
        let mut rest = memory.as_mut_slice();
        let runs: Vec<&[DeviceAddress]> = runs(places).collect();
        let mut reads: Vec<Transferred<'_>> = Vec::with_capacity(runs.len());
        for run in &runs {
            let (bytes, later) = rest.split_at_mut(run.len() * PAGE_BYTES);
            rest = later;
            reads.push(Transferred {
                device: run[0].device(),
                offset_bytes: run[0].offset_bytes(),
                bytes,
                result: Ok(()),
            });
        }
        self.device.read_all(&mut reads);
        for (read, run) in reads.iter_mut().zip(runs) {
            if read.result.is_ok() {
                continue;
            }
            // Which of them is it?
            for (place, bytes) in run.iter().zip(read.bytes.chunks_exact_mut(PAGE_BYTES)) {
                let done = read_one(self.device, place.device(), place.block(), bytes);
                done.map_err(|error| OpenError::Device {
                    what: format!("{what} at {place}"),
                    error,
                })?;
            }
        }
        Ok(memory)
    }
}
