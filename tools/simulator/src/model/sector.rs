//! The history of one sector, and the table of all writes.

use std::fmt::Write as _;

use super::{Crash, Tick};
use crate::stamp::Shown;

/// What is known of one write (or discard, or zeroing) of a client.
#[derive(Clone, Copy, Debug)]
struct Known {
    zeros: bool,
    sent: Tick,
    /// When it was answered, or the connection broke: it takes no effect after this.
    ended: Tick,
    acknowledged: bool,
    durable: bool,
}

/// Not yet.
const NEVER: Tick = Tick::MAX;

/// All writes of a run. Number 0 is the zeros of a new volume.
#[derive(Debug)]
pub struct Writes {
    known: Vec<Known>,
    /// Acknowledged, not durable yet.
    volatile: Vec<Shown>,
    /// Sent, not ended yet.
    open: Vec<Shown>,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            known: vec![Known {
                zeros: true,
                sent: 0,
                ended: 0,
                acknowledged: true,
                durable: true,
            }],
            volatile: Vec::new(),
            open: Vec::new(),
        }
    }
}

impl Writes {
    /// A write is sent now; gives its number.
    pub fn send(&mut self, zeros: bool, tick: Tick) -> Shown {
        let number = self.known.len() as Shown;
        self.known.push(Known {
            zeros,
            sent: tick,
            ended: NEVER,
            acknowledged: false,
            durable: false,
        });
        self.open.push(number);
        number
    }

    /// A write was answered.
    pub fn end(&mut self, number: Shown, acknowledged: bool, durable: bool, tick: Tick) {
        let known = &mut self.known[number as usize];
        known.ended = tick;
        known.acknowledged = acknowledged;
        known.durable = durable && acknowledged;
        self.open.retain(|open| *open != number);
        if acknowledged && !durable {
            self.volatile.push(number);
        }
    }

    /// A flush that was sent at this tick has completed: what was acknowledged before is durable.
    pub fn flushed(&mut self, sent: Tick) {
        let Self { known, volatile, .. } = self;
        volatile.retain(|number| {
            let write = &mut known[*number as usize];
            write.durable = write.ended < sent;
            !write.durable
        });
    }

    /// All connections broke.
    pub fn crash(&mut self, tick: Tick) {
        for number in self.open.drain(..) {
            self.known[number as usize].ended = tick;
        }
    }

    fn get(&self, number: Shown) -> &Known {
        &self.known[number as usize]
    }
}

/// One write to this sector.
#[derive(Clone, Copy, Debug)]
struct Version {
    number: Shown,
    /// When a read had shown it.
    seen: Tick,
    /// Found after a power cut: it is on the medium, whatever becomes of the rest of its write.
    durable: bool,
}

impl Version {
    const INITIAL: Self = Self {
        number: 0,
        seen: 0,
        durable: true,
    };

    /// When it is known to have been in effect.
    fn in_effect(&self, writes: &Writes) -> Tick {
        let known = writes.get(self.number);
        self.seen
            .min(if known.acknowledged { known.ended } else { NEVER })
    }
}

/// The history of a sector. No versions: never written.
#[derive(Clone, Debug, Default)]
pub struct Sector {
    versions: Vec<Version>,
    /// Set by the read after a recovery: the version found, and when. All others that had ended are past.
    settled: Option<(Shown, Tick)>,
}

/// What is known of the instant of a cut.
#[derive(Clone, Debug)]
pub struct CutBounds {
    /// When the snapshot was asked for.
    pub sent: Tick,
    /// When it was answered (or the appliance died).
    pub answered: Tick,
    /// The instant is after this: the latest sending of a version that is shown.
    after: Tick,
    after_place: (u32, u64, Shown),
    /// The instant is before this: the earliest effect of a version that is not shown.
    before: Tick,
    before_place: (u32, u64, Shown),
}

