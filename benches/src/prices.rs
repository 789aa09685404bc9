//! What snapshots take under full load: to make, to hold answers, to delete, and until their space is back.

use std::fmt::Write;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::Failure;
use crate::api::Api;
use crate::servers::{POOL, Stillpoint, VOLUME};
use crate::stats::Distribution;
use crate::writer::{Arrivals, Sample, Writer};

/// Writes in flight at full load.
pub const DEPTH: u32 = 32;

/// How long each snapshot lives: so long its change log grows.
pub const LIFE: Duration = Duration::from_millis(50);
/// Under load the bytes in use go up and down; so often they are looked at for the highest.
const LOOKS: u32 = 40;

/// What came out; one figure of each snapshot.
#[derive(Debug, Serialize)]
pub struct Prices {
    /// The request to the API.
    pub create_ms: Distribution,
    /// From the command until it was durable.
    pub durable_ms: Distribution,
    /// The longest hold of a shard.
    pub hold_us: Distribution,
    /// Answers held.
    pub answers_held: Distribution,
    /// The longest hold of one answer.
    pub answer_held_us: Distribution,
    /// The request to the API.
    pub delete_ms: Distribution,
    /// From that request until the bytes in use are back at what they were.
    pub space_ms: Distribution,
}

/// The load beside the snapshots.
#[derive(Debug)]
pub struct Beside {
    /// Every write.
    pub samples: Vec<Sample>,
    /// When each snapshot was asked for, on the writer's clock.
    pub asked_ns: Vec<u64>,
}

/// By how much the bytes in use may differ when nothing is held any more: maps come and go.
#[must_use]
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
pub fn measure(count: u32, volume_bytes: u64, appliance: &Stillpoint) -> Result<(Prices, Beside), Failure> {
    let writer = Writer::start(appliance.nbd_socket(), VOLUME, Arrivals::Depth(DEPTH))?;
    let mut api = appliance.api()?;
    let used = used_under_load(&mut api, volume_bytes)?;
    let (mut create, mut delete, mut space) = (Vec::new(), Vec::new(), Vec::new());
    let (mut told, mut asked_ns) = (Vec::new(), Vec::new());
    for number in 0..count {
        let name = format!("price-{number}");
        asked_ns.push(writer.now_ns());
        let (snapshot, took) = api.take_snapshot(VOLUME, &name)?;
        told.push(snapshot);
        create.push(took);
        thread::sleep(LIFE);
        let took = api.delete_snapshot(VOLUME, &name)?;
        delete.push(took);
        space.push(took + api.wait_for_space(POOL, used)?);
    }
    let samples = writer.finish()?;
    let times = |times: &[Duration]| Distribution::of(times.iter().map(|time| time.as_nanos() as u64), 1e6);
    let field = |name: &str, unit| {
        let values = told.iter().filter_map(|snapshot: &Value| snapshot[name].as_u64());
        Distribution::of(values, unit)
    };
    let prices = Prices {
        create_ms: times(&create),
        durable_ms: field("durable_ns", 1e6),
        hold_us: field("hold_ns_max", 1e3),
        answers_held: field("answers_held", 1.0),
        answer_held_us: field("answer_held_ns_max", 1e3),
        delete_ms: times(&delete),
        space_ms: times(&space),
    };
    Ok((prices, Beside { samples, asked_ns }))
}

impl Prices {
    /// As a table.
    #[must_use]
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
