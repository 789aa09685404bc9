//! What an open pool has lost: devices that are gone, shards that stopped writing.
//!
//! A block device that was taken out has no bytes any more, which the kernel tells without asking it. So devices are looked at when
//! a shard stops, when somebody asks for the pool, and every two seconds (`appliance/returned.rs`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Pool, time_text, wall_ns};
use crate::events::EventKind;
use stillpoint_processor::ShardIndex;
use stillpoint_processor::ports::DeviceError;

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Losses {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The devices that are gone, by place, and since when.
    gone: BTreeMap<usize, u64>,
    /// The first shard that stopped writing, in words.
    stopped: Option<String>,
}

impl Losses {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere does not bring a device back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Looks which devices are gone by now, tells of those that nobody was told of, and gives all of them: place, and since when in
    /// nanoseconds since 1970.
    pub(crate) fn lost_devices(&self) -> BTreeMap<usize, u64> {
        if self.devices.layout.mirrored {
            return BTreeMap::new(); // the other side has what it had
        }
        let mut news = Vec::new();
        let gone = {
            let mut state = self.losses.state();
            for (device, file) in self.files.present() {
                if file.is_gone() && !state.gone.contains_key(&device) {
                    state.gone.insert(device, wall_ns());
                    news.push(file.path().display().to_string());
                }
            }
            state.gone.clone()
        };
        for path in news {
            let text = "gone: what lies on it fails; the pool is opened again by itself when it is back";
            self.tell(EventKind::DeviceLost, &path, text);
        }
        gone
    }

    /// A shard stopped writing.
    pub(crate) fn shard_stopped(&self, shard: ShardIndex, operation: &str, error: DeviceError) {
        let when = time_text(wall_ns());
        let text = format!(
            "shard {} stopped writing at {when}: {operation}: {error}",
            shard.0
        );
        self.losses.state().stopped.get_or_insert(text);
        self.lost_devices();
    }

    /// The word for its state in the API, and what is wrong.
    pub(super) fn condition(&self) -> (&'static str, Option<String>) {
        let gone = self.lost_devices();
        if !gone.is_empty() {
            let paths = gone.iter().map(|(&device, &since_ns)| {
                let path = self.devices.paths[device].display();
                format!("{path} is gone since {}", time_text(since_ns))
            });
            let what = paths.collect::<Vec<_>>().join(", ");
            let text = format!("{what}; the pool is opened again by itself when all its devices are there");
            return ("device_lost", Some(text));
        }
        if let Some(degraded) = self.degraded() {
            return ("degraded", Some(degraded));
        }
        match self.losses.state().stopped.clone() {
            Some(stopped) => {
                let mend = "all devices are there: see to the one that failed, then close and open the pool";
                ("stopped", Some(format!("{stopped}; {mend}")))
            }
            None => ("open", None),
        }
    }
}
