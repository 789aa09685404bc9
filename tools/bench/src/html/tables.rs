//! What a report says in words and tables.

use std::fmt::Write as _;

use super::{at, escape, time};
use crate::detail::{Detail, SNAPSHOTS_MAX};
use crate::machine::{Device, Machine};
use crate::report::{LatencySummary, Summary, TimesSummary, cores_told};

/// Events that are listed at most.
const HAPPENINGS_MAX: usize = 1000;

/// A table; columns whose name begins with `>` are set to the right. Cells are text.
fn table(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let classes = columns.iter().map(|name| match name.starts_with('>') {
        true => " class=\"end\"",
        false => "",
    });
    let classes: Vec<&str> = classes.collect();
    let mut text = "<div class=\"wide\"><table>\n<thead><tr>".to_owned();
    for (name, class) in columns.iter().zip(&classes) {
        write!(text, "<th{class}>{}</th>", escape(name.trim_start_matches('>'))).expect("into memory");
    }
    text += "</tr></thead>\n<tbody>\n";
    for row in rows {
        text += "<tr>";
        for (cell, class) in row.iter().zip(&classes) {
            write!(text, "<td{class}>{}</td>", escape(cell)).expect("into memory");
        }
        text += "</tr>\n";
    }
    text + "</tbody>\n</table></div>\n"
}

fn pairs(pairs: &[(&str, String)]) -> String {
    let mut text = "<dl>\n".to_owned();
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(text, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value)).expect("into memory");
    }
    text + "</dl>\n"
}

/// Name, target, verdict, and what was done.
pub fn head(summary: &Summary, began: &str) -> String {
    let verdict = match &summary.why {
        Some(why) => format!("{}: {why}", summary.verdict),
        None => summary.verdict.to_owned(),
    };
    let rate = match summary.loop_kind {
        "open" => format!(
            "{:.0} a second, of {:.0}",
            summary.rate_iops, summary.rate_iops_intended
        ),
        _ => format!("{:.0} a second", summary.rate_iops),
    };
    let generator = summary.calibration.map(|one| {
        format!(
            "{:.0} ns for each request, {}",
            one.request_ns,
            cores_told(&summary.cores)
        )
    });
    let late = match (summary.loop_kind, summary.late) {
        ("open", 0) => "all on time".to_owned(),
        ("open", late) => format!("{late} late, the latest by {}", time(summary.late_ns_max as f64)),
        _ => "whenever another request has ended".to_owned(),
    };
    format!(
        "<header>\n<h1>{}</h1>\n<p class=\"verdict {}\">{}</p>\n{}</header>\n",
        escape(&summary.name),
        summary.verdict,
        escape(&verdict),
        pairs(&[
            ("target", summary.target.clone()),
            ("began", began.to_owned()),
            (
                "requests",
                format!("{} in {}: {rate}", summary.requests, time(summary.time_ns as f64))
            ),
            (
                "bytes",
                format!("{:.1} MB a second", summary.bytes_per_second / 1e6)
            ),
            ("threads", summary.threads.to_string()),
            ("starts", late),
            (
                "errors",
                if summary.errors > 0 {
                    summary.errors.to_string()
                } else {
                    String::new()
                }
            ),
            ("generator", generator.unwrap_or_default()),
        ])
    )
}

/// Percentiles of each kind of request.
pub fn latencies(summary: &Summary) -> String {
    let kinds: [(&str, &LatencySummary); 5] = [
        ("all", &summary.all),
        ("read", &summary.reads),
        ("write", &summary.writes),
        ("discard", &summary.discards),
        ("flush", &summary.flushes),
    ];
    let row = |name: String, times: &TimesSummary| {
        let times_of = times.in_order_ns().map(|ns| time(ns as f64));
        [name, times.count.to_string()]
            .into_iter()
            .chain(times_of)
            .collect()
    };
    let rows = kinds
        .into_iter()
        .filter(|(_, latency)| latency.response.count > 0)
        .flat_map(|(name, latency)| {
            [
                row(format!("{name} response"), &latency.response),
                row(format!("{name} service"), &latency.service),
            ]
        });
    let columns = [
        "",
        ">requests",
        ">min",
        ">p50",
        ">p90",
        ">p99",
        ">p99.9",
        ">p99.99",
        ">max",
    ];
    table(&columns, rows)
}

