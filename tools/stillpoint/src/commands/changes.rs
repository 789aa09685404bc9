//! `stillpoint snapshot changes`: printed while it comes, however much it is.

use std::io::{BufWriter, StdoutLock, Write};

use crate::cli::{Format, Global};
use crate::client::{Client, strange};
use crate::exit::Failure;
use crate::size::Size;
use stillpoint_appliance::api::model::{ChangedRangeInfo, ChangesBegin, ChangesEnd, ChangesLine};

/// Prints what the path tells.
pub fn run(client: &Client, path: &str, global: &Global) -> Result<(), Failure> {
    let mut printed = Printed {
        format: global.output,
        out: BufWriter::new(std::io::stdout().lock()),
        ranges: 0,
        ended: false,
    };
    client.lines(path, |line| {
        let line = serde_json::from_slice(line).map_err(|error| strange(&error.to_string()))?;
        match line {
            ChangesLine::Begin(begin) => printed.begin(&begin)?,
            ChangesLine::Range(range) => printed.range(&range)?,
            ChangesLine::End(end) => printed.end(&end)?,
            ChangesLine::Failed(error) => return Err(Failure::Refused(error)),
        }
        Ok(())
    })?;
    if printed.ended {
        Ok(())
    } else {
        Err(strange("it has no end"))
    }
}

/// The lines so far: a table, or one JSON object with a range on each line.
struct Printed {
    format: Format,
    out: BufWriter<StdoutLock<'static>>,
    ranges: u64,
    ended: bool,
}

impl Printed {
    fn begin(&mut self, begin: &ChangesBegin) -> std::io::Result<()> {
        match self.format {
            Format::Table => writeln!(self.out, "{:>18}  {:>18}  NOW", "OFFSET", "LENGTH"),
            Format::Json => {
                let begin = serde_json::to_string(begin).expect("plain data");
                write!(self.out, "{},\"changes\":[", begin.trim_end_matches('}'))
            }
        }
    }

    fn range(&mut self, range: &ChangedRangeInfo) -> std::io::Result<()> {
        self.ranges += 1;
        match self.format {
            Format::Table => {
                let now = if range.hole { "hole" } else { "data" };
                writeln!(
                    self.out,
                    "{:>18}  {:>18}  {now}",
                    range.offset_bytes, range.length_bytes
                )
            }
            Format::Json => {
                let comma = if self.ranges > 1 { "," } else { "" };
                let range = serde_json::to_string(range).expect("plain data");
                write!(self.out, "{comma}\n{range}")
            }
        }
    }

    fn end(&mut self, end: &ChangesEnd) -> std::io::Result<()> {
        self.ended = true;
        match self.format {
            Format::Table => writeln!(
                self.out,
                "ranges: {}, changed: {}, of it holes now: {}",
                end.ranges,
                Size(end.changed_bytes),
                Size(end.hole_bytes)
            )?,
            Format::Json => {
                let end = serde_json::to_string(end).expect("plain data");
                writeln!(self.out, "\n],{}", end.trim_start_matches('{'))?;
            }
        }
        self.out.flush()
    }
}
