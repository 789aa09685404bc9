//! What a row of runs came to, for machines and for people.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::world::Coverage;

/// Which counts are crashes.
const CRASHES: [&str; 4] = [
    "coordinators that died",
    "crashes during recovery",
    "kills",
    "power cuts",
];
/// Which counts are faults of devices and connections.
const FAULTS: [&str; 8] = [
    "blocks dropped in recovery",
    "damage noticed",
    "damaged pools refused",
    "device operations that were made to fail",
    "mirrors: blocks that rotted on one side",
    "mirrors: sides that were lost",
    "nbd connections cut",
    "shards stopped by device errors",
];

/// A row of runs.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Of the code that ran.
    pub commit: String,
    /// What it was called with.
    pub arguments: Vec<String>,
    /// Seconds since 1970 at the start.
    pub started_s: u64,
    /// How long it took, or takes so far.
    pub seconds: f64,
    /// The first seed.
    pub first_seed: u64,
    /// Runs that kept all laws.
    pub passed: u64,
    /// Runs that did not: seed and reason.
    pub failed: Vec<(u64, String)>,
    /// What the runs came across.
    pub coverage: Coverage,
    /// Branches that could have been reached; among what was come across they are counted under their texts.
    pub branches: Vec<&'static str>,
}

impl Report {
    /// How often something was come across.
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        self.coverage.0.get(what).copied().unwrap_or(0)
    }

    fn some<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Value {
        let counts = names
            .into_iter()
            .map(|name| (name.to_string(), json!(self.count(name))));
        Value::Object(counts.collect())
    }

    fn others(&self) -> impl Iterator<Item = &str> {
        let counts = self.coverage.0.keys().copied();
        counts
            .filter(|name| !CRASHES.contains(name) && !FAULTS.contains(name) && !self.branches.contains(name))
    }

    /// For machines.
    #[must_use]
    pub fn json(&self) -> String {
        let failed: Vec<Value> = self
            .failed
            .iter()
            .map(|(seed, why)| json!({ "seed": seed, "why": why }))
            .collect();
        let reached = self.branches.iter().filter(|branch| self.count(branch) > 0);
        let never = self.branches.iter().filter(|branch| self.count(branch) == 0);
        let report = json!({
            "commit": self.commit,
            "arguments": self.arguments,
            "started_s": self.started_s,
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "seeds": { "first": self.first_seed, "passed": self.passed, "failed": failed },
            "operations": self.count("operations"),
            "snapshots": self.count("snapshots taken"),
            "crashes": self.some(CRASHES),
            "faults": self.some(FAULTS),
            "counts": self.some(self.others()),
            "branches": {
                "all": self.branches.len(),
                "reached": Value::Object(reached.map(|branch| ((*branch).to_string(), json!(self.count(branch)))).collect()),
                "never_reached": never.collect::<Vec<_>>(),
            },
        });
        format!("{report:#}\n")
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |words: String| writeln!(text, "{words}").expect("a string takes everything");
        line(format!("stillpoint-sim {}", self.arguments.join(" ")));
        line(format!("commit {}, {:.1} s", self.commit, self.seconds));
        line(format!(
            "{} seeds from {} on: {} passed, {} failed",
            self.passed + self.failed.len() as u64,
            self.first_seed,
            self.passed,
            self.failed.len()
        ));
        for (seed, why) in &self.failed {
            line(format!("  seed {seed}: {why}"));
        }
        let groups: [(&str, Vec<&str>); 3] = [
            ("crashes", CRASHES.to_vec()),
            ("faults", FAULTS.to_vec()),
            ("counts", self.others().collect()),
        ];
        for (group, names) in groups {
            line(format!("\n{group}"));
            for name in names {
                line(format!("{:>12}  {name}", self.count(name)));
            }
        }
        let reached = self.branches.iter().filter(|branch| self.count(branch) > 0);
        line(format!(
            "\nbranches: {} of {} reached",
            reached.count(),
            self.branches.len()
        ));
        for branch in &self.branches {
            line(format!("{:>12}  {branch}", self.count(branch)));
        }
        text
    }

    /// Writes the report to `file`, and the readable one beside it with `.txt` added to its name. A reader never sees
    /// half of one.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let with = |extension: &str| {
            let mut name = file.as_os_str().to_owned();
            name.push(extension);
            name
        };
        for (place, content) in [
            (file.as_os_str().to_owned(), self.json()),
            (with(".txt"), self.text()),
        ] {
            let new = with(".new");
            std::fs::write(&new, content)?;
            std::fs::rename(&new, &place)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let mut report = Report {
            commit: "abc".to_string(),
            passed: 3,
            failed: vec![(17, "I1: it was gone".to_string())],
            branches: vec!["the log wraps", "the moon is blue"],
            ..Report::default()
        };
        report.coverage.add("kills", 5);
        report.coverage.add("operations", 700);
        report.coverage.add("the log wraps", 2);
        let json: Value = serde_json::from_str(&report.json()).expect("JSON");
        assert_eq!(json["crashes"]["kills"], 5);
        assert_eq!(json["operations"], 700);
        assert_eq!(json["seeds"]["failed"][0]["seed"], 17);
        assert_eq!(json["branches"]["reached"]["the log wraps"], 2);
        assert_eq!(json["branches"]["never_reached"][0], "the moon is blue");
        let text = report.text();
        for words in [
            "3 passed, 1 failed",
            "seed 17: I1: it was gone",
            "5  kills",
            "700  operations",
            "branches: 1 of 2 reached",
            "0  the moon is blue",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }
}
