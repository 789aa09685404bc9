//! How a command ends: 0 ok, 1 failure, 2 usage, 3 not found, 4 conflict, 5 daemon unreachable.

use std::io::Write;
use std::process::ExitCode;

use stillpoint_appliance::{Error, ErrorKind};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// The daemon, or this program, says no.
    Refused(Error),
    /// There is no daemon to talk to.
    Unreachable(String),
    /// What was printed has no reader any more: not worth a word.
    OutputClosed,
}

impl Failure {
    /// Says it on standard error, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        let mut stderr = std::io::stderr().lock();
        // If even standard error is gone, the exit code has to do.
        match self {
            Self::Refused(error) => {
                let _ = writeln!(stderr, "error: {}", error.message);
                if let Some(hint) = &error.hint {
                    let _ = writeln!(stderr, "hint: {hint}");
                }
            }
            Self::Unreachable(message) => {
                let _ = writeln!(stderr, "error: {message}");
                let _ = writeln!(
                    stderr,
                    "hint: start the daemon with `stillpoint serve`, or name its socket with --socket"
                );
            }
            Self::OutputClosed => {}
        }
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Refused(error) => match error.kind {
                ErrorKind::Usage => 2,
                ErrorKind::NotFound => 3,
                ErrorKind::Conflict => 4,
                ErrorKind::Failure | ErrorKind::NoSpace | ErrorKind::Unavailable => 1,
            },
            Self::Unreachable(_) => 5,
            Self::OutputClosed => 0,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::OutputClosed;
        }
        Self::Refused(Error::failure(format!("cannot write the output: {error}")))
    }
}
