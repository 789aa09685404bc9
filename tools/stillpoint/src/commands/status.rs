//! `stillpoint status`

use crate::cli::Global;
use crate::client::Client;
use crate::commands::pool;
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::{Duration, Size};
use stillpoint_appliance::api::model::{ProcessorInfo, StatusInfo};

/// Does what is asked.
pub fn run(global: &Global) -> Result<(), Failure> {
    let info: StatusInfo = Client::new(global).get("/v1/status")?;
    output::print(global, &info, show)
}

fn show(info: &StatusInfo) -> String {
    let head = pairs(&[
        ("version", info.version.clone()),
        ("process", info.pid.to_string()),
        ("running for", Duration(info.uptime_ns).to_string()),
        ("NBD", output::list(&info.listeners)),
        (
            "connections",
            format!("{} of {}", info.connections, info.connection_limit),
        ),
    ]);
    let parts = [
        head,
        processors(&info.processors),
        shards(&info.processors),
        pool::list(&info.pools),
    ];
    parts.join("\n\n")
}

fn processors(infos: &[ProcessorInfo]) -> String {
    let rows = infos.iter().map(|info| {
        vec![
            info.processor.to_string(),
            info.core
                .map_or_else(|| "not pinned".to_owned(), |core| core.to_string()),
            info.shards.len().to_string(),
            info.sessions.to_string(),
            info.requests.to_string(),
            info.forwarded.to_string(),
            info.sleeps.to_string(),
            info.ring_enters.to_string(),
            format!("{} of {}", Size(info.buffer_bytes_used), Size(info.buffer_bytes)),
            info.buffer_memory.clone(),
        ]
    });
    let columns = [
        ">PROCESSOR",
        ">CORE",
        ">SHARDS",
        ">SESSIONS",
        ">REQUESTS",
        ">FOR OTHERS",
        ">SLEEPS",
        ">SYSTEM CALLS",
        ">BUFFERS",
        "MEMORY",
    ];
    table(&columns, rows)
}

fn shards(infos: &[ProcessorInfo]) -> String {
    let work = |reads: u64, writes: u64| reads + writes;
    let total: u64 = infos
        .iter()
        .flat_map(|info| &info.shards)
        .map(|shard| work(shard.reads, shard.writes))
        .sum();
    let rows = infos.iter().flat_map(|info| {
        info.shards.iter().map(move |shard| {
            let share = match total {
                0 => "-".to_owned(),
                _ => format!(
                    "{:.1}",
                    work(shard.reads, shard.writes) as f64 * 100.0 / total as f64
                ),
            };
            vec![
                shard.pool.clone(),
                shard.shard.to_string(),
                info.processor.to_string(),
                share,
                shard.reads.to_string(),
                Size(shard.read_bytes).to_string(),
                shard.writes.to_string(),
                Size(shard.written_bytes).to_string(),
                shard.device_writes.to_string(),
                shard.flushes.to_string(),
                shard.checkpoints.to_string(),
                (shard.corrupt_blocks + shard.device_errors).to_string(),
                if shard.stopped { "stopped" } else { "ok" }.to_owned(),
            ]
        })
    });
    let columns = [
        "POOL",
        ">SHARD",
        ">PROCESSOR",
        ">% OF WORK",
        ">READS",
        ">READ",
        ">WRITES",
        ">WRITTEN",
        ">DEVICE WRITES",
        ">FLUSHES",
        ">CHECKPOINTS",
        ">ERRORS",
        "STATE",
    ];
    table(&columns, rows)
}
