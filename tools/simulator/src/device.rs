//! Simulated devices: a medium, a write cache that forgets at a power cut, and operations that take time.
//!
//! | moment | what a device keeps |
//! |---|---|
//! | a write is in flight | any of its 512-byte sectors may be there, or none |
//! | a write has completed | reads see it; a power cut may lose, keep or tear it, each on its own |
//! | a flush sent after that has completed, or it was a durable write | it is there for good |
//! | it is lost | nothing is done any more; what was not flushed meets a fate of its own by the time it is back |
//! | the process is killed | completed writes stay (in the cache); those in flight are kept, lost or torn |
//!
//! All processors and the synchronous calls of opening share one [`Devices`]; it knows the time from
//! whoever drives the simulation.

mod disk;
mod open;
#[cfg(test)]
mod tests;

pub(crate) use disk::each_page;
use disk::each_page_of;
pub use disk::{CrashFate, Disk};
pub use open::OpenPort;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::rc::Rc;

use stillpoint_processor::BLOCK_BYTES;
use stillpoint_processor::ports::{BlockDevice, DeviceError, Full, Operation, OperationKind};

use crate::random::Random;

/// How the devices of one run behave.
#[derive(Clone, Copy, Debug)]
pub struct DeviceHabits {
    /// Operations that one processor may have in flight.
    pub queue_depth: usize,
    /// The shortest time that a read or a write takes.
    pub latency_ns: u64,
    /// The shortest time that a flush takes.
    pub flush_ns: u64,
    /// They make single writes durable for less than a flush costs.
    pub durable_writes: bool,
    /// Out of ten thousand reads, how many fail.
    pub read_errors: u64,
    /// Out of ten thousand writes and flushes, how many fail.
    pub write_errors: u64,
}

impl Default for DeviceHabits {
    fn default() -> Self {
        Self {
            queue_depth: 64,
            latency_ns: 10_000,
            flush_ns: 30_000,
            durable_writes: false,
            read_errors: 0,
            write_errors: 0,
        }
    }
}

/// What the devices were asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
    /// Flush operations.
    pub flushes: u64,
    /// Of the write operations, durable ones.
    pub durable_writes: u64,
    /// Discard operations.
    pub discards: u64,
    /// Operations turned away because the queue was full.
    pub full: u64,
    /// Operations that were made to fail.
    pub failed: u64,
}

struct InFlight {
    operation: Box<Operation>,
    port: usize,
    /// Per transfer, the life of its device in which it was sent.
    lives: Vec<u32>,
    /// For a flush: per transfer, the writes that it covers.
    covered: Vec<u64>,
}

/// How a device is while it is there, or is not.
#[derive(Clone, Copy, Default)]
struct Presence {
    /// Losses and returns so far: what was sent in one life does nothing in the next.
    life: u32,
    /// Lost, and operations take so much longer to fail.
    lost: Option<u64>,
}

struct Room {
    disks: Vec<Disk>,
    presence: Vec<Presence>,
    /// Of an operation that fails, one transfer fails and not all.
    fails_in_parts: bool,
    habits: DeviceHabits,
    random: Random,
    now_ns: u64,
    next_number: u64,
    /// By the time they complete, then by number.
    in_flight: BTreeMap<(u64, u64), InFlight>,
    /// Per port: what has completed and was not polled yet.
    completed: Vec<VecDeque<Box<Operation>>>,
    /// Per port: operations in flight.
    depth: Vec<usize>,
    counts: DeviceCounts,
}

/// The devices of a pool, shared by all who use them in one simulation.
#[derive(Clone)]
pub struct Devices {
    room: Rc<RefCell<Room>>,
}

/// The devices as one processor sees them.
pub struct Port {
    room: Rc<RefCell<Room>>,
    index: usize,
}

impl Devices {
    /// Blank devices of these sizes.
    #[must_use]
    pub fn new(sizes_blocks: &[u64], habits: DeviceHabits, random: Random) -> Self {
        let room = Room {
            disks: sizes_blocks.iter().map(|&size| Disk::new(size)).collect(),
            presence: vec![Presence::default(); sizes_blocks.len()],
            fails_in_parts: false,
            habits,
            random,
            now_ns: 0,
            next_number: 0,
            in_flight: BTreeMap::new(),
            completed: Vec::new(),
            depth: Vec::new(),
            counts: DeviceCounts::default(),
        };
        Self {
            room: Rc::new(RefCell::new(room)),
        }
    }

    /// From now on an operation that fails does so for one of its transfers, which it names.
    pub fn fail_in_parts(&self) {
        self.room.borrow_mut().fails_in_parts = true;
    }

