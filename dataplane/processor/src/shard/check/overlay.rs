//! Devices that are only read: what is written stays in memory.

use std::collections::BTreeMap;

use crate::BLOCK_BYTES;
use crate::ids::DeviceIndex;
use crate::ports::{DeviceError, OpenDevice, Transferred};

/// Shows what was written on top of what the devices hold; nothing reaches them.
#[derive(Debug)]
pub(super) struct Overlay<'a, D> {
    device: &'a mut D,
    written: BTreeMap<(DeviceIndex, u64), Vec<u8>>,
}

impl<'a, D> Overlay<'a, D> {
    pub(super) fn new(device: &'a mut D) -> Self {
        Self {
            device,
            written: BTreeMap::new(),
        }
    }
}

impl<D: OpenDevice> OpenDevice for Overlay<'_, D> {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        self.device.read_all(reads);
        if self.written.is_empty() {
            return;
        }
        for read in reads {
            let first = read.offset_bytes / BLOCK_BYTES as u64;
            for (block, bytes) in (first..).zip(read.bytes.chunks_exact_mut(BLOCK_BYTES)) {
                if let Some(written) = self.written.get(&(read.device, block)) {
                    bytes.copy_from_slice(written);
                }
            }
        }
    }

    fn write(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let first = offset_bytes / BLOCK_BYTES as u64;
        for (block, bytes) in (first..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            self.written.insert((device, block), bytes.to_vec());
        }
        Ok(())
    }

    fn flush(&mut self, _device: DeviceIndex) -> Result<(), DeviceError> {
        Ok(())
    }
}
