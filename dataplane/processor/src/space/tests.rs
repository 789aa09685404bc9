use super::search::RUN_BLOCKS;
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const POOL: [u8; 16] = [7; 16];

fn layout(sizes_blocks: &[u64]) -> Layout {
    Layout::plan(POOL, 1, sizes_blocks).expect("big enough")
}

fn space(sizes_blocks: &[u64]) -> Space {
    Space::new(&layout(sizes_blocks), ShardIndex(0))
}

fn checkpoint(space: &mut Space, generation: u64) -> Vec<(DeviceIndex, u64, u8)> {
    let mut page = vec![0; 4096];
    let mut written = Vec::new();
    space.begin_checkpoint();
    while let Some(place) = space.next_image(generation, &mut page) {
        BitmapPage::parse(&page, POOL, 0, place.0.0.into(), place.1).expect("a sound page");
        written.push(place);
    }
    space.checkpoint_durable();
    while !space.promote_step(1) {}
    written
}

#[test]
fn a_new_pool_writes_every_page_to_slot_0_and_then_only_what_changed_to_the_other_slot() {
    let mut space = space(&[40_000, 2000]);
    let places: BTreeSet<_> = checkpoint(&mut space, 1)
        .into_iter()
        .map(|(d, p, s)| (d.0, p, s))
        .collect();
    assert_eq!(places, BTreeSet::from([(0, 0, 0), (0, 1, 0), (1, 0, 0)]));
    assert!(checkpoint(&mut space, 2).is_empty());
    let extent = space.reserve(8, Purpose::Data).unwrap();
    assert!(
        checkpoint(&mut space, 3).is_empty(),
        "a reservation is not part of the state"
    );
    space.commit(extent);
    assert_eq!(checkpoint(&mut space, 4), vec![(DeviceIndex(0), 0, 1)]);
    space.free(extent.address, 8);
    assert_eq!(checkpoint(&mut space, 5), vec![(DeviceIndex(0), 0, 0)]);
}

#[test]
fn a_freed_block_is_not_handed_out_before_the_next_durable_checkpoint() {
    let mut space = space(&[2000]);
    let mut extents = Vec::new();
    while let Some(extent) = space.reserve(64, Purpose::Metadata) {
        space.commit(extent);
        extents.push(extent);
    }
    assert_eq!(space.free_blocks(), 0);
    space.begin_checkpoint();
    space.free(extents[3].address, extents[3].blocks);
    let mut page = vec![0; 4096];
    while space.next_image(1, &mut page).is_some() {}
    space.checkpoint_durable();
    assert!(space.promote_step(usize::MAX));
    assert_eq!(
        space.reserve(1, Purpose::Metadata),
        None,
        "freed after the checkpoint began"
    );
    space.free(extents[5].address, extents[5].blocks);
    checkpoint(&mut space, 2);
    let freed = u64::from(extents[3].blocks + extents[5].blocks);
    assert_eq!((space.free_blocks(), space.pending_blocks()), (freed, 0));
    let again = space.reserve(64, Purpose::Metadata).unwrap();
    assert!([extents[3].address, extents[5].address].contains(&again.address));
}

#[test]
fn what_was_freed_before_a_failed_checkpoint_waits_for_the_next_one() {
    let mut space = space(&[2000]);
    checkpoint(&mut space, 1);
    let extent = space.reserve(10, Purpose::Data).unwrap();
    space.commit(extent);
    checkpoint(&mut space, 2);
    space.free(extent.address, 4);
    space.begin_checkpoint();
    space.free(extent.address.plus(4), 6);
    let mut page = vec![0; 4096];
    assert_eq!(space.next_image(3, &mut page), Some((DeviceIndex(0), 0, 0)));
    space.checkpoint_failed();
    assert!(space.promote_step(usize::MAX));
    assert_eq!((space.pending_blocks(), space.used_blocks()), (10, 0));
    assert_eq!(
        checkpoint(&mut space, 4),
        vec![(DeviceIndex(0), 0, 0)],
        "same slot again"
    );
    assert_eq!(space.free_blocks(), space.total_blocks());
}

