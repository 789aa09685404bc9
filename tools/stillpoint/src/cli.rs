//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::BenchCommand;
use crate::config::{Durable, Nvme, Poll};
use crate::size::{Duration, Size};
use crate::when::{Period, Until};

/// Block storage whose snapshots span all cores and stop nothing.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 conflict, 5 daemon unreachable.
Sizes: 10GiB or 10G (1024s), 10GB (1000s). Names: letters, digits, '.', '_', '-'. A snapshot is volume@name.";

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// The daemon's control socket [default: control.sock in the run directory]
    #[arg(long, global = true, env = "STILLPOINT_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: sizes in KiB, MiB, GiB.
    Table,
    /// For programs: what the API says; bytes and nanoseconds.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the appliance
    Serve(ServeArguments),
    /// Make, open, show and close pools
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Show the block devices of this machine: what they are, who uses them (works without a daemon)
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Make, show, resize and delete volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Take, show and delete snapshots
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Name volumes that are cut together
    #[command(subcommand)]
    Group(GroupCommand),
    /// Limit what is written after snapshots: change log volumes
    #[command(subcommand)]
    Changelog(ChangelogCommand),
    /// Take snapshots by themselves, and prune them
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Offer volumes and snapshots to NBD clients
    #[command(subcommand)]
    Export(ExportCommand),
    /// What a host does through its NBD connection alone (works without the control socket)
    #[command(subcommand)]
    Host(HostCommand),
    /// Measure block targets: files, devices, NBD exports (works without a daemon)
    #[command(subcommand)]
    Bench(Box<BenchCommand>),
    /// Show what this is: a small appliance in a temporary directory, a snapshot in the middle of a load, and the
    /// proof that it shows one instant
    Demo(DemoArguments),
    /// Serve a page for a browser on this machine that shows and runs the appliance, until Ctrl-C
    Console(ConsoleArguments),
    /// Show what happened in the running appliance, and wait for more
    Events(EventsArguments),
    /// Show the figures of the running appliance
    Status,
    /// Show where the time of requests goes in the running appliance, stage by stage
    Stats(StatsArguments),
    /// Look at the devices of a pool that no daemon has open; check them, and mend them (works without a daemon)
    Inspect(InspectArguments),
    /// Say what this machine lacks for full speed, and how to mend it (works without a daemon)
    Doctor,
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Options of `stats`.
#[derive(Debug, Args)]
pub struct StatsArguments {
    /// Count so long, for example 5s, and show that [default: what was counted since the daemon started]
    #[arg(long, value_name = "DURATION")]
    pub during: Option<Duration>,
    /// One line for each processor
    #[arg(long)]
    pub processors: bool,
}

/// Options of `console`.
#[derive(Debug, Args)]
pub struct ConsoleArguments {
    /// Loopback address that it listens on; port 0 is one that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Show it in the browser of this machine
    #[arg(long)]
    pub open: bool,
}

/// Options of `serve`. Each is also a key of the configuration file, without the dashes in front.
#[derive(Debug, Default, Args)]
pub struct ServeArguments {
    /// Configuration file (TOML); options given here win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the pools that are open are remembered [default: /var/lib/stillpoint, or in the home directory]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where sockets lie [default: /run/stillpoint, or $XDG_RUNTIME_DIR/stillpoint]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Where log tails lie, on tmpfs; `none` for none [default: chosen; see doctor]
    #[arg(long, value_name = "DIR")]
    pub tail_dir: Option<PathBuf>,
    /// Unix socket for NBD clients; may be given several times [default: nbd.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    pub nbd_unix: Vec<PathBuf>,
    /// TCP address for NBD clients; may be given several times [default: none; without a value: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:10809")]
    pub nbd_tcp: Vec<SocketAddr>,
    /// Number of processors: pinned threads that do the work [default: the allowed physical cores less one]
    #[arg(long, value_name = "N")]
    pub processors: Option<u16>,
    /// Do not pin processors to cores
    #[arg(long)]
    pub no_pin: bool,
    /// `adaptive`: without work sleep at once or after a moment, whichever gets more done (at once if no
    /// core is left for others); `busy`: never sleep; `sleep`: sleep at once [default: adaptive]
    #[arg(long, value_enum, value_name = "HOW")]
    pub poll: Option<Poll>,
    /// `passthrough`: NVMe namespaces get commands of our own, past the kernel's block layer, where that is possible; `block`:
    /// they are block devices like others [default: passthrough]
    #[arg(long, value_enum, value_name = "HOW")]
    pub nvme: Option<Nvme>,
    /// Whether single writes to NVMe devices are made durable one by one (FUA) where that spares a flush. `auto`: where the controller
    /// says that it can, and is neither a virtual machine's nor known to ignore it; `always`: where it says that it can;
    /// `never` [default: auto]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub durable_writes: Option<Durable>,
    /// Memory for map pages, for each pool [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub map_cache: Option<Size>,
    /// Memory for buffers, for each processor [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub buffer_memory: Option<Size>,
    /// Connections of NBD clients at most; further ones are closed at once [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub connection_limit: Option<u32>,
    /// Connections to one export at most; further clients are told so [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub export_connection_limit: Option<u32>,
    /// How long a client may take from connecting to choosing an export [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub handshake_limit: Option<Duration>,
    /// Open a pool: its devices, separated by commas; may be given several times
    #[arg(long, value_name = "PATH,...")]
    pub pool: Vec<String>,
    /// What is logged: error, warn, info, debug, or per module as in `info,stillpoint_appliance=debug`
    /// [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// All devices of the pool, in any order.
    #[arg(required = true, value_name = "PATH")]
    pub devices: Vec<PathBuf>,
    /// Verify every structure and every checksum, and that every block is used once or free; exit code 1 if anything is
    /// damaged
    #[arg(long)]
    pub check: bool,
    /// Check, but do not read the data
    #[arg(long)]
    pub metadata_only: bool,
    /// Check, and mend what can be mended without losing anything
    #[arg(long)]
    pub repair: bool,
    /// Mend also what costs something that the pool promised to keep, as a log that breaks off
    #[arg(long, requires = "repair")]
    pub accept_loss: bool,
    /// Mend a pool with mirrors also without sides that are out or were not named; everything is copied to them later
    #[arg(long, requires = "repair")]
    pub degraded: bool,
    /// Where the daemon's log tails lie; `none` for none [default: where serve puts them]
    #[arg(long, value_name = "DIR")]
    pub tail_dir: Option<PathBuf>,
}

/// Options of `events`.
#[derive(Debug, Args)]
pub struct EventsArguments {
    /// Wait for further events and print each as it comes (as JSON: one in a line)
    #[arg(short, long)]
    pub follow: bool,
    /// Only events after this number [default: the newest]
    #[arg(long, value_name = "NUMBER")]
    pub after: Option<u64>,
    /// Also what the shards do beside requests: checkpoints, freeing
    #[arg(long, conflicts_with = "follow")]
    pub background: bool,
    /// So many at most, or at first with --follow
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Leave the daemon running and say how to look around
    #[arg(long)]
    pub keep: bool,
    /// Where to put everything; made, and not removed [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Number of processors [default: the allowed physical cores less one, at least 2]
    #[arg(long, value_name = "N")]
    pub processors: Option<u16>,
    /// Connections of the load
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub connections: u16,
    /// Requests in flight on each connection
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub depth: u16,
}

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
