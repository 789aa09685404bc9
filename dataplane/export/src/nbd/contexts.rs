//! Metadata contexts: what block status queries can be about. Source: `proto.md`, "Metadata querying", and qemu's
//! `docs/interop/nbd.txt` for its dirty bitmaps.
//!
//! | context | tells |
//! |---|---|
//! | `base:allocation` | what is a hole |
//! | `stillpoint:changes:SNAPSHOT` | what changed since that snapshot, and what of it is a hole now |
//! | `qemu:dirty-bitmap:SNAPSHOT` | what changed since that snapshot, as qemu's tools ask for it |
//! | `stillpoint:snapshot:NAME` | selecting it takes the snapshot; then the same as `stillpoint:changes:NAME` |
//!
//! A name that ends in a colon (also `base:`, `stillpoint:`, `qemu:`) asks for a list of all that begin with it. Without
//! any query the two lists come in short, as such names, when there are many snapshots.

use super::wire::{
    CONTEXT_ALLOCATION, CONTEXT_BASE, CONTEXT_CHANGES, CONTEXT_DIRTY, CONTEXT_QEMU, CONTEXT_SNAPSHOT,
    CONTEXT_STILLPOINT, NAME_BYTES_MAX, Reader, changes_state, dirty_state, extent_state,
};
use crate::snapshot_names::{Busy, SNAPSHOT_NAME_BYTES_MAX, SnapshotNames};
use std::collections::{BTreeSet, VecDeque};
use stillpoint_processor::{Base, CHANGED, CHANGED_TO_HOLE, RequestKind};

/// Metadata context id of `base:allocation`, if it is the first that was selected.
pub const ALLOCATION_CONTEXT_ID: u32 = 1;
/// Contexts that a client may select at most: each costs a look at the map per query.
pub const CONTEXTS_MAX: usize = 16;
/// With more snapshots than this, a list without a query names the two families of contexts and not every snapshot.
pub const SNAPSHOTS_LISTED_MAX: usize = 32;
/// Names fetched at a time.
const PAGE_NAMES: usize = 64;

/// How changes since a snapshot are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dialect {
    Changes,
    Dirty,
}

impl Dialect {
    const ALL: [Self; 2] = [Self::Changes, Self::Dirty];

    fn prefix(self) -> &'static str {
        match self {
            Self::Changes => CONTEXT_CHANGES,
            Self::Dirty => CONTEXT_DIRTY,
        }
    }
}

/// A context that a client selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) id: u32,
    pub(super) name: String,
    about: About,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Allocation,
    Since(Dialect, Base),
}

impl Context {
    /// What is asked of the shards.
    pub(super) fn request_kind(&self) -> RequestKind {
        match self.about {
            About::Allocation => RequestKind::BlockStatus,
            About::Since(_, base) => RequestKind::Changes { base },
        }
    }

    /// What the client is told where a shard said `state`.
    pub(super) fn state(&self, state: u32) -> u32 {
        let flag = |bit: u32, flag: u32| if state & bit != 0 { flag } else { 0 };
        match self.about {
            About::Allocation => flag(1, extent_state::HOLE | extent_state::ZERO),
            About::Since(Dialect::Changes, _) => {
                flag(CHANGED, changes_state::CHANGED) | flag(CHANGED_TO_HOLE, changes_state::HOLE)
            }
            About::Since(Dialect::Dirty, _) => flag(CHANGED, dirty_state::DIRTY),
        }
    }
}

/// One thing that a query asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Allocation,
    Every(Dialect),
    One(Dialect, String),
    /// Whether snapshots can be taken.
    Taking,
}

