//! The devices of a script: content in shared pages, so that a crash can be tried a thousand times from one place
//! without copying anything but what the crash changes.
//!
//! | layer | holds | at a power cut |
//! |---|---|---|
//! | `base`, `settled` | what flushes made durable | stays |
//! | `pending` | completed block writes that no flush covered, in order | each on its own: lost, kept, torn |
//! | `in_flight` | operations that have not ended | their block writes likewise |

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use stillpoint_processor::ports::{
    BlockDevice, DeviceError, Full, OpenDevice, Operation, OperationKind, Transferred,
};
use stillpoint_processor::{BLOCK_BYTES, DeviceIndex};

use crate::device::each_page;
use crate::faults::Fault;

/// The content of a block.
pub(crate) type Page = Rc<[u8; BLOCK_BYTES]>;
/// A block of all devices laid end to end.
pub(crate) type Place = u32;
/// Content of all devices; `None` was never written and reads as zeros.
pub(crate) type Content = Rc<Vec<Option<Page>>>;

/// Places settled beside the base before they are brought together.
const SETTLED_MAX: usize = 64;

/// A block write.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// In the order of completion.
    pub(crate) number: u64,
    pub(crate) place: Place,
    pub(crate) page: Page,
}

#[derive(Debug)]
struct InFlight {
    operation: Box<Operation>,
    /// For a flush: it covers the block writes below this number.
    covers: u64,
}

/// What the devices hold, at some moment.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) starts: Rc<Vec<Place>>,
    pub(crate) base: Content,
    pub(crate) settled: BTreeMap<Place, Page>,
    pub(crate) pending: Vec<Write>,
    pub(crate) in_flight: Vec<Write>,
    /// They make single writes durable.
    pub(crate) durable_writes: bool,
}

/// The devices.
#[derive(Debug)]
pub(crate) struct Medium {
    image: Image,
    /// Completed and not flushed: the newest of each place.
    cached: BTreeMap<Place, Page>,
    /// Number of the next block write to complete.
    next_number: u64,
    in_flight: Vec<InFlight>,
    completed: VecDeque<Box<Operation>>,
    /// Operations end as they are sent.
    pub(crate) instant: bool,
    /// Calls of opening that work, before the process dies.
    pub(crate) calls_left: Option<u64>,
    /// Writing and flushing calls of opening so far.
    pub(crate) open_calls: u64,
    /// Flushes are answered and do nothing: a device that must be found out.
    pub(crate) flush_lies: bool,
    /// Writes that were made durable alone.
    pub(crate) written_durably: u64,
    /// What goes wrong, and with which operation.
    pub(crate) fault: Option<Fault>,
}

/// The devices as the processor and opening see them.
#[derive(Clone, Debug)]
pub(crate) struct Port(pub(crate) Rc<RefCell<Medium>>);

impl Image {
    /// Blank devices.
    pub(crate) fn blank(sizes_blocks: &[u64]) -> Self {
        let mut starts = vec![0];
        for size in sizes_blocks {
            starts.push(starts[starts.len() - 1] + *size as Place);
        }
        let blocks = starts[starts.len() - 1] as usize;
        Self {
            starts: Rc::new(starts),
            base: Rc::new(vec![None; blocks]),
            settled: BTreeMap::new(),
            pending: Vec::new(),
            in_flight: Vec::new(),
            durable_writes: false,
        }
    }

    /// The same of devices that make single writes durable, or do not.
    pub(crate) fn with_durable_writes(self, durable_writes: bool) -> Self {
        Self {
            durable_writes,
            ..self
        }
    }

    /// Where a block of a device is.
    pub(crate) fn place(&self, device: usize, block: u64) -> Place {
        self.starts[device] + block as Place
    }

    /// Everything that a power cut may take, in the order in which it was written.
    pub(crate) fn at_risk(&self) -> Vec<Write> {
        self.pending.iter().chain(&self.in_flight).cloned().collect()
    }

    /// The durable content alone.
    pub(crate) fn durable(&self) -> Self {
        Self {
            pending: Vec::new(),
            in_flight: Vec::new(),
            ..self.clone()
        }
    }

    /// What is durable in a place.
    pub(crate) fn durable_page(&self, place: Place) -> Option<&Page> {
        self.settled
            .get(&place)
            .or_else(|| self.base[place as usize].as_ref())
    }

    /// What a read of a place sees once all that is at risk has been kept.
    pub(crate) fn newest_page(&self, place: Place) -> Option<&Page> {
        let newest = self.pending.iter().rev().find(|write| write.place == place);
        newest
            .map(|write| &write.page)
            .or_else(|| self.durable_page(place))
    }

