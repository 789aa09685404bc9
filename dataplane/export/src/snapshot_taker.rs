//! Snapshots that a client asks for in band: the way from a session to whoever takes them.

use std::fmt;

/// Why a snapshot that a client asked for is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// The question is wrong: no name for a snapshot, or one that is taken. Says what, and what to do next.
    Invalid(String),
    /// It cannot be now, whatever the name: no space, too many at once, a shard that refused. Says what, and what to do next.
    Unable(String),
}

/// Takes snapshots of one export's view, for clients that negotiate.
pub trait SnapshotTaker: fmt::Debug + Send + Sync {
    /// Begins to take a snapshot of this name; never waits. It is taken also if the wish is dropped.
    ///
    /// # Errors
    /// Why it was not even begun.
    fn begin(&self, name: &str) -> Result<Box<dyn SnapshotWish>, NotTaken>;
}

/// A snapshot that is being taken.
pub trait SnapshotWish: fmt::Debug + Send {
    /// How it went, `Ok` once it is durable; `None` as long as it is under way. Not to be asked again after that. Never waits.
    fn outcome(&mut self) -> Option<Result<(), NotTaken>>;
}
