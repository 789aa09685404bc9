//! What a script's clients know: the states that every block has gone through, which of them were acknowledged, and
//! which a flush made durable.
//!
//! A script never has two writes of one block in flight, so the states of a block are a row. After a crash a block may
//! be in any state from its floor on: after a power cut the newest that was durable, after a kill the newest that was
//! acknowledged. A block is in one state as a whole: a mixture of two is none of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use stillpoint_processor::host_view::{HostView, Placement};
use stillpoint_processor::{SnapshotId, View, VolumeId};

use crate::model::{Broken, Crash};
use crate::stamp::{self, SECTOR_BYTES, SECTORS_PER_BLOCK, Shown};

/// What the sectors of a block show.
pub(crate) type Sectors = [Shown; SECTORS_PER_BLOCK as usize];

const BLOCK: u64 = 4096;

/// The states of a block, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    states: Vec<Sectors>,
    acknowledged: usize,
    durable: usize,
    /// A write of it failed: which of the last states it is in is not known.
    pub(crate) unsure: bool,
}

/// Whether a volume or a snapshot exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Asked for, or its end asked for: after a crash it is there whole or not at all.
    Unsure,
    There,
    Gone,
}

/// A volume.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) id: u32,
    /// The number of its row in the catalog. A volume that was rolled back has other shares, and the same row.
    pub(crate) row: u32,
    /// The volume that it, or what it was made of, was first: sectors are stamped with it.
    pub(crate) family: u32,
    /// The shares and the snapshot that it was made of.
    pub(crate) origin: Option<(u32, u64)>,
    /// What its row says that it was cloned from: volume and snapshot.
    pub(crate) row_origin: Option<(u32, u64)>,
    /// What its row is about to say.
    pub(crate) becomes: Option<Option<(u32, u64)>>,
    /// It is being made to take the place of others: one of the two is there.
    pub(crate) replaces: bool,
    pub(crate) placement: Placement,
    pub(crate) life: Life,
    /// Size in blocks, and the size that was asked for, if a resize is going on.
    pub(crate) size: u64,
    pub(crate) resizing: Option<u64>,
    pub(crate) blocks: Vec<Block>,
}

/// A snapshot of one or more volumes.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) id: u64,
    pub(crate) life: Life,
    pub(crate) volumes: BTreeMap<u32, Frozen>,
    /// For each of these shares the volume whose snapshot it is.
    pub(crate) owners: BTreeMap<u32, u32>,
    /// Who gets them, if a promotion is going on.
    pub(crate) goes: BTreeMap<u32, u32>,
}

/// A volume in a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) size: u64,
    /// Per block the first state that it may show, and the last.
    range: Vec<(usize, usize)>,
}

/// All that is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) volumes: BTreeMap<u32, Volume>,
    pub(crate) snapshots: BTreeMap<u64, Snapshot>,
    pub(crate) writes: Shown,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            states: vec![[0; SECTORS_PER_BLOCK as usize]],
            acknowledged: 0,
            durable: 0,
            unsure: false,
        }
    }
}

impl Block {
    /// A block that begins as a snapshot shows it: that is on the medium.
    fn beginning(state: Sectors) -> Self {
        Self {
            states: vec![state],
            ..Self::default()
        }
    }

    fn last(&self) -> usize {
        self.states.len() - 1
    }

    /// A write is sent that shows `number` in these sectors.
    pub(crate) fn sent(&mut self, sectors: std::ops::Range<usize>, number: Shown) {
        let mut state = self.states[self.last()];
        state[sectors].fill(number);
        self.states.push(state);
    }

    /// The last write that was sent was answered.
    pub(crate) fn answered(&mut self, ok: bool, durable: bool) {
        if ok {
            self.acknowledged = self.last();
            self.unsure = false;
            if durable {
                self.durable = self.last();
            }
        } else {
            self.unsure = true;
        }
    }

    /// The state that is acknowledged now.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// A recovery found this: it is what the block is from now on.
    fn found(&mut self, found: &Sectors) {
        self.states.push(*found);
        (self.acknowledged, self.durable, self.unsure) = (self.last(), self.last(), false);
    }

    /// A recovery could not read it: it may be anything that it might have been.
    fn refused(&mut self) {
        (self.acknowledged, self.unsure) = (self.durable, true);
    }

    /// A flush covered this state.
    pub(crate) fn flushed(&mut self, state: usize) {
        self.durable = self.durable.max(state);
    }

