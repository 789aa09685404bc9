//! Two mirrored devices whose labels are written one at a time, and crashes at any of these writes.

use super::*;
use crate::api::model::CreatePool;
use crate::label::{Found as FoundLabel, look};
use crate::make::make_pool;

const DEVICES: usize = 2;
const SIDES: usize = DEVICES * 2;

/// The labels of a pool that was just made, by place.
fn made() -> Vec<PoolLabel> {
    let directory = tempfile::tempdir().expect("a directory");
    let paths: Vec<PathBuf> = (0..SIDES)
        .map(|place| directory.path().join(format!("p-{place}")))
        .collect();
    let request = CreatePool {
        name: "p".to_owned(),
        devices: paths.iter().map(|path| path.display().to_string()).collect(),
        size_bytes: Some(64 << 20),
        shards: Some(1),
        mirror: true,
        force: false,
        force_devices: Vec::new(),
    };
    drop(make_pool(&request, 1).expect("a pool"));
    let label = |path: &PathBuf| match look(path).expect("it can be read") {
        FoundLabel::Label { label, .. } => *label,
        other => panic!("{other:?}"),
    };
    paths.iter().map(label).collect()
}

fn at(place: usize) -> SideAt {
    SideAt::of_below(DeviceIndex(place as u8))
}

/// The pool that the labels of these places make.
fn pool(labels: &[PoolLabel], places: &[usize]) -> Result<PoolDevices> {
    let paths: Vec<PathBuf> = (0..SIDES).map(|place| format!("p-{place}").into()).collect();
    let found = places
        .iter()
        .map(|&place| (Box::new(labels[place]), &paths[place]));
    read(found.collect(), &[], Vec::new())
}

/// This label as the device in a place has it.
fn on(label: &MirrorLabel, place: usize) -> PoolLabel {
    let page = label.0.page_for(place / 2, place % 2);
    PoolLabel::parse(&page).expect("a label")
}

fn of(labels: &[PoolLabel]) -> MirrorLabel {
    MirrorLabel(Box::new(labels[0]))
}

/// Numbers that look random, the same for each seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// The daemon died.
#[derive(Debug)]
struct Crash;

/// A pool that is open.
struct Open {
    label: MirrorLabel,
    is_there: [bool; SIDES],
}

impl Open {
    /// The places of sides that have everything.
    fn in_sync(&self) -> Vec<usize> {
        let counts = |&place: &usize| self.is_there[place] && self.label.out_since(at(place)) == 0;
        (0..SIDES).filter(counts).collect()
    }
}

/// What is left when nobody has the pool.
struct World {
    dice: Dice,
    labels: Vec<PoolLabel>,
    /// How much of what was acknowledged each side has.
    has: [u64; SIDES],
    acknowledged: [u64; DEVICES],
    /// The sequence in `mirrors.json`.
    kept: u64,
    /// The highest that was given out when the pool was opened.
    reserved: u64,
    crashes: bool,
    /// It crashed while it was being opened after a crash: a side that joined in the first may have its label alone then, and is refused if the
    /// others never see that. Nothing was acknowledged under it.
    is_tangled: bool,
}

impl World {
    /// Has these places say it, one after the other.
    fn write(&mut self, label: &MirrorLabel, places: &[usize]) -> std::result::Result<(), Crash> {
        for &place in places {
            if self.crashes && self.dice.percent(15) {
                return Err(Crash);
            }
            self.labels[place] = on(label, place);
        }
        Ok(())
    }

    /// Whether labels say of both sides of a device that they were used without the other. Nobody can tell then which of them was.
    fn is_split(&self) -> bool {
        (0..DEVICES).any(|device| {
            let says_other_out = |side: usize| {
                let label = &self.labels[device * 2 + side];
                label.mirrors[device].out_since[1 - side].get() > 0
            };
            says_other_out(0) && says_other_out(1)
        })
    }

    /// Opens the pool as the appliance does. `None`: it was refused.
    fn open(&mut self, places: &[usize]) -> std::result::Result<Option<Open>, Crash> {
        let devices = match pool(&self.labels, places) {
            Ok(devices) => devices,
            Err(error) => {
                assert!(
                    places.len() < SIDES || self.is_split() || self.is_tangled,
                    "everything is there: {error}"
                );
                return Ok(None);
            }
        };
        let label = devices.mirrors.clone().expect("it has mirrors");
        if label.sequence() < self.kept && places.len() < SIDES {
            return Ok(None);
        }
        let mut open = Open {
            label,
            is_there: core::array::from_fn(|place| places.contains(&place)),
        };
        let outdated = devices.outdated.iter().map(|at| usize::from(at.below().0));
        self.write(&open.label, &outdated.collect::<Vec<_>>())?;
        let lacking = devices.lacking();
        if !lacking.is_empty() {
            self.reserved = self.reserved.max(open.label.sequence() + 1) + 1;
            let label = open.label.with_missing(&lacking, self.reserved);
            open.label = label.expect("one side of each is there");
            self.write(&open.label, &open.in_sync())?;
        }
        self.kept = self.kept.max(open.label.sequence());
        for place in open.in_sync() {
            assert_eq!(
                self.has[place],
                self.acknowledged[place / 2],
                "side {place} counts as in sync"
            );
            assert_eq!(self.labels[place].sequence, open.label.0.sequence);
        }
        Ok(Some(open))
    }

