//! Operations that come back from the sides.

use super::SideAt;
use super::start::below;
use super::state::{Failure, Mirror, State};
use super::table::{Miss, Purpose, SlotId, blocks_of};
use crate::marks::{Mark, mark};
use crate::ports::{BlockDevice, DeviceError, Operation, OperationKind};

impl Mirror {
    pub(super) fn poll<D: BlockDevice>(&mut self, inner: &mut D, completed: &mut Vec<Box<Operation>>) {
        let mut returned = core::mem::take(&mut self.returned);
        inner.poll(&mut returned);
        for operation in returned.drain(..) {
            self.came_back(inner, operation);
        }
        self.returned = returned;
        self.go_on(inner);
        completed.append(&mut self.completed);
    }

    /// Does what has become possible.
    pub(super) fn go_on<D: BlockDevice>(&mut self, inner: &mut D) {
        while core::mem::take(&mut self.look_again) {
            self.release_kept();
            self.start_waiting(inner);
        }
        self.send_ready(inner);
    }

    fn came_back<D: BlockDevice>(&mut self, inner: &mut D, mut operation: Box<Operation>) {
        let id = operation.tag as SlotId;
        self.count_busy(&operation, false);
        if let (Err(error), true) = (operation.result, operation.failures.is_empty()) {
            let all = 0..operation.transfers.len() as u32;
            operation.failures.extend(all.map(|transfer| (transfer, error)));
        }
        match self.table[id].purpose {
            Purpose::Of => match operation.kind {
                OperationKind::Discard => self.complete(id, operation),
                OperationKind::Write => self.written(id, operation),
                OperationKind::Flush | OperationKind::Read => self.flushed(id, operation),
                OperationKind::WriteZeroes => unreachable!("none was started"),
            },
            Purpose::Read => self.read(inner, id, operation),
            Purpose::ReadOther => self.read_from_other(inner, id, operation),
            Purpose::ReadAgain => self.read_after_all(inner, id, operation),
            Purpose::Page(slice) => self.page_written(inner, id, operation, slice),
            Purpose::PageFlush(slice) => self.page_flushed(id, operation, slice),
            Purpose::CopyRead => self.chunk_read(inner, id, operation),
            Purpose::CopyWrite => self.chunk_written(id, operation),
            Purpose::CopyFlush(device) => self.copy_flushed(id, operation, device),
        }
    }

    /// Gives an operation back to its shard.
    pub(super) fn complete(&mut self, id: SlotId, mut operation: Box<Operation>) {
        let slot = &self.table[id];
        let (is_read, served) = (slot.kind == OperationKind::Read, slot.served);
        self.table.leave(id, &mut operation);
        if is_read {
            operation.side = served;
            if operation.result.is_ok() {
                let misses = self.table[id].misses.iter();
                operation
                    .failures
                    .extend(misses.map(|miss| (miss.transfer, miss.error)));
            }
        }
        self.completed.push(operation);
    }

    /// An operation of the mirrors' own is over; its buffers are given back with the next turn.
    pub(super) fn own_ended(&mut self, id: SlotId, mut operation: Box<Operation>) {
        self.table.leave(id, &mut operation);
        self.has_buffers |= !operation.buffers.is_empty();
        self.spare.push(operation);
    }

    /// The regions that were written to are not flushed on both sides, whatever came of it.
    pub(super) fn note_recent(&mut self, id: SlotId) {
        let slot = &self.table[id];
        for transfer in &slot.transfers {
            let position = self.slice_at(slot.shard, usize::from(transfer.device.0));
            let slice = &mut self.slices[position];
            slice.recent[0].set_all(slice.cut.regions(&blocks_of(transfer)));
        }
    }

    /// Which sides failed: those without which it can be done are failing from now on.
    ///
    /// # Errors
    /// What a side said that nothing makes up for.
    pub(super) fn blame(&mut self, id: SlotId, operation: &Operation) -> Result<(), DeviceError> {
        let mut result = Ok(());
        let generation = self.table[id].generation;
        for &(transfer, error) in &operation.failures {
            let at = SideAt::of_below(operation.transfers[transfer as usize].device);
            match self.failed(usize::from(at.device.0), at.side, error, generation) {
                Failure::Fatal => result = Err(error),
                Failure::Old => {}
                Failure::Missed => {
                    let mut transfers = (0..).zip(&self.table[id].transfers);
                    let found = transfers.find(|(_, of_device)| of_device.device == at.device);
                    let (transfer, _) = found.expect("sides of its devices");
                    let side = at.side;
                    self.table[id].misses.push(Miss {
                        transfer,
                        side,
                        error,
                        other_failed: false,
                    });
                }
            }
        }
        result
    }

