//! The rows of the table: what is asked, what came out, and whether the goal is met.

use std::fmt::Write;

use serde::Serialize;

use crate::machine::Machine;
use crate::report::{dropped, table};
use crate::rounds::CaseResult;
use crate::stats::Spread;

/// What a figure is to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// A goal, and the figure that it is about.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// What the figure is.
    pub what: String,
    /// What it was, over the rounds that count.
    pub measured: Spread,
    /// What it is to be.
    pub bound: Bound,
    /// Whether its median is.
    pub met: bool,
}

impl Goal {
    /// The median of `measured` against `bound`.
    #[must_use]
    pub fn new(what: impl Into<String>, measured: Spread, bound: Bound) -> Self {
        let met = match bound {
            Bound::AtLeast(least) => measured.median >= least,
            Bound::AtMost(most) => measured.median <= most,
        };
        Self {
            what: what.into(),
            measured,
            bound,
            met,
        }
    }

    fn line(&self) -> String {
        let (word, bound) = match self.bound {
            Bound::AtLeast(least) => ("at least", least),
            Bound::AtMost(most) => ("at most", most),
        };
        let Spread { median, min, max } = self.measured;
        let digits = if median.abs() >= 1000.0 { 0 } else { 2 };
        format!(
            "{} | {median:.digits$} ({min:.digits$}..{max:.digits$}) | {word} {bound} | {}",
            self.what,
            if self.met { "met" } else { "**not met**" }
        )
    }
}

/// A row of the table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Its letter.
    pub letter: String,
    /// What is done.
    pub title: String,
    /// What was measured.
    pub cases: Vec<CaseResult>,
    /// What was to come of it.
    pub goals: Vec<Goal>,
    /// More that a reader has to know.
    pub notes: Vec<String>,
    /// Why it was not measured.
    pub skipped: Option<String>,
}

impl Row {
    /// An empty row.
    #[must_use]
    pub fn new(letter: &str, title: &str) -> Self {
        Self {
            letter: letter.into(),
            title: title.into(),
            ..Self::default()
        }
    }
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How, in a sentence.
    pub method: String,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Report {
    /// The report as Markdown: the verdicts first, then every row.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("Machine: {}.\n\n{}\n\n", self.machine, self.method);
        text += "| row | figure | median (min..max) | goal | verdict |\n|---|---|---:|---:|---|\n";
        for row in &self.rows {
            for goal in &row.goals {
                let _ = writeln!(text, "| {} | {} |", row.letter, goal.line());
            }
            if let Some(why) = &row.skipped {
                let _ = writeln!(text, "| {} | {} | | | skipped: {why} |", row.letter, row.title);
            }
        }
        for row in self.rows.iter().filter(|row| row.skipped.is_none()) {
            let _ = write!(text, "\n## {}: {}\n", row.letter, row.title);
            for case in &row.cases {
                let _ = write!(text, "\n### {}\n\n{}", case.case, table(case));
                if case.dropped() > 0 {
                    let _ = writeln!(text, "\nRounds{}", dropped(case));
                }
            }
            for note in &row.notes {
                let _ = writeln!(text, "\n{note}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_by_its_median_and_a_row_that_was_skipped_says_why() {
        let spread = |median| Spread {
            median,
            min: 0.5,
            max: 3.0,
        };
        assert!(Goal::new("x", spread(0.9), Bound::AtLeast(0.85)).met);
        assert!(!Goal::new("x", spread(0.8), Bound::AtLeast(0.85)).met);
        assert!(!Goal::new("x", spread(1.3), Bound::AtMost(1.2)).met);
        let mut met = Row::new("a", "reads");
        met.goals
            .push(Goal::new("ours to lean", spread(0.9), Bound::AtLeast(0.85)));
        let mut skipped = Row::new("b", "writes");
        skipped.skipped = Some("no zram".into());
        let report = Report {
            machine: Machine::look(std::path::Path::new("/")),
            method: "how".into(),
            rows: vec![met, skipped],
        };
        let text = report.markdown();
        assert!(
            text.contains("| a | ours to lean | 0.90 (0.50..3.00) | at least 0.85 | met |"),
            "{text}"
        );
        assert!(text.contains("skipped: no zram"), "{text}");
    }
}
