//! What people write: the configuration file, and sizes, durations and dates in it and on the command line.

use stillpoint_bench::schedule::Requests;
use stillpoint_bench::target::Name;

use crate::bench::words::Words;
use crate::{config, keep, size, when};

pub(super) fn file(data: &[u8]) {
    if let Ok(text) = core::str::from_utf8(data) {
        let _ = config::ConfigFile::parse(text);
    }
}

pub(super) fn sizes(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else {
        return;
    };
    if let Ok(size) = text.parse::<size::Size>() {
        // What is printed may be rounded; what is printed whole is the same size.
        let _ = size.to_string();
    }
    let _ = size::per_second(text);
    let _ = text.parse::<when::Period>();
    let _ = text.parse::<when::Until>();
    if let Ok(rules) = keep::keep_rules(text) {
        let _ = keep::keep_text(&rules);
    }
    let _ = text
        .parse::<size::Duration>()
        .map(|duration| duration.to_string());
}

/// A job file of fio, or the name of a target. What can be done stays within the target.
pub(super) fn bench_job(data: &[u8]) {
    const TARGET_BYTES: u64 = 1 << 30;
    let Ok(text) = core::str::from_utf8(data) else {
        return;
    };
    if let Ok(name) = text.parse::<Name>() {
        let _ = name.to_string();
    }
    let job = Words::of_file(text, None).and_then(|words| words.job(None, Some(1_000_000_000)));
    let Ok(job) = job else {
        return;
    };
    if job.check().is_err() {
        return;
    }
    let Ok((offset_bytes, size_bytes)) = job.area(TARGET_BYTES) else {
        return;
    };
    for thread in [0, job.threads - 1] {
        let mut requests = Requests::new(&job, thread, (offset_bytes, size_bytes));
        for _ in 0..8 {
            let request = requests.take();
            let end_bytes = request.offset_bytes + u64::from(request.length_bytes);
            assert!(request.offset_bytes >= offset_bytes && end_bytes <= offset_bytes + size_bytes);
        }
    }
}