impl CutBounds {
    /// Nothing known but when the snapshot was asked for and answered.
    #[must_use]
    pub fn new(sent: Tick, answered: Tick) -> Self {
        Self {
            sent,
            answered,
            after: 0,
            after_place: (0, 0, 0),
            before: NEVER,
            before_place: (0, 0, 0),
        }
    }

    /// Whether one instant fits all that was seen.
    ///
    /// # Errors
    /// The two versions between which there is none.
    pub fn check(&self) -> Result<(), String> {
        if self.after < self.before {
            return Ok(());
        }
        let (in_volume, in_sector, in_number) = self.after_place;
        let (out_volume, out_sector, out_number) = self.before_place;
        Err(format!(
            "the snapshot shows write {in_number} (volume {in_volume} sector {in_sector}), sent at tick {}, but not \
             write {out_number} (volume {out_volume} sector {out_sector}), known to be in effect at tick {} before",
            self.after, self.before
        ))
    }
}

impl Sector {
    /// A sector that begins as a snapshot shows it: that is on the medium.
    pub(super) fn beginning(shown: Shown, tick: Tick) -> Self {
        let version = Version {
            number: shown,
            seen: tick,
            durable: true,
        };
        Self {
            versions: if shown == 0 { Vec::new() } else { vec![version] },
            settled: None,
        }
    }

    pub(super) fn sent(&mut self, number: Shown) {
        if self.versions.is_empty() {
            self.versions.push(Version::INITIAL);
        }
        self.versions.push(Version {
            number,
            seen: NEVER,
            durable: false,
        });
    }

    fn versions(&self) -> &[Version] {
        if self.versions.is_empty() {
            &[Version::INITIAL]
        } else {
            &self.versions
        }
    }

    /// Indexes of the versions that look like `shown`.
    fn like<'a>(&'a self, writes: &'a Writes, shown: Shown) -> impl Iterator<Item = usize> + 'a {
        (0..self.versions().len()).filter(move |&index| {
            let number = self.versions()[index].number;
            if writes.get(number).zeros {
                shown == 0
            } else {
                shown == number
            }
        })
    }

    /// The latest sending among the versions that were in effect before `tick`: what had ended before it is past.
    fn past(&self, writes: &Writes, tick: Tick) -> Tick {
        self.versions()
            .iter()
            .filter(|version| version.in_effect(writes) < tick)
            .map(|version| writes.get(version.number).sent)
            .max()
            .unwrap_or(0)
    }

    /// The latest sending among the versions that were acknowledged.
    fn acknowledged(&self, writes: &Writes) -> Tick {
        let known = self.versions().iter().map(|version| writes.get(version.number));
        known
            .filter(|known| known.acknowledged)
            .map(|known| known.sent)
            .max()
            .unwrap_or(0)
    }

    /// Whether a version may be seen by a read between these ticks.
    fn may_be_seen(&self, writes: &Writes, index: usize, past: Tick, sent: Tick, ended: Tick) -> bool {
        let number = self.versions()[index].number;
        let known = writes.get(number);
        let settled_away = self
            .settled
            .is_some_and(|(settled, tick)| settled != number && tick < sent && known.ended < tick);
        known.sent < ended && known.ended >= past && !settled_away
    }

    pub(super) fn check_read(
        &mut self,
        writes: &Writes,
        shown: Shown,
        sent: Tick,
        ended: Tick,
    ) -> Result<(), String> {
        let past = self.past(writes, sent);
        let mut fits = self
            .like(writes, shown)
            .filter(|&index| self.may_be_seen(writes, index, past, sent, ended));
        let Some(index) = fits.next() else {
            return Err(self.explain(
                writes,
                shown,
                &format!("a read sent at tick {sent}, answered at {ended}"),
            ));
        };
        let only = fits.next().is_none();
        drop(fits);
        if only && !self.versions.is_empty() {
            let version = &mut self.versions[index];
            version.seen = version.seen.min(ended);
        }
        Ok(())
    }

