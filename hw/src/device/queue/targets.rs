//! Which devices a processor serves, while they come and go.
//!
//! ```text
//! empty place ──attach──> serves ──detach──> leaves (what is in the kernel ends) ──release──> forgotten
//! ```
//! A place may be filled again while the device that was in it before still leaves.

use super::Devices;
use super::Occupant;
use super::commands::Namespace;
use crate::device::DeviceFile;
use crate::device::parts::Limits;
use crate::discovery::Polled;
use crate::ring::{FileSlot, Ring};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use stillpoint_processor::ids::DeviceIndex;

/// A device that this processor has.
#[derive(Debug)]
pub(in crate::device) struct Target {
    pub file: Arc<DeviceFile>,
    /// The file in the processor's ring.
    pub slot: FileSlot,
    pub discards: bool,
    /// It says that it makes zeros by itself.
    pub zeroes: bool,
    /// Set if it takes our own commands.
    pub namespace: Option<Namespace>,
    /// Of one that takes none: the reads and writes whose completions are polled for.
    pub polled: Option<Polled>,
    /// Entries, commands and pauses that have not ended.
    pub in_kernel: usize,
    /// The place that it is in, or was in before it left.
    pub occupant: Occupant,
    /// It is in no place any more, and gets nothing further.
    leaves: bool,
}

/// All of them, numbered; a number is used again when its device was forgotten.
#[derive(Debug)]
pub(in crate::device) struct Targets {
    /// The number of what is in each place.
    places: Vec<Option<usize>>,
    /// How many devices were in each place, with the one that is there.
    occupants: Vec<u32>,
    all: Vec<Option<Target>>,
    /// One that leaves has nothing in the kernel any more.
    someone_left: bool,
}

impl Targets {
    /// None, for so many places.
    pub fn of_places(places: usize) -> Self {
        Self {
            places: vec![None; places],
            occupants: vec![0; places],
            all: Vec::with_capacity(places),
            someone_left: false,
        }
    }

    /// The number of what is in a place, which is one of this pool.
    pub fn number_of(&self, device: DeviceIndex) -> Option<usize> {
        let place = usize::from(device.0);
        assert!(place < self.places.len(), "a device of this pool");
        self.places[place]
    }

    /// What is in a place.
    pub fn of(&self, device: DeviceIndex) -> Option<&Target> {
        self.number_of(device).map(|number| self.at(number))
    }

    /// The one of this number, which is not forgotten.
    pub fn at(&self, number: usize) -> &Target {
        self.all[number].as_ref().expect("parts have their device")
    }

    pub fn at_mut(&mut self, number: usize) -> &mut Target {
        self.all[number].as_mut().expect("parts have their device")
    }

    /// Whether it may get more.
    pub fn serves(&self, number: usize) -> bool {
        !self.at(number).leaves
    }

    /// Something of its is no longer in the kernel.
    pub fn came_back(&mut self, number: usize) {
        let target = self.at_mut(number);
        target.in_kernel -= 1;
        let left = target.leaves && target.in_kernel == 0;
        self.someone_left |= left;
    }

    /// Whether there is something to be released.
    pub fn someone_left(&self) -> bool {
        self.someone_left
    }

    fn free_number(&mut self) -> usize {
        let free = self.all.iter().position(Option::is_none);
        free.unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        })
    }

    fn next_occupant(&mut self, place: usize) -> Occupant {
        let nth = &mut self.occupants[place];
        *nth = nth.wrapping_add(1);
        Occupant { place, nth: *nth }
    }

    /// Takes a device out of its place; gives its number.
    fn leave(&mut self, place: usize) -> Option<usize> {
        let number = self.places[place].take()?;
        let target = self.at_mut(number);
        target.leaves = true;
        let left = target.in_kernel == 0;
        self.someone_left |= left;
        Some(number)
    }

    /// Forgets the files of all.
    pub fn forget_all(&mut self, ring: &mut Ring) {
        for target in self.all.drain(..).flatten() {
            ring.forget_file(target.slot);
        }
    }

    /// The kernel may still write to the devices: they stay open, and claimed.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.all));
    }
}

