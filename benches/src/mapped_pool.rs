//! A pool whose volumes are mapped from end to end in single blocks that lie anywhere, in minutes instead of hours: the
//! product's own shards write them, block by block, over a device that keeps what is metadata and, if that is wanted,
//! leaves the data out. Reading a block that was left out is the checksum error that it has to be.

mod device;
pub mod discard;
pub mod memory;
pub mod opening;
pub mod place;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use stillpoint_ondisk::label::PoolLabel;
use stillpoint_ondisk::layout::Layout;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::ports::{BufferPool, MemoryTail};
use stillpoint_processor::{
    Now, Outbox, Processor, RequestKind, Shard, ShardCommand, ShardIndex, ShardOptions, ShardRequest,
    ShareBlock, Ticket, Token, View, VolumeId,
};

use crate::Failure;
use crate::memory_device::RecycledBuffers;
use device::MetadataDevice;

const BLOCK: usize = stillpoint_processor::BLOCK_BYTES;
/// Blocks that are written in any order among each other: 4 GiB. All their map pages are changed in memory at once.
const WINDOW_BLOCKS: u64 = 1 << 20;
/// Map pages in memory: enough that a window makes one checkpoint necessary, and not one for each of its pages.
const MAP_CACHE_PAGES: usize = 32 << 10;
/// Requests in flight.
const DEPTH: usize = 512;
/// Turns without any progress after which something must be wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to do with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// It is written.
    Kept,
    /// It is left out: the file stays sparse there.
    LeftOut,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filled {
    /// Blocks written.
    pub blocks: u64,
    /// Bytes that reached the file.
    pub written_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Writes every block of every volume of the pool in this file, which no daemon has open and which was closed in peace. Each
/// shard has a thread.
///
/// # Errors
/// The file holds no pool, or cannot be written.
pub fn map_everything(path: &Path, data: Data) -> Result<Filled, Failure> {
    let begun = Instant::now();
    let file = Arc::new(OpenOptions::new().read(true).write(true).open(path)?);
    let mut label = vec![0; BLOCK];
    file.read_exact_at(&mut label, 0)?;
    let label = PoolLabel::parse(&label).map_err(|damage| format!("{}: {damage}", path.display()))?;
    let layout = Layout::of(&label).map_err(|damage| format!("{}: {damage}", path.display()))?;
    let threads: Vec<_> = (0..layout.shard_count)
        .map(|shard| {
            let (layout, file) = (layout.clone(), Arc::clone(&file));
            thread::spawn(move || Filler::open(&layout, ShardIndex(shard), file, data)?.run())
        })
        .collect();
    let mut filled = Filled::default();
    for thread in threads {
        let shard = thread.join().map_err(|_| "a shard panicked")??;
        filled.blocks += shard.blocks;
        filled.written_bytes += shard.written_bytes;
    }
    file.sync_all()?;
    filled.took = begun.elapsed();
    Ok(filled)
}

/// One shard at work.
struct Filler {
    shard: ShardIndex,
    processor: Processor<MetadataDevice, MemoryTail>,
    buffers: RecycledBuffers,
    outbox: Outbox,
    begun: Instant,
    random: u64,
    blocks: u64,
}

impl Filler {
    fn open(layout: &Layout, shard: ShardIndex, file: Arc<File>, data: Data) -> Result<Self, Failure> {
        let begun = Instant::now();
        let mut device = MetadataDevice::new(file, data);
        let options = ShardOptions {
            map_cache_pages: MAP_CACHE_PAGES,
            ..ShardOptions::default()
        };
        let tail = MemoryTail::default();
        let opened = Shard::open(layout, shard, &mut device, tail, options, now(begun));
        let (opened, _) = opened.map_err(|error| format!("shard {}: {error}", shard.0))?;
        Ok(Self {
            shard,
            processor: Processor::new(device, vec![opened]),
            buffers: RecycledBuffers::default(),
            outbox: Outbox::default(),
            begun,
            random: 0x9E37_79B9_7F4A_7C15 + u64::from(shard.0),
            blocks: 0,
        })
    }

    fn run(mut self) -> Result<Filled, Failure> {
        let shares = self.processor.shards()[0].shares();
        let shares: Vec<(VolumeId, u64)> = shares.map(|share| (share.id, share.share_blocks)).collect();
        for (volume, share_blocks) in shares {
            for first in (0..share_blocks).step_by(WINDOW_BLOCKS as usize) {
                self.write_window(volume, first, WINDOW_BLOCKS.min(share_blocks - first))?;
            }
        }
        self.close()?;
        let written_bytes = self.processor.device_mut().finish()?;
        Ok(Filled {
            blocks: self.blocks,
            written_bytes,
            took: self.begun.elapsed(),
        })
    }

    /// Writes these blocks, each once, in a random order.
    fn write_window(&mut self, volume: VolumeId, first: u64, count: u64) -> Result<(), Failure> {
        let mut order: Vec<u64> = (first..first + count).collect();
        for last in (1..order.len()).rev() {
            let other = self.random() % (last as u64 + 1);
            order.swap(last, other as usize);
        }
        for blocks in order.chunks(DEPTH) {
            for &block in blocks {
                self.send(volume, block);
            }
            self.wait_for(blocks.len())?;
        }
        Ok(())
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn send(&mut self, volume: VolumeId, block: u64) {
        let mut buffer = self.buffers.take(BLOCK).expect("there are always more");
        buffer.bytes_mut()[..8].copy_from_slice(&(block + 1).to_le_bytes());
        let now = now(self.begun);
        let request = ShardRequest {
            token: Token(block),
            shard: self.shard,
            view: View {
                volume,
                snapshot: None,
            },
            kind: RequestKind::Write { fua: false },
            first: ShareBlock(block),
            blocks: 1,
            skip_bytes: 0,
            length_bytes: BLOCK as u32,
            buffer: Some(buffer),
            since_ns: now.monotonic_ns,
        };
        let taken = self.processor.submit(request, now);
        assert!(taken.is_ok(), "fewer are in flight than may be");
    }

    fn turn(&mut self) -> bool {
        let now = now(self.begun);
        self.processor.poll(now, &mut self.buffers, &mut self.outbox)
    }

    fn wait_for(&mut self, answers: usize) -> Result<(), Failure> {
        let begun = Instant::now();
        while self.outbox.answers.len() < answers {
            if !self.turn() && begun.elapsed() > PATIENCE {
                return Err(format!("shard {} is stuck", self.shard.0).into());
            }
        }
        for answer in self.outbox.answers.drain(..) {
            answer
                .result
                .map_err(|error| format!("block {}: {error}", answer.token.0))?;
            self.buffers.give(answer.buffer.expect("a write has a buffer"));
            self.blocks += 1;
        }
        self.outbox.events.clear();
        Ok(())
    }

    /// A checkpoint, and everything that comes after it: as when a pool is closed.
    fn close(&mut self) -> Result<(), Failure> {
        let now = now(self.begun);
        self.processor
            .command(self.shard, Ticket(1), ShardCommand::Checkpoint, now);
        let begun = Instant::now();
        let mut done = false;
        while !done || !self.processor.is_quiet() {
            self.turn();
            for event in self.outbox.events.drain(..) {
                match event.kind {
                    EventKind::Done => done = true,
                    EventKind::Failed(error) => return Err(format!("checkpoint: {error}").into()),
                    _ => {}
                }
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("shard {} does not come to rest", self.shard.0).into());
            }
        }
        Ok(())
    }
}

fn now(begun: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        monotonic_ns: 1 + begun.elapsed().as_nanos() as u64,
        wall_ns: wall.as_nanos() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_processor::format::{PoolSpec, make_pool};

    /// A pool of two shards in a file, with an empty volume of 32 MiB in each.
    fn pool(path: &Path) -> Layout {
        let blocks = (256 << 20) / BLOCK as u64;
        let file = File::create_new(path).expect("a file");
        file.set_len(blocks * BLOCK as u64).expect("a size");
        let file = Arc::new(
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .expect("opens"),
        );
        let mut device = MetadataDevice::new(Arc::clone(&file), Data::Kept);
        let spec = PoolSpec {
            pool: [9; 16],
            name: "mapped".into(),
            shard_count: 2,
            created_ns: 1,
            devices: vec![([1; 16], blocks)],
            second_sides: Vec::new(),
        };
        let layout = make_pool(&mut device, &spec).expect("a pool");
        for shard in 0..2 {
            let filler = Filler::open(&layout, ShardIndex(shard), Arc::clone(&file), Data::Kept);
            let mut filler = filler.expect("opens");
            let command = ShardCommand::CreateVolume {
                volume: VolumeId(1),
                share_blocks: (32 << 20) / BLOCK as u64,
            };
            let now = now(filler.begun);
            filler.processor.command(filler.shard, Ticket(7), command, now);
            filler.close().expect("closed");
        }
        layout
    }

    #[test]
    fn everything_is_mapped_and_only_metadata_is_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pool.img");
        let layout = pool(&path);
        let filled = map_everything(&path, Data::LeftOut).expect("filled");
        assert_eq!(filled.blocks, 2 * (32 << 20) / BLOCK as u64);
        assert!(filled.written_bytes < 8 << 20, "{}", filled.written_bytes);
        let file = Arc::new(File::open(&path).expect("opens"));
        let filler = Filler::open(&layout, ShardIndex(1), file, Data::LeftOut).expect("opens again");
        let share = filler.processor.shards()[0].shares().next().expect("a share");
        assert_eq!(share.stats.mapped_blocks, share.share_blocks);
    }
}
