//! One thing that a device does wrong, once.

use std::rc::Rc;

use stillpoint_processor::BLOCK_BYTES;
use stillpoint_processor::ports::{DeviceError, Operation, OperationKind};

use super::fields::kind_of;
use crate::boundary::medium::{Medium, Page, Place};
use crate::device::each_page;
use crate::random::Random;

/// errno: input/output error.
const EIO: i32 = 5;
/// errno: no space.
const ENOSPC: i32 = 28;

/// What a device does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A read fails.
    ReadError,
    /// A read brings less than asked for, and says so.
    ShortRead,
    /// A read brings a flipped bit, this time.
    FlippedRead,
    /// A write fails, after some of it.
    WriteError,
    /// A write does its beginning, and says so.
    ShortWrite,
    /// A write finds no space on the device.
    NoSpace,
    /// A flush fails; what it should have made durable stays in the cache.
    FlushError,
    /// A flush fails, and the device forgets what it had in its cache.
    FlushForgets,
    /// A write is answered and never done.
    LostWrite,
    /// A write is done in another place.
    Misdirected,
    /// A block of a write is stored with a flipped bit.
    Rot,
    /// An operation takes seconds.
    Stall,
    /// A read fails while the pool is opened again.
    OpenReadError,
}

/// All kinds, with how they are called in reports.
pub(crate) const KINDS: [(Kind, &str); 13] = [
    (Kind::ReadError, "failed reads"),
    (Kind::ShortRead, "short reads"),
    (Kind::FlippedRead, "reads with a flipped bit"),
    (Kind::WriteError, "failed writes"),
    (Kind::ShortWrite, "short writes"),
    (Kind::NoSpace, "writes without space on the device"),
    (Kind::FlushError, "failed flushes"),
    (Kind::FlushForgets, "failed flushes that forget"),
    (Kind::LostWrite, "lost writes"),
    (Kind::Misdirected, "misdirected writes"),
    (Kind::Rot, "rotten writes"),
    (Kind::Stall, "stalls of seconds"),
    (Kind::OpenReadError, "failed reads while opening"),
];

impl Kind {
    /// Whether nobody is told.
    pub(crate) fn is_silent(self) -> bool {
        matches!(self, Self::LostWrite | Self::Misdirected | Self::Rot)
    }

    /// Which operations it strikes.
    pub(crate) fn strikes_what(self) -> &'static str {
        match self {
            Self::ReadError | Self::ShortRead | Self::FlippedRead => "reads",
            Self::FlushError | Self::FlushForgets => "flushes",
            Self::Stall => "writes and flushes",
            Self::OpenReadError => "nothing",
            _ => "writes",
        }
    }

    fn strikes(self, kind: OperationKind) -> bool {
        match self {
            Self::ReadError | Self::ShortRead | Self::FlippedRead => kind == OperationKind::Read,
            Self::FlushError | Self::FlushForgets => kind == OperationKind::Flush,
            Self::Stall => matches!(kind, OperationKind::Write | OperationKind::Flush),
            Self::OpenReadError => false,
            _ => kind == OperationKind::Write,
        }
    }
}

/// A fault to come, or one that has been.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Operations of the kind that it strikes which go well before.
    after: u64,
    /// So many went well.
    passed: u64,
    random: Random,
    /// It has struck.
    pub(crate) struck: bool,
    /// Time that the operation took.
    pub(crate) stall_ns: u64,
    /// Log pages that a misdirected write has overwritten.
    pub(crate) log_pages_hit: u32,
}

impl Fault {
    /// A fault that strikes after so many operations that it could have struck.
    pub(crate) fn new(kind: Kind, after: u64, random: Random) -> Self {
        Self {
            kind,
            after,
            passed: 0,
            random,
            struck: false,
            stall_ns: 0,
            log_pages_hit: 0,
        }
    }

    /// Operations that it could have struck and did not.
    pub(crate) fn passed(&self) -> u64 {
        self.passed
    }

    /// The time that the operation took which just ended.
    pub(crate) fn take_stall_ns(&mut self) -> u64 {
        std::mem::take(&mut self.stall_ns)
    }

