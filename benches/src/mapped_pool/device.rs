//! The device that leaves data out.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use stillpoint_ondisk::page::MAGIC;
use stillpoint_processor::ids::DeviceIndex;
use stillpoint_processor::ports::{
    BlockDevice, DeviceError, Full, OpenDevice, Operation, OperationKind, Transferred,
};

use super::Data;
use crate::Failure;

/// A file of which only metadata is written, or everything. A metadata page says that it is one by its magic number, and no
/// operation mixes the two.
#[derive(Debug)]
pub struct MetadataDevice {
    file: Arc<File>,
    data: Data,
    done: Vec<Box<Operation>>,
    together: Vec<u8>,
    written_bytes: u64,
    failed: Option<std::io::Error>,
}

impl MetadataDevice {
    /// Over this file.
    pub fn new(file: Arc<File>, data: Data) -> Self {
        Self {
            file,
            data,
            done: Vec::new(),
            together: Vec::new(),
            written_bytes: 0,
            failed: None,
        }
    }

    /// Bytes that reached the file.
    ///
    /// # Errors
    /// One of them did not.
    pub fn finish(&mut self) -> Result<u64, Failure> {
        match self.failed.take() {
            Some(error) => Err(error.into()),
            None => Ok(self.written_bytes),
        }
    }

    fn transfer(&mut self, operation: &mut Operation) -> std::io::Result<()> {
        for transfer in &operation.transfers {
            let first = transfer.first_segment as usize;
            let segments = &operation.segments[first..first + transfer.segment_count as usize];
            if operation.kind == OperationKind::Write {
                let is_metadata = segments.first().is_some_and(|segment| {
                    let bytes = &operation.buffers[segment.buffer as usize].bytes();
                    bytes[segment.offset_bytes as usize..].starts_with(&MAGIC)
                });
                if !is_metadata && self.data == Data::LeftOut {
                    continue;
                }
                self.together.clear();
                for segment in segments {
                    let start = segment.offset_bytes as usize;
                    let bytes = operation.buffers[segment.buffer as usize].bytes();
                    self.together
                        .extend_from_slice(&bytes[start..start + segment.length_bytes as usize]);
                }
                self.file.write_all_at(&self.together, transfer.offset_bytes)?;
                self.written_bytes += self.together.len() as u64;
                continue;
            }
            let mut at = transfer.offset_bytes;
            for segment in segments {
                let (start, length) = (segment.offset_bytes as usize, segment.length_bytes as usize);
                let bytes = operation.buffers[segment.buffer as usize].bytes_mut();
                self.file.read_exact_at(&mut bytes[start..start + length], at)?;
                at += length as u64;
            }
        }
        Ok(())
    }
}

fn failure(error: &std::io::Error) -> DeviceError {
    error.raw_os_error().map_or(DeviceError::Short, DeviceError::Os)
}

impl BlockDevice for MetadataDevice {
    fn submit(&mut self, mut operation: Box<Operation>) -> Result<(), Full> {
        operation.result = self.transfer(&mut operation).map_err(|error| {
            let said = failure(&error);
            self.failed.get_or_insert(error);
            said
        });
        self.done.push(operation);
        Ok(())
    }

    fn poll(&mut self, completed: &mut Vec<Box<Operation>>) {
        completed.append(&mut self.done);
    }
}

impl OpenDevice for MetadataDevice {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        for read in reads {
            let done = self.file.read_exact_at(read.bytes, read.offset_bytes);
            read.result = done.map_err(|error| failure(&error));
        }
    }

    fn write(&mut self, _device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.file
            .write_all_at(bytes, offset_bytes)
            .map_err(|error| failure(&error))
    }

    fn flush(&mut self, _device: DeviceIndex) -> Result<(), DeviceError> {
        // The whole file is made durable at the end.
        Ok(())
    }
}
