//! `stillpoint pool`

use std::path::{Path, PathBuf};

use crate::cli::{Global, PoolCommand};
use crate::client::{Client, escape};
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::{Duration, Size};
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{
    CreatePool, DeviceInfo, MirrorSideInfo, OpenPool, PoolInfo, ReplaceDevice, ResumeScrub, ResyncPool,
    ScrubInfo, ScrubPool,
};

/// Does what is asked.
pub fn run(command: PoolCommand, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    match command {
        PoolCommand::Create {
            name,
            devices,
            size,
            shards,
            mirror,
            force,
        } => {
            let size_bytes = size.map(|Size(bytes)| bytes);
            let request = CreatePool {
                name,
                devices: absolute(&devices)?,
                size_bytes,
                shards,
                mirror,
                force: false,
                force_devices: absolute(&force)?,
            };
            let info: PoolInfo = client.post("/v1/pools", &request)?;
            output::print(global, &info, show)
        }
        PoolCommand::Open { devices, degraded } => {
            let request = OpenPool {
                devices: absolute(&devices)?,
                degraded,
            };
            let info: PoolInfo = client.post("/v1/pools/open", &request)?;
            output::print(global, &info, show)
        }
        PoolCommand::Replace {
            name,
            device,
            with,
            force,
            wait,
        } => {
            let request = ReplaceDevice {
                device: match device.contains('/') {
                    true => absolute(&[PathBuf::from(device)])?.remove(0),
                    false => device,
                },
                with: absolute(&[with])?.remove(0),
                force,
            };
            let info = client.post(&format!("/v1/pools/{}/replace", escape(&name)), &request)?;
            resynced(&client, global, info, wait)
        }
        PoolCommand::Resync { name, rate, wait } => {
            let request = ResyncPool {
                rate_bytes_per_s: rate.map(|Size(bytes)| bytes),
            };
            let info = client.post(&format!("/v1/pools/{}/resync", escape(&name)), &request)?;
            resynced(&client, global, info, wait)
        }
        PoolCommand::List => {
            let infos: Vec<PoolInfo> = client.get("/v1/pools")?;
            output::print(global, &infos, |infos| list(infos))
        }
        PoolCommand::Show { name } => {
            let info: PoolInfo = client.get(&format!("/v1/pools/{}", escape(&name)))?;
            output::print(global, &info, show)
        }
        PoolCommand::Scrub {
            name,
            rate,
            wait,
            pause,
            resume,
            stop,
            status,
        } => {
            let rate_bytes_per_s = rate.map(|Size(bytes)| bytes);
            let wanted = match (pause, resume, stop, status) {
                (true, ..) => Wanted::Pause,
                (_, true, ..) => Wanted::Resume(ResumeScrub { rate_bytes_per_s }),
                (_, _, true, _) => Wanted::Stop,
                (_, _, _, true) => Wanted::Status,
                _ => Wanted::Begin(ScrubPool { rate_bytes_per_s }),
            };
            scrub(&client, global, &name, &wanted, wait)
        }
        PoolCommand::Close { name } => {
            client.post::<()>(&format!("/v1/pools/{}/close", escape(&name)), &())?;
            output::say(global, &format!("pool {name} is closed"))
        }
    }
}

/// How often a scrub that is waited for is looked at.
const GLANCE: std::time::Duration = std::time::Duration::from_millis(200);

/// Shows a pool whose sides are given what they lack; waits for that if asked to.
fn resynced(client: &Client, global: &Global, mut info: PoolInfo, wait: bool) -> Result<(), Failure> {
    let path = format!("/v1/pools/{}", escape(&info.name));
    while wait && info.sides.iter().any(|side| side.state == "resync") {
        std::thread::sleep(GLANCE);
        info = client.get(&path)?;
    }
    output::print(global, &info, show)?;
    match info.sides.iter().find(|side| side.state == "out") {
        Some(side) if wait => {
            let why = side.why.as_deref().unwrap_or("?");
            let message = format!(
                "pool {}: side {}.{} is out: {why}",
                info.name, side.device, side.side
            );
            Err(Error::failure(message).into())
        }
        _ => Ok(()),
    }
}

/// What is to be done about a scrub.
enum Wanted {
    Begin(ScrubPool),
    Pause,
    Resume(ResumeScrub),
    Stop,
    Status,
}

fn scrub(client: &Client, global: &Global, name: &str, wanted: &Wanted, wait: bool) -> Result<(), Failure> {
    let path = format!("/v1/pools/{}", escape(name));
    let mut info: PoolInfo = match wanted {
        Wanted::Begin(request) => client.post(&format!("{path}/scrub"), request)?,
        Wanted::Pause => client.post(&format!("{path}/scrub/pause"), &())?,
        Wanted::Resume(request) => client.post(&format!("{path}/scrub/resume"), request)?,
        Wanted::Stop => {
            client.delete(&format!("{path}/scrub"))?;
            client.get(&path)?
        }
        Wanted::Status => client.get(&path)?,
    };
    while wait && info.scrub.as_ref().is_some_and(|scrub| scrub.state == "running") {
        std::thread::sleep(GLANCE);
        info = client.get(&path)?;
    }
    match wanted {
        Wanted::Status => output::print(global, &info.scrub, |scrub| match scrub {
            Some(scrub) => show_scrub(scrub),
            None => format!("pool {name} was never scrubbed"),
        })?,
        _ => output::print(global, &info, show)?,
    }
    match info.scrub.map_or(0, |scrub| scrub.damaged_blocks) {
        0 => Ok(()),
        blocks if wait => Err(Error::failure(format!("pool {name} has {blocks} damaged blocks")).into()),
        _ => Ok(()),
    }
}

