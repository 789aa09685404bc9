//! Where the time of requests goes, and all figures as text for Prometheus.

use std::fmt::Write;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use stillpoint_processor::stages::{Histogram, Stage, Stages, Work};

use super::handlers::{Shared, status_info};
use super::model;
use crate::appliance::Appliance;
use crate::error::Result;
use crate::mailbox::ToProcessor;

/// The text format of Prometheus, version 0.0.4.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Bounds of the histograms of `/metrics`: powers of two from this, in nanoseconds...
const FIRST_BOUND_NS: u64 = 1 << 10;
/// ...to this: about 1 us to 34 s. Each is the end of a counter, so that nothing is estimated; the last counter has all that
/// took longer than 69 s, too, and its end is no bound.
const LAST_BOUND_NS: u64 = 1 << 35;

/// The histograms of every processor, in order.
async fn ask_all(appliance: &Appliance) -> Result<Vec<Stages>> {
    let mut all = Vec::with_capacity(appliance.mailboxes().len());
    for mailbox in appliance.mailboxes() {
        all.push(mailbox.ask(|reply| ToProcessor::Stages { reply }).await?);
    }
    Ok(all)
}

/// What was counted at all, of every processor.
fn counted(all: &[Stages]) -> impl Iterator<Item = (u16, Stage, Work, &Histogram)> {
    (0u16..).zip(all).flat_map(|(processor, stages)| {
        let each = Work::ALL.into_iter().flat_map(move |work| {
            Stage::ALL
                .into_iter()
                .map(move |stage| (processor, stage, work, stages.get(stage, work)))
        });
        each.filter(|(.., histogram)| histogram.count() > 0)
    })
}

pub(super) async fn show(State(appliance): Shared) -> Result<Json<Vec<model::StageInfo>>> {
    let all = ask_all(&appliance).await?;
    let infos = counted(&all).map(|(processor, stage, work, histogram)| model::StageInfo {
        processor,
        kind: work.name().to_owned(),
        stage: stage.name().to_owned(),
        count: histogram.count(),
        sum_ns: histogram.sum_ns(),
        counted: histogram.counted().collect(),
    });
    Ok(Json(infos.collect()))
}

pub(super) async fn metrics(State(appliance): Shared) -> Result<impl IntoResponse> {
    let status = status_info(&appliance).await?;
    let mut text = String::new();
    processors(&mut text, &status);
    shards(&mut text, &status);
    pools(&mut text, &status);
    histograms(&mut text, &ask_all(&appliance).await?);
    Ok(([(CONTENT_TYPE, TEXT)], text))
}

/// Begins a metric.
fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn processors(text: &mut String, status: &model::StatusInfo) {
    type Figure = (
        &'static str,
        &'static str,
        &'static str,
        fn(&model::ProcessorInfo) -> u64,
    );
    let figures: [Figure; 8] = [
        ("sessions", "gauge", "NBD sessions.", |p| p.sessions),
        (
            "requests_total",
            "counter",
            "Parts of requests of its own sessions.",
            |p| p.requests,
        ),
        (
            "forwarded_total",
            "counter",
            "Parts done for sessions of other processors.",
            |p| p.forwarded,
        ),
        ("turns_total", "counter", "Turns of the poll loop.", |p| p.turns),
        ("sleeps_total", "counter", "Times it went to sleep.", |p| p.sleeps),
        ("system_calls_total", "counter", "Calls of io_uring_enter.", |p| {
            p.ring_enters
        }),
        ("buffer_used_bytes", "gauge", "Buffers in use.", |p| {
            p.buffer_bytes_used
        }),
        ("buffer_bytes", "gauge", "Memory for buffers.", |p| p.buffer_bytes),
    ];
    head(
        text,
        "stillpoint_connections",
        "gauge",
        "Connections of NBD clients.",
    );
    let _ = writeln!(text, "stillpoint_connections {}", status.connections);
    for (name, kind, help, value) in figures {
        head(text, &format!("stillpoint_processor_{name}"), kind, help);
        for info in &status.processors {
            let _ = writeln!(
                text,
                "stillpoint_processor_{name}{{processor=\"{}\"}} {}",
                info.processor,
                value(info)
            );
        }
    }
}

