//! Short deterministic scripts: a few made by hand, so that every operation that writes to the devices occurs, and any
//! number from seeds.

use crate::random::Random;

/// One thing that a client or the operator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    CreateVolume {
        blocks: u64,
    },
    Resize {
        volume: u32,
        blocks: u64,
    },
    DeleteVolume {
        volume: u32,
    },
    /// Writes stamped sectors.
    Write {
        volume: u32,
        sector: u64,
        sectors: u64,
        fua: bool,
    },
    /// Makes holes, of whole blocks.
    Discard {
        volume: u32,
        block: u64,
        blocks: u64,
        fua: bool,
    },
    Flush {
        volume: u32,
    },
    Snapshot {
        volumes: Vec<u32>,
    },
    DeleteSnapshot {
        snapshot: u64,
    },
    /// Makes a volume that begins as a snapshot of another is.
    Clone {
        volume: u32,
        snapshot: u64,
    },
    /// Makes a volume what it was at a snapshot. From then on it has the next number.
    RollBack {
        volume: u32,
        of: u32,
        snapshot: u64,
    },
    /// Gives a clone the snapshots that it and what it was made of have in common.
    Promote {
        volume: u32,
    },
    Checkpoint,
    /// Waits until nothing goes on, not even in the background.
    Drain,
    /// Lets time pass until what waits for it has happened.
    Idle,
}

/// A pool and what is done with it.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// What it is called when it fails.
    pub(crate) name: String,
    /// Seeds the order in which device operations end, and all choices at crashes.
    pub(crate) seed: u64,
    pub(crate) shards: u16,
    /// Blocks of each device.
    pub(crate) devices: Vec<u64>,
    pub(crate) tail: bool,
    /// The devices make single writes durable.
    pub(crate) durable_writes: bool,
    /// Writes in flight at most.
    pub(crate) depth: usize,
    pub(crate) steps: Vec<Step>,
}

const SECTORS: u64 = 8;
/// The smallest slice.
const SLICE: u64 = 1024;
/// Writes of three blocks whose records fill the first three sectors of a log page.
const LONG_PAGE_WRITES: u64 = 30;

fn write(volume: u32, block: u64, blocks: u64) -> Step {
    Step::Write {
        volume,
        sector: block * SECTORS,
        sectors: blocks * SECTORS,
        fua: false,
    }
}

fn fua(volume: u32, block: u64) -> Step {
    Step::Write {
        volume,
        sector: block * SECTORS,
        sectors: SECTORS,
        fua: true,
    }
}

/// The scripts that are played once more on devices that make single writes durable.
const DURABLY: [&str; 2] = ["checkpoints", "snapshots"];

