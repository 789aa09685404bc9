//! `stillpoint inspect`

use crate::cli::{Global, InspectArguments};
use crate::exit::Failure;
use crate::output::{self, pairs, table, time};
use crate::size::Size;
use stillpoint_appliance::Error;
use stillpoint_appliance::daemon::TailDirectory;
use stillpoint_appliance::directories;
use stillpoint_appliance::inspect::{
    self, CheckInfo, Depth, InspectInfo, InspectOptions, ProblemInfo, RepairInfo,
};

/// Does what is asked. Damage that is left makes it fail.
pub fn run(arguments: InspectArguments, global: &Global) -> Result<(), Failure> {
    let checks = arguments.check || arguments.metadata_only || arguments.repair;
    let options = InspectOptions {
        devices: arguments.devices,
        depth: match (checks, arguments.metadata_only) {
            (false, _) => Depth::Structures,
            (true, true) => Depth::Metadata,
            (true, false) => Depth::Data,
        },
        repair: arguments.repair,
        accept_loss: arguments.accept_loss,
        degraded: arguments.degraded,
        tails: match arguments.tail_dir {
            None => TailDirectory::Chosen,
            Some(path) if path.as_os_str() == "none" => TailDirectory::None,
            Some(path) => TailDirectory::Given(path),
        },
        state_directory: arguments.state_dir.unwrap_or_else(directories::state_directory),
    };
    let info = inspect::inspect(&options)?;
    output::print(global, &info, show)?;
    match info.damage() {
        0 => Ok(()),
        1 => Err(Error::failure(format!("pool {} is damaged in one place", info.pool)).into()),
        count => Err(Error::failure(format!("pool {} is damaged in {count} places", info.pool)).into()),
    }
}

fn show(info: &InspectInfo) -> String {
    let mut text = pairs(&[
        ("pool", info.pool.clone()),
        ("id", info.id.clone()),
        ("made", time(info.created_ns)),
        ("format", format!("version {}", info.format)),
        ("log", format!("{} for each shard", Size(info.log_bytes))),
    ]);
    let devices = info.devices.iter().map(|device| {
        vec![
            device.path.clone(),
            device.kind.clone(),
            Size(device.size_bytes).to_string(),
            Size(device.slice_bytes).to_string(),
        ]
    });
    text += &format!(
        "\n\n{}",
        table(&["DEVICE", "KIND", ">SIZE", ">OF EACH SHARD"], devices)
    );
    text += &format!("\n\n{}", shards(info));
    if !info.volumes.is_empty() {
        let volumes = info.volumes.iter().map(|volume| {
            vec![
                volume.name.clone(),
                Size(volume.size_bytes).to_string(),
                Size(volume.block_bytes.into()).to_string(),
                Size(volume.object_bytes).to_string(),
                Size(volume.mapped_bytes).to_string(),
                output::list(&volume.snapshots),
            ]
        });
        let columns = ["VOLUME", ">SIZE", ">BLOCKS", ">OBJECTS", ">MAPPED", "SNAPSHOTS"];
        text += &format!("\n\n{}", table(&columns, volumes));
    }
    text += "\n";
    for note in &info.notes {
        text += &format!("\nnote: {note}");
    }
    if let Some(check) = &info.check {
        text += &show_check(check, info.repair.is_some());
    }
    if let Some(repair) = &info.repair {
        text += &show_repair(repair);
    }
    text
}

fn shards(info: &InspectInfo) -> String {
    let checked = info.check.is_some();
    let rows = info.shards.iter().map(|shard| {
        let mut row = vec![
            shard.shard.to_string(),
            shard.home.to_string(),
            if shard.readable {
                shard.generation.to_string()
            } else {
                "unreadable".to_owned()
            },
            time(shard.checkpoint_ns),
            Size(shard.used_bytes).to_string(),
            shard.shares.to_string(),
            shard.snapshots.to_string(),
            shard.log_records.to_string(),
            shard.tail_records.to_string(),
        ];
        if checked {
            row.push(shard.map_pages.to_string());
            row.push(shard.data_blocks.to_string());
            row.push(shard.verified_blocks.to_string());
        }
        row
    });
    let mut columns = vec![
        ">SHARD",
        ">HOME",
        ">CHECKPOINT",
        "MADE",
        ">USED",
        ">SHARES",
        ">SNAPSHOTS",
        ">LOG",
        ">TAIL",
    ];
    if checked {
        columns.extend([">MAP PAGES", ">BLOCKS", ">VERIFIED"]);
    }
    table(&columns, rows)
}

fn show_check(check: &CheckInfo, repaired: bool) -> String {
    let mut text = show_problems(&check.problems);
    for (kind, count) in &check.counts {
        text += &format!("\n{count} {}", kind.replace('_', " "));
    }
    if !repaired {
        for mend in &check.mends {
            let how = if mend.loses {
                "--repair --accept-loss"
            } else {
                "--repair"
            };
            text += &format!("\n{how}: {}", mend.what);
        }
    }
    text + match (check.clean, check.data) {
        (true, true) => "\ncheck: clean",
        (true, false) => "\ncheck: clean (data was not read)",
        (false, _) => "\ncheck: damaged",
    }
}

fn show_problems(problems: &[ProblemInfo]) -> String {
    let lines = problems.iter().map(|problem| {
        let word = if problem.damage { "damage" } else { "note" };
        match problem.shard {
            Some(shard) => format!("\n{word}: shard {shard}: {}", problem.message),
            None => format!("\n{word}: {}", problem.message),
        }
    });
    lines.collect()
}

fn show_repair(repair: &RepairInfo) -> String {
    let mut text = String::new();
    for done in &repair.done {
        text += &format!("\nrepaired: {done}");
    }
    if repair.done.is_empty() {
        text += "\nrepair: there was nothing to do";
    }
    text += &show_problems(&repair.left);
    if repair.left.iter().any(|problem| problem.damage) {
        text + "\nafter repair: damaged; this cannot be mended, or only with --accept-loss"
    } else {
        text + "\nafter repair: clean"
    }
}