    fn check(&self, floor: usize, last: usize, found: &Sectors) -> Result<(), String> {
        if self.states[floor..=last].contains(found) {
            return Ok(());
        }
        let mut text = format!("holds {found:?}; it may be");
        for state in &self.states[floor..=last] {
            write!(text, " {state:?}").expect("a string takes everything");
        }
        match self.states[..floor].iter().rposition(|state| state == found) {
            Some(_) => text.push_str("; that is what it was BEFORE: something was lost"),
            None => text.push_str("; it never was that: a mixture, or another's"),
        }
        Err(text)
    }
}

impl Volume {
    /// Who asks for it, with which size.
    pub(crate) fn view(&self, snapshot: Option<(u64, u64)>) -> HostView {
        let size = snapshot.map_or(self.size, |(_, size)| size);
        HostView {
            view: View {
                volume: VolumeId(self.id),
                snapshot: snapshot.map(|(id, _)| SnapshotId(id)),
            },
            placement: self.placement,
            size_bytes: size * BLOCK,
            block_bytes: 512,
            read_only: snapshot.is_some(),
        }
    }

    /// Makes room for so many blocks.
    pub(crate) fn grow(&mut self, size: u64) {
        if self.blocks.len() < size as usize {
            self.blocks.resize(size as usize, Block::default());
        }
    }

    /// Compares what a block shows: after a crash, or, without one, while nothing is in flight.
    pub(crate) fn check_block(&self, crash: Option<Crash>, at: usize, found: &Sectors) -> Result<(), Broken> {
        let block = &self.blocks[at];
        let floor = match crash {
            Some(Crash::PowerCut) => block.durable,
            _ => block.acknowledged,
        };
        block
            .check(floor, block.last(), found)
            .map_err(|why| Broken(format!("volume {} block {at} {why}", self.id)))
    }

    /// A recovery was compared, and this is what it showed.
    pub(crate) fn settle(&mut self, shown: &[Option<Sectors>]) {
        for (block, shown) in self.blocks.iter_mut().zip(shown) {
            match shown {
                Some(shown) => block.found(shown),
                None => block.refused(),
            }
        }
    }

    /// What a snapshot taken from now on may show; [`Frozen::until_now`] ends it.
    pub(crate) fn freeze(&self) -> Frozen {
        Frozen {
            size: self.size,
            range: self
                .blocks
                .iter()
                .map(|block| (block.acknowledged, usize::MAX))
                .collect(),
        }
    }
}

impl Frozen {
    /// The instant is past: no later state may show.
    pub(crate) fn until_now(&mut self, volume: &Volume) {
        for ((_, last), block) in self.range.iter_mut().zip(&volume.blocks) {
            *last = (*last).min(block.last());
        }
    }

    /// Compares what the snapshot shows of a block of the volume.
    pub(crate) fn check_block(
        &self,
        id: u64,
        volume: &Volume,
        at: usize,
        found: &Sectors,
    ) -> Result<(), Broken> {
        let (block, (first, last)) = (&volume.blocks[at], self.range[at]);
        block
            .check(first, last.min(block.last()), found)
            .map_err(|why| Broken(format!("snapshot {id} of volume {} block {at} {why}", volume.id)))
    }

    /// What a volume begins with that is made of the snapshot; `None` if it is not known of every block.
    pub(crate) fn blocks(&self, volume: &Volume) -> Option<Vec<Block>> {
        let known = self.range.iter().zip(&volume.blocks).take(self.size as usize);
        known
            .map(|(&(first, last), block)| (first == last).then(|| Block::beginning(block.states[first])))
            .collect()
    }

    /// From now on it shows this and nothing else.
    pub(crate) fn fix(&mut self, volume: &Volume, shown: &[Option<Sectors>]) {
        for ((range, block), found) in self.range.iter_mut().zip(&volume.blocks).zip(shown) {
            let Some(found) = found else { continue };
            let (first, last) = (range.0, range.1.min(block.last()));
            let same = (first..=last).rev().find(|&state| block.states[state] == *found);
            if let Some(state) = same {
                *range = (state, state);
            }
        }
    }
}

/// What the sectors of a volume show; an error names the first that no write left there.
pub(crate) fn shown(volume: u32, first_block: u64, bytes: &[u8]) -> Result<Vec<Sectors>, Broken> {
    let mut blocks = Vec::with_capacity(bytes.len() / BLOCK as usize);
    for (block, bytes) in (first_block..).zip(bytes.chunks_exact(BLOCK as usize)) {
        let mut sectors = [0; SECTORS_PER_BLOCK as usize];
        for (index, (sector, bytes)) in sectors
            .iter_mut()
            .zip(bytes.chunks_exact(SECTOR_BYTES))
            .enumerate()
        {
            let at = block * SECTORS_PER_BLOCK + index as u64;
            *sector = stamp::read(volume, at, bytes).map_err(|foreign| Broken(foreign.to_string()))?;
        }
        blocks.push(sectors);
    }
    Ok(blocks)
}