    fn written(&mut self, id: SlotId, mut operation: Box<Operation>) {
        self.note_recent(id);
        operation.result = self.blame(id, &operation);
        if self.table[id].side.is_some() {
            self.count_repairs(&operation);
            // The side goes out, and whoever wanted to repair it is told.
            if let (Ok(()), Some(&(_, error))) = (operation.result, operation.failures.first()) {
                operation.result = Err(error);
            }
            return self.complete(id, operation);
        }
        if operation.result.is_ok() && self.rests_on_one_side(id) {
            self.keep(id, operation);
        } else {
            self.complete(id, operation);
        }
    }

    /// A shard wrote what a side had damaged, or could not read, to that side alone.
    fn count_repairs(&mut self, operation: &Operation) {
        for (index, transfer) in (0..).zip(&operation.transfers) {
            let at = SideAt::of_below(transfer.device);
            if operation.failures.iter().any(|&(failed, _)| failed == index) {
                mark(Mark::MirrorRepairFailed);
            } else {
                mark(Mark::MirrorReadRepaired);
                self.devices[usize::from(at.device.0)].repaired_reads[at.side.index()] += 1;
            }
        }
    }

    fn flushed(&mut self, id: SlotId, mut operation: Box<Operation>) {
        operation.result = self.blame(id, &operation);
        self.end_flush(id, operation.failures.is_empty());
        if operation.result.is_ok() && self.rests_on_one_side(id) {
            self.keep(id, operation);
        } else {
            self.complete(id, operation);
        }
    }

    /// Whether a side missed it of which the labels do not say so yet.
    fn rests_on_one_side(&self, id: SlotId) -> bool {
        let slot = &self.table[id];
        slot.misses.iter().any(|miss| {
            let device = usize::from(slot.transfers[miss.transfer as usize].device.0);
            self.devices[device].sides[miss.side.index()] == State::Failing
        })
    }

    fn keep(&mut self, id: SlotId, operation: Box<Operation>) {
        mark(Mark::MirrorAnswerKept);
        self.table[id].operation = Some(operation);
        self.table[id].started = false;
        self.kept.push(id);
    }

    /// Completes what was kept back for labels that are there now.
    fn release_kept(&mut self) {
        let mut kept = core::mem::take(&mut self.kept);
        kept.retain(|&id| {
            let result = self.result_of_kept(id);
            let Some(result) = result else { return true };
            let operation = self.table[id].operation.take();
            let mut operation = operation.expect("what is kept back is here");
            operation.result = result;
            self.complete(id, operation);
            false
        });
        self.kept = kept;
    }

    /// How something kept back ends; `None` if it is to be kept on.
    fn result_of_kept(&self, id: SlotId) -> Option<Result<(), DeviceError>> {
        let slot = &self.table[id];
        let mut result = Some(Ok(()));
        for miss in &slot.misses {
            let device = &self.devices[usize::from(slot.transfers[miss.transfer as usize].device.0)];
            if let Some(error) = device.lost {
                return Some(Err(error));
            }
            // The labels stay with the side that missed it: nobody has it.
            if device.is_in_sync(miss.side) && !device.is_in_sync(miss.side.other()) {
                return Some(Err(miss.error));
            }
            if device.sides[miss.side.index()] == State::Failing {
                result = None;
            }
        }
        result
    }

    /// A flush is over. If it ended `well` on both sides, what was written before it is flushed.
    pub(super) fn end_flush(&mut self, id: SlotId, well: bool) {
        for index in 0..self.table[id].transfers.len() {
            let number = usize::from(self.table[id].transfers[index].device.0);
            let device = &mut self.devices[number];
            if device.flush != Some(id) {
                continue;
            }
            device.flush = None;
            for slice in self.slices_of(number) {
                let [newer, older] = &mut slice.recent;
                if !well {
                    newer.add(older);
                }
                older.clear();
            }
        }
    }

