//! Rows l, m and n: pools that have very much mapped. How soon they answer again, what memory they take, what reads cost when
//! their map is not in memory, and what giving back very much costs others.

use std::time::Duration;

use stillpoint_benches::Failure;
use stillpoint_benches::diverged;
use stillpoint_benches::mapped_pool::opening::{Restarts, Start};
use stillpoint_benches::mapped_pool::place::{Kind, MappedPool, Settings};
use stillpoint_benches::mapped_pool::{discard, memory, opening};
use stillpoint_benches::process::Scratch;
use stillpoint_benches::servers::{Setup, Stillpoint, fill};
use stillpoint_benches::stats::Spread;
use stillpoint_benches::table::{Bound, Goal, Row};
use stillpoint_benches::windows::p99_to;

use crate::Options;

/// What row n deletes is a snapshot of so many MiB, twice the other volume.
const DIVERGED_MIB: u64 = 10 << 10;
/// In less the pool has no room for logs, the other volume and both.
const DIVERGED_MIB_SHORT: u64 = 128;
/// A pool is so many times as large as the volume that is written in it.
const POOL_FACTOR: u64 = 8;

/// Sizes of the full rows and of the short ones.
fn settings(options: &Options) -> Settings {
    let pace = options.pace();
    let (mapped_gib, real_gib, discard_gib) = if options.short { (2, 0, 1) } else { (1024, 16, 100) };
    Settings {
        mapped_gib,
        real_gib,
        rounds: pace.rounds.min(3),
        time: pace.run,
        discard_gib,
        // A shard's map cache has 256 pages at least: only in a pool of one shard can it hold a hundredth.
        shards: None,
        serve_options: options.serve_option.clone(),
    }
}

fn make(options: &Options, settings: &Settings, kind: Kind) -> Result<MappedPool, Failure> {
    let (program, backing) = options.place.find()?;
    MappedPool::make(settings, &program, &backing, kind)
}

/// Row l.
///
/// # Errors
/// A command fails, or the pool does not come back as it was.
pub fn restarts(options: &Options, _: &Scratch) -> Result<Row, Failure> {
    let settings = settings(options);
    let mut row = Row::new("l", "from the start of the process to the first answered read");
    let mut all: Vec<Restarts> = Vec::new();
    // Writing a pool takes longer than a short run may.
    let kinds = [Kind::DataLeftOut, Kind::Real];
    for kind in kinds.into_iter().take(if options.short { 1 } else { 2 }) {
        let mut pool = make(options, &settings, kind)?;
        all.push(opening::measure(&settings, &mut pool)?);
    }
    for restarts in &all {
        let spread = |starts: &[Start]| Spread::of(starts.iter().map(|start| start.first_read_ms));
        let mut goal = |after: &str, starts: &[Start], most_ms: f64| {
            let name = format!("{}: first answer {after}, ms", restarts.pool);
            row.goals
                .push(Goal::new(name, spread(starts), Bound::AtMost(most_ms)));
        };
        goal("after a clean stop", &restarts.clean, 1000.0);
        goal("after kill -9 under load", &restarts.killed, 2000.0);
    }
    row.notes.push(opening::markdown(&all));
    Ok(row)
}

/// Row m.
///
/// # Errors
/// A command or a read fails.
pub fn memory(options: &Options, _: &Scratch) -> Result<Row, Failure> {
    let mut settings = settings(options);
    let mut row = Row::new("m", "memory of a large pool, and reads without its map in memory");
    let mut pool = make(options, &settings, Kind::DataLeftOut)?;
    let memory = memory::measure(&settings, &mut pool)?;
    drop(pool);
    // The first half of the reads fills the map cache; what comes on top afterwards is not bounded by the setting.
    let (half, last) = (memory.after.len() / 2, memory.after.len() - 1);
    let resident = |point: usize| memory.after[point].resident_bytes as f64;
    row.goals.push(Goal::new(
        "resident memory after all reads to after half of them",
        Spread::of([resident(last) / resident(half)]),
        Bound::AtMost(1.02),
    ));
    row.notes.push(memory.markdown());
    if options.short {
        row.notes
            .push("Reads without their map in memory are left out: they need a large pool.".into());
        return Ok(row);
    }
    settings.shards = Some(1);
    let mut pool = make(options, &settings, Kind::Real)?;
    let reads = memory::reads(&settings, &mut pool)?;
    let ratios = reads.small.iter().zip(&reads.all).map(|(small, all)| small / all);
    row.goals.push(Goal::new(
        "random reads with 1% of the map in memory to all of it",
        Spread::of(ratios),
        Bound::AtLeast(0.6),
    ));
    row.notes.push(reads.markdown());
    Ok(row)
}

/// Row n.
///
/// # Errors
/// A command or a request fails.
pub fn giving_back(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut settings = settings(options);
    if !options.short {
        // All of it is discarded, a part in each round.
        settings.mapped_gib = settings.discard_gib * u64::from(settings.rounds);
    }
    let mut row = Row::new(
        "n",
        "what others notice of a discard, and of the deletion of a diverged snapshot",
    );
    let mut pool = make(options, &settings, Kind::DataLeftOut)?;
    let discard = discard::measure(&settings, &mut pool)?;
    drop(pool);
    row.goals.push(Goal::new(
        format!("discard of {} GiB: p99 of other writes to before", discard.gib),
        p99_to(&discard.during, &discard.before),
        Bound::AtMost(1.1),
    ));
    row.notes.push(discard.markdown());
    let diverged = delete_diverged(options, &settings, scratch)?;
    row.goals.push(Goal::new(
        format!("deletion of {} MiB: p99 of other writes to before", diverged.mib),
        p99_to(&diverged.during, &diverged.before),
        Bound::AtMost(1.1),
    ));
    row.notes.push(diverged.markdown());
    Ok(row)
}

fn delete_diverged(
    options: &Options,
    settings: &Settings,
    scratch: &Scratch,
) -> Result<diverged::Diverged, Failure> {
    let mib = if options.short {
        DIVERGED_MIB_SHORT
    } else {
        DIVERGED_MIB
    };
    let volume_bytes = (mib << 20) / diverged::FACTOR;
    let (program, _) = options.place.find()?;
    let setup = Setup {
        program: &program,
        serve_options: &settings.serve_options,
        device: None,
        pool_bytes: volume_bytes * POOL_FACTOR,
        volume_bytes,
    };
    let appliance = Stillpoint::start(&setup, scratch)?;
    fill(&appliance.target, volume_bytes, scratch)?;
    // A deletion of so much takes longer than a run of the other rows.
    let least = Duration::from_millis(if options.short { 400 } else { 1000 });
    let time = settings.time.max(least);
    diverged::measure((settings.rounds, time), volume_bytes, &appliance, scratch)
}
