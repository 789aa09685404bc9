//! Mirrors: devices with two sides, below the shards. What a shard means by a device is a pair of devices here; what it writes
//! goes to both, what it reads comes from one, and a side that fails is done without.
//!
//! ```text
//!  shards            operations on devices 0, 1, ...
//!  Mirrors           each transfer becomes one per side: 2 * device + side
//!  the devices       operations on the sides
//! ```
//!
//! | state of a side | reads | writes | left by |
//! |---|---|---|---|
//! | in sync | yes | yes | a write, flush or repair that fails |
//! | failing | no | none to the whole device; what rests on one side only is kept back | [`Mirrors::out`]: the labels say so |
//! | out | no | no; the other side notes what this one lacks | [`Mirrors::resync`]: it is there again |
//! | resync | no | yes, noted too; what it lacks is copied | [`Mirrors::joined`]: the labels say so; an error: failing |
//!
//! Invariants:
//! - M1 One side of each device is in sync, always.
//! - M2 What is acknowledged rests on both sides, or the labels say which one lacks it: answers wait for that.
//! - M3 A region is noted on the side in sync, for good, before anything of it is written without the other side. Only the first
//!   page of an episode need not be there for good: without one, everything counts as stale.
//! - M4 A region is no longer noted only when the other side has all of it for good.
//! - M5 A side gets in sync only with nothing left to copy, and everything that was flushed flushed there too.
//!
//! | file | what it does |
//! |---|---|
//! | `regions.rs` | sets of regions, and how a slice is cut |
//! | `table.rs` | the operations in work |
//! | `state.rs` | the states of the sides, what changes them, the figures |
//! | `start.rs` | operations that go to the sides, or wait |
//! | `end.rs` | operations that come back |
//! | `note.rs` | stale pages |
//! | `copy.rs` | copying what a side lacks |
//! | `load.rs` | stale pages, read when a pool is opened |
//! | `open.rs` | opening a shard: both sides become the same |

mod copy;
mod end;
mod load;
mod note;
mod open;
mod regions;
mod start;
mod state;
mod table;
#[cfg(test)]
mod tests;

use core::fmt;

use crate::ids::{DeviceIndex, Now, ShardIndex};
use crate::ports::{BlockDevice, BufferPool, DeviceError, Full, Operation, Side};
pub use load::{StaleAt, load_stale};
pub use open::{MirroredOpener, SideFailed, Sides};
use state::Mirror;
use stillpoint_ondisk::layout::Layout;

/// One side of a mirrored device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SideAt {
    /// The device, as shards number them.
    pub device: DeviceIndex,
    /// Which of its sides.
    pub side: Side,
}

impl SideAt {
    /// Its number below the mirrors: twice that of the device, plus one for the second side.
    #[must_use]
    pub fn below(self) -> DeviceIndex {
        DeviceIndex(self.device.0 * 2 + self.side.index() as u8)
    }

    /// The side with this number below the mirrors.
    #[must_use]
    pub fn of_below(device: DeviceIndex) -> Self {
        Self {
            device: DeviceIndex(device.0 / 2),
            side: Side::BOTH[usize::from(device.0 % 2)],
        }
    }

    /// The other side of the same device.
    #[must_use]
    pub fn other(self) -> Self {
        Self {
            side: self.side.other(),
            ..self
        }
    }
}

impl fmt::Display for SideAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}, {}", self.device.0, self.side)
    }
}

/// What is done with a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideState {
    /// It has everything.
    InSync,
    /// Nothing is written to it.
    Out,
    /// It is written to, and what it lacks is copied.
    Resync,
}

/// What the control plane has to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorNotice {
    /// A side failed. Writes wait until the labels of the others say so and [`Mirrors::out`] is called on every processor.
    SideFailed {
        /// Which.
        at: SideAt,
        /// What it said.
        error: DeviceError,
    },
    /// This processor has copied all that the side lacked, and flushed it. When all processors say so the labels may, and then
    /// [`Mirrors::joined`] is called on all of them.
    Resynced {
        /// Which.
        at: SideAt,
    },
    /// Something that a side lacks cannot be read from the other one. The rest is copied; [`Mirrors::resync`] tries again.
    CannotCopy {
        /// The side that lacks it.
        at: SideAt,
        /// Where.
        offset_bytes: u64,
        /// What the other side said.
        error: DeviceError,
    },
}

/// The figures of one side, as one processor has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorStatus {
    /// Which side.
    pub at: SideAt,
    /// Its state; a side that failed is out.
    pub state: SideState,
    /// Regions of this processor's shards that it lacks something of.
    pub regions_left: u64,
    /// What these have, in bytes.
    pub bytes_left: u64,
    /// Bytes copied to it since the mirrors were set up.
    pub copied_bytes: u64,
    /// Ranges that it had damaged, or could not read, and that were written to it again.
    pub repaired_reads: u64,
}

/// The devices of a pool as a processor sees them, each with two sides; or with one, and then nothing is done here.
#[derive(Debug)]
pub struct Mirrors<D> {
    inner: D,
    mirror: Option<Box<Mirror>>,
}

impl<D: BlockDevice> Mirrors<D> {
    /// Devices without sides: everything passes through.
    pub fn plain(inner: D) -> Self {
        Self { inner, mirror: None }
    }

