//! The one error of the control plane: what kind, what happened, what to do next.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::mailbox::MailboxError;

/// What kind of failure it is; decides the HTTP status and the exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong: HTTP 400, exit code 2.
    Usage,
    /// The thing is not there: HTTP 404, exit code 3.
    NotFound,
    /// The thing is there already, or in use: HTTP 409, exit code 4.
    Conflict,
    /// There is no room: HTTP 507, exit code 1.
    NoSpace,
    /// Something failed: HTTP 500, exit code 1.
    Failure,
    /// The appliance is busy or stopping: HTTP 503, exit code 1.
    Unavailable,
}

impl ErrorKind {
    /// The HTTP status code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Usage => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Failure => 500,
            Self::Unavailable => 503,
            Self::NoSpace => 507,
        }
    }
}

/// An error of the control plane; as JSON, the body of every response that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What kind.
    pub kind: ErrorKind,
    /// What happened: names the thing and the limit.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A result of the control plane.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// The request is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// Something is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Something is there already, or in use.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// Something failed.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failure, message)
    }

    /// The same error with what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error, saying what was being done.
    #[must_use]
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<MailboxError> for Error {
    fn from(error: MailboxError) -> Self {
        Self::new(ErrorKind::Unavailable, error.to_string())
    }
}

impl From<stillpoint_processor::RequestError> for Error {
    fn from(error: stillpoint_processor::RequestError) -> Self {
        use stillpoint_processor::RequestError as From;
        let hint = match error {
            From::NoSpace => "delete snapshots or volumes, or discard data",
            From::ShardStopped | From::Io => {
                "see the log and `status`; close the pool and open it again once the device works"
            }
            From::Corrupt => "see the log for the place",
            From::NotFound | From::NoBase | From::ReadOnly | From::OutOfRange | From::ShuttingDown => {
                return Self::new(kind_of(error), error.to_string());
            }
        };
        Self::new(kind_of(error), error.to_string()).hint(hint)
    }
}

fn kind_of(error: stillpoint_processor::RequestError) -> ErrorKind {
    use stillpoint_processor::RequestError as From;
    match error {
        From::NoSpace => ErrorKind::NoSpace,
        From::NotFound | From::NoBase => ErrorKind::NotFound,
        From::ShuttingDown => ErrorKind::Unavailable,
        From::ReadOnly | From::OutOfRange => ErrorKind::Usage,
        From::Io | From::Corrupt | From::ShardStopped => ErrorKind::Failure,
    }
}