    /// Whether sides have changed since a read was started, so that what came of it says nothing: a side is out, or went out and came
    /// back and may have told something old, or failed in a life that is over.
    fn is_outdated(&self, id: SlotId, operation: &Operation) -> bool {
        let generation = self.table[id].generation;
        if generation == self.generation {
            return false;
        }
        (0..).zip(&operation.transfers).any(|(index, transfer)| {
            let at = SideAt::of_below(transfer.device);
            let device = &self.devices[usize::from(at.device.0)];
            let has_failed = operation.failures.iter().any(|(failed, _)| *failed == index);
            let is_old = !device.is_in_sync(at.side) || generation < device.since[at.side.index()];
            is_old || has_failed && generation < device.changed
        })
    }

    fn read<D: BlockDevice>(&mut self, inner: &mut D, id: SlotId, mut operation: Box<Operation>) {
        if self.is_outdated(id, &operation) {
            return self.read_again(inner, id, operation);
        }
        if operation.failures.is_empty() {
            return self.complete(id, operation);
        }
        for &(transfer, error) in &operation.failures {
            let at = SideAt::of_below(operation.transfers[transfer as usize].device);
            let device = &self.devices[usize::from(at.device.0)];
            if !device.is_in_sync(at.side.other()) {
                mark(Mark::MirrorReadFailed);
                operation.result = Err(error);
                return self.complete(id, operation);
            }
            self.table[id].misses.push(Miss {
                transfer,
                side: at.side,
                error,
                other_failed: false,
            });
        }
        mark(Mark::MirrorReadOther);
        self.table[id].purpose = Purpose::ReadOther;
        self.aim_misses(id, &mut operation);
        self.send(inner, id, operation);
    }

    /// Gives an operation those transfers that a side missed, for the other side; or those that both missed, for the first one.
    fn aim_misses(&mut self, id: SlotId, operation: &mut Operation) {
        operation.result = Ok(());
        operation.is_tried_once = false;
        operation.failures.clear();
        operation.transfers.clear();
        let slot = &self.table[id];
        let is_again = slot.purpose == Purpose::ReadAgain;
        for miss in slot.misses.iter().filter(|miss| miss.other_failed == is_again) {
            let transfer = &slot.transfers[miss.transfer as usize];
            let side = if is_again { miss.side } else { miss.side.other() };
            operation
                .transfers
                .push(below(transfer, usize::from(transfer.device.0), side));
        }
    }

    /// Asks the sides as they are now.
    fn read_again<D: BlockDevice>(&mut self, inner: &mut D, id: SlotId, mut operation: Box<Operation>) {
        mark(Mark::MirrorReadAgain);
        self.table[id].misses.clear();
        self.table[id].purpose = Purpose::Read;
        operation.result = Ok(());
        operation.failures.clear();
        operation.transfers.clear();
        self.aim_read(id, &mut operation);
        self.send(inner, id, operation);
    }

    /// The other side answered, or failed too: then the first one, which was asked but once, is asked again.
    fn read_from_other<D: BlockDevice>(&mut self, inner: &mut D, id: SlotId, mut operation: Box<Operation>) {
        if self.is_outdated(id, &operation) {
            return self.read_again(inner, id, operation);
        }
        if operation.failures.is_empty() {
            return self.read_in_the_end(id, operation);
        }
        mark(Mark::MirrorReadAfterAll);
        for (transfer, _) in &operation.failures {
            self.table[id].misses[*transfer as usize].other_failed = true;
        }
        self.table[id].purpose = Purpose::ReadAgain;
        self.aim_misses(id, &mut operation);
        self.send(inner, id, operation);
    }

    fn read_after_all<D: BlockDevice>(&mut self, inner: &mut D, id: SlotId, operation: Box<Operation>) {
        if self.is_outdated(id, &operation) {
            return self.read_again(inner, id, operation);
        }
        if operation.result.is_err() {
            mark(Mark::MirrorReadFailed);
            return self.complete(id, operation);
        }
        self.table[id].misses.retain(|miss| !miss.other_failed);
        self.read_in_the_end(id, operation);
    }

    /// Everything was read. What another side said is not written to the side that failed: only the shard knows whether it is sound.
    fn read_in_the_end(&mut self, id: SlotId, operation: Box<Operation>) {
        let Self { table, devices, .. } = self;
        let slot = &mut table[id];
        let transfers = &slot.transfers;
        // What went out meanwhile has to be copied anyway.
        slot.misses.retain(|miss| {
            let device = &devices[usize::from(transfers[miss.transfer as usize].device.0)];
            device.is_whole()
        });
        self.complete(id, operation);
    }
}
