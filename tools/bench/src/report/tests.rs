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
    let mut counts = Vec::new();
    for entry in IntervalLogIterator::new(&bytes) {
        if let Ok(LogEntry::Interval(interval)) = entry {
            let base64 = interval.encoded_histogram();
            let packed = decode_base64(base64);
            let read: Histogram<u64> = Deserializer::new()
                .deserialize(&mut &packed[..])
                .expect("version 2");
            counts.push((interval.start_timestamp().as_secs(), read.len()));
        }
    }
    assert_eq!(counts, [(0, 499), (1, 500), (2, 1)]);
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
