//! A load generator for block targets that people can trust: latency counts from when a request was meant to start, so that
//! a target that stands still cannot hide it; what the generator itself costs is measured and said; and a run in which it
//! did not keep up fails.
//!
//! ```text
//! Job ──check──> run ──> Worker per thread (Requests, Starts ──> Target) ──> Figures ──> verdict, report, detail, html
//! ```

pub mod compare;
pub mod content;
pub mod detail;
pub mod figures;
pub mod html;
pub mod inside;
pub mod job;
pub mod machine;
pub mod report;
pub mod run;
pub mod schedule;
pub mod snapshot_cost;
pub mod stalls;
pub mod sweep;
pub mod target;
pub mod timeline;
pub mod worker;
