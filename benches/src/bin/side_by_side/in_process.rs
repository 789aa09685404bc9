//! The rows of the data plane in this process, beside a lean loop and fio on the same kind of device.

use std::time::Duration;

use stillpoint_bench::inside::{Options as PoolOptions, Place};
use stillpoint_bench::job::Idle;
use stillpoint_bench::target::Opened;
use stillpoint_benches::Failure;
use stillpoint_benches::contest::{Arena, FLUSH_EVERY, Work, case_of, run_case, written_pool};
use stillpoint_benches::fio::Job;
use stillpoint_benches::process::Scratch;
use stillpoint_benches::rounds::{CaseResult, Run, Series};
use stillpoint_benches::servers::{fill, make_written_file, takes_direct};
use stillpoint_benches::stats::Spread;
use stillpoint_benches::table::{Bound, Goal, Row};
use stillpoint_benches::zram::Zram;

use crate::Options;

/// A pool on a file is so many times as large as its volume.
const POOL_FACTOR: u64 = 4;
/// The same where a snapshot holds as much again soon after it was taken: before and after, most of the pool is free.
const POOL_FACTOR_OF_SNAPSHOTS: u64 = 10;

fn job(pattern: &'static str, block_bytes: u32, depth: u32) -> Job {
    Job {
        pattern,
        block_bytes,
        depth,
    }
}

fn pool(
    place: Place,
    volume_bytes: u64,
    threads: usize,
    flush_every: Option<Duration>,
) -> Result<Opened, Failure> {
    Ok(Opened::inside(&PoolOptions {
        place,
        volume_bytes: Some(volume_bytes),
        threads,
        flush_every_ns: flush_every.map(|every| every.as_nanos() as u64),
    })?)
}

/// Row a.
pub fn random_reads_of_zram(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new(
        "a",
        "random reads, depth 32, block device in memory (zram), one processor",
    );
    let size_bytes = options.volume_bytes();
    let made = Zram::new(size_bytes * 3).and_then(|ours| Ok((ours, Zram::new(size_bytes)?)));
    let (ours, bare) = match made {
        Ok(both) => both,
        Err(error) => {
            row.skipped = Some(error.to_string());
            return Ok(row);
        }
    };
    let target = stillpoint_benches::fio::Target::File {
        path: bare.path().to_path_buf(),
        direct: true,
    };
    fill(&target, size_bytes, scratch)?;
    let opened = pool(Place::Existing(ours.path().to_path_buf()), size_bytes, 1, None)?;
    let works = [
        (Work::Ours(&opened, Idle::Spin), 1),
        (Work::Lean(bare.path(), Idle::Spin), 1),
        (Work::Ours(&opened, Idle::Nap), 1),
        (Work::Lean(bare.path(), Idle::Nap), 1),
        (
            Work::Fio {
                path: bare.path(),
                direct: true,
                flushed: false,
            },
            1,
        ),
    ];
    let (pace, job) = (options.pace(), job("randread", 4096, 32));
    let arena = Arena {
        pace: &pace,
        size_bytes,
        scratch,
    };
    let case = run_case(job.name(), job, &works, Some(1), &arena)?;
    // Which way of waiting is the faster one with such a device depends on the kernel: the better one of each counts.
    let better = |ways: [usize; 2]| {
        let [spinning, sleeping] = ways.map(|way| case.spread(way, |run| run.measured.iops).median);
        ways[usize::from(sleeping > spinning)]
    };
    let to_lean = case.ratio(better([0, 2]), better([1, 3]));
    row.goals.push(Goal::new(
        "reads to the lean loop's, of each the better way to wait",
        to_lean,
        Bound::AtLeast(0.85),
    ));
    row.cases.push(case);
    drop(opened);
    Ok(row)
}

/// Row b.
pub fn memory(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new(
        "b",
        "random reads and writes, depth 32, memory without system calls, one processor",
    );
    let opened = pool(Place::Memory, options.volume_bytes(), 1, None)?;
    let pace = options.pace();
    let arena = Arena {
        pace: &pace,
        size_bytes: options.volume_bytes(),
        scratch,
    };
    for (pattern, least) in [("randread", 2.0e6), ("randwrite", 1.5e6)] {
        let job = job(pattern, 4096, 32);
        let case = run_case(
            job.name(),
            job,
            &[(Work::Ours(&opened, Idle::Spin), 1)],
            None,
            &arena,
        )?;
        let rate = case.spread(0, |run| run.measured.iops);
        row.goals.push(Goal::new(
            format!("{}, a second", job.name()),
            rate,
            Bound::AtLeast(least),
        ));
        row.cases.push(case);
    }
    Ok(row)
}

