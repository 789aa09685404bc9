//! `stillpoint pool`

use std::path::{Path, PathBuf};

use crate::cli::{Global, PoolCommand};
use crate::client::{Client, escape};
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::{Duration, Size};
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{CreatePool, OpenPool, PoolInfo, ScrubPool};

/// Does what is asked.
pub fn run(command: PoolCommand, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    match command {
        PoolCommand::Create {
            name,
            devices,
            size,
            shards,
            force,
        } => {
            let size_bytes = size.map(|Size(bytes)| bytes);
            let request = CreatePool {
                name,
                devices: absolute(&devices)?,
                size_bytes,
                shards,
                force: false,
                force_devices: absolute(&force)?,
            };
            let info: PoolInfo = client.post("/v1/pools", &request)?;
            output::print(global, &info, show)
        }
        PoolCommand::Open { devices } => {
            let request = OpenPool {
                devices: absolute(&devices)?,
            };
            let info: PoolInfo = client.post("/v1/pools/open", &request)?;
            output::print(global, &info, show)
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
            stop,
        } => scrub(&client, global, &name, rate, wait, stop),
        PoolCommand::Close { name } => {
            client.post::<()>(&format!("/v1/pools/{}/close", escape(&name)), &())?;
            output::say(global, &format!("pool {name} is closed"))
        }
    }
}

/// How often a scrub that is waited for is looked at.
const GLANCE: std::time::Duration = std::time::Duration::from_millis(200);

fn scrub(
    client: &Client,
    global: &Global,
    name: &str,
    rate: Option<Size>,
    wait: bool,
    stop: bool,
) -> Result<(), Failure> {
    let path = format!("/v1/pools/{}", escape(name));
    if stop {
        client.delete(&format!("{path}/scrub"))?;
        return output::print(global, &client.get::<PoolInfo>(&path)?, show);
    }
    let request = ScrubPool {
        rate_bytes_per_s: rate.map(|Size(bytes)| bytes),
    };
    let mut info: PoolInfo = client.post(&format!("{path}/scrub"), &request)?;
    while wait && info.scrub.as_ref().is_some_and(|scrub| scrub.state == "running") {
        std::thread::sleep(GLANCE);
        info = client.get(&path)?;
    }
    output::print(global, &info, show)?;
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
        ]
    });
    text += &format!(
        "\n\n{}",
        table(&["DEVICE", "KIND", ">SIZE", "DIRECT I/O"], devices)
    );
    for remark in &info.remarks {
        text += &format!("\nremark: {remark}");
    }
    if let Some(scrub) = &info.scrub {
        text += &format!(
            "\nscrub: {}, begun {}, {} of about {} checked, {} damaged",
            scrub.state,
            output::time(scrub.started_ns),
            Size(scrub.checked_bytes),
            Size(scrub.used_bytes),
            match scrub.damaged_blocks {
                1 => "1 block".to_owned(),
                blocks => format!("{blocks} blocks"),
            }
        );
        for damage in &scrub.damage {
            text += &format!("\ndamaged: {damage}");
        }
    }
    text
}
