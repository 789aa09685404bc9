//! The sides of mirrored devices: what happens to them, and the control plane that writes the labels. A label is written at one
//! instant, some time after it was asked for; a crash comes before it or after it.

use std::collections::BTreeSet;

use stillpoint_processor::mirror::{MirroredOpener, Sides as Usable};
use stillpoint_processor::ports::{DeviceError, OpenDevice, Side, Transferred};
use stillpoint_processor::{
    DeviceIndex, MirrorNotice, Shard, ShardIndex, SideAt, SideState, StaleAt, load_stale,
};

use super::{Checked, World, broken};
use crate::device::{CrashFate, OpenPort};
use crate::machine::{Sides, SidesOrder};
use crate::memory::SimulatedTail;
use crate::random::Random;
use crate::scenario::MirrorPlan;

/// In the marks of alarms that are for the sides; below it the number of a side.
const SIDES_MARK: u64 = 1 << 40;
/// The label that says that it is out.
const LABEL_OUT: u64 = 1 << 41;
/// The label that says that it is in sync.
const LABEL_IN: u64 = 1 << 42;

/// In one life: beyond it nothing else goes on.
const CHANCES_MAX: u64 = 200_000;

/// What may become of what a lost side had not flushed.
const FATES: [CrashFate; 5] = [
    CrashFate::Lost,
    CrashFate::Kept,
    CrashFate::Mixed,
    CrashFate::Reordered,
    CrashFate::CutOff,
];

/// Whether an alarm is for the sides.
pub(super) fn is_for_sides(mark: u64) -> bool {
    mark & SIDES_MARK != 0
}

/// What the control plane thinks of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    InSync,
    GoingOut,
    Out,
    Resync,
    Joining,
}

/// The sides of all devices.
pub(super) struct Pairs {
    plan: MirrorPlan,
    random: Random,
    /// By number below the mirrors.
    known: Vec<Known>,
    /// The labels: with which sequence each side went out.
    out_since: Vec<Option<u64>>,
    /// Sides that the labels say are out since this try to open the pool.
    went_missing: BTreeSet<usize>,
    sequence: u64,
    /// Which processors have copied everything to which side.
    resynced: BTreeSet<(usize, usize)>,
    /// Which have carried out the last order about it.
    did: BTreeSet<(usize, usize)>,
    /// Sides that could not get everything.
    stuck: BTreeSet<usize>,
    /// Of each device, the side that rots.
    rotten: Vec<Side>,
    /// Whether anything may happen to them.
    is_peaceful: bool,
    /// Times that something could, in this life.
    chances: u64,
}

impl Pairs {
    pub(super) fn new(plan: &MirrorPlan, devices: usize, mut random: Random) -> Box<Self> {
        Box::new(Self {
            plan: plan.clone(),
            known: vec![Known::InSync; devices * 2],
            out_since: vec![None; devices * 2],
            went_missing: BTreeSet::new(),
            sequence: 1,
            resynced: BTreeSet::new(),
            did: BTreeSet::new(),
            stuck: BTreeSet::new(),
            rotten: (0..devices).map(|_| *random.pick(&Side::BOTH)).collect(),
            is_peaceful: true,
            chances: 0,
            random,
        })
    }

    fn devices(&self) -> usize {
        self.known.len() / 2
    }

    fn label_out(&mut self, below: usize) {
        self.sequence += 1;
        self.out_since[below] = Some(self.sequence);
    }

    /// What opening can go by.
    fn usable(&self) -> Vec<Usable> {
        let of_device = |(device, pair): (usize, &[Option<u64>])| match pair {
            [None, None] => Usable::Both,
            [None, Some(episode)] => Usable::Only {
                side: Side::First,
                episode: *episode,
                begins: self.went_missing.contains(&(device * 2 + 1)),
            },
            [Some(episode), _] => Usable::Only {
                side: Side::Second,
                episode: *episode,
                begins: self.went_missing.contains(&(device * 2)),
            },
            _ => unreachable!("pairs"),
        };
        self.out_since
            .chunks_exact(2)
            .enumerate()
            .map(of_device)
            .collect()
    }

    fn is_whole(&self, device: usize) -> bool {
        self.known[device * 2..][..2] == [Known::InSync; 2]
    }

    /// A side of a device that has everything; of those with which nothing is wrong.
    fn sound(&self, device: usize) -> usize {
        let good = match (self.out_since[device * 2], self.plan.rot) {
            (None, true) => self.rotten[device].other(),
            (None, false) => Side::First,
            (Some(_), _) => Side::Second,
        };
        device * 2 + good.index()
    }
}