    fn acknowledge(&mut self, open: &Open) {
        self.acknowledged.iter_mut().for_each(|count| *count += 1);
        for place in open.in_sync() {
            self.has[place] = self.acknowledged[place / 2];
        }
    }

    fn change(
        &mut self,
        open: &mut Open,
        label: MirrorLabel,
        places: &[usize],
    ) -> std::result::Result<(), Crash> {
        self.write(&label, places)?;
        self.kept = self.kept.max(label.sequence());
        open.label = label;
        Ok(())
    }

    /// Something happens to one of the sides. Gives whether the walk goes on.
    fn step(&mut self, open: &mut Open) -> std::result::Result<bool, Crash> {
        let place = self.dice.below(SIDES);
        match (open.label.out_since(at(place)), open.is_there[place]) {
            (0, true) => {
                if let Ok(label) = open.label.with_out(&[at(place)]) {
                    open.is_there[place] = false;
                    let others = open.in_sync();
                    self.change(open, label, &others)?;
                }
            }
            (0, false) => unreachable!("a side that is missing is out"),
            (_, false) => {
                let used = open.label.used_elsewhere(at(place), &self.labels[place]);
                if used.is_some() {
                    let is_split = used == Some(UsedElsewhere::Alone);
                    assert!(
                        is_split || self.is_tangled,
                        "side {place} was used nowhere else: {used:?}"
                    );
                    return Ok(false);
                }
                open.is_there[place] = true;
            }
            (_, true) => {
                // It has got what it lacked.
                self.has[place] = self.acknowledged[place / 2];
                let mut places = open.in_sync();
                places.push(place);
                let label = open.label.with_joined(at(place));
                self.change(open, label, &places)?;
            }
        }
        Ok(true)
    }

    /// Opens the pool, and lets things happen until it crashes or is stopped. Gives whether the walk goes on.
    fn live(&mut self, places: &[usize], after_a_crash: bool) -> std::result::Result<bool, Crash> {
        let opened = self.open(places);
        self.is_tangled |= after_a_crash && opened.is_err();
        let Some(mut open) = opened? else {
            return Ok(!self.is_split());
        };
        self.acknowledge(&open);
        for _ in 0..self.dice.below(6) {
            if !self.step(&mut open)? {
                return Ok(false);
            }
            self.acknowledge(&open);
        }
        Ok(true)
    }
}

/// Whatever is missing at whichever start, and wherever it crashes: what counts as in sync has everything, and no side is taken for one that
/// was used elsewhere.
#[test]
fn a_crash_between_labels_refuses_no_side_and_takes_none_that_is_stale() {
    let made = made();
    let (mut lives, mut crashes, mut tangled, mut opened_whole) = (0, 0, 0, 0);
    for seed in 1..=4000 {
        let mut world = World {
            dice: Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed)),
            labels: made.clone(),
            has: [0; SIDES],
            acknowledged: [0; DEVICES],
            kept: 1,
            reserved: 0,
            crashes: true,
            is_tangled: false,
        };
        let (mut goes_on, mut crashed) = (true, false);
        while goes_on && !world.dice.percent(8) {
            let mut places: Vec<usize> = (0..SIDES).collect();
            if world.dice.percent(60) {
                places.retain(|_| world.dice.percent(70));
            }
            if places.is_empty() {
                continue;
            }
            lives += 1;
            match world.live(&places, crashed) {
                Ok(on) => (goes_on, crashed) = (on, false),
                Err(Crash) => (crashes, crashed) = (crashes + 1, true),
            }
        }
        // In the end everything is there.
        world.crashes = false;
        let all: Vec<usize> = (0..SIDES).collect();
        let opened = world.open(&all);
        tangled += u64::from(world.is_tangled);
        if opened.expect("it does not crash any more").is_some() {
            opened_whole += 1;
        }
    }
    assert!(
        lives > 20_000 && crashes > 4_000 && opened_whole > 3_000 && tangled < 2_000,
        "{lives} lives, {crashes} crashes, {tangled} tangled, {opened_whole} pools opened whole"
    );
}

