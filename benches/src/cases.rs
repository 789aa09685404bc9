//! The cases of the comparison.

use crate::fio::Job;

/// What each contender is asked to do, in this order: what fragments a map comes after what reads in sequence.
pub const CASES: [Job; 6] = [
    Job {
        pattern: "write",
        block_bytes: 1 << 20,
        depth: 4,
    },
    Job {
        pattern: "read",
        block_bytes: 1 << 20,
        depth: 4,
    },
    Job {
        pattern: "randread",
        block_bytes: 4096,
        depth: 1,
    },
    Job {
        pattern: "randread",
        block_bytes: 4096,
        depth: 32,
    },
    Job {
        pattern: "randwrite",
        block_bytes: 4096,
        depth: 1,
    },
    Job {
        pattern: "randwrite",
        block_bytes: 4096,
        depth: 32,
    },
];

/// What is asked before and right after a snapshot.
pub const SNAPSHOT_CASE: Job = CASES[5];
