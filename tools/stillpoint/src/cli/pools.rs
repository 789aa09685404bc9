//! Commands on pools and block devices.

use std::path::PathBuf;

use clap::Subcommand;

use crate::size::Size;

/// `stillpoint pool`
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool on files or block devices, and open it
    Create {
        /// Its name.
        name: String,
        /// Its devices.
        #[arg(required = true, value_name = "PATH")]
        devices: Vec<PathBuf>,
        /// Make files that do not exist, sparse, of this size
        #[arg(long)]
        size: Option<Size>,
        /// Number of shards, fixed for ever [default: the number of processors, at least 2]
        #[arg(long, value_name = "N")]
        shards: Option<u16>,
        /// The devices are pairs that hold the same: the first and the second, the third and the fourth
        #[arg(long)]
        mirror: bool,
        /// Overwrite what is on this one of the devices; may be given several times
        #[arg(long, value_name = "PATH")]
        force: Vec<PathBuf>,
    },
    /// Open a pool that was made before, here or on another machine
    Open {
        /// All its devices, in any order.
        #[arg(required = true, value_name = "PATH")]
        devices: Vec<PathBuf>,
        /// Open it even if sides of mirrors are missing that were in sync when it was closed
        #[arg(long)]
        degraded: bool,
    },
    /// Put another device in the place of a side of a mirror; everything is copied to it meanwhile
    Replace {
        /// The pool.
        name: String,
        /// The side: its path, or DEVICE.SIDE (0.1 is the second side of device 0).
        #[arg(value_name = "DEVICE")]
        device: String,
        /// The device that takes its place; a file that does not exist is made.
        #[arg(value_name = "PATH")]
        with: PathBuf,
        /// Overwrite what is on it
        #[arg(long)]
        force: bool,
        /// Wait until all sides are in sync
        #[arg(long)]
        wait: bool,
    },
    /// Try again to give the sides of mirrors what they lack
    Resync {
        /// The pool.
        name: String,
        /// How much is copied at most, in a second; 0: as much as the devices can [default: as before, 256MiB at first]
        #[arg(long, value_name = "SIZE/s", value_parser = crate::size::per_second)]
        rate: Option<Size>,
        /// Wait until all sides are in sync
        #[arg(long)]
        wait: bool,
    },
    /// List the pools
    #[command(visible_alias = "ls")]
    List,
    /// Show a pool
    Show {
        /// Its name.
        name: String,
    },
    /// Read everything that a pool holds, beside the load, and compare it with its checksums
    Scrub {
        /// Its name.
        name: String,
        /// How much is read at most, in a second [default: 64MiB]
        #[arg(long, value_name = "SIZE/s", value_parser = crate::size::per_second)]
        rate: Option<Size>,
        /// Wait until it has ended; exit code 1 if anything is damaged
        #[arg(long)]
        wait: bool,
        /// Let the one that is running rest; it stays so when the daemon is started again
        #[arg(long, conflicts_with_all = ["rate", "wait"])]
        pause: bool,
        /// Let the one that was paused go on where it was, at another rate if one is given
        #[arg(long, conflicts_with = "pause")]
        resume: bool,
        /// End the one that is running or paused
        #[arg(long, conflicts_with_all = ["rate", "wait", "pause", "resume"])]
        stop: bool,
        /// Show the one that is running, or the report of the last; with --wait when it has ended
        #[arg(long, conflicts_with_all = ["rate", "pause", "resume", "stop"])]
        status: bool,
    },
    /// Close a pool: its clients are disconnected, and it is not opened at the next start
    Close {
        /// Its name.
        name: String,
    },
}

/// `stillpoint device`
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// List them
    #[command(visible_alias = "ls")]
    List,
    /// Show one, with its health if it is an NVMe device
    Show {
        /// Its name (nvme0n1) or path (/dev/nvme0n1, /dev/disk/by-id/...).
        device: PathBuf,
    },
}
