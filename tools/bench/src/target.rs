//! What is measured: a file or block device, an NBD export, the data plane in this process, or nothing at all.

mod file;
mod inside;
mod nbd;
mod null;

pub use file::FileTarget;
pub use inside::{InsideTarget, buffer_bytes};
pub use nbd::{NbdTarget, NbdUri};
pub use null::NullTarget;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stillpoint_export::nbd::client::ClientError;
use stillpoint_hw::device::nvme::passthrough::DurableWrites;
use stillpoint_hw::device::{DeviceFile, DeviceFileError, PoolFiles, Problem};
use stillpoint_hw::discovery::nvme::block_path;

use crate::inside::{Inside, Options, Place};
use crate::job::{Job, WriteMode};
use crate::schedule::Request;

/// One thread's way to a target. Nothing waits but [`Target::wait`].
pub trait Target {
    /// Starts a request; it comes back with this number. The payload of a write is as long as the request.
    ///
    /// # Errors
    /// The target is gone.
    fn start(&mut self, number: u32, request: Request, payload: &[u8]) -> Result<(), TargetError>;

    /// Sends what was started, and hands over the requests that have ended: their number, how they ended, and what was
    /// read.
    ///
    /// # Errors
    /// The target is gone.
    fn poll(&mut self, ended: impl FnMut(u32, Result<(), String>, &[u8])) -> Result<(), TargetError>;

    /// Sends what was started, and sleeps until something may have ended, or for `timeout_ns`.
    ///
    /// # Errors
    /// The target is gone.
    fn wait(&mut self, timeout_ns: u64) -> Result<(), TargetError>;
}

/// Why a target cannot be used.
#[derive(Debug)]
pub enum TargetError {
    /// The file or device cannot be opened.
    File(DeviceFileError),
    /// The NBD server says no, or is gone.
    Nbd(ClientError),
    /// Something else, in words.
    Other(String),
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Nbd(error) => error.fmt(f),
            Self::Other(words) => f.write_str(words),
        }
    }
}

impl std::error::Error for TargetError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File(error) => Some(error),
            Self::Nbd(error) => Some(error),
            Self::Other(_) => None,
        }
    }
}

impl From<ClientError> for TargetError {
    fn from(error: ClientError) -> Self {
        Self::Nbd(error)
    }
}

/// How a target is named on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// `null:`, or `null:SIZE_BYTES`: every request ends at once.
    Null(u64),
    /// A path.
    File(PathBuf),
    /// `nvme:PATH`: an NVMe namespace, by commands of our own.
    Nvme(PathBuf),
    /// `nbd+unix:///EXPORT?socket=PATH`, `nbd://HOST[:PORT]/EXPORT`.
    Nbd(NbdUri),
    /// `inside:memory`, `inside:PATH` for a file that is made, `inside+force:PATH` for a file or block device that is there:
    /// the data plane in this process, on a pool of its own.
    Inside(Place),
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(size) = text.strip_prefix("null:") {
            if size.is_empty() {
                return Ok(Self::Null(1 << 40));
            }
            let size = size.parse();
            return size
                .map(Self::Null)
                .map_err(|_| format!("{text:?}: after null: comes a size in bytes, or nothing"));
        }
        if let Some(path) = text.strip_prefix("nvme:") {
            return match path {
                "" => Err(format!(
                    "{text:?}: after nvme: comes a namespace, as in nvme:/dev/ng0n1"
                )),
                path => Ok(Self::Nvme(path.into())),
            };
        }
        if text.starts_with("nbd:") || text.starts_with("nbd+") {
            return text.parse().map(Self::Nbd);
        }
        if let Some(place) = text.strip_prefix("inside") {
            let place = match (place.strip_prefix(':'), place.strip_prefix("+force:")) {
                (Some("memory"), _) => Some(Place::Memory),
                (Some(path), _) if !path.is_empty() => Some(Place::New(path.into())),
                (_, Some(path)) if !path.is_empty() => Some(Place::Existing(path.into())),
                (None, None) => None,
                _ => {
                    return Err(format!(
                        "{text:?}: give inside:memory, inside:PATH for a file to be made, or inside+force:PATH for one that is there"
                    ));
                }
            };
            if let Some(place) = place {
                return Ok(Self::Inside(place));
            }
        }
        match text {
            "" => Err("an empty name is no target: give a path, nbd+unix:///EXPORT?socket=PATH, nbd://HOST/EXPORT, nvme:/dev/ng0n1, inside:memory or null:".into()),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null(_) => f.write_str("null:"),
            Self::File(path) => path.display().fmt(f),
            Self::Nvme(path) => write!(f, "nvme:{}", path.display()),
            Self::Nbd(uri) => uri.fmt(f),
            Self::Inside(place) => place.fmt(f),
        }
    }
}

