//! How long the appliance takes from its start to its first answer, after a clean stop and after `kill -9` under load, of a pool
//! with very much mapped in single blocks; what memory it takes when blocks all over that pool are read; what reads cost
//! when the map cache holds a hundredth of the map; what a large discard costs others. Prints tables.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use stillpoint_benches::Failure;
use stillpoint_benches::frame::{self, Place};
use stillpoint_benches::machine::Machine;
use stillpoint_benches::mapped_pool::place::{Kind, MappedPool, Settings};
use stillpoint_benches::mapped_pool::{discard, memory, opening};

/// Measures restarts, memory and discards of a pool that has much mapped
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    place: Place,
    /// Directory for restart.md and restart.json
    #[arg(long)]
    out: Option<PathBuf>,
    /// GiB mapped in the pool whose data is left out; 1024 takes 5 GiB of disk and some minutes; 0 for none
    #[arg(long, default_value_t = 64)]
    mapped_gib: u64,
    /// GiB of the pool whose data is written; 0 for none
    #[arg(long, default_value_t = 4)]
    real_gib: u64,
    /// Restarts of each kind
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of load before each kill, and of each run of reads
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// GiB that are discarded beside other writes
    #[arg(long, default_value_t = 16)]
    discard_gib: u64,
    /// Only the part of this name: restart, memory, reads or discard
    #[arg(long)]
    only: Option<String>,
    /// Shards of the pools [default: as many as processors]
    #[arg(long)]
    shards: Option<u16>,
    /// One more option of `stillpoint serve`; may be given several times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    serve_option: Vec<String>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part)
    }

    fn settings(&self) -> Settings {
        Settings {
            mapped_gib: self.mapped_gib,
            real_gib: self.real_gib,
            rounds: self.rounds,
            time: Duration::from_secs_f64(self.seconds),
            discard_gib: self.discard_gib,
            shards: self.shards,
            serve_options: self.serve_option.clone(),
        }
    }
}

/// Everything that was measured.
#[derive(Serialize)]
struct Report {
    machine: Machine,
    restarts: Vec<opening::Restarts>,
    memory: Option<memory::Memory>,
    reads: Option<memory::CacheReads>,
    discard: Option<discard::Discard>,
}

impl Report {
    fn markdown(&self) -> String {
        let mut text = format!("Machine: {}.\n\n", self.machine);
        text += &opening::markdown(&self.restarts);
        let parts = [
            self.memory.as_ref().map(memory::Memory::markdown),
            self.reads.as_ref().map(memory::CacheReads::markdown),
            self.discard.as_ref().map(discard::Discard::markdown),
        ];
        for part in parts.iter().flatten() {
            text.push('\n');
            text.push_str(part);
        }
        text
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    frame::run("restart", || measure(&options))
}

fn measure(options: &Options) -> Result<(), Failure> {
    let (program, backing) = options.place.find()?;
    let settings = options.settings();
    let mut report = Report {
        machine: Machine::look(&backing),
        restarts: Vec::new(),
        memory: None,
        reads: None,
        discard: None,
    };
    if options.mapped_gib > 0 {
        let mut pool = MappedPool::make(&settings, &program, &backing, Kind::DataLeftOut)?;
        if options.wants("memory") {
            report.memory = Some(memory::measure(&settings, &mut pool)?);
        }
        if options.wants("restart") {
            report.restarts.push(opening::measure(&settings, &mut pool)?);
        }
        if options.wants("discard") {
            report.discard = Some(discard::measure(&settings, &mut pool)?);
        }
    }
    if options.real_gib > 0 && (options.wants("restart") || options.wants("reads")) {
        let mut pool = MappedPool::make(&settings, &program, &backing, Kind::Real)?;
        if options.wants("reads") {
            report.reads = Some(memory::reads(&settings, &mut pool)?);
        }
        if options.wants("restart") {
            report.restarts.push(opening::measure(&settings, &mut pool)?);
        }
    }
    frame::tell("restart", options.out.as_deref(), &report.markdown(), &report)
}