/// Row c.
pub fn random_writes_of_a_file(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new("c", "random writes, file, flushed each second, one processor");
    let size_bytes = options.volume_bytes();
    let ours = written_pool("pool.img", size_bytes, POOL_FACTOR, scratch)?;
    let bare = scratch.path("raw.img");
    make_written_file(&bare, size_bytes, scratch)?;
    let opened = pool(Place::Existing(ours), size_bytes, 1, Some(FLUSH_EVERY))?;
    let raw = Work::Fio {
        path: &bare,
        direct: takes_direct(&bare),
        flushed: true,
    };
    let works = [(Work::Ours(&opened, Idle::Spin), 1), (raw, 1)];
    let pace = options.pace();
    let arena = Arena {
        pace: &pace,
        size_bytes,
        scratch,
    };
    for (depth, least) in [(32, 2.5), (128, 3.0)] {
        let job = job("randwrite", 4096, depth);
        let case = run_case(job.name(), job, &works, Some(1), &arena)?;
        let what = |what: &str| format!("{}: {what}", job.name());
        row.goals.push(Goal::new(
            what("writes to raw"),
            case.ratio(0, 1),
            Bound::AtLeast(least),
        ));
        let p99 = case.ratio_of(0, 1, |run| run.measured.p99_us);
        row.goals
            .push(Goal::new(what("p99 to raw"), p99, Bound::AtMost(1.0)));
        row.cases.push(case);
    }
    Ok(row)
}

/// Row d.
pub fn around_a_snapshot(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new(
        "d",
        "random writes before and right after a snapshot of a full volume",
    );
    let size_bytes = options.volume_bytes();
    let in_memory = pool(Place::Memory, size_bytes, 1, None)?;
    before_and_after(options, &in_memory, ("in memory", None), &mut row, scratch)?;
    drop(in_memory);
    let ours = written_pool("pool.img", size_bytes, POOL_FACTOR_OF_SNAPSHOTS, scratch)?;
    let bare = scratch.path("raw.img");
    make_written_file(&bare, size_bytes, scratch)?;
    let on_file = pool(Place::Existing(ours), size_bytes, 1, Some(FLUSH_EVERY))?;
    let raw = Work::Fio {
        path: &bare,
        direct: takes_direct(&bare),
        flushed: true,
    };
    before_and_after(options, &on_file, ("on a file", Some(raw)), &mut row, scratch)?;
    Ok(row)
}