/// The list of stalls, and what counts as one.
pub fn stalls(detail: &Detail) -> String {
    let stalls = &detail.stalls;
    let (usual, threshold) = (time(stalls.usual_ns as f64), time(stalls.threshold_ns as f64));
    let slot = time(detail.slot_ns as f64);
    let says = format!(
        "<p>A stall is where responses took longer than {threshold}. The usual is {usual}: the median of the longest response of each \
         {slot}; a stall is ten times that, at least 1 ms and at most 100 ms above it. It lasts from when its first request was to \
         start to the end of its last. Beside it stands what happened meanwhile or up to 10 ms before.</p>\n"
    );
    if stalls.found == 0 {
        return says + "<p>There were none.</p>\n";
    }
    let listed = match stalls.found as usize > stalls.list.len() {
        true => format!("<p>{} stalls; these are the longest.</p>\n", stalls.found),
        false => String::new(),
    };
    let rows = stalls.list.iter().map(|stall| {
        vec![
            at(stall.began_ns as i64),
            time((stall.ended_ns - stall.began_ns) as f64),
            time(stall.response_ns_max as f64),
            stall.requests.to_string(),
            match (&detail.happenings, stall.meanwhile.is_empty()) {
                (None, _) => "the daemon was not asked".to_owned(),
                (Some(_), true) => "nothing that is known".to_owned(),
                (Some(_), false) => stall.meanwhile.join(", "),
            },
        ]
    });
    let columns = [">at", ">lasted", ">longest response", ">requests", "meanwhile"];
    says + &listed + &table(&columns, rows)
}

/// Before and after each snapshot.
pub fn snapshots(detail: &Detail) -> String {
    let rows = detail.snapshots.iter().map(|one| {
        vec![
            at(one.began_ns),
            one.name.clone(),
            time(one.took_ns as f64),
            time(one.before.p99_ns as f64),
            time(one.after.p99_ns as f64),
            time(one.before.max_ns as f64),
            time(one.after.max_ns as f64),
            one.text.clone(),
        ]
    });
    let columns = [
        ">at",
        "snapshot",
        ">took",
        ">p99 before",
        ">p99 after",
        ">longest before",
        ">longest after",
        "the daemon says",
    ];
    let count = detail.snapshots.len();
    let first = if count == SNAPSHOTS_MAX {
        ", the first ones"
    } else {
        ""
    };
    format!(
        "<details{}>\n<summary>Each snapshot: 50 ms before and after ({count}{first})</summary>\n{}</details>\n",
        if count <= 20 { " open=\"open\"" } else { "" },
        table(&columns, rows)
    )
}

/// All events.
pub fn happenings(detail: &Detail) -> String {
    let Some(happenings) = &detail.happenings else {
        return "<p>The daemon was not asked (--daemon).</p>\n".to_owned();
    };
    let clock = match detail.clock_moved_ns {
        0..1_000_000 => String::new(),
        moved => format!(
            "<p>The wall clock was set while this ran: times are wrong by up to {}.</p>\n",
            time(moved as f64)
        ),
    };
    let rows = happenings.iter().take(HAPPENINGS_MAX).map(|one| {
        vec![
            at(one.began_ns),
            time((one.ended_ns - one.began_ns) as f64),
            one.kind.clone(),
            one.subject.clone(),
            one.text.clone(),
        ]
    });
    let columns = [">at", ">took", "what", "of", ""];
    format!(
        "{clock}<details>\n<summary>Events ({})</summary>\n{}</details>\n",
        happenings.len(),
        table(&columns, rows)
    )
}

/// The machine and its devices.
pub fn machine(machine: &Machine) -> String {
    let governor = match machine.governor.as_str() {
        "" => "the kernel has no say in it".to_owned(),
        governor => governor.to_owned(),
    };
    let mut text = pairs(&[
        ("kernel", machine.kernel.clone()),
        ("processor", machine.cpu.clone()),
        ("logical processors", machine.cpus.to_string()),
        ("frequency governor", governor),
        (
            "memory",
            format!("{:.1} GiB", machine.memory_bytes as f64 / f64::from(1 << 30)),
        ),
    ]);
    for device in &machine.devices {
        text += &of_device(device);
    }
    text
}

fn of_device(device: &Device) -> String {
    let known = |text: &Option<String>| text.clone().unwrap_or_default();
    let cache = match device.direct {
        true => "past the page cache (O_DIRECT)",
        false => "through the page cache",
    };
    pairs(&[
        ("device", device.path.clone()),
        ("transfers", cache.to_owned()),
        ("file system", known(&device.filesystem)),
        ("disk", known(&device.disk)),
        ("model", known(&device.model)),
        ("cache of the disk", known(&device.write_cache)),
        ("scheduler", known(&device.scheduler)),
        (
            "turns",
            device
                .rotational
                .map_or_else(String::new, |turns| if turns { "yes" } else { "no" }.to_owned()),
        ),
    ])
}
