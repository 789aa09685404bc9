//! What the clients may see: the laws I1 to I3, I6 and I7, as checks over the history of every sector.
//!
//! Time here is counted in [`Tick`]s: one for each moment at which a client sends something or hears
//! something, so that "before" has one meaning over all clients. A write takes effect at one moment between its
//! tick of sending and its tick of ending; what is known of that moment decides what may be seen:
//!
//! - A version may be seen by a read unless a version that was *sent after it had ended* was *in effect before
//!   the read was sent* (I1).
//! - After a power cut a version may be there unless one that was sent after it had ended is durable (I2, I3).
//! - A snapshot has one instant between its tick of sending and its tick of answering. Every version that it
//!   shows was sent before the instant, and every version that was sent after a shown one had ended took effect
//!   after the instant (I7). So the latest sending of a shown version must come before the earliest moment at
//!   which any version that is not shown is known to have been in effect.

mod sector;
#[cfg(test)]
mod tests;

pub use sector::{CutBounds, Writes};

use crate::stamp::{self, SECTOR_BYTES, Shown};
use sector::Sector;

/// A moment at which a client sent or heard something.
pub type Tick = u64;

/// A broken law, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

/// A range of sectors of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub first: u64,
    /// Sectors.
    pub count: u64,
}

/// One volume's histories.
#[derive(Debug)]
pub struct VolumeModel {
    volume: u32,
    sectors: Vec<Sector>,
}

/// How a crash ended the history so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process was killed: all that was acknowledged is there.
    Kill,
    /// The same without a log tail: what was only seen by a read, and not acknowledged, may be gone.
    KillWithoutTail,
    /// Power was cut: all that was durable is there.
    PowerCut,
}

impl VolumeModel {
    /// A new volume, all zeros, with room for `sectors`.
    #[must_use]
    pub fn new(volume: u32, sectors: u64) -> Self {
        Self {
            volume,
            sectors: vec![Sector::default(); sectors as usize],
        }
    }

    /// A volume that begins as a snapshot is, which shows this, from `tick` on. `family` is what its sectors are stamped
    /// with.
    #[must_use]
    pub fn of_snapshot(family: u32, shown: &[Shown], tick: Tick) -> Self {
        Self {
            volume: family,
            sectors: shown
                .iter()
                .map(|&shown| Sector::beginning(shown, tick))
                .collect(),
        }
    }

    /// Makes room for more sectors; new ones are zeros.
    pub fn grow(&mut self, sectors: u64) {
        if sectors as usize > self.sectors.len() {
            self.sectors.resize(sectors as usize, Sector::default());
        }
    }

    /// Sectors with a history.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// A write was sent; it is `number` in `writes`.
    pub fn write_sent(&mut self, number: Shown, range: Range) {
        for sector in self.range_mut(range) {
            sector.sent(number);
        }
    }

    /// A read of `bytes` from `first` on, sent and ended at these ticks.
    ///
    /// # Errors
    /// What must not be seen.
    pub fn check_read(
        &mut self,
        writes: &Writes,
        first: u64,
        bytes: &[u8],
        sent: Tick,
        ended: Tick,
    ) -> Result<(), Broken> {
        for (at, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
            let shown = self.shown(at, bytes)?;
            let sector = &mut self.sectors[at as usize];
            sector
                .check_read(writes, shown, sent, ended)
                .map_err(|why| self.broken(at, &why))?;
        }
        Ok(())
    }

    /// A read of everything after a recovery, while nothing else went on: what it shows is the content from now
    /// on. `tick` is now.
    ///
    /// # Errors
    /// What must not be there.
    pub fn check_recovered(
        &mut self,
        writes: &Writes,
        crash: Crash,
        first: u64,
        bytes: &[u8],
        tick: Tick,
    ) -> Result<(), Broken> {
        for (at, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
            let shown = self.shown(at, bytes)?;
            let sector = &mut self.sectors[at as usize];
            sector
                .recovered(writes, crash, shown, tick)
                .map_err(|why| self.broken(at, &why))?;
        }
        Ok(())
    }

    /// Sectors that read as holes must be such that zeros may be read.
    ///
    /// # Errors
    /// The sector that cannot be zeros.
    pub fn check_hole(&self, writes: &Writes, range: Range, sent: Tick, ended: Tick) -> Result<(), Broken> {
        for at in range.first..range.first + range.count {
            let mut sector = self.sectors[at as usize].clone();
            sector
                .check_read(writes, 0, sent, ended)
                .map_err(|why| self.broken(at, &format!("told to be a hole: {why}")))?;
        }
        Ok(())
    }

    /// A first look at a snapshot: `bytes` from `first` on. Appends what the sectors show to `content` and
    /// narrows `bounds`.
    ///
    /// # Errors
    /// What the snapshot must not show.
    pub fn check_snapshot(
        &self,
        writes: &Writes,
        first: u64,
        bytes: &[u8],
        bounds: &mut CutBounds,
        content: &mut Vec<Shown>,
    ) -> Result<(), Broken> {
        for (at, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
            let shown = self.shown(at, bytes)?;
            let place = (self.volume, at);
            self.sectors[at as usize]
                .check_snapshot(writes, shown, place, bounds)
                .map_err(|why| self.broken(at, &format!("in the snapshot: {why}")))?;
            content.push(shown);
        }
        Ok(())
    }

    /// What a sector shows.
    ///
    /// # Errors
    /// Bytes that no write to this sector leaves.
    pub fn shown(&self, sector: u64, bytes: &[u8]) -> Result<Shown, Broken> {
        stamp::read(self.volume, sector, bytes).map_err(|foreign| Broken(foreign.to_string()))
    }

    fn range_mut(&mut self, range: Range) -> &mut [Sector] {
        &mut self.sectors[range.first as usize..(range.first + range.count) as usize]
    }

    fn broken(&self, sector: u64, why: &str) -> Broken {
        Broken(format!("volume {} sector {sector}: {why}", self.volume))
    }
}