fn before_and_after(
    options: &Options,
    opened: &Opened,
    (place, raw): (&str, Option<Work<'_>>),
    row: &mut Row,
    scratch: &Scratch,
) -> Result<(), Failure> {
    let Opened::Inside(inside) = opened else {
        return Err("the data plane in process".into());
    };
    let (pace, job, size_bytes) = (options.pace(), job("randwrite", 4096, 32), options.volume_bytes());
    let name = |name: &str| Series {
        contender: name.into(),
        runs: Vec::new(),
    };
    let mut series = vec![name("Stillpoint, before"), name("Stillpoint, right after")];
    series.extend(raw.as_ref().map(|raw| name(raw.name())));
    let ours = Work::Ours(opened, Idle::Spin);
    let run = |work: &Work<'_>| -> Result<Run, Failure> { work.run(job, 1, size_bytes, pace.run, scratch) };
    let mut copied = Vec::new();
    for _ in 0..pace.rounds {
        std::thread::sleep(pace.pause);
        series[0].runs.push(run(&ours)?);
        let (snapshot, before) = (inside.snapshot()?, inside.figures());
        series[1].runs.push(run(&ours)?);
        let after = inside.figures();
        // What is copied has to be read: all that is read are pages of the map that fell out of the cache.
        copied.push((after.read_bytes - before.read_bytes) as f64);
        inside.delete_snapshot(snapshot)?;
        if let Some(raw) = &raw {
            series[2].runs.push(run(raw)?);
        }
    }
    let case: CaseResult = case_of(
        format!("{}, {place}", job.name()),
        false,
        series,
        raw.as_ref().map(|_| 2),
    );
    let what = |what: &str| format!("{place}: {what}, after to before");
    row.goals
        .push(Goal::new(what("writes"), case.ratio(1, 0), Bound::AtLeast(0.97)));
    let tail = case.ratio_of(1, 0, |run| run.measured.p99_9_us);
    row.goals.push(Goal::new(what("p99.9"), tail, Bound::AtMost(1.2)));
    let what = format!("{place}: bytes read from the device after the snapshot, to be copied");
    row.goals
        .push(Goal::new(what, Spread::of(copied), Bound::AtMost(0.0)));
    row.cases.push(case);
    row.notes.push(format!(
        "The pool on the file is {POOL_FACTOR_OF_SNAPSHOTS} times as large as the volume: what a snapshot holds is not free, and the \
         fuller a pool is the shorter are the runs in which writes are laid side by side."
    ));
    row.notes.dedup();
    Ok(())
}

/// Rows e and f: ours on a file beside fio on a file.
fn beside_a_file(options: &Options, scratch: &Scratch, jobs: &[Job]) -> Result<Vec<CaseResult>, Failure> {
    let size_bytes = options.volume_bytes();
    let ours = written_pool("pool.img", size_bytes, POOL_FACTOR, scratch)?;
    let bare = scratch.path("raw.img");
    make_written_file(&bare, size_bytes, scratch)?;
    let opened = pool(Place::Existing(ours), size_bytes, 1, None)?;
    let raw = Work::Fio {
        path: &bare,
        direct: takes_direct(&bare),
        flushed: false,
    };
    let works = [(Work::Ours(&opened, Idle::Spin), 1), (raw, 1)];
    let pace = options.pace();
    let arena = Arena {
        pace: &pace,
        size_bytes,
        scratch,
    };
    let cases = jobs.iter();
    cases
        .map(|&job| run_case(job.name(), job, &works, Some(1), &arena))
        .collect()
}

/// Row e.
pub fn one_read_at_a_time(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new("e", "random reads, one at a time, file, one processor");
    row.cases = beside_a_file(options, scratch, &[job("randread", 4096, 1)])?;
    let more = row.cases[0].difference(0, 1, |run| run.measured.p50_us);
    row.goals
        .push(Goal::new("p50 above raw, us", more, Bound::AtMost(3.0)));
    Ok(row)
}

/// Row f.
pub fn sequential(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new(
        "f",
        "sequential reads and writes of 1 MiB, depth 4, file, one processor",
    );
    row.cases = beside_a_file(
        options,
        scratch,
        &[job("write", 1 << 20, 4), job("read", 1 << 20, 4)],
    )?;
    for case in &row.cases {
        let what = format!("{}: to raw", case.case);
        row.goals
            .push(Goal::new(what, case.ratio(0, 1), Bound::AtLeast(0.95)));
    }
    Ok(row)
}

/// Row k.
pub fn two_processors(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new("k", "two processors against one, memory, depth 32 on each");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        row.skipped = Some("it takes two cores".into());
        return Ok(row);
    }
    let size_bytes = options.volume_bytes();
    let one = pool(Place::Memory, size_bytes, 1, None)?;
    let two = pool(Place::Memory, size_bytes, 2, None)?;
    let works = [
        (Work::Ours(&two, Idle::Spin), 2),
        (Work::Ours(&one, Idle::Spin), 1),
    ];
    let pace = options.pace();
    let arena = Arena {
        pace: &pace,
        size_bytes,
        scratch,
    };
    for pattern in ["randread", "randwrite"] {
        let job = job(pattern, 4096, 32);
        let case = run_case(job.name(), job, &works, None, &arena)?;
        let what = format!("{}: two to one", job.name());
        row.goals
            .push(Goal::new(what, case.ratio(0, 1), Bound::AtLeast(1.9)));
        row.cases.push(case);
    }
    row.notes.push(format!(
        "Each thread asks for blocks of its own shard; {cores} cores, which everything else on the machine shares."
    ));
    Ok(row)
}