/// How long a file that is in use is tried again: a process with a ring is gone before the kernel has let go of its files.
const IN_USE: Duration = Duration::from_secs(2);

fn open_file(path: &Path, writes: bool) -> Result<Arc<PoolFiles>, TargetError> {
    let begun = Instant::now();
    loop {
        let files = if writes {
            PoolFiles::open(&[path])
        } else {
            PoolFiles::open_to_read(&[path])
        };
        match files {
            Err(error) if matches!(error.problem, Problem::InUse { .. }) && begun.elapsed() < IN_USE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            files => return files.map_err(TargetError::File),
        }
    }
}

/// A namespace for commands of our own. It is claimed as a block device, so that nobody who uses it is disturbed.
fn open_namespace(path: &Path, writes: bool) -> Result<Arc<PoolFiles>, TargetError> {
    let files = open_file(&block_path(path), writes)?.served_by(Some(DurableWrites::Auto));
    let file = files.get(0).expect("it was opened");
    let shown = path.display();
    match (file.passthrough(), file.refused()) {
        (Some(_), _) => Ok(files),
        (None, Some(reason)) => Err(TargetError::Other(format!(
            "{shown} takes no commands of ours: {reason}"
        ))),
        (None, None) => Err(TargetError::Other(format!(
            "{shown} is no NVMe namespace; without nvme: it is measured as it is"
        ))),
    }
}

/// A target that is there.
#[derive(Clone, Debug)]
pub enum Opened {
    /// See [`Name::Null`].
    Null(u64),
    /// See [`Name::File`].
    File(Arc<PoolFiles>),
    /// See [`Name::Nbd`], and its size in bytes.
    Nbd(NbdUri, u64),
    /// See [`Name::Inside`].
    Inside(Arc<Inside>),
}

impl Opened {
    /// Opens it for this job: to read only unless it is to be written.
    ///
    /// # Errors
    /// [`TargetError`]; also if it cannot do what the job asks of it.
    pub fn open(name: &Name, job: &Job) -> Result<Self, TargetError> {
        Ok(match name {
            Name::Null(size_bytes) => Self::Null(*size_bytes),
            Name::File(path) => Self::File(open_file(path, job.writes())?),
            Name::Nvme(path) => Self::File(open_namespace(path, job.writes())?),
            Name::Nbd(uri) => {
                let export = uri.look()?;
                uri.check(&export, job)?;
                Self::Nbd(uri.clone(), export.size_bytes)
            }
            Name::Inside(_) if job.write_mode == WriteMode::Zeroes => {
                return Err(TargetError::Other(format!(
                    "{name} has no zeros of its own, as a server makes discards of them: give --rw trim"
                )));
            }
            Name::Inside(place) => Self::inside(&Options {
                place: place.clone(),
                volume_bytes: job.size_bytes.map(|bytes| bytes + job.offset_bytes),
                threads: job.threads,
                flush_every_ns: None,
            })?,
        })
    }

