//! What an open pool has lost: devices that are gone or have become too small, shards that stopped writing.
//!
//! A block device that was taken out has no bytes any more, which the kernel tells without asking it. So the sizes of devices are
//! looked at when a shard stops, when somebody asks for the pool, and every two seconds (`appliance/returned.rs`). A file's size is
//! asked for beside that: its server may be gone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Pool, time_text, wall_ns};
use crate::events::EventKind;
use crate::patience::Questions;
use stillpoint_hw::device::{DeviceFile, DeviceKind};
use stillpoint_processor::ports::DeviceError;
use stillpoint_processor::{BLOCK_BYTES, ShardIndex};

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Losses {
    state: Mutex<State>,
    /// For the sizes of files.
    questions: Questions,
}

/// So long the control plane waits for the sizes of a pool's files.
const SIZES_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    /// The devices that are gone or too small, by place.
    lost: BTreeMap<usize, Lost>,
    /// The first shard that stopped writing, in words.
    stopped: Option<String>,
}

/// A device of which the pool has not all that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// When that was seen, nanoseconds since 1970.
    pub since_ns: u64,
    /// Its size; 0: it is gone.
    pub size_bytes: u64,
}

impl Lost {
    /// It is there, and too small.
    pub fn is_there(self) -> bool {
        self.size_bytes > 0
    }
}

impl Losses {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere does not bring a device back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// What the pool uses of the device in a place: what that had when the pool was made.
    pub(crate) fn needed_bytes(&self, place: usize) -> u64 {
        let device = &self.devices.layout.devices[self.devices.device_of(place)];
        device.size_blocks * BLOCK_BYTES as u64
    }

    /// What a device has and the pool does not use, in whole blocks.
    pub(super) fn unused_bytes(&self, place: usize, file: &DeviceFile) -> u64 {
        let more = file.size_bytes_now().saturating_sub(self.needed_bytes(place));
        more - more % BLOCK_BYTES as u64
    }

    /// The block devices that it has: path, and how many bytes the pool does not use.
    pub(crate) fn unused(&self) -> Vec<(PathBuf, u64)> {
        let present = self.files.present();
        let present = present.filter(|(_, file)| file.kind() == DeviceKind::Block);
        let unused = present.map(|(place, file)| (file.path().to_owned(), self.unused_bytes(place, &file)));
        unused.collect()
    }

    /// The paths below `/dev` by which it knows its devices, also those of sides that are out. (Where files lie, servers may be gone.)
    pub(crate) fn known_in_dev(&self) -> Vec<PathBuf> {
        let mut known = self.known().devices;
        known.retain(|path| path.starts_with("/dev"));
        known
    }

    /// Asks for the sizes of the files that the pool lies on, beside the control plane's thread: what is not answered in time stays as
    /// it was known.
    pub(crate) async fn ask_sizes(&self) {
        self.ask_sizes_of(|_| true).await;
    }

    /// The same of the files in these places alone: others may be on a server that is gone.
    pub(super) async fn ask_sizes_of(&self, is_asked: impl Fn(usize) -> bool) {
        let files = self.files.present().filter(|(place, _)| is_asked(*place));
        let questions = files.map(|(_, file)| (Arc::as_ptr(&file) as usize, move || file.ask_size()));
        self.losses.questions.ask(questions.collect(), SIZES_LIMIT).await;
    }

    /// Tells of devices that have another size than before.
    fn look_at_sizes(&self) {
        for (place, file) in self.files.present() {
            // Of what was taken out others tell.
            if let Some((before, now)) = file.resized()
                && now > 0
            {
                let text = resized_text(
                    before,
                    now,
                    self.needed_bytes(place),
                    self.devices.layout.mirrored,
                );
                self.tell(EventKind::DeviceResized, &file.path().display().to_string(), text);
            }
        }
    }

    /// Looks at the sizes of all devices: tells of what has changed, and gives those in sides of mirrors that are too small or gone, and why.
    pub(super) fn failing_sides(&self) -> Vec<(usize, DeviceError)> {
        self.look_at_sizes();
        let why = |(place, file): (usize, Arc<DeviceFile>)| {
            let error = match file.size_bytes_now() {
                0 => DeviceError::Gone,
                size_bytes if size_bytes < self.needed_bytes(place) => DeviceError::Shrunk,
                _ => return None,
            };
            Some((place, error))
        };
        self.files.present().filter_map(why).collect()
    }

