//! The devices while a pool is being made or opened: calls that wait, and may stop working half way.

use stillpoint_processor::ports::{DeviceError, OpenDevice, Transferred};
use stillpoint_processor::{BLOCK_BYTES, DeviceIndex};

use super::Devices;
use super::disk::Page;

/// Calls that wait. With a number of calls given, everything after them fails: the process "dies" there.
pub struct OpenPort {
    devices: Devices,
    calls_left: Option<u64>,
    calls: u64,
}

impl OpenPort {
    pub(super) fn new(devices: Devices, calls: Option<u64>) -> Self {
        Self {
            devices,
            calls_left: calls,
            calls: 0,
        }
    }

    /// Calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls
    }

    fn is_there(&self, device: DeviceIndex) -> Result<(), DeviceError> {
        if self.devices.is_lost(usize::from(device.0)) {
            return Err(DeviceError::Gone);
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), DeviceError> {
        self.calls += 1;
        match &mut self.calls_left {
            None => Ok(()),
            Some(0) => Err(DeviceError::Gone),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

impl OpenDevice for OpenPort {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        for read in reads {
            read.result = self.count().and_then(|()| self.is_there(read.device));
            if read.result.is_err() {
                continue;
            }
            let first = read.offset_bytes / BLOCK_BYTES as u64;
            for (block, chunk) in (first..).zip(read.bytes.chunks_exact_mut(BLOCK_BYTES)) {
                self.devices.peek(usize::from(read.device.0), block, chunk);
            }
        }
    }

    fn write(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        assert_eq!(offset_bytes % BLOCK_BYTES as u64, 0, "writes are whole blocks");
        assert_eq!(bytes.len() % BLOCK_BYTES, 0, "writes are whole blocks");
        self.count()?;
        self.is_there(device)?;
        self.devices.with_room(|room| {
            let first = offset_bytes / BLOCK_BYTES as u64;
            for (block, chunk) in (first..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
                let page: [u8; BLOCK_BYTES] = chunk.try_into().expect("chunks of a block");
                room.disks[usize::from(device.0)].write(block, Page::new(page));
            }
        });
        Ok(())
    }

    fn flush(&mut self, device: DeviceIndex) -> Result<(), DeviceError> {
        self.count()?;
        self.is_there(device)?;
        self.devices.with_room(|room| {
            let disk = &mut room.disks[usize::from(device.0)];
            disk.flush(disk.writes());
        });
        Ok(())
    }
}
