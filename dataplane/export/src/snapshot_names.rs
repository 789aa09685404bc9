//! The snapshots that a session may compare its view with, by name.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use stillpoint_processor::Base;

/// Longest name of a snapshot that is looked for, in bytes.
pub const SNAPSHOT_NAME_BYTES_MAX: usize = 512;

/// They are being changed at this instant: to be asked again in the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// The snapshots of one export's view, by name. Snapshots come and go all the time, so they are looked up where they
/// are kept and are not in the table of exports. Asked while a client negotiates; never waits.
pub trait SnapshotNames: fmt::Debug + Send + Sync {
    /// The snapshot of this name.
    ///
    /// # Errors
    /// [`Busy`].
    fn find(&self, name: &str) -> Result<Option<Base>, Busy>;

    /// The first `limit` names behind `after`, in order.
    ///
    /// # Errors
    /// [`Busy`].
    fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, Busy>;
}

impl SnapshotNames for BTreeMap<String, Base> {
    fn find(&self, name: &str) -> Result<Option<Base>, Busy> {
        Ok(self.get(name).copied())
    }

    fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, Busy> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(name, _)| name);
        Ok(names.take(limit).cloned().collect())
    }
}
