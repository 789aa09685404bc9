//! What is offered to hosts.

use crate::seats::{Seat, Seats};
use crate::snapshot_names::SnapshotNames;
use crate::snapshot_taker::SnapshotTaker;
use std::collections::BTreeMap;
use std::sync::Arc;
use stillpoint_processor::host_view::HostView;

/// Longest name or description of an export, in bytes (the NBD protocol's limit on strings).
pub const NAME_BYTES_MAX: usize = 4096;

/// A pool that is open, by the number of its place; places are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolIndex(pub u16);

/// One export: a volume or a snapshot under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name, as clients ask for it; unique in its table.
    pub name: String,
    /// The pool.
    pub pool: PoolIndex,
    /// What a session sees, and whether it may write.
    pub host_view: HostView,
    /// A line about it, for clients that ask.
    pub description: String,
}

/// All exports of the appliance, by name. A table is never changed: a new one replaces it.
#[derive(Clone, Debug, Default)]
pub struct ExportTable {
    exports: Vec<Export>,
    /// The connections of each, in the same order.
    seats: Vec<Arc<Seats>>,
    /// What each may be compared with, in the same order.
    snapshots: Vec<Option<Arc<dyn SnapshotNames>>>,
    /// Who takes snapshots for the clients of each, in the same order; `None`: they may take none.
    takers: Vec<Option<Arc<dyn SnapshotTaker>>>,
}

impl ExportTable {
    /// A table of these exports; of two with one name the later one stays. Each takes any number of connections,
    /// see [`Self::with_limit`].
    ///
    /// # Panics
    /// If a name or description is longer than [`NAME_BYTES_MAX`]: the catalog lets nothing of the kind in.
    #[must_use]
    pub fn new(exports: impl IntoIterator<Item = Export>) -> Self {
        let mut by_name = BTreeMap::new();
        for export in exports {
            assert!(export.name.len() <= NAME_BYTES_MAX, "a name is too long");
            assert!(
                export.description.len() <= NAME_BYTES_MAX,
                "a description is too long"
            );
            by_name.insert(export.name.clone(), export);
        }
        let exports: Vec<Export> = by_name.into_values().collect();
        let seats = exports.iter().map(|_| Seats::new(u32::MAX)).collect();
        let snapshots = exports.iter().map(|_| None).collect();
        let takers = exports.iter().map(|_| None).collect();
        Self {
            exports,
            seats,
            snapshots,
            takers,
        }
    }

    /// The same table, with the snapshots that clients of each export may compare its view with.
    #[must_use]
    pub fn with_snapshots(mut self, of: impl Fn(&Export) -> Option<Arc<dyn SnapshotNames>>) -> Self {
        self.snapshots = self.exports.iter().map(of).collect();
        self
    }

    /// The snapshots that the view of the export of this name may be compared with.
    #[must_use]
    pub(crate) fn snapshots(&self, name: &str) -> Option<&dyn SnapshotNames> {
        self.snapshots[self.place(name)?].as_deref()
    }

    /// The same table, with whoever takes snapshots for the clients of each export.
    #[must_use]
    pub fn with_snapshot_takers(mut self, of: impl Fn(&Export) -> Option<Arc<dyn SnapshotTaker>>) -> Self {
        self.takers = self.exports.iter().map(of).collect();
        self
    }

    /// Who takes snapshots for the clients of the export of this name; `None` if they may take none.
    #[must_use]
    pub(crate) fn snapshot_taker(&self, name: &str) -> Option<&dyn SnapshotTaker> {
        self.takers[self.place(name)?].as_deref()
    }

    /// Whether the clients of an export of this table may take snapshots.
    #[must_use]
    pub(crate) fn takes_snapshots(&self, export: &Export) -> bool {
        !export.host_view.read_only && self.snapshot_taker(&export.name).is_some()
    }

    /// The same table, each export of which takes so many connections. Exports that were in the table before go on
    /// counting from those they have.
    #[must_use]
    pub fn with_limit(mut self, connections: u32, before: &Self) -> Self {
        for (export, seats) in self.exports.iter().zip(&mut self.seats) {
            if let Some(old) = before.seats(&export.name) {
                *seats = Arc::clone(old);
            }
            seats.set_limit(connections);
        }
        self
    }

    /// The connections of the export of this name.
    #[must_use]
    pub fn seats(&self, name: &str) -> Option<&Arc<Seats>> {
        self.place(name).map(|place| &self.seats[place])
    }