impl Target {
    /// What one entry takes at most.
    pub fn limits(&self) -> Limits {
        self.namespace.map_or(Limits::FILE, |namespace| namespace.limits)
    }

    /// The longest discard.
    pub fn discard_bytes_max(&self) -> u64 {
        self.namespace
            .map_or(u64::MAX, |namespace| namespace.discard_bytes_max())
    }

    /// Whether it makes zeros by itself, as far as is known; else they are written.
    pub fn makes_zeroes(&self) -> bool {
        self.zeroes && self.file.refused_zeroes().is_none()
    }

    /// The longest range that becomes zeros by one command, if it has one.
    pub fn zero_bytes_max(&self) -> u64 {
        match self.namespace {
            Some(namespace) if self.makes_zeroes() => namespace.zero_bytes_max,
            _ => u64::MAX,
        }
    }

    /// Whether it makes single writes durable for less than a flush costs.
    pub fn writes_durably(&self) -> bool {
        self.namespace.is_some_and(|namespace| namespace.writes_durably())
    }

    /// Whether what was written to it needs no flush to be durable. The kernel knows that of files and block devices.
    pub fn keeps_all(&self) -> bool {
        self.namespace.is_some_and(|namespace| !namespace.caches)
    }
}

impl Devices {
    /// Serves what is in this place of [`Self::files`] by now, if there is anything; what it served there before leaves.
    pub fn attach(&mut self, device: usize, ring: &mut Ring) {
        let Some(file) = self.files.get(device) else {
            return;
        };
        if let Some(number) = self.targets.places[device] {
            if Arc::ptr_eq(&self.targets.at(number).file, &file) {
                return;
            }
            self.detach(device, ring);
        }
        let number = self.targets.free_number();
        let namespace = self.namespace_of(number, &file);
        let polled = file.polled().filter(|_| self.make_polled(number, &file));
        self.targets.all[number] = Some(Target {
            slot: ring.register_file(file.as_raw_fd()),
            discards: namespace.is_none_or(|namespace| namespace.discards),
            zeroes: namespace.is_none_or(|namespace| namespace.zero_bytes_max > 0),
            namespace,
            polled,
            in_kernel: 0,
            occupant: self.targets.next_occupant(device),
            leaves: false,
            file,
        });
        self.targets.places[device] = Some(number);
        let mut present = self.targets.places.iter().flatten();
        self.durable_writes = present.all(|&number| self.targets.at(number).writes_durably());
    }

    /// Gives this place up: nothing further goes to its device, and what waits for it ends with
    /// [`stillpoint_processor::ports::DeviceError::Gone`]. What is in the kernel ends by itself; then the ring forgets the device, and this
    /// has let go of it. Does nothing if the place is empty.
    pub fn detach(&mut self, device: usize, ring: &mut Ring) {
        let Some(number) = self.targets.leave(device) else {
            return;
        };
        for _ in 0..self.ready.len() {
            let (slot, part) = self.ready.pop_front().expect("as many as there were");
            if self.slots[slot as usize].parts[part as usize].target == number {
                self.end_gone(slot, part);
            } else {
                self.ready.push_back((slot, part));
            }
        }
        self.release(ring);
    }

    /// Forgets those that have left.
    pub(super) fn release(&mut self, ring: &mut Ring) {
        self.targets.someone_left = false;
        for number in 0..self.targets.all.len() {
            let place = &mut self.targets.all[number];
            if let Some(target) = place.take_if(|target| target.leaves && target.in_kernel == 0) {
                ring.forget_file(target.slot);
                if let Some(rings) = &mut self.rings {
                    rings.forget_claim(number);
                }
            }
        }
    }
}
