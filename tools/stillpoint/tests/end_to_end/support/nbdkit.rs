//! Somebody else's NBD server.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::nbd::Connection;

/// nbdkit on a unix socket, ended with the test.
pub struct Nbdkit(Child);

impl Nbdkit {
    /// Starts it with a plugin and its filters, and waits until it answers.
    pub fn start(socket: &Path, arguments: &[&str]) -> Self {
        let child = Command::new("nbdkit")
            .args(["--foreground", "--unix"])
            .arg(socket)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdkit is installed");
        let nbdkit = Self(child);
        for _ in 0..5000 {
            if Connection::open(socket, "").is_ok() {
                return nbdkit;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("nbdkit does not answer");
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
