//! One state of the small scope: what can happen next, what happens then, and what must hold.

use std::hash::{DefaultHasher, Hash, Hasher};

use stillpoint_coordinator::{Coordinator, Marks, SnapshotError, SnapshotRequest, SnapshotVolume};
use stillpoint_ondisk::catalog::Key as CatalogKey;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::ports::Buffer;
use stillpoint_processor::{
    BLOCK_BYTES, RequestKind, ShardCommand, ShardIndex, ShardRequest, ShareBlock, SnapshotId, Token, View,
    VolumeId,
};

use super::small_scope::{Scope, Walked};
use super::stage::{Move, News, Props, Stage, failed, is_data_write};
use crate::device::CrashFate;
use crate::model::Broken;
use crate::random::Random;
use crate::stamp::{self, SECTOR_BYTES, SECTORS_PER_BLOCK};

const VOLUME: VolumeId = VolumeId(1);
const SNAPSHOT: SnapshotId = SnapshotId(1);
const HOLD_LIMIT_NS: u64 = 1_000;
const STEP_LIMIT_NS: u64 = 1_000_000;
/// What tells states apart.
pub(super) type Key = (u64, u64);

/// One thing that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The next write is sent.
    Send,
    /// The snapshot is asked for.
    Ask,
    /// A message arrives, or the device completes something.
    Stage(Move),
    /// Time goes to the next deadline.
    Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Unsent,
    OnItsWay,
    OnDevice,
    /// The shard has answered; the answer is held, or on its way.
    Applied,
    Acknowledged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Write {
    shard: usize,
    place: Place,
    /// Whether its shard had not cut yet when it was applied.
    is_in: Option<bool>,
    must_be_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asked {
    No,
    Yes,
    There,
    NotThere,
    InDoubt,
}

pub(super) struct Small {
    scope: Scope,
    stage: Stage,
    writes: Vec<Write>,
    /// Per shard: the writes that the device has, in the order of its operations.
    on_device: Vec<Vec<usize>>,
    has_cut: Vec<bool>,
    /// Per shard: whether answers are held.
    holds: Vec<bool>,
    asked: Asked,
    waited: bool,
    /// A write that must be out is in: wrong, if the snapshot comes to be.
    violated: Option<usize>,
}

fn broken<T>(what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(what.into()))
}

impl Small {
    fn new(scope: Scope, deal: usize) -> Result<Self, Broken> {
        let shards = usize::from(scope.shards);
        let props = Props {
            shards: scope.shards,
            devices: 1,
            tail: true,
            options: scope.options,
        };
        let mut stage = Stage::new(props, Random::new(1))?;
        for shard in 0..shards {
            let share_blocks = scope.writes as u64;
            stage.control(
                shard,
                ShardCommand::CreateVolume {
                    volume: VOLUME,
                    share_blocks,
                },
            );
        }
        stage.settle()?;
        let writes = (0..scope.writes as u32)
            .map(|write| Write {
                shard: deal / shards.pow(write) % shards,
                place: Place::Unsent,
                is_in: None,
                must_be_out: false,
            })
            .collect();
        Ok(Self {
            scope,
            stage,
            writes,
            on_device: vec![Vec::new(); shards],
            has_cut: vec![false; shards],
            holds: vec![false; shards],
            asked: Asked::No,
            waited: false,
            violated: None,
        })
    }

    pub(super) fn replay(scope: Scope, deal: usize, steps: &[Step]) -> Result<Self, Broken> {
        let mut small = Self::new(scope, deal)?;
        steps.iter().try_for_each(|step| small.take(*step))?;
        Ok(small)
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.writes.iter().any(|write| write.place == Place::Unsent) {
            steps.push(Step::Send);
        }
        if self.asked == Asked::No {
            steps.push(Step::Ask);
        }
        let mut moves = Vec::new();
        self.stage.moves(&mut moves);
        let now_ns = self.stage.now_ns;
        let holds = (0..self.holds.len()).filter(|&shard| {
            self.hold_deadline_ns(shard)
                .is_some_and(|deadline_ns| deadline_ns <= now_ns)
        });
        moves.extend(holds.map(Move::Turn));
        steps.extend(moves.into_iter().map(Step::Stage));
        let may_wait = steps.is_empty() || (self.scope.time_runs_out && !self.waited);
        if may_wait && self.next_deadline_ns().is_some() {
            steps.push(Step::Wait);
        }
        steps
    }

