//! What the demo says: plain lines, a progress line on a terminal, and the table at the end.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use super::load::Latencies;
use crate::exit::Failure;
use crate::output::table;

/// Where progress is shown and lines are printed.
#[derive(Debug)]
pub struct Report {
    bar: Option<ProgressBar>,
}

impl Report {
    /// A report on standard output; with a progress line if that is a terminal.
    #[must_use]
    pub fn new() -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg}").expect("a template");
            bar.set_style(style);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    /// Shows what is going on, on a terminal.
    pub fn progress(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }

    /// Says something for good.
    ///
    /// # Errors
    /// If nobody reads.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        let say = || {
            let mut stdout = std::io::stdout().lock();
            writeln!(stdout, "{text}")?;
            stdout.flush()
        };
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
        .map_err(Failure::from)
    }

    /// Takes the progress line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.finish();
    }
}

/// One part of the run.
#[derive(Debug)]
pub struct Figures {
    /// Its name.
    pub name: &'static str,
    /// How long it took.
    pub elapsed: Duration,
    /// The latencies of all lanes.
    pub latencies: Latencies,
}

/// The table of the parts of the run, writes and reads.
#[must_use]
pub fn figures(parts: &[Figures]) -> String {
    let rows = parts.iter().flat_map(|part| {
        [
            row(part, "writes", &part.latencies.writes),
            row(part, "reads", &part.latencies.reads),
        ]
    });
    let columns = ["", "", ">IOPS", ">P50", ">P99", ">P99.9", ">LONGEST"];
    table(&columns, rows)
}

fn row(part: &Figures, what: &str, latencies: &Histogram<u64>) -> Vec<String> {
    let iops = latencies.len() as f64 / part.elapsed.as_secs_f64();
    vec![
        part.name.to_owned(),
        what.to_owned(),
        grouped(iops as u64),
        time(latencies.value_at_quantile(0.5)),
        time(latencies.value_at_quantile(0.99)),
        time(latencies.value_at_quantile(0.999)),
        time(latencies.max()),
    ]
}

/// A duration in a unit that suits it.
#[must_use]
pub fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{:.1} us", ns as f64 / 1e3),
        10_000..1_000_000 => format!("{} us", ns / 1000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// A number with its thousands set apart.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(time(1500), "1.5 us");
        assert_eq!(time(150_000), "150 us");
        assert_eq!(time(1_500_000), "1.5 ms");
        assert_eq!(time(2_500_000_000), "2.50 s");
    }
}
