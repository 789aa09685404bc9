//! `stillpoint export`

use crate::cli::{ExportCommand, Global};
use crate::client::{Client, escape};
use crate::exit::Failure;
use crate::output::{self, table};
use crate::size::Size;
use stillpoint_appliance::api::model::{CreateExport, ExportInfo};

/// Does what is asked.
pub fn run(command: ExportCommand, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    match command {
        ExportCommand::Create {
            view,
            name,
            read_only,
            allow_snapshots,
            pool,
        } => {
            let info: ExportInfo = client.post(
                "/v1/exports",
                &CreateExport {
                    view,
                    name,
                    read_only,
                    allow_snapshots,
                    pool,
                },
            )?;
            output::print(global, &info, |info| list(std::slice::from_ref(info)))
        }
        ExportCommand::List => {
            let infos: Vec<ExportInfo> = client.get("/v1/exports")?;
            output::print(global, &infos, |infos| list(infos))
        }
        ExportCommand::Delete { name } => {
            client.delete(&format!("/v1/exports/{}", escape(&name)))?;
            output::say(global, &format!("export {name} is withdrawn"))
        }
    }
}

fn list(infos: &[ExportInfo]) -> String {
    let rows = infos.iter().map(|info| {
        vec![
            info.name.clone(),
            info.view.clone(),
            info.pool.clone(),
            Size(info.size_bytes).to_string(),
            access(info).to_owned(),
            info.connections.to_string(),
            info.uris.join("\n"),
        ]
    });
    table(
        &["NAME", "SHOWS", "POOL", ">SIZE", "ACCESS", ">CLIENTS", "URI"],
        rows,
    )
}

fn access(info: &ExportInfo) -> &'static str {
    match (info.read_only, info.allow_snapshots) {
        (true, _) => "read-only",
        (false, false) => "read-write",
        (false, true) => "read-write, snapshots",
    }
}
