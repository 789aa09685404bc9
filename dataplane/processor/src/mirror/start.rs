//! Operations that go to the sides: at once, or when what they wait for has come.

use super::SideAt;
use super::state::{Mirror, State, side_at};
use super::table::{Purpose, SlotId, blocks_of};
use crate::ids::{DeviceIndex, ShardIndex};
use crate::marks::{Mark, mark};
use crate::ports::{BlockDevice, DeviceError, Full, Operation, OperationKind, Side, Transfer};

/// What can be done with a write or a flush now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It can start.
    Start,
    /// It waits: for labels, a stale page or a chunk that is being copied.
    Wait,
    /// It cannot be done.
    Fail(DeviceError),
}

impl Mirror {
    pub(super) fn submit<D: BlockDevice>(
        &mut self,
        inner: &mut D,
        mut operation: Box<Operation>,
    ) -> Result<(), Full> {
        operation.result = Ok(());
        operation.failures.clear();
        match operation.kind {
            OperationKind::Read => {
                let id = self.table.take(Purpose::Read, &mut operation);
                self.aim_read(id, &mut operation);
                self.start(inner, id, operation)
            }
            // Advice; what a side lacks is told more easily if nothing but writes changes it.
            OperationKind::Discard if !self.are_whole(&operation.transfers) => {
                self.completed.push(operation);
                Ok(())
            }
            OperationKind::Discard => {
                let id = self.table.take(Purpose::Of, &mut operation);
                self.aim(id, &mut operation);
                self.start(inner, id, operation)
            }
            OperationKind::Write | OperationKind::Flush => self.submit_change(inner, operation),
            OperationKind::WriteZeroes => unreachable!("shards ask for no zeros"),
        }
    }

    fn submit_change<D: BlockDevice>(
        &mut self,
        inner: &mut D,
        mut operation: Box<Operation>,
    ) -> Result<(), Full> {
        match self.judge(
            operation.kind,
            operation.side,
            operation.shard,
            &operation.transfers,
        ) {
            Verdict::Start => {
                let id = self.table.take(Purpose::Of, &mut operation);
                self.aim(id, &mut operation);
                self.start(inner, id, operation)
            }
            Verdict::Wait => {
                let id = self.table.take(Purpose::Of, &mut operation);
                self.table[id].operation = Some(operation);
                self.waiting.push_back(id);
                Ok(())
            }
            Verdict::Fail(error) => {
                operation.result = Err(error);
                self.completed.push(operation);
                Ok(())
            }
        }
    }

    fn are_whole(&self, transfers: &[Transfer]) -> bool {
        let mut devices = transfers
            .iter()
            .map(|transfer| &self.devices[usize::from(transfer.device.0)]);
        devices.all(|device| device.is_whole())
    }

    fn judge(
        &mut self,
        kind: OperationKind,
        side: Option<Side>,
        shard: ShardIndex,
        transfers: &[Transfer],
    ) -> Verdict {
        let mut verdict = Verdict::Start;
        for transfer in transfers {
            let number = usize::from(transfer.device.0);
            let device = &self.devices[number];
            if let Some(error) = device.lost {
                return Verdict::Fail(error);
            }
            if device.is_failing() {
                mark(Mark::MirrorWaitsForLabels);
                verdict = Verdict::Wait;
                continue;
            }
            // A repair of a side that is out is left out, and everything else of a whole device just goes.
            if kind != OperationKind::Write || side.is_some() || device.is_whole() {
                continue;
            }
            let blocks = blocks_of(transfer);
            if self.is_being_copied(number, &blocks) {
                mark(Mark::MirrorWriteWaitsForChunk);
                verdict = Verdict::Wait;
            }
            let slice = self.slice_at(shard, number);
            match self.is_noted(slice, &blocks) {
                Ok(true) => {}
                Ok(false) => {
                    mark(Mark::MirrorWriteWaitsForNote);
                    verdict = Verdict::Wait;
                }
                Err(error) => return Verdict::Fail(error),
            }
        }
        verdict
    }