/// Opens shards of a pool, with mirrors or without.
pub(super) enum Opener {
    Plain(OpenPort),
    Mirrored(MirroredOpener<OpenPort>),
}

impl Opener {
    /// Gives back what it opened with, when both sides of everything are what was read.
    pub(super) fn settle(self) -> Result<OpenPort, String> {
        match self {
            Self::Plain(port) => Ok(port),
            Self::Mirrored(opener) => opener.settle().map_err(|failed| failed.to_string()),
        }
    }

    /// Pages that were not the same on both sides.
    pub(super) fn differences(&self) -> u64 {
        match self {
            Self::Plain(_) => 0,
            Self::Mirrored(opener) => opener.differences() as u64,
        }
    }
}

impl OpenDevice for Opener {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        match self {
            Self::Plain(port) => port.read_all(reads),
            Self::Mirrored(opener) => opener.read_all(reads),
        }
    }

    fn read_other(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &mut [u8]) -> bool {
        match self {
            Self::Plain(port) => port.read_other(device, offset_bytes, bytes),
            Self::Mirrored(opener) => opener.read_other(device, offset_bytes, bytes),
        }
    }

    fn has_two_sides(&self, device: DeviceIndex) -> bool {
        match self {
            Self::Plain(port) => port.has_two_sides(device),
            Self::Mirrored(opener) => opener.has_two_sides(device),
        }
    }

    fn doubt(&mut self, device: DeviceIndex, first_block: u64, count: u64) {
        match self {
            Self::Plain(port) => port.doubt(device, first_block, count),
            Self::Mirrored(opener) => opener.doubt(device, first_block, count),
        }
    }

    fn write(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        match self {
            Self::Plain(port) => port.write(device, offset_bytes, bytes),
            Self::Mirrored(opener) => opener.write(device, offset_bytes, bytes),
        }
    }

    fn flush(&mut self, device: DeviceIndex) -> Result<(), DeviceError> {
        match self {
            Self::Plain(port) => port.flush(device),
            Self::Mirrored(opener) => opener.flush(device),
        }
    }
}

impl World {
    /// To open a shard with, through `port`.
    pub(super) fn opener(&mut self, port: OpenPort, shard: ShardIndex) -> Opener {
        let Some(pairs) = &mut self.pairs else {
            return Opener::Plain(port);
        };
        let preferred = *pairs.random.pick(&Side::BOTH);
        Opener::Mirrored(MirroredOpener::new(
            port,
            &self.layout,
            shard,
            pairs.usable(),
            preferred,
        ))
    }

    /// After a power cut: a lost side of which the labels do not know is there again, and the other one is missing. Nothing that was
    /// promised rests on that one alone.
    pub(super) fn find_the_other_sides(&mut self) {
        let Some(pairs) = &mut self.pairs else { return };
        for device in 0..pairs.devices() {
            let sides = [device * 2, device * 2 + 1];
            let mut lost = sides.into_iter().filter(|&below| self.devices.is_lost(below));
            let in_sync = sides.iter().all(|&below| pairs.out_since[below].is_none());
            let (Some(below), None) = (lost.next(), lost.next()) else {
                continue;
            };
            if in_sync && pairs.random.percent(50) {
                self.coverage
                    .count("mirrors: pools opened with the other side missing");
                let fate = *pairs.random.pick(&FATES);
                self.devices.bring_back(below, Some(fate));
                self.devices.lose(below ^ 1, 0);
            }
        }
    }

    /// After a kill: some sides have lost their power on their own, and with it what was in their cache. The other side of each has it.
    /// Gives whether there were any.
    pub(super) fn cut_power_of_sides(&mut self) -> bool {
        let Some(pairs) = &mut self.pairs else {
            return false;
        };
        let mut any = false;
        for device in 0..pairs.devices() {
            let sides = [device * 2, device * 2 + 1];
            if sides.into_iter().any(|below| self.devices.is_lost(below)) || !pairs.random.percent(40) {
                continue;
            }
            let below = match pairs.plan.rot {
                // The other one may be the only one that has something undamaged.
                true => device * 2 + pairs.rotten[device].index(),
                false => *pairs.random.pick(&sides),
            };
            if pairs.out_since[below ^ 1].is_none() {
                self.coverage
                    .count("mirrors: sides that lost their power beside a kill");
                let fate = *pairs.random.pick(&FATES);
                self.devices.bring_back(below, Some(fate));
                any = true;
            }
        }
        any
    }