    /// An operation ends: `Ok(true)` as it should, `Ok(false)` if the fault did what was to be done.
    pub(crate) fn strike(
        &mut self,
        medium: &mut Medium,
        operation: &mut Operation,
    ) -> Result<bool, DeviceError> {
        if self.struck || !self.kind.strikes(operation.kind) {
            return Ok(true);
        }
        if self.passed < self.after {
            self.passed += 1;
            return Ok(true);
        }
        self.struck = true;
        match self.kind {
            Kind::ReadError => Err(DeviceError::Os(EIO)),
            Kind::ShortRead => {
                medium.read(operation);
                self.spoil_buffers(operation, true);
                Err(DeviceError::Short)
            }
            Kind::FlippedRead => {
                medium.read(operation);
                self.spoil_buffers(operation, false);
                Ok(false)
            }
            Kind::WriteError => {
                self.write_some(medium, operation, 40);
                Err(DeviceError::Os(EIO))
            }
            Kind::ShortWrite => {
                let blocks = pages_of(operation, medium).len() as u64;
                let done = self.random.below(blocks);
                self.write_first(medium, operation, done as usize);
                Err(DeviceError::Short)
            }
            Kind::OpenReadError => Ok(true),
            Kind::NoSpace => Err(DeviceError::Os(ENOSPC)),
            Kind::FlushError => Err(DeviceError::Os(EIO)),
            Kind::FlushForgets => {
                medium.forget_cache(&mut self.random);
                Err(DeviceError::Os(EIO))
            }
            Kind::LostWrite => Ok(false),
            Kind::Misdirected => {
                self.misdirect(medium, operation);
                Ok(false)
            }
            Kind::Rot => {
                self.rot(medium, operation);
                Ok(false)
            }
            Kind::Stall => {
                self.stall_ns = self.random.between(2_000_000_000, 10_000_000_000);
                Ok(true)
            }
        }
    }

    /// A read while the pool is opened.
    pub(crate) fn strike_open_read(&mut self) -> Result<(), DeviceError> {
        if self.struck || self.kind != Kind::OpenReadError {
            return Ok(());
        }
        if self.passed < self.after {
            self.passed += 1;
            return Ok(());
        }
        self.struck = true;
        Err(DeviceError::Os(EIO))
    }

    fn spoil_buffers(&mut self, operation: &mut Operation, rest: bool) {
        let segment = *self.random.pick(&operation.segments);
        let at = self.random.below(u64::from(segment.length_bytes)) as usize;
        let start = segment.offset_bytes as usize;
        let bytes = &mut operation.buffers[segment.buffer as usize].bytes_mut()
            [start..start + segment.length_bytes as usize];
        if rest {
            bytes[at..].fill(0xD5);
        } else {
            bytes[at] ^= 1 << self.random.below(8);
        }
    }

    fn write_some(&mut self, medium: &mut Medium, operation: &Operation, percent: u64) {
        for (place, page) in pages_of(operation, medium) {
            if self.random.percent(percent) {
                medium.write(place, page);
            }
        }
    }

    fn write_first(&mut self, medium: &mut Medium, operation: &Operation, blocks: usize) {
        for (place, page) in pages_of(operation, medium).into_iter().take(blocks) {
            medium.write(place, page);
        }
    }

    fn misdirect(&mut self, medium: &mut Medium, operation: &Operation) {
        let pages = pages_of(operation, medium);
        let used = medium.used_places();
        // Where it hurts: on something that was written before, as if bits of the address had been flipped.
        let to = *self.random.pick(&used);
        for (offset, (_, page)) in (0..).zip(pages) {
            let place = to + offset;
            if medium.has_place(place) {
                let before = medium.seen(place).and_then(|page| kind_of(&page[..]));
                self.log_pages_hit += u32::from(before == Some("LogPage"));
                medium.write(place, page);
            }
        }
    }

    fn rot(&mut self, medium: &mut Medium, operation: &Operation) {
        let mut pages = pages_of(operation, medium);
        let index = self.random.below(pages.len() as u64) as usize;
        let page = &mut pages[index].1;
        let mut bytes: [u8; BLOCK_BYTES] = **page;
        bytes[self.random.below(BLOCK_BYTES as u64) as usize] ^= 1 << self.random.below(8);
        *page = Rc::new(bytes);
        for (place, page) in pages {
            medium.write(place, page);
        }
    }
}

fn pages_of(operation: &Operation, medium: &Medium) -> Vec<(Place, Page)> {
    let mut pages = Vec::new();
    each_page(operation, |device, block, page| {
        pages.push((medium.place(device, block), page));
    });
    pages
}
