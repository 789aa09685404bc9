//! `stillpoint snapshot`

use crate::cli::{Global, SnapshotCommand};
use crate::client::{Client, escape, with_query};
use crate::exit::Failure;
use crate::output::{self, pairs, table};
use crate::size::{Duration, Size};
use crate::when::Until;
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{
    CreateSnapshot, DeleteSnapshots, IntermediateSnapshotInfo, LockSnapshot, SnapshotInfo,
};

/// Does what is asked.
pub fn run(command: SnapshotCommand, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    match command {
        SnapshotCommand::Create {
            snapshot,
            name,
            pool,
            hold_limit,
        } => {
            let (volumes, name) = what_to_take(&snapshot, name)?;
            let hold_limit_ns = hold_limit.map(|Duration(ns)| ns);
            let request = CreateSnapshot {
                volumes,
                name,
                pool,
                hold_limit_ns,
            };
            let info: SnapshotInfo = client.post("/v1/snapshots", &request)?;
            output::print(global, &info, show)
        }
        SnapshotCommand::List { volume, pool } => {
            let parameters = [("volume", volume.as_deref()), ("pool", pool.as_deref())];
            let infos: Vec<SnapshotInfo> = client.get(&with_query("/v1/snapshots", &parameters))?;
            output::print(global, &infos, |infos| list(infos))
        }
        SnapshotCommand::Show { snapshot, pool } => {
            let info: SnapshotInfo = client.get(&path(&snapshot, pool.as_deref()))?;
            output::print(global, &info, show)
        }
        SnapshotCommand::Lock {
            snapshot,
            until,
            pool,
        } => {
            let (until_ns, for_ns) = match until {
                Until::At(ns) => (Some(ns), None),
                Until::For(ns) => (None, Some(ns)),
            };
            let lock = with_query(
                &format!("/v1/snapshots/{}/lock", escape(&snapshot)),
                &[("pool", pool.as_deref())],
            );
            let info: SnapshotInfo = client.post(&lock, &LockSnapshot { until_ns, for_ns })?;
            output::print(global, &info, |info| {
                format!(
                    "snapshot {snapshot} is locked until {}",
                    output::time(info.locked_until_ns)
                )
            })
        }
        SnapshotCommand::Changes { from, to, pool } => {
            let parameters = [("to", to.as_deref()), ("pool", pool.as_deref())];
            let path = format!("/v1/snapshots/{}/changes", escape(&from));
            super::changes::run(&client, &with_query(&path, &parameters), global)
        }
        SnapshotCommand::Delete {
            snapshots,
            defer,
            wait,
            pool,
        } => {
            let request = DeleteSnapshots {
                snapshots,
                pool,
                defer,
            };
            super::deletion::run(&client, global, &request, wait)
        }
    }
}

fn path(snapshot: &str, pool: Option<&str>) -> String {
    with_query(&format!("/v1/snapshots/{}", escape(snapshot)), &[("pool", pool)])
}

/// The volumes and the name: from `volume@name`, or from `volume,volume` and `--name`.
fn what_to_take(snapshot: &str, name: Option<String>) -> Result<(Vec<String>, String), Error> {
    let (volumes, name) = match (snapshot.split_once('@'), name) {
        (Some((volumes, name)), None) => (volumes, name.to_owned()),
        (None, Some(name)) => (snapshot, name),
        (Some(_), Some(_)) => {
            return Err(Error::usage(
                "the name of the snapshot is given twice: after the @ and with --name",
            ));
        }
        (None, None) => {
            return Err(Error::usage(format!("{snapshot} has no name for the snapshot"))
                .hint("write volume@name, or give --name"));
        }
    };
    Ok((volumes.split(',').map(ToOwned::to_owned).collect(), name))
}

