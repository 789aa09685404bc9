//! What is looked at when the power is back.

use std::collections::BTreeSet;

use super::ledger;
use super::machine::{Figures, Machine};
use super::volume::{Host, Snapshot, Volume};
use crate::support::foreign::run;
use crate::support::mounts::{Kind, Loop};
use crate::support::{list, member};

impl Machine {
    /// Starts everything and looks at everything. Gives what is wrong.
    pub fn recover(&mut self, figures: &mut Figures) -> Vec<String> {
        self.attach();
        let mut complaints: Vec<String> = self.check_devices().err().into_iter().collect();
        self.appliance.start(&["--processors", "2"]);
        let pool = self.appliance.tell(&["pool", "show", "p"]);
        let open = pool.json.pointer("/state").is_some_and(|state| state == "open");
        if !open {
            complaints.push(format!("the pool does not open: {} {}", pool.json, pool.errors));
            return complaints;
        }
        let listed = self.appliance.run(&["snapshot", "list"]);
        let name = |thing| member(thing, "/name").as_str().expect("a text").to_owned();
        let there: BTreeSet<String> = list(&listed, "").iter().map(name).collect();
        complaints.extend(self.raw().check(&self.appliance, &there));
        for volume in &self.volumes {
            let mut wrong = self.check_snapshots(volume, &there, figures);
            wrong.extend(self.check_volume(volume, figures));
            complaints.extend(
                wrong
                    .into_iter()
                    .map(|what| format!("{}: {what}", volume.kind.name)),
            );
        }
        complaints
    }

    fn check_volume(&self, volume: &Volume, figures: &mut Figures) -> Vec<String> {
        let host = match self.host(volume) {
            Ok(host) => host,
            Err(error) => return vec![error],
        };
        let promises = volume.ledger.promises();
        let mut complaints = ledger::complaints(&promises, host.mounted.directory());
        figures.files += promises.len() as u64;
        if let Err(error) = volume.ledger.settle(host.mounted.directory()) {
            complaints.push(format!("tidying up: {error}"));
        }
        let Host { mounted, exported } = host;
        complaints.extend(mounted.unmount().err());
        complaints.extend(volume.kind.check(exported.device()).err());
        figures.file_systems += 1;
        drop(exported);
        complaints
    }

    fn check_snapshots(
        &self,
        volume: &Volume,
        there: &BTreeSet<String>,
        figures: &mut Figures,
    ) -> Vec<String> {
        let mut complaints = Vec::new();
        volume.snapshots().retain_mut(|snapshot| {
            if !there.contains(&snapshot.name) {
                if snapshot.confirmed && !snapshot.deleting {
                    complaints.push(format!("the snapshot {} is lost", snapshot.name));
                }
                return false;
            }
            if !snapshot.confirmed {
                snapshot.promises = volume.ledger.held_since(std::mem::take(&mut snapshot.promises));
            }
            (snapshot.confirmed, snapshot.deleting) = (true, false);
            if let Err(wrong) = self.check_snapshot(volume.kind, snapshot, figures) {
                complaints.extend(wrong.into_iter().map(|what| format!("{}: {what}", snapshot.name)));
            }
            true
        });
        complaints
    }

    /// A copy of it is mounted, since a file system recovers itself by writing.
    fn check_snapshot(
        &self,
        kind: Kind,
        snapshot: &Snapshot,
        figures: &mut Figures,
    ) -> Result<(), Vec<String>> {
        let one = |what: String| vec![what];
        let image = self.appliance.path("snapshot.image");
        self.appliance.run(&["export", "create", &snapshot.name]);
        let uri = self.appliance.uri(&snapshot.name);
        let copied = run("nbdcopy", &[&uri, image.to_str().expect("UTF-8")]);
        self.appliance.run(&["export", "delete", &snapshot.name]);
        if !copied.success {
            return Err(one(format!("it cannot be read: {}", copied.text)));
        }
        let device = Loop::attach(&image);
        let mounted = kind.mount(device.device(), &self.appliance.path("snapshot-root"));
        let mounted = mounted.map_err(one)?;
        let complaints = ledger::complaints(&snapshot.promises, mounted.directory());
        mounted.unmount().map_err(one)?;
        kind.check(device.device()).map_err(one)?;
        drop(device);
        std::fs::remove_file(image).expect("a file of ours");
        figures.snapshots += 1;
        figures.files += snapshot.promises.len() as u64;
        if complaints.is_empty() {
            Ok(())
        } else {
            Err(complaints)
        }
    }
}
