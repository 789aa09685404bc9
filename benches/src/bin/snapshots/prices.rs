//! What snapshots take under full load: to make, to hold answers, to delete, and until their space is back.

use std::fmt::Write;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use stillpoint_benches::Failure;
use stillpoint_benches::api::Api;
use stillpoint_benches::servers::{POOL, Stillpoint, VOLUME};
use stillpoint_benches::stats::Distribution;
use stillpoint_benches::writer::{Arrivals, Writer};

use super::Options;
use super::writes::DEPTH;

/// How long each snapshot lives: so long its change log grows.
const LIFE: Duration = Duration::from_millis(50);
/// Under load the bytes in use go up and down; so often they are looked at for the highest.
const LOOKS: u32 = 40;

/// What came out; one figure of each snapshot.
#[derive(Debug, Serialize)]
pub struct Prices {
    create_ms: Distribution,
    durable_ms: Distribution,
    hold_us: Distribution,
    answers_held: Distribution,
    answer_held_us: Distribution,
    delete_ms: Distribution,
    space_ms: Distribution,
}

/// By how much the bytes in use may differ when nothing is held any more: maps come and go.
pub fn slack_bytes(volume_bytes: u64) -> u64 {
    (2 << 20) + volume_bytes / 128
}

/// The most that the pool uses while nothing but the load changes it.
///
/// # Errors
/// The API's.
pub fn used_under_load(api: &mut Api, volume_bytes: u64) -> Result<u64, Failure> {
    let mut most = 0;
    for _ in 0..LOOKS {
        most = most.max(api.used_bytes(POOL)?);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(most + slack_bytes(volume_bytes))
}

/// Takes and deletes snapshots, one at a time.
///
/// # Errors
/// A command fails.
pub fn measure(options: &Options, appliance: &Stillpoint) -> Result<Prices, Failure> {
    let count = if options.short { 20 } else { 200 };
    let writer = Writer::start(appliance.nbd_socket(), VOLUME, Arrivals::Depth(DEPTH))?;
    let mut api = appliance.api()?;
    let used = used_under_load(&mut api, options.volume_bytes())?;
    let (mut create, mut delete, mut space) = (Vec::new(), Vec::new(), Vec::new());
    let mut told = Vec::new();
    for number in 0..count {
        let name = format!("price-{number}");
        let (snapshot, took) = api.take_snapshot(VOLUME, &name)?;
        told.push(snapshot);
        create.push(took);
        thread::sleep(LIFE);
        let took = api.delete_snapshot(VOLUME, &name)?;
        delete.push(took);
        space.push(took + api.wait_for_space(POOL, used)?);
    }
    writer.finish()?;
    let times = |times: &[Duration]| Distribution::of(times.iter().map(|time| time.as_nanos() as u64), 1e6);
    let field = |name: &str, unit| {
        let values = told.iter().filter_map(|snapshot: &Value| snapshot[name].as_u64());
        Distribution::of(values, unit)
    };
    Ok(Prices {
        create_ms: times(&create),
        durable_ms: field("durable_ns", 1e6),
        hold_us: field("hold_ns_max", 1e3),
        answers_held: field("answers_held", 1.0),
        answer_held_us: field("answer_held_ns_max", 1e3),
        delete_ms: times(&delete),
        space_ms: times(&space),
    })
}

impl Prices {
    /// As a table.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "### Snapshots under full load\n\n| of {} snapshots, each deleted after {} ms | p50 | p99 | max |\n|---|---:|---:|---:|\n",
            self.create_ms.count,
            LIFE.as_millis()
        );
        for (name, of) in [
            ("create: API request, ms", &self.create_ms),
            ("create: command to durable, ms", &self.durable_ms),
            ("hold: longest of a shard, us", &self.hold_us),
            ("hold: answers held", &self.answers_held),
            ("hold: longest of an answer, us", &self.answer_held_us),
            ("delete: API request, ms", &self.delete_ms),
            ("delete: request to space freed, ms", &self.space_ms),
        ] {
            let _ = writeln!(text, "| {name} | {:.1} | {:.1} | {:.1} |", of.p50, of.p99, of.max);
        }
        text
    }
}
