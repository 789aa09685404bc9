//! Devices that come back: their pools are opened again by themselves.
//!
//! ```text
//! every 2 s   open pools: is a device gone?                                        one question to the kernel for each
//! then, while a pool waits for devices (one is gone, or it could not be opened):
//!             block devices that are new: of which pool, which number?             their labels, whatever their names
//!             all of a pool are there -> close what is left of it -> open it       log replay; the exports are back
//! ```
//! A device that is smaller than its pool needs is not there until it has its size back.
//! A pool that could not be opened although its devices are there is tried again when one of them has changed, or while one is in
//! use. A pool with mirrors goes on without a side; the side is given back to it when it is there again. Only when a last side was lost
//! it is opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::start::silence;
use super::{Appliance, Degraded, FailedPool, device_error};
use crate::api::model::ReplaceDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::events::EventKind;
use crate::label::{self, Found, id_text};
use crate::patience::{self, Questions, SignsOfLife};
use crate::pool::Pool;
use crate::state::KnownPool;
use stillpoint_hw::device::DeviceFile;
use stillpoint_hw::discovery::Machine;

/// The pause between two looks.
pub(crate) const PERIOD: Duration = Duration::from_secs(2);
/// So long a look waits for a path: what has not answered by then is not there, until it has.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// So long what was found, or named, is waited for when it is opened.
pub(super) const CLAIM_LIMIT: Duration = Duration::from_secs(30);

/// What paths are asked that may never answer.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// Of which pool it is: name and identity.
    pub given: Questions<PathBuf, Option<(String, String)>>,
    /// Whether it can be had.
    claims: Questions<PathBuf, Result<()>>,
    /// Whether it leads anywhere.
    existence: Questions<PathBuf, bool>,
    /// Whether it can be read or not is known.
    pub signs: SignsOfLife,
}

/// A pool that waits for devices.
#[derive(Clone, Debug)]
struct Waiting {
    known: KnownPool,
    /// By place: whether it is not there. `None`: none of them is; how many there are only their labels tell.
    missing: Option<Vec<bool>>,
    /// Of the missing places those of sides of mirrors that are out: the pool is opened without them, and they are given to it then.
    out: Vec<usize>,
    /// It was given at the start, and nothing else is known of it: only the devices that were given are its own.
    given: bool,
}

impl Waiting {
    /// All that is missing are sides of mirrors that are out: these are given to the open pool.
    fn waits_for_sides_alone(&self) -> bool {
        let missing = self.missing.iter().flatten().enumerate();
        self.missing.is_some()
            && missing
                .filter(|(_, missing)| **missing)
                .all(|(place, _)| self.out.contains(&place))
    }
}

/// A device as it was when its label was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Another one, or another content, has another mark.
    mark: String,
    of: Option<Place>,
    /// Why it is not used: its pool needs more than it has.
    too_small: Option<String>,
    /// Somebody was told of that.
    is_told: bool,
}

impl Seen {
    /// Whether it lies where one of this pool's devices was, and nobody knows what of that is left.
    fn is_unusable(&self, id: &str) -> bool {
        match &self.of {
            Some(of) => of.pool == id && self.too_small.is_some(),
            None => true,
        }
    }
}

/// What a label says of its device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    pool: String,
    /// Its place in the pool, and how many places there are.
    place: usize,
    places: usize,
    /// Two places are the sides of one device.
    mirrored: bool,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Search {
    seen: BTreeMap<PathBuf, Seen>,
    /// By pool: the devices with which it could not be opened.
    tried: BTreeMap<String, Vec<(PathBuf, String)>>,
    /// By pool: sides of mirrors that were not given back to it.
    refused: BTreeMap<String, Vec<(PathBuf, String)>>,
    /// What lies at each path; `None`: nothing, or what cannot be read.
    questions: Questions<PathBuf, Option<Seen>>,
}