/// A label that one device got before a crash says of another that it is out; the pool then went on without the device that has it.
#[test]
fn what_a_crash_left_on_one_side_does_not_refuse_it() {
    let mut labels = made();
    labels[0] = on(&of(&labels).with_out(&[at(3)]).expect("one is left"), 0);
    let without = pool(&labels, &[1, 2, 3]).expect("one side of each is there");
    assert_eq!(without.lacking(), [at(0)]);
    let label = without.mirrors.expect("it has mirrors");
    let label = label
        .with_missing(&[at(0)], label.sequence() + 2)
        .expect("one is left");
    assert_eq!(label.used_elsewhere(at(0), &labels[0]), None);
    for (place, its) in labels.iter_mut().enumerate().skip(1) {
        *its = on(&label, place);
    }
    for places in [[0, 1, 2, 3], [3, 2, 1, 0]] {
        let devices = pool(&labels, &places).expect("it is known which counts");
        assert_eq!(devices.in_sync(), [at(1), at(2), at(3)]);
        assert!(devices.outdated.is_empty());
    }
}

/// It is all there is of the change: were that side lost, the others would not know who missed what was written.
#[test]
fn the_newest_label_comes_to_all_sides_that_are_in_sync() {
    let mut labels = made();
    let next = of(&labels).with_out(&[at(3)]).expect("one is left");
    labels[0] = on(&next, 0);
    let devices = pool(&labels, &[0, 1, 2, 3]).expect("it opens");
    assert_eq!(devices.outdated, [at(1), at(2)]);
    assert_eq!(devices.in_sync(), [at(0), at(1), at(2)]);
}

/// What it says of the labels of one device `p-0`, `p-1`, and of another that took a place in it.
fn refused(labels: &[PoolLabel]) -> Error {
    let paths: Vec<PathBuf> = (0..labels.len()).map(|n| format!("d{n}").into()).collect();
    let mut text = None;
    // In whichever order they are named.
    for turn in 0..labels.len() {
        let mut found: Vec<_> = labels.iter().map(|label| Box::new(*label)).zip(&paths).collect();
        found.rotate_left(turn);
        let error = read(found, &[], Vec::new()).expect_err("two histories");
        assert!(
            error
                .hint
                .as_deref()
                .is_some_and(|hint| hint.contains("--degraded")
                    && hint.contains("stillpoint pool replace")
                    && hint.contains("nothing was changed")),
            "{error}"
        );
        text = Some(error);
    }
    text.expect("there is a label")
}

/// Both have answered for what the other has not, and none of that may go without a word.
#[test]
fn sides_with_other_partners_elsewhere_are_not_opened_together() {
    let made = made();
    let before = of(&made);
    let with = |labels: [(&MirrorLabel, usize); 2], label: &MirrorLabel| {
        let ours = labels.map(|(label, place)| on(label, place));
        ours.into_iter()
            .chain([on(label, 2), on(label, 3)])
            .collect::<Vec<_>>()
    };
    // Here the second side was missing; elsewhere the first one, in whose place another device came.
    let here = before.with_out(&[at(1)]).expect("one is left");
    let elsewhere = before.with_out(&[at(0)]).expect("one is left");
    let elsewhere = elsewhere.with_replaced(at(0), [77; 16]).expect("one is left");
    let joined = elsewhere.with_joined(at(0));
    for newest in [&elsewhere, &joined] {
        let error = refused(&with([(&here, 0), (newest, 1)], newest));
        assert!(error.message.contains("without each other"), "{error}");
    }
    // Then here's labels became the newer ones.
    let mut later = here.clone();
    for _ in 0..5 {
        later = later.next();
    }
    let error = refused(&with([(&later, 0), (&joined, 1)], &later));
    assert!(
        error.message.contains("with another device as its other side"),
        "{error}"
    );
    // Or it got what it lacked elsewhere, from a copy of the other side.
    let copied = before.with_out(&[at(0)]).expect("one is left").with_joined(at(0));
    let error = refused(&with([(&later, 0), (&copied, 1)], &later));
    assert!(
        error.message.contains("elsewhere after it went out here"),
        "{error}"
    );
    // What was replaced while it was out is no history of its own.
    let replaced = before.with_out(&[at(1)]).expect("one is left");
    let replaced = replaced.with_replaced(at(1), [78; 16]).expect("one is left");
    let mut labels = with([(&replaced, 0), (&before, 1)], &replaced);
    let devices = pool(&labels, &[0, 1, 2, 3]).expect("it opens");
    assert!(devices.remarks[0].contains("was replaced in this pool"));
    labels[1] = on(&replaced, 1);
    let devices = pool(&labels, &[0, 1, 2, 3]).expect("it opens");
    assert!(devices.remarks.is_empty());
}
