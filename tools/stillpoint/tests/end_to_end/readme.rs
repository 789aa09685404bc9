//! The README's tour, word for word: its commands are read out of README.md and run, and what they print has to be what stands
//! there. Where times and counts are another's each time, numbers are left out of the comparison.

use std::path::Path;
use std::process::Command;

use crate::support::Appliance;

/// The directory of the tour.
const DIRECTORY: &str = "/tmp/sp";

/// A command of the tour, with the lines below it.
type Step = (String, Vec<String>);

/// The commands of each block of the tour, with the lines below them.
fn tour() -> Vec<Vec<Step>> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).expect("it is there");
    let sections = readme.split("\n## ");
    let section = sections.filter(|section| section.starts_with("A tour")).last();
    let blocks = section.expect("there is a tour").split("```console\n").skip(1);
    blocks.map(steps).collect()
}

fn steps(block: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in block.lines().take_while(|line| *line != "```") {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push((command.to_owned(), Vec::new())),
            (None, Some((_, told))) => told.push(line.to_owned()),
            (None, None) => panic!("{line:?} comes before a command"),
        }
    }
    steps
}

/// What lines of output claim: the words, without how wide a column is.
fn words(lines: &[String]) -> Vec<String> {
    let lines = lines.iter().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// The same without numbers, and without what they are numbers of where that is a time.
fn words_without_numbers(lines: &[String]) -> Vec<String> {
    let lines = words(lines).into_iter();
    lines
        .map(|line| {
            let mut shown = String::new();
            for word in line.split(' ') {
                let is_unit_of_time = matches!(word, "ns" | "µs" | "ms" | "s");
                if is_unit_of_time && shown.ends_with("# ") {
                    continue;
                }
                // Digits, and what stands between digits: points, colons, the letters of a time stamp.
                let (first, last) = (
                    word.find(|c: char| c.is_ascii_digit()),
                    word.rfind(|c: char| c.is_ascii_digit()),
                );
                match (first, last) {
                    (Some(first), Some(last)) => {
                        shown += &word[..first];
                        shown.push('#');
                        // Z of a time stamp.
                        shown += word[last + 1..].trim_start_matches('Z');
                    }
                    _ => shown += word,
                }
                shown.push(' ');
            }
            shown
        })
        .collect()
}

/// Where the commands run, and the exit status of the last one.
struct Terminal {
    appliance: Appliance,
    status: i32,
}

impl Terminal {
    fn new() -> Self {
        Self {
            appliance: Appliance::started(&["--processors", "2"]),
            status: 0,
        }
    }

    /// Runs a command; gives what it printed, and whether it went well.
    fn run(&mut self, command: &str) -> (Vec<String>, bool) {
        let directory = self.appliance.path("").display().to_string();
        let directory = directory.trim_end_matches('/');
        let socket = self.appliance.nbd_socket().display().to_string();
        let here = command
            .replace(&format!("{DIRECTORY}/nbd.sock"), &socket)
            .replace(DIRECTORY, directory);
        let program = Path::new(env!("CARGO_BIN_EXE_stillpoint"));
        let mut path = program.parent().expect("a directory").as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").expect("a path"));
        let output = Command::new("sh")
            .args(["-c", &format!("exec 2>&1; (exit {}); {here}", self.status)])
            .current_dir(directory)
            .env("PATH", &path)
            .env("STILLPOINT_SOCKET", self.appliance.control_socket())
            .output()
            .expect("a shell");
        self.status = output.status.code().expect("it was not killed");
        let printed = String::from_utf8_lossy(&output.stdout)
            .replace(&socket, &format!("{DIRECTORY}/nbd.sock"))
            .replace(directory, DIRECTORY);
        (
            printed.lines().map(str::to_owned).collect(),
            output.status.success(),
        )
    }

    /// Runs the commands of a block and compares what `claims` makes of what they print.
    fn follow(&mut self, steps: Vec<Step>, claims: fn(&[String]) -> Vec<String>) {
        for (command, told) in steps {
            let (told_words, fails) = (claims(&told), told.iter().any(|line| line.starts_with("error: ")));
            // What waits may have to wait for longer on a busy machine.
            let tries = if command.starts_with("sleep") { 10 } else { 1 };
            for left in (0..tries).rev() {
                let (printed, went_well) = self.run(&command);
                if claims(&printed) == told_words || left == 0 {
                    assert_eq!(claims(&printed), told_words, "{command}: {}", printed.join("\n"));
                    assert_eq!(went_well, !fails, "{command}: {}", printed.join("\n"));
                    break;
                }
            }
        }
    }
}

#[test]
fn the_tour_of_mirrors_prints_what_the_readme_says() {
    let is_of_mirrors = |steps: &Vec<Step>| steps.iter().any(|(command, _)| command.contains("--mirror"));
    let steps = tour().into_iter().find(is_of_mirrors);
    let steps = steps.expect("the README makes a pool with mirrors");
    assert!(steps.len() > 5, "{steps:?}");
    Terminal::new().follow(steps, words);
}

#[test]
fn the_tour_of_volumes_and_snapshots_prints_what_the_readme_says() {
    let mut terminal = Terminal::new();
    let mut commands = 0;
    for steps in tour() {
        // Another appliance, another test; and what is measured is something else each time.
        let other = ["stillpoint serve", "--mirror", "bench run"];
        if (steps.iter()).any(|(command, _)| other.iter().any(|other| command.contains(other))) {
            continue;
        }
        commands += steps.len();
        terminal.follow(steps, words_without_numbers);
    }
    assert!(commands > 20, "{commands} commands");
}

#[test]
fn numbers_are_left_out_and_nothing_else() {
    let shown = |line: &str| words_without_numbers(&[line.to_owned()])[0].trim_end().to_owned();
    assert_eq!(shown("command to durable   12.0 ms"), "command to durable #");
    assert_eq!(shown("0  6.92 µs  0  0 ns"), "# # # #");
    assert_eq!(shown("data@nightly-20261122T111759Z"), "data@nightly-#");
    assert_eq!(shown("NAME  SHOWS  URI"), "NAME SHOWS URI");
    assert_ne!(shown("data 2 GiB read-only"), shown("data 2 GiB 0 read-only"));
}