    /// A block write that was completed and not flushed.
    pub(crate) fn push_pending(&mut self, place: Place, page: Page) {
        let number = self.pending.last().map_or(0, |write| write.number + 1);
        self.pending.push(Write { number, place, page });
    }

    /// Puts a page where it is durable.
    pub(crate) fn settle(&mut self, place: Place, page: Page) {
        self.settled.insert(place, page);
    }
}

impl Medium {
    /// Devices that hold this.
    pub(crate) fn new(image: Image) -> Self {
        assert!(image.in_flight.is_empty(), "nobody waits for these");
        let cached = image
            .pending
            .iter()
            .map(|write| (write.place, Rc::clone(&write.page)))
            .collect();
        let next_number = image.pending.last().map_or(0, |write| write.number + 1);
        Self {
            image,
            cached,
            next_number,
            in_flight: Vec::new(),
            completed: VecDeque::new(),
            instant: false,
            calls_left: None,
            open_calls: 0,
            flush_lies: false,
            written_durably: 0,
            fault: None,
        }
    }

    /// What the devices hold now.
    pub(crate) fn image(&self) -> Image {
        let mut image = self.image.clone();
        for InFlight { operation, .. } in &self.in_flight {
            if operation.kind == OperationKind::Write {
                each_page(operation, |device, block, page| {
                    let place = image.place(device, block);
                    let number = u64::MAX;
                    image.in_flight.push(Write { number, place, page });
                });
            }
        }
        image
    }

    /// Where a block of a device is.
    pub(crate) fn place(&self, device: usize, block: u64) -> Place {
        self.image.place(device, block)
    }

    /// Whether there is such a place.
    pub(crate) fn has_place(&self, place: Place) -> bool {
        (place as usize) < self.image.base.len()
    }

    /// Places that were ever written.
    pub(crate) fn used_places(&self) -> Vec<Place> {
        (0..self.image.base.len() as Place)
            .filter(|place| self.seen(*place).is_some())
            .collect()
    }

    /// The device loses half of what it had in its cache.
    pub(crate) fn forget_cache(&mut self, random: &mut crate::random::Random) {
        self.image.pending.retain(|_| random.percent(50));
        self.cached = self
            .image
            .pending
            .iter()
            .map(|write| (write.place, Rc::clone(&write.page)))
            .collect();
    }

    /// What reads of a place see.
    pub(crate) fn seen(&self, place: Place) -> Option<&Page> {
        self.cached.get(&place).or_else(|| self.image.durable_page(place))
    }

    /// Operations in flight that change something: writes and flushes. The others end before any of these.
    pub(crate) fn changes_in_flight(&self) -> Vec<(usize, OperationKind)> {
        let changes = self.in_flight.iter().enumerate();
        changes
            .map(|(index, flight)| (index, flight.operation.kind))
            .filter(|(_, kind)| matches!(kind, OperationKind::Write | OperationKind::Flush))
            .collect()
    }

