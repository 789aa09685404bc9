//! Periods and points in time as people write them.

use std::fmt;
use std::str::FromStr;

const S: u64 = 1_000_000_000;

/// A length of time in nanoseconds: `30s`, `15m`, `12h`, `30d`, `2w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period(pub u64);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no length of time: write 30s, 15m, 12h, 30d or 2w");
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(end);
        let factor = match unit.trim() {
            "s" => S,
            "m" | "min" => 60 * S,
            "h" => 3600 * S,
            "d" => 24 * 3600 * S,
            "w" => 7 * 24 * 3600 * S,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is longer than this program can count"))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
        let (factor, unit) = units
            .into_iter()
            .find(|(factor, _)| self.0.is_multiple_of(factor * S))
            .unwrap_or((1, "s"));
        write!(f, "{}{unit}", self.0 / (factor * S))
    }
}

/// An end of something: a point in time, or a length of time from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Nanoseconds since the Unix epoch.
    At(u64),
    /// Nanoseconds from now.
    For(u64),
}

impl FromStr for Until {
    type Err = String;

    /// `2027-01-31T18:00:00Z` and other offsets; `2027-01-31`, which is its first moment in UTC; `30d`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(Period(ns)) = text.parse() {
            return Ok(Self::For(ns));
        }
        let stamp = match text.parse::<jiff::Timestamp>() {
            Ok(stamp) => stamp,
            Err(_) => {
                // A time of day without an offset would be read as a date.
                let date = text
                    .parse::<jiff::civil::Date>()
                    .ok()
                    .filter(|_| !text.contains([':', 'T']));
                date.and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok())
                    .map(|zoned| zoned.timestamp())
                    .ok_or_else(|| {
                        format!(
                            "{text:?} is no point in time: write 2027-01-31T18:00:00Z (with Z or an offset), 2027-01-31 \
                             (its first moment in UTC), or 30d (from now)"
                        )
                    })?
            }
        };
        u64::try_from(stamp.as_nanosecond())
            .map(Self::At)
            .map_err(|_| format!("{text:?} is outside of what this program can count"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_have_a_unit() {
        for (text, seconds) in [
            ("1s", 1),
            ("15m", 900),
            ("15 min", 900),
            ("12h", 43_200),
            ("30d", 2_592_000),
            ("2w", 1_209_600),
        ] {
            assert_eq!(text.parse(), Ok(Period(seconds * S)), "{text}");
        }
        for text in [
            "",
            "30",
            "d",
            "1.5h",
            "-1d",
            "1y",
            "99999999999999999999d",
            "1000000000d",
        ] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_end_is_a_time_with_an_offset_a_date_or_a_period() {
        let day = 1_798_761_600 * S;
        for (text, until) in [
            ("2027-01-01T00:00:00Z", Until::At(day)),
            ("2027-01-01T01:00:00+01:00", Until::At(day)),
            ("2027-01-01 00:00:00.5Z", Until::At(day + S / 2)),
            ("2027-01-01", Until::At(day)),
            ("30d", Until::For(30 * 86_400 * S)),
        ] {
            assert_eq!(text.parse(), Ok(until), "{text}");
        }
        for text in [
            "",
            "tomorrow",
            "2027-01-01T00:00:00",
            "2027-01-01T00:00",
            "2027-02-30",
            "1969-12-31",
            "9999-12-31",
            "01.02.2027",
        ] {
            assert!(text.parse::<Until>().is_err(), "{text}");
        }
    }
}
