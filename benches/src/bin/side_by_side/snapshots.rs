//! Rows i and j: snapshots beside writes through a unix socket, under full load and with one each second.

use std::time::{Duration, Instant};

use stillpoint_benches::frame::say;
use stillpoint_benches::prices::{self, Beside, DEPTH, LIFE, slack_bytes};
use stillpoint_benches::process::Scratch;
use stillpoint_benches::servers::{POOL, Setup, Stillpoint, VOLUME, fill};
use stillpoint_benches::stats::Spread;
use stillpoint_benches::table::{Bound, Goal, Row};
use stillpoint_benches::windows::{self, HEADS, Window, cells};
use stillpoint_benches::writer::{Arrivals, Writer};
use stillpoint_benches::{Failure, cpu};

use crate::Options;

/// A pool is so many times as large as its volume: what some snapshots hold, and room to write in runs.
const POOL_FACTOR: u64 = 8;
/// The slots in which answers are counted.
const SLOT_NS: u64 = 1_000_000;
/// What a connection does at first counts for nothing.
const WARM_UP: Duration = Duration::from_millis(300);
/// Row j: of full load.
const LOAD: f64 = 0.7;
const INTERVAL: Duration = Duration::from_secs(1);
/// Row j: snapshots that are there at a time; for each further one the oldest goes.
const KEPT: u64 = 3;
/// Row j: seconds of one stretch with or without snapshots; they take turns.
const STRETCH_S: u64 = 30;

fn appliance(options: &Options, processors: usize, scratch: &Scratch) -> Result<Stillpoint, Failure> {
    let (program, _) = options.place.find()?;
    let mut serve_options = vec![format!("--processors={processors}")];
    serve_options.extend(options.serve_option.iter().cloned());
    let setup = Setup {
        program: &program,
        serve_options: &serve_options,
        device: None,
        pool_bytes: options.volume_bytes() * POOL_FACTOR,
        volume_bytes: options.volume_bytes(),
    };
    let appliance = Stillpoint::start(&setup, scratch)?;
    fill(&appliance.target, options.volume_bytes(), scratch)?;
    Ok(appliance)
}

fn one(value: f64) -> Spread {
    Spread::of([value])
}

/// Row i.
///
/// # Errors
/// A command fails.
pub fn under_full_load(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new("i", "snapshots under full load, two processors");
    let appliance = appliance(options, 2, scratch)?;
    let count = if options.short { 10 } else { 200 };
    let (prices, beside) = prices::measure(count, options.volume_bytes(), &appliance)?;
    let slots = Slots::of(&beside);
    let most = Bound::AtMost;
    row.goals.extend([
        Goal::new(
            "longest hold of a shard, p99, us",
            one(prices.hold_us.p99),
            most(100.0),
        ),
        Goal::new(
            "longest hold of a shard, worst, us",
            one(prices.hold_us.max),
            most(1000.0),
        ),
        Goal::new(
            "command to durable, worst, ms",
            one(prices.durable_ms.max),
            most(5.0),
        ),
        Goal::new(
            "1 ms slots without an answer among the 50 after a snapshot, to as many elsewhere, of 1000",
            one(slots.near_per_thousand),
            most(slots.elsewhere_per_thousand),
        ),
    ]);
    row.notes.push(prices.markdown());
    row.notes.push(format!(
        "{DEPTH} writes always in flight over one connection: {:.0} a second. The longest run of slots of 1 ms without an answer: {} \
         within {} ms after a snapshot, {} elsewhere. Two processors and the client share the cores of this machine.",
        slots.per_second,
        slots.near_longest,
        LIFE.as_millis(),
        slots.elsewhere_longest,
    ));
    Ok(row)
}

/// How many slots of time passed without an answer, close after snapshots and elsewhere.
struct Slots {
    near_per_thousand: f64,
    elsewhere_per_thousand: f64,
    near_longest: usize,
    elsewhere_longest: usize,
    per_second: f64,
}

impl Slots {
    fn of(beside: &Beside) -> Self {
        let answered = |sample: &stillpoint_benches::writer::Sample| sample.begun_ns + sample.took_ns;
        let end_ns = beside.samples.iter().map(answered).max().unwrap_or(0);
        let mut answers = vec![0u32; (end_ns / SLOT_NS) as usize + 1];
        for sample in &beside.samples {
            answers[(answered(sample) / SLOT_NS) as usize] += 1;
        }
        let mut is_near = vec![false; answers.len()];
        for asked_ns in &beside.asked_ns {
            let first = (asked_ns / SLOT_NS) as usize;
            let last = first + LIFE.as_millis() as usize;
            for slot in &mut is_near[first..last.min(answers.len())] {
                *slot = true;
            }
        }
        // The first and the last slot are not whole.
        let whole = 1..answers.len().saturating_sub(1);
        let of = |near: bool| {
            let (mut slots, mut empty, mut run, mut longest) = (0u64, 0u64, 0, 0);
            for slot in whole.clone().filter(|&slot| is_near[slot] == near) {
                slots += 1;
                run = if answers[slot] == 0 { run + 1 } else { 0 };
                empty += u64::from(answers[slot] == 0);
                longest = longest.max(run);
            }
            (empty as f64 * 1000.0 / slots.max(1) as f64, longest)
        };
        let (near, elsewhere) = (of(true), of(false));
        Self {
            near_per_thousand: near.0,
            elsewhere_per_thousand: elsewhere.0,
            near_longest: near.1,
            elsewhere_longest: elsewhere.1,
            per_second: beside.samples.len() as f64 * 1e9 / end_ns.max(1) as f64,
        }
    }
}

