//! The frame of a chart: scales, grids, lines, what is shown where the pointer is. All inline SVG.

use std::fmt::Write as _;

use super::{escape, time};

/// Size of a chart and of its margins, in its own units.
pub const WIDTH: f64 = 920.0;
pub const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 36.0;

/// From values to places along one side of a chart.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    /// Even steps from `low` to `high`.
    pub fn even(low: f64, high: f64) -> Self {
        Self {
            low,
            high: if high > low { high } else { low + 1.0 },
            logarithmic: false,
        }
    }

    /// Even factors; whole powers of ten around these (both are above 0).
    pub fn factors(low: f64, high: f64) -> Self {
        let low = low.max(1.0).log10().floor();
        let high = high.max(1.0).log10().ceil().max(low + 1.0);
        Self {
            low,
            high,
            logarithmic: true,
        }
    }

    /// From 0 to 1, whatever is beyond put to the edge.
    fn share(self, value: f64) -> f64 {
        let value = if self.logarithmic {
            value.max(1e-9).log10()
        } else {
            value
        };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Round values along it.
    fn ticks(self) -> Vec<f64> {
        if self.logarithmic {
            let few = self.high - self.low <= 2.0;
            let between = if few { &[1.0, 2.0, 5.0][..] } else { &[1.0] };
            let decades = self.low as i32..=self.high as i32;
            return decades
                .flat_map(|decade| between.iter().map(move |factor| 10f64.powi(decade) * factor))
                .filter(|value| value.log10() <= self.high + 1e-9)
                .collect();
        }
        let span = self.high - self.low;
        let power = 10f64.powf((span / 6.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|step| span / step <= 7.0)
            .unwrap_or(span);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|number| number as f64 * step).collect()
    }
}

/// A chart that is being drawn.
#[derive(Debug)]
pub struct Plot {
    x: Scale,
    y: Scale,
    body: String,
    over: String,
    keys: usize,
}

impl Plot {
    /// An empty one.
    pub fn new(x: Scale, y: Scale) -> Self {
        Self {
            x,
            y,
            body: String::new(),
            over: String::new(),
            keys: 0,
        }
    }

