//! A block device in memory, made for a bench and removed after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::Failure;
use crate::process;

const CONTROL: &str = "/sys/class/zram-control";

/// A zram device until it is dropped.
#[derive(Debug)]
pub struct Zram {
    number: u32,
    path: PathBuf,
}

impl Zram {
    /// A new device of `size_bytes`. What does not compress takes that much memory once it is written.
    ///
    /// # Errors
    /// The kernel has no zram, or this user may not make one.
    pub fn new(size_bytes: u64) -> Result<Self, Failure> {
        let control = Path::new(CONTROL).join("hot_add");
        let said = fs::read_to_string(&control).map_err(|error| {
            format!(
                "{}: {error}: it takes root and a kernel with zram (modprobe zram)",
                control.display()
            )
        })?;
        let number: u32 = said
            .trim()
            .parse()
            .map_err(|_| format!("{}: {said:?}", control.display()))?;
        let zram = Self {
            number,
            path: PathBuf::from(format!("/dev/zram{number}")),
        };
        process::remember_zram(number);
        let size = format!("/sys/block/zram{number}/disksize");
        fs::write(&size, size_bytes.to_string()).map_err(|error| format!("{size}: {error}"))?;
        for _ in 0..50 {
            if zram.path.exists() {
                return Ok(zram);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(format!("{} does not appear", zram.path.display()).into())
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        process::forget_zram(self.number);
        remove(self.number);
    }
}

/// Removes a device; one that somebody still has stays.
pub(crate) fn remove(number: u32) {
    for _ in 0..50 {
        // The ring of a thread that has ended lets go of its files a little later.
        let reset = fs::write(format!("/sys/block/zram{number}/reset"), "1");
        if reset.is_ok() && fs::write(Path::new(CONTROL).join("hot_remove"), number.to_string()).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