    /// Gives a write, flush or discard a transfer for each side that takes it.
    fn aim(&mut self, id: SlotId, operation: &mut Operation) {
        let slot = &self.table[id];
        for transfer in &slot.transfers {
            let number = usize::from(transfer.device.0);
            for side in Side::BOTH {
                let takes = match self.devices[number].sides[side.index()] {
                    State::InSync => true,
                    State::Resync => slot.side.is_none(),
                    State::Out | State::Failing => false,
                };
                if takes && slot.side.is_none_or(|only| only == side) {
                    operation.transfers.push(below(transfer, number, side));
                }
            }
        }
        match operation.kind {
            OperationKind::Write if slot.side.is_none() => self.note_write(id),
            OperationKind::Flush => self.note_flush(id),
            _ => {}
        }
    }

    /// What is written without a side that is out has to be copied to it.
    fn note_write(&mut self, id: SlotId) {
        let slot = &self.table[id];
        for transfer in &slot.transfers {
            let number = usize::from(transfer.device.0);
            if self.devices[number].sides.contains(&State::Out) {
                let position = self.slice_at(slot.shard, number);
                let slice = &mut self.slices[position];
                slice.to_copy.set_all(slice.cut.regions(&blocks_of(transfer)));
            }
        }
    }

    /// What was written before this flush may come to be known as flushed with it.
    fn note_flush(&mut self, id: SlotId) {
        for index in 0..self.table[id].transfers.len() {
            let number = usize::from(self.table[id].transfers[index].device.0);
            let device = &mut self.devices[number];
            let to_both = device
                .sides
                .iter()
                .all(|side| matches!(side, State::InSync | State::Resync));
            if to_both && device.flush.is_none() {
                device.flush = Some(id);
                for slice in self.slices_of(number) {
                    // The second is empty: no flush is under way, and what one that failed left was put back.
                    slice.recent.swap(0, 1);
                }
            }
        }
    }

    /// Gives a read the side that it asks.
    pub(super) fn aim_read(&mut self, id: SlotId, operation: &mut Operation) {
        let side = match self.table[id].side {
            Some(side) => side,
            None => self.less_busy(id),
        };
        let slot = &self.table[id];
        let mut has_other = false;
        operation.is_tried_once = true;
        for transfer in &slot.transfers {
            let number = usize::from(transfer.device.0);
            let device = &self.devices[number];
            has_other |= device.is_whole();
            operation.is_tried_once &= device.is_whole();
            let of_transfer = if device.is_in_sync(side) {
                side
            } else {
                side.other()
            };
            operation.transfers.push(below(transfer, number, of_transfer));
        }
        self.table[id].served = has_other.then_some(side);
    }

    fn less_busy(&mut self, id: SlotId) -> Side {
        let transfers = &self.table[id].transfers;
        let busy = |side: Side| -> u32 {
            let sides = transfers
                .iter()
                .map(|transfer| usize::from(transfer.device.0) * 2 + side.index());
            sides.map(|below| self.busy[below]).sum()
        };
        match busy(Side::First).cmp(&busy(Side::Second)) {
            core::cmp::Ordering::Less => Side::First,
            core::cmp::Ordering::Greater => Side::Second,
            core::cmp::Ordering::Equal => {
                self.next_side = self.next_side.other();
                self.next_side
            }
        }
    }

    /// Gives a shard's operation, which has been aimed, to the devices.
    fn start<D: BlockDevice>(
        &mut self,
        inner: &mut D,
        id: SlotId,
        mut operation: Box<Operation>,
    ) -> Result<(), Full> {
        if operation.transfers.is_empty() {
            self.complete(id, operation);
            return Ok(());
        }
        self.started(id);
        self.count_busy(&operation, true);
        if let Err(Full(back)) = inner.submit(operation) {
            operation = back;
            self.count_busy(&operation, false);
            self.end_flush(id, false);
            self.table.leave(id, &mut operation);
            return Err(Full(operation));
        }
        Ok(())
    }