    pub(super) fn take(&mut self, step: Step) -> Result<(), Broken> {
        match step {
            Step::Send => self.send(),
            Step::Ask => {
                self.asked = Asked::Yes;
                self.stage.ask(self.request());
                Ok(())
            }
            Step::Stage(next) => self.take_move(next),
            Step::Wait => {
                self.waited = true;
                let deadline_ns = self.next_deadline_ns().expect("a deadline is waited for");
                self.stage.now_ns = self.stage.now_ns.max(deadline_ns);
                self.stage.poll_coordinator();
                let news = self.stage.news();
                self.told(news)
            }
        }
    }

    fn send(&mut self) -> Result<(), Broken> {
        let after_one_that_is_out = self
            .writes
            .iter()
            .any(|write| write.place == Place::Acknowledged && write.is_in == Some(false));
        let next = self.writes.iter().position(|write| write.place == Place::Unsent);
        let number = next.expect("a write is left");
        let write = &mut self.writes[number];
        write.place = Place::OnItsWay;
        write.must_be_out = after_one_that_is_out || self.asked == Asked::There;
        let mut buffer = Buffer::owned(BLOCK_BYTES);
        let sector = number as u64 * SECTORS_PER_BLOCK;
        stamp::fill(number as u32 + 1, VOLUME.0, sector, buffer.bytes_mut());
        let kind = RequestKind::Write { fua: false };
        let request = request(number, write.shard, None, kind, buffer);
        self.stage.requests.push(request);
        Ok(())
    }

    fn request(&self) -> SnapshotRequest {
        SnapshotRequest {
            snapshot: SNAPSHOT,
            name: "s".to_string(),
            volumes: vec![SnapshotVolume {
                volume: VOLUME,
                owner: VOLUME,
                size_bytes: 1 << 20,
            }],
            marks: Marks::default(),
            shard_count: self.scope.shards,
            hold_limit_ns: HOLD_LIMIT_NS,
            step_limit_ns: STEP_LIMIT_NS,
        }
    }

    fn take_move(&mut self, next: Move) -> Result<(), Broken> {
        match next {
            Move::Request(index) => {
                let write = self.stage.requests[index].token.0 as usize;
                self.writes[write].place = Place::OnDevice;
                self.on_device[self.writes[write].shard].push(write);
            }
            Move::Device(shard, nth) => {
                let number = self.on_device[shard].remove(nth);
                let write = &mut self.writes[number];
                write.place = Place::Applied;
                write.is_in = Some(!self.has_cut[shard]);
                if write.must_be_out && !self.has_cut[shard] {
                    self.violated = Some(number);
                }
            }
            _ => {}
        }
        let events_before: Vec<usize> = self.stage.events.iter().map(|events| events.len()).collect();
        let news = self.stage.take(next)?;
        if let Move::Command(shard) | Move::Turn(shard) = next {
            self.watch_the_hold(shard, events_before[shard]);
        }
        self.told(news)?;
        self.complete_all_but_data()
    }

    /// Looks at what a shard has told since.
    fn watch_the_hold(&mut self, shard: usize, events_before: usize) {
        for event in self.stage.events[shard].iter().skip(events_before) {
            match event.kind {
                EventKind::Taken => (self.has_cut[shard], self.holds[shard]) = (true, true),
                EventKind::Released(_) | EventKind::Aborted | EventKind::HoldExpired { .. } => {
                    self.holds[shard] = false;
                }
                _ => {}
            }
        }
    }

    /// When the hold of a shard ends by itself, if it holds. (Shards have other deadlines too, which decide nothing.)
    fn hold_deadline_ns(&self, shard: usize) -> Option<u64> {
        self.stage.deadline_ns(shard).filter(|_| self.holds[shard])
    }

    /// The next time at which a hold or a step of the snapshot ends by itself.
    fn next_deadline_ns(&self) -> Option<u64> {
        let holds = (0..self.holds.len()).filter_map(|shard| self.hold_deadline_ns(shard));
        let coordinator = self
            .stage
            .coordinator
            .as_ref()
            .and_then(Coordinator::next_deadline_ns);
        holds.chain(coordinator).min()
    }