#[test]
fn data_leaves_the_metadata_reserve_alone() {
    for size in [1400, 30_000, 300_000] {
        let mut space = space(&[size]);
        let total = space.total_blocks();
        let reserve = (total / 64).clamp(256, 16_384).min(total / 4);
        while let Some(extent) = space.reserve(256, Purpose::Data) {
            space.commit(extent);
        }
        assert_eq!(space.room(Purpose::Data), 0);
        assert_eq!(space.free_blocks(), reserve);
        for _ in 0..reserve {
            let extent = space.reserve(1, Purpose::Metadata).unwrap();
            space.commit(extent);
        }
        assert_eq!(space.reserve(1, Purpose::Metadata), None);
        assert_eq!(space.used_blocks(), total);
    }
}

#[test]
fn reservations_are_contiguous_and_take_devices_in_turn() {
    let mut space = space(&[40_000, 40_000, 40_000]);
    let extents: Vec<_> = (0..6)
        .map(|_| space.reserve(200, Purpose::Data).unwrap())
        .collect();
    let devices: Vec<_> = extents.iter().map(|e| e.address.device().0).collect();
    assert_eq!(devices, [0, 1, 2, 0, 1, 2]);
    assert!(extents.iter().all(|e| e.blocks == 200));
    assert_eq!(extents[3].address, extents[0].address.plus(200));
}

#[test]
fn a_longer_run_nearby_is_preferred_to_a_fragment() {
    let mut space = space(&[4000]);
    let all = space.reserve(1000, Purpose::Data).unwrap();
    assert_eq!(all.blocks, 1000);
    space.commit(all);
    space.free(all.address.plus(10), 1);
    space.free(all.address.plus(100), 3);
    space.free(all.address.plus(500), 64);
    checkpoint(&mut space, 1);
    while let Some(extent) = space.reserve(4096, Purpose::Metadata) {
        if extent.address == all.address.plus(500) {
            assert_eq!(extent.blocks, 64);
            return;
        }
        assert!(
            extent.address.block() >= all.address.plus(1000).block(),
            "{extent:?}"
        );
    }
    panic!("the run of 64 was never handed out");
}

#[test]
fn small_reservations_stay_on_a_device_for_a_run() {
    let mut space = space(&[40_000, 40_000]);
    let devices: Vec<_> = (0..4 * RUN_BLOCKS)
        .map(|_| space.reserve(1, Purpose::Data).unwrap().address.device().0)
        .collect();
    for (run, expected) in devices.chunks(RUN_BLOCKS as usize).zip([0, 1, 0, 1]) {
        assert!(run.iter().all(|&device| device == expected), "{devices:?}");
    }
}

#[test]
fn addresses_outside_the_data_area_are_not_contained() {
    let layout = layout(&[40_000, 2000]);
    let mut space = Space::new(&layout, ShardIndex(0));
    let end = layout.slice_start_block(0, 0) + layout.devices[0].slice_blocks;
    let at = |device, block| DeviceAddress::new(DeviceIndex(device), block);
    for (address, blocks) in [
        (at(0, 0), 1),
        (at(0, layout.data_start_block(0, 0) - 1), 1),
        (at(0, end - 1), 2),
        (at(0, end), 1),
        (at(2, 300), 1),
        (at(1, (1 << 40) - 1), u32::MAX),
    ] {
        assert!(!space.contains(Extent { address, blocks }));
        assert!(!space.mark_used(Extent { address, blocks }));
    }
    assert_eq!(space.used_blocks(), 0);
    assert!(space.contains(Extent {
        address: at(0, end - 1),
        blocks: 1
    }));
}

#[test]
#[should_panic(expected = "only used blocks are freed, and once")]
fn freeing_twice_is_a_broken_invariant() {
    let mut space = space(&[2000]);
    let extent = space.reserve(1, Purpose::Data).unwrap();
    space.commit(extent);
    space.free(extent.address, 1);
    space.free(extent.address, 1);
}

