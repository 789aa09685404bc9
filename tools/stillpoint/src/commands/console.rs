//! `stillpoint console`

use std::io::{BufRead, IsTerminal, Write, stdin};
use std::process::{Command, Stdio};

use serde::Serialize;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::cli::{ConsoleArguments, Format, Global};
use crate::client::control_socket;
use crate::exit::Failure;
use crate::output;
use stillpoint_appliance::Error;
use stillpoint_appliance::console::{self, Options};

/// What programs are told: one line for each address.
#[derive(Debug, Serialize)]
struct Invitation<'a> {
    url: &'a str,
}

/// Serves the console until it is told to stop.
pub fn run(arguments: &ConsoleArguments, global: &Global) -> Result<(), Failure> {
    let options = Options {
        listen: arguments.listen,
        control_socket: control_socket(global),
    };
    let (wish, wishes) = mpsc::channel(1);
    let reads_keys = somebody_may_press_enter();
    let mut pages = Vec::new();
    let mut told = false;
    console::run(&options, wishes, |url| {
        match global.output {
            Format::Json => {
                output::line(&serde_json::to_string(&Invitation { url }).expect("plain data"))?;
            }
            Format::Table => output::line(url)?,
        }
        if told {
            return Ok(());
        }
        told = true;
        if arguments.open {
            pages.push(open(url)?);
        }
        if reads_keys {
            let wish = wish.clone();
            std::thread::spawn(move || wish_on_enter(&wish));
            if global.output == Format::Table {
                output::line("It lets one browser in. Enter: another one. Ctrl-C: the end.")?;
            }
        }
        Ok(())
    })
}

fn wish_on_enter(wish: &mpsc::Sender<()>) {
    for line in stdin().lock().lines() {
        if line.is_err() || wish.blocking_send(()).is_err() {
            return;
        }
    }
}

/// A program in the background that reads from its terminal would be stopped.
fn somebody_may_press_enter() -> bool {
    !stdin().is_terminal()
        || std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_in_foreground(&stat))
}

/// Whether a process is in the foreground of its terminal: by its group and that of the terminal (`proc_pid_stat(5)`).
fn is_in_foreground(stat: &str) -> bool {
    // The name may have anything in it, also blanks and brackets.
    let behind_the_name = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let fields: Vec<&str> = behind_the_name.split(' ').collect();
    let (group, of_the_terminal) = (fields.get(2), fields.get(5));
    group.is_some() && group == of_the_terminal
}

/// Shows an address in the browser, by way of a file that only this user can read: everybody sees the arguments of a program.
fn open(url: &str) -> Result<NamedTempFile, Failure> {
    let cannot =
        |error: std::io::Error| Error::failure(format!("cannot show the console in a browser: {error}"));
    let mut builder = tempfile::Builder::new();
    let mut page = builder
        .prefix("stillpoint-")
        .suffix(".html")
        .tempfile()
        .map_err(cannot)?;
    let refresh = format!("<!doctype html><meta http-equiv=\"refresh\" content=\"0; url={url}\">\n");
    page.write_all(refresh.as_bytes()).map_err(cannot)?;
    let mut browser = Command::new("xdg-open");
    let browser = browser
        .arg(page.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    browser.spawn().map_err(|error| {
        Error::failure(format!("cannot start xdg-open: {error}"))
            .hint("leave out --open, and open the address that is printed")
    })?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_foreground_is_told_by_groups() {
        assert!(is_in_foreground("17 (stillpoint) S 1 17 9 34816 17 4194560 0"));
        assert!(!is_in_foreground("17 (stillpoint) S 1 17 9 34816 9 4194560 0"));
        assert!(is_in_foreground("17 (a) b (c) S 1 17 9 34816 17 4194560 0"));
        assert!(!is_in_foreground("17 (stillpoint) S 1 17 9 0 -1 4194560 0"));
        assert!(!is_in_foreground(""));
    }
}
