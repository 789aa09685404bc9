//! How a run ends: with silence, or with a crash and a recovery. Either way every snapshot is there whole, or there is
//! no trace of it.

use std::collections::BTreeSet;

use stillpoint_ondisk::catalog::Key;
use stillpoint_processor::{Shard, ShardCommand, SnapshotId};

use super::clients::{Clients, Does, Known};
use super::stage::{Move, News, Stage};
use super::tail::SmallTail;
use crate::device::CrashFate;
use crate::model::{Broken, Crash};

fn broken<T>(what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(what.into()))
}

/// The snapshots whose commit record is in the catalog, and those that have any other row there.
fn rows(shard: &Shard<SmallTail>) -> Result<(BTreeSet<u64>, BTreeSet<u64>), Broken> {
    let (mut committed, mut figures) = (BTreeSet::new(), BTreeSet::new());
    for key in shard.catalog().keys() {
        match Key::decode(key) {
            Ok(Key::Snapshot(snapshot)) => drop(committed.insert(snapshot)),
            Ok(Key::Figures { snapshot, .. }) => drop(figures.insert(snapshot)),
            other => return broken(format!("a row that nobody wrote: {other:?}")),
        }
    }
    Ok((committed, figures))
}

/// The snapshots that a shard has of all its volumes; with those that are being freed, or without.
fn parts(shard: &Shard<SmallTail>, with_deleting: bool) -> BTreeSet<(u32, u64)> {
    let mut parts = BTreeSet::new();
    for share in shard.shares() {
        let kept = share
            .snapshots
            .iter()
            .filter(|found| with_deleting || !found.deleting);
        parts.extend(kept.map(|found| (share.id.0, found.snapshot.0)));
    }
    parts
}

/// Lets everything that is on its way arrive, in a plain order; time passes only if nothing else is left.
///
/// # Errors
/// The law that is broken.
pub fn settle(stage: &mut Stage, clients: &mut Clients) -> Result<(), Broken> {
    let mut moves = Vec::new();
    loop {
        tell(stage, clients)?;
        moves.clear();
        stage.moves(&mut moves);
        if let Some(next) = moves.first() {
            take(stage, clients, *next)?;
        } else if let Some(deadline_ns) = stage.next_deadline_ns() {
            stage.now_ns = stage.now_ns.max(deadline_ns);
            pass_time(stage, clients)?;
        } else if stage.is_quiet() && clients.all_answered() {
            return Ok(());
        } else {
            return broken(format!(
                "nothing will ever happen again, but these were not answered:{}",
                clients.describe()
            ));
        }
    }
}

/// The coordinator looks at the time, and so does every shard whose hold has come to its end.
///
/// # Errors
/// A hold that goes on.
pub fn pass_time(stage: &mut Stage, clients: &mut Clients) -> Result<(), Broken> {
    stage.poll_coordinator();
    for shard in 0..stage.shard_count() {
        if stage
            .deadline_ns(shard)
            .is_some_and(|at_ns| at_ns <= stage.now_ns)
        {
            take(stage, clients, Move::Turn(shard))?;
        }
    }
    tell(stage, clients)
}

/// Lets one thing happen, and tells the clients.
///
/// # Errors
/// The law that is broken.
pub fn take(stage: &mut Stage, clients: &mut Clients, next: Move) -> Result<(), Broken> {
    match stage.take(next)? {
        News::None => {}
        News::Answer(answer) => clients.answered(answer)?,
        News::Ended(id, result) => clients.snapshot_ended(stage, id, &result)?,
    }
    tell(stage, clients)
}

/// Tells how snapshots ended.
///
/// # Errors
/// The law that is broken.
pub fn tell(stage: &mut Stage, clients: &mut Clients) -> Result<(), Broken> {
    while let News::Ended(id, result) = stage.news() {
        clients.snapshot_ended(stage, id, &result)?;
    }
    Ok(())
}

