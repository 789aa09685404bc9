//! The command line.

// Paths, since the fuzz targets compile this file by its own.
#[path = "cli/pools.rs"]
mod pools;
#[path = "cli/snapshots.rs"]
mod snapshots;
#[path = "cli/volumes.rs"]
mod volumes;

pub use pools::{DeviceCommand, PoolCommand};
pub use snapshots::{HostCommand, ScheduleCommand, SnapshotCommand};
pub use volumes::{ChangelogCommand, ExportCommand, GroupCommand, VolumeCommand};

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::BenchCommand;
use crate::config::{Durable, Nvme, Poll};
use crate::size::{Duration, Size};

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
    /// Where the daemon remembers pools, which is told what a repair with --degraded changed [default: as for serve]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
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
