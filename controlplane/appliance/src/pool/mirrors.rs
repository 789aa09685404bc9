//! The sides of a pool's mirrors while it is open: what the labels say of them, and who is told.
//!
//! ```text
//! a side fails          processors keep answers back -> labels of the others: out -> every processor: out -> answers go out
//! it is there again     claimed -> every processor: attach, copies what it lacks -> all have -> labels: in sync -> every processor: joined
//! another takes its place   labels: out, another identity -> every processor: lacks everything -> the new device gets its label -> attach
//! ```
//! Labels change one at a time (`gate`). A crash in between leaves a side out that may be in sync, never the other way round.

mod back;
mod last;
mod replace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::losses::Lost;
use super::{Pool, wall_ns};
use crate::api::model::MirrorSideInfo;
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::label::{self, MirrorLabel};
use crate::mailbox::{MirrorChange, ProcessorIndex, ToProcessor};
use stillpoint_processor::DeviceIndex;
use stillpoint_processor::mirror::{MirrorNotice, MirrorStatus, SideAt, SideState};
use stillpoint_processor::ports::{DeviceError, Side};

/// What is known of the sides.
#[derive(Debug)]
pub(super) struct Sides {
    /// Held while labels change.
    gate: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    label: MirrorLabel,
    sides: BTreeMap<SideAt, Record>,
    /// Names that sides had before the pool was opened anew, and may have when they are back.
    names: BTreeSet<PathBuf>,
    /// By side, summed over the processors, when they were last asked.
    figures: BTreeMap<SideAt, MirrorStatus>,
    rate_bytes_per_s: u64,
}

#[derive(Clone, Debug)]
struct Record {
    state: SideState,
    path: Option<PathBuf>,
    /// Why it is not in sync, and since when.
    why: Option<String>,
    since_ns: u64,
    /// It failed and was there all the same: it is not taken back by itself while it stays.
    stayed: bool,
    /// It was too small since it went out: whatever size it has when it is back, it lacks everything, and the processors know.
    was_cut_off: bool,
    /// It was the last one of its device and failed, and everybody was told: since when, and what was left of it.
    lost: Option<Lost>,
    /// A number for each time that copying to it was begun, the first of which no other opening of a pool has had; and that of the
    /// time that it was attached.
    pass: u64,
    attached: u64,
    /// The processors that have copied all they have to, in this pass.
    done: BTreeSet<ProcessorIndex>,
}

/// A side that failed, and what is left of it.
struct Failed {
    at: SideAt,
    error: DeviceError,
    /// It has all its bytes. One that is gone or too small is taken back by itself when it is there.
    stayed: bool,
    /// Some devices say it with errors of their own. What lay behind its end is lost, whatever size it has when it is back.
    is_cut_off: bool,
}

