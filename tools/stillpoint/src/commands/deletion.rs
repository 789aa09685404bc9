//! `stillpoint snapshot delete --wait`: how far the freeing has come, up to its end.

use std::io::IsTerminal;
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{DeleteSnapshots, DeletionInfo, SnapshotInfo};

use crate::cli::Global;
use crate::client::{Client, escape, with_query};
use crate::exit::Failure;
use crate::output;
use crate::size::Size;

/// How often the shards are asked.
const GLANCE: Duration = Duration::from_millis(50);
/// Without a terminal, a line is printed each time that so much more of the way is behind, in percent.
const LINE_PERCENT: u64 = 10;

/// Deletes snapshots; with `wait`, waits until the space of each can be used again, or says why that will not be soon.
pub fn run(client: &Client, global: &Global, request: &DeleteSnapshots, wait: bool) -> Result<(), Failure> {
    let pool = [("pool", request.pool.as_deref())];
    let mut infos: Vec<SnapshotInfo> = Vec::new();
    for name in request.snapshots.iter().filter(|_| wait) {
        let path = format!("/v1/snapshots/{}", escape(name));
        infos.push(client.get(&with_query(&path, &pool))?);
    }
    client.post::<()>("/v1/snapshots/delete", request)?;
    for (name, info) in request.snapshots.iter().zip(&infos) {
        await_space(client, global, name, info)?;
    }
    if wait {
        return Ok(());
    }
    let text = match &request.snapshots[..] {
        [one] => format!("snapshot {one} is deleted; its space comes free in the background"),
        many => format!(
            "{} snapshots are deleted; their space comes free in the background",
            many.len()
        ),
    };
    output::say(global, &text)
}

/// Waits until the space of a deleted snapshot can be used again; or says why that will not be soon.
fn await_space(client: &Client, global: &Global, snapshot: &str, info: &SnapshotInfo) -> Result<(), Failure> {
    let of_pool = format!("/v1/pools/{}", escape(&info.pool));
    let mut progress = Progress::new();
    let ended = loop {
        let now: DeletionInfo = client.get(&format!("{of_pool}/deletions/{}", info.id))?;
        progress.show(&now);
        if now.state != "going" {
            break now;
        }
        thread::sleep(GLANCE);
    };
    progress.end();
    let why = match ended.state.as_str() {
        "gone" => {
            // Freed space can be used after the next checkpoint: here it is.
            client.post::<()>(&format!("{of_pool}/checkpoint"), &())?;
            let text = format!(
                "snapshot {snapshot} is deleted, and {} can be used again",
                Size(ended.freed_bytes)
            );
            return output::print(global, &ended, |_| text);
        }
        "branches" => {
            let text = format!(
                "snapshot {snapshot} is deleted; several maps were made of it, and what it holds comes free when no more than one of \
                 them is left"
            );
            return output::print(global, &ended, |_| text);
        }
        "unreadable" => {
            "a page of its map cannot be read: what it holds stays until the pool is opened again"
        }
        _ => "a shard stopped writing: the rest comes free when the pool is opened again",
    };
    Err(
        Error::failure(format!("snapshot {snapshot} is deleted, but {why}"))
            .hint(
                "see the log and `stillpoint events`; close the pool and open it again once the device works",
            )
            .into(),
    )
}

/// On a terminal a bar, elsewhere some lines; on standard error either way.
struct Progress {
    bar: Option<ProgressBar>,
    /// The whole way, as it was told at first.
    whole_bytes: Option<u64>,
    /// Of this a line was printed.
    told_percent: Option<u64>,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {percent}% {msg}").expect("a template");
            ProgressBar::new(100).with_style(style)
        });
        Self {
            bar,
            whole_bytes: None,
            told_percent: None,
        }
    }

    fn show(&mut self, info: &DeletionInfo) {
        // A share whose turn has come may tell more than before it was logged.
        let whole = self.whole_bytes.unwrap_or(0).max(info.left_bytes);
        self.whole_bytes = Some(whole);
        let percent = percent_done(whole, info.left_bytes);
        let freed = Size(info.freed_bytes);
        match &self.bar {
            Some(bar) => {
                bar.set_position(percent);
                bar.set_message(format!("{freed} freed"));
            }
            None if self
                .told_percent
                .is_none_or(|told| percent >= told + LINE_PERCENT) =>
            {
                self.told_percent = Some(percent);
                let (left, whole) = (Size(info.left_bytes), Size(whole));
                eprintln!("freeing: {left} of {whole} left to walk, {freed} freed");
            }
            None => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn percent_done(whole: u64, left: u64) -> u64 {
    match whole {
        0 => 100,
        whole => ((u128::from(whole - left) * 100) / u128::from(whole)) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_that_is_behind_is_told_in_percent() {
        assert_eq!(percent_done(0, 0), 100);
        assert_eq!(percent_done(8, 8), 0);
        assert_eq!(percent_done(u64::MAX, 1), 99);
        assert_eq!(percent_done(u64::MAX, 0), 100);
    }
}