/// The scripts made by hand. Their numbers are their places: new ones come last.
pub(crate) fn by_hand() -> Vec<Script> {
    use Step::{
        Checkpoint, CreateVolume, DeleteSnapshot, DeleteVolume, Drain, Flush, Idle, Resize, Snapshot,
    };
    let discard = |volume, block, blocks| Step::Discard {
        volume,
        block,
        blocks,
        fua: false,
    };
    let flush = || Flush { volume: 1 };
    let snapshot = || Snapshot { volumes: vec![1] };
    let create = |blocks| CreateVolume { blocks };
    let log = vec![
        create(12),
        write(1, 0, 3),
        flush(),
        write(1, 1, 1),
        fua(1, 5),
        Step::Write {
            volume: 1,
            sector: 9,
            sectors: 3,
            fua: false,
        },
        flush(),
        Idle,
        write(1, 2, 2),
        write(1, 7, 1),
    ];
    let checkpoints = vec![
        create(10),
        write(1, 0, 4),
        Checkpoint,
        write(1, 0, 2),
        discard(1, 3, 1),
        flush(),
        Checkpoint,
        write(1, 0, 2),
        Checkpoint,
        write(1, 4, 3),
        write(1, 0, 1),
    ];
    let objects = vec![
        create(520),
        write(1, 0, 1),
        write(1, 255, 2),
        flush(),
        write(1, 511, 2),
        Checkpoint,
        write(1, 519, 1),
        flush(),
    ];
    let snapshots = vec![
        create(8),
        write(1, 0, 3),
        snapshot(),
        write(1, 1, 3),
        flush(),
        snapshot(),
        write(1, 0, 1),
        Checkpoint,
        DeleteSnapshot { snapshot: 1 },
        Drain,
        write(1, 2, 2),
        DeleteSnapshot { snapshot: 2 },
        Drain,
        Checkpoint,
        write(1, 0, 2),
    ];
    let resizes = vec![
        create(10),
        write(1, 0, 10),
        Resize { volume: 1, blocks: 4 },
        write(1, 3, 1),
        Resize { volume: 1, blocks: 9 },
        flush(),
        write(1, 7, 2),
        Checkpoint,
        create(5),
        write(2, 0, 2),
        DeleteVolume { volume: 2 },
        Resize {
            volume: 1,
            blocks: 12,
        },
        Drain,
        fua(1, 11),
    ];
    let groups = vec![
        create(260),
        create(6),
        write(1, 254, 4),
        write(2, 0, 2),
        Snapshot { volumes: vec![1, 2] },
        write(1, 255, 2),
        Flush { volume: 2 },
        discard(1, 256, 2),
        Checkpoint,
        DeleteSnapshot { snapshot: 1 },
        Drain,
    ];
    // More log pages than the ring has.
    let ring: Vec<Step> = [create(6)]
        .into_iter()
        .chain((0..72).map(|number| fua(1, number % 5)))
        .collect();
    let one = vec![257 + SLICE];
    let make = |name: &str, shards: u16, devices: &[u64], depth, steps: Vec<Step>| Script {
        name: name.to_string(),
        seed: name.bytes().map(u64::from).sum(),
        shards,
        devices: devices.to_vec(),
        tail: true,
        durable_writes: false,
        depth,
        steps,
    };
    let two = [257 + 2 * SLICE, 257 + 2 * SLICE + 3];
    let mut scripts = vec![
        make("log", 1, &one, 2, log),
        make("checkpoints", 1, &one, 2, checkpoints),
        make("objects", 2, &two[..1], 3, objects),
        make("snapshots", 1, &one, 3, snapshots),
        make("resizes", 2, &two[..1], 2, resizes),
        make("groups", 2, &two, 3, groups),
        make("ring", 1, &one, 1, ring),
        make("pages", 1, &one, LONG_PAGE_WRITES as usize, long_pages()),
        make("clones", 1, &one, 3, clones()),
        make("rollbacks", 2, &two[..1], 3, rollbacks()),
        make("promotions", 2, &two[..1], 3, promotions()),
    ];
    let durably = |script: &Script| Script {
        name: format!("{} with durable writes", script.name),
        durable_writes: true,
        ..script.clone()
    };
    let again: Vec<Script> = scripts
        .iter()
        .filter(|script| DURABLY.contains(&script.name.as_str()))
        .map(durably)
        .collect();
    scripts.extend(again);
    scripts
}

/// A clone of the newest snapshot and one of an older one; both snapshots go while they are there, one waits for its
/// branches, and what is left of the tree goes in the end.
fn clones() -> Vec<Step> {
    let snapshot = || Step::Snapshot { volumes: vec![1] };
    let create = Step::CreateVolume { blocks: 8 };
    vec![
        create,
        write(1, 0, 3),
        write(1, 3, 3),
        snapshot(),
        write(1, 1, 2),
        snapshot(),
        Step::Clone {
            volume: 1,
            snapshot: 1,
        },
        write(2, 0, 1),
        write(1, 0, 2),
        Step::DeleteSnapshot { snapshot: 1 },
        write(2, 4, 1),
        Step::Checkpoint,
        Step::Clone {
            volume: 1,
            snapshot: 2,
        },
        write(3, 2, 2),
        Step::Flush { volume: 3 },
        Step::DeleteVolume { volume: 2 },
        Step::Drain,
        Step::DeleteSnapshot { snapshot: 2 },
        fua(1, 5),
        Step::DeleteVolume { volume: 1 },
        Step::Drain,
        write(3, 0, 3),
        Step::Checkpoint,
    ]
}

/// A clone takes over what it and its origin have in common, the origin goes, and then the snapshots that it leaves behind
/// in shares without a live map; one of them waits for a second clone.
fn promotions() -> Vec<Step> {
    let snapshot = |volume| Step::Snapshot {
        volumes: vec![volume],
    };
    let clone = |volume, snapshot| Step::Clone { volume, snapshot };
    let delete = |snapshot| Step::DeleteSnapshot { snapshot };
    vec![
        Step::CreateVolume { blocks: 260 },
        write(1, 0, 2),
        write(1, 254, 2),
        snapshot(1),
        write(1, 1, 1),
        snapshot(1),
        write(1, 256, 2),
        snapshot(1),
        clone(1, 2),
        write(2, 255, 2),
        snapshot(2),
        clone(1, 1),
        Step::Promote { volume: 2 },
        fua(2, 0),
        delete(3),
        Step::DeleteVolume { volume: 1 },
        write(2, 1, 1),
        delete(1),
        Step::Checkpoint,
        Step::DeleteVolume { volume: 3 },
        Step::Drain,
        Step::RollBack {
            volume: 2,
            of: 1,
            snapshot: 2,
        },
        write(4, 0, 1),
        delete(4),
        delete(2),
        Step::Drain,
        fua(4, 255),
    ]
}