    /// Ends everything in flight that changes nothing; gives whether there was something.
    pub(crate) fn complete_reads(&mut self) -> bool {
        let (reads, changes): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.in_flight)
                .into_iter()
                .partition(|flight| {
                    matches!(
                        flight.operation.kind,
                        OperationKind::Read | OperationKind::Discard
                    )
                });
        self.in_flight = changes;
        let any = !reads.is_empty();
        reads.into_iter().for_each(|flight| self.end(flight));
        any
    }

    /// Ends one operation.
    pub(crate) fn complete(&mut self, index: usize) {
        let flight = self.in_flight.remove(index);
        self.end(flight);
    }

    fn end(&mut self, flight: InFlight) {
        let InFlight {
            mut operation,
            covers,
        } = flight;
        let fault = self.fault.take();
        let (result, fault) = match fault {
            Some(mut fault) => (fault.strike(self, &mut operation), Some(fault)),
            None => (Ok(true), None),
        };
        self.fault = fault;
        operation.result = result.map(|_| ());
        if result == Ok(true) {
            match operation.kind {
                OperationKind::Read => self.read(&mut operation),
                OperationKind::Write => {
                    self.written_durably += u64::from(operation.durable);
                    each_page(&operation, |device, block, page| {
                        let place = self.image.place(device, block);
                        match operation.durable && !self.flush_lies {
                            true => self.write_durably(place, page),
                            false => self.write(place, page),
                        }
                    });
                }
                OperationKind::Flush => {
                    for transfer in &operation.transfers {
                        self.flush(usize::from(transfer.device.0), covers);
                    }
                }
                OperationKind::Discard => {}
                OperationKind::WriteZeroes => unreachable!("shards ask for no zeros"),
            }
        }
        self.completed.push_back(operation);
    }

    /// Fills the buffers of a read.
    pub(crate) fn read(&self, operation: &mut Operation) {
        for transfer in &operation.transfers {
            let first_block = transfer.offset_bytes / BLOCK_BYTES as u64;
            let mut place = self.image.place(usize::from(transfer.device.0), first_block);
            let first = transfer.first_segment as usize;
            for segment in &operation.segments[first..first + transfer.segment_count as usize] {
                let start = segment.offset_bytes as usize;
                let buffer = operation.buffers[segment.buffer as usize].bytes_mut();
                for chunk in
                    buffer[start..start + segment.length_bytes as usize].chunks_exact_mut(BLOCK_BYTES)
                {
                    self.copy(place, chunk);
                    place += 1;
                }
            }
        }
    }

    fn copy(&self, place: Place, into: &mut [u8]) {
        match self.seen(place) {
            Some(page) => into.copy_from_slice(&page[..]),
            None => into.fill(0),
        }
    }

    /// A completed write of a block.
    pub(crate) fn write(&mut self, place: Place, page: Page) {
        self.cached.insert(place, Rc::clone(&page));
        self.image.pending.push(Write {
            number: self.next_number,
            place,
            page,
        });
        self.next_number += 1;
    }

    /// The same past the cache: what waits there for this place is older.
    fn write_durably(&mut self, place: Place, page: Page) {
        self.image.pending.retain(|write| write.place != place);
        self.cached.remove(&place);
        self.image.settled.insert(place, page);
        self.next_number += 1;
        self.settle_all_if_many();
    }

    fn flush(&mut self, device: usize, covers: u64) {
        if self.flush_lies {
            return;
        }
        let image = &mut self.image;
        let range = image.starts[device]..image.starts[device + 1];
        for write in std::mem::take(&mut image.pending) {
            if write.number >= covers || !range.contains(&write.place) {
                image.pending.push(write);
                continue;
            }
            if self
                .cached
                .get(&write.place)
                .is_some_and(|cached| Rc::ptr_eq(cached, &write.page))
            {
                self.cached.remove(&write.place);
            }
            image.settled.insert(write.place, write.page);
        }
        self.settle_all_if_many();
    }

    fn settle_all_if_many(&mut self) {
        let image = &mut self.image;
        if image.settled.len() > SETTLED_MAX {
            let mut base = (*image.base).clone();
            for (place, page) in std::mem::take(&mut image.settled) {
                base[place as usize] = Some(page);
            }
            image.base = Rc::new(base);
        }
    }
}

impl BlockDevice for Port {
    fn submit(&mut self, operation: Box<Operation>) -> Result<(), Full> {
        let mut medium = self.0.borrow_mut();
        let covers = medium.next_number;
        let flight = InFlight { operation, covers };
        if medium.instant {
            medium.end(flight);
        } else {
            medium.in_flight.push(flight);
        }
        Ok(())
    }

    fn writes_durably(&self) -> bool {
        self.0.borrow().image.durable_writes
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        completed.extend(self.0.borrow_mut().completed.drain(..));
    }
}

impl OpenDevice for Port {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        let mut medium = self.0.borrow_mut();
        for read in reads {
            let first = read.offset_bytes / BLOCK_BYTES as u64;
            read.result = medium.open_read();
            if read.result.is_ok() {
                let place = medium.image.place(usize::from(read.device.0), first);
                for (place, chunk) in (place..).zip(read.bytes.chunks_exact_mut(BLOCK_BYTES)) {
                    medium.copy(place, chunk);
                }
            }
        }
    }

    fn write(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let mut medium = self.0.borrow_mut();
        medium.count_call()?;
        let first = medium
            .image
            .place(usize::from(device.0), offset_bytes / BLOCK_BYTES as u64);
        for (place, chunk) in (first..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            let page: [u8; BLOCK_BYTES] = chunk.try_into().expect("chunks of a block");
            medium.write(place, Rc::new(page));
        }
        Ok(())
    }

    fn flush(&mut self, device: DeviceIndex) -> Result<(), DeviceError> {
        let mut medium = self.0.borrow_mut();
        medium.count_call()?;
        let covers = medium.next_number;
        medium.flush(usize::from(device.0), covers);
        Ok(())
    }
}

impl Medium {
    fn count_call(&mut self) -> Result<(), DeviceError> {
        self.open_calls += 1;
        match &mut self.calls_left {
            None => Ok(()),
            Some(0) => Err(DeviceError::Gone),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn open_read(&mut self) -> Result<(), DeviceError> {
        match &mut self.fault {
            Some(fault) => fault.strike_open_read(),
            None => Ok(()),
        }
    }
}
