//! Commands on snapshots, and what takes them.

use clap::Subcommand;

use crate::size::Duration;
use crate::when::{Period, Until};

/// `stillpoint snapshot`
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of a volume, or of several volumes at one instant
    Create {
        /// `volume@name`, or `volume1,volume2` or `group:name` with --name.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: String,
        /// The name of the snapshot, if it is not in the argument
        #[arg(long)]
        name: Option<String>,
        /// The pool; not needed if the names are unique
        #[arg(long)]
        pool: Option<String>,
        /// How long answers may be held before it is given up [default: 10ms]
        #[arg(long, value_name = "DURATION")]
        hold_limit: Option<Duration>,
    },
    /// List the snapshots, oldest first
    #[command(visible_alias = "ls")]
    List {
        /// Only those of this volume.
        volume: Option<String>,
        /// Only this pool
        #[arg(long)]
        pool: Option<String>,
    },
    /// Show a snapshot: what it cost, and its intermediate snapshots
    Show {
        /// `volume@name`.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: String,
        /// The pool; not needed if the volume's name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Lock a snapshot, for all the volumes it was taken of: until then nobody can delete it, or shorten the lock
    Lock {
        /// `volume@name`.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: String,
        /// Until when: 2027-01-31T18:00:00Z, 2027-01-31 (its first moment in UTC), or 30d from now
        #[arg(long, value_name = "DATE")]
        until: Until,
        /// The pool; not needed if the volume's name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// List what changed since a snapshot: up to a later one, or up to now
    Changes {
        /// The earlier one: `volume@name`.
        #[arg(value_name = "VOLUME@NAME")]
        from: String,
        /// The later one: `volume@name` or `volume`, also of a clone [default: the volume as it is].
        #[arg(value_name = "VOLUME[@NAME]")]
        to: Option<String>,
        /// The pool; not needed if the volume's name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Delete snapshots, each for all the volumes it was taken of: all that are named or, if one may not go, none (a crash in the
    /// middle may leave some)
    Delete {
        /// `volume@name`, of one pool if there are several.
        #[arg(value_name = "VOLUME@NAME", required = true)]
        snapshots: Vec<String>,
        /// Although it has clones: its space comes free when one of what was made of it is left
        #[arg(long)]
        defer: bool,
        /// Show how far the freeing of its space has come, and wait until the space can be used again
        #[arg(long)]
        wait: bool,
        /// The pool; not needed if the volume's name is unique
        #[arg(long)]
        pool: Option<String>,
    },
}

/// `stillpoint schedule`
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// Take snapshots of one or more volumes, at one instant, whenever it is due
    Create {
        /// Its name; its snapshots are called by it and the time.
        name: String,
        /// The volumes, separated by commas
        #[arg(long, value_name = "VOLUME,...", value_delimiter = ',', required = true)]
        volumes: Vec<String>,
        /// Due every so often, in phase with the clock: 1s to 30d
        #[arg(
            long,
            value_name = "PERIOD",
            required_unless_present = "cron",
            conflicts_with = "cron"
        )]
        every: Option<Period>,
        /// Due by a cron line: minute, hour, day of month, month, day of week
        #[arg(long, value_name = "LINE")]
        cron: Option<String>,
        /// Time zone of the cron line and of the days that are kept, as Europe/Berlin [default: UTC]
        #[arg(long, value_name = "ZONE")]
        time_zone: Option<String>,
        /// How many of its snapshots are kept: last=60,hourly=24,daily=7,weekly=4,monthly=12,yearly=10, or some of these
        #[arg(long, value_name = "RULES", value_parser = crate::keep::keep_rules)]
        keep: stillpoint_appliance::api::model::KeepRules,
        /// How long answers may be held before a run is given up [default: 10ms]
        #[arg(long, value_name = "DURATION")]
        hold_limit: Option<Duration>,
        /// The pool; not needed if the volumes' names are unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// List the schedules
    #[command(visible_alias = "ls")]
    List {
        /// Only this pool
        #[arg(long)]
        pool: Option<String>,
    },
    /// Show a schedule: its next runs, and what the next one prunes
    Show {
        /// Its name.
        name: String,
        /// Each of its snapshots, and why it is kept
        #[arg(short, long)]
        verbose: bool,
        /// The pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Stop a schedule for a while
    Pause {
        /// Its name.
        name: String,
        /// The pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Let a schedule go on that was paused; what was due meanwhile is not made up for
    Resume {
        /// Its name.
        name: String,
        /// The pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Run a schedule now
    Run {
        /// Its name.
        name: String,
        /// The pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
    /// Delete a schedule; its snapshots stay
    Delete {
        /// Its name.
        name: String,
        /// The pool; not needed if the name is unique
        #[arg(long)]
        pool: Option<String>,
    },
}

/// `stillpoint host`
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Take a snapshot of the volume behind an export that was made with --allow-snapshots; what was written and answered
    /// before is in it
    Snapshot {
        /// `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`, as `export list` shows it.
        uri: String,
        /// The name of the snapshot: the part after the @.
        name: String,
    },
}