    fn started(&mut self, id: SlotId) {
        let generation = self.generation;
        let slot = &mut self.table[id];
        slot.started = true;
        slot.generation = generation;
    }

    /// Gives the devices what was started before, or is not a shard's, as soon as they take it.
    pub(super) fn send<D: BlockDevice>(&mut self, inner: &mut D, id: SlotId, operation: Box<Operation>) {
        self.started(id);
        self.table[id].operation = Some(operation);
        self.ready.push_back(id);
        self.send_ready(inner);
    }

    pub(super) fn send_ready<D: BlockDevice>(&mut self, inner: &mut D) {
        while let Some(&id) = self.ready.front() {
            let operation = self.table[id].operation.take().expect("what is ready is here");
            self.count_busy(&operation, true);
            if let Err(Full(back)) = inner.submit(operation) {
                self.count_busy(&back, false);
                self.table[id].operation = Some(back);
                return;
            }
            self.ready.pop_front();
        }
    }

    pub(super) fn count_busy(&mut self, operation: &Operation, more: bool) {
        for transfer in &operation.transfers {
            let busy = &mut self.busy[usize::from(transfer.device.0)];
            *busy = if more { *busy + 1 } else { *busy - 1 };
        }
    }

    /// Lets those start that waited for something which may have come true.
    pub(super) fn start_waiting<D: BlockDevice>(&mut self, inner: &mut D) {
        for _ in 0..self.waiting.len() {
            let Some(id) = self.waiting.pop_front() else {
                return;
            };
            let mut operation = self.table[id].operation.take().expect("what waits is here");
            let transfers = core::mem::take(&mut self.table[id].transfers);
            let (kind, side, shard) = (self.table[id].kind, self.table[id].side, self.table[id].shard);
            let verdict = self.judge(kind, side, shard, &transfers);
            self.table[id].transfers = transfers;
            match verdict {
                Verdict::Start => {
                    self.aim(id, &mut operation);
                    if operation.transfers.is_empty() {
                        self.complete(id, operation);
                    } else {
                        self.send(inner, id, operation);
                    }
                }
                Verdict::Wait => {
                    self.table[id].operation = Some(operation);
                    self.waiting.push_back(id);
                }
                Verdict::Fail(error) => {
                    operation.result = Err(error);
                    self.complete(id, operation);
                }
            }
        }
        self.forget_failed_pages();
    }

    /// An operation of the mirrors' own, to be filled.
    pub(super) fn own(&mut self) -> Box<Operation> {
        let position = self
            .spare
            .iter()
            .position(|operation| operation.buffers.is_empty());
        let mut operation = position.map_or_else(Operation::new, |position| self.spare.swap_remove(position));
        operation.clear();
        operation
    }

    /// A flush of the mirrors' own of both sides of a device.
    pub(super) fn send_flush<D: BlockDevice>(&mut self, inner: &mut D, purpose: Purpose, number: usize) {
        let mut flush = self.own();
        flush.kind = OperationKind::Flush;
        flush.shard = self.any_shard();
        flush.transfers.push(empty_transfer(DeviceIndex(number as u8)));
        let id = self.table.take(purpose, &mut flush);
        self.aim(id, &mut flush);
        self.send(inner, id, flush);
    }
}

/// A flush names a device by a range without length.
pub(super) fn empty_transfer(device: DeviceIndex) -> Transfer {
    Transfer {
        device,
        offset_bytes: 0,
        length_bytes: 0,
        first_segment: 0,
        segment_count: 0,
    }
}

/// A transfer as one side of its device gets it.
pub(super) fn below(transfer: &Transfer, device: usize, side: Side) -> Transfer {
    let at: SideAt = side_at(device, side);
    Transfer {
        device: at.below(),
        ..*transfer
    }
}