fn shards(text: &mut String, status: &model::StatusInfo) {
    type Figure = (
        &'static str,
        &'static str,
        &'static str,
        fn(&model::ShardInfo) -> u64,
    );
    let figures: [Figure; 21] = [
        ("reads_total", "counter", "Parts of reads.", |s| s.reads),
        ("writes_total", "counter", "Parts of writes.", |s| s.writes),
        ("discards_total", "counter", "Parts of discards.", |s| s.discards),
        ("flushes_total", "counter", "Flushes.", |s| s.flushes),
        ("read_bytes_total", "counter", "Bytes read for clients.", |s| {
            s.read_bytes
        }),
        (
            "written_bytes_total",
            "counter",
            "Bytes written for clients.",
            |s| s.written_bytes,
        ),
        (
            "device_reads_total",
            "counter",
            "Reads of data sent to devices.",
            |s| s.device_reads,
        ),
        (
            "device_writes_total",
            "counter",
            "Writes of data sent to devices.",
            |s| s.device_writes,
        ),
        (
            "log_pages_total",
            "counter",
            "Log pages of 4096 bytes written.",
            |s| s.log_pages,
        ),
        ("log_used_bytes", "gauge", "Log ring in use.", |s| {
            s.log_used_bytes
        }),
        ("checkpoints_total", "counter", "Checkpoints made.", |s| {
            s.checkpoints
        }),
        (
            "map_misses_total",
            "counter",
            "Map pages read from devices.",
            |s| s.map_misses,
        ),
        (
            "map_cached_pages",
            "gauge",
            "Map pages of 4096 bytes in memory.",
            |s| s.map_pages_cached,
        ),
        (
            "corrupt_blocks_total",
            "counter",
            "Checksum mismatches seen, of a mirror on both sides.",
            |s| s.corrupt_blocks,
        ),
        (
            "repaired_blocks_total",
            "counter",
            "Blocks damaged on one side of a mirror and written again from the other.",
            |s| s.repaired_blocks,
        ),
        (
            "repair_failures_total",
            "counter",
            "Blocks damaged on one side of a mirror that could not be written again.",
            |s| s.repair_failures,
        ),
        ("device_errors_total", "counter", "Device errors seen.", |s| {
            s.device_errors
        }),
        (
            "stopped",
            "gauge",
            "1 if it stopped writing after a device error.",
            |s| u64::from(s.stopped),
        ),
        ("bytes", "gauge", "Room for data and maps.", |s| s.total_bytes),
        ("used_bytes", "gauge", "Of it, in use.", |s| s.used_bytes),
        (
            "pending_bytes",
            "gauge",
            "Of it, free with the next checkpoint.",
            |s| s.pending_bytes,
        ),
    ];
    for (name, kind, help, value) in figures {
        head(text, &format!("stillpoint_shard_{name}"), kind, help);
        for info in status.processors.iter().flat_map(|info| &info.shards) {
            // Names of pools are letters, digits, '.', '_' and '-': nothing to escape.
            let _ = writeln!(
                text,
                "stillpoint_shard_{name}{{pool=\"{}\",shard=\"{}\"}} {}",
                info.pool,
                info.shard,
                value(info)
            );
        }
    }
}

fn pools(text: &mut String, status: &model::StatusInfo) {
    type Figure = (&'static str, &'static str, fn(&model::PoolInfo) -> u64);
    let figures: [Figure; 5] = [
        ("stalled_devices", "Devices that do not answer.", |pool| {
            let devices = pool.devices.iter();
            devices.filter(|device| device.stalled_since_ns.is_some()).count() as u64
        }),
        ("lost_devices", "Devices that are gone or too small.", |pool| {
            let lost = pool
                .devices
                .iter()
                .filter(|device| device.lost_since_ns.is_some());
            lost.count() as u64
        }),
        (
            "failed",
            "1 if it is remembered and could not be opened.",
            |pool| u64::from(pool.state == "failed"),
        ),
        (
            "sides_not_in_sync",
            "Sides of mirrors that lack something.",
            |pool| {
                let behind = pool.sides.iter().filter(|side| side.state != "in_sync");
                behind.count() as u64
            },
        ),
        ("resync_left_bytes", "What sides of mirrors may lack.", |pool| {
            pool.sides.iter().map(|side| side.left_bytes).sum()
        }),
    ];
    for (name, help, value) in figures {
        head(text, &format!("stillpoint_pool_{name}"), "gauge", help);
        for pool in &status.pools {
            let _ = writeln!(
                text,
                "stillpoint_pool_{name}{{pool=\"{}\"}} {}",
                pool.name,
                value(pool)
            );
        }
    }
}