    /// Makes a pool in this process, with a volume that is written from end to end.
    ///
    /// # Errors
    /// As [`Inside::make`], or a write fails.
    pub fn inside(options: &Options) -> Result<Self, TargetError> {
        let inside = Inside::make(options)?;
        let job = Job {
            lengths: vec![(1 << 20, 1)],
            load: crate::job::Load::Closed { in_flight: 4 },
            ..Job::default()
        };
        let bytes = buffer_bytes(job.in_flight_max(), job.length_bytes_max());
        for index in 0..inside.threads() {
            if inside.is_in_memory() {
                InsideTarget::new(&inside, inside.in_memory(index, bytes)?, &job).fill()?;
            } else {
                InsideTarget::new(&inside, inside.on_files(index, bytes)?, &job).fill()?;
            }
        }
        Ok(Self::Inside(inside))
    }

    /// The files and devices behind, each with whether it is used past the page cache; nothing is known of other targets.
    #[must_use]
    pub fn devices(&self) -> Vec<(PathBuf, bool)> {
        match self {
            Self::File(files) => (files.present())
                .map(|(_, file)| (file.path().to_owned(), file.is_direct()))
                .collect(),
            Self::Inside(inside) => inside.devices(),
            Self::Null(_) | Self::Nbd(..) => Vec::new(),
        }
    }

    /// What came to light about it while it was used, and changes what the figures mean.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let Self::File(files) = self else {
            return Vec::new();
        };
        let remark = |(_, file): (usize, Arc<DeviceFile>)| {
            let (path, error) = (file.path().display().to_string(), file.refused_zeroes()?);
            Some(format!(
                "{path} does not make zeros by itself ({error}): they were written as data"
            ))
        };
        files.present().filter_map(remark).collect()
    }

    /// Its size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Null(size_bytes) | Self::Nbd(_, size_bytes) => *size_bytes,
            Self::File(files) => files.get(0).map_or(0, |file| file.size_bytes()),
            Self::Inside(inside) => inside.size_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_somebody_lets_go_of_soon_is_waited_for() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(1 << 20).expect("it grows");
        let held = PoolFiles::open(&[file.path()]).expect("free");
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        let job = Job {
            read_percent: 0,
            ..Job::default()
        };
        let opened = Opened::open(&Name::File(file.path().to_owned()), &job).expect("free again");
        assert_eq!(opened.size_bytes(), 1 << 20);
        holder.join().expect("no panic");
    }

    #[test]
    fn what_is_no_namespace_takes_no_commands() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(1 << 20).expect("it grows");
        let error = Opened::open(&Name::Nvme(file.path().to_owned()), &Job::default()).expect_err("a file");
        assert!(error.to_string().contains("is no NVMe namespace"), "{error}");
    }

    #[test]
    fn targets_have_names() {
        assert_eq!("null:".parse(), Ok(Name::Null(1 << 40)));
        assert_eq!("null:4096".parse(), Ok(Name::Null(4096)));
        assert_eq!("/dev/sdz".parse(), Ok(Name::File("/dev/sdz".into())));
        assert!(matches!(
            "nbd+unix:///disk?socket=/run/s".parse(),
            Ok(Name::Nbd(_))
        ));
        assert_eq!("nvme:/dev/ng0n1".parse(), Ok(Name::Nvme("/dev/ng0n1".into())));
        assert_eq!(Name::Nvme("/dev/ng0n1".into()).to_string(), "nvme:/dev/ng0n1");
        assert_eq!("inside:memory".parse(), Ok(Name::Inside(Place::Memory)));
        assert_eq!(
            "inside:/tmp/new".parse(),
            Ok(Name::Inside(Place::New("/tmp/new".into())))
        );
        assert_eq!(
            "inside+force:/dev/sdz".parse(),
            Ok(Name::Inside(Place::Existing("/dev/sdz".into())))
        );
        assert_eq!("inside/file".parse(), Ok(Name::File("inside/file".into())));
        for wrong in [
            "",
            "inside:",
            "nvme:",
            "inside+force:",
            "null:x",
            "nbd+tls://host/disk",
            "nbd+unix:///disk",
        ] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
    }
}