    /// Whether everything that counts is on each side of shards that were just opened, if both are in sync.
    pub(super) fn check_each_side(&mut self, shards: &mut [&mut Shard<SimulatedTail>]) -> Checked {
        let Some(pairs) = &self.pairs else { return Ok(()) };
        let labels = pairs.out_since.clone();
        let is_whole = (0..labels.len()).all(|below| labels[below].is_none() && !self.devices.is_lost(below));
        if !is_whole || pairs.plan.rot {
            return Ok(());
        }
        for missing in Side::BOTH {
            let pairs = self.pairs.as_mut().expect("as above");
            let of_device = pairs.out_since.iter_mut().skip(missing.index()).step_by(2);
            of_device.for_each(|since| *since = Some(1));
            for shard in shards.iter_mut() {
                let mut opener = self.opener(self.devices.open_port(None), shard.index());
                let report = shard.check(&mut opener, true);
                if !report.is_clean() {
                    return broken(format!(
                        "shard {} after a recovery, without the {missing}: {:?}",
                        shard.index().0,
                        report.problems
                    ));
                }
            }
            self.pairs
                .as_mut()
                .expect("as above")
                .out_since
                .clone_from(&labels);
        }
        self.coverage
            .count("mirrors: recoveries with all data on each side");
        Ok(())
    }

    /// Before a pool is opened: the labels say which sides are not there.
    pub(super) fn label_what_is_missing(&mut self) {
        let Some(pairs) = &mut self.pairs else { return };
        pairs.went_missing.clear();
        for below in 0..pairs.known.len() {
            if self.devices.is_lost(below) && pairs.out_since[below].is_none() {
                pairs.label_out(below);
                pairs.went_missing.insert(below);
                self.coverage.count("mirrors: pools opened with a side missing");
            }
        }
    }

    /// How the mirrors of the next life begin; the pool was opened.
    pub(super) fn begin_sides(&mut self) -> Option<Sides> {
        let pairs = self.pairs.as_mut()?;
        let state = |since: Option<u64>| match since {
            None => SideState::InSync,
            Some(_) => SideState::Out,
        };
        let mut stale: Vec<StaleAt> = Vec::new();
        for (below, since) in (0u8..).zip(&pairs.out_since) {
            pairs.known[usize::from(below)] = if since.is_some() {
                Known::Out
            } else {
                Known::InSync
            };
            let Some(episode) = *since else { continue };
            let at = SideAt::of_below(DeviceIndex(below));
            for shard in (0..self.layout.shard_count).map(ShardIndex) {
                let mut port = self.devices.open_port(None);
                let found = load_stale(&mut port, &self.layout, shard, at, episode);
                if pairs.went_missing.contains(&usize::from(below)) {
                    self.coverage.count(match found.words {
                        Some(_) => "mirrors: shards whose side is missing since the start, and what it may lack is known",
                        None => "mirrors: shards whose side is missing since the start, and may lack everything",
                    });
                }
                stale.push(found);
            }
        }
        pairs.resynced.clear();
        pairs.did.clear();
        pairs.stuck.clear();
        pairs.chances = 0;
        Some(Sides {
            layout: self.layout.clone(),
            states: pairs
                .out_since
                .chunks_exact(2)
                .map(|pair| [state(pair[0]), state(pair[1])])
                .collect(),
            stale,
            rate_bytes_per_s: pairs.plan.rate_bytes_per_s,
            #[cfg(feature = "planted-bugs")]
            bug: self.plan.shard_options.planted_bug,
        })
    }

    /// Sees that something happens to the sides of this life.
    pub(super) fn next_mischief(&mut self) {
        if let Some(pairs) = &mut self.pairs {
            let delay_ns = pairs.random.between(1_000, 1_000 + pairs.plan.peace_ns);
            self.machine.alarm(delay_ns, SIDES_MARK);
        }
    }

    /// Lets things happen to sides, or not.
    pub(super) fn let_sides_fail(&mut self, fail: bool) {
        if let Some(pairs) = &mut self.pairs {
            pairs.is_peaceful = !fail;
        }
    }

    /// Reads a block of a device as it is now.
    pub(super) fn peek(&self, device: usize, block: u64, into: &mut [u8]) {
        let below = self.pairs.as_ref().map_or(device, |pairs| pairs.sound(device));
        self.devices.peek(below, block, into);
    }

    /// The number of a side of a device that has everything.
    pub(super) fn sound_side(&self, device: usize) -> usize {
        self.pairs.as_ref().map_or(device, |pairs| pairs.sound(device))
    }

