//! Snapshots that a client takes while it negotiates, by selecting `stillpoint:snapshot:NAME`.
//!
//! A session never waits: as long as the snapshot is under way the option stays unanswered, and is looked at again each turn.

use super::wire::option_reply;
use crate::export_table::{Export, ExportTable};
use crate::snapshot_names::Busy;
use crate::snapshot_taker::{NotTaken, SnapshotWish};

/// What one client has taken and is taking.
#[derive(Debug, Default)]
pub(super) struct Taking {
    /// The snapshot under way.
    wish: Option<(Wanted, Box<dyn SnapshotWish>)>,
    /// Those it has got: clients repeat a selection before they choose the export.
    taken: Vec<Wanted>,
}

/// A snapshot by the names of its export and its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    export: String,
    name: String,
}

/// Why an option with a snapshot cannot be answered with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Untaken {
    /// It is under way, or the names are busy: again in the next turn.
    NotYet,
    /// Never: the error and what to say with it.
    Refused(u32, String),
}

impl From<Busy> for Untaken {
    fn from(_: Busy) -> Self {
        Self::NotYet
    }
}

impl Taking {
    /// Takes a snapshot of what an export shows, unless this client has taken it before. Asked again for the same one,
    /// it goes on with the one under way.
    pub(super) fn take(&mut self, exports: &ExportTable, export: &Export, name: &str) -> Result<(), Untaken> {
        let wanted = Wanted {
            export: export.name.clone(),
            name: name.to_owned(),
        };
        if self.taken.contains(&wanted) {
            return Ok(());
        }
        let mut wish = match self.wish.take() {
            Some((of, wish)) if of == wanted => wish,
            _ => begin(exports, export, name)?,
        };
        match wish.outcome() {
            None => {
                self.wish = Some((wanted, wish));
                Err(Untaken::NotYet)
            }
            Some(Ok(())) => {
                self.taken.push(wanted);
                Ok(())
            }
            Some(Err(error)) => Err(refused(error)),
        }
    }
}

fn begin(exports: &ExportTable, export: &Export, name: &str) -> Result<Box<dyn SnapshotWish>, Untaken> {
    let policy = |message: String| Err(Untaken::Refused(option_reply::ERR_POLICY, message));
    let shown = &export.name;
    if export.host_view.read_only {
        return policy(format!(
            "export {shown} is read-only: a client takes snapshots through an export that it may write to"
        ));
    }
    match exports.snapshot_taker(shown) {
        Some(taker) => taker.begin(name).map_err(refused),
        None => policy(format!(
            "clients of export {shown} may not take snapshots: that is allowed with `stillpoint export create --allow-snapshots`"
        )),
    }
}

fn refused(error: NotTaken) -> Untaken {
    match error {
        NotTaken::Invalid(message) => Untaken::Refused(option_reply::ERR_INVALID, message),
        NotTaken::Unable(message) => Untaken::Refused(option_reply::ERR_POLICY, message),
    }
}
