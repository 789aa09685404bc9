//! Branches that tests should reach, counted by whoever wants to know: with the feature `marks` a [`Mark`] that is
//! passed is counted for its thread; without it, as in what ships, [`mark`] is nothing.

/// Defines the marks and their texts.
macro_rules! marks {
    ($($name:ident = $text:literal,)*) => {
        /// A branch.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mark {
            $(#[doc = $text] $name,)*
        }

        impl Mark {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What happens there, for people; unique.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

marks! {
    ReadHole = "read: nothing but holes",
    ReadSeveralRuns = "read: several runs on the devices",
    ReadWrongCrc = "read: a CRC does not match",
    SecondLook = "mirror: what one side has damaged is asked of the other",
    Repaired = "mirror: what one side had damaged is written to it again",
    RepairNoBuffer = "mirror: no memory for a repair",
    ScrubOtherSide = "mirror: a scrub reads the other side too",
    WriteMerged = "write: a partial block is merged with what is on the device",
    WriteMergedZeros = "write: a partial block is merged with zeros",
    WriteMergedAgain = "write: a partial block changed meanwhile and is merged again",
    WriteTogether = "write: several requests in one device write",
    WriteSeveralExtents = "write: space in several pieces",
    WriteNoSpace = "write: refused for lack of space",
    WriteBeyondShare = "write: the volume was cut short meanwhile",
    WriteVolumeGone = "write: the volume was deleted meanwhile",
    DiscardOfHoles = "discard: nothing but holes",
    DiscardInSteps = "discard: more leaves than one step clears",
    SlotsFull = "shard: as many requests as may be",
    WaitsForLogRoom = "shard: a request waits for room in the log",
    WaitsForCache = "shard: a request waits for room in the map cache",
    WaitsForBuffer = "shard: a request waits for a buffer",
    LogShortOfBuffers = "shard: a log write waits for a buffer",
    DeviceQueueFull = "shard: the device's queue is full",
    ReserveUsed = "processor: a buffer of the reserve is used",
    Stopped = "shard: stopped after a device error",
    FlushNothing = "flush: everything was durable",
    FlushShared = "flush: several wait for the same one",
    FuaWaits = "flush: a write with FUA waits for the log",
    NoTailWaits = "log: without a tail an answer waits for the log write",
    LogWraps = "log: a write wraps around the end of the ring",
    LogDurably = "log: written durably, so that no flush is needed",
    HeaderDurably = "checkpoint: the header is written durably",
    LogEager = "log: written unasked because much waits",
    CheckpointLog = "checkpoint: begun because the log is half full",
    CheckpointDirty = "checkpoint: begun because many map pages are dirty",
    CheckpointAsked = "checkpoint: begun because it was asked for",
    CheckpointFailed = "checkpoint: given up because the shard stopped",
    MapPageLoaded = "map: a page is read back",
    MapPageWaitedFor = "map: several wait for the same page",
    MapPageDamaged = "map: a page is damaged",
    CutRefused = "cut: refused at prepare",
    CutAborted = "cut: comes after the abort",
    CutWaitsForLog = "cut: waits for room in the log",
    AnswerHeld = "cut: an answer is held",
    HoldExpired = "cut: the hold ends at its deadline",
    AbortInHold = "cut: aborted while answers are held",
    PersistRefused = "cut: comes too late to persist",
    ChangeLogFull = "change log volume: a write is refused because it is full",
    ChangeLogWaits = "change log volume: a write waits for room",
    ChangeLogElsewhere = "change log volume: no place on its devices",
    ReclaimWaits = "reclaim: waits for room",
    ReclaimPage = "reclaim: waits for a page",
    VolumeCloned = "clone: a share begins as a snapshot is",
    ReclaimBranch = "reclaim: a snapshot waits until one map only was made of it",
    ReclaimClone = "reclaim: what a clone was made of is freed",
    ReclaimHead = "reclaim: a live map goes and its snapshots stay",
    ResizeTrims = "reclaim: what a resize cut off is freed",
    MirrorSideFailed = "mirror: a side fails",
    MirrorFailedAgain = "mirror: a side fails while it is resynchronised",
    MirrorBothFailed = "mirror: both sides fail",
    MirrorOutUnseen = "mirror: a side goes out that failed elsewhere",
    MirrorReplaced = "mirror: another device takes the place of a side",
    MirrorOtherStays = "mirror: the side that failed here stays and the other goes out",
    MirrorAnswerKept = "mirror: an answer waits for the labels",
    MirrorWaitsForLabels = "mirror: an operation waits for the labels",
    MirrorReadOther = "mirror: a read is answered by the other side",
    MirrorReadAgain = "mirror: a read is begun again because sides changed meanwhile",
    MirrorOldFailure = "mirror: something fails on a side that went out and joined again since it was started",
    MirrorReadFailed = "mirror: no side can read something",
    MirrorReadRepaired = "mirror: what a side had damaged or could not read is written to it",
    MirrorRepairFailed = "mirror: a side fails to take what it had damaged or could not read",
    MirrorReadAfterAll = "mirror: a read that both sides failed is asked of the first again",
    MirrorAllStale = "mirror: no stale page counts",
    MirrorLackingNoted = "mirror: what a side may lack that is missing at the start is noted",
    MirrorWriteWaitsForNote = "mirror: a write waits for the stale page",
    MirrorPageWritten = "mirror: a stale page counts when it is written",
    MirrorPageFlushed = "mirror: a stale page says more and is flushed",
    MirrorPageFailed = "mirror: a stale page cannot be written",
    MirrorWriteWaitsForChunk = "mirror: a write waits for a chunk that is copied",
    MirrorChunkWaits = "mirror: a chunk waits for writes",
    MirrorCannotCopy = "mirror: a chunk cannot be read",
    MirrorMarked = "mirror: the stale pages say less while copying goes on",
    MirrorResynced = "mirror: everything is copied",
    MirrorJoinedTooLate = "mirror: a side has failed before it joins",
    MirrorShortOfBuffers = "mirror: no buffer to copy or note with",
    RecoveryTail = "recovery: the log tail goes on from the log",
    RecoveryTailStale = "recovery: a segment of the tail does not fit",
    RecoveryDoubt = "recovery: data in doubt is verified",
    RecoveryDropped = "recovery: a block that never arrived is dropped",
    RecoveryOtherSide = "recovery: data in doubt is looked for on the other side",
    RecoveryOneHeader = "recovery: only one copy of the header is sound",
    SnapshotRefused = "coordinator: a shard refuses",
    SnapshotHoldExpired = "coordinator: a hold expired",
    SnapshotStalled = "coordinator: a shard stalls",
    SnapshotInDoubt = "coordinator: the commit record is in doubt",
    SnapshotAbortAgain = "coordinator: asks for an abort again",
    NbdWaitsForMemory = "nbd: a write waits for memory",
    NbdDirect = "nbd: a payload is received into its own buffer",
    NbdOutOfRequests = "nbd: as many requests as may be",
    NbdSkips = "nbd: the payload of a refused write is skipped",
    NbdHalfWrite = "nbd: the connection ends in the middle of a write",
    NbdLongRead = "nbd: a read in order longer than its window",
    NbdErrorInOrder = "nbd: a read in order fails",
    NbdSendInPieces = "nbd: a send goes out in pieces",
    NbdAbandonedAnswer = "nbd: an answer comes for a connection that is gone",
    NbdLeaving = "nbd: a request comes while the export goes",
    NbdGraceOver = "nbd: a client takes too long to fetch its last replies",
    NbdZeroesEdge = "nbd: zeroes begin or end within a block",
    NbdStatusFull = "nbd: a block status reply ends early",
}

/// This branch is passed.
#[inline(always)]
pub fn mark(mark: Mark) {
    #[cfg(feature = "marks")]
    counts::pass(mark);
    #[cfg(not(feature = "marks"))]
    let _ = mark;
}

#[cfg(feature = "marks")]
pub use counts::take;

#[cfg(feature = "marks")]
mod counts {
    use super::Mark;
    use core::cell::Cell;

    thread_local! {
        static COUNTS: [Cell<u64>; Mark::ALL.len()] = const { [const { Cell::new(0) }; Mark::ALL.len()] };
    }

    pub(super) fn pass(mark: Mark) {
        COUNTS.with(|counts| {
            let count = &counts[mark as usize];
            count.set(count.get() + 1);
        });
    }

    /// How often each mark was passed on this thread since the last call, in the order of [`Mark::ALL`].
    #[must_use]
    pub fn take() -> Vec<(Mark, u64)> {
        COUNTS.with(|counts| {
            Mark::ALL
                .iter()
                .map(|&mark| (mark, counts[mark as usize].take()))
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn texts_are_unique() {
        let texts: BTreeSet<&str> = Mark::ALL.iter().map(|mark| mark.text()).collect();
        assert_eq!(texts.len(), Mark::ALL.len());
    }

    #[cfg(feature = "marks")]
    #[test]
    fn a_mark_is_counted_until_the_counts_are_taken() {
        mark(Mark::LogWraps);
        mark(Mark::LogWraps);
        let count = || {
            let counts = take();
            counts
                .iter()
                .find(|(mark, _)| *mark == Mark::LogWraps)
                .map(|(_, count)| *count)
        };
        assert_eq!((count(), count()), (Some(2), Some(0)));
    }
}