    /// The mirrors of a processor say something.
    pub(super) fn mirror_noticed(&mut self, seat: usize, notice: MirrorNotice) -> Checked {
        self.trace(|| format!("mirror processor {seat}: {notice:?}"));
        let processors = self.machine.processors();
        let Some(pairs) = &mut self.pairs else {
            return broken("mirrors that are not there say something");
        };
        match notice {
            MirrorNotice::SideFailed { at, .. } => self.side_failed(usize::from(at.below().0)),
            MirrorNotice::Resynced { at } => {
                let below = usize::from(at.below().0);
                if pairs.known[below] != Known::Resync {
                    return Ok(());
                }
                pairs.resynced.insert((seat, below));
                if (0..processors).all(|seat| pairs.resynced.contains(&(seat, below))) {
                    pairs.known[below] = Known::Joining;
                    let delay_ns = pairs.random.between(100, 100 + pairs.plan.label_ns);
                    self.machine.alarm(delay_ns, SIDES_MARK | LABEL_IN | below as u64);
                }
            }
            MirrorNotice::CannotCopy { at, .. } => {
                self.coverage.count("mirrors: chunks that could not be copied");
                pairs.stuck.insert(usize::from(at.below().0));
            }
        }
        Ok(())
    }

    /// A side failed: the labels are to say so, unless the other one is out.
    fn side_failed(&mut self, below: usize) {
        let pairs = self.pairs.as_mut().expect("sides failed");
        let has_other = matches!(pairs.known[below ^ 1], Known::InSync);
        if !has_other || matches!(pairs.known[below], Known::GoingOut | Known::Out) {
            return;
        }
        self.coverage.count("mirrors: sides that failed");
        pairs.known[below] = Known::GoingOut;
        let delay_ns = pairs.random.between(100, 100 + pairs.plan.label_ns);
        self.machine
            .alarm(delay_ns, SIDES_MARK | LABEL_OUT | below as u64);
    }

    /// A processor has carried out an order.
    pub(super) fn mirror_did(&mut self, seat: usize, order: SidesOrder) {
        let processors = self.machine.processors();
        let pairs = self.pairs.as_mut().expect("orders are for mirrors");
        let below = usize::from(order.at().below().0);
        pairs.did.insert((seat, below));
        if !(0..processors).all(|seat| pairs.did.contains(&(seat, below))) {
            return;
        }
        match (order, pairs.known[below]) {
            (SidesOrder::Out(..), Known::GoingOut) => pairs.known[below] = Known::Out,
            (SidesOrder::Joined(_), Known::Joining) => {
                pairs.known[below] = Known::InSync;
                self.coverage.count("mirrors: sides that joined again");
            }
            _ => {}
        }
    }

    fn order(&mut self, below: usize, order: impl Fn(SideAt) -> SidesOrder) {
        let pairs = self.pairs.as_mut().expect("orders are for mirrors");
        pairs.did.retain(|(_, of)| *of != below);
        let order = order(SideAt::of_below(DeviceIndex(below as u8)));
        self.trace(|| format!("mirror {order:?}"));
        self.machine.order(order);
    }

    /// It is time for a label, or for something to happen.
    pub(super) fn sides_alarmed(&mut self, mark: u64) -> Checked {
        let below = (mark & 0xff) as usize;
        let pairs = self.pairs.as_mut().expect("alarms are for mirrors");
        if mark & LABEL_OUT != 0 && pairs.known[below] == Known::GoingOut {
            pairs.label_out(below);
            let episode = pairs.sequence;
            self.order(below, |at| SidesOrder::Out(at, episode));
        } else if mark & LABEL_IN != 0 && pairs.known[below] == Known::Joining {
            if self.devices.is_lost(below) {
                // Its label cannot be written.
                self.side_failed(below);
                return Ok(());
            }
            self.devices.flush(below);
            pairs.sequence += 1;
            pairs.out_since[below] = None;
            self.order(below, SidesOrder::Joined);
        } else if mark & (LABEL_OUT | LABEL_IN) == 0 {
            pairs.chances += 1;
            if pairs.chances > CHANCES_MAX {
                return broken(format!(
                    "nothing goes on but the mirrors: {}",
                    self.describe_hang()
                ));
            }
            self.do_mischief();
            self.next_mischief();
        }
        Ok(())
    }