/// The daemon has a working directory of its own.
fn absolute(paths: &[PathBuf]) -> Result<Vec<String>, Error> {
    let path = |path: &PathBuf| -> Result<String, Error> {
        let absolute = std::path::absolute(path)
            .map_err(|error| Error::usage(format!("{}: {error}", path.display())))?;
        absolute
            .to_str()
            .map(ToOwned::to_owned)
            .ok_or_else(|| not_text(path))
    };
    paths.iter().map(path).collect()
}

fn not_text(path: &Path) -> Error {
    Error::usage(format!(
        "{}: the name of a device has to be UTF-8",
        path.display()
    ))
}

/// A table of pools.
pub fn list(infos: &[PoolInfo]) -> String {
    let rows = infos.iter().map(|info| {
        vec![
            info.name.clone(),
            info.state.clone(),
            Size(info.total_bytes).to_string(),
            Size(info.used_bytes).to_string(),
            percent(info.used_bytes, info.total_bytes),
            info.volumes.to_string(),
            info.snapshots.to_string(),
            info.shards.to_string(),
            info.devices.len().to_string(),
        ]
    });
    table(
        &[
            "NAME",
            "STATE",
            ">SIZE",
            ">USED",
            ">%",
            ">VOLUMES",
            ">SNAPSHOTS",
            ">SHARDS",
            ">DEVICES",
        ],
        rows,
    )
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        "-".to_owned()
    } else {
        format!("{:.1}", part as f64 * 100.0 / whole as f64)
    }
}

fn show(info: &PoolInfo) -> String {
    let mut text = pairs(&[
        ("name", info.name.clone()),
        ("state", info.state.clone()),
        ("id", info.id.clone()),
        ("size", Size(info.total_bytes).to_string()),
        (
            "used",
            format!(
                "{} ({}%)",
                Size(info.used_bytes),
                percent(info.used_bytes, info.total_bytes)
            ),
        ),
        ("free soon", Size(info.pending_bytes).to_string()),
        ("volumes", info.volumes.to_string()),
        ("snapshots", info.snapshots.to_string()),
        ("shards", info.shards.to_string()),
        ("opened in", Duration(info.recovery_ns).to_string()),
    ]);
    if let Some(error) = &info.error {
        text += &format!("\nerror      {error}");
    }
    let devices = info.devices.iter().map(|device| {
        let direct = if device.direct { "yes" } else { "no" };
        vec![
            device.path.clone(),
            match device.polled {
                true => format!("{}, polled", device.kind),
                false => device.kind.clone(),
            },
            Size(device.size_bytes).to_string(),
            direct.to_owned(),
            device_state(device),
        ]
    });
    text += &format!(
        "\n\n{}",
        table(&["DEVICE", "KIND", ">SIZE", "DIRECT I/O", "STATE"], devices)
    );
    if !info.sides.is_empty() {
        text += &format!("\n\n{}", sides(&info.sides));
    }
    for remark in &info.remarks {
        text += &format!("\nremark: {remark}");
    }
    if let Some(scrub) = &info.scrub {
        text += &format!("\n\n{}", show_scrub(scrub));
    }
    text
}

fn device_state(device: &DeviceInfo) -> String {
    match device.lost_since_ns.map(output::time) {
        Some(since) if device.size_bytes < device.pool_bytes => {
            format!("too small since {since}: {} are needed", Size(device.pool_bytes))
        }
        Some(since) => format!("gone since {since}"),
        None if let Some(since) = device.stalled_since_ns.map(output::time) => {
            format!("does not answer since {since}")
        }
        None if device.unused_bytes > 0 => format!("there, {} unused", Size(device.unused_bytes)),
        None => "there".to_owned(),
    }
}

/// The sides of a pool's mirrors.
fn sides(infos: &[MirrorSideInfo]) -> String {
    let rows = infos.iter().map(|side| {
        let state = match side.state.as_str() {
            "in_sync" => "in sync".to_owned(),
            "resync" => format!("resync, {} left", Size(side.left_bytes)),
            other => other.to_owned(),
        };
        vec![
            format!("{}.{}", side.device, side.side),
            side.path.clone().unwrap_or_else(|| "-".to_owned()),
            state,
            Size(side.copied_bytes).to_string(),
            side.repaired_reads.to_string(),
            side.why.clone().unwrap_or_default(),
        ]
    });
    table(&["SIDE", "DEVICE", "STATE", ">COPIED", ">REPAIRED", "WHY"], rows)
}

/// How a scrub stands, or its report.
fn show_scrub(scrub: &ScrubInfo) -> String {
    let ended = match scrub.ended_ns {
        0 => "not yet".to_owned(),
        ended_ns => output::time(ended_ns),
    };
    let mut text = pairs(&[
        ("scrub", scrub.state.clone()),
        ("begun", output::time(scrub.started_ns)),
        ("ended", ended),
        (
            "checked",
            format!(
                "{} of about {} in {}, {}/s (at most {}/s)",
                Size(scrub.checked_bytes),
                Size(scrub.used_bytes),
                Duration(scrub.running_ns),
                Size(scrub.checked_bytes_per_s),
                Size(scrub.rate_bytes_per_s),
            ),
        ),
        ("damaged", blocks(scrub.damaged_blocks)),
    ]);
    for side in &scrub.sides {
        text += &format!(
            "\n{}: {} read, {} repaired, {} not repairable",
            side.side,
            Size(side.read_bytes),
            blocks(side.repaired_blocks),
            side.unrepaired_blocks,
        );
    }
    for damage in &scrub.damage {
        text += &format!("\ndamaged: {damage}");
    }
    text
}

fn blocks(count: u64) -> String {
    match count {
        1 => "1 block".to_owned(),
        count => format!("{count} blocks"),
    }
}