/// What happens to the space, with numbers that choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    Reserve { blocks: u32, metadata: bool },
    Commit { which: usize, part: u32 },
    Cancel { which: usize },
    Free { which: usize, part: u32 },
    Begin,
    Image,
    Durable,
    Failed,
    Promote { pages: usize },
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..600u32, any::<bool>()).prop_map(|(blocks, metadata)| Step::Reserve { blocks, metadata }),
        8 => (any::<usize>(), 1..600u32).prop_map(|(which, part)| Step::Commit { which, part }),
        2 => any::<usize>().prop_map(|which| Step::Cancel { which }),
        6 => (any::<usize>(), 1..600u32).prop_map(|(which, part)| Step::Free { which, part }),
        3 => Just(Step::Begin),
        4 => Just(Step::Image),
        4 => Just(Step::Durable),
        1 => Just(Step::Failed),
        4 => (0..3usize).prop_map(|pages| Step::Promote { pages }),
        1 => Just(Step::Crash),
    ]
}

/// A log record as far as the space is concerned.
#[derive(Clone, Copy, Debug)]
enum Logged {
    Commit(Extent),
    Free(Extent),
}

/// The naive twin: sets of addresses, and the device as a table of slots.
struct Model {
    layout: Layout,
    space: Space,
    reserved: Vec<Extent>,
    used: Vec<Extent>,
    /// Blocks that must not be handed out, although the state does not refer to them.
    pending: BTreeSet<u64>,
    frozen: BTreeSet<u64>,
    promotable: BTreeSet<u64>,
    device: BTreeMap<(u8, u64, u8), (u64, Vec<u8>)>,
    generation: u64,
    durable_generation: u64,
    log: Vec<Logged>,
    log_at_begin: Option<usize>,
}

fn addresses(extent: Extent) -> impl Iterator<Item = u64> {
    (0..u64::from(extent.blocks)).map(move |i| extent.address.0 + i)
}

fn split(extent: Extent, part: u32) -> (Extent, Option<Extent>) {
    let part = part.min(extent.blocks);
    let rest = Extent {
        address: extent.address.plus(part.into()),
        blocks: extent.blocks - part,
    };
    (
        Extent {
            blocks: part,
            ..extent
        },
        (rest.blocks > 0).then_some(rest),
    )
}

impl Model {
    fn new(sizes_blocks: &[u64]) -> Self {
        let layout = layout(sizes_blocks);
        let mut model = Self {
            space: Space::new(&layout, ShardIndex(0)),
            layout,
            reserved: Vec::new(),
            used: Vec::new(),
            pending: BTreeSet::new(),
            frozen: BTreeSet::new(),
            promotable: BTreeSet::new(),
            device: BTreeMap::new(),
            generation: 0,
            durable_generation: 0,
            log: Vec::new(),
            log_at_begin: None,
        };
        model.begin();
        model.durable();
        model
    }

    fn begin(&mut self) {
        self.generation = self.durable_generation + 1;
        self.space.begin_checkpoint();
        self.promotable.clear();
        self.frozen = core::mem::take(&mut self.pending);
        self.log_at_begin = Some(self.log.len());
    }

    fn image(&mut self) -> bool {
        let mut page = vec![0; 4096];
        let Some((device, index, slot)) = self.space.next_image(self.generation, &mut page) else {
            return false;
        };
        self.device
            .insert((device.0, index, slot), (self.generation, page));
        true
    }

    fn durable(&mut self) {
        while self.image() {}
        self.space.checkpoint_durable();
        self.durable_generation = self.generation;
        self.promotable = core::mem::take(&mut self.frozen);
        let begin = self.log_at_begin.take().expect("a checkpoint is running");
        self.log.drain(..begin);
    }

    fn crash(&mut self) {
        let mut space = Space::new(&self.layout, ShardIndex(0));
        for device in 0..self.layout.devices.len() {
            for page in 0..self.layout.bitmap_pages(device) {
                let slots = [0u8, 1].map(|slot| self.device.get(&(device as u8, page, slot)));
                let (slot, (_, bytes)) = (0..2)
                    .filter_map(|slot| slots[slot].map(|found| (slot, found)))
                    .filter(|(_, (generation, _))| *generation <= self.durable_generation)
                    .max_by_key(|(_, (generation, _))| *generation)
                    .expect("one slot is valid");
                let image = BitmapPage::parse(bytes, POOL, 0, device as u16, page).unwrap();
                space.load_page(DeviceIndex(device as u8), page, slot as u8, image);
                if slots[1 - slot].is_some_and(|(generation, _)| *generation > self.durable_generation) {
                    space.mark_dirty(DeviceIndex(device as u8), page);
                }
            }
        }
        for record in &self.log {
            if let Logged::Commit(extent) = record {
                assert!(space.mark_used(*extent), "{extent:?} was in use already");
            }
        }
        self.pending.clear();
        self.frozen.clear();
        self.promotable.clear();
        self.reserved.clear();
        self.log_at_begin = None;
        for record in &self.log {
            if let Logged::Free(extent) = *record {
                space.free(extent.address, extent.blocks);
                self.pending.extend(addresses(extent));
            }
        }
        self.space = space;
    }

