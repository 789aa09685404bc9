//! Commands on volumes, their groups, change log volumes and exports.

use std::path::PathBuf;

use clap::Subcommand;

use crate::size::Size;

/// `stillpoint volume`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume; it takes space only as it is written
    Create {
        /// Its name.
        name: String,
        /// Its size.
        #[arg(long)]
        size: Size,
        /// Its pool; not needed if there is only one
        #[arg(long)]
        pool: Option<String>,
        /// Logical block size: 512 or 4096 [default: 4096]
        #[arg(long, value_name = "SIZE")]
        block_size: Option<Size>,
        /// Size of the pieces that are spread over the processors [default: 64MiB]
        #[arg(long, value_name = "SIZE")]
        object_size: Option<Size>,
        /// Its change log volume: where what is written after a snapshot counts
        #[arg(long, value_name = "NAME")]
        change_log: Option<String>,
    },
    /// List the volumes
    #[command(visible_alias = "ls")]
    List {
        /// Only this pool
        #[arg(long)]
        pool: Option<String>,
    },
    /// Show a volume and how it is spread
    Show {
        /// Its name.
        name: String,
        /// Its pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Give a volume another size
    Resize {
        /// Its name.
        name: String,
        /// The new size.
        #[arg(long)]
        size: Size,
        /// Its pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
        /// Make it smaller, and lose what is beyond the new end
        #[arg(long)]
        force: bool,
    },
    /// Delete a volume
    Delete {
        /// Its name.
        name: String,
        /// Its pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
        /// Delete its snapshots too
        #[arg(long)]
        with_snapshots: bool,
    },
    /// Change what can be set of a volume
    Set {
        /// Its name.
        name: String,
        /// Its change log volume; `none` for none
        #[arg(long, value_name = "NAME|none")]
        change_log: String,
        /// Its pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Make a volume that begins as a snapshot is: at once, nothing is copied
    Clone {
        /// `volume@name`.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: String,
        /// The name of the new volume.
        #[arg(value_name = "NEW")]
        name: String,
        /// The pool; not needed if the volume's name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Give a clone the snapshots that it has in common with what it was cloned from, which can be deleted then
    Promote {
        /// The clone.
        name: String,
        /// Its pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Make a volume what it was at a snapshot: at once. What it is now is kept in another snapshot
    Rollback {
        /// `volume@name`.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: String,
        /// The pool; not needed if the volume's name is unique
        #[arg(long)]
        pool: Option<String>,
        /// Disconnect its clients
        #[arg(long)]
        force: bool,
        /// The name of the snapshot that keeps what the volume is now [default: before-NAME]
        #[arg(long, value_name = "NAME")]
        safety_name: Option<String>,
    },
}

/// `stillpoint group`
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Name some volumes: `snapshot create group:NAME@...` cuts them at one instant, and so does a schedule of `group:NAME`
    Create {
        /// Its name.
        name: String,
        /// The volumes, separated by commas
        #[arg(long, value_name = "VOLUME,...", value_delimiter = ',', required = true)]
        volumes: Vec<String>,
        /// The pool; not needed if the volumes' names are unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// List the groups
    #[command(visible_alias = "ls")]
    List {
        /// Only this pool
        #[arg(long)]
        pool: Option<String>,
    },
    /// Delete a group; its volumes stay
    Delete {
        /// Its name.
        name: String,
        /// The pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
}

/// `stillpoint changelog`
#[derive(Debug, Subcommand)]
pub enum ChangelogCommand {
    /// Make a change log volume: what is written to volumes that name it, after their snapshots, counts there
    Create {
        /// Its name.
        name: String,
        /// What it may hold; every shard has an equal part
        #[arg(long)]
        size: Size,
        /// Place its blocks on this device of the pool, as long as it has room; may be given several times [default: all]
        #[arg(long, value_name = "PATH")]
        device: Vec<PathBuf>,
        /// `fail-writes`: writes fail as on a full device; `drop-oldest`: unlocked snapshots are deleted, oldest first
        #[arg(long, value_name = "POLICY", default_value = "fail-writes", value_parser = ["fail-writes", "drop-oldest"])]
        when_full: String,
        /// Its pool; not needed if there is only one
        #[arg(long)]
        pool: Option<String>,
    },
    /// List the change log volumes
    #[command(visible_alias = "ls")]
    List {
        /// Only this pool
        #[arg(long)]
        pool: Option<String>,
    },
    /// Show a change log volume and how it is spread
    Show {
        /// Its name.
        name: String,
        /// Its pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Give a change log volume another size
    Resize {
        /// Its name.
        name: String,
        /// The new size.
        #[arg(long)]
        size: Size,
        /// Its pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Delete a change log volume that no volume names
    Delete {
        /// Its name.
        name: String,
        /// Its pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
}

/// `stillpoint export`
#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// Offer a volume, or a snapshot (always read-only), to NBD clients
    Create {
        /// `volume` or `volume@name`.
        #[arg(value_name = "VOLUME[@NAME]")]
        view: String,
        /// The name clients ask for [default: as the volume or snapshot]
        #[arg(long)]
        name: Option<String>,
        /// Refuse writes
        #[arg(long)]
        read_only: bool,
        /// Let clients take snapshots of the volume through their connections: `stillpoint host snapshot`, docs/nbd.md
        #[arg(long)]
        allow_snapshots: bool,
        /// The pool; not needed if the volume's name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// List the exports
    #[command(visible_alias = "ls")]
    List,
    /// Withdraw an export; its clients are disconnected
    Delete {
        /// Its name.
        name: String,
    },
}