impl Appliance {
    /// Looks after devices that go and come back, until it is told that the appliance stops.
    pub async fn look_after_devices(&self, mut stopping: watch::Receiver<bool>) {
        let mut search = Search::default();
        loop {
            let pause = tokio::time::timeout(PERIOD, stopping.wait_for(|&stopping| stopping));
            if pause.await.is_ok() {
                return;
            }
            for pool in self.pools() {
                pool.look_after_sides().await;
            }
            // A device that does not answer must not keep the daemon from stopping.
            tokio::select! {
                _ = stopping.wait_for(|&stopping| stopping) => return,
                () = self.look_for_given() => {}
            }
            let waiting = self.waiting_for_devices();
            if waiting.is_empty() {
                // What is still being asked is not to be asked again, and what was answered is of the past.
                let questions = search.questions;
                drop(questions.answers());
                search = Search {
                    questions,
                    ..Search::default()
                };
                continue;
            }
            tokio::select! {
                _ = stopping.wait_for(|&stopping| stopping) => return,
                () = search.look(&waiting) => {}
            }
            for pool in &waiting {
                self.tell_too_small(pool, &mut search);
                self.bring_back(pool, &mut search).await;
            }
        }
    }

    /// Puts another device in the place of a side; see [`Pool::replace_side`].
    ///
    /// # Errors
    /// Those of that; failure if it cannot be written down where the pool's devices are.
    pub async fn replace_device(&self, pool: &str, request: &ReplaceDevice) -> Result<Arc<Pool>> {
        let pool = self.pool(pool)?;
        pool.replace_side(request, self.options.nvme_commands).await?;
        self.state.save(&self.known_pools())?;
        Ok(pool)
    }

    /// The pools that wait for devices, those with mirrors for sides.
    fn waiting_for_devices(&self) -> Vec<Waiting> {
        let mut waiting = Vec::new();
        for pool in self.pools() {
            let out = pool.sides_missing();
            let lost = pool.lost_devices();
            if lost.is_empty() && out.is_empty() {
                continue;
            }
            let mut known = pool.known();
            if pool.devices.layout.mirrored && !lost.is_empty() {
                // By place; then names that nothing was found by so far.
                let placed = pool.placed_sides();
                known.devices.retain(|path| !placed.contains(path));
                known.devices.splice(0..0, placed);
            }
            let places = 0..pool.devices.paths.len();
            let is_missing = |place| lost.contains_key(&place) || out.contains(&place);
            waiting.push(Waiting {
                known,
                missing: Some(places.map(is_missing).collect()),
                out,
                given: false,
            });
        }
        let failed = self.failed_pools().into_iter();
        waiting.extend(failed.map(|failed| Waiting {
            known: failed.known,
            missing: None,
            out: Vec::new(),
            given: failed.given,
        }));
        waiting
    }

    /// Tells of devices that came for a pool and are too small for it. Those that it has are told of by itself.
    fn tell_too_small(&self, waiting: &Waiting, search: &mut Search) {
        let id = &waiting.known.id;
        let pools = self.pools();
        let open = pools.iter().find(|pool| pool.devices.id_text() == *id);
        let lost = open.map(|pool| pool.lost_devices()).unwrap_or_default();
        for (path, seen) in &mut search.seen {
            let (Some(of), Some(error)) = (&seen.of, &seen.too_small) else {
                continue;
            };
            if of.pool != *id || core::mem::replace(&mut seen.is_told, true) {
                continue;
            }
            if lost.get(&of.place).is_some_and(|lost| lost.is_there()) {
                continue;
            }
            let text = format!("not used: {error}");
            let path = path.display().to_string();
            self.events
                .tell(EventKind::DeviceResized, &waiting.known.name, &path, text);
        }
    }

