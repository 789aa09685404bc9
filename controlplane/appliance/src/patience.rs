//! Waiting for a process that is dead but not gone.
//!
//! A process that was killed is reaped before the kernel has torn down its io_uring. Until then its last device writes may
//! still be on their way, and its sockets and claims on devices are held. That is as it should be: nobody may open a
//! pool while an old write can land in it. So whatever is in use is tried again for a while.

use std::future::Future;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// How often it is tried.
const TRIES: u32 = 100;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Does `work`, and does it again while it says conflict; gives what it said last.
///
/// # Errors
/// Those of `work`.
pub async fn unless_in_use<T, W>(mut work: impl FnMut() -> W) -> Result<T>
where
    W: Future<Output = Result<T>>,
{
    for _ in 1..TRIES {
        match work().await {
            Err(error) if error.kind == ErrorKind::Conflict => tokio::time::sleep(PAUSE).await,
            result => return result,
        }
    }
    work().await
}

/// Does what waits for devices on a thread of its own: the control plane goes on meanwhile, however long one takes to answer.
///
/// # Errors
/// Those of `work`.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::failure(format!("waiting for devices: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(future)
    }

    #[test]
    fn what_is_in_use_for_a_while_is_waited_for() {
        let mut tries = 0;
        let result = run(unless_in_use(|| {
            tries += 1;
            std::future::ready(if tries < 4 {
                Err(Error::conflict("in use"))
            } else {
                Ok(tries)
            })
        }));
        assert_eq!(result, Ok(4));
    }

    #[test]
    fn other_failures_are_told_at_once() {
        let mut tries = 0;
        let result: Result<()> = run(unless_in_use(|| {
            tries += 1;
            std::future::ready(Err(Error::failure("broken")))
        }));
        assert_eq!((result.is_err(), tries), (true, 1));
    }
}
