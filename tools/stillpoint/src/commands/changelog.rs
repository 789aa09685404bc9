//! `stillpoint changelog`

use crate::cli::{ChangelogCommand, Global};
use crate::client::{Client, escape, with_query};
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::Size;
use stillpoint_appliance::api::model::{ChangeLogVolumeInfo, CreateChangeLog, ResizeChangeLog};

/// Does what is asked.
pub fn run(command: ChangelogCommand, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    match command {
        ChangelogCommand::Create {
            name,
            size,
            device,
            when_full,
            pool,
        } => {
            let request = CreateChangeLog {
                name,
                size_bytes: size.0,
                pool,
                devices: device.iter().map(|path| path.display().to_string()).collect(),
                when_full: Some(when_full),
            };
            let info: ChangeLogVolumeInfo = client.post("/v1/changelogs", &request)?;
            output::print(global, &info, show)
        }
        ChangelogCommand::List { pool } => {
            let path = with_query("/v1/changelogs", &[("pool", pool.as_deref())]);
            let infos: Vec<ChangeLogVolumeInfo> = client.get(&path)?;
            output::print(global, &infos, |infos| list(infos))
        }
        ChangelogCommand::Show { name, pool } => {
            let info: ChangeLogVolumeInfo = client.get(&path(&name, "", pool.as_deref()))?;
            output::print(global, &info, show)
        }
        ChangelogCommand::Resize { name, size, pool } => {
            let request = ResizeChangeLog { size_bytes: size.0 };
            let info: ChangeLogVolumeInfo =
                client.post(&path(&name, "/resize", pool.as_deref()), &request)?;
            output::print(global, &info, show)
        }
        ChangelogCommand::Delete { name, pool } => {
            client.delete(&path(&name, "", pool.as_deref()))?;
            output::say(global, &format!("change log volume {name} is deleted"))
        }
    }
}

fn path(name: &str, action: &str, pool: Option<&str>) -> String {
    with_query(
        &format!("/v1/changelogs/{}{action}", escape(name)),
        &[("pool", pool)],
    )
}

fn percent(used_bytes: u64, of_bytes: u64) -> String {
    let percent = u128::from(used_bytes) * 100 / u128::from(of_bytes.max(1));
    format!("{percent}%")
}

fn list(infos: &[ChangeLogVolumeInfo]) -> String {
    let rows = infos.iter().map(|info| {
        vec![
            info.name.clone(),
            info.pool.clone(),
            Size(info.size_bytes).to_string(),
            Size(info.used_bytes).to_string(),
            percent(info.used_bytes, info.size_bytes),
            info.when_full.clone(),
            output::list(&info.volumes),
        ]
    });
    table(
        &["NAME", "POOL", ">SIZE", ">USED", ">FULL", "WHEN FULL", "VOLUMES"],
        rows,
    )
}

fn show(info: &ChangeLogVolumeInfo) -> String {
    let text = pairs(&[
        ("name", info.name.clone()),
        ("pool", info.pool.clone()),
        ("size", Size(info.size_bytes).to_string()),
        ("used", Size(info.used_bytes).to_string()),
        ("when full", info.when_full.clone()),
        ("devices", output::list(&info.devices)),
        ("volumes", output::list(&info.volumes)),
        ("created", output::time(info.created_ns)),
    ]);
    let shards = info.shards.iter().map(|shard| {
        vec![
            shard.shard.to_string(),
            shard.processor.to_string(),
            Size(shard.limit_bytes).to_string(),
            Size(shard.used_bytes).to_string(),
            percent(shard.used_bytes, shard.limit_bytes),
            shard.waiting.to_string(),
            Size(shard.elsewhere_bytes).to_string(),
        ]
    });
    let columns = [
        ">SHARD",
        ">PROCESSOR",
        ">SIZE",
        ">USED",
        ">FULL",
        ">WAITING",
        ">ELSEWHERE",
    ];
    format!("{text}\n\n{}", table(&columns, shards))
}
