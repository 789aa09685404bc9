//! The appliance's API over its socket: one connection, one request after the other, so that what is timed is the
//! appliance and not the start of a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Failure;

/// How often it is asked whether space has come back, and for how long.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(600);

/// A connection to the control socket.
#[derive(Debug)]
pub struct Api {
    stream: BufReader<UnixStream>,
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(socket: &Path) -> Result<Self, Failure> {
        let stream = BufReader::new(UnixStream::connect(socket)?);
        Ok(Self { stream })
    }

    /// Sends a request; gives the answer and how long it took.
    ///
    /// # Errors
    /// The appliance refuses, or the connection breaks.
    pub fn ask(&mut self, method: &str, path: &str, body: &Value) -> Result<(Value, Duration), Failure> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: stillpoint\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let begun = Instant::now();
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (status, answer) = self.answer()?;
        let took = begun.elapsed();
        if !(200..300).contains(&status) {
            return Err(format!("{method} {path}: {status} {}", String::from_utf8_lossy(&answer)).into());
        }
        let value = if answer.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&answer)?
        };
        Ok((value, took))
    }

    /// Takes a snapshot of a volume; gives what is said of it and how long that took.
    ///
    /// # Errors
    /// As [`Api::ask`].
    pub fn take_snapshot(&mut self, volume: &str, name: &str) -> Result<(Value, Duration), Failure> {
        self.ask(
            "POST",
            "/v1/snapshots",
            &json!({"volumes": [volume], "name": name}),
        )
    }

    /// Deletes a snapshot; gives how long the command took. Its space comes free in the background.
    ///
    /// # Errors
    /// As [`Api::ask`].
    pub fn delete_snapshot(&mut self, volume: &str, name: &str) -> Result<Duration, Failure> {
        let path = format!("/v1/snapshots/{volume}@{name}");
        Ok(self.ask("DELETE", &path, &Value::Null)?.1)
    }

    /// Deletes snapshots of a volume with one command; gives how long it took. Their space comes free in the background.
    ///
    /// # Errors
    /// As [`Api::ask`].
    pub fn delete_snapshots(&mut self, volume: &str, names: &[String]) -> Result<Duration, Failure> {
        let names: Vec<String> = names.iter().map(|name| format!("{volume}@{name}")).collect();
        let request = json!({"snapshots": names});
        Ok(self.ask("POST", "/v1/snapshots/delete", &request)?.1)
    }

    /// Bytes in use in a pool: data and maps, of volumes and of snapshots.
    ///
    /// # Errors
    /// As [`Api::ask`].
    pub fn used_bytes(&mut self, pool: &str) -> Result<u64, Failure> {
        let (info, _) = self.ask("GET", &format!("/v1/pools/{pool}"), &Value::Null)?;
        info["used_bytes"]
            .as_u64()
            .ok_or_else(|| format!("no used_bytes in {info}").into())
    }

    /// Waits until nothing is left to walk of a deleted snapshot, and makes what was freed usable: what `snapshot delete
    /// --wait` does.
    ///
    /// # Errors
    /// It takes longer than ten minutes or cannot end; as [`Api::ask`].
    pub fn wait_for_deletion(&mut self, pool: &str, snapshot: u64) -> Result<(), Failure> {
        let begun = Instant::now();
        let path = format!("/v1/pools/{pool}/deletions/{snapshot}");
        loop {
            let (info, _) = self.ask("GET", &path, &Value::Null)?;
            match info["state"].as_str() {
                Some("gone") => break,
                Some("going") if begun.elapsed() < PATIENCE => thread::sleep(LOOK_AGAIN),
                _ => {
                    return Err(
                        format!("the space of snapshot {snapshot} does not come free: {info}").into(),
                    );
                }
            }
        }
        self.ask("POST", &format!("/v1/pools/{pool}/checkpoint"), &Value::Null)?;
        Ok(())
    }

    /// Waits until a pool uses no more than so much; gives how long that took.
    ///
    /// # Errors
    /// It takes longer than ten minutes; as [`Api::ask`].
    pub fn wait_for_space(&mut self, pool: &str, used_bytes_max: u64) -> Result<Duration, Failure> {
        let begun = Instant::now();
        loop {
            let used = self.used_bytes(pool)?;
            if used <= used_bytes_max {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!(
                    "{used} bytes of pool {pool} are in use after {PATIENCE:?}, and not {used_bytes_max}"
                )
                .into());
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn answer(&mut self) -> Result<(u16, Vec<u8>), Failure> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| format!("no answer in HTTP: {line:?}"))?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok((status, answer))
    }
}
