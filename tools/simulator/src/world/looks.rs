//! Whole volumes and snapshots, read and compared.

use std::ops::Range;

use super::operations::Does;
use super::{Checked, State, World, broken};
use crate::model::{Broken, Crash, Tick};
use crate::stamp::{SECTOR_BYTES, SECTORS_PER_BLOCK, Shown};
use stillpoint_processor::{CHANGED, CHANGED_TO_HOLE};

/// Why something is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// A client reads a volume.
    Live,
    /// The first look at a volume after a recovery.
    Recovered(Crash),
    /// A client reads a snapshot.
    Snapshot(u64),
    /// The first look at a volume of a snapshot: from here on its content is known.
    First(u64),
}

impl World {
    /// Compares bytes that were read from `first` on.
    pub(super) fn look_at(
        &mut self,
        look: Look,
        volume: u32,
        first: u64,
        bytes: &[u8],
        sent: Tick,
        ended: Tick,
    ) -> Checked {
        if self.recorder.is_some() {
            return self.record_look(look, volume, first, bytes, sent, ended);
        }
        let target = self.volumes.get_mut(&volume).expect("volumes stay known");
        match look {
            Look::Live => target.model.check_read(&self.writes, first, bytes, sent, ended),
            Look::Recovered(crash) => target
                .model
                .check_recovered(&self.writes, crash, first, bytes, ended),
            Look::Snapshot(id) => {
                let snapshot = &self.snapshots[&id];
                let content = snapshot.content.get(&volume);
                for (at, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
                    let shown = target.model.shown(at, bytes)?;
                    if let Some(expected) = content.map(|content| content[at as usize])
                        && expected != shown
                    {
                        return broken(format!(
                            "I6: snapshot {id} of volume {volume} sector {at} shows write {shown}, not {expected} any more"
                        ));
                    }
                }
                Ok(())
            }
            Look::First(id) => {
                let snapshot = self.snapshots.get_mut(&id).expect("snapshots stay known");
                if snapshot
                    .content
                    .get(&volume)
                    .is_some_and(|content| content.len() as u64 > first)
                {
                    return self.look_at(Look::Snapshot(id), volume, first, bytes, sent, ended);
                }
                let (bounds, content) = (&mut snapshot.bounds, snapshot.content.entry(volume).or_default());
                assert_eq!(content.len() as u64, first, "the parts of a look come in order");
                target
                    .model
                    .check_snapshot(&self.writes, first, bytes, bounds, content)
            }
        }
    }

    /// A look has seen all of its parts.
    pub(super) fn looked(&mut self, look: Look) -> Checked {
        let Look::First(id) = look else { return Ok(()) };
        let snapshot = &self.snapshots[&id];
        snapshot
            .bounds
            .check()
            .map_err(|why| Broken(format!("I7: snapshot {id} is not one instant: {why}")))?;
        if snapshot.content.len() == snapshot.volumes.len() {
            self.coverage.count("snapshots compared");
        }
        Ok(())
    }

    /// Reads a snapshot for the first time, while everything else goes on.
    pub(super) fn send_first_looks(&mut self, id: u64) {
        for (volume, size_bytes) in self.snapshots[&id].volumes.clone() {
            self.send(
                None,
                Does::Read(Look::First(id)),
                volume,
                Some((id, size_bytes)),
                0,
                size_bytes,
            );
        }
    }

    /// Reads all snapshots from end to end; those without a known content get one.
    pub(super) fn send_snapshot_looks(&mut self) {
        let there: Vec<u64> = self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.state == State::There)
            .map(|snapshot| snapshot.id)
            .collect();
        for id in there {
            for (volume, size_bytes) in self.snapshots[&id].volumes.clone() {
                let snapshot = &self.snapshots[&id];
                let sectors = size_bytes as usize / SECTOR_BYTES;
                let known = snapshot
                    .content
                    .get(&volume)
                    .is_some_and(|content| content.len() == sectors);
                let look = if known {
                    Look::Snapshot(id)
                } else {
                    Look::First(id)
                };
                self.send(
                    None,
                    Does::Read(look),
                    volume,
                    Some((id, size_bytes)),
                    0,
                    size_bytes,
                );
            }
        }
    }

    /// Asks what changed between snapshots whose content is known, in both directions.
    pub(super) fn send_change_looks(&mut self) {
        let mut known: Vec<(u32, u64, u64)> = Vec::new();
        for snapshot in self.snapshots.values().filter(|s| s.state == State::There) {
            for &(volume, size_bytes) in &snapshot.volumes {
                let content = snapshot.content.get(&volume);
                let sectors = size_bytes as usize / SECTOR_BYTES;
                if content.is_some_and(|content| content.len() == sectors) {
                    known.push((volume, snapshot.id, size_bytes));
                }
            }
        }
        known.sort_unstable();
        for pair in known.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            for ((volume, id, size_bytes), (_, base, _)) in [(pair[1], pair[0]), (pair[0], pair[1])] {
                let does = Does::Changes(base);
                self.send(None, does, volume, Some((id, size_bytes)), 0, size_bytes);
            }
        }
    }

    /// Compares what a shard told of some blocks of snapshot `view`, as to what changed since `base`, with what both
    /// show.
    pub(super) fn check_changes(
        &self,
        volume: u32,
        view: u64,
        base: u64,
        blocks: Range<u64>,
        told: &[u8],
    ) -> Checked {
        let words = told.chunks_exact(4);
        let words: Vec<u32> = words
            .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
            .collect();
        let states = words
            .chunks_exact(2)
            .flat_map(|pair| std::iter::repeat_n(pair[1], pair[0] as usize));
        let mut states = states.fuse();
        let shown = |snapshot: u64, sector: u64| {
            let content = &self.snapshots[&snapshot].content[&volume];
            content.get(sector as usize).copied().unwrap_or_default()
        };
        for block in blocks {
            let Some(state) = states.next() else {
                return broken(format!("of block {block} nothing is told"));
            };
            let sectors = block * SECTORS_PER_BLOCK..(block + 1) * SECTORS_PER_BLOCK;
            let mut sectors = sectors.map(|sector| (shown(view, sector), shown(base, sector)));
            let differs = sectors.clone().any(|(now, then)| now != then);
            let zeros = sectors.clone().any(|(now, _)| now == Shown::default());
            let only_zeros = sectors.all(|(now, _)| now == Shown::default());
            // Zeros that were written over zeros look as before.
            let fits = match state {
                0 => !differs,
                CHANGED => differs || zeros,
                _ => state == (CHANGED | CHANGED_TO_HOLE) && only_zeros,
            };
            if !fits {
                return broken(format!(
                    "block {block} is told to be in state {state} since snapshot {base}, and differs: {differs}"
                ));
            }
        }
        Ok(())
    }

    /// Reads all volumes from end to end.
    pub(super) fn send_volume_looks(&mut self, look: Look) {
        let there: Vec<(u32, u64)> = self
            .volumes
            .values()
            .filter(|volume| volume.state == State::There)
            .map(|volume| (volume.id, volume.size_bytes))
            .collect();
        for (volume, size_bytes) in there {
            self.send(None, Does::Read(look), volume, None, 0, size_bytes);
        }
    }
}