    /// Looks which devices are gone or too small by now, tells of those that nobody was told of, and gives all of them by place. Of
    /// mirrors only last sides count: of others the other side has what they had.
    pub(crate) fn lost_devices(&self) -> BTreeMap<usize, Lost> {
        if self.devices.layout.mirrored {
            return self.lost_sides();
        }
        self.look_at_sizes();
        let mut gone = Vec::new();
        let lost = {
            let mut state = self.losses.state();
            for (place, file) in self.files.present() {
                let size_bytes = file.size_bytes_now();
                let known = state.lost.get(&place);
                let is_known = known.is_some_and(|lost| lost.size_bytes == size_bytes);
                if size_bytes >= self.needed_bytes(place) || is_known {
                    continue; // what was lost counts as lost until the pool is opened again
                }
                if size_bytes == 0 {
                    gone.push(file.path().display().to_string());
                }
                let since_ns = known.map_or_else(wall_ns, |lost| lost.since_ns);
                let lost = Lost { since_ns, size_bytes };
                state.lost.insert(place, lost);
            }
            state.lost.clone()
        };
        for path in gone {
            let text = "gone: what lies on it fails; the pool is opened again by itself when it is back";
            self.tell(EventKind::DeviceLost, &path, text);
        }
        lost
    }

    /// The devices that were lost, are there again, and were never let go of: the kernel gave them their bytes back.
    pub(crate) fn held_again(&self) -> Vec<PathBuf> {
        let lost = self.lost_devices().into_keys();
        let files = lost.filter_map(|place| self.files.get(place));
        files
            .filter(|file| file.size_bytes_now() > 0)
            .map(|file| file.path().to_owned())
            .collect()
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
        let lost = self.lost_devices();
        if !lost.is_empty() {
            let each = lost.iter().map(|(&place, lost)| {
                let since = time_text(lost.since_ns);
                let file = self.files.get(place);
                let path = file.as_ref().map_or(&*self.devices.paths[place], |file| file.path());
                let path = path.display();
                match lost.size_bytes {
                    0 => format!("{path} is gone since {since}"),
                    size_bytes => format!(
                        "{path} has {size_bytes} bytes since {since}, and the pool needs {}: what lies behind its end fails",
                        self.needed_bytes(place)
                    ),
                }
            });
            let mut what = each.collect::<Vec<_>>().join(", ");
            if let Some(others) = self.degraded() {
                what = format!("{what}; {others}");
            }
            return if lost.values().all(|lost| lost.is_there()) {
                let mend = "give it its size back: the pool is then opened again by itself";
                ("device_shrunk", Some(format!("{what}; {mend}")))
            } else {
                let mend = "the pool is opened again by itself when all its devices are there";
                ("device_lost", Some(format!("{what}; {mend}")))
            };
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

/// What it means that a device has another size.
fn resized_text(before: u64, now: u64, needed: u64, mirrored: bool) -> String {
    let meaning = match now {
        _ if now < needed && mirrored => format!(
            "the pool needs {needed}: the side is not used; give it its size back, and what it lacks is copied to it"
        ),
        _ if now < needed => format!(
            "the pool needs {needed}: what lies behind its end fails; give it its size back, and the pool is opened again by itself"
        ),
        _ if before < needed => format!("the pool needs {needed}: it is large enough again"),
        _ if now - needed < BLOCK_BYTES as u64 => "the pool uses all of it".to_owned(),
        _ => format!("the pool uses {needed} of them, as it was made with; the others are unused"),
    };
    format!("it had {before} bytes and has {now} now; {meaning}")
}

#[cfg(test)]
mod tests {
    use super::resized_text;

    #[test]
    fn another_size_is_told_with_both_sizes_and_what_it_means() {
        const NEEDED: u64 = 1 << 20;
        for (before, now, words) in [
            (
                NEEDED,
                NEEDED - 1,
                "what lies behind its end fails; give it its size back",
            ),
            (NEEDED - 8192, NEEDED, "large enough again"),
            (NEEDED, NEEDED + 8192, "the others are unused"),
            (NEEDED + 8192, NEEDED, "the pool uses all of it"),
            (NEEDED + 4096, NEEDED + 512, "the pool uses all of it"),
        ] {
            let text = resized_text(before, now, NEEDED, false);
            assert!(text.contains(words), "{text}");
            assert!(
                text.contains(&format!("it had {before} bytes and has {now} now")),
                "{text}"
            );
        }
        let text = resized_text(NEEDED, 4096, NEEDED, true);
        assert!(text.contains("what it lacks is copied to it"), "{text}");
    }
}
