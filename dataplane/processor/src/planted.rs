//! Bugs planted on purpose, to show that the checks can fail. Compiled only with the feature `planted-bugs`; one of them
//! at a time is picked by [`crate::ShardOptions::planted_bug`].

/// A bug that a shard can be opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// Answers go out during a cut whatever they depend on.
    AnswersNotHeld,
    /// A flush is answered at once; the log is written afterwards.
    FlushAnsweredBeforeLog,
    /// One shard of several answers flushes at once and does nothing for them.
    FlushSkipsOneShard,
    /// Only the home device of a shard is flushed.
    FlushSkipsOneDevice,
    /// A write with FUA is answered like any other.
    FuaForgotten,
    /// A log page is written durably, and not flushed, though the data that it names is not durable.
    BarrierForgotten,
    /// Freed space is given out again at once, not after the next durable checkpoint.
    FreedSpaceReusedTooEarly,
    /// Freed space is given out again while older reads of it are in flight.
    FreedSpaceReusedWhileRead,
    /// What is read is not compared with its CRC.
    DataCrcNotChecked,
    /// Recovery takes a log page whose CRC does not match, with its records as far as they make sense.
    TornLogPageAccepted,
    /// Recovery believes that data which was not known to be durable is there.
    DoubtfulDataNotVerified,
    /// A record of the log is replayed, and then once more.
    RecordReplayedTwice,
    /// A checkpoint writes its root while the pages it refers to are still on their way.
    RootBeforePages,
    /// A snapshot is taken for one epoch older than it is when blocks are freed.
    EpochOffByOne,
    /// The walk that frees a snapshot forgets the data blocks: what dead lists would list is dropped.
    ReclaimDropsBlocks,
    /// The walk that frees a snapshot frees what its newer neighbour holds too.
    ReclaimFreesNeighbours,
    /// A discard leaves no record in the log.
    DiscardNotLogged,
    /// A shard says that its intermediate snapshot is durable before it is, so the commit record may come first.
    CommitBeforeIntermediates,
    /// Holds do not end at their deadline.
    HoldOutlivesDeadline,
    /// An aborted snapshot stays on its shards.
    AbortLeavesTrace,
    /// A partial write does not look whether the rest of its block has changed since it was read.
    MergeNotRepeated,
    /// What a clone replaces is freed, though the snapshot that it was made of has it.
    CloneFreesOrigins,
    /// The live map of a share whose snapshots stay is freed as if it had none.
    HeadFreesSnapshots,
    /// A promoted clone gets snapshots of its origin that were taken after it was made.
    PromotionTakesEverything,
    /// A block that is discarded does not count in the change log.
    ChangeLogForgetsDiscards,
    /// What is written without a side that is out is not noted before.
    StaleRegionNotNoted,
    /// What was written and not flushed before a crash is not noted for a side that is missing when the pool is opened.
    MissingSideNotDoubted,
    /// After a kill with a log tail that fits, sides of which one has lost its cache are not compared.
    SidesNotCompared,
}

impl PlantedBug {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::AnswersNotHeld,
        Self::FlushAnsweredBeforeLog,
        Self::FlushSkipsOneShard,
        Self::FlushSkipsOneDevice,
        Self::FuaForgotten,
        Self::BarrierForgotten,
        Self::FreedSpaceReusedTooEarly,
        Self::FreedSpaceReusedWhileRead,
        Self::DataCrcNotChecked,
        Self::TornLogPageAccepted,
        Self::DoubtfulDataNotVerified,
        Self::RecordReplayedTwice,
        Self::RootBeforePages,
        Self::EpochOffByOne,
        Self::ReclaimDropsBlocks,
        Self::ReclaimFreesNeighbours,
        Self::DiscardNotLogged,
        Self::CommitBeforeIntermediates,
        Self::HoldOutlivesDeadline,
        Self::AbortLeavesTrace,
        Self::MergeNotRepeated,
        Self::CloneFreesOrigins,
        Self::HeadFreesSnapshots,
        Self::PromotionTakesEverything,
        Self::ChangeLogForgetsDiscards,
        Self::StaleRegionNotNoted,
        Self::MissingSideNotDoubted,
        Self::SidesNotCompared,
    ];
}