    /// A place for one more connection of an export of this table.
    ///
    /// # Errors
    /// The export's limit, if it has as many already.
    pub(crate) fn take_seat(&self, export: &Export) -> Result<Seat, u32> {
        let seats = self.seats(&export.name).expect("an export of this table");
        seats.take().ok_or_else(|| seats.limit())
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.exports
            .binary_search_by(|export| export.name.as_str().cmp(name))
            .ok()
    }

    /// The export of this name; the empty name means the only export, if there is only one.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Export> {
        if name.is_empty()
            && let [only] = self.exports.as_slice()
        {
            return Some(only);
        }
        self.place(name).map(|place| &self.exports[place])
    }

    /// Whether a session of `old` may go on under this table: its export is still there and shows the same view in
    /// the same place, not smaller and not for reading only all of a sudden. (A session keeps the size it
    /// began with; a larger one is seen by those that connect anew.)
    #[must_use]
    pub fn allows(&self, old: &Export) -> bool {
        let same_name = self.exports.iter().find(|new| new.name == old.name);
        same_name.is_some_and(|new| {
            new.pool == old.pool
                && new.host_view.view == old.host_view.view
                && new.host_view.placement == old.host_view.placement
                && new.host_view.size_bytes >= old.host_view.size_bytes
                && (old.host_view.read_only || !new.host_view.read_only)
        })
    }

    /// The export at this place of the list, which is in the order of the names.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&Export> {
        self.exports.get(index)
    }

    /// All exports, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Export> {
        self.exports.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_processor::host_view::Placement;
    use stillpoint_processor::{View, VolumeId};

    fn export(name: &str) -> Export {
        Export {
            name: name.into(),
            pool: PoolIndex(0),
            description: String::new(),
            host_view: HostView {
                view: View {
                    volume: VolumeId(1),
                    snapshot: None,
                },
                placement: Placement {
                    shard_count: 1,
                    rotation: 0,
                    object_blocks: 256,
                },
                size_bytes: 1 << 20,
                block_bytes: 512,
                read_only: false,
            },
        }
    }

    #[test]
    fn the_empty_name_is_the_only_export_or_none() {
        let one = ExportTable::new([export("a")]);
        assert_eq!(one.find("").map(|e| e.name.as_str()), Some("a"));
        let two = ExportTable::new([export("b"), export("a")]);
        assert_eq!(two.find(""), None);
        assert_eq!(two.find("b").map(|e| e.name.as_str()), Some("b"));
        assert_eq!(two.find("c"), None);
    }

    #[test]
    fn names_are_unique() {
        let mut later = export("a");
        later.pool = PoolIndex(1);
        let table = ExportTable::new([export("a"), later.clone()]);
        assert!(table.iter().eq([&later]));
    }

    #[test]
    fn a_new_table_knows_the_connections_of_the_old_one() {
        let table = |names: &[&str]| ExportTable::new(names.iter().map(|name| export(name)));
        let old = table(&["a", "b"]).with_limit(2, &ExportTable::default());
        let a = old.find("a").expect("there");
        let one = old.take_seat(a).expect("the first");
        let new = table(&["a", "c"]).with_limit(2, &old);
        let two = new.take_seat(a).expect("the second");
        assert_eq!(new.take_seat(a).expect_err("no third"), 2);
        assert_eq!(new.seats("a").map(|seats| seats.taken()), Some(2));
        assert_eq!(new.seats("c").map(|seats| seats.taken()), Some(0));
        assert!(new.seats("b").is_none());
        drop((one, two));
        assert_eq!(old.seats("a").map(|seats| seats.taken()), Some(0));
        let wider = table(&["a"]).with_limit(3, &new);
        assert_eq!(wider.seats("a").map(|seats| seats.limit()), Some(3));
    }

    #[test]
    fn a_session_goes_on_while_it_loses_nothing() {
        let old = export("a");
        let with = |change: fn(&mut Export)| {
            let mut new = export("a");
            change(&mut new);
            ExportTable::new([new]).allows(&old)
        };
        assert!(with(|_| ()));
        assert!(with(|new| new.host_view.size_bytes *= 2));
        assert!(!with(|new| new.host_view.size_bytes /= 2));
        assert!(!with(|new| new.host_view.read_only = true));
        assert!(!with(|new| new.host_view.view.volume = VolumeId(2)));
        assert!(!with(|new| new.pool = PoolIndex(1)));
        assert!(!with(|new| new.name = "b".into()));
    }
}
