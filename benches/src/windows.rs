//! Stretches of a writer's time.

use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::stats::{Distribution, Spread};
use crate::writer::{Sample, Writer};
use crate::{Failure, cpu};

/// What was done before is over then.
pub const REST: Duration = Duration::from_millis(500);

/// An instant: the writer's time, and the CPU time that the server had used.
#[derive(Clone, Copy, Debug)]
pub struct Instant {
    ns: u64,
    cpu_s: f64,
}

/// Now.
///
/// # Errors
/// The server is gone.
pub fn now(writer: &Writer, server: u32) -> Result<Instant, Failure> {
    Ok(Instant {
        ns: writer.now_ns(),
        cpu_s: cpu::used_seconds(server)?,
    })
}

/// A window of so long.
///
/// # Errors
/// The server is gone.
pub fn pass(writer: &Writer, server: u32, time: Duration) -> Result<[Instant; 2], Failure> {
    let from = now(writer, server)?;
    thread::sleep(time);
    Ok([from, now(writer, server)?])
}

/// What happened between two instants.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Window {
    /// How long it was.
    pub seconds: f64,
    /// Writes that began in it, per second.
    pub per_second: f64,
    /// How long they took.
    pub latency_us: Distribution,
    /// CPU time of the server for a million writes.
    pub cpu_s_per_million: f64,
}

impl Window {
    /// The writes that began between two instants.
    #[must_use]
    pub fn between(samples: &[Sample], from: Instant, to: Instant) -> Self {
        let within = samples
            .iter()
            .filter(|sample| (from.ns..to.ns).contains(&sample.begun_ns));
        let latency_us = Distribution::of(within.map(|sample| sample.took_ns), 1e3);
        let seconds = (to.ns - from.ns) as f64 / 1e9;
        Self {
            seconds,
            per_second: latency_us.count as f64 / seconds.max(1e-9),
            latency_us,
            cpu_s_per_million: (to.cpu_s - from.cpu_s) / latency_us.count.max(1) as f64 * 1e6,
        }
    }
}

/// Heads of the columns that [`cells`] fills.
pub const HEADS: &str = "writes/s | p50 us | p99 us | p99.9 us | max us | CPU";

/// Medians (and spreads) of windows.
#[must_use]
pub fn cells(windows: &[Window]) -> String {
    let spread = |figure: fn(&Window) -> f64| Spread::of(windows.iter().map(figure));
    let shown = |figure| {
        let spread = spread(figure);
        format!("{:.0} ({:.0}..{:.0})", spread.median, spread.min, spread.max)
    };
    format!(
        "{:.0} | {} | {} | {} | {} | {:.1}",
        spread(|window| window.per_second).median,
        shown(|window| window.latency_us.p50),
        shown(|window| window.latency_us.p99),
        shown(|window| window.latency_us.p99_9),
        shown(|window| window.latency_us.max),
        spread(|window| window.cpu_s_per_million).median,
    )
}

/// How p99 of some windows compares with that of others, round by round.
#[must_use]
pub fn p99_to(of: &[Window], to: &[Window]) -> Spread {
    let pairs = of.iter().zip(to);
    Spread::of(pairs.map(|(of, to)| of.latency_us.p99 / to.latency_us.p99.max(1e-9)))
}

/// The same as text.
#[must_use]
pub fn p99_ratio(of: &[Window], to: &[Window]) -> String {
    let ratio = p99_to(of, to);
    format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max)
}