/// A volume goes back twice, the second time to what it was before the first; what it was in between goes.
fn rollbacks() -> Vec<Step> {
    let snapshot = |volume| Step::Snapshot {
        volumes: vec![volume],
    };
    let create = Step::CreateVolume { blocks: 260 };
    vec![
        create,
        write(1, 0, 2),
        write(1, 255, 2),
        snapshot(1),
        write(1, 1, 2),
        write(1, 256, 1),
        snapshot(1),
        Step::RollBack {
            volume: 1,
            of: 1,
            snapshot: 1,
        },
        write(2, 0, 1),
        write(2, 255, 1),
        Step::Flush { volume: 2 },
        Step::DeleteSnapshot { snapshot: 1 },
        Step::Drain,
        snapshot(2),
        Step::RollBack {
            volume: 2,
            of: 1,
            snapshot: 2,
        },
        write(3, 1, 1),
        Step::DeleteSnapshot { snapshot: 3 },
        Step::Checkpoint,
        Step::DeleteSnapshot { snapshot: 2 },
        Step::Drain,
        write(3, 256, 2),
        fua(3, 0),
    ]
}

/// Writes that are all in flight at once and cross the disk as one, so that there are few boundaries and each log page is
/// long. A record of three blocks has 52 bytes: sectors end within its fields, and not only between two records.
fn long_pages() -> Vec<Step> {
    let batch = || (0..LONG_PAGE_WRITES).map(|number| write(1, 3 * number, 3));
    let create = Step::CreateVolume {
        blocks: 3 * LONG_PAGE_WRITES,
    };
    let flush = Step::Flush { volume: 1 };
    [create]
        .into_iter()
        .chain(batch())
        .chain([flush.clone()])
        .chain(batch())
        .chain([flush, Step::Checkpoint])
        .chain(batch())
        .chain([fua(1, 0)])
        .collect()
}

/// What a script in the making knows of its volumes and snapshots.
struct Draft {
    random: Random,
    /// Size of each volume; 0 if it is deleted.
    volumes: Vec<u64>,
    /// For each snapshot its volumes with their sizes; none if it is deleted.
    snapshots: Vec<Vec<(u32, u64)>>,
    /// Volumes that were made of snapshots, and of which.
    clones: Vec<(u32, u32)>,
    /// Volumes whose snapshots may have gone over to a clone.
    promoted: Vec<u32>,
}

/// The script of a seed.
pub(crate) fn from_seed(seed: u64) -> Script {
    let mut random = Random::new(seed ^ 0x5C41_1975);
    let shards = *random.pick(&[1, 1, 2]);
    let devices = *random.pick(&[1, 1, 2]);
    let devices = (0..devices)
        .map(|_| 257 + u64::from(shards) * SLICE + random.below(5))
        .collect();
    let (tail, depth) = (random.percent(70), random.between(1, 3) as usize);
    let count = random.between(9, 20);
    let mut draft = Draft {
        random,
        volumes: Vec::new(),
        snapshots: Vec::new(),
        clones: Vec::new(),
        promoted: Vec::new(),
    };
    let mut steps = vec![draft.create(), draft.write()];
    while steps.len() < count as usize {
        let step = draft.step();
        steps.extend(step);
    }
    Script {
        name: format!("seed {seed}"),
        seed,
        shards,
        devices,
        tail,
        durable_writes: Random::new(seed ^ 0xD07A_B1E5).percent(40),
        depth,
        steps,
    }
}

impl Draft {
    fn step(&mut self) -> Option<Step> {
        Some(match self.random.below(132) {
            0..42 => self.write(),
            42..52 => Step::Flush {
                volume: self.volume()?,
            },
            52..59 => {
                let volume = self.volume()?;
                let size = self.volumes[volume as usize - 1];
                let block = self.random.below(size);
                let blocks = self.random.between(1, (size - block).min(4));
                let fua = self.random.percent(20);
                Step::Discard {
                    volume,
                    block,
                    blocks,
                    fua,
                }
            }
            59..69 => Step::Checkpoint,
            69..79 => self.snapshot()?,
            79..85 => {
                let there: Vec<usize> = (0..self.snapshots.len())
                    .filter(|&index| !self.snapshots[index].is_empty())
                    .collect();
                let index = *there.get(self.random.below(there.len().max(1) as u64) as usize)?;
                self.snapshots[index].clear();
                Step::DeleteSnapshot {
                    snapshot: index as u64 + 1,
                }
            }
            85..91 => {
                let volume = self.volume()?;
                let blocks = self.random.between(1, 14);
                self.volumes[volume as usize - 1] = blocks;
                Step::Resize { volume, blocks }
            }
            91..94 => self.create(),
            94..96 => Step::Drain,
            96..98 => Step::Idle,
            98..100 => self.delete()?,
            100..112 => self.make_of_snapshot(false)?,
            112..119 => self.make_of_snapshot(true)?,
            _ => self.promote()?,
        })
    }