    /// A device is lost: what it is asked fails, after `hang_ns` more than it takes otherwise.
    pub fn lose(&self, device: usize, hang_ns: u64) {
        let mut guard = self.room.borrow_mut();
        let room = &mut *guard;
        let presence = &mut room.presence[device];
        presence.life += 1;
        presence.lost = Some(hang_ns);
        let touches = |entry: &InFlight| {
            let mut transfers = entry.operation.transfers.iter();
            transfers.any(|transfer| usize::from(transfer.device.0) == device)
        };
        for ((due_ns, number), entry) in std::mem::take(&mut room.in_flight) {
            let later_ns = if touches(&entry) { hang_ns } else { 0 };
            room.in_flight.insert((due_ns + later_ns, number), entry);
        }
    }

    /// Whether a device is lost.
    #[must_use]
    pub fn is_lost(&self, device: usize) -> bool {
        self.room.borrow().presence[device].lost.is_some()
    }

    /// A lost device is there again; what it had not flushed meets this fate. Or a blank one takes its place.
    pub fn bring_back(&self, device: usize, fate: Option<CrashFate>) {
        let mut guard = self.room.borrow_mut();
        let room = &mut *guard;
        room.presence[device].life += 1;
        room.presence[device].lost = None;
        match fate {
            Some(fate) => room.disks[device].crash(true, fate, Vec::new(), &mut room.random),
            None => room.disks[device] = Disk::new(room.disks[device].size_blocks()),
        }
    }

    /// A port for one more processor.
    #[must_use]
    pub fn port(&self) -> Port {
        let mut room = self.room.borrow_mut();
        room.completed.push(VecDeque::new());
        room.depth.push(0);
        Port {
            room: Rc::clone(&self.room),
            index: room.depth.len() - 1,
        }
    }

    /// A port for making or opening the pool; it fails after `calls` calls, if given.
    #[must_use]
    pub fn open_port(&self, calls: Option<u64>) -> OpenPort {
        OpenPort::new(self.clone(), calls)
    }

    /// When the next operation completes.
    #[must_use]
    pub fn next_completion_ns(&self) -> Option<u64> {
        self.room.borrow().in_flight.keys().next().map(|key| key.0)
    }

    /// Moves the time on and completes what is due; gives the ports that have something to poll.
    pub fn advance(&self, now_ns: u64) -> Vec<usize> {
        let mut room = self.room.borrow_mut();
        assert!(now_ns >= room.now_ns, "time does not go back");
        room.now_ns = now_ns;
        let mut ports = Vec::new();
        while let Some(entry) = room.in_flight.first_entry() {
            if entry.key().0 > now_ns {
                break;
            }
            let done = entry.remove();
            ports.push(done.port);
            room.complete(done);
        }
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Operations that a port has in flight.
    #[must_use]
    pub fn in_flight(&self, port: usize) -> usize {
        self.room.borrow().depth[port]
    }

    /// Looks at operation `nth` of those that a port has in flight, in the order in which they are due.
    pub fn look_at_nth<R>(&self, port: usize, nth: usize, look: impl FnOnce(&Operation) -> R) -> Option<R> {
        let room = self.room.borrow();
        let mut of_port = room.in_flight.values().filter(|entry| entry.port == port);
        of_port.nth(nth).map(|entry| look(&entry.operation))
    }

    /// Completes operation `nth` of those that a port has in flight, whenever it is due: for a simulation that picks
    /// what happens next.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn complete_nth(&self, port: usize, nth: usize) {
        let mut room = self.room.borrow_mut();
        let mut of_port = room.in_flight.iter().filter(|(_, entry)| entry.port == port);
        let key = of_port
            .nth(nth)
            .map(|(key, _)| *key)
            .expect("so many are in flight");
        let done = room.in_flight.remove(&key).expect("it was found");
        room.complete(done);
    }

    /// Sets how the devices behave from now on.
    pub fn set_habits(&self, habits: DeviceHabits) {
        self.room.borrow_mut().habits = habits;
    }

    /// Ends all use of the devices: the ports are gone, and what was in flight meets its fate. The content
    /// is what a kill of the process (`power_cut` false) or a power cut leaves.
    pub fn crash(&self, power_cut: bool, fate: CrashFate) {
        let mut guard = self.room.borrow_mut();
        let room = &mut *guard;
        let in_flight = std::mem::take(&mut room.in_flight);
        let mut pages: Vec<Vec<(u64, disk::Page)>> = vec![Vec::new(); room.disks.len()];
        for InFlight { operation, .. } in in_flight.into_values() {
            if operation.kind == OperationKind::Write {
                each_page(&operation, |device, block, page| {
                    if room.presence[device].lost.is_none() {
                        pages[device].push((block, page));
                    }
                });
            }
        }
        for (disk, pages) in room.disks.iter_mut().zip(pages) {
            disk.crash(power_cut, fate, pages, &mut room.random);
        }
        room.completed.clear();
        room.depth.clear();
    }

