//! Exports of a pool: which of its volumes and snapshots are offered, and under which names.

use super::{Pool, wall_ns};
use crate::api::model::CreateExport;
use crate::catalog::{Catalog, Change, ExportRow};
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::mailbox::Export;
use crate::name::{self, ViewName};
use stillpoint_processor::View;

impl Pool {
    /// Remembers an export. The caller has seen that no other pool has this name, and publishes the table.
    ///
    /// # Errors
    /// Usage, not found, conflict if the name is taken.
    pub async fn create_export(&self, request: &CreateExport) -> Result<ExportRow> {
        let view_name: ViewName = request.view.parse()?;
        let name = request.name.clone().unwrap_or_else(|| view_name.to_string());
        name::check_export(&name)?;
        let _gate = self.gate.write().await;
        let view = self.view(&view_name)?;
        check_taking(request, &view_name)?;
        if self.catalog().export(&name).is_some() {
            return Err(Error::conflict(format!("export {name} exists already"))
                .hint("choose another name with --name, or delete that export first"));
        }
        let id = self.number(Catalog::next_export).await?;
        let read_only = request.read_only || view.snapshot.is_some();
        let export = ExportRow {
            id,
            name,
            view,
            read_only,
            allow_snapshots: request.allow_snapshots,
            created_ns: wall_ns(),
        };
        self.change([Change::put_export(&export)]).await?;
        self.catalog().put_export(export.clone());
        let text = format!("exported as {}", export.name);
        self.tell(EventKind::ExportCreated, &view_name.to_string(), text);
        Ok(export)
    }

    /// Whether the clients of the export of this name may take snapshots.
    #[must_use]
    pub fn allows_snapshots(&self, export: &str) -> bool {
        self.catalog()
            .export(export)
            .is_some_and(|export| export.allow_snapshots)
    }

    /// Forgets an export. The caller publishes the table.
    ///
    /// # Errors
    /// Not found.
    pub async fn delete_export(&self, name: &str) -> Result<()> {
        let _gate = self.gate.write().await;
        let id = self
            .catalog()
            .export(name)
            .map(|export| export.id)
            .ok_or_else(|| no_export(name))?;
        self.change([Change::delete_export(id)]).await?;
        self.catalog().remove_export(id);
        self.tell(EventKind::ExportDeleted, name, "no longer exported");
        Ok(())
    }

    /// The volume or snapshot of this name.
    ///
    /// # Errors
    /// Not found.
    pub fn view(&self, name: &ViewName) -> Result<View> {
        let volume = self.volume(&name.volume)?.id;
        let snapshot = match &name.snapshot {
            Some(snapshot) => Some(self.snapshot(&name.volume, snapshot)?.snapshot),
            None => None,
        };
        Ok(View { volume, snapshot })
    }

    /// The pool's exports for the table of the poll loops.
    #[must_use]
    pub fn exports(&self) -> Vec<Export> {
        let catalog = self.catalog();
        catalog
            .exports()
            .filter(|export| {
                let volume = export.view.volume;
                let is_kept_back = catalog.withdrawn == Some(volume) || catalog.in_doubt.contains(&volume);
                export.view.snapshot.is_some() || !is_kept_back
            })
            .filter_map(|export| {
                Some(Export {
                    name: export.name.clone(),
                    pool: self.index,
                    host_view: catalog.host_view(export.view, export.read_only)?,
                    description: format!("{} in pool {}", catalog.view_name(export.view), self.name()),
                })
            })
            .collect()
    }
}

/// Only who may write to a volume may take snapshots of it.
fn check_taking(request: &CreateExport, view: &ViewName) -> Result<()> {
    if !request.allow_snapshots {
        return Ok(());
    }
    let complaint = match &view.snapshot {
        Some(_) => format!("{view} is a snapshot: no snapshots are taken of it"),
        None if request.read_only => {
            "clients of a read-only export take no snapshots: they fill a pool as writes do".to_owned()
        }
        None => return Ok(()),
    };
    Err(Error::usage(complaint).hint("leave --allow-snapshots out, or export the volume to be written"))
}

/// There is no such export.
#[must_use]
pub fn no_export(name: &str) -> Error {
    Error::not_found(format!("there is no export {name}")).hint("stillpoint export list shows all")
}