    fn volume(&mut self) -> Option<u32> {
        let there: Vec<u32> = (1..)
            .zip(&self.volumes)
            .filter(|(_, size)| **size > 0)
            .map(|(id, _)| id)
            .collect();
        (!there.is_empty()).then(|| *self.random.pick(&there))
    }

    fn create(&mut self) -> Step {
        let blocks = if self.random.percent(10) {
            self.random.between(257, 262)
        } else {
            self.random.between(3, 12)
        };
        self.volumes.push(blocks);
        Step::CreateVolume { blocks }
    }

    fn write(&mut self) -> Step {
        let Some(volume) = self.volume() else {
            return self.create();
        };
        let sectors_all = self.volumes[volume as usize - 1] * SECTORS;
        let (sector, sectors) = if self.random.percent(20) {
            let sector = self.random.below(sectors_all);
            (sector, self.random.between(1, (sectors_all - sector).min(12)))
        } else {
            let block = self.random.below(sectors_all / SECTORS);
            let most = (sectors_all / SECTORS - block).min(3);
            (block * SECTORS, self.random.between(1, most) * SECTORS)
        };
        let fua = self.random.percent(15);
        Step::Write {
            volume,
            sector,
            sectors,
            fua,
        }
    }

    fn snapshot(&mut self) -> Option<Step> {
        let first = self.volume()?;
        let second = self.volume()?;
        let mut volumes = vec![first];
        if second != first && self.random.percent(50) {
            volumes.push(second);
        }
        let sizes = volumes.iter().map(|&of| (of, self.volumes[of as usize - 1]));
        self.snapshots.push(sizes.collect());
        Some(Step::Snapshot { volumes })
    }

    /// A clone of a snapshot, or the volume that a rollback to it leads to.
    fn make_of_snapshot(&mut self, roll_back: bool) -> Option<Step> {
        let all = (1..).zip(&self.snapshots);
        let all: Vec<(u64, u32, u64)> = all
            .flat_map(|(id, of)| of.iter().map(move |&(of, size)| (id, of, size)))
            .collect();
        let &(snapshot, of, size) = all.get(self.random.below(all.len().max(1) as u64) as usize)?;
        if !roll_back {
            self.volumes.push(size);
            self.clones.push((self.volumes.len() as u32, of));
            return Some(Step::Clone { volume: of, snapshot });
        }
        if self.volumes[of as usize - 1] == 0 {
            return None;
        }
        self.volumes[of as usize - 1] = 0;
        self.volumes.push(size);
        Some(Step::RollBack {
            volume: of,
            of,
            snapshot,
        })
    }

    fn promote(&mut self) -> Option<Step> {
        let clones: Vec<(u32, u32)> = self
            .clones
            .iter()
            .copied()
            .filter(|(clone, _)| self.volumes[*clone as usize - 1] > 0)
            .collect();
        let &(volume, of) = clones.get(self.random.below(clones.len().max(1) as u64) as usize)?;
        self.promoted.push(of);
        Some(Step::Promote { volume })
    }

    /// A volume that has no snapshots, or whose snapshots may be a clone's.
    fn delete(&mut self) -> Option<Step> {
        let volume = self.volume()?;
        let is_cut = self.snapshots.iter().flatten().any(|(of, _)| *of == volume);
        if is_cut && !self.promoted.contains(&volume) {
            return None;
        }
        self.volumes[volume as usize - 1] = 0;
        Some(Step::DeleteVolume { volume })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_script_and_scripts_have_all_kinds_of_steps() {
        assert_eq!(from_seed(7).steps, from_seed(7).steps);
        let scripts: Vec<Script> = (0..60).map(from_seed).chain(by_hand()).collect();
        let has = |wanted: fn(&Step) -> bool| scripts.iter().flat_map(|script| &script.steps).any(wanted);
        assert!(has(|step| matches!(step, Step::DeleteVolume { .. })));
        assert!(has(|step| matches!(step, Step::DeleteSnapshot { .. })));
        assert!(has(|step| matches!(step, Step::Resize { .. })));
        assert!(has(|step| matches!(step, Step::Idle)));
        let seeds: Vec<Step> = (0..60).flat_map(|seed| from_seed(seed).steps).collect();
        for wanted in [
            |step: &Step| matches!(step, Step::Clone { .. }),
            |step: &Step| matches!(step, Step::RollBack { .. }),
            |step: &Step| matches!(step, Step::Promote { .. }),
        ] {
            assert!(seeds.iter().filter(|step| wanted(step)).count() > 5);
        }
    }
}
