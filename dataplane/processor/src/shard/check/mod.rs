//! Checking a shard: that every structure is sound, that every block has its checksum, that every block is used once or
//! free.
//!
//! - [`Shard::check`] looks at a shard that was just opened, as it is in memory: the simulator calls it after every
//!   recovery.
//! - [`check_shard`] looks at the devices of a pool that is not open: it recovers in memory and writes nothing; what
//!   could be mended it hands out as [`Mend`]s.
//!
//! | found | mended by |
//! |---|---|
//! | a damaged copy of the shard header | writing it from the sound one, which counts anyway |
//! | a damaged bitmap, leaked blocks, blocks in use that count as free | writing the bitmap from the maps |
//! | a log that breaks off where it must not | cutting it there: what it held behind is lost, so only if asked for |
//! | a damaged directory page, map page or data block, a block used twice | nothing: what it held is nowhere else |

mod data;
mod mend;
mod offline;
mod overlay;
mod report;
mod walk;

pub use mend::{Mend, PageWrite, carry_out, delete_snapshots};
pub use offline::{CheckedShard, Depth, FoundShard, check_shard};
pub use report::{CheckFigures, CheckReport, NAMED_MAX, Names, Numbers, Problem, Use, Why};

use super::Shard;
use crate::map::PageCache;
use crate::ports::{LogTail, OpenDevice};
use crate::space::Space;
use walk::{Walk, Walked};

impl<T: LogTail> Shard<T> {
    /// Checks everything that this shard's maps refer to, and the space that it believes free. To be called before the
    /// shard is served: blocks that are being written have no map entry yet.
    pub fn check(&mut self, device: &mut impl OpenDevice, data: bool) -> CheckReport {
        let walked = Walked {
            layout: &self.layout,
            shard: self.shard,
            directory: &self.directory,
            volumes: &self.volumes,
        };
        examine(&walked, device, &mut self.cache, &self.space, data).report
    }
}

/// What a walk over everything came to.
struct Examined {
    report: CheckReport,
    /// What is in use.
    seen: Space,
    /// `seen` is all there is.
    complete: bool,
    /// Places are used more than once.
    doubles: bool,
}

/// Walks over everything, and compares what is in use with what the bitmap says.
fn examine(
    walked: &Walked<'_>,
    device: &mut impl OpenDevice,
    cache: &mut PageCache,
    space: &Space,
    data: bool,
) -> Examined {
    let mut walk = Walk::new(walked, device, cache, data);
    walk.run();
    for extent in walk.seen.used_but_not_in(space) {
        walk.report.push(Problem::Unmarked(extent));
    }
    if walk.complete {
        for extent in space.used_but_not_in(&walk.seen) {
            walk.report.push(Problem::Leaked(extent));
        }
    }
    Examined {
        complete: walk.complete,
        doubles: walk.has_doubles(),
        report: walk.report,
        seen: walk.seen,
    }
}
