//! Opening, claiming, and what is done to a device without a ring.

use super::*;
use crate::buffers::{Arenas, CHUNK_BYTES};
use crate::device::tests::directory_on;
use crate::device::{Devices, PoolFiles};
use crate::ring::{Ring, RingOptions};
use std::process::Command;
use std::sync::Arc;

/// A loop device over a file; gone when dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None`, and why, where there are none to be had.
    fn over(file: &Path, test: &str) -> Option<Self> {
        let told = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output();
        match told {
            Ok(told) if told.status.success() => {
                let path = String::from_utf8(told.stdout).expect("a path");
                Some(Self(path.trim().into()))
            }
            told => {
                eprintln!("SKIPPED {test}: it needs root and loop devices: {told:?}");
                None
            }
        }
    }

    /// It is as large as its file by now.
    fn look_again(&self) {
        let told = Command::new("losetup")
            .arg("--set-capacity")
            .arg(&self.0)
            .status();
        assert!(told.expect("losetup runs").success());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // What it leaves behind is seen in `losetup --list`.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn zeros_past_the_end_of_a_device_that_has_shrunk_are_an_error_and_not_passed_by_in_silence() {
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(disk.path(), vec![7; 2 << 20]).expect("written");
    let Some(device) = Loop::over(disk.path(), "zeros_past_the_end_of_a_device_that_has_shrunk") else {
        return;
    };
    let file = DeviceFile::open(&device.0).expect("opened");
    file.write_zeros((1 << 20) + 4096, (1 << 20) - 4096)
        .expect("all of it is there");
    disk.as_file().set_len((1 << 20) + 8192).expect("cut off");
    device.look_again();
    assert_eq!(file.size_bytes_now(), (1 << 20) + 8192);
    let error = file
        .write_zeros(1 << 20, 1 << 20)
        .expect_err("most of it is gone");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    drop(file);
}

#[test]
fn a_device_is_opened_by_one_at_a_time_and_the_holder_is_named() {
    let directory = directory_on("/var/tmp");
    let path = directory.path().join("device");
    let held = DeviceFile::create(&path, 1 << 20).expect("made");
    assert_eq!(
        (held.size_bytes(), held.size_blocks(), held.kind()),
        (1 << 20, 256, DeviceKind::File)
    );
    let error = DeviceFile::open(&path).expect_err("claimed");
    assert!(error.to_string().contains("this very process"), "{error}");
    drop(held);
    DeviceFile::open(&path).expect("free again");
}

#[test]
fn a_claim_ends_with_its_device_although_a_ring_still_has_the_file() {
    let directory = directory_on("/tmp");
    let path = directory.path().join("device");
    let device = DeviceFile::create(&path, 1 << 20).expect("a sparse file");
    let mut ring = Ring::new(RingOptions::default()).expect("io_uring");
    // An older kernel goes on to have it for a second after it was told to forget it.
    let _kept = ring.register_file(device.as_raw_fd());
    drop(device);
    DeviceFile::open(&path).expect("nobody claims it any more");
}

#[test]
fn a_killed_process_has_its_device_until_the_kernel_has_torn_down_its_ring() {
    let directory = directory_on("/tmp");
    let path = directory.path().join("device");
    let device = DeviceFile::create(&path, 1 << 20).expect("a sparse file");
    let mut ring = Ring::new(RingOptions::default()).expect("io_uring");
    let files = PoolFiles::new(vec![device]);
    let arenas = Arenas::map(1, CHUNK_BYTES).expect("memory");
    let devices = Devices::new(Arc::clone(&files), arenas, 0, &mut ring);
    // What a kill does to the process: every file is closed, nothing is said. The ring's work goes on for a while.
    std::mem::forget(devices);
    // SAFETY: nobody uses this number any more: `files` is forgotten, never dropped.
    unsafe { libc::close(files.get(0).expect("there").as_raw_fd()) };
    std::mem::forget(files);
    let error = DeviceFile::open(&path).expect_err("writes may still be on their way");
    assert!(matches!(error.problem, Problem::InUse { .. }), "{error}");
    drop(ring);
    let begun = std::time::Instant::now();
    while let Err(error) = DeviceFile::open(&path) {
        assert!(begun.elapsed().as_secs() < 60, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn whether_a_device_takes_writes_is_found_out_without_a_change() {
    let directory = directory_on("/var/tmp");
    let path = directory.path().join("device");
    let content: Vec<u8> = (0..100_000u32).map(|n| (n / 512) as u8).collect();
    std::fs::write(&path, &content).expect("written");
    let device = DeviceFile::open(&path).expect("claimed");
    device.rewrite_ends().expect("it does");
    assert_eq!(std::fs::read(&path).expect("there"), content);
    // A file that can be opened to write, and never written again.
    // SAFETY: the name is a string that ends with a zero.
    let number = unsafe { libc::memfd_create(c"sealed".as_ptr(), libc::MFD_ALLOW_SEALING) };
    assert!(number >= 0);
    // SAFETY: it was just made, and nobody else has it.
    let sealed = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(number) };
    sealed.set_len(1 << 20).expect("it grows");
    // SAFETY: takes a number and touches no memory of ours.
    let done = unsafe { libc::fcntl(number, libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
    assert_eq!(done, 0);
    let device = DeviceFile::open(Path::new(&format!("/proc/self/fd/{number}"))).expect("claimed");
    let refused = device.rewrite_ends().expect_err("it does not");
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{refused}");
}

#[test]
fn what_is_no_device_is_named() {
    let directory = directory_on("/var/tmp");
    let error = DeviceFile::open(directory.path()).expect_err("a directory");
    assert!(matches!(error.problem, Problem::NotADevice), "{error}");
    let error = DeviceFile::open(Path::new("/dev/null")).expect_err("a character device");
    assert!(matches!(error.problem, Problem::NotADevice), "{error}");
    let error = DeviceFile::open(&directory.path().join("absent")).expect_err("nothing");
    assert!(error.to_string().contains("absent"), "{error}");
    let path = directory.path().join("there");
    std::fs::write(&path, b"precious").expect("written");
    let error = DeviceFile::create(&path, 4096).expect_err("exists");
    assert!(matches!(error.problem, Problem::Exists), "{error}");
    assert_eq!(std::fs::read(&path).expect("untouched"), b"precious");
}