    /// A side is lost, or comes back, or rots.
    fn do_mischief(&mut self) {
        let pairs = self.pairs.as_mut().expect("it is for mirrors");
        let device = pairs.random.below(pairs.devices() as u64) as usize;
        if !pairs.is_whole(device) {
            if pairs.random.percent(60) {
                let sides = [device * 2, device * 2 + 1];
                sides.into_iter().for_each(|below| self.bring_back(below));
            }
            return;
        }
        if pairs.is_peaceful {
            return;
        }
        let side = *pairs.random.pick(&Side::BOTH);
        let below = device * 2 + side.index();
        if pairs.plan.losses
            && ![device * 2, device * 2 + 1]
                .iter()
                .any(|&side| self.devices.is_lost(side))
        {
            let hang_ns = pairs.plan.hang_ns;
            self.coverage.count("mirrors: sides that were lost");
            self.trace(|| format!("lose   side {below}"));
            self.devices.lose(below, hang_ns);
        } else if pairs.plan.rot {
            let below = device * 2 + pairs.rotten[device].index();
            let shard = pairs.random.below(u64::from(self.layout.shard_count)) as u16;
            let start = self.layout.slice_start_block(shard, device);
            let end = start + self.layout.devices[device].slice_blocks;
            let used = if pairs.random.percent(70) {
                self.layout.data_start_block(shard, device)
            } else {
                start
            };
            let block = pairs.random.between(used, (used + 200).min(end - 1));
            let (byte, bit) = (pairs.random.below(4096) as usize, pairs.random.below(8));
            self.coverage.count("mirrors: blocks that rotted on one side");
            self.devices.corrupt(below, block, byte, 1 << bit);
        }
    }

    /// A side that is out comes back, if it is; one that could not get everything tries again.
    fn bring_back(&mut self, below: usize) {
        let pairs = self.pairs.as_mut().expect("it is for mirrors");
        if pairs.known[below] == Known::Resync && pairs.stuck.remove(&below) {
            return self.order(below, SidesOrder::Resync);
        }
        if pairs.known[below] != Known::Out {
            return;
        }
        let is_lost = self.devices.is_lost(below);
        let is_replaced = is_lost && pairs.random.percent(pairs.plan.replaced_percent);
        if is_lost {
            let fate = *pairs.random.pick(&FATES);
            self.devices.bring_back(below, (!is_replaced).then_some(fate));
        }
        self.coverage.count("mirrors: sides that came back");
        pairs.known[below] = Known::Resync;
        pairs.resynced.retain(|(_, of)| *of != below);
        pairs.stuck.remove(&below);
        if is_replaced {
            // The label of another device is another label.
            self.coverage.count("mirrors: sides that were replaced");
            pairs.label_out(below);
            let episode = pairs.sequence;
            self.order(below, |at| SidesOrder::Replaced(at, episode));
        }
        self.order(below, SidesOrder::Resync);
    }

    /// Brings all sides back and waits until they are in sync.
    ///
    /// # Errors
    /// The first law that is broken; that they never are.
    pub fn make_whole(&mut self) -> Checked {
        let Some(pairs) = &self.pairs else { return Ok(()) };
        let devices = pairs.devices();
        let mut steps = 0u64;
        loop {
            let pairs = self.pairs.as_ref().expect("as above");
            let lost = (0..devices * 2).find(|&below| self.devices.is_lost(below));
            if (0..devices).all(|device| pairs.is_whole(device)) {
                match lost {
                    None => return self.settle(),
                    // Nobody has noticed: nothing was written.
                    Some(below) => self.side_failed(below),
                }
            }
            (0..devices * 2).for_each(|below| self.bring_back(below));
            self.step()?;
            steps += 1;
            if steps > 2_000_000 {
                let known = &self.pairs.as_ref().expect("as above").known;
                return broken(format!("sides that never get in sync: {known:?}"));
            }
        }
    }

    /// What was audited on one side of each device is on the other too, if that has everything.
    pub(super) fn audit_other_sides(&mut self) -> Checked {
        let Some(pairs) = &mut self.pairs else {
            return Ok(());
        };
        let is_whole = (0..pairs.devices()).all(|device| pairs.is_whole(device));
        if !is_whole || pairs.plan.rot || (0..pairs.known.len()).any(|below| self.devices.is_lost(below)) {
            return Ok(());
        }
        let labels = pairs.out_since.clone();
        pairs
            .out_since
            .iter_mut()
            .step_by(2)
            .for_each(|since| *since = Some(1));
        let result = self.audit();
        self.pairs.as_mut().expect("as above").out_since = labels;
        self.coverage.count("mirrors: audits of both sides");
        result
    }
}
