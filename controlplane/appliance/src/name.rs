//! Names of pools, volumes, snapshots and exports.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use stillpoint_ondisk::catalog::{EXPORT_NAME_BYTES_MAX, NAME_BYTES_MAX};

/// Bytes of the name of a pool at most.
pub const POOL_NAME_BYTES_MAX: usize = 63;

/// Checks the name of a `what` (volume, snapshot): letters, digits, `.`, `_` and `-`, at most
/// [`NAME_BYTES_MAX`] of them, not beginning with `-` or `.`.
///
/// # Errors
/// Usage, naming the rule.
pub fn check(what: &str, name: &str) -> Result<()> {
    check_characters(what, name, "", NAME_BYTES_MAX)
}

/// Checks the name of a pool: as [`check`], at most 63 bytes, which is what a label holds.
///
/// # Errors
/// Usage, naming the rule.
pub fn check_pool(name: &str) -> Result<()> {
    check_characters("pool", name, "", POOL_NAME_BYTES_MAX)
}

/// Checks the name of an export: as [`check`], and `@` is allowed.
///
/// # Errors
/// Usage, naming the rule.
pub fn check_export(name: &str) -> Result<()> {
    check_characters("export", name, "@", EXPORT_NAME_BYTES_MAX)
}

fn check_characters(what: &str, name: &str, extra: &str, length_max: usize) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || extra.contains(c);
    let complaint = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > length_max {
        format!("it has {} bytes, at most {length_max} are allowed", name.len())
    } else if let Some(bad) = name.chars().find(|&c| !allowed(c)) {
        format!("{bad:?} is not allowed")
    } else if name.starts_with(['-', '.']) {
        format!("it begins with {:?}", &name[..1])
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(40).collect();
    Err(
        Error::usage(format!("{shown:?} is no name for a {what}: {complaint}")).hint(format!(
            "names are letters, digits, '.', '_' and '-', at most {length_max} bytes"
        )),
    )
}

/// `volume` or `volume@snapshot`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewName {
    /// The volume.
    pub volume: String,
    /// The snapshot, or `None` for the volume as it is.
    pub snapshot: Option<String>,
}

impl FromStr for ViewName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (volume, snapshot) = match text.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot)),
            None => (text, None),
        };
        check("volume", volume)?;
        if let Some(snapshot) = snapshot {
            check("snapshot", snapshot)?;
        }
        Ok(Self {
            volume: volume.to_owned(),
            snapshot: snapshot.map(ToOwned::to_owned),
        })
    }
}

impl fmt::Display for ViewName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.volume)?;
        self.snapshot
            .iter()
            .try_for_each(|snapshot| write!(f, "@{snapshot}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn plain_names_are_allowed_and_others_are_refused_with_the_reason() {
        for name in ["a", "data", "db-1.main_x", "0", &"x".repeat(128)] {
            assert_eq!(check("volume", name), Ok(()));
        }
        for (name, reason) in [
            ("", "empty"),
            ("a/b", "'/'"),
            ("a@b", "'@'"),
            ("a b", "' '"),
            ("ä", "'ä'"),
            ("-a", "begins with"),
            (".", "begins with"),
            ("..", "begins with"),
            ("a\n", "'\\n'"),
            (&"x".repeat(129), "129 bytes"),
        ] {
            let error = check("volume", name).expect_err(name);
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.message.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_view_is_a_volume_or_one_of_its_snapshots() {
        let view: ViewName = "vol@monday".parse().expect("a name");
        assert_eq!(
            (view.volume.as_str(), view.snapshot.as_deref()),
            ("vol", Some("monday"))
        );
        assert_eq!(view.to_string(), "vol@monday");
        let view: ViewName = "vol".parse().expect("a name");
        assert_eq!(view.snapshot, None);
        for bad in ["", "@", "vol@", "@monday", "vol@a@b"] {
            assert!(bad.parse::<ViewName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_view_is_a_name_for_an_export() {
        let part = "x".repeat(NAME_BYTES_MAX);
        assert_eq!(check_export(&format!("{part}@{part}")), Ok(()));
    }
}