impl Wanted {
    /// What a query asks for; nothing if it is about something else.
    fn of(query: &[u8]) -> Vec<Self> {
        let Ok(query) = str::from_utf8(query) else {
            return Vec::new();
        };
        match query {
            CONTEXT_ALLOCATION | CONTEXT_BASE => return vec![Self::Allocation],
            CONTEXT_STILLPOINT => return vec![Self::Every(Dialect::Changes), Self::Taking],
            CONTEXT_SNAPSHOT => return vec![Self::Taking],
            CONTEXT_QEMU => return vec![Self::Every(Dialect::Dirty)],
            _ => {}
        }
        let found = Dialect::ALL.into_iter().find_map(|dialect| {
            let name = query.strip_prefix(dialect.prefix())?;
            Some(match name {
                "" => Self::Every(dialect),
                name => Self::One(dialect, name.to_owned()),
            })
        });
        found
            .into_iter()
            .filter(|wanted| !matches!(wanted, Self::One(_, name) if name.len() > SNAPSHOT_NAME_BYTES_MAX))
            .collect()
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`: `name | query count u32 | queries`, strings with lengths.
#[derive(Debug)]
pub(super) struct Queries<'a> {
    pub(super) export: &'a [u8],
    none: bool,
    wanted: BTreeSet<Wanted>,
    /// Snapshots to be taken, by name; only of a selection: a list takes none.
    pub(super) taking: BTreeSet<&'a [u8]>,
}

impl<'a> Queries<'a> {
    /// `None` if the lengths do not fit together. A name that stands for several is nothing that can be `set`.
    pub(super) fn parse(data: &'a [u8], set: bool) -> Option<Self> {
        let mut reader = Reader::new(data);
        let export = reader.string()?;
        let count = reader.u32()?;
        let (mut wanted, mut taking) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..count {
            let query = reader.string()?;
            if query.len() > NAME_BYTES_MAX {
                return None;
            }
            match query.strip_prefix(CONTEXT_SNAPSHOT.as_bytes()) {
                Some(name) if set && !name.is_empty() => drop(taking.insert(name)),
                _ if set && query.ends_with(b":") => {}
                _ => wanted.extend(Wanted::of(query)),
            }
        }
        (reader.rest().is_empty() && export.len() <= NAME_BYTES_MAX).then_some(Self {
            export,
            none: count == 0,
            wanted,
            taking,
        })
    }

    /// The contexts to be selected; those that are not there are left out.
    ///
    /// # Errors
    /// [`Busy`].
    pub(super) fn select(&self, names: Option<&dyn SnapshotNames>) -> Result<Vec<Context>, Busy> {
        let mut selected = Vec::new();
        for wanted in &self.wanted {
            let (name, about) = match wanted {
                Wanted::Allocation => (CONTEXT_ALLOCATION.to_owned(), About::Allocation),
                Wanted::Every(_) | Wanted::Taking => continue,
                Wanted::One(dialect, name) => match find(names, name)? {
                    Some(base) => (dialect.prefix().to_owned() + name, About::Since(*dialect, base)),
                    None => continue,
                },
            };
            let id = ALLOCATION_CONTEXT_ID + selected.len() as u32;
            selected.push(Context { id, name, about });
        }
        Ok(selected)
    }

    /// The context of a snapshot that was just taken, with this id; none if it has been deleted since.
    ///
    /// # Errors
    /// [`Busy`].
    pub(super) fn of_taken(
        id: u32,
        name: &str,
        names: Option<&dyn SnapshotNames>,
    ) -> Result<Option<Context>, Busy> {
        let context = |base| Context {
            id,
            name: CONTEXT_SNAPSHOT.to_owned() + name,
            about: About::Since(Dialect::Changes, base),
        };
        Ok(find(names, name)?.map(context))
    }

    /// The list that answers the queries.
    ///
    /// # Errors
    /// [`Busy`].
    pub(super) fn list(
        mut self,
        export: &str,
        names: Option<&dyn SnapshotNames>,
    ) -> Result<ContextList, Busy> {
        let mut short = false;
        if self.none {
            let some = list(names, None, SNAPSHOTS_LISTED_MAX + 1)?;
            short = some.len() > SNAPSHOTS_LISTED_MAX;
            self.wanted.insert(Wanted::Allocation);
            self.wanted.extend(Dialect::ALL.map(Wanted::Every));
            self.wanted.insert(Wanted::Taking);
        }
        Ok(ContextList {
            export: export.to_owned(),
            wanted: self.wanted,
            short,
            page: VecDeque::new(),
            after: None,
        })
    }
}

/// A list of contexts on its way to the client.
#[derive(Debug)]
pub(super) struct ContextList {
    pub(super) export: String,
    wanted: BTreeSet<Wanted>,
    /// Names that stand for several are not spelled out.
    short: bool,
    page: VecDeque<String>,
    after: Option<String>,
}

impl ContextList {
    /// The next name; `None` when all were told. `takes_snapshots`: whether that is allowed now.
    ///
    /// # Errors
    /// [`Busy`].
    pub(super) fn next(
        &mut self,
        names: Option<&dyn SnapshotNames>,
        takes_snapshots: bool,
    ) -> Result<Option<String>, Busy> {
        while let Some(wanted) = self.wanted.first() {
            let told = match wanted {
                Wanted::Allocation => Some(CONTEXT_ALLOCATION.to_owned()),
                Wanted::One(dialect, name) => find(names, name)?.map(|_| dialect.prefix().to_owned() + name),
                Wanted::Taking => takes_snapshots.then(|| CONTEXT_SNAPSHOT.to_owned()),
                Wanted::Every(dialect) if self.short => Some(dialect.prefix().to_owned()),
                Wanted::Every(dialect) => {
                    if self.page.is_empty() {
                        self.page = list(names, self.after.as_deref(), PAGE_NAMES)?.into();
                    }
                    self.after = self.page.pop_front();
                    if let Some(name) = &self.after {
                        return Ok(Some(dialect.prefix().to_owned() + name));
                    }
                    None
                }
            };
            self.wanted.pop_first();
            if told.is_some() {
                return Ok(told);
            }
        }
        Ok(None)
    }
}

fn find(names: Option<&dyn SnapshotNames>, name: &str) -> Result<Option<Base>, Busy> {
    names.map_or(Ok(None), |names| names.find(name))
}

fn list(names: Option<&dyn SnapshotNames>, after: Option<&str>, limit: usize) -> Result<Vec<String>, Busy> {
    names.map_or(Ok(Vec::new()), |names| names.list(after, limit))
}
