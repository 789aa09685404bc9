//! Looking at the devices of a pool that no daemon has open: what lies there, whether it is sound, and mending it.
//!
//! Labels first; then all shards, on as many threads as there are cores; then what the shards say together (catalog,
//! snapshots). Nothing is written before all of that has ended, and then only what `repair` asks for.

mod labels;
mod model;
mod shards;
mod sides;
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
use stillpoint_processor::mirror::Sides;
use stillpoint_processor::ports::DeviceError;
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
    /// Mend a pool with mirrors also if sides are out or were not named.
    pub degraded: bool,
    /// Where log tails lie.
    pub tails: TailDirectory,
    /// The state directory of the daemon that has the pool otherwise: it is told there how new the labels of mirrors are.
    pub state_directory: PathBuf,
}

/// Looks at a pool, and mends it if asked to.
///
/// # Errors
/// Conflict if somebody has a device open; not found, usage or failure if these are not the devices of a pool, or what
/// the devices said while they were written.
pub fn inspect(options: &InspectOptions) -> Result<InspectInfo> {
    let mut devices = label::read(&label::absolute(&options.devices)?)?;
    if options.repair && !options.degraded {
        sides::check_all_there(&devices)?;
    }
    let files = claim(&devices, options.repair)?;
    label::check_sizes(&devices, &files)?;
    let daemon = sides::Daemon::of(&devices, &options.state_directory)?;
    let lacks_some = sides::do_without(&mut devices)?;
    let checked = check(options, &devices, &files)?;
    let mut info = model::describe(&devices, &files, &checked, options.depth);
    if options.repair {
        let is_mended = |mend: &Mend| options.accept_loss || !mend.loses;
        let has_work = checked.mends().any(is_mended) || checked.has_unconfirmed();
        let mut notes = Vec::new();
        if has_work {
            daemon.check_newest(&devices, options.accept_loss)?;
        }
        if lacks_some && has_work {
            sides::tell_labels(&devices, &files)?;
            notes.extend(daemon.note(&devices)?);
        }
        let done = mend(options, &devices, &files, checked)?;
        let left = check(options, &devices, &files)?;
        notes.extend(left.notes());
        info.repair = Some(RepairInfo {
            done,
            left: left.problems(),
            notes,
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

/// Of a pool with mirrors each side that is in sync is checked, all by itself.
fn check(options: &InspectOptions, devices: &PoolDevices, files: &Arc<PoolFiles>) -> Result<CheckedPool> {
    let [first, second] = sides::views(devices);
    let one = |sides: Option<&[Sides]>| shards::check(devices, files, &options.tails, options.depth, sides);
    let mut checked = one(first.as_deref())?;
    if let Some(second) = second {
        checked.add_second(one(Some(&second))?, &devices.name);
        // A crash may have left the newest records on one of them only: what both come to is judged, as it is when the pool is opened.
        let both = sides::both(devices);
        let depth = Depth::Structures;
        let merged = shards::check(devices, files, &options.tails, depth, both.as_deref())?;
        checked.merged = merged.shards;
    }
    checked.told.extend(sides::not_looked_at(devices));
    labels::check(devices, files, &mut checked);
    together::check(devices, &mut checked);
    Ok(checked)
}

/// Mends what can be; gives what was done.
fn mend(
    options: &InspectOptions,
    devices: &PoolDevices,
    files: &Arc<PoolFiles>,
    checked: CheckedPool,
) -> Result<Vec<String>> {
    let failed = |error: DeviceError| Error::failure(format!("repairing pool {}: {error}", devices.name));
    let mut done = Vec::new();
    for (shard, mends) in checked.mends_by_shard() {
        let mends: Vec<Mend> = mends
            .iter()
            .filter(|mend| options.accept_loss || !mend.loses)
            .cloned()
            .collect();
        done.extend(mends.iter().map(|mend| mend.what.clone()));
        let mut opener = Opener::new(files.clone());
        match shard {
            // Labels are those of one side.
            None => carry_out(&mends, &mut opener).map_err(failed)?,
            Some(shard) => {
                sides::over(devices, shard, opener, |device| carry_out(&mends, device))?.map_err(failed)?
            }
        }
    }
    done.extend(drop_unconfirmed(devices, files, checked)?);
    Ok(done)
}

/// Intermediate snapshots without a commit record: opening the pool drops them, and so does repairing it.
fn drop_unconfirmed(
    devices: &PoolDevices,
    files: &Arc<PoolFiles>,
    checked: CheckedPool,
) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for (shard, mut tail, unconfirmed) in checked.unconfirmed() {
        let (layout, now) = (&devices.layout, Clock::new().now());
        let dropped = sides::over(devices, shard, Opener::new(files.clone()), |device| {
            delete_snapshots(layout, shard, device, &mut tail, &unconfirmed, now)
        })?;
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
