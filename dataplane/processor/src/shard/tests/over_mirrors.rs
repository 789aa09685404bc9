//! A shard over the mirrors themselves: whatever each side lacks, by rot or because it cannot be read, as long as the other
//! has it.

use std::collections::{BTreeSet, VecDeque};

use super::check::pattern;
use super::rig::{BLOCK, LIVE, MemoryDevice, Pool, VOLUME, options, request};
use super::two_sides::made;
use crate::command::{EventKind, ScrubState};
use crate::ids::{Now, ShardIndex};
use crate::mirror::{Mirrors, SideState};
use crate::outbox::Outbox;
use crate::ports::{BlockDevice, DeviceError, Full, MemoryTail, Operation, OperationKind};
use crate::processor::Processor;
use crate::request::RequestKind;
use crate::{Shard, ShardCommand, Ticket};

const BLOCKS: usize = 24;

/// The devices of two sides; operations are done when they are asked for.
#[derive(Debug)]
struct Disks {
    bytes: [Vec<u8>; 2],
    unreadable: [BTreeSet<u64>; 2],
    done: VecDeque<Box<Operation>>,
}

impl BlockDevice for Disks {
    fn submit(&mut self, mut operation: Box<Operation>) -> Result<(), Full> {
        for number in 0..operation.transfers.len() {
            let transfer = operation.transfers[number];
            let side = usize::from(transfer.device.0);
            let first = transfer.offset_bytes / BLOCK as u64;
            let blocks = first..first + transfer.length_bytes / BLOCK as u64;
            if operation.kind == OperationKind::Read
                && self.unreadable[side].iter().any(|block| blocks.contains(block))
            {
                operation.fail(number as u32, DeviceError::Os(5));
                continue;
            }
            let mut at = transfer.offset_bytes as usize;
            let first = transfer.first_segment as usize;
            for segment in &operation.segments[first..first + transfer.segment_count as usize] {
                let (from, length) = (segment.offset_bytes as usize, segment.length_bytes as usize);
                let memory = &mut operation.buffers[segment.buffer as usize].bytes_mut()[from..from + length];
                let device = &mut self.bytes[side][at..at + length];
                match operation.kind {
                    OperationKind::Read => memory.copy_from_slice(device),
                    _ => device.copy_from_slice(memory),
                }
                at += length;
            }
            if operation.kind == OperationKind::Write {
                self.unreadable[side].retain(|block| !blocks.contains(block));
            }
        }
        self.done.push_back(operation);
        Ok(())
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        completed.extend(self.done.drain(..));
    }
}

struct Stack {
    processor: Processor<Mirrors<Disks>, MemoryTail>,
    pool: Pool,
    outbox: Outbox,
    now: Now,
}

impl Stack {
    /// A volume with [`BLOCKS`] blocks, in a pool that is on both sides.
    fn new() -> Self {
        let (layout, bytes) = made();
        let now = Now {
            monotonic_ns: 1,
            wall_ns: 1_000,
        };
        let mut device = MemoryDevice {
            bytes,
            ..MemoryDevice::default()
        };
        let index = ShardIndex(0);
        let (shard, _) =
            Shard::open(&layout, index, &mut device, MemoryTail::default(), options(), now).expect("opens");
        let disks = Disks {
            bytes: [device.bytes.clone(), device.bytes],
            unreadable: [BTreeSet::new(), BTreeSet::new()],
            done: VecDeque::new(),
        };
        let states = [[SideState::InSync; 2]];
        let mirrors = Mirrors::new(disks, &layout, &states, &[index], Vec::new());
        let mut stack = Self {
            processor: Processor::new(mirrors, vec![shard]),
            pool: Pool::default(),
            outbox: Outbox::default(),
            now,
        };
        let create = ShardCommand::CreateVolume {
            volume: VOLUME,
            share_blocks: 1 << 16,
        };
        stack.command(create);
        for block in 0..BLOCKS {
            let kind = RequestKind::Write { fua: false };
            let write = request(LIVE, kind, block * BLOCK, BLOCK, Some(&content(block)));
            stack.processor.submit(write, stack.now).expect("room");
            assert_eq!(stack.answer().0, Ok(()));
        }
        stack.command(ShardCommand::Checkpoint);
        let disks = stack.disks();
        assert!(disks.bytes[0] == disks.bytes[1], "written to both");
        stack
    }

