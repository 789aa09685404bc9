//! Programs that nobody here wrote.

use std::process::{Command, Stdio};

use serde_json::Value;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Whether it said success.
    pub success: bool,
    /// All it said: standard output, then standard error.
    pub text: String,
    /// Standard output alone.
    pub output: String,
}

/// Runs a program; `/usr/sbin` is looked into too. Panics if it is not installed.
pub fn run(program: &str, arguments: &[&str]) -> Ended {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("env")
        .arg(format!("PATH={path}:/usr/sbin:/sbin"))
        .arg("LC_ALL=C")
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("env runs");
    assert_ne!(output.status.code(), Some(127), "{program} is not installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended {
        success: output.status.success(),
        text: text(&output.stdout) + &text(&output.stderr),
        output: text(&output.stdout),
    }
}

/// Runs a program that must succeed; its standard output.
pub fn must(program: &str, arguments: &[&str]) -> String {
    let ended = run(program, arguments);
    assert!(ended.success, "{program} {}\n{}", arguments.join(" "), ended.text);
    ended.output
}

/// Runs a program that must succeed and print JSON.
pub fn json(program: &str, arguments: &[&str]) -> Value {
    let output = must(program, arguments);
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{program}: not JSON ({error}): {output}"))
}
