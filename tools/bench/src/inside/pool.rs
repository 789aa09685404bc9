//! Making the pool and its volume, and handing its shards to threads.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use stillpoint_hw::buffers::ARENA_BYTES_DEFAULT;
use stillpoint_hw::clock::Clock;
use stillpoint_hw::device::{DeviceFigures, DeviceFile, Devices, MemoryDevice, Opener, PoolFiles};
use stillpoint_hw::tail::{self, FileTail};
use stillpoint_processor::command::EventKind;
use stillpoint_processor::format::{PoolSpec, make_pool};
use stillpoint_processor::ids::DeviceIndex;
use stillpoint_processor::ports::{DeviceError, OpenDevice, Transferred};
use stillpoint_processor::{
    BLOCK_BYTES, Shard, ShardCommand, ShardIndex, ShardOptions, SnapshotId, TimeStamp, View, VolumeId,
};

use super::station::{Medium, Station};
use crate::target::TargetError;

/// The one volume.
const VOLUME: VolumeId = VolumeId(1);
/// Size of the volume if nothing is said.
const VOLUME_BYTES: u64 = 1 << 30;
/// A pool is so many times as large as its volume, for writes go to new places.
const POOL_FACTOR: u64 = 3;
/// Parts of the volume are a multiple of this: the longest request fits.
const PART_UNIT_BYTES: u64 = 1 << 20;

/// Where the pool lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory.
    Memory,
    /// In a file that is made for it and removed in the end.
    New(PathBuf),
    /// In a file or block device that is there. What it holds is lost.
    Existing(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("inside:memory"),
            Self::New(path) => write!(f, "inside:{}", path.display()),
            Self::Existing(path) => write!(f, "inside+force:{}", path.display()),
        }
    }
}

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub place: Place,
    /// Size of the volume; `None`: 1 GiB, or a quarter of what is there.
    pub volume_bytes: Option<u64>,
    /// Threads, and shards.
    pub threads: usize,
    /// Each thread flushes so often, if it does.
    pub flush_every_ns: Option<u64>,
}

/// What a thread takes: its shard, and the memory under it if that is where the pool lies.
#[derive(Debug)]
struct Seat {
    shard: Shard<FileTail>,
    memory: Option<MemoryDevice>,
}

/// A pool with a volume that was written from end to end.
#[derive(Debug)]
pub struct Inside {
    place: Place,
    files: Option<Arc<PoolFiles>>,
    seats: Vec<Mutex<Option<Seat>>>,
    part_bytes: u64,
    pub(crate) flush_every_ns: Option<u64>,
    figures: Mutex<DeviceFigures>,
    snapshots: Mutex<u64>,
}

impl Inside {
    /// Makes the pool and its volume, which is still to be [filled](crate::target::InsideTarget::fill).
    ///
    /// # Errors
    /// [`TargetError`]: no such file or a file that is there already, too little room, no log tail.
    pub fn make(options: &Options) -> Result<Arc<Self>, TargetError> {
        let threads = options.threads as u64;
        let size_of_pool = |volume_bytes: u64| {
            (volume_bytes * POOL_FACTOR + (256 << 20) * threads).next_multiple_of(BLOCK_BYTES as u64)
        };
        let wanted_bytes = options.volume_bytes.unwrap_or(VOLUME_BYTES);
        let files = match &options.place {
            Place::Memory => None,
            Place::New(path) => Some(DeviceFile::create(path, size_of_pool(wanted_bytes))),
            Place::Existing(path) => Some(DeviceFile::open(path)),
        };
        let files = files.transpose().map_err(TargetError::File)?;
        let files = files.map(|file| PoolFiles::new(vec![file]));
        let pool_bytes = files.as_ref().map_or(size_of_pool(wanted_bytes), |files| {
            files.get(0).expect("it was opened").size_bytes()
        });
        let volume_bytes = options.volume_bytes.unwrap_or(wanted_bytes.min(pool_bytes / 4));
        let part_bytes = volume_bytes / threads / PART_UNIT_BYTES * PART_UNIT_BYTES;
        if part_bytes == 0 || volume_bytes > pool_bytes / 2 {
            return Err(TargetError::Other(format!(
                "{}: a volume of {volume_bytes} bytes on {pool_bytes} bytes for {threads} threads is not possible: it takes 1 MiB \
                 for each thread, and at most half of the place: give another --size",
                options.place
            )));
        }
        let inside = Arc::new(Self {
            place: options.place.clone(),
            seats: seats(files.as_ref(), options.threads, pool_bytes)?,
            files,
            part_bytes,
            flush_every_ns: options.flush_every_ns,
            figures: Mutex::default(),
            snapshots: Mutex::default(),
        });
        let share_blocks = part_bytes / BLOCK_BYTES as u64;
        inside.tell_all(
            &ShardCommand::CreateVolume {
                volume: VOLUME,
                share_blocks,
            },
            |kind| *kind == EventKind::Done,
        )?;
        Ok(inside)
    }