    /// Devices of their own that hold what [`Self::crash`] would leave of these, which go on.
    #[must_use]
    pub fn after_a_crash(&self, power_cut: bool, fate: CrashFate) -> Self {
        let room = self.room.borrow();
        let mut disks = room.disks.clone();
        let mut pages: Vec<Vec<(u64, disk::Page)>> = vec![Vec::new(); disks.len()];
        for InFlight { operation, .. } in room.in_flight.values() {
            if operation.kind == OperationKind::Write {
                each_page(operation, |device, block, page| pages[device].push((block, page)));
            }
        }
        let mut random = room.random.clone();
        for (disk, pages) in disks.iter_mut().zip(pages) {
            disk.crash(power_cut, fate, pages, &mut random);
        }
        let after = Room {
            disks,
            presence: room.presence.clone(),
            fails_in_parts: room.fails_in_parts,
            habits: room.habits,
            random,
            now_ns: room.now_ns,
            next_number: room.next_number,
            in_flight: BTreeMap::new(),
            completed: Vec::new(),
            depth: Vec::new(),
            counts: room.counts,
        };
        Self {
            room: Rc::new(RefCell::new(after)),
        }
    }

    /// What reads see, block by block, in short.
    pub fn hash_content(&self, hasher: &mut impl Hasher) {
        for disk in &self.room.borrow().disks {
            disk.hash_content(hasher);
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> DeviceCounts {
        self.room.borrow().counts
    }

    /// Makes everything written to a device durable.
    pub fn flush(&self, device: usize) {
        let disk = &mut self.room.borrow_mut().disks[device];
        disk.flush(disk.writes());
    }

    /// Reads a block as it is now, without any operation: for checkers.
    pub fn peek(&self, device: usize, block: u64, into: &mut [u8]) {
        self.room.borrow().disks[device].read(block, into);
    }

    /// Damages a block for good, behind everyone's back: for the test that damage is noticed.
    pub fn corrupt(&self, device: usize, block: u64, byte: usize, flip: u8) {
        self.room.borrow_mut().disks[device].corrupt(block, byte, flip);
    }

    fn with_room<R>(&self, use_it: impl FnOnce(&mut Room) -> R) -> R {
        use_it(&mut self.room.borrow_mut())
    }
}

impl Room {
    fn complete(&mut self, done: InFlight) {
        let InFlight {
            mut operation,
            port,
            lives,
            covered,
        } = done;
        let errors = match operation.kind {
            OperationKind::Read => self.habits.read_errors,
            OperationKind::Write | OperationKind::Flush => self.habits.write_errors,
            OperationKind::Discard | OperationKind::WriteZeroes => 0,
        };
        let failed = errors > 0 && self.random.below(10_000) < errors;
        operation.result = Ok(());
        operation.failures.clear();
        if failed && self.fails_in_parts {
            let transfer = self.random.below(operation.transfers.len() as u64) as u32;
            operation.fail(transfer, DeviceError::Os(5));
        } else if failed {
            operation.result = Err(DeviceError::Os(5));
        }
        self.counts.failed += u64::from(failed);
        for (index, life) in (0..).zip(lives) {
            let presence = self.presence[usize::from(operation.transfers[index].device.0)];
            if presence.lost.is_some() || presence.life != life {
                operation.fail(index as u32, DeviceError::Gone);
            }
        }
        for index in 0..operation.transfers.len() {
            self.transfer(&mut operation, index, &covered);
        }
        self.depth[port] -= 1;
        self.completed[port].push_back(operation);
    }

    /// Does one transfer of an operation, or what is done of one that fails.
    fn transfer(&mut self, operation: &mut Operation, index: usize, covered: &[u64]) {
        let all_fail = operation.result.is_err() && operation.failures.is_empty();
        let named = operation
            .failures
            .iter()
            .find(|(failed, _)| *failed as usize == index);
        let failed = all_fail || named.is_some();
        if matches!(named, Some((_, DeviceError::Gone))) {
            return;
        }
        let transfer = operation.transfers[index];
        let device = usize::from(transfer.device.0);
        match operation.kind {
            OperationKind::Read if !failed => self.read(operation, index),
            OperationKind::Write => self.write(operation, index, failed),
            OperationKind::Flush if !failed => self.disks[device].flush(covered[index]),
            OperationKind::Read | OperationKind::Flush => {}
            OperationKind::WriteZeroes => unreachable!("none was taken"),
            OperationKind::Discard => {
                let first = transfer.offset_bytes / BLOCK_BYTES as u64;
                let count = transfer.length_bytes / BLOCK_BYTES as u64;
                for block in first..first + count {
                    // Advice that a device may follow, or not.
                    if self.random.percent(50) {
                        self.disks[device].write(block, disk::zero_page());
                    }
                }
            }
        }
    }

    fn read(&mut self, operation: &mut Operation, index: usize) {
        let Operation {
            transfers,
            segments,
            buffers,
            ..
        } = operation;
        let transfer = &transfers[index];
        let disk = &self.disks[usize::from(transfer.device.0)];
        let mut block = transfer.offset_bytes / BLOCK_BYTES as u64;
        let first = transfer.first_segment as usize;
        for segment in &segments[first..first + transfer.segment_count as usize] {
            let start = segment.offset_bytes as usize;
            let bytes = &mut buffers[segment.buffer as usize].bytes_mut()
                [start..start + segment.length_bytes as usize];
            for chunk in bytes.chunks_exact_mut(BLOCK_BYTES) {
                disk.read(block, chunk);
                block += 1;
            }
        }
    }

    fn write(&mut self, operation: &Operation, index: usize, failed: bool) {
        let Self { disks, random, .. } = self;
        each_page_of(operation, index, |device, block, page| {
            // A failed write may have done some of its work.
            if !failed && operation.durable {
                disks[device].write_durably(block, page);
            } else if !failed || random.percent(30) {
                disks[device].write(block, page);
            }
        });
    }
}

impl BlockDevice for Port {
    fn submit(&mut self, operation: Box<Operation>) -> Result<(), Full> {
        let mut guard = self.room.borrow_mut();
        let room = &mut *guard;
        check(&operation, &room.disks);
        if room.depth[self.index] >= room.habits.queue_depth {
            room.counts.full += 1;
            return Err(Full(operation));
        }
        let (count, shortest_ns) = match operation.kind {
            OperationKind::Read => (&mut room.counts.reads, room.habits.latency_ns),
            OperationKind::Write => (&mut room.counts.writes, room.habits.latency_ns),
            OperationKind::Flush => (&mut room.counts.flushes, room.habits.flush_ns),
            OperationKind::Discard => (&mut room.counts.discards, room.habits.latency_ns),
            OperationKind::WriteZeroes => unreachable!("shards ask for no zeros"),
        };
        *count += 1;
        room.counts.durable_writes += u64::from(operation.durable);
        let covered = match operation.kind {
            OperationKind::Flush => operation
                .transfers
                .iter()
                .map(|transfer| room.disks[usize::from(transfer.device.0)].writes())
                .collect(),
            _ => Vec::new(),
        };
        let presences = operation
            .transfers
            .iter()
            .map(|transfer| room.presence[usize::from(transfer.device.0)]);
        let lives = presences.clone().map(|presence| presence.life).collect();
        let hang_ns = presences.filter_map(|presence| presence.lost).max().unwrap_or(0);
        let due_ns = room.now_ns + room.random.latency_ns(shortest_ns) + hang_ns;
        room.next_number += 1;
        room.depth[self.index] += 1;
        let entry = InFlight {
            operation,
            port: self.index,
            lives,
            covered,
        };
        room.in_flight.insert((due_ns, room.next_number), entry);
        Ok(())
    }

    fn writes_durably(&self) -> bool {
        self.room.borrow().habits.durable_writes
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        completed.extend(self.room.borrow_mut().completed[self.index].drain(..));
    }
}

/// The contract of [`Operation`], asserted.
fn check(operation: &Operation, disks: &[Disk]) {
    let block_bytes = BLOCK_BYTES as u64;
    assert!(!operation.transfers.is_empty(), "an operation on nothing");
    for transfer in &operation.transfers {
        let disk = &disks[usize::from(transfer.device.0)];
        if operation.kind == OperationKind::Flush {
            continue;
        }
        assert!(transfer.length_bytes > 0, "an empty transfer");
        assert_eq!(
            transfer.offset_bytes % block_bytes,
            0,
            "transfers are whole blocks"
        );
        assert_eq!(
            transfer.length_bytes % block_bytes,
            0,
            "transfers are whole blocks"
        );
        let end = transfer.offset_bytes + transfer.length_bytes;
        assert!(
            end <= disk.size_blocks() * block_bytes,
            "a transfer beyond the device"
        );
        if operation.kind == OperationKind::Discard {
            continue;
        }
        let first = transfer.first_segment as usize;
        let segments = &operation.segments[first..first + transfer.segment_count as usize];
        let total: u64 = segments.iter().map(|s| u64::from(s.length_bytes)).sum();
        assert_eq!(total, transfer.length_bytes, "segments add up to their transfer");
        for segment in segments {
            assert_eq!(
                segment.offset_bytes as usize % BLOCK_BYTES,
                0,
                "segments are whole blocks"
            );
            assert_eq!(
                segment.length_bytes as usize % BLOCK_BYTES,
                0,
                "segments are whole blocks"
            );
            let capacity = operation.buffers[segment.buffer as usize].capacity() as u64;
            let end = u64::from(segment.offset_bytes) + u64::from(segment.length_bytes);
            assert!(end <= capacity, "a segment beyond its buffer");
        }
    }
}