    pub fn x(&self, value: f64) -> f64 {
        LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT)
    }

    pub fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.share(value) * (HEIGHT - TOP - BOTTOM)
    }

    /// Lines across for round values, and what these are.
    pub fn grid_y(&mut self, label: impl Fn(f64) -> String) {
        for value in self.y.ticks() {
            let y = self.y(value);
            writeln!(
                self.body,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" class=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                escape(&label(value))
            )
            .expect("into memory");
        }
    }

    /// The same for times.
    pub fn grid_y_times(&mut self) {
        self.grid_y(|ns| time(ns).replace(".00", "").replace(".0", ""));
    }

    /// Lines from top to bottom at these places.
    pub fn grid_x(&mut self, marks: &[(f64, String)]) {
        for (value, label) in marks {
            let x = self.x(*value);
            writeln!(
                self.body,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{:.1}\"/><text x=\"{x:.1}\" y=\"{:.1}\" class=\"middle\">{}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 16.0,
                escape(label)
            )
            .expect("into memory");
        }
    }

    /// The same for round values.
    pub fn grid_x_round(&mut self, label: impl Fn(f64) -> String) {
        let marks: Vec<(f64, String)> = self
            .x
            .ticks()
            .into_iter()
            .map(|value| (value, label(value)))
            .collect();
        self.grid_x(&marks);
    }

    /// A line through these places, broken where there is none; and its name above the chart.
    pub fn line(&mut self, class: &str, name: &str, points: impl IntoIterator<Item = Option<(f64, f64)>>) {
        let mut path = String::new();
        let mut pen = 'M';
        for point in points {
            let Some((x, y)) = point else {
                pen = 'M';
                continue;
            };
            write!(path, "{pen}{:.1} {:.1}", self.x(x), self.y(y)).expect("into memory");
            pen = 'L';
        }
        let x = LEFT + self.keys as f64 * 150.0;
        self.keys += 1;
        writeln!(
            self.over,
            "<path class=\"line {class}\" d=\"{path}\"/><path class=\"line {class}\" d=\"M{x:.1} 14h18\"/>\
             <text x=\"{:.1}\" y=\"18\">{}</text>",
            x + 24.0,
            escape(name)
        )
        .expect("into memory");
    }

    /// Rectangles of one class: left, right, low, high.
    pub fn cells(&mut self, class: &str, cells: impl IntoIterator<Item = (f64, f64, f64, f64)>) {
        let mut path = String::new();
        for (left, right, low, high) in cells {
            let (x, y) = (self.x(left), self.y(high));
            let (width, height) = (self.x(right) - x, self.y(low) - y);
            write!(path, "M{x:.1} {y:.1}h{width:.2}v{height:.2}h-{width:.2}z").expect("into memory");
        }
        if !path.is_empty() {
            writeln!(self.body, "<path class=\"{class}\" d=\"{path}\"/>").expect("into memory");
        }
    }

    /// A band from top to bottom, at least as wide as can be seen.
    pub fn band(&mut self, class: &str, from: f64, to: f64, says: &str) {
        let x = self.x(from);
        let width = (self.x(to) - x).max(1.5);
        writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
            HEIGHT - TOP - BOTTOM,
            escape(says)
        )
        .expect("into memory");
    }

    /// A mark above the chart.
    pub fn mark(&mut self, class: &str, at: f64, says: &str) {
        writeln!(
            self.over,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"3\" height=\"8\"><title>{}</title></rect>",
            self.x(at) - 1.5,
            TOP - 9.0,
            escape(says)
        )
        .expect("into memory");
    }

    /// What is said where the pointer is between these.
    pub fn tip(&mut self, from: f64, to: f64, says: &str) {
        let x = self.x(from);
        writeln!(
            self.over,
            "<rect class=\"tip\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
            (self.x(to) - x).max(0.1),
            HEIGHT - TOP - BOTTOM,
            escape(says)
        )
        .expect("into memory");
    }

    /// The chart; `says` is for those who cannot see it.
    pub fn svg(self, says: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n{}{}</svg>\n",
            escape(says),
            self.body,
            self.over
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_round_marks_and_keep_to_their_edges() {
        let even = Scale::even(0.0, 10.0);
        assert_eq!(even.ticks(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(
            (even.share(-1.0), even.share(5.0), even.share(99.0)),
            (0.0, 0.5, 1.0)
        );
        let wide = Scale::factors(2_000.0, 30_000_000.0);
        assert_eq!(wide.ticks(), [1e3, 1e4, 1e5, 1e6, 1e7, 1e8]);
        assert!((wide.share(1e3) - 0.0).abs() < 1e-9 && (wide.share(1e8) - 1.0).abs() < 1e-9);
        let narrow = Scale::factors(15_000.0, 40_000.0);
        assert_eq!(narrow.ticks().len(), 4, "{:?}", narrow.ticks());
        for odd in [Scale::even(0.0, 0.0), Scale::factors(0.0, 0.0)] {
            assert!(odd.share(0.0).is_finite() && !odd.ticks().is_empty());
        }
    }

    #[test]
    fn a_line_is_broken_where_nothing_is_known() {
        let mut plot = Plot::new(Scale::even(0.0, 4.0), Scale::even(0.0, 1.0));
        plot.line(
            "a",
            "n",
            [Some((0.0, 0.0)), Some((1.0, 1.0)), None, Some((3.0, 0.5))],
        );
        let svg = plot.svg("a line");
        let path = svg
            .split("d=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .expect("a path");
        assert_eq!(
            (path.matches('M').count(), path.matches('L').count()),
            (2, 1),
            "{path}"
        );
    }
}