    fn disks(&mut self) -> &mut Disks {
        self.processor.device_mut().inner_mut()
    }

    fn turn(&mut self) {
        self.now.monotonic_ns += 1_000;
        self.now.wall_ns += 1_000;
        self.processor.device_mut().turn(self.now, &mut self.pool);
        self.processor.poll(self.now, &mut self.pool, &mut self.outbox);
    }

    fn command(&mut self, command: ShardCommand) {
        self.processor
            .command(ShardIndex(0), Ticket(1), command, self.now);
        for _ in 0..10_000 {
            self.turn();
            let mut events = self.outbox.events.drain(..);
            if let Some(event) = events.find(|event| event.ticket.is_some()) {
                assert_eq!(event.kind, EventKind::Done);
                return;
            }
        }
        panic!("no event");
    }

    fn answer(&mut self) -> (Result<(), crate::RequestError>, Vec<u8>) {
        for _ in 0..10_000 {
            self.turn();
            if let Some(answer) = self.outbox.answers.pop() {
                return (answer.result, answer.buffer.expect("a buffer").bytes().to_vec());
            }
        }
        panic!("no answer");
    }

    fn read(&mut self, first: usize, blocks: usize) {
        let read = request(LIVE, RequestKind::Read, first * BLOCK, blocks * BLOCK, None);
        self.processor.submit(read, self.now).expect("room");
        let (result, bytes) = self.answer();
        assert_eq!(result, Ok(()), "blocks {first} to {}", first + blocks);
        let wanted: Vec<u8> = (first..first + blocks).flat_map(content).collect();
        assert!(bytes == wanted, "blocks {first} to {}", first + blocks);
    }

    /// Until nothing more happens.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.turn();
            let status = self.processor.shards()[0].status();
            let is_quiet = self.processor.is_quiet() && self.processor.device().is_quiet();
            if is_quiet && status.scrub.state != ScrubState::Running {
                return;
            }
        }
        panic!("never quiet: {:?}", self.processor.shards()[0].status());
    }
}

fn content(block: usize) -> Vec<u8> {
    let mut bytes = pattern(5);
    bytes[..8].copy_from_slice(&((block as u64) << 32 | 0xBEE).to_le_bytes());
    bytes
}

/// Numbers that look like chance.
fn next(seed: &mut u64) -> usize {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize
}

#[test]
fn what_one_side_has_whole_is_answered_and_comes_to_the_other() {
    let mut stack = Stack::new();
    let places: Vec<usize> = {
        let bytes = &stack.disks().bytes[0];
        let find = |block| {
            let wanted = content(block);
            let mut blocks = bytes.chunks_exact(BLOCK);
            blocks.position(|found| found == wanted).expect("written")
        };
        (0..BLOCKS).map(find).collect()
    };
    for round in 0..300 {
        let mut seed = round;
        for &place in &places {
            // Each block is whole on one side at least.
            let side = next(&mut seed) % 2;
            match next(&mut seed) % 6 {
                0 => stack.disks().bytes[side][place * BLOCK + 77] ^= 1,
                1 => drop(stack.disks().unreadable[side].insert(place as u64)),
                _ => {}
            }
        }
        for _ in 0..next(&mut seed) % 4 {
            let first = next(&mut seed) % BLOCKS;
            let blocks = 1 + next(&mut seed) % (BLOCKS - first);
            stack.read(first, blocks);
        }
        stack.settle();
        stack.command(ShardCommand::Scrub {
            rate_bytes_per_s: u64::MAX,
        });
        stack.settle();
        let status = stack.processor.shards()[0].status();
        assert_eq!(
            (status.scrub.state, status.scrub.damaged_blocks),
            (ScrubState::Done, 0)
        );
        assert_eq!((status.corrupt_blocks, status.repair_failures), (0, 0));
        let disks = stack.disks();
        assert!(disks.unreadable.iter().all(BTreeSet::is_empty), "round {round}");
        assert!(disks.bytes[0] == disks.bytes[1], "round {round}");
        stack.read(0, BLOCKS);
    }
}
