//! `stillpoint schedule`

use crate::cli::{Global, ScheduleCommand};
use crate::client::{Client, escape, with_query};
use crate::exit::Failure;
use crate::keep::keep_text;
use crate::output::{self, pairs, table};
use crate::size::Duration;
use crate::when::Period;
use stillpoint_appliance::api::model::{CreateSchedule, ScheduleInfo, SnapshotInfo};

/// Does what is asked.
pub fn run(command: ScheduleCommand, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    match command {
        ScheduleCommand::Create {
            name,
            volumes,
            every,
            cron,
            time_zone,
            keep,
            hold_limit,
            pool,
        } => {
            let request = CreateSchedule {
                name,
                volumes,
                pool,
                every_ns: every.map(|Period(ns)| ns),
                cron,
                time_zone,
                keep,
                hold_limit_ns: hold_limit.map(|Duration(ns)| ns),
            };
            let info: ScheduleInfo = client.post("/v1/schedules", &request)?;
            output::print(global, &info, |info| show(info, false))
        }
        ScheduleCommand::List { pool } => {
            let infos: Vec<ScheduleInfo> =
                client.get(&with_query("/v1/schedules", &[("pool", pool.as_deref())]))?;
            output::print(global, &infos, |infos| list(infos))
        }
        ScheduleCommand::Show { name, pool, verbose } => {
            let info: ScheduleInfo = client.get(&path(&name, "", pool.as_deref()))?;
            output::print(global, &info, |info| show(info, verbose))
        }
        ScheduleCommand::Pause { name, pool } => {
            let _: ScheduleInfo = client.post(&path(&name, "/pause", pool.as_deref()), &())?;
            output::say(global, &format!("schedule {name} is paused"))
        }
        ScheduleCommand::Resume { name, pool } => {
            let info: ScheduleInfo = client.post(&path(&name, "/resume", pool.as_deref()), &())?;
            let next = info.next_runs_ns.first().map_or(0, |&next| next);
            output::say(
                global,
                &format!("schedule {name} goes on, next at {}", output::time(next)),
            )
        }
        ScheduleCommand::Run { name, pool } => {
            let info: SnapshotInfo = client.post(&path(&name, "/run", pool.as_deref()), &())?;
            output::print(global, &info, |info| format!("took {}", info.name))
        }
        ScheduleCommand::Delete { name, pool } => {
            client.delete(&path(&name, "", pool.as_deref()))?;
            output::say(
                global,
                &format!("schedule {name} is deleted; its snapshots stay until somebody deletes them"),
            )
        }
    }
}

fn path(name: &str, action: &str, pool: Option<&str>) -> String {
    with_query(
        &format!("/v1/schedules/{}{action}", escape(name)),
        &[("pool", pool)],
    )
}

fn when_text(info: &ScheduleInfo) -> String {
    match (info.every_ns, &info.cron) {
        (Some(ns), _) => format!("every {}", Period(ns)),
        (None, Some(cron)) => format!("{cron} ({})", info.time_zone),
        (None, None) => "-".to_owned(),
    }
}

fn list(infos: &[ScheduleInfo]) -> String {
    let rows = infos.iter().map(|info| {
        vec![
            info.name.clone(),
            info.pool.clone(),
            info.state.clone(),
            output::list(&info.volumes),
            when_text(info),
            keep_text(&info.keep),
            output::time(info.next_runs_ns.first().copied().unwrap_or(0)),
            info.snapshots.to_string(),
            info.runs.to_string(),
            info.missed.to_string(),
            info.failed.to_string(),
        ]
    });
    let columns = [
        "NAME",
        "POOL",
        "STATE",
        "VOLUMES",
        "DUE",
        "KEEPS",
        "NEXT RUN",
        ">SNAPSHOTS",
        ">RUNS",
        ">MISSED",
        ">FAILED",
    ];
    table(&columns, rows)
}

fn show(info: &ScheduleInfo, verbose: bool) -> String {
    let next: Vec<String> = info.next_runs_ns.iter().map(|&ns| output::time(ns)).collect();
    let mut text = pairs(&[
        ("schedule", info.name.clone()),
        ("pool", info.pool.clone()),
        ("state", info.state.clone()),
        ("volumes", output::list(&info.volumes)),
        ("due", when_text(info)),
        ("time zone", info.time_zone.clone()),
        ("keeps", keep_text(&info.keep)),
        ("last run", output::time(info.last_run_ns)),
        ("next runs", output::list(&next)),
        ("snapshots", info.snapshots.to_string()),
        (
            "since the pool was opened",
            format!(
                "{} runs, {} missed, {} failed, {} snapshots pruned",
                info.runs, info.missed, info.failed, info.pruned
            ),
        ),
    ]);
    if let Some(error) = &info.last_error {
        text.push_str(&format!("\nlast run failed            {error}"));
    }
    let pruned: Vec<String> = info
        .kept
        .iter()
        .filter(|snapshot| snapshot.pruned_next)
        .map(|snapshot| snapshot.name.clone())
        .collect();
    text.push_str("\n\nThe next run prunes: ");
    text.push_str(if pruned.is_empty() { "nothing" } else { "" });
    text.push_str(&pruned.join(", "));
    if verbose {
        let rows = info.kept.iter().map(|snapshot| {
            vec![
                snapshot.name.clone(),
                output::time(snapshot.time_stamp_ns),
                if snapshot.pruned_next {
                    "pruned by the next run".to_owned()
                } else {
                    snapshot.kept_by.join(", ")
                },
            ]
        });
        text.push_str("\n\n");
        text.push_str(&table(&["SNAPSHOT", "TAKEN", "KEPT BY"], rows));
    }
    text
}
