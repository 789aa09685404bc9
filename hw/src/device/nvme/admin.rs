//! Identify and logs of a device of this machine, through the kernel (`NVME_IOCTL_ADMIN_CMD`).

use super::command::{Command, IDENTIFY_CONTROLLER, IDENTIFY_NAMESPACE};
use super::identify::{IDENTIFY_BYTES, IdentifyController, IdentifyNamespace};
use super::smart::{SMART_BYTES, SMART_PAGE, SmartLog};
use super::status;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `_IOWR('N', 0x41, struct nvme_passthru_cmd)`
const NVME_IOCTL_ADMIN_CMD: libc::Ioctl = 0xc048_4e41_u32 as libc::Ioctl;
/// `_IO('N', 0x40)`
const NVME_IOCTL_ID: libc::Ioctl = 0x4e40;

/// A controller (`/dev/nvme0`) to be asked.
#[derive(Debug)]
pub struct Controller {
    file: File,
}

impl Controller {
    /// Opens the controller's character device.
    ///
    /// # Errors
    /// What the system said; needs root, or read access where the kernel lets others ask (6.2).
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
        })
    }

    /// What the controller says about itself.
    ///
    /// # Errors
    /// What the system or the device said.
    pub fn identify(&self) -> io::Result<IdentifyController> {
        let bytes: [u8; IDENTIFY_BYTES] = self.ask(Command::identify(IDENTIFY_CONTROLLER, 0))?;
        Ok(IdentifyController::read(&bytes).expect("as long as it is"))
    }

    /// What it says about a namespace.
    ///
    /// # Errors
    /// What the system or the device said.
    pub fn identify_namespace(&self, namespace: u32) -> io::Result<IdentifyNamespace> {
        let bytes: [u8; IDENTIFY_BYTES] = self.ask(Command::identify(IDENTIFY_NAMESPACE, namespace))?;
        Ok(IdentifyNamespace::read(&bytes).expect("as long as it is"))
    }

    /// Its health.
    ///
    /// # Errors
    /// What the system or the device said.
    pub fn smart(&self) -> io::Result<SmartLog> {
        let bytes: [u8; SMART_BYTES] = self.ask(Command::log_page(SMART_PAGE, SMART_BYTES as u32))?;
        Ok(SmartLog::read(&bytes).expect("as long as it is"))
    }

    /// Sends an admin command that reads `BYTES`, and waits.
    fn ask<const BYTES: usize>(&self, command: Command) -> io::Result<[u8; BYTES]> {
        let mut data = Box::new([0; BYTES]);
        let mut command = into_memory(command, &mut data[..]);
        // SAFETY: the kernel reads and writes the 72 bytes of `command` and writes at most BYTES bytes to `data`; both outlive
        // the call, which returns when the device is done. The device writes as much as the command itself says: BYTES for
        // the log, whose length is in the command, and IDENTIFY_BYTES for Identify, which is only asked with as much.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), NVME_IOCTL_ADMIN_CMD, &raw mut command) };
        match result {
            0 => Ok(*data),
            ..0 => Err(io::Error::last_os_error()),
            1.. => Err(io::Error::other(status::text(result as u16))),
        }
    }
}

/// The command with where its answer goes. It has no time-out of its own, so the kernel's counts (a minute as a rule): when a
/// time-out passes, the kernel resets the controller under everybody who uses it, and a question is not worth that.
fn into_memory(command: Command, answer: &mut [u8]) -> Command {
    command.with_data(answer.as_mut_ptr() as usize, answer.len() as u32)
}

/// Number of the namespace behind a block device or generic character device.
///
/// # Errors
/// What the system said; it is no namespace.
pub fn namespace_of(device: &File) -> io::Result<u32> {
    // SAFETY: takes no argument and touches no memory of ours.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), NVME_IOCTL_ID) };
    match result {
        1.. => Ok(result as u32),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_question_has_a_time_out_that_resets_the_controller() {
        let mut answer = [0; IDENTIFY_BYTES];
        for command in [
            Command::identify(IDENTIFY_CONTROLLER, 0),
            Command::identify(IDENTIFY_NAMESPACE, 1),
            Command::log_page(SMART_PAGE, SMART_BYTES as u32),
        ] {
            let sent = into_memory(command, &mut answer);
            assert_eq!(sent.timeout_ms, 0, "opcode {:#x}", sent.opcode);
            assert_eq!(sent.data_length.get() as usize, IDENTIFY_BYTES);
        }
    }

    #[test]
    fn what_is_no_controller_says_so() {
        let controller = Controller::open(Path::new("/dev/null")).expect("there");
        assert!(controller.identify().is_err() && controller.smart().is_err());
        assert!(namespace_of(&controller.file).is_err());
        assert!(Controller::open(Path::new("/dev/nvme-none")).is_err());
    }
}
