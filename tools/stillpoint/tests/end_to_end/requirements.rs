//! `docs/requirements.md` names tests that exist, and the tests carry the numbers that it gives them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rows of the table: `V1` to `V16`.
const ROWS: usize = 16;

/// A row's number, and the test as `cargo nextest` names it: `module::test`.
type Claim = (String, String);

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Cells of the lines `| V1 | ... | `t module::test` ... |`.
fn claimed(table: &str) -> Vec<Claim> {
    let mut claims = Vec::new();
    for line in table.lines().filter(|line| line.starts_with("| V")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 3, "number, requirement, tests: {line}");
        assert!(!cells[1].is_empty(), "{line}");
        let commands = cells[2].split('`').map(str::trim);
        let before = claims.len();
        for command in commands.filter(|command| !command.is_empty()) {
            let words: Vec<&str> = command.split(' ').collect();
            assert!(
                words.len() == 2 && words[0] == "t",
                "{command:?} is no `t TEST`: {line}"
            );
            claims.push((cells[0].to_owned(), words[1].to_owned()));
        }
        assert!(claims.len() > before, "no test shows it: {line}");
    }
    claims
}

/// Source files of the end-to-end tests below a directory: the module, as in `kill` or `command_line::pools`, and the file.
fn sources(directory: &Path, within: &[String]) -> Vec<(String, PathBuf)> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let module = [within, std::slice::from_ref(&name)].concat();
        if path.is_dir() {
            sources.extend(self::sources(&path, &module));
        } else if name == "mod" {
            sources.push((within.join("::"), path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push((module.join("::"), path));
        }
    }
    sources
}

/// Numbers in a comment before its first colon: `V8, V11: what is shown`.
fn numbers(comment: &str) -> Vec<String> {
    let Some((before, _)) = comment.split_once(':') else {
        return Vec::new();
    };
    let words: Vec<&str> = before.split(", ").map(str::trim).collect();
    let is_number = |word: &&str| {
        let digits = word.strip_prefix('V').unwrap_or("");
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    if words.iter().all(is_number) {
        words.into_iter().map(ToOwned::to_owned).collect()
    } else {
        Vec::new()
    }
}

/// The tests of a source text whose comments carry numbers.
fn carried(module: &str, text: &str) -> Vec<Claim> {
    let mut claims = Vec::new();
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("///") {
            found.extend(numbers(comment));
        } else if line.starts_with("#[") {
            is_test |= line == "#[test]";
        } else {
            if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
                let name = rest.split('(').next().expect("a name");
                let claim = |number| (number, format!("{module}::{name}"));
                claims.extend(found.drain(..).map(claim));
            }
            found.clear();
            is_test = false;
        }
    }
    claims
}

#[test]
fn the_table_and_the_tests_say_the_same() {
    let claimed = claimed(&file("docs/requirements.md"));
    let mut rows: Vec<&String> = claimed.iter().map(|(number, ..)| number).collect();
    rows.dedup();
    let expected: Vec<String> = (1..=ROWS).map(|row| format!("V{row}")).collect();
    assert_eq!(rows, expected.iter().collect::<Vec<_>>(), "every row, in order");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/end_to_end");
    let carried: BTreeSet<Claim> = sources(&tests, &[])
        .into_iter()
        .flat_map(|(module, path)| carried(&module, &fs::read_to_string(path).expect("a source")))
        .collect();
    let claimed: BTreeSet<Claim> = claimed.into_iter().collect();
    let nowhere: Vec<_> = claimed.difference(&carried).collect();
    let unsaid: Vec<_> = carried.difference(&claimed).collect();
    assert!(
        nowhere.is_empty(),
        "docs/requirements.md names tests that are not there, or whose comment lacks the number: {nowhere:?}"
    );
    assert!(
        unsaid.is_empty(),
        "tests carry numbers that docs/requirements.md does not give them: {unsaid:?}"
    );
}

#[test]
fn a_test_that_is_renamed_or_no_test_any_more_is_missed() {
    let source = "/// V8, V11: shown.\n#[test]\n#[cfg(unix)]\nfn here() {\n}\n/// V9: shown.\nfn helper() {}\n/// V2 or so: no.\n#[test]\nfn other() {}\n";
    let claim = |number: &str| (number.to_owned(), "x::here".to_owned());
    assert_eq!(carried("x", source), [claim("V8"), claim("V11")]);
    let table = "| V8 | what | `t x::here` `t y::there` |\n| other | | |\n";
    let there = ("V8".to_owned(), "y::there".to_owned());
    assert_eq!(claimed(table), [claim("V8"), there]);
}