    fn apply(&mut self, step: Step) {
        let running = self.log_at_begin.is_some();
        match step {
            Step::Reserve { blocks, metadata } => self.reserve(blocks, metadata),
            Step::Commit { which, part } if !self.reserved.is_empty() => {
                let extent = self.reserved.swap_remove(which % self.reserved.len());
                let (extent, rest) = split(extent, part);
                self.reserved.extend(rest);
                self.space.commit(extent);
                self.used.push(extent);
                self.log.push(Logged::Commit(extent));
            }
            Step::Cancel { which } if !self.reserved.is_empty() => {
                let extent = self.reserved.swap_remove(which % self.reserved.len());
                self.space.cancel(extent);
            }
            Step::Free { which, part } if !self.used.is_empty() => {
                let extent = self.used.swap_remove(which % self.used.len());
                let (extent, rest) = split(extent, part);
                self.used.extend(rest);
                self.space.free(extent.address, extent.blocks);
                self.pending.extend(addresses(extent));
                self.log.push(Logged::Free(extent));
            }
            Step::Begin if !running => self.begin(),
            Step::Image if running => {
                self.image();
            }
            Step::Durable if running => self.durable(),
            Step::Failed if running => {
                self.space.checkpoint_failed();
                self.pending.append(&mut self.frozen);
                self.log_at_begin = None;
            }
            Step::Promote { pages } => {
                let ended = self.space.promote_step(pages);
                if ended && !running {
                    self.promotable.clear();
                }
            }
            Step::Crash => self.crash(),
            _ => {}
        }
        self.check();
    }

    fn reserve(&mut self, blocks: u32, metadata: bool) {
        let (purpose, room) = if metadata {
            (Purpose::Metadata, self.space.free_blocks())
        } else {
            (Purpose::Data, self.space.room(Purpose::Data))
        };
        let Some(extent) = self.space.reserve(blocks, purpose) else {
            assert_eq!(room, 0);
            return;
        };
        assert!(extent.blocks >= 1 && extent.blocks <= blocks && u64::from(extent.blocks) <= room);
        assert!(self.space.contains(extent));
        for address in addresses(extent) {
            assert!(
                !self.pending.contains(&address) && !self.frozen.contains(&address),
                "still pending"
            );
        }
        for other in self.reserved.iter().chain(&self.used) {
            let apart = extent.address.plus(extent.blocks.into()) <= other.address
                || other.address.plus(other.blocks.into()) <= extent.address;
            assert!(apart, "{extent:?} was handed out while {other:?} is held");
        }
        self.reserved.push(extent);
    }

    fn check(&self) {
        let count = |extents: &[Extent]| extents.iter().map(|e| u64::from(e.blocks)).sum::<u64>();
        assert_eq!(self.space.used_blocks(), count(&self.used));
        assert_eq!(self.space.reserved_blocks(), count(&self.reserved));
        let pending = (self.pending.len() + self.frozen.len()) as u64;
        assert!(self.space.pending_blocks() >= pending);
        assert!(self.space.pending_blocks() <= pending + self.promotable.len() as u64);
        for extent in &self.used {
            let last = extent.address.plus(u64::from(extent.blocks) - 1);
            assert!(self.space.is_used(extent.address) && self.space.is_used(last));
        }
    }
}

proptest! {
    #[test]
    fn agrees_with_sets_of_addresses_through_checkpoints_and_crashes(
        steps in prop::collection::vec(step(), 1..200),
        sizes in prop_oneof![Just(vec![1400u64]), Just(vec![35_000, 1300]), Just(vec![2000, 2000, 34_000])],
    ) {
        let mut model = Model::new(&sizes);
        for step in steps {
            model.apply(step);
        }
        model.crash();
        model.check();
    }
}
