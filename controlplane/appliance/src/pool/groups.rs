//! Named groups of volumes: `group:NAME` stands for its volumes wherever volumes are cut together.

use super::{Pool, wall_ns};
use crate::api::model::{CreateGroup, GroupInfo};
use crate::catalog::{Catalog, Change, Group, Volume};
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::name;

/// What stands before the name of a group where a volume may be named too.
pub const PREFIX: &str = "group:";
/// Groups of a pool at most.
pub const GROUPS_MAX: usize = 1024;

impl Pool {
    /// Makes a group.
    ///
    /// # Errors
    /// Usage, not found, conflict if the name is taken.
    pub async fn create_group(&self, request: &CreateGroup) -> Result<()> {
        name::check("group", &request.name)?;
        let _gate = self.gate.write().await;
        let volumes = self.group(&request.volumes)?;
        {
            let catalog = self.catalog();
            if catalog.group(&request.name).is_some() {
                return Err(Error::conflict(format!("group {} exists already", request.name))
                    .hint("choose another name, or delete that group first: its volumes stay"));
            }
            if catalog.groups().count() >= GROUPS_MAX {
                return Err(Error::conflict(format!(
                    "pool {} has {GROUPS_MAX} groups, which is the limit",
                    self.name()
                ))
                .hint("delete one that is not needed: its volumes stay"));
            }
        }
        let group = Group {
            id: self.number(Catalog::next_snapshot).await?.0,
            name: request.name.clone(),
            volumes: volumes.iter().map(|of| of.owner).collect(),
            created_ns: wall_ns(),
        };
        self.change([Change::put_group(&group)]).await?;
        self.catalog().put_group(group);
        self.tell(EventKind::GroupCreated, &request.name, "made");
        Ok(())
    }

    /// Forgets a group. Its volumes and their snapshots stay.
    ///
    /// # Errors
    /// Not found.
    pub async fn delete_group(&self, name: &str) -> Result<()> {
        let _gate = self.gate.write().await;
        let id = self
            .catalog()
            .group(name)
            .map(|group| group.id)
            .ok_or_else(|| no_group(name))?;
        self.change([Change::delete_group(id)]).await?;
        self.catalog().remove_group(id);
        self.tell(EventKind::GroupDeleted, name, "deleted; its volumes stay");
        Ok(())
    }

    /// The pool's groups.
    #[must_use]
    pub fn group_infos(&self) -> Vec<GroupInfo> {
        let groups: Vec<Group> = self.catalog().groups().cloned().collect();
        groups
            .into_iter()
            .map(|group| GroupInfo {
                pool: self.name().to_owned(),
                volumes: group
                    .volumes
                    .iter()
                    .map(|&volume| self.volume_name(volume))
                    .collect(),
                name: group.name,
                created_ns: group.created_ns,
            })
            .collect()
    }

    /// The volume of this name, or the volumes of the group after `group:`.
    ///
    /// # Errors
    /// Not found.
    pub(super) fn members(&self, name: &str) -> Result<Vec<Volume>> {
        let Some(group) = name.strip_prefix(PREFIX) else {
            return Ok(vec![self.volume(name)?]);
        };
        let catalog = self.catalog();
        let found = catalog.group(group).ok_or_else(|| no_group(group))?;
        let volumes = found
            .volumes
            .iter()
            .filter_map(|&volume| catalog.volume_by_id(volume));
        Ok(volumes.cloned().collect())
    }

    /// Whether there is such a volume, or such a group after `group:`.
    #[must_use]
    pub fn has_members(&self, name: &str) -> bool {
        match name.strip_prefix(PREFIX) {
            Some(group) => self.catalog().group(group).is_some(),
            None => self.has_volume(name).is_some(),
        }
    }
}

/// There is no such group.
#[must_use]
pub fn no_group(name: &str) -> Error {
    Error::not_found(format!("there is no group {name}")).hint("stillpoint group list shows all")
}
