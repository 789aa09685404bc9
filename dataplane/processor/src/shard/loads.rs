//! Map pages on their way from the device into the cache, and who waits for them.

use crate::marks::{Mark, mark};
use std::collections::{BTreeMap, VecDeque};

use super::read::push_transfer;
use super::repair::{Judged, Look, Place};
use super::{Shard, SlotId, Tag, give_all};
use crate::BLOCK_BYTES;
use crate::ids::DeviceAddress;
use crate::map::PageRef;
use crate::ports::{BufferPool, LogTail, Operation, OperationKind};
use crate::request::RequestError;
use stillpoint_ondisk::map_page::MapPage;

/// Page loads in flight at most.
const LOADS_MAX: usize = 64;
/// Clean pages that the cache has room for, for each load in flight: about what one request looks at.
const ROOM_PAGES_PER_LOAD: usize = 8;

/// When background work needs a leaf from the device, those of so many further steps are read with it: read together they cost
/// the requests beside them less than one by one.
pub(super) const LEAVES_AHEAD: usize = 16;
/// But only into a cache that has room for so many clean pages: what was read early must still be there when its step comes.
const ROOM_PAGES_TO_FETCH: usize = 1024;

/// Who waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    Slot(SlotId),
    Reclaim,
    Scrub(PageRef),
}

#[derive(Debug)]
struct Load {
    page: PageRef,
    waiters: Vec<Waiter>,
}

/// The loads.
#[derive(Debug, Default)]
pub(super) struct Loads {
    loads: BTreeMap<DeviceAddress, Load>,
    to_issue: VecDeque<DeviceAddress>,
    in_flight: usize,
}

impl Loads {
    /// Runs `waiter` again when `page` is there. Whoever waits `again` goes before those who wait for the first time:
    /// the pages it waited for before must not be gone by the time the last one comes.
    pub(super) fn wait(&mut self, page: PageRef, waiter: Waiter, again: bool) {
        let address = page.address;
        let load = self.loads.entry(address).or_insert_with(|| {
            if again {
                self.to_issue.push_front(address);
            } else {
                self.to_issue.push_back(address);
            }
            Load {
                page,
                waiters: Vec::new(),
            }
        });
        if !load.waiters.is_empty() {
            mark(Mark::MapPageWaitedFor);
        }
        load.waiters.push(waiter);
    }
}

impl Loads {
    /// Brings a page that somebody will look for soon. If it cannot be read, whoever looks for it is told then.
    pub(super) fn fetch(&mut self, page: PageRef) {
        let address = page.address;
        self.loads.entry(address).or_insert_with(|| {
            self.to_issue.push_back(address);
            Load {
                page,
                waiters: Vec::new(),
            }
        });
    }
}

impl<T: LogTail> Shard<T> {
    /// Whether a load waits for nothing but its turn. A small cache takes few at a time, so that what they bring is
    /// still there when it is looked for.
    pub(super) fn can_load(&self) -> bool {
        let room = self.cache.clean_room_pages() / ROOM_PAGES_PER_LOAD;
        !self.loads.to_issue.is_empty() && self.loads.in_flight < room.clamp(1, LOADS_MAX)
    }

    /// Whether pages may be read that nobody waits for yet. Not before those that somebody does wait for.
    pub(super) fn has_room_to_fetch(&self) -> bool {
        self.cache.clean_room_pages() >= ROOM_PAGES_TO_FETCH && self.loads.to_issue.len() < LEAVES_AHEAD
    }

    pub(super) fn issue_loads(&mut self, buffers: &mut impl BufferPool) {
        while self.can_load() {
            let Some(buffer) = buffers.take(BLOCK_BYTES) else {
                self.short_of_buffers = true;
                return;
            };
            let address = self.loads.to_issue.pop_front().expect("a load can be issued");
            self.loads.in_flight += 1;
            self.status.map_misses += 1;
            mark(Mark::MapPageLoaded);
            let mut operation = self.operation(OperationKind::Read, Tag::LoadPage(address));
            operation.buffers.push(buffer);
            push_transfer(&mut operation, address, 0, 0, BLOCK_BYTES);
            self.progress = true;
            self.issue(operation);
        }
    }

    pub(super) fn load_done(
        &mut self,
        address: DeviceAddress,
        look: Look,
        operation: &mut Operation,
        buffers: &mut impl BufferPool,
    ) {
        let page = self.loads.loads[&address].page;
        let is_plain = look.asked().is_none() && operation.result.is_ok() && operation.failures.is_empty();
        if is_plain && self.insert(&page, operation) {
            give_all(operation, buffers);
            return self.load_ended(address, Ok(()));
        }
        let pool = self.layout.pool;
        let is_sound =
            |place: Place, came: &Operation| MapPage::parse(place.bytes(came), pool, &page.identity).is_ok();
        let all = || {
            core::iter::once(Place {
                address,
                buffer: 0,
                offset_bytes: 0,
            })
        };
        let loaded = match self.judge(Tag::LoadPage(address), look, operation, buffers, all, is_sound) {
            Judged::Again(again) => {
                mark(Mark::MapPageDamaged);
                return self.issue(again);
            }
            Judged::Sound => {
                assert!(self.insert(&page, operation), "a page that was found sound");
                Ok(())
            }
            Judged::Unreadable => Err(RequestError::Io),
            Judged::Damaged(_) => Err(RequestError::Corrupt),
        };
        give_all(operation, buffers);
        self.load_ended(address, loaded);
    }

    fn insert(&mut self, page: &PageRef, came: &Operation) -> bool {
        let bytes = &came.buffers[0].bytes()[..BLOCK_BYTES];
        self.cache.insert(page, bytes).is_ok()
    }

    /// The page is in the cache, or cannot be had: those who wait for it are told.
    fn load_ended(&mut self, address: DeviceAddress, loaded: Result<(), RequestError>) {
        let load = self
            .loads
            .loads
            .remove(&address)
            .expect("the load was waited for");
        self.loads.in_flight -= 1;
        if loaded == Err(RequestError::Corrupt) && !load.waiters.is_empty() {
            mark(Mark::MapPageDamaged);
            self.corrupt(address);
        }
        for waiter in load.waiters {
            match (waiter, loaded) {
                (Waiter::Slot(id), Ok(())) => self.ready.push_back(id),
                (Waiter::Slot(id), Err(error)) => {
                    self.drop_extents(id);
                    self.answer(id, Err(error));
                }
                (Waiter::Reclaim, result) => self.reclaim_page_came(result),
                (Waiter::Scrub(page), result) => self.scrub_page_came(page, result),
            }
        }
    }
}
