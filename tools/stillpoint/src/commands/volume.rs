//! `stillpoint volume`

use crate::cli::{Global, VolumeCommand};
use crate::client::{Client, escape, with_query};
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::Size;
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{
    CloneVolume, CreateVolume, ResizeVolume, RollbackVolume, SetVolume, SnapshotInfo, VolumeInfo,
};

/// Does what is asked.
pub fn run(command: VolumeCommand, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    match command {
        VolumeCommand::Create {
            name,
            size,
            pool,
            block_size,
            object_size,
            change_log,
        } => {
            let block_bytes = block_size.map(block_bytes).transpose()?;
            let object_bytes = object_size.map(|Size(bytes)| bytes);
            let request = CreateVolume {
                name,
                size_bytes: size.0,
                pool,
                block_bytes,
                object_bytes,
                change_log,
            };
            let info: VolumeInfo = client.post("/v1/volumes", &request)?;
            output::print(global, &info, show)
        }
        VolumeCommand::List { pool } => {
            let infos: Vec<VolumeInfo> =
                client.get(&with_query("/v1/volumes", &[("pool", pool.as_deref())]))?;
            output::print(global, &infos, |infos| list(infos))
        }
        VolumeCommand::Show { name, pool } => {
            let info: VolumeInfo = client.get(&path(&name, "", pool.as_deref()))?;
            output::print(global, &info, show)
        }
        VolumeCommand::Resize {
            name,
            size,
            pool,
            force,
        } => {
            let request = ResizeVolume {
                size_bytes: size.0,
                force,
            };
            let info: VolumeInfo = client.post(&path(&name, "/resize", pool.as_deref()), &request)?;
            output::print(global, &info, show)
        }
        VolumeCommand::Set {
            name,
            change_log,
            pool,
        } => {
            let request = SetVolume {
                change_log: Some(change_log).filter(|name| name != "none"),
            };
            let info: VolumeInfo = client.post(&path(&name, "/set", pool.as_deref()), &request)?;
            output::print(global, &info, show)
        }
        VolumeCommand::Clone { snapshot, name, pool } => {
            let (volume, snapshot) = split(&snapshot)?;
            let request = CloneVolume { snapshot, name };
            let info: VolumeInfo = client.post(&path(&volume, "/clone", pool.as_deref()), &request)?;
            output::print(global, &info, show)
        }
        VolumeCommand::Promote { name, pool } => {
            let info: VolumeInfo = client.post(&path(&name, "/promote", pool.as_deref()), &())?;
            output::print(global, &info, show)
        }
        VolumeCommand::Rollback {
            snapshot,
            pool,
            force,
            safety_name,
        } => {
            let (volume, name) = split(&snapshot)?;
            let request = RollbackVolume {
                snapshot: name,
                force,
                safety_name,
            };
            let safety: SnapshotInfo = client.post(&path(&volume, "/rollback", pool.as_deref()), &request)?;
            output::print(global, &safety, |safety| {
                format!(
                    "volume {volume} is what it was at {snapshot}; what it was before is {}\n",
                    safety.name
                )
            })
        }
        VolumeCommand::Delete {
            name,
            pool,
            with_snapshots,
        } => {
            let path = with_query(
                &format!("/v1/volumes/{}", escape(&name)),
                &[
                    ("pool", pool.as_deref()),
                    ("with_snapshots", with_snapshots.then_some("true")),
                ],
            );
            client.delete(&path)?;
            output::say(
                global,
                &format!("volume {name} is deleted; its space comes free in the background"),
            )
        }
    }
}

fn path(name: &str, action: &str, pool: Option<&str>) -> String {
    with_query(
        &format!("/v1/volumes/{}{action}", escape(name)),
        &[("pool", pool)],
    )
}

/// The volume and the name of `volume@name`.
fn split(snapshot: &str) -> Result<(String, String), Error> {
    match snapshot.split_once('@') {
        Some((volume, name)) => Ok((volume.to_owned(), name.to_owned())),
        None => {
            Err(Error::usage(format!("{snapshot} is a volume")).hint("a snapshot is written volume@name"))
        }
    }
}

fn block_bytes(size: Size) -> Result<u32, Error> {
    u32::try_from(size.0)
        .map_err(|_| Error::usage(format!("block size {}: only 512 and 4096 are possible", size.0)))
}

fn list(infos: &[VolumeInfo]) -> String {
    let rows = infos.iter().map(|info| {
        vec![
            info.name.clone(),
            info.pool.clone(),
            Size(info.size_bytes).to_string(),
            Size(info.mapped_bytes).to_string(),
            info.snapshots.len().to_string(),
            output::list(&info.exports),
        ]
    });
    table(
        &["NAME", "POOL", ">SIZE", ">MAPPED", ">SNAPSHOTS", "EXPORTS"],
        rows,
    )
}

fn show(info: &VolumeInfo) -> String {
    let text = pairs(&[
        ("name", info.name.clone()),
        ("pool", info.pool.clone()),
        ("size", Size(info.size_bytes).to_string()),
        ("mapped", Size(info.mapped_bytes).to_string()),
        ("block size", Size(u64::from(info.block_bytes)).to_string()),
        ("object size", Size(info.object_bytes).to_string()),
        ("created", output::time(info.created_ns)),
        (
            "clone of",
            info.origin.clone().unwrap_or_else(|| String::from("-")),
        ),
        (
            "change log",
            info.change_log.clone().unwrap_or_else(|| String::from("-")),
        ),
        ("snapshots", output::list(&info.snapshots)),
        ("exports", output::list(&info.exports)),
    ]);
    let shares = info.shares.iter().map(|share| {
        vec![
            share.shard.to_string(),
            share.processor.to_string(),
            share.objects.to_string(),
            Size(share.share_bytes).to_string(),
            Size(share.mapped_bytes).to_string(),
            share.epoch.to_string(),
        ]
    });
    let columns = [">SHARD", ">PROCESSOR", ">OBJECTS", ">SHARE", ">MAPPED", ">EPOCH"];
    format!("{text}\n\n{}", table(&columns, shares))
}