    fn told(&mut self, news: News) -> Result<(), Broken> {
        match news {
            News::None => Ok(()),
            News::Answer(answer) => {
                if let Err(error) = answer.result {
                    return Err(failed("a write", error));
                }
                self.writes[answer.token.0 as usize].place = Place::Acknowledged;
                Ok(())
            }
            News::Ended(_, result) => {
                self.asked = match *result {
                    Ok(_) => Asked::There,
                    Err(SnapshotError::InDoubt { .. }) => Asked::InDoubt,
                    Err(_) => Asked::NotThere,
                };
                match self.violated {
                    Some(write) if self.asked == Asked::There => broken(format!(
                        "I7: the snapshot holds write {write}, sent after the answer to one that it does not hold"
                    )),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Log writes and flushes complete at once: to wait for them is as good as to wait for the message before or
    /// behind them.
    fn complete_all_but_data(&mut self) -> Result<(), Broken> {
        for shard in 0..self.has_cut.len() {
            let mut nth = 0;
            loop {
                let layout = &self.stage.layout;
                let is_data = |operation: &_| is_data_write(layout, shard, operation);
                match self.stage.devices.look_at_nth(shard, nth, is_data) {
                    None => break,
                    Some(true) => nth += 1,
                    Some(false) => {
                        let news = self.stage.take(Move::Device(shard, nth))?;
                        self.told(news)?;
                        nth = 0;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn key(&self) -> Key {
        let mut tokens: Vec<u64> = self.stage.answers.iter().map(|answer| answer.token.0).collect();
        tokens.sort_unstable();
        let text = format!(
            "{:?}{:?}{:?}",
            self.stage.coordinator, self.stage.commands, self.stage.events
        );
        let shards: Vec<_> = (0..self.has_cut.len())
            .map(|shard| {
                let parts = self
                    .stage
                    .shard(shard)
                    .shares()
                    .map(|share| share.snapshots.len());
                (self.hold_deadline_ns(shard), parts.sum::<usize>())
            })
            .collect();
        let half = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            shards.hash(&mut hasher);
            (salt, &text, &tokens, &self.writes, &self.on_device, &self.has_cut).hash(&mut hasher);
            (
                self.asked,
                self.waited,
                self.violated.is_some(),
                self.stage.now_ns,
            )
                .hash(&mut hasher);
            hasher.finish()
        };
        (half(1), half(2))
    }

    /// Nothing is left to happen.
    pub(super) fn check_the_end(mut self, walked: &mut Walked) -> Result<(), Broken> {
        if let Some(write) = self
            .writes
            .iter()
            .position(|write| write.place != Place::Acknowledged)
        {
            return broken(format!("write {write} was never answered"));
        }
        // But for what a shard does by itself when nobody wants anything.
        if !self.stage.is_quiet() && self.stage.waits_for_time()? {
            self.stage.settle()?;
        }
        if !self.stage.is_quiet() {
            return broken("nothing will ever happen again, and yet not all is quiet");
        }
        let record = self.has_record();
        let is_there = match self.asked {
            Asked::There => true,
            Asked::NotThere => false,
            Asked::InDoubt => record,
            other => return broken(format!("the snapshot ended as {other:?}")),
        };
        if is_there && self.violated.is_some() {
            return broken("I7: a snapshot in doubt holds a write that it must not hold");
        }
        walked.there += u64::from(is_there);
        walked.not_there += u64::from(!is_there);
        for shard in 0..self.has_cut.len() {
            let shares: Vec<usize> = self
                .stage
                .shard(shard)
                .shares()
                .map(|share| share.snapshots.len())
                .collect();
            if shares != [usize::from(is_there)] {
                return broken(format!(
                    "I8: {:?}, but shard {shard} has {shares:?} parts",
                    self.asked
                ));
            }
        }
        if record != is_there {
            return broken(format!("I8: {:?}, but the catalog says otherwise", self.asked));
        }
        self.compare(is_there, true)
    }

    fn has_record(&self) -> bool {
        let key = CatalogKey::Snapshot(SNAPSHOT.0).encode();
        self.stage.shard(0).catalog().contains_key(&key)
    }

    /// Reads every block, in the snapshot and live.
    fn compare(&mut self, with_snapshot: bool, all_writes: bool) -> Result<(), Broken> {
        for number in 0..self.writes.len() {
            let write = self.writes[number];
            if with_snapshot {
                let shown = self.read(number, Some(SNAPSHOT))?;
                if shown != (write.is_in == Some(true)) {
                    return broken(format!(
                        "I7: the snapshot shows write {number}: {shown}, but {write:?}"
                    ));
                }
            }
            let shown = self.read(number, None)?;
            if !shown && all_writes && write.place == Place::Acknowledged {
                return broken(format!("I2: write {number} was acknowledged and is lost"));
            }
        }
        Ok(())
    }

    /// Whether a block shows its write; zeros are the only other thing that it may show.
    fn read(&mut self, number: usize, snapshot: Option<SnapshotId>) -> Result<bool, Broken> {
        let shard = self.writes[number].shard;
        let request = request(
            number,
            shard,
            snapshot,
            RequestKind::Read,
            Buffer::owned(BLOCK_BYTES),
        );
        self.stage.requests.push(request);
        let mut moves = Vec::new();
        loop {
            moves.clear();
            self.stage.moves(&mut moves);
            let Some(next) = moves.first() else {
                return broken(format!("a read of block {number} is never answered"));
            };
            let News::Answer(answer) = self.stage.take(*next)? else {
                continue;
            };
            answer.result.map_err(|error| failed("a read", error))?;
            let buffer = answer.buffer.expect("a read gives its buffer back");
            let sector = number as u64 * SECTORS_PER_BLOCK;
            let shown = stamp::read(VOLUME.0, sector, &buffer.bytes()[..SECTOR_BYTES]);
            return match shown {
                Ok(0) => Ok(false),
                Ok(shown) if shown == number as u32 + 1 => Ok(true),
                other => broken(format!("block {number} shows {other:?}")),
            };
        }
    }

    /// What a crash would leave here: a state without a life, that may be opened again.
    pub(super) fn crashed(&self, power_cut: bool) -> Self {
        let fate = if power_cut {
            CrashFate::Lost
        } else {
            CrashFate::Kept
        };
        Self {
            scope: self.scope,
            stage: self.stage.after_a_crash(power_cut, fate),
            writes: self.writes.clone(),
            on_device: Vec::new(),
            has_cut: Vec::new(),
            holds: Vec::new(),
            asked: self.asked,
            waited: self.waited,
            violated: self.violated,
        }
    }

    /// What tells crashes apart: all that recovery will see, and what the oracle will hold against it. (`tails_of` is the
    /// state that crashed: after a kill its log tails are there.)
    pub(super) fn crash_key(&self, power_cut: bool, tails_of: &Self) -> Key {
        let tails: Vec<_> = (0..tails_of.has_cut.len())
            .filter(|_| !power_cut)
            .map(|shard| tails_of.stage.shard(shard).tail().checksums())
            .collect();
        let told: Vec<_> = self
            .writes
            .iter()
            .map(|write| (write.is_in == Some(true), write.place == Place::Acknowledged))
            .collect();
        let half = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            (
                salt,
                power_cut,
                &tails,
                &told,
                self.asked,
                self.violated.is_some(),
            )
                .hash(&mut hasher);
            self.stage.now_ns.hash(&mut hasher);
            self.stage.devices.hash_content(&mut hasher);
            hasher.finish()
        };
        (half(1), half(2))
    }

    /// Opens the pool again after a crash: all of the snapshot is there, or no trace of it.
    pub(super) fn check_after_the_crash(mut self, power_cut: bool) -> Result<(), Broken> {
        let shards: Vec<_> = self.stage.open()?.into_iter().map(|(shard, _)| shard).collect();
        let record = shards[0]
            .catalog()
            .contains_key(&CatalogKey::Snapshot(SNAPSHOT.0).encode());
        match (self.asked, record) {
            (Asked::There, false) => return broken("I8: the snapshot was confirmed and is lost"),
            (Asked::NotThere | Asked::No, true) => return broken("I8: a snapshot that never was is there"),
            _ => {}
        }
        let has_part = |shard: &stillpoint_processor::Shard<_>| {
            shard
                .shares()
                .any(|share| share.snapshots.iter().any(|found| !found.deleting))
        };
        if record && !shards.iter().all(has_part) {
            return broken("I8: a committed snapshot has lost a part");
        }
        if record && self.violated.is_some() {
            return broken("I7: a committed snapshot holds a write that it must not hold");
        }
        self.stage.start(shards);
        self.compare(record, !power_cut)
    }
}

fn request(
    number: usize,
    shard: usize,
    snapshot: Option<SnapshotId>,
    kind: RequestKind,
    buffer: Buffer,
) -> ShardRequest {
    ShardRequest {
        token: Token(number as u64),
        shard: ShardIndex(shard as u16),
        view: View {
            volume: VOLUME,
            snapshot,
        },
        kind,
        first: ShareBlock(number as u64),
        blocks: 1,
        skip_bytes: 0,
        length_bytes: BLOCK_BYTES as u32,
        buffer: Some(buffer),
        since_ns: 0,
    }
}
