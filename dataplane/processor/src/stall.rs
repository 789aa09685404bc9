//! Devices that take so long that people notice: told once for each stall, when it has ended.

use crate::ids::{DeviceIndex, Now};
use crate::ports::{Operation, OperationKind, Side};

/// What takes so long is told, in nanoseconds. No sound device comes near it, and clients wait longer before they give up.
pub const STALL_NS: u64 = 1_000_000_000;
/// Of it, so much may be a sleep of the poll loop, which ends by itself; a longer absence is no device's fault.
const SLEEP_NS: u64 = 500_000_000;

/// One operation that took long, for all that a device kept waiting at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// What was asked of the device.
    pub kind: OperationKind,
    /// The device; `None` if several had a part in it.
    pub device: Option<DeviceIndex>,
    /// If it has two sides, and only one of them was asked: which.
    pub side: Option<Side>,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    /// When it ended, in nanoseconds since 1970.
    pub ended_wall_ns: u64,
}

/// Finds the stalls among the operations that come back to a shard.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    /// When the last one that was told ended, in monotonic nanoseconds: what was issued before is of the same stall.
    told_ns: u64,
    /// The last turn. A process that was stopped, or had no core, was not there to see an operation end in time.
    turned_ns: u64,
}

impl Stalls {
    /// The shard has its turn.
    #[inline]
    pub(crate) fn turn(&mut self, now: Now) {
        self.turned_ns = now.monotonic_ns;
    }

    /// To be told, if this operation took long and was not issued during a stall that was told already.
    #[inline]
    pub(crate) fn completed(&mut self, operation: &Operation, now: Now) -> Option<Stall> {
        let took_ns = now.monotonic_ns.saturating_sub(operation.issued_ns);
        if took_ns < STALL_NS || operation.issued_ns < self.told_ns {
            return None;
        }
        let seen_ns = self.turned_ns.saturating_sub(operation.issued_ns);
        if seen_ns < STALL_NS - SLEEP_NS {
            return None;
        }
        self.told_ns = now.monotonic_ns;
        Some(Stall {
            kind: operation.kind,
            device: only_device(operation),
            side: operation.side,
            took_ns,
            ended_wall_ns: now.wall_ns,
        })
    }
}

fn only_device(operation: &Operation) -> Option<DeviceIndex> {
    let first = operation.transfers.first()?.device;
    let others = &operation.transfers[1..];
    others.iter().all(|other| other.device == first).then_some(first)
}