    /// Size of the volume, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.part_bytes * self.seats.len() as u64
    }

    /// Bytes of the volume on each shard.
    #[must_use]
    pub fn part_bytes(&self) -> u64 {
        self.part_bytes
    }

    /// Threads that it was made for.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.seats.len()
    }

    /// The volume as it is.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            volume: VOLUME,
            snapshot: None,
        }
    }

    /// Whether it lies in memory.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.files.is_none()
    }

    /// The files behind, each with whether it is used past the page cache.
    #[must_use]
    pub fn devices(&self) -> Vec<(PathBuf, bool)> {
        let files = self.files.iter().flat_map(|files| files.present());
        files
            .map(|(_, file)| (file.path().to_owned(), file.is_direct()))
            .collect()
    }

    /// What the devices did in all runs that have ended.
    #[must_use]
    pub fn figures(&self) -> DeviceFigures {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The station of thread `index` of a pool on files.
    ///
    /// # Errors
    /// Its shard is taken, or no ring.
    pub fn on_files(&self, index: usize, buffer_bytes: usize) -> Result<Station<Devices>, TargetError> {
        let seat = self.take(index)?;
        let files = self.files.as_ref().expect("a pool on files");
        Station::new(seat.shard, buffer_bytes, |arenas, ring| {
            Devices::new(Arc::clone(files), arenas, 0, ring)
        })
    }

    /// The same of a pool in memory.
    ///
    /// # Errors
    /// As there.
    pub fn in_memory(&self, index: usize, buffer_bytes: usize) -> Result<Station<MemoryDevice>, TargetError> {
        let seat = self.take(index)?;
        let memory = seat.memory.expect("a pool in memory");
        Station::new(seat.shard, buffer_bytes, |_, _| memory)
    }

    fn take(&self, index: usize) -> Result<Seat, TargetError> {
        let seat = self.seats.get(index);
        let seat = seat.and_then(|seat| seat.lock().unwrap_or_else(PoisonError::into_inner).take());
        seat.ok_or_else(|| {
            TargetError::Other(format!(
                "{}: was made for {} threads, and nobody else may use it: give the same --numjobs",
                self.place,
                self.seats.len()
            ))
        })
    }

    /// Puts a shard back for the next run.
    ///
    /// # Errors
    /// It does not become quiet.
    pub fn put_back<D: Medium>(&self, mut station: Station<D>, counted: bool) -> Result<(), TargetError> {
        let index = usize::from(station.shard().0);
        if counted {
            let did = station.figures();
            let mut sum = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
            sum.reads += did.reads;
            sum.writes += did.writes;
            sum.read_bytes += did.read_bytes;
            sum.written_bytes += did.written_bytes;
            sum.flushes += did.flushes;
        }
        let (shard, memory) = station.leave()?;
        *self.seats[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(Seat { shard, memory });
        Ok(())
    }

    /// Sends a command to every shard, one after the other; nobody may be at work.
    ///
    /// # Errors
    /// A shard says something else than was expected.
    fn tell_all(
        &self,
        command: &ShardCommand,
        is_right: impl Fn(&EventKind) -> bool,
    ) -> Result<(), TargetError> {
        fn tell<D: Medium>(
            inside: &Inside,
            mut station: Station<D>,
            command: &ShardCommand,
        ) -> Result<EventKind, TargetError> {
            let event = station.command(command.clone())?;
            inside.put_back(station, false)?;
            Ok(event)
        }
        for index in 0..self.seats.len() {
            let event = if self.is_in_memory() {
                tell(self, self.in_memory(index, ARENA_BYTES_DEFAULT)?, command)?
            } else {
                tell(self, self.on_files(index, ARENA_BYTES_DEFAULT)?, command)?
            };
            if !is_right(&event) {
                return Err(TargetError::Other(format!(
                    "shard {index}: {command:?}: {event:?}"
                )));
            }
        }
        Ok(())
    }

    /// Takes a snapshot of the volume while nobody is at work.
    ///
    /// # Errors
    /// A shard refuses.
    pub fn snapshot(&self) -> Result<SnapshotId, TargetError> {
        let snapshot = {
            let mut last = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
            *last += 1;
            SnapshotId(*last)
        };
        let prepare = ShardCommand::Prepare {
            snapshot,
            volumes: vec![VOLUME],
        };
        self.tell_all(&prepare, |event| *event == EventKind::Prepared)?;
        let cut = ShardCommand::Cut {
            snapshot,
            time_stamp: TimeStamp(Clock::new().now().wall_ns),
            deadline_ns: u64::MAX,
        };
        self.tell_all(&cut, |event| matches!(event, EventKind::Taken))?;
        self.tell_all(&ShardCommand::Release { snapshot }, |event| {
            matches!(event, EventKind::Released(_))
        })?;
        self.tell_all(&ShardCommand::Persist { snapshot }, |event| {
            matches!(event, EventKind::Durable)
        })?;
        Ok(snapshot)
    }

    /// Deletes it, and waits until what it held is free.
    ///
    /// # Errors
    /// A shard refuses.
    pub fn delete_snapshot(&self, snapshot: SnapshotId) -> Result<(), TargetError> {
        let delete = ShardCommand::DeleteSnapshot {
            volume: VOLUME,
            snapshot,
        };
        self.tell_all(&delete, |event| *event == EventKind::Done)?;
        self.tell_all(&ShardCommand::Checkpoint, |event| *event == EventKind::Done)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        for seat in &mut self.seats {
            let seat = seat.get_mut().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(seat) = seat {
                // A file that stays does no harm: it is of a pool that will not come again.
                let _ = seat.shard.into_tail().remove();
            }
        }
        if let Place::New(path) = &self.place {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Formats the pool and opens its shards.
fn seats(
    files: Option<&Arc<PoolFiles>>,
    threads: usize,
    pool_bytes: u64,
) -> Result<Vec<Mutex<Option<Seat>>>, TargetError> {
    let other = |what: String| TargetError::Other(what);
    let spec = PoolSpec {
        pool: random()?,
        name: "inside".into(),
        shard_count: threads as u16,
        created_ns: Clock::new().now().wall_ns,
        devices: vec![(random()?, pool_bytes / BLOCK_BYTES as u64)],
        second_sides: Vec::new(),
    };
    let mut noted = Noted::default();
    let made = match files {
        Some(files) => make_pool(&mut Opener::new(Arc::clone(files)), &spec),
        None => make_pool(&mut noted, &spec),
    };
    let layout = made.map_err(|error| other(format!("making the pool: {error}")))?;
    let directory = tail::tail_directory().map_err(|error| other(error.to_string()))?;
    let boot = tail::boot_id().map_err(|error| other(format!("the kernel's boot id: {error}")))?;
    let slice_bytes = layout.devices[0].slice_blocks * BLOCK_BYTES as u64;
    let mut seats = Vec::with_capacity(threads);
    for shard in (0..threads as u16).map(ShardIndex) {
        let (tail, _) =
            FileTail::open(&directory, spec.pool, boot, shard).map_err(|error| other(error.to_string()))?;
        let (options, now) = (ShardOptions::default(), Clock::new().now());
        let mut memory = None;
        let opened = if let Some(files) = files {
            let mut opener = Opener::new(Arc::clone(files));
            Shard::open(&layout, shard, &mut opener, tail, options, now)
        } else {
            let first_byte = layout.slice_start_block(shard.0, 0) * BLOCK_BYTES as u64;
            let device = MemoryDevice::new(first_byte, slice_bytes as usize)
                .map_err(|error| other(format!("{slice_bytes} bytes of memory: {error}")))?;
            let device = memory.insert(device);
            noted.play(first_byte..first_byte + slice_bytes, device)?;
            Shard::open(&layout, shard, device, tail, options, now)
        };
        let (shard, _) = opened.map_err(|error| other(format!("opening a shard: {error}")))?;
        seats.push(Mutex::new(Some(Seat { shard, memory })));
    }
    Ok(seats)
}

fn random() -> Result<[u8; 16], TargetError> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| TargetError::Other(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

/// What was written to a device, to be written again where it belongs.
#[derive(Debug, Default)]
struct Noted(Vec<(u64, Vec<u8>)>);

impl Noted {
    /// Writes what lies in `range`.
    fn play(&self, range: std::ops::Range<u64>, device: &mut MemoryDevice) -> Result<(), TargetError> {
        for (offset_bytes, bytes) in self.0.iter().filter(|(offset, _)| range.contains(offset)) {
            let written = device.write(DeviceIndex(0), *offset_bytes, bytes);
            written.map_err(|error| TargetError::Other(error.to_string()))?;
        }
        Ok(())
    }
}

impl OpenDevice for Noted {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        for read in reads {
            read.result = Err(DeviceError::Gone);
        }
    }

    fn write(&mut self, _: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.0.push((offset_bytes, bytes.to_vec()));
        Ok(())
    }

    fn flush(&mut self, _: DeviceIndex) -> Result<(), DeviceError> {
        Ok(())
    }
}