fn list(infos: &[SnapshotInfo]) -> String {
    let rows = infos.iter().map(|info| {
        vec![
            info.name.clone(),
            info.pool.clone(),
            output::time(info.time_stamp_ns),
            Size(info.volumes.iter().map(|volume| volume.size_bytes).sum()).to_string(),
            info.volumes.len().to_string(),
            Duration(info.hold_ns_max).to_string(),
            info.answers_held.to_string(),
            Duration(info.answer_held_ns_max).to_string(),
            Duration(info.durable_ns).to_string(),
            output::time(info.locked_until_ns),
        ]
    });
    let columns = [
        "NAME",
        "POOL",
        "TAKEN",
        ">SIZE",
        ">VOLUMES",
        ">HOLD",
        ">ANSWERS HELD",
        ">LONGEST",
        ">DURABLE IN",
        "LOCKED UNTIL",
    ];
    table(&columns, rows)
}

fn show(info: &SnapshotInfo) -> String {
    let volumes: Vec<String> = info
        .volumes
        .iter()
        .map(|volume| format!("{} ({})", volume.name, Size(volume.size_bytes)))
        .collect();
    let text = pairs(&[
        ("overall snapshot", info.name.clone()),
        ("pool", info.pool.clone()),
        ("number", info.id.to_string()),
        ("volumes", output::list(&volumes)),
        ("time stamp", output::time(info.time_stamp_ns)),
        ("locked until", output::time(info.locked_until_ns)),
        (
            "schedule",
            info.schedule.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        ("command to durable", Duration(info.durable_ns).to_string()),
        ("answers held", info.answers_held.to_string()),
        (
            "longest hold of an answer",
            Duration(info.answer_held_ns_max).to_string(),
        ),
        ("written to logs", known(info.log_bytes)),
        ("written to metadata", known(info.metadata_bytes)),
    ]);
    let holds = info.holds.iter().map(|hold| {
        vec![
            hold.shard.to_string(),
            Duration(hold.hold_ns).to_string(),
            hold.answers_held.to_string(),
            Duration(hold.answer_held_ns_max).to_string(),
        ]
    });
    let holds = table(&[">SHARD", ">HOLD", ">ANSWERS HELD", ">LONGEST"], holds);
    let intermediate = info.intermediate_snapshots.iter().map(|found| {
        vec![
            found.volume.clone(),
            found.shard.to_string(),
            found.processor.to_string(),
            objects(found),
            found.point_in_time_copy.epoch.to_string(),
            Size(found.point_in_time_copy.mapped_bytes).to_string(),
            found.change_log.blocks.to_string(),
            Size(found.change_log.bytes).to_string(),
            output::time(found.change_log.first_change_ns),
            output::time(found.change_log.last_change_ns),
        ]
    });
    let columns = [
        "VOLUME",
        ">SHARD",
        ">PROCESSOR",
        "OBJECTS",
        ">EPOCH",
        ">POINT-IN-TIME COPY",
        ">CHANGED BLOCKS",
        ">CHANGE LOG",
        "FIRST CHANGE",
        "LAST CHANGE",
    ];
    format!("{text}\n\n{holds}\n\n{}", table(&columns, intermediate))
}

/// A size, if it is known.
fn known(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        bytes => Size(bytes).to_string(),
    }
}

/// How many objects, and which: "8 (1, 3 ... 15)".
fn objects(part: &IntermediateSnapshotInfo) -> String {
    let (first, step) = (part.first_object, part.object_step);
    let last = first + part.objects.saturating_sub(1) * step;
    match part.objects {
        0 => "0".to_owned(),
        1 => format!("1 ({first})"),
        2 => format!("2 ({first}, {last})"),
        count => format!("{count} ({first}, {} ... {last})", first + step),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_after_the_at_or_by_an_option() {
        let one = what_to_take("vol@monday", None).expect("a name");
        assert_eq!(one, (vec!["vol".to_owned()], "monday".to_owned()));
        let two = what_to_take("a,b", Some("monday".to_owned())).expect("a name");
        assert_eq!(two, (vec!["a".to_owned(), "b".to_owned()], "monday".to_owned()));
        assert!(what_to_take("vol", None).is_err());
        assert!(what_to_take("vol@a", Some("b".to_owned())).is_err());
    }
}