/// Row j.
///
/// # Errors
/// A command fails.
pub fn each_second(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let seconds = options
        .snapshot_seconds
        .unwrap_or(if options.short { 1 } else { 600 });
    let title = format!("a snapshot each second for {seconds} s at 70% of full load, to none");
    let mut row = Row::new("j", &title);
    let mut bench = EachSecond {
        appliance: appliance(options, 1, scratch)?,
        used_bytes: 0,
        taken: 0,
        oldest: 0,
    };
    bench.used_bytes = bench.appliance.api()?.used_bytes(POOL)? + slack_bytes(options.volume_bytes());
    let time = if options.short { INTERVAL / 2 } else { INTERVAL * 2 };
    let full_load = bench.stretch(Arrivals::Depth(DEPTH), time, false)?;
    let arrivals = Arrivals::Rate(full_load.per_second * LOAD);
    // What the first snapshots make the process take counts for neither end.
    let warming = if options.short { 1 } else { KEPT as u32 + 2 };
    bench.stretch(arrivals, INTERVAL * warming, true)?;
    let (mut without, mut with, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    let stretches = seconds.div_ceil(STRETCH_S);
    for stretch in 0..stretches {
        let time = Duration::from_secs_f64(seconds as f64 / stretches as f64);
        for snapshots in [stretch % 2 == 1, stretch % 2 == 0] {
            say(&format!("stretch {} of {stretches}", stretch + 1));
            let window = bench.stretch(arrivals, time, snapshots)?;
            if snapshots {
                with.push(window);
                resident.push(cpu::resident_bytes(bench.appliance.process_id())? as f64);
            } else {
                without.push(window);
            }
        }
    }
    let pairs = with.iter().zip(&without);
    let ratio = Spread::of(pairs.map(|(with, without)| with.latency_us.p99_9 / without.latency_us.p99_9));
    row.goals
        .push(Goal::new("p99.9 with to without", ratio, Bound::AtMost(1.1)));
    let (first, last) = (resident[0], resident[resident.len() - 1]);
    row.goals.push(Goal::new(
        "resident memory after the last stretch to after the first",
        one(last / first),
        Bound::AtMost(1.02),
    ));
    row.notes.push(format!(
        "| | {HEADS} |\n|---|{}\n| none | {} |\n| a snapshot each second | {} |",
        "---:|".repeat(6),
        cells(&without),
        cells(&with)
    ));
    row.notes.push(format!(
        "Full load was {:.0} writes a second with {DEPTH} in flight; stretches of {:.0} s with and without take turns. {} snapshots, of \
         which {KEPT} are there at a time: the oldest is deleted when a further one is taken, and its space comes free meanwhile. \
         Resident: {:.0} MiB at first, {:.0} MiB in the end.",
        full_load.per_second,
        seconds as f64 / stretches as f64,
        bench.taken,
        first / f64::from(1 << 20),
        last / f64::from(1 << 20),
    ));
    Ok(row)
}

struct EachSecond {
    appliance: Stillpoint,
    /// What the pool uses without snapshots.
    used_bytes: u64,
    taken: u64,
    oldest: u64,
}

impl EachSecond {
    /// Writes for some time, with a snapshot each second or with none.
    fn stretch(&mut self, arrivals: Arrivals, time: Duration, snapshots: bool) -> Result<Window, Failure> {
        let server = self.appliance.process_id();
        let mut api = self.appliance.api()?;
        let writer = Writer::start(self.appliance.nbd_socket(), VOLUME, arrivals)?;
        std::thread::sleep(WARM_UP);
        let from = windows::now(&writer, server)?;
        let begun = Instant::now();
        let mut next = INTERVAL / 2;
        while next < time {
            std::thread::sleep(next.saturating_sub(begun.elapsed()));
            next += INTERVAL;
            if snapshots {
                api.take_snapshot(VOLUME, &format!("second-{}", self.taken))?;
                self.taken += 1;
                if self.taken - self.oldest > KEPT {
                    self.delete_oldest()?;
                }
            }
        }
        std::thread::sleep(time.saturating_sub(begun.elapsed()));
        let to = windows::now(&writer, server)?;
        let window = Window::between(&writer.finish()?, from, to);
        while self.oldest < self.taken {
            self.delete_oldest()?;
        }
        if snapshots {
            api.wait_for_space(POOL, self.used_bytes)?;
        }
        Ok(window)
    }

    fn delete_oldest(&mut self) -> Result<(), Failure> {
        let name = format!("second-{}", self.oldest);
        self.appliance.api()?.delete_snapshot(VOLUME, &name)?;
        self.oldest += 1;
        Ok(())
    }
}