fn histograms(text: &mut String, all: &[Stages]) {
    let name = "stillpoint_stage_seconds";
    head(
        text,
        name,
        "histogram",
        "How long requests are in a stage of their way.",
    );
    for (processor, stage, work, histogram) in counted(all) {
        let labels = format!(
            "processor=\"{processor}\",kind=\"{}\",stage=\"{}\"",
            work.name(),
            stage.name()
        );
        let mut counted = histogram.counted().peekable();
        let (mut below, mut bound_ns) = (0, FIRST_BOUND_NS);
        while bound_ns <= LAST_BOUND_NS {
            while let Some((_, count)) = counted.next_if(|(end_ns, _)| *end_ns <= bound_ns) {
                below += count;
            }
            let _ = writeln!(
                text,
                "{name}_bucket{{{labels},le=\"{}\"}} {below}",
                seconds(bound_ns)
            );
            bound_ns *= 2;
        }
        let count = histogram.count();
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum{{{labels}}} {}", seconds(histogram.sum_ns()));
        let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
    }
}

/// Nanoseconds in seconds, exactly.
fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::FailedPool;
    use crate::error::Error;
    use crate::state::KnownPool;

    #[test]
    fn pools_say_what_they_have_lost() {
        let failed = FailedPool {
            given: false,
            known: KnownPool {
                name: "away".to_owned(),
                id: String::new(),
                devices: Vec::new(),
            },
            error: Error::failure("missing"),
            opening: false,
        };
        let away = Appliance::failed_info(&failed);
        let device = |lost_since_ns, stalled_since_ns| model::DeviceInfo {
            stalled_since_ns,
            pool_bytes: 0,
            unused_bytes: 0,
            path: "/dev/sda".to_owned(),
            kind: "block".to_owned(),
            size_bytes: 1 << 30,
            direct: true,
            polled: false,
            passthrough_refused: None,
            durable_writes: false,
            durable_writes_refused: None,
            lost_since_ns,
        };
        let side = |state: &str, left_bytes| model::MirrorSideInfo {
            device: 0,
            side: 0,
            path: None,
            state: state.to_owned(),
            why: None,
            since_ns: None,
            left_bytes,
            copied_bytes: 0,
            repaired_reads: 0,
        };
        let half = model::PoolInfo {
            name: "half".to_owned(),
            state: "device_lost".to_owned(),
            devices: vec![device(None, Some(5)), device(Some(7), None)],
            sides: vec![side("in_sync", 0), side("resync", 7), side("out", 5)],
            ..away.clone()
        };
        let status = model::StatusInfo {
            version: String::new(),
            pid: 1,
            uptime_ns: 0,
            listeners: Vec::new(),
            connections: 0,
            connection_limit: 0,
            connections_refused: 0,
            processors: Vec::new(),
            pools: vec![away, half],
        };
        let mut text = String::new();
        pools(&mut text, &status);
        for line in [
            "stillpoint_pool_lost_devices{pool=\"away\"} 0\n",
            "stillpoint_pool_lost_devices{pool=\"half\"} 1\n",
            "stillpoint_pool_stalled_devices{pool=\"away\"} 0\n",
            "stillpoint_pool_stalled_devices{pool=\"half\"} 1\n",
            "stillpoint_pool_failed{pool=\"away\"} 1\n",
            "stillpoint_pool_failed{pool=\"half\"} 0\n",
            "stillpoint_pool_sides_not_in_sync{pool=\"away\"} 0\n",
            "stillpoint_pool_sides_not_in_sync{pool=\"half\"} 2\n",
            "stillpoint_pool_resync_left_bytes{pool=\"half\"} 12\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn buckets_of_a_histogram_count_all_below_their_bound() {
        let mut stages = Stages::default();
        for ns in [500, 1_500, 1_500, 90_000_000_000] {
            stages.record(Stage::Device, Work::Read, 0, ns);
        }
        let mut text = String::new();
        histograms(&mut text, &[Stages::default(), stages]);
        let labels = "processor=\"1\",kind=\"read\",stage=\"device\"";
        for (bound, count) in [
            ("0.000001024", 1),
            ("0.000002048", 3),
            ("34.359738368", 3),
            ("+Inf", 4),
        ] {
            let line = format!("stillpoint_stage_seconds_bucket{{{labels},le=\"{bound}\"}} {count}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(!text.contains("le=\"68."), "what took longer is counted there");
        assert!(
            text.contains(&format!("_sum{{{labels}}} 90.000003500\n")),
            "{text}"
        );
        assert_eq!(
            text.matches("_count{").count(),
            1,
            "what was never counted is left out"
        );
    }
}
