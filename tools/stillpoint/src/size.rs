//! Sizes and durations as people write and read them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A number of bytes. Read as `4096`, `10GiB`, `10G` (the same: single letters count in 1024s, as in other storage
/// tools), `10GB` (1000s), `1.5TiB`; printed in 1024s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 16] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("pib", 1 << 50),
    ("pb", 1_000_000_000_000_000),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size: write 4096, 512MiB, 10GiB, 10GB or 1.5TiB");
        let trimmed = text.trim();
        let end = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let unit = unit.trim().to_ascii_lowercase();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 || number.ends_with('.') {
            return Err(bad());
        }
        let too_large = || format!("{text:?} is larger than this program can count");
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let bytes = u128::from(whole) * u128::from(*factor);
        let scale = 10u128.pow(fraction.len() as u32);
        let rest = fraction.parse::<u128>().unwrap_or(0) * u128::from(*factor);
        if !rest.is_multiple_of(scale) {
            return Err(format!("{text:?} is not a whole number of bytes"));
        }
        u64::try_from(bytes + rest / scale)
            .map(Self)
            .map_err(|_| too_large())
    }
}

/// A number of bytes in a second: a size, with or without `/s` behind it.
pub fn per_second(text: &str) -> Result<Size, String> {
    text.trim().trim_end_matches("/s").parse()
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut unit = 0;
        while unit + 1 < NAMES.len() && self.0 >> (10 * (unit + 1)) != 0 {
            unit += 1;
        }
        let factor = 1u64 << (10 * unit);
        if self.0.is_multiple_of(factor) {
            return f.pad(&format!("{} {}", self.0 / factor, NAMES[unit]));
        }
        f.pad(&format!("{:.2} {}", self.0 as f64 / factor as f64, NAMES[unit]))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text as \"10GiB\"")
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(Size)
                    .map_err(|_| E::custom("a size is not negative"))
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A duration in nanoseconds, printed with three digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duration(pub u64);

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no duration: write 500us, 10ms or 2s");
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(end);
        let factor: u64 = match unit.trim() {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            0..1_000 => return f.pad(&format!("{} ns", self.0)),
            1_000..1_000_000 => (self.0 as f64 / 1e3, "µs"),
            1_000_000..1_000_000_000 => (self.0 as f64 / 1e6, "ms"),
            _ => (self.0 as f64 / 1e9, "s"),
        };
        let digits = match value {
            value if value < 10.0 => 2,
            value if value < 100.0 => 1,
            _ => 0,
        };
        f.pad(&format!("{value:.digits$} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_1024s_and_in_1000s() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512b", 512),
            ("1k", 1024),
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("10gib", 10 << 30),
            ("10G", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5TiB", 3 << 39),
            ("0.5kB", 500),
            ("1PiB", 1 << 50),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "GiB",
            "-1",
            "1,5G",
            "1.5.5G",
            "1.G",
            ".5G",
            "10 Gigs",
            "1e9",
            "0.0001b",
            "99999999PiB",
            "99999999999999999999",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_printed_in_1024s() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (1536, "1.50 KiB"),
            (10 << 30, "10 GiB"),
            (1 << 50, "1 PiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!(Size(u64::MAX).to_string(), "16384.00 PiB");
    }

    #[test]
    fn what_is_printed_can_be_read() {
        for bytes in [0, 1, 512, 4096, 10 << 30, 3 << 40] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
    }

    #[test]
    fn durations_have_three_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_500, "1.50 µs"),
            (45_600, "45.6 µs"),
            (123_456, "123 µs"),
            (10_000_000, "10.0 ms"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(Duration(ns).to_string(), text);
        }
        assert_eq!("10ms".parse(), Ok(Duration(10_000_000)));
        for text in ["", "10", "ms", "1.5ms", "10min", "99999999999999999999s"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}
