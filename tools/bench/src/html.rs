//! One file for people: everything that a run told, with nothing to load from anywhere. Whatever comes from outside (names
//! of targets, jobs, snapshots, devices, errors) passes [`escape`].

mod charts;
mod plot;
mod tables;

use std::fmt::Write as _;

use crate::detail::Detail;
use crate::report::Summary;

const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/script.js");

/// Text that means itself in HTML, in an element and in a quoted attribute. Control characters, which some readers of XML
/// refuse, become a question mark.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(' '),
            character if character.is_control() => escaped.push('?'),
            character => escaped.push(character),
        }
    }
    escaped
}

/// A time with three digits: `1.25 ms`.
#[must_use]
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns.abs() {
        above if above >= 1e9 => (ns / 1e9, "s"),
        above if above >= 1e6 => (ns / 1e6, "ms"),
        above if above >= 1e3 => (ns / 1e3, "us"),
        _ => return format!("{ns:.0} ns"),
    };
    let digits = match value.abs() {
        above if above >= 99.95 => 0,
        above if above >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

/// A position in the run: seconds with three digits behind the point.
fn at(ns: i64) -> String {
    format!("{:.3} s", ns as f64 / 1e9)
}

/// The whole report. `began` is when the run began to count, for people.
#[must_use]
pub fn html(summary: &Summary, detail: &Detail, began: &str) -> String {
    let title = escape(&format!("{} on {}", summary.name, summary.target));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    page += &tables::head(summary, began);
    page += &section("figures", "Latency", "", &tables::latencies(summary));
    let (all, of_kinds) = detail.curves.split_at(1.min(detail.curves.len()));
    for curve in all {
        page += &section("curve", "Percentiles", CURVE, &charts::curve(curve));
    }
    page += &section(
        "heatmap",
        "Response time over time",
        HEATMAP,
        &charts::heatmap(detail),
    );
    page += &section(
        "throughput",
        "Requests a second",
        THROUGHPUT,
        &charts::throughput(detail),
    );
    page += &section("stalls", "Stalls", "", &tables::stalls(detail));
    page += &section("snapshots", "Around snapshots", "", &around(detail));
    for curve in of_kinds {
        let name = format!("Percentiles of {} requests", curve.what);
        page += &section("curve", &name, "", &charts::curve(curve));
    }
    page += &section("events", "What the daemon did", "", &tables::happenings(detail));
    page += &section("machine", "Machine", "", &tables::machine(&detail.machine));
    write!(
        page,
        "<footer>stillpoint bench {}, data version {}</footer>\n</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
        detail.version
    )
    .expect("into memory");
    page
}

const CURVE: &str = "Response counts from when a request was meant to start, service from when it did. To the right, what is \
                     left above grows smaller by a factor of ten with each line.";
const HEATMAP: &str = "Each column holds the requests that were to start in it; the stronger the colour, the more there were. \
                       Bars at the top are events of the daemon, bands are stalls.";
const THROUGHPUT: &str = "Requests that ended in each column, and those that were to start in it.";

fn section(class: &str, name: &str, says: &str, content: &str) -> String {
    let says = match says {
        "" => String::new(),
        says => format!("<p>{says}</p>\n"),
    };
    format!(
        "<section class=\"{class}\">\n<h2>{}</h2>\n{says}{content}</section>\n",
        escape(name)
    )
}

fn around(detail: &Detail) -> String {
    if detail.happenings.is_none() {
        return "<p>The daemon was not asked (--daemon).</p>\n".to_owned();
    }
    if detail.slot_ns > crate::timeline::SLOT_NS_MIN {
        return format!(
            "<p>This run was too long for single milliseconds: it was kept in steps of {}.</p>\n",
            time(detail.slot_ns as f64)
        );
    }
    if detail.snapshots.is_empty() {
        return "<p>There were none.</p>\n".to_owned();
    }
    format!("{}{}", charts::around(detail), tables::snapshots(detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detail::tests::outcome;
    use crate::machine::Machine;

    fn page() -> String {
        let (outcome, happenings) = outcome();
        let detail = Detail::of(&outcome, Some(happenings), Machine::default()).expect("a timeline");
        let summary = Summary::of(&outcome, "nbd+unix:///<i>?socket='\"&", None);
        html(&summary, &detail, "now <then>")
    }

    /// Every element that is opened is closed, in order; gives how many there were. What scripts and styles have in them is
    /// theirs.
    fn elements(page: &str) -> usize {
        let (mut open, mut count, mut rest) = (Vec::new(), 0, page);
        while let Some(begin) = rest.find('<') {
            let end = begin + rest[begin..].find('>').expect("a tag ends");
            let tag = &rest[begin + 1..end];
            rest = &rest[end + 1..];
            let name: String = tag
                .chars()
                .take_while(|one| !" />".contains(*one) || *one == '!')
                .collect();
            match tag.strip_prefix('/') {
                _ if tag.starts_with('!') => {}
                Some(closed) => assert_eq!(open.pop().as_deref(), Some(closed), "before {rest:.80}"),
                None if tag.ends_with('/') => count += 1,
                None => {
                    count += 1;
                    if name == "style" || name == "script" {
                        rest = &rest[rest.find(&format!("</{name}>")).expect("it ends")..];
                    }
                    open.push(name);
                }
            }
            assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
        }
        assert!(open.is_empty(), "left open: {open:?}");
        count
    }

    #[test]
    fn the_report_is_well_formed_and_needs_nothing_else() {
        let page = page();
        assert!(elements(&page) > 100);
        // The name of the target is only said.
        let page = page.replace("nbd+unix:///", "");
        for outside in [
            "http:", "https:", "url(", "@import", " src=", " href=", "<link", "//",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        for section in [
            "Percentiles",
            "Response time over time",
            "Requests a second",
            "Stalls",
            "Around snapshots",
            "Machine",
        ] {
            assert!(page.contains(section), "{section}");
        }
        assert!(
            !page.contains("NaN") && !page.contains("inf"),
            "every place is a number"
        );
    }

    #[test]
    fn names_mean_themselves() {
        let page = page();
        assert!(page.contains("vol@&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(page.contains("&lt;job&gt; &amp; &quot;co&quot;"));
        assert!(page.contains("now &lt;then&gt;") && page.contains("taken &lt;b&gt;"));
        for raw in ["<script>alert", "<job>", "<then>", "<b>", "<i>", "socket='"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert_eq!(escape("a\u{0}\u{1b}b\nc"), "a??b c");
    }

    #[test]
    fn a_run_without_a_daemon_and_without_requests_has_a_report_too() {
        let (mut outcome, _) = outcome();
        let of = |outcome: &crate::run::Outcome, happenings| {
            let detail = Detail::of(outcome, happenings, Machine::default()).expect("a timeline");
            html(&Summary::of(outcome, "null:", None), &detail, "now")
        };
        let page = of(&outcome, None);
        assert!(page.contains("The daemon was not asked"));
        elements(&page);
        outcome.figures = crate::figures::Figures::of(&outcome.job);
        let page = of(&outcome, Some(Vec::new()));
        elements(&page);
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn times_have_three_digits() {
        let cases = [
            (0.0, "0 ns"),
            (999.0, "999 ns"),
            (1_000.0, "1.00 us"),
            (12_340.0, "12.3 us"),
            (123_400_000.0, "123 ms"),
            (1e9, "1.00 s"),
        ];
        for (ns, expected) in cases {
            assert_eq!(time(ns), expected);
        }
    }
}
