//! The devices of a pool before anything is served: calls that wait, many reads at a time.

use super::{DeviceFile, PoolFiles};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use stillpoint_processor::BLOCK_BYTES;
use stillpoint_processor::ids::DeviceIndex;
use stillpoint_processor::ports::{DeviceError, OpenDevice, Transferred};

/// Reads that run at the same time at most.
const THREADS_MAX: usize = 16;
/// Bytes of one system call at most.
const BOUNCE_BYTES: usize = 1 << 20;

/// Aligned memory for O_DIRECT; what callers bring need not be aligned.
struct Bounce {
    memory: Vec<u8>,
    start: usize,
}

impl Bounce {
    /// Memory for transfers of `length_bytes`, or of [`BOUNCE_BYTES`] if that is less.
    fn new(length_bytes: usize) -> Self {
        let memory = vec![0; length_bytes.min(BOUNCE_BYTES) + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, start }
    }

    fn bytes(&mut self, length_bytes: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + length_bytes]
    }
}

/// Reads and writes the devices of a pool with calls that wait; any thread may do so.
#[derive(Clone, Debug)]
pub struct Opener {
    files: Arc<PoolFiles>,
}

impl Opener {
    /// For these devices.
    #[must_use]
    pub fn new(files: Arc<PoolFiles>) -> Self {
        Self { files }
    }
}

impl OpenDevice for Opener {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        let threads = reads.len().min(THREADS_MAX);
        if threads <= 1 {
            return read_some(&self.files, reads);
        }
        let share = reads.len().div_ceil(threads);
        let files = &self.files;
        std::thread::scope(|scope| {
            for some in reads.chunks_mut(share) {
                scope.spawn(move || read_some(files, some));
            }
        });
    }

    fn write(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES) && offset_bytes.is_multiple_of(BLOCK_BYTES as u64));
        let file = self.files.get(usize::from(device.0)).ok_or(DeviceError::Gone)?;
        let mut bounce = Bounce::new(bytes.len());
        let mut offset = offset_bytes;
        for piece in bytes.chunks(BOUNCE_BYTES) {
            let aligned = bounce.bytes(piece.len());
            aligned.copy_from_slice(piece);
            file.file()
                .write_all_at(aligned, offset)
                .map_err(|error| failure(&error))?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self, device: DeviceIndex) -> Result<(), DeviceError> {
        let file = self.files.get(usize::from(device.0)).ok_or(DeviceError::Gone)?;
        file.file().sync_data().map_err(|error| failure(&error))
    }
}

fn read_some(files: &PoolFiles, reads: &mut [Transferred<'_>]) {
    let longest = reads.iter().map(|read| read.bytes.len()).max().unwrap_or(0);
    let mut bounce = Bounce::new(longest);
    for read in reads {
        read.result = match files.get(usize::from(read.device.0)) {
            Some(file) => read_one(&file, read, &mut bounce).map_err(|error| failure(&error)),
            None => Err(DeviceError::Gone),
        };
    }
}

fn read_one(file: &DeviceFile, read: &mut Transferred<'_>, bounce: &mut Bounce) -> io::Result<()> {
    let mut offset = read.offset_bytes;
    for piece in read.bytes.chunks_mut(BOUNCE_BYTES) {
        let aligned = bounce.bytes(piece.len());
        file.file().read_exact_at(aligned, offset)?;
        piece.copy_from_slice(aligned);
        offset += piece.len() as u64;
    }
    Ok(())
}

fn failure(error: &io::Error) -> DeviceError {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => DeviceError::Os(errno),
        (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero) => DeviceError::Short,
        (None, _) => DeviceError::Os(libc::EIO),
    }
}
