//! Looking at the devices of a pool that no daemon has open: what lies there, whether it is sound, and mending it.
//!
//! Labels first; then all shards, on as many threads as there are cores; then what the shards say together (catalog,
//! snapshots). Nothing is written before all of that has ended, and then only what `repair` asks for.

mod labels;
mod model;
mod shards;
mod together;

pub(crate) use model::FromCatalog;
pub use model::{
    CheckInfo, InspectInfo, InspectedDevice, InspectedShard, InspectedVolume, MendInfo, ProblemInfo,
    RepairInfo,
};
pub use stillpoint_processor::shard::check::Depth;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::appliance::device_error;
use crate::daemon::TailDirectory;
use crate::error::{Error, ErrorKind, Result};
use crate::label::{self, PoolDevices};
use stillpoint_hw::clock::Clock;
use stillpoint_hw::device::{DeviceFile, Opener, PoolFiles};
use stillpoint_processor::shard::check::{Mend, carry_out, delete_snapshots};

use shards::CheckedPool;

/// How often devices that are in use are tried: a process that was killed holds them for a moment.
const TRIES: u32 = 25;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct InspectOptions {
    /// All devices of the pool, in any order.
    pub devices: Vec<PathBuf>,
    /// How far to look.
    pub depth: Depth,
    /// Mend what can be mended.
    pub repair: bool,
    /// Also where something is given up that the pool promised to keep.
    pub accept_loss: bool,
    /// Where log tails lie.
    pub tails: TailDirectory,
}

/// Looks at a pool, and mends it if asked to.
///
/// # Errors
/// Conflict if somebody has a device open; not found, usage or failure if these are not the devices of a pool, or what
/// the devices said while they were written.
pub fn inspect(options: &InspectOptions) -> Result<InspectInfo> {
    let devices = label::read(&label::absolute(&options.devices)?)?;
    if options.repair && devices.layout.mirrored {
        let message = format!(
            "pool {} has mirrors; what one side has damaged is repaired from the other while it is open",
            devices.name
        );
        return Err(Error::usage(message).hint("stillpoint pool scrub reads and repairs all of it"));
    }
    let files = claim(&devices, options.repair)?;
    label::check_sizes(&devices, &files)?;
    let checked = check(options, &devices, &files)?;
    let mut info = model::describe(&devices, &files, &checked, options.depth);
    if options.repair {
        let mends: Vec<Mend> = checked
            .mends()
            .filter(|mend| options.accept_loss || !mend.loses)
            .cloned()
            .collect();
        let mut done: Vec<String> = mends.iter().map(|mend| mend.what.clone()).collect();
        let mut opener = Opener::new(files.clone());
        carry_out(&mends, &mut opener)
            .map_err(|error| Error::failure(format!("repairing pool {}: {error}", devices.name)))?;
        done.extend(drop_unconfirmed(&devices, &mut opener, checked)?);
        let left = check(options, &devices, &files)?;
        info.repair = Some(RepairInfo {
            done,
            left: left.problems(),
            notes: left.notes(),
        });
    }
    Ok(info)
}

/// Claims the devices; a daemon that has them open keeps everybody else out, and everybody else keeps it out.
fn claim(devices: &PoolDevices, to_write: bool) -> Result<Arc<PoolFiles>> {
    let mut tries = 0;
    loop {
        let opened = devices.claim(if to_write {
            DeviceFile::open
        } else {
            DeviceFile::open_to_read
        });
        tries += 1;
        match opened.map_err(|error| device_error(&error)) {
            Err(error) if error.kind == ErrorKind::Conflict && tries < TRIES => std::thread::sleep(PAUSE),
            Err(error) if error.kind == ErrorKind::Conflict => {
                return Err(error.hint(format!(
                    "stillpoint pool close {} closes it; stillpoint pool scrub {} checks it while it is open",
                    devices.name, devices.name
                )));
            }
            opened => return opened,
        }
    }
}

fn check(options: &InspectOptions, devices: &PoolDevices, files: &Arc<PoolFiles>) -> Result<CheckedPool> {
    let mut checked = shards::check(devices, files, &options.tails, options.depth)?;
    labels::check(devices, files, &mut checked);
    together::check(devices, &mut checked);
    Ok(checked)
}

/// Intermediate snapshots without a commit record: opening the pool drops them, and so does repairing it.
fn drop_unconfirmed(devices: &PoolDevices, opener: &mut Opener, checked: CheckedPool) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for (shard, mut tail, unconfirmed) in checked.unconfirmed() {
        let dropped = delete_snapshots(
            &devices.layout,
            shard,
            opener,
            &mut tail,
            &unconfirmed,
            Clock::new().now(),
        );
        dropped.map_err(|error| Error::failure(format!("shard {}: {error}", shard.0)))?;
        done.extend(unconfirmed.iter().map(|(volume, snapshot)| {
            format!(
                "shard {}: intermediate snapshot {} of volume {}, which was never confirmed, is dropped",
                shard.0, snapshot.0, volume.0
            )
        }));
    }
    Ok(done)
}