    /// Devices of a pool with mirrors. `sides`: the state of both sides of every device; `shards`: those that this processor owns;
    /// `stale`: what [`load_stale`] found for these and each side that is not in sync.
    ///
    /// # Panics
    /// If a device has no side in sync: such a pool cannot be opened.
    pub fn new(
        inner: D,
        layout: &Layout,
        sides: &[[SideState; 2]],
        shards: &[ShardIndex],
        stale: Vec<StaleAt>,
    ) -> Self {
        Self {
            inner,
            mirror: Some(Box::new(Mirror::new(layout, sides, shards, stale))),
        }
    }

    /// The devices behind.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The devices behind.
    pub fn inner_mut(&mut self) -> &mut D {
        &mut self.inner
    }

    /// The devices behind.
    pub fn into_inner(self) -> D {
        self.inner
    }

    /// The labels of all other sides say, for good, that this one is out, since `episode`: the label sequence that said so first,
    /// another one for every time that a side goes out. What was kept back is completed.
    /// Called on every processor, also on those whose operations did not fail.
    pub fn out(&mut self, at: SideAt, episode: u64) {
        if let Some(mirror) = &mut self.mirror {
            mirror.out(at, episode);
            mirror.go_on(&mut self.inner);
        }
    }

    /// No label of this device can be written, so nothing can be promised any more: writes and flushes fail with `error` instead
    /// of being kept back. Reads go on.
    pub fn lost(&mut self, device: DeviceIndex, error: DeviceError) {
        if let Some(mirror) = &mut self.mirror {
            mirror.lost(device, error);
            mirror.go_on(&mut self.inner);
        }
    }

    /// The labels say that another device takes the place of a side that is out, since `episode`: as [`Self::out`], and everything is
    /// lacking. One call and not two, since a stale page of the new episode would say in between what the old device lacked.
    pub fn replaced(&mut self, at: SideAt, episode: u64) {
        if let Some(mirror) = &mut self.mirror {
            mirror.replaced(at, episode);
            mirror.go_on(&mut self.inner);
        }
    }

    /// A side that is out is there again, below: what it lacks is copied. For a side that is being resynchronised: what could not be
    /// copied is tried again.
    pub fn resync(&mut self, at: SideAt) {
        if let Some(mirror) = &mut self.mirror {
            mirror.resync(at);
            mirror.go_on(&mut self.inner);
        }
    }

    /// The labels say that the side is in sync again. Nothing happens if it has failed meanwhile.
    pub fn joined(&mut self, at: SideAt) {
        if let Some(mirror) = &mut self.mirror {
            mirror.joined(at);
            mirror.go_on(&mut self.inner);
        }
    }

    /// So many bytes per second are copied at most by this processor; 0: as many as the devices can.
    pub fn set_rate(&mut self, bytes_per_s: u64) {
        if let Some(mirror) = &mut self.mirror {
            mirror.set_rate(bytes_per_s);
        }
    }

    /// One turn, before the shards have theirs: starts what the mirrors do by themselves. Gives whether there was anything.
    #[inline]
    pub fn turn(&mut self, now: Now, buffers: &mut impl BufferPool) -> bool {
        match &mut self.mirror {
            None => false,
            Some(mirror) => mirror.turn(&mut self.inner, now, buffers),
        }
    }

    /// The monotonic time at which [`Self::turn`] has to be called even if no device completes anything.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.mirror.as_ref().and_then(|mirror| mirror.next_deadline_ns())
    }

    /// Whether a turn would find something to do without waiting for a device.
    #[must_use]
    pub fn has_ready_work(&self) -> bool {
        self.mirror.as_ref().is_some_and(|mirror| mirror.has_ready_work())
    }

    /// Whether nothing is in flight or kept back, and no buffer is held but the one that is kept.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.mirror.as_ref().is_none_or(|mirror| mirror.is_quiet())
    }

    /// What the control plane has not been told yet.
    pub fn take_notice(&mut self) -> Option<MirrorNotice> {
        self.mirror.as_mut()?.take_notice()
    }

    /// The figures of both sides of every device; none without mirrors.
    #[must_use]
    pub fn status(&self) -> Vec<MirrorStatus> {
        self.mirror.as_ref().map_or(Vec::new(), |mirror| mirror.status())
    }

    /// Has the mirrors do this one thing wrong.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, bug: Option<crate::PlantedBug>) {
        if let Some(mirror) = &mut self.mirror {
            mirror.plant(bug);
        }
    }
}

impl<D: BlockDevice> BlockDevice for Mirrors<D> {
    #[inline]
    fn submit(&mut self, operation: Box<Operation>) -> Result<(), Full> {
        match &mut self.mirror {
            None => self.inner.submit(operation),
            Some(mirror) => mirror.submit(&mut self.inner, operation),
        }
    }

    /// Of a mirror what was written since the last flush counts, should a side vanish: it stays with flushes.
    #[inline]
    fn writes_durably(&self) -> bool {
        self.mirror.is_none() && self.inner.writes_durably()
    }

    fn give_back(&mut self, buffers: &mut impl BufferPool) {
        self.inner.give_back(buffers);
        if let Some(mirror) = &mut self.mirror {
            mirror.give_back(buffers);
        }
    }

    #[inline]
    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        match &mut self.mirror {
            None => self.inner.poll(completed),
            Some(mirror) => mirror.poll(&mut self.inner, completed),
        }
    }
}
