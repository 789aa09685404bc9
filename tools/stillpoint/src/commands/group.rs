//! `stillpoint group`

use crate::cli::{Global, GroupCommand};
use crate::client::{Client, escape, with_query};
use crate::exit::Failure;
use crate::output::{self, table};
use stillpoint_appliance::api::model::{CreateGroup, GroupInfo};

/// Does what is asked.
pub fn run(command: GroupCommand, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    match command {
        GroupCommand::Create { name, volumes, pool } => {
            let info: GroupInfo = client.post("/v1/groups", &CreateGroup { name, volumes, pool })?;
            output::print(global, &info, |info| {
                format!("group {} is {}", info.name, output::list(&info.volumes))
            })
        }
        GroupCommand::List { pool } => {
            let infos: Vec<GroupInfo> =
                client.get(&with_query("/v1/groups", &[("pool", pool.as_deref())]))?;
            output::print(global, &infos, |infos| list(infos))
        }
        GroupCommand::Delete { name, pool } => {
            let path = with_query(
                &format!("/v1/groups/{}", escape(&name)),
                &[("pool", pool.as_deref())],
            );
            client.delete(&path)?;
            output::say(global, &format!("group {name} is deleted; its volumes stay"))
        }
    }
}

fn list(infos: &[GroupInfo]) -> String {
    let rows = infos.iter().map(|info| {
        vec![
            info.name.clone(),
            info.pool.clone(),
            output::list(&info.volumes),
            output::time(info.created_ns),
        ]
    });
    table(&["NAME", "POOL", "VOLUMES", "MADE"], rows)
}