    pub(super) fn recovered(
        &mut self,
        writes: &Writes,
        crash: Crash,
        shown: Shown,
        tick: Tick,
    ) -> Result<(), String> {
        let (past, sent) = match crash {
            Crash::Kill => (self.past(writes, tick), tick),
            Crash::KillWithoutTail => (self.acknowledged(writes), tick),
            Crash::PowerCut => {
                let durable = self
                    .versions()
                    .iter()
                    .filter(|version| version.durable || writes.get(version.number).durable);
                let past = durable.map(|version| writes.get(version.number).sent).max();
                // Nothing that was only seen counts any more, so the reading began, so to say, at the start.
                (past.unwrap_or(0), 0)
            }
        };
        let fit = self
            .like(writes, shown)
            .filter(|&index| self.may_be_seen(writes, index, past, sent, tick))
            .last();
        let Some(index) = fit else {
            return Err(self.explain(writes, shown, &format!("recovery at tick {tick} after {crash:?}")));
        };
        if self.versions.is_empty() {
            return Ok(());
        }
        let mut found = self.versions[index];
        found.seen = found.seen.min(tick);
        self.settled = Some((found.number, tick));
        match crash {
            Crash::PowerCut => {
                found.durable = true;
                self.versions.clear();
            }
            // An older version that was acknowledged, or was found on the medium, may come back at a power cut; one
            // that was in flight and is not there may not.
            Crash::Kill | Crash::KillWithoutTail => self.versions.retain(|version| {
                let stays = version.durable || writes.get(version.number).acknowledged;
                version.number != found.number && stays
            }),
        }
        self.versions.push(found);
        Ok(())
    }

    pub(super) fn check_snapshot(
        &self,
        writes: &Writes,
        shown: Shown,
        (volume, sector): (u32, u64),
        bounds: &mut CutBounds,
    ) -> Result<(), String> {
        let past = self.past(writes, bounds.sent);
        let mut fits = self
            .like(writes, shown)
            .filter(|&index| self.may_be_seen(writes, index, past, bounds.sent, bounds.answered));
        let Some(index) = fits.next() else {
            let when = format!(
                "asked for at tick {}, answered at {}",
                bounds.sent, bounds.answered
            );
            return Err(self.explain(writes, shown, &when));
        };
        if fits.next().is_some() {
            // Versions that look alike (zeros): which one it is is not known, so nothing follows from it.
            return Ok(());
        }
        let number = self.versions()[index].number;
        let known = writes.get(number);
        let after = known.sent;
        let (before, next) = self
            .versions()
            .iter()
            .filter(|later| writes.get(later.number).sent > known.ended)
            .map(|later| (later.in_effect(writes), later.number))
            .min()
            .unwrap_or((NEVER, 0));
        if after > bounds.after {
            (bounds.after, bounds.after_place) = (after, (volume, sector, number));
        }
        if before < bounds.before {
            (bounds.before, bounds.before_place) = (before, (volume, sector, next));
        }
        Ok(())
    }

    fn explain(&self, writes: &Writes, shown: Shown, when: &str) -> String {
        let mut text = format!("write {shown} must not be seen by {when}; the history is:");
        let tick = |tick: Tick| {
            if tick == NEVER {
                "-".to_string()
            } else {
                tick.to_string()
            }
        };
        for version in self.versions() {
            let known = writes.get(version.number);
            write!(
                text,
                "\n    write {:>6}{}: sent {}, ended {}{}{}, seen {}",
                version.number,
                if known.zeros { " (zeros)" } else { "" },
                known.sent,
                tick(known.ended),
                if known.acknowledged { ", acknowledged" } else { "" },
                if known.durable || version.durable {
                    ", durable"
                } else {
                    ""
                },
                tick(version.seen),
            )
            .expect("a string takes everything");
        }
        if let Some((number, at)) = self.settled {
            write!(text, "\n    settled on {number} at {at}").expect("a string takes everything");
        }
        text
    }
}
