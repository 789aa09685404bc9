//! What is offered over NBD. Every volume and every snapshot is, under `v<volume>` and `v<volume>@<snapshot>`, as
//! soon as it exists; before it is deleted or cut short, the table without it has to be in force on all processors.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use stillpoint_export::{Export, ExportTable, PoolIndex};
use stillpoint_processor::host_view::HostView;

use super::jobs::{Purpose, Stage};
use super::{State, World};

/// An export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// What a session sees.
    pub view: HostView,
    /// The number of the first table that has it like this.
    pub since: u64,
}

/// All exports.
#[derive(Debug, Default)]
pub struct Exports {
    /// Whether there are clients in this life that could use one.
    pub open: bool,
    offered: BTreeMap<String, Offered>,
    /// Number of the newest table.
    published: u64,
    /// Number of the newest table that all processors show.
    shown: u64,
    /// Tables that are not in force yet, and how many processors have to say so.
    pending: BTreeMap<u64, usize>,
    /// Jobs that wait until a table is in force.
    held: Vec<(u64, Purpose, Vec<Stage>)>,
}

impl Exports {
    /// Keeps a job back until a table is in force.
    pub fn hold(&mut self, number: u64, purpose: Purpose, stages: Vec<Stage>) {
        self.held.push((number, purpose, stages));
    }

    /// Whether nothing waits for a table to be in force.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.pending.is_empty()
    }

    /// The exports that every processor knows of, unless a newer table does without them.
    pub fn known(&self) -> impl Iterator<Item = (&String, &Offered)> {
        self.offered
            .iter()
            .filter(|(_, offered)| offered.since <= self.shown)
    }

    /// What waits.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (number, purpose, _) in &self.held {
            write!(text, "\n    {purpose:?} waits for table {number} of exports").expect("a string");
        }
        text
    }

    fn table(&self) -> ExportTable {
        ExportTable::new(self.offered.iter().map(|(name, offered)| Export {
            name: name.clone(),
            pool: PoolIndex(0),
            host_view: offered.view.clone(),
            description: "simulated".to_string(),
        }))
    }
}

impl World {
    /// Publishes what there is, if that has changed; gives the number of the new table.
    pub(super) fn refresh_exports(&mut self) -> Option<u64> {
        if !self.exports.open {
            return None;
        }
        let views = self.views();
        let before = std::mem::take(&mut self.exports.offered);
        let number = self.exports.published + 1;
        for (name, view) in views {
            let since = match before.get(&name) {
                Some(old) if old.view == view => old.since,
                _ => number,
            };
            self.exports.offered.insert(name, Offered { view, since });
        }
        if before == self.exports.offered {
            return None;
        }
        for (name, old) in before {
            let new = self.exports.offered.get(&name);
            if new.is_none_or(|new| new.view.size_bytes < old.view.size_bytes) {
                self.hosts.withdraw(&name);
            }
        }
        self.exports.published = number;
        let processors = self.machine.processors();
        self.exports.pending.insert(number, processors);
        let table = Arc::new(self.exports.table());
        self.trace(|| format!("offer  table {number}: {:?}", self.exports.offered.keys()));
        self.machine.publish(number, &table);
        Some(number)
    }

    fn views(&self) -> BTreeMap<String, HostView> {
        let mut views = BTreeMap::new();
        for volume in self.volumes.values() {
            if volume.state == State::There {
                let size_bytes = volume.shown_bytes;
                let view = HostView {
                    size_bytes,
                    ..volume.host_view(None)
                };
                views.insert(format!("v{}", volume.id), view);
            }
        }
        for snapshot in self.snapshots.values() {
            if snapshot.state == State::There {
                for &(volume, size_bytes) in &snapshot.volumes {
                    let view = self.volumes[&volume].host_view(Some((snapshot.id, size_bytes)));
                    views.insert(format!("v{volume}@{}", snapshot.id), view);
                }
            }
        }
        views
    }

    /// A processor shows a table and nothing that is not in it.
    pub(super) fn published(&mut self, number: u64) {
        let waiting = self.exports.pending.get_mut(&number);
        let waiting = waiting.expect("each processor answers once");
        *waiting -= 1;
        if *waiting > 0 {
            return;
        }
        self.exports.pending.remove(&number);
        self.exports.shown = self.exports.shown.max(number);
        let held = std::mem::take(&mut self.exports.held);
        for (waits_for, purpose, stages) in held {
            if waits_for == number {
                self.begin_now(purpose, stages);
            } else {
                self.exports.held.push((waits_for, purpose, stages));
            }
        }
    }
}