/// In silence: whoever was told that a snapshot is there finds all of it; of any other no trace is left. Everything is
/// read once more.
///
/// # Errors
/// The law that is broken.
pub fn compare_in_silence(stage: &mut Stage, clients: &mut Clients) -> Result<(), Broken> {
    let (committed, figures) = rows(stage.shard(0))?;
    for (&id, snapshot) in &clients.snapshots {
        let (is_there, record) = (snapshot.known == Known::There, committed.contains(&id));
        match snapshot.known {
            Known::There if !record => return broken(format!("I8: snapshot {id} has no commit record")),
            Known::Asked | Known::NotThere if record || figures.contains(&id) => {
                return broken(format!("I8: snapshot {id} left rows in the catalog"));
            }
            Known::InDoubt => continue,
            _ => {}
        }
        for shard in 0..stage.shard_count() {
            // In silence everything that was to be freed has been freed.
            let parts = parts(stage.shard(shard), true);
            for &volume in &snapshot.volumes {
                let part = (clients.volumes[volume].view.view.volume.0, id);
                if parts.contains(&part) != is_there {
                    return broken(format!(
                        "I8: snapshot {id}, {:?}: its part on shard {shard} is {}",
                        snapshot.known,
                        if is_there { "missing" } else { "still there" }
                    ));
                }
            }
        }
    }
    look_at_everything(stage, clients, Does::Read)
}

fn look_at_everything(stage: &mut Stage, clients: &mut Clients, volumes_as: Does) -> Result<(), Broken> {
    // Snapshots first: they are compared with the history up to the crash, which the volumes then close.
    let there: Vec<(u64, Vec<usize>)> = clients
        .snapshots
        .iter()
        .filter(|(_, snapshot)| snapshot.known == Known::There)
        .map(|(id, snapshot)| (*id, snapshot.volumes.clone()))
        .collect();
    for (id, volumes) in there {
        for volume in volumes {
            clients.look(stage, Does::Look(id), volume);
        }
    }
    settle(stage, clients)?;
    for volume in 0..clients.volumes.len() {
        clients.look(stage, volumes_as, volume);
    }
    settle(stage, clients)
}

/// Ends the life of the appliance and opens the pool again: what was confirmed is there, and nothing else but what
/// nobody was told the end of; each of these whole or not at all.
///
/// # Errors
/// The law that is broken.
pub fn crash_and_recover(
    stage: &mut Stage,
    clients: &mut Clients,
    crash: Crash,
    fate: CrashFate,
) -> Result<(), Broken> {
    clients.crash();
    stage.crash(crash == Crash::PowerCut, fate);
    let mut shards = Vec::new();
    let mut port = stage.devices.open_port(None);
    for (mut shard, _) in stage.open()? {
        let report = shard.check(&mut port, true);
        if !report.problems.is_empty() {
            return broken(format!(
                "after {crash:?} shard {}: {:?}",
                shard.index().0,
                report.problems
            ));
        }
        shards.push(shard);
    }
    let (committed, figures) = rows(&shards[0])?;
    decide(clients, &committed)?;
    let found: Vec<BTreeSet<(u32, u64)>> = shards.iter().map(|shard| parts(shard, false)).collect();
    for &id in &committed {
        for &volume in &clients.snapshots[&id].volumes {
            let part = (clients.volumes[volume].view.view.volume.0, id);
            if let Some(shard) = found.iter().position(|parts| !parts.contains(&part)) {
                return broken(format!("I8: shard {shard} lost its part of snapshot {id}"));
            }
        }
    }
    stage.start(shards);
    for &snapshot in figures.difference(&committed) {
        let key = Key::Figures {
            snapshot,
            first_shard: 0,
        };
        stage.control(0, ShardCommand::CatalogDelete { key: key.encode() });
    }
    for (shard, parts) in found.iter().enumerate() {
        for &(volume, id) in parts.iter().filter(|(_, id)| !committed.contains(id)) {
            let (volume, snapshot) = (stillpoint_processor::VolumeId(volume), SnapshotId(id));
            stage.control(shard, ShardCommand::DeleteSnapshot { volume, snapshot });
        }
    }
    stage.settle()?;
    look_at_everything(stage, clients, Does::Recovered(crash))?;
    compare_in_silence(stage, clients)
}

/// The commit records decide which snapshots there are.
fn decide(clients: &mut Clients, committed: &BTreeSet<u64>) -> Result<(), Broken> {
    for (&id, snapshot) in &mut clients.snapshots {
        let record = committed.contains(&id);
        snapshot.known = match snapshot.known {
            Known::There if !record => return broken(format!("I8: snapshot {id} is lost")),
            Known::NotThere if record => return broken(format!("I8: snapshot {id} came back")),
            _ if record => Known::There,
            _ => Known::NotThere,
        };
    }
    match committed.iter().find(|id| !clients.snapshots.contains_key(id)) {
        Some(id) => broken(format!("snapshot {id} was never asked for")),
        None => Ok(()),
    }
}