    /// Opens a pool if all its devices are there.
    async fn bring_back(&self, waiting: &Waiting, search: &mut Search) {
        let name = &waiting.known.name;
        let found = match waiting.waits_for_sides_alone() {
            true => None,
            false => search.complete(waiting),
        };
        let Some(found) = found else {
            // What was lost is not back; sides of mirrors may be.
            if let Some(pool) = self.with_mirrors(&waiting.known.id) {
                self.bring_back_sides(&pool, waiting, search).await;
            }
            return;
        };
        let paths: Vec<PathBuf> = found.iter().map(|(path, _)| path.clone()).collect();
        let result = match &waiting.missing {
            Some(_) => {
                let returned = found.iter().filter(|(_, mark)| !mark.is_empty());
                let returned = returned.map(|(path, _)| path.clone()).collect();
                self.reopen(waiting, &paths, returned).await
            }
            None => self.open_failed(&waiting.known.id, &paths, search).await,
        };
        match result {
            Ok(()) => {
                search.tried.remove(&waiting.known.id);
                search.refused.remove(&waiting.known.id);
            }
            // Somebody looks at it, or has it for now.
            Err(error) if error.kind == ErrorKind::Conflict => {
                tracing::debug!("pool {name} waits: {error}");
            }
            // Something fell silent that had just answered: it is not there until it answers again.
            Err(error) if error.kind == ErrorKind::Unavailable => {
                tracing::debug!("pool {name} waits: {error}");
                for (path, _) in found {
                    search.seen.remove(&path);
                }
            }
            Err(error) => {
                tracing::warn!("pool {name} cannot be opened with the devices that are there now: {error}");
                search.tried.insert(waiting.known.id.clone(), found);
            }
        }
    }

    fn with_mirrors(&self, id: &str) -> Option<Arc<Pool>> {
        let mut pools = self.pools().into_iter();
        pools.find(|pool| pool.devices.layout.mirrored && pool.devices.id_text() == id)
    }

    /// Gives an open pool with mirrors those of its sides that are there again. One that failed and stayed is not there again.
    async fn bring_back_sides(&self, pool: &Pool, waiting: &Waiting, search: &mut Search) {
        let id = &waiting.known.id;
        for &place in &waiting.out {
            if search.is_too_small(id, place) {
                pool.side_is_too_small(place).await;
            }
            let Some(found) = search.at(id, place, &waiting.known.devices) else {
                pool.side_went(place);
                continue;
            };
            let is_refused = (search.refused.get(id)).is_some_and(|refused| refused.contains(&found));
            if is_refused || pool.side_stayed(place) {
                continue;
            }
            let commands = self.options.nvme_commands;
            match pool.side_returned(place, &found.0, commands).await {
                // It may have another name now, by which the next start has to find it.
                Ok(()) => {
                    if let Err(error) = self.state.save(&self.known_pools()) {
                        tracing::error!("{error}");
                    }
                }
                Err(error) if error.kind == ErrorKind::Conflict && error.hint.is_none() => {
                    tracing::debug!("pool {} waits: {error}", pool.name());
                }
                Err(error) => {
                    let text = format!("not used: {error}");
                    pool.tell(EventKind::DeviceReturned, &found.0.display().to_string(), text);
                    search.refused.entry(id.clone()).or_default().push(found);
                }
            }
        }
    }

    /// Closes what is left of an open pool, and opens it with these devices, of which some have `returned`.
    async fn reopen(&self, waiting: &Waiting, paths: &[PathBuf], returned: Vec<PathBuf>) -> Result<()> {
        let id = &waiting.known.id;
        let held = self.held_again(id);
        let others = returned.iter().filter(|path| !held.contains(path));
        self.claimable(others.cloned().collect()).await?;
        let structure = self.structure.lock().await;
        let open = self
            .pools()
            .into_iter()
            .find(|pool| pool.devices.id_text() == *id);
        let Some(pool) = open.filter(|pool| !pool.lost_devices().is_empty()) else {
            return Ok(()); // somebody has closed it, and may have opened it, meanwhile
        };
        for path in &returned {
            let text = "back: the pool is closed and opened again";
            pool.tell(EventKind::DeviceReturned, &path.display().to_string(), text);
        }
        // Sides that are out may come back by these.
        let places = waiting.missing.as_ref().map_or(0, Vec::len);
        let names = (waiting.known.devices.iter().enumerate()).filter(|(place, path)| {
            !path.as_os_str().is_empty() && (waiting.out.contains(place) || *place >= places)
        });
        let names: Vec<PathBuf> = names.map(|(_, path)| path.clone()).collect();
        let known = KnownPool {
            devices: paths.iter().chain(&names).cloned().collect(),
            ..pool.known()
        };
        // In between it is known too, and by its new devices.
        self.lock().failed.push(FailedPool {
            known: known.clone(),
            error: Error::failure("its devices are back: it is being opened again"),
            opening: true,
            given: false,
        });
        self.shut(&pool).await?;
        // It has the devices that stayed, until nobody has it.
        drop(pool);
        let opened = self.open_in_structure(paths, Degraded::AsNew).await;
        match &opened {
            Ok(pool) => pool.remember_names(names),
            Err(error) => self.not_opened(known, error.clone()),
        }
        drop(structure);
        self.pools_changed().await?;
        opened.map(drop)
    }

