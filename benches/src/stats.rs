//! Medians and spreads.

use serde::Serialize;

/// The middle of a series, with its ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The median (the mean of the two in the middle for an even number).
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of a series; zeros if it is empty.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self { median, min, max }
    }
}

/// The value that this share of a sorted series does not exceed; 0 if it is empty.
#[must_use]
pub fn quantile(sorted: &[u64], share: f64) -> u64 {
    let place = (sorted.len() as f64 * share) as usize;
    let last = sorted.len().saturating_sub(1);
    sorted.get(place.min(last)).copied().unwrap_or(0)
}

/// What a reader wants to know of many values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// How many there are.
    pub count: usize,
    /// Half of them are lower.
    pub p50: f64,
    /// 99 of 100 are lower.
    pub p99: f64,
    /// 999 of 1000 are lower.
    pub p99_9: f64,
    /// The highest.
    pub max: f64,
}

impl Distribution {
    /// That of whole numbers, each divided by `unit`; zeros if there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = u64>, unit: f64) -> Self {
        let mut sorted: Vec<u64> = values.into_iter().collect();
        sorted.sort_unstable();
        let at = |share| quantile(&sorted, share) as f64 / unit;
        Self {
            count: sorted.len(),
            p50: at(0.5),
            p99: at(0.99),
            p99_9: at(0.999),
            max: at(1.0),
        }
    }
}

/// Which of `values` lie within `tolerance` (a fraction) of their median.
#[must_use]
pub fn near_the_median(values: &[f64], tolerance: f64) -> Vec<bool> {
    let median = Spread::of(values.iter().copied()).median;
    values
        .iter()
        .map(|value| (value - median).abs() <= tolerance * median)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_nothing_gives_zeros() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).median, 2.0);
        let even = Spread::of([4.0, 1.0, 2.0, 3.0]);
        assert_eq!((even.median, even.min, even.max), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let sorted: Vec<u64> = (1..=100).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99)), (51, 100));
        assert_eq!((quantile(&sorted, 1.0), quantile(&[], 0.5)), (100, 0));
    }

    #[test]
    fn a_distribution_is_in_its_unit() {
        let found = Distribution::of((1..=1000).rev().map(|value| value * 1000), 1e3);
        assert_eq!((found.count, found.p50, found.p99), (1000, 501.0, 991.0));
        assert_eq!((found.p99_9, found.max), (1000.0, 1000.0));
        assert_eq!(Distribution::of([], 1.0), Distribution::default());
    }

    #[test]
    fn a_round_that_moved_too_far_is_seen() {
        assert_eq!(
            near_the_median(&[100.0, 119.0, 81.0, 79.0, 121.0], 0.2),
            [true, true, true, false, false]
        );
    }
}