impl Sides {
    /// As the labels say. Sides that are out and there are being resynchronised.
    pub(super) fn new(devices: &label::PoolDevices, rate_bytes_per_s: u64, first_pass: u64) -> Option<Self> {
        let label = devices.mirrors.clone()?;
        let record = |at: SideAt| {
            let path = devices.paths[usize::from(at.below().0)].clone();
            let is_there = devices.is_there(at);
            let (state, why) = match (label.out_since(at), is_there) {
                (0, _) => (SideState::InSync, None),
                (_, true) => (SideState::Resync, Some("it was out when the pool was opened")),
                (_, false) => (SideState::Out, Some("it was not there when the pool was opened")),
            };
            let record = Record {
                state,
                path: is_there.then_some(path),
                why: why.map(str::to_owned),
                since_ns: wall_ns(),
                stayed: false,
                was_cut_off: false,
                lost: None,
                pass: first_pass,
                attached: first_pass,
                done: BTreeSet::new(),
            };
            (at, record)
        };
        let sides = label.all().map(record).collect();
        Some(Self {
            gate: tokio::sync::Mutex::new(()),
            known: Mutex::new(Known {
                label,
                sides,
                names: BTreeSet::new(),
                figures: BTreeMap::new(),
                rate_bytes_per_s,
            }),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic elsewhere does not make the labels untrue.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn record(&mut self, at: SideAt) -> &mut Record {
        self.sides.get_mut(&at).expect("every side is known")
    }

    /// From now on it counts what is copied to this side; gives the number of the pass.
    fn begin_pass(&mut self, at: SideAt) -> u64 {
        let record = self.record(at);
        record.done.clear();
        record.pass += 1;
        record.pass
    }

    fn in_state(&self, state: SideState) -> Vec<SideAt> {
        let all = self.sides.iter().filter(|(_, record)| record.state == state);
        all.map(|(at, _)| *at).collect()
    }
}

impl Known {
    /// The sides that labels are written to. One of which nothing is left would make them older than they are known to be.
    fn written(&self) -> Vec<SideAt> {
        let mut all = self.in_state(SideState::InSync);
        all.retain(|at| self.sides[at].lost.is_none());
        all
    }
}

impl Pool {
    fn sides(&self) -> Option<&Sides> {
        self.sides.as_ref()
    }

    fn mirrored(&self) -> Result<&Sides> {
        self.sides().ok_or_else(|| {
            Error::usage(format!("pool {} has no mirrors", self.name()))
                .hint("stillpoint pool create NAME --mirror A B makes one that has")
        })
    }

    /// Of a pool with mirrors: where its devices are, as far as that is known.
    pub(crate) fn side_paths(&self) -> Option<Vec<PathBuf>> {
        let known = self.sides()?.known();
        let paths = known.sides.values().filter_map(|record| record.path.clone());
        let names = self.devices.unplaced.iter().chain(&known.names).cloned();
        let paths: BTreeSet<PathBuf> = paths.chain(names).collect();
        Some(paths.into_iter().collect())
    }

    /// What the API says of the side in this place.
    pub(super) fn side_info(&self, place: usize) -> Option<MirrorSideInfo> {
        let known = self.sides()?.known();
        let at = SideAt::of_below(DeviceIndex(place as u8));
        let record = known.sides.get(&at)?;
        let figures = known.figures.get(&at);
        let out = record.state != SideState::InSync;
        Some(MirrorSideInfo {
            device: u16::from(at.device.0),
            side: at.side.index() as u16,
            path: record.path.as_ref().map(|path| path.display().to_string()),
            state: match record.state {
                SideState::InSync => "in_sync",
                SideState::Out => "out",
                SideState::Resync => "resync",
            }
            .to_owned(),
            why: record.why.clone().filter(|_| out),
            since_ns: out.then_some(record.since_ns),
            left_bytes: figures.map_or(0, |figures| figures.bytes_left),
            copied_bytes: figures.map_or(0, |figures| figures.copied_bytes),
            repaired_reads: figures.map_or(0, |figures| figures.repaired_reads),
        })
    }

    /// A side of a device in words, or those of its sides that are asked for anything, with the devices that they are.
    pub(super) fn sides_text(&self, device: DeviceIndex, side: Option<Side>) -> String {
        let asked = |record: &Record| record.state != SideState::Out;
        let sides = self.sides().map(|sides| {
            let known = sides.known();
            let of_device = known.sides.iter().filter(|(at, record)| {
                at.device == device && side.map_or(asked(record), |side| side == at.side)
            });
            let paths = of_device.map(|(at, record)| {
                let path = record
                    .path
                    .as_ref()
                    .map_or("?".into(), |path| path.to_string_lossy());
                format!("{}: {path}", at.side)
            });
            paths.collect::<Vec<_>>().join(", or ")
        });
        format!("device {} ({})", device.0, sides.unwrap_or_default())
    }

    /// Places that the pool has for sides; none without mirrors.
    pub(super) fn side_places(&self) -> usize {
        self.sides().map_or(0, |sides| sides.known().sides.len())
    }

    /// What is wrong with the sides, in words.
    pub(super) fn degraded(&self) -> Option<String> {
        let known = self.sides()?.known();
        let out = known
            .sides
            .iter()
            .filter(|(_, record)| record.state != SideState::InSync);
        let text = out.map(|(at, record)| {
            let state = match record.state {
                SideState::Resync => "is being resynchronised",
                _ => "is out",
            };
            format!("{at} {state}: {}", record.why.as_deref().unwrap_or("?"))
        });
        let text = text.collect::<Vec<_>>().join("; ");
        (!text.is_empty()).then_some(text)
    }

    /// Asks the processors for the figures of their mirrors.
    pub(super) async fn refresh_sides(&self) {
        let Some(sides) = self.sides() else { return };
        let mut sums: BTreeMap<SideAt, MirrorStatus> = BTreeMap::new();
        for mailbox in self.mailboxes.iter() {
            let (reply, answer) = oneshot::channel();
            let pool = self.index;
            if mailbox.send(ToProcessor::MirrorStatus { pool, reply }).is_err() {
                continue;
            }
            for status in answer.await.unwrap_or_default() {
                let sum = sums.entry(status.at).or_insert(MirrorStatus {
                    regions_left: 0,
                    bytes_left: 0,
                    copied_bytes: 0,
                    repaired_reads: 0,
                    ..status
                });
                sum.regions_left += status.regions_left;
                sum.bytes_left += status.bytes_left;
                sum.copied_bytes += status.copied_bytes;
                sum.repaired_reads += status.repaired_reads;
            }
        }
        sides.known().figures = sums;
    }

    /// Makes a change on every processor, and waits until it is made.
    async fn change_mirrors(&self, change: MirrorChange) {
        let mut answers = Vec::new();
        for mailbox in self.mailboxes.iter() {
            let pool = self.index;
            loop {
                let (reply, answer) = oneshot::channel();
                match mailbox.send(ToProcessor::Mirror { pool, change, reply }) {
                    Ok(()) => answers.push(answer),
                    // Answers may wait for this: it is not given up.
                    Err(crate::mailbox::MailboxError::Full) => {
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                        continue;
                    }
                    Err(crate::mailbox::MailboxError::Ended) => {}
                }
                break;
            }
        }
        for answer in answers {
            // One that has ended holds nothing back any more.
            let _ = answer.await;
        }
    }

    /// Something that the mirrors of a processor told.
    /// `pass` says which of the times that the side was attached it is about.
    pub(crate) async fn mirror_told(&self, processor: ProcessorIndex, pass: u64, notice: MirrorNotice) {
        let Some(sides) = self.sides() else { return };
        let (MirrorNotice::SideFailed { at, .. }
        | MirrorNotice::Resynced { at }
        | MirrorNotice::CannotCopy { at, .. }) = notice;
        if !sides.known().sides.contains_key(&at) {
            return; // of a pool that was in this place before
        }
        match notice {
            MirrorNotice::SideFailed { at, error } => {
                let _gate = sides.gate.lock().await;
                let (state, attached, episode) = {
                    let mut known = sides.known();
                    let episode = known.label.out_since(at);
                    let record = known.record(at);
                    (record.state, record.attached, episode)
                };
                match state {
                    // From before it was attached again: every processor was told that it was out.
                    _ if pass < attached => {}
                    SideState::Out => self.change_mirrors(MirrorChange::Out { at, episode }).await,
                    _ => self.put_out(sides, vec![(at, error)]).await,
                }
            }
            MirrorNotice::Resynced { at } => {
                let _gate = sides.gate.lock().await;
                let all = {
                    let mut known = sides.known();
                    let record = known.record(at);
                    if record.pass == pass {
                        record.done.insert(processor);
                    }
                    record.state == SideState::Resync
                        && self.owners.iter().all(|owner| record.done.contains(owner))
                };
                if all {
                    self.join(sides, at).await;
                }
            }
            MirrorNotice::CannotCopy {
                at,
                offset_bytes,
                error,
            } => {
                let text = format!(
                    "{} lacks what lies at byte {offset_bytes}, and the other side cannot read it: {error}; the rest is \
                     copied, stillpoint pool resync tries again",
                    self.sides_text(at.device, Some(at.side))
                );
                self.tell(EventKind::MirrorNotCopied, &at.to_string(), text);
            }
        }
    }

    /// Asks for the sizes of files; then looks whether sides that are in sync, or become so, are gone or too small: nobody may ask them
    /// for anything for long.
    pub(crate) async fn look_after_sides(&self) {
        self.ask_sizes().await;
        let Some(sides) = self.sides() else { return };
        let failing = self.failing_sides();
        if failing.is_empty() {
            return;
        }
        let _gate = sides.gate.lock().await;
        for (place, error) in failing {
            let at = SideAt::of_below(DeviceIndex(place as u8));
            let size_bytes = self.size_bytes_now(place);
            let is_news = {
                let mut known = sides.known();
                let record = known.record(at);
                if let Some(lost) = &mut record.lost {
                    // It may have failed before anybody saw why.
                    lost.size_bytes = size_bytes;
                }
                record.state != SideState::Out && record.lost.is_none()
            };
            if is_news {
                self.put_out(sides, vec![(at, error)]).await;
            }
        }
    }

    /// A side that is out was seen again, and is too small: what lay behind its end is lost, on top of what it lacked already.
    pub(crate) async fn side_is_too_small(&self, place: usize) {
        let Some(sides) = self.sides() else { return };
        let _gate = sides.gate.lock().await;
        let at = SideAt::of_below(DeviceIndex(place as u8));
        let (is_news, has_other, uuid) = {
            let mut known = sides.known();
            let has_other = known.record(at.other()).lost.is_none();
            let uuid = known.label.uuid(at);
            let record = known.record(at);
            (
                record.state == SideState::Out && !record.was_cut_off,
                has_other,
                uuid,
            )
        };
        match (is_news, has_other) {
            (false, _) => {}
            (true, true) => self.put_out(sides, vec![(at, DeviceError::Shrunk)]).await,
            // No label can say it before the other one is back.
            (true, false) => self.note_cut_off(uuid),
        }
    }

    /// Puts sides out that failed, and whatever fails with them. The gate is held.
    async fn put_out(&self, sides: &Sides, mut failing: Vec<(SideAt, DeviceError)>) {
        self.ask_sizes_of_sides(&failing).await;
        let has_other = |(at, _): &(SideAt, DeviceError)| sides.known().record(at.other()).lost.is_none();
        let (others, alone): (Vec<_>, Vec<_>) = failing.into_iter().partition(has_other);
        failing = others;
        for (at, error) in alone {
            self.give_up(sides, at, error).await;
        }
        while !failing.is_empty() {
            let (label, targets) = {
                let known = sides.known();
                let out: Vec<_> = failing.iter().map(|(at, _)| *at).collect();
                let mut targets = known.written();
                targets.retain(|at| !out.contains(at));
                (known.label.with_out(&out), targets)
            };
            let label = match label {
                Ok(label) => label,
                Err(device) => {
                    let found = failing.iter().position(|(at, _)| at.device == device);
                    let (at, error) = failing.swap_remove(found.expect("it is one of these"));
                    self.lose_last(sides, at, error);
                    self.change_mirrors(MirrorChange::Lost { device, error }).await;
                    continue;
                }
            };
            let failed = self.seen_failing(&core::mem::take(&mut failing));
            for side in failed.iter().filter(|side| side.is_cut_off) {
                self.note_cut_off(label.uuid(side.at));
            }
            let asked = targets.len();
            let written = self.write_label(&label, targets).await;
            let episode = label.sequence();
            let unwritten = written.err().unwrap_or_default();
            // On a label that nobody has nothing rests, and the side that comes back first is not older than it.
            if unwritten.len() < asked {
                self.note_sequence(episode);
            }
            sides.known().label = label.clone();
            for side in failed {
                let Failed { at, error, .. } = side;
                match unwritten.iter().find(|(other, _)| *other == at.other()) {
                    // The other side cannot say it: nothing that rests on it alone may be answered.
                    Some((_, error)) => {
                        let (device, error) = (at.device, *error);
                        self.change_mirrors(MirrorChange::Lost { device, error }).await;
                    }
                    None if side.is_cut_off => self.forget_cut_off(label.uuid(at)),
                    None => {}
                }
                // A device that is gone leads nowhere; it is given up in any case.
                let file = self.files.take(usize::from(at.below().0));
                {
                    let mut known = sides.known();
                    let record = known.record(at);
                    record.state = SideState::Out;
                    record.why = Some(error.to_string());
                    record.stayed = side.stayed;
                    record.was_cut_off = side.is_cut_off;
                    record.since_ns = wall_ns();
                    record.done.clear();
                }
                let path = file.map_or_else(String::new, |file| file.path().display().to_string());
                let text = format!(
                    "{at} ({path}) is out: {error}; the other side has everything, and the pool goes on"
                );
                self.tell(EventKind::MirrorSideOut, &path, text);
                self.change_mirrors(match side.is_cut_off {
                    true => MirrorChange::Replaced { at, episode },
                    false => MirrorChange::Out { at, episode },
                })
                .await;
            }
            failing = unwritten;
            self.ask_sizes_of_sides(&failing).await;
        }
    }

    /// Of these alone: what waits for the labels must not wait for a file that has nothing to do with it.
    async fn ask_sizes_of_sides(&self, failing: &[(SideAt, DeviceError)]) {
        let is_failing = |place| failing.iter().any(|(at, _)| usize::from(at.below().0) == place);
        self.ask_sizes_of(is_failing).await;
    }

    /// What is left of sides that failed.
    fn seen_failing(&self, failing: &[(SideAt, DeviceError)]) -> Vec<Failed> {
        let seen = |&(at, error): &(SideAt, DeviceError)| {
            let place = usize::from(at.below().0);
            let (size_bytes, needed_bytes) = (self.size_bytes_now(place), self.needed_bytes(place));
            Failed {
                at,
                error,
                stayed: size_bytes >= needed_bytes,
                is_cut_off: error == DeviceError::Shrunk || (1..needed_bytes).contains(&size_bytes),
            }
        };
        failing.iter().map(seen).collect()
    }

    /// Everything was copied: the labels say so, then the processors are told. The gate is held.
    async fn join(&self, sides: &Sides, at: SideAt) {
        let (label, targets) = {
            let known = sides.known();
            let mut targets = known.written();
            targets.push(at);
            (known.label.with_joined(at), targets)
        };
        let written = self.write_label(&label, targets).await;
        self.note_sequence(label.sequence());
        {
            let mut known = sides.known();
            known.label = label;
            known.record(at).state = SideState::InSync;
        }
        self.change_mirrors(MirrorChange::Joined { at }).await;
        self.tell(
            EventKind::MirrorJoined,
            &at.to_string(),
            format!("{} is in sync again", self.sides_text(at.device, Some(at.side))),
        );
        if let Err(failed) = written {
            self.put_out(sides, failed).await;
        }
    }

    /// Keeps how new the labels are, before anything rests on them.
    fn note_sequence(&self, sequence: u64) {
        if let Err(error) = self.notes.note_sequence(&self.devices.id_text(), sequence) {
            tracing::error!("{error}");
        }
    }

    /// Keeps that a side has lost what lay at its end, before labels say so.
    fn note_cut_off(&self, uuid: [u8; 16]) {
        let noted = self
            .notes
            .note_cut_off(&self.devices.id_text(), &label::id_text(&uuid));
        if let Err(error) = noted {
            tracing::error!("{error}");
        }
    }

    /// Labels say it now.
    fn forget_cut_off(&self, uuid: [u8; 16]) {
        let forgotten = self
            .notes
            .forget_cut_off(&self.devices.id_text(), &label::id_text(&uuid));
        if let Err(error) = forgotten {
            tracing::error!("{error}");
        }
    }

    async fn write_label(
        &self,
        label: &MirrorLabel,
        targets: Vec<SideAt>,
    ) -> std::result::Result<(), Vec<(SideAt, DeviceError)>> {
        let (label, layout, files) = (
            label.clone(),
            self.devices.layout.clone(),
            Arc::clone(&self.files),
        );
        let all = targets.clone();
        let written = tokio::task::spawn_blocking(move || label.write(&layout, &files, targets));
        let panicked = |_| Err(all.into_iter().map(|at| (at, DeviceError::Gone)).collect());
        written.await.unwrap_or_else(panicked)
    }

    /// Sees to it that the labels have this bit; see [`label::set_incompatible`].
    pub(super) async fn set_feature_of_mirrors(&self, bit: u64) -> Result<()> {
        let sides = self.mirrored()?;
        let _gate = sides.gate.lock().await;
        let (label, targets) = {
            let known = sides.known();
            let label = known.label.with_incompatible(bit);
            (label, known.written())
        };
        let written = self.write_label(&label, targets).await;
        sides.known().label = label;
        if let Err(failed) = written {
            self.put_out(sides, failed).await;
        }
        Ok(())
    }

    /// Tells the processors how much they may copy.
    pub(crate) async fn set_resync_rate(&self) {
        let Some(sides) = self.sides() else { return };
        let all = sides.known().rate_bytes_per_s;
        let processors = self.owners.iter().collect::<BTreeSet<_>>().len().max(1) as u64;
        // Nothing is what says "as fast as can be".
        let bytes_per_s = if all == 0 { 0 } else { (all / processors).max(1) };
        self.change_mirrors(MirrorChange::Rate { bytes_per_s }).await;
    }
}

#[cfg(test)]
mod tests;
