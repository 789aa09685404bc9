//! Printing results.

use std::io::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::cli::{Format, Global};
use crate::exit::Failure;

/// Prints `value` as JSON, or as `table` makes it.
pub fn print<T: Serialize>(
    global: &Global,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let text = match global.output {
        Format::Json => serde_json::to_string_pretty(value).expect("plain data"),
        Format::Table => table(value),
    };
    line(&text)
}

/// Prints what was done, unless a program reads the output.
pub fn say(global: &Global, text: &str) -> Result<(), Failure> {
    match global.output {
        Format::Json => Ok(()),
        Format::Table => line(text),
    }
}

/// Prints a line.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", text.trim_end())?;
    stdout.flush()?;
    Ok(())
}

/// A table without lines. A column whose name begins with `>` is set to the right.
pub fn table(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(columns.iter().map(|name| name.trim_start_matches('>')));
    for (index, name) in columns.iter().enumerate() {
        let column = table.column_mut(index).expect("as many as in the header");
        column.set_padding((0, 2));
        if name.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in rows {
        table.add_row(row);
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Names and values, one pair a line.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = pairs
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// A point in time, in UTC.
pub fn time(ns: u64) -> String {
    if ns == 0 {
        return "-".to_owned();
    }
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map_or_else(|_| ns.to_string(), |stamp| format!("{stamp:.3}"))
}

/// Names, separated by commas; `-` for none.
pub fn list(names: &[String]) -> String {
    if names.is_empty() {
        "-".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["long".to_owned(), "100".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", ">SIZE"], rows),
            "NAME  SIZE\na        1\nlong   100"
        );
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(0), "-");
    }
}