    /// The devices that an open pool has and that were lost; see [`Pool::held_again`].
    fn held_again(&self, id: &str) -> Vec<PathBuf> {
        let open = self.pools().into_iter().find(|pool| pool.devices.id_text() == id);
        open.map(|pool| pool.held_again()).unwrap_or_default()
    }

    /// Whether these devices can be had, before anything is closed for them.
    async fn claimable(&self, paths: Vec<PathBuf>) -> Result<()> {
        let claims = paths.iter().cloned().map(|path| {
            let opened = |path: &Path| DeviceFile::open(path).map_err(|error| device_error(&error));
            (path.clone(), move || opened(&path).map(drop))
        });
        let mut answers = self.asking.claims.ask(claims.collect(), CLAIM_LIMIT).await;
        paths.into_iter().try_for_each(|path| {
            let silent = || Err(silence(&path, CLAIM_LIMIT));
            answers.remove(&path).unwrap_or_else(silent)
        })
    }

    /// Opens a pool that could not be opened before.
    async fn open_failed(&self, id: &str, paths: &[PathBuf], search: &Search) -> Result<()> {
        self.claimable(paths.to_vec()).await?;
        // A pool with mirrors may do without some; where they were is not forgotten.
        let mut all = paths.to_vec();
        let mut failed = self.failed_pools().into_iter();
        let Some(failed) = failed.find(|failed| failed.known.id == id) else {
            return Ok(()); // it was forgotten, or opened, meanwhile
        };
        let known = failed.known.devices;
        let mut silent = Vec::new();
        if paths.len() < known.len() {
            let others: Vec<PathBuf> = known.into_iter().filter(|path| !paths.contains(path)).collect();
            // A file may be on a server that does not answer: then nobody is to ask it for a label either.
            let exist = others
                .iter()
                .cloned()
                .map(|path| (path.clone(), move || path.exists()));
            let exist = self.asking.existence.ask(exist.collect(), LOOK_LIMIT).await;
            for path in others {
                match exist.get(&path) {
                    Some(true) => match search.seen.get(&path) {
                        // It has not said what it is.
                        None => silent.push(path),
                        Some(seen) if seen.is_unusable(id) => all.push(path),
                        // A device of others, or one that is used by another name.
                        Some(_) => {}
                    },
                    Some(false) => all.push(path),
                    None => silent.push(path),
                }
            }
        }
        // Of one that was never opened here nobody knows whether what is there is as new as what is missing.
        let degraded = match failed.given {
            true => Degraded::Refused,
            false => Degraded::AsNew,
        };
        match self.open_pool(&all, degraded).await {
            Ok(pool) if silent.is_empty() => drop(pool),
            Ok(pool) => {
                pool.remember_names(silent);
                self.state.save(&self.known_pools())?;
            }
            Err(error) => {
                let mut pools = self.lock();
                if let Some(failed) = pools.failed.iter_mut().find(|failed| failed.known.id == id) {
                    failed.error = error.clone();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// A pool that is remembered could not be opened.
    pub(super) fn not_opened(&self, known: KnownPool, error: Error) {
        self.events
            .tell(EventKind::PoolNotOpened, &known.name, "", error.to_string());
        let mut pools = self.lock();
        pools.failed.retain(|failed| failed.known.id != known.id);
        pools.failed.push(FailedPool {
            known,
            error,
            opening: false,
            given: false,
        });
    }
}

impl Pool {
    /// What is remembered of it.
    pub(crate) fn known(&self) -> KnownPool {
        let devices = self.side_paths().unwrap_or_else(|| self.devices.paths.clone());
        KnownPool {
            name: self.name().to_owned(),
            id: self.devices.id_text(),
            devices,
        }
    }
}

impl Search {
    /// Reads the labels of all block devices, and of what the pools are known to lie on, as far as they are new. Each is asked for itself:
    /// one that does not answer hides no other.
    async fn look(&mut self, waiting: &[Waiting]) {
        // What was asked before may have been answered by now.
        let late = self.questions.answers();
        let nodes = patience::beside(|| Ok(Machine::here().block_nodes())).await;
        let nodes = nodes.unwrap_or_default().into_iter();
        let nodes: Arc<BTreeMap<PathBuf, String>> =
            Arc::new(nodes.map(|node| (node.path, node.mark)).collect());
        let known = waiting.iter().flat_map(|pool| &pool.known.devices);
        let named = known.filter(|path| !path.as_os_str().is_empty() && !nodes.contains_key(*path));
        let named: BTreeSet<&PathBuf> = named.collect();
        let is_new = |(path, mark): &(&PathBuf, &String)| {
            let seen = late
                .get(*path)
                .map_or_else(|| self.seen.get(*path), Option::as_ref);
            seen.is_none_or(|seen| seen.mark != **mark)
        };
        let new = nodes.iter().filter(is_new).map(|(path, _)| path);
        // What took its time would never have answered if it were asked again at once.
        let unknown = named.iter().copied().filter(|path| !late.contains_key(*path));
        let asked: BTreeSet<PathBuf> = new.chain(unknown).cloned().collect();
        self.take_in(late);
        self.seen
            .retain(|path, _| nodes.contains_key(path) || named.contains(path));
        let questions = asked.iter().map(|path| {
            // Until it is answered it is not there.
            let (path, before) = (path.clone(), self.seen.remove(path));
            let nodes = Arc::clone(&nodes);
            (path.clone(), move || seen(&path, before, &nodes))
        });
        let questions = questions.collect();
        let answers = self.questions.ask(questions, LOOK_LIMIT).await;
        self.take_in(answers);
    }

    fn take_in(&mut self, answers: BTreeMap<PathBuf, Option<Seen>>) {
        for (path, seen) in answers {
            match seen {
                Some(seen) => drop(self.seen.insert(path, seen)),
                None => drop(self.seen.remove(&path)),
            }
        }
    }

    /// The device of a place of a pool, with its mark, if it is there.
    fn at(&self, id: &str, place: usize, known: &[PathBuf]) -> Option<(PathBuf, String)> {
        let is_it = |of: &Place| of.pool == id && of.place == place;
        let here = self
            .seen
            .iter()
            .filter(|(_, seen)| seen.of.as_ref().is_some_and(is_it));
        one_of(here.collect(), known)
    }

    /// Whether a device of this place is there, and is smaller than its pool needs.
    fn is_too_small(&self, id: &str, place: usize) -> bool {
        let is_it = |of: &Place| of.pool == id && of.place == place;
        let mut seen = self.seen.values();
        seen.any(|seen| seen.too_small.is_some() && seen.of.as_ref().is_some_and(is_it))
    }

    /// The devices of a pool, in order, with their marks (those that stayed have none), if all are there and it was not tried in vain
    /// with just these.
    fn complete(&self, waiting: &Waiting) -> Option<Vec<(PathBuf, String)>> {
        let id = &waiting.known.id;
        let of_pool: Vec<(&PathBuf, &Seen, &Place)> = (self.seen.iter())
            .filter_map(|(path, seen)| Some((path, seen, seen.of.as_ref()?)))
            .filter(|(path, _, of)| {
                of.pool == *id && (!waiting.given || waiting.known.devices.contains(path))
            })
            .collect();
        let (places, mirrored) = match &waiting.missing {
            Some(missing) => (missing.len(), false),
            None => (of_pool.first()?.2.places, of_pool.first()?.2.mirrored),
        };
        let mut found = Vec::with_capacity(places);
        for place in 0..places {
            if waiting.out.contains(&place) {
                continue;
            }
            if waiting.missing.as_ref().is_some_and(|missing| !missing[place]) {
                found.push((waiting.known.devices[place].clone(), String::new()));
                continue;
            }
            let here = of_pool.iter().filter(|(_, _, of)| of.place == place);
            let here: Vec<_> = here.map(|(path, seen, _)| (*path, *seen)).collect();
            match one_of(here, &waiting.known.devices) {
                Some(device) => found.push(device),
                // One side of each device may do.
                None if mirrored => {}
                None => return None,
            }
        }
        (self.tried.get(id) != Some(&found)).then_some(found)
    }
}

/// One of several paths to devices with the same label: one that is known, by a name that may lead elsewhere next time or by that of
/// the kernel. Of others there may be but one: a copy of a device is no device that came back, not even if the device has become
/// too small.
fn one_of(found: Vec<(&PathBuf, &Seen)>, known: &[PathBuf]) -> Option<(PathBuf, String)> {
    let is_whole = |seen: &Seen| seen.too_small.is_none();
    let by_name = (found.iter()).find(|(path, seen)| known.contains(path) && is_whole(seen));
    let (path, seen) = match by_name {
        Some(known) => known,
        None if found.len() == 1 && is_whole(found[0].1) => &found[0],
        None => return None,
    };
    Some(((*path).clone(), seen.mark.clone()))
}

/// What lies at a path, if it can be read; `before` if that was it already.
fn seen(path: &Path, before: Option<Seen>, nodes: &BTreeMap<PathBuf, String>) -> Option<Seen> {
    let mark = mark(path, nodes)?;
    if before.as_ref().is_some_and(|before| before.mark == mark) {
        return before;
    }
    // One that cannot be read is looked at again: it may not be ready, or not ours yet.
    match label::look(path) {
        Ok(found) => Some(Seen {
            mark,
            of: place(&found),
            too_small: too_small(path, &found),
            is_told: false,
        }),
        Err(error) => {
            tracing::debug!("{error}");
            None
        }
    }
}

/// What is another one for another device or file of this path; `None` if it leads to neither one of these block devices nor a file.
fn mark(path: &Path, nodes: &BTreeMap<PathBuf, String>) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    if let Some(mark) = nodes.get(&std::fs::canonicalize(path).ok()?) {
        return Some(mark.clone());
    }
    let changed = format!("{}.{}", metadata.mtime(), metadata.mtime_nsec());
    let (device, inode, size) = (metadata.dev(), metadata.ino(), metadata.size());
    metadata
        .is_file()
        .then(|| format!("{device}:{inode}:{size}:{changed}"))
}

fn place(found: &Found) -> Option<Place> {
    let Found::Label { label, .. } = found else {
        return None;
    };
    let (sides, side) = match label.is_mirrored() {
        true => (2, usize::from(label.side.get())),
        false => (1, 0),
    };
    Some(Place {
        pool: id_text(&label.header.pool),
        place: usize::from(label.device_index.get()) * sides + side,
        places: usize::from(label.device_count.get()) * sides,
        mirrored: label.is_mirrored(),
    })
}

/// Why a device is not used whose pool needs more of it than it has.
fn too_small(path: &Path, found: &Found) -> Option<String> {
    let Found::Label {
        label, size_bytes, ..
    } = found
    else {
        return None;
    };
    let needed_bytes = label::needed_bytes(label);
    (*size_bytes < needed_bytes)
        .then(|| label::too_small(path, *size_bytes, label.name(), needed_bytes).to_string())
}

#[cfg(test)]
mod tests;
