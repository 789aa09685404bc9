use std::process::{Command, Stdio};

use super::*;
use crate::figures::{Ended, Figures, times};
use crate::job::Job;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

fn outcome() -> Outcome {
    let job = Job {
        interval_ns: Some(1_000_000_000),
        ..Job::default()
    };
    let mut figures = Figures::of(&job);
    for number in 1..=1000 {
        figures.ended(Ended {
            kind: if number % 2 == 0 { Kind::Read } else { Kind::Write },
            length_bytes: 4096,
            intended_ns: number * 2_000_000,
            response_ns: number * 1000,
            service_ns: number * 500,
        });
    }
    let verdict = figures.verdict(Duration::from_secs(1));
    Outcome {
        job,
        figures,
        began_wall_ns: 1_700_000_000_000_000_000,
        clock_moved_ns: 0,
        cores: vec![Some(3), None, Some(5)],
        verdict,
    }
}

#[test]
fn the_percentile_text_has_the_columns_and_the_footer_of_others() {
    let mut all = times();
    (1..=1000).for_each(|number| all.record(number * 1000).expect("in bounds"));
    let text = hgrm(&all);
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(2)
        .take_while(|line| !line.starts_with('#'))
        .map(|line| {
            line.split_whitespace()
                .map(|word| word.parse().expect("a number"))
                .collect()
        })
        .collect();
    assert!(rows.len() > 20 && rows.is_sorted_by(|a, b| a[1] <= b[1]));
    let last = rows.last().expect("rows");
    assert_eq!((last[1], last[2], last.len()), (1.0, 1000.0, 3));
    assert!((last[0] - 1000.0).abs() < 1.0, "in microseconds");
    let middle = rows.iter().find(|row| row[1] >= 0.5).expect("a median");
    assert!((middle[0] - 500.0).abs() < 1.0);
    assert!(text.contains("#[Max     =") && text.contains("Total count    =         1000]"));
}

#[test]
fn the_interval_log_is_read_back() {
    let mut bytes = Vec::new();
    write_hlog(&outcome(), &mut bytes).expect("into memory");
    let counts: Vec<(u64, u64)> = (read_here(&bytes).iter())
        .map(|(start_s, times)| (*start_s, times.len()))
        .collect();
    assert_eq!(counts, [(0, 499), (1, 500), (2, 1)]);
}

/// What somebody else's program says of a log: the numbers of each line.
fn read_by_another(log: &[u8]) -> Vec<Vec<f64>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/read_hlog.py");
    let mut python = Command::new("python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut stdin = python.stdin.take().expect("piped");
    stdin.write_all(log).expect("taken");
    drop(stdin);
    let output = python.wait_with_output().expect("it ends");
    assert!(output.status.success(), "it reads the log");
    let text = String::from_utf8(output.stdout).expect("numbers");
    let numbers = |line: &str| {
        line.split(' ')
            .map(|word| word.parse().expect("a number"))
            .collect()
    };
    text.lines().map(numbers).collect()
}

#[test]
fn the_interval_log_is_read_by_somebody_elses_program() {
    let outcome = outcome();
    let mut bytes = Vec::new();
    write_hlog(&outcome, &mut bytes).expect("into memory");
    let rows = read_by_another(&bytes);
    assert_eq!(rows.len(), 3);
    for (index, (row, times)) in rows.iter().zip(&outcome.figures.intervals).enumerate() {
        let (p50, p99) = (times.value_at_quantile(0.5), times.value_at_quantile(0.99));
        // When, how long, the longest in ms; then what is in the histogram.
        assert_eq!(row[..2], [index as f64, 1.0]);
        assert!((row[2] - times.max() as f64 / 1e6).abs() < 0.001, "{row:?}");
        let held = [times.len(), p50, p99, times.max()].map(|number| number as f64);
        assert_eq!(row[3..], held);
    }
}

/// Made by python's hdrhistogram: see `golden/make_foreign_hlog.py`.
const FOREIGN: &[u8] = include_bytes!("../../golden/foreign.hlog");

#[test]
fn a_log_that_somebody_else_wrote_says_the_same_to_both_readers() {
    let held = |row: &[f64]| row.iter().map(|&number| number as u64).collect::<Vec<u64>>();
    let theirs: Vec<Vec<u64>> = read_by_another(FOREIGN)
        .iter()
        .map(|row| held(&row[3..]))
        .collect();
    let ours: Vec<Vec<u64>> = (read_here(FOREIGN).iter())
        .map(|(_, times)| {
            let (p50, p99) = (times.value_at_quantile(0.5), times.value_at_quantile(0.99));
            vec![times.len(), p50, p99, times.max()]
        })
        .collect();
    assert_eq!(ours, theirs);
    // What was put into it, to three digits.
    for (row, put) in ours.iter().zip([
        [1000, 500_000, 990_000, 1_000_000],
        [10_000, 50_000, 50_000, 900_000_000],
        [70_003, 59_000_000_000, 59_000_000_000, 59_000_000_000],
    ]) {
        let near = |(held, put): (&u64, u64)| put <= *held && *held - put <= put / 1000;
        assert!(row.iter().zip(put).all(near), "{row:?} {put:?}");
    }
}

/// The histograms of a log, each with when it starts, in seconds.
fn read_here(log: &[u8]) -> Vec<(u64, Histogram<u64>)> {
    let mut read = Vec::new();
    for entry in IntervalLogIterator::new(log) {
        if let LogEntry::Interval(interval) = entry.expect("a log") {
            let packed = decode_base64(interval.encoded_histogram());
            let times = Deserializer::new().deserialize(&mut &packed[..]);
            read.push((interval.start_timestamp().as_secs(), times.expect("version 2")));
        }
    }
    read
}

fn decode_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    };
    let mut bytes = Vec::new();
    for four in text.as_bytes().chunks(4) {
        let word = four.iter().fold(0, |word, &byte| word << 6 | digit(byte));
        let padding = four.iter().filter(|&&byte| byte == b'=').count();
        bytes.extend_from_slice(&word.to_be_bytes()[1..4 - padding]);
    }
    bytes
}

#[test]
fn a_summary_says_what_happened() {
    let summary = Summary::of(&outcome(), "null:", None);
    let json = serde_json::to_value(&summary).expect("plain data");
    assert_eq!(
        (&json["verdict"], &json["requests"]),
        (&"sound".into(), &1000.into())
    );
    let p50 = json["all"]["response"]["p50_ns"].as_u64().expect("a number");
    assert!((499_000..=501_000).contains(&p50), "{p50}");
    assert_eq!(json["reads"]["response"]["count"], 500);
    assert_eq!(json["cores"], serde_json::json!([3, null, 5]));
    assert_eq!(cores_told(&summary.cores), "on cores 3 and 5, others anywhere");
}
