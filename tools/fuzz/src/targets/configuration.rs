//! What people write: the configuration file, and sizes, durations and dates in it and on the command line.

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
