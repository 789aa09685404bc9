//! The README's tour of mirrors, word for word: its commands are read out of README.md and run, and what they print has to be what stands
//! there.

mod support;

use std::path::Path;
use std::process::Command;

use support::Appliance;

/// The directory of the tour.
const DIRECTORY: &str = "/tmp/sp";

/// The commands of the block that makes a pool with mirrors, each with the lines below it.
fn session(readme: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks = readme.split("```console\n").skip(1);
    let block = blocks.find(|block| block.lines().any(|line| line.contains("--mirror")));
    let block = block.expect("the README makes a pool with mirrors");
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    for line in block.lines().take_while(|line| *line != "```") {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.to_owned(), Vec::new())),
            (None, Some((_, told))) => told.push(line.to_owned()),
            (None, None) => panic!("{line:?} comes before a command"),
        }
    }
    commands
}

/// What lines of output claim: the words, without how wide a column is.
fn claims<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let lines = lines.into_iter().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn the_tour_of_mirrors_prints_what_the_readme_says() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).expect("it is there");
    let appliance = Appliance::started(&["--processors", "2"]);
    let directory = appliance.path("").display().to_string();
    let directory = directory.trim_end_matches('/');
    let socket = appliance.nbd_socket().display().to_string();
    let program = Path::new(env!("CARGO_BIN_EXE_stillpoint"));
    let mut path = program.parent().expect("a directory").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").expect("a path"));
    let commands = session(&readme);
    assert!(commands.len() > 5, "{commands:?}");
    for (command, told) in commands {
        let here = command
            .replace(&format!("{DIRECTORY}/nbd.sock"), &socket)
            .replace(DIRECTORY, directory);
        let told = claims(told.iter().map(String::as_str));
        // What waits may have to wait for longer on a busy machine.
        let tries = if command.starts_with("sleep") { 10 } else { 1 };
        for left in (0..tries).rev() {
            let output = Command::new("sh")
                .args(["-c", &here])
                .env("PATH", &path)
                .env("STILLPOINT_SOCKET", appliance.control_socket())
                .output()
                .expect("a shell");
            let printed = String::from_utf8_lossy(&output.stdout)
                .replace(&socket, &format!("{DIRECTORY}/nbd.sock"))
                .replace(directory, DIRECTORY);
            let errors = String::from_utf8_lossy(&output.stderr);
            let printed = claims(printed.lines());
            if printed == told || left == 0 {
                assert_eq!(printed, told, "{command}: {errors}");
                assert!(output.status.success(), "{command}: {errors}");
                break;
            }
        }
    }
}
