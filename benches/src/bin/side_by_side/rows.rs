//! Which rows there are.

use stillpoint_benches::Failure;
use stillpoint_benches::process::Scratch;
use stillpoint_benches::table::Row;

use crate::{Options, in_process, large, snapshots, sockets};

/// How a row is measured; files go into the scratch directory.
pub type Measure = fn(&Options, &Scratch) -> Result<Row, Failure>;

/// The rows by letter. One more is one more line.
pub const ROWS: [(&str, Measure); 14] = [
    ("a", in_process::random_reads_of_zram),
    ("b", in_process::memory),
    ("c", in_process::random_writes_of_a_file),
    ("d", in_process::around_a_snapshot),
    ("e", in_process::one_read_at_a_time),
    ("f", in_process::sequential),
    ("g", sockets::unix),
    ("h", sockets::tcp),
    ("i", snapshots::under_full_load),
    ("j", snapshots::each_second),
    ("k", in_process::two_processors),
    ("l", large::restarts),
    ("m", large::memory),
    ("n", large::giving_back),
];
