//! Whole volumes and snapshots, read and compared.

use super::operations::Does;
use super::{Checked, State, World, broken};
use crate::model::{Broken, Crash, Tick};
use crate::stamp::SECTOR_BYTES;

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
