//! Reading small files that may not be there.

use std::fs;
use std::path::{Path, PathBuf};

/// A directory of sysfs.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn below(&self, name: &str) -> Self {
        Self::new(self.path.join(name))
    }

    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Where it is, all links followed; as it is if it is not there.
    pub fn resolved(&self) -> PathBuf {
        fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone())
    }

    /// The content of a file, trimmed; `None` if there is none or it is empty.
    pub fn text(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.path.join(name)).ok()?;
        // Some drivers pad with zeros.
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// The content of a file as a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// The same where -1 means that there is none.
    pub fn node(&self, name: &str) -> Option<u32> {
        self.text(name)?.parse().ok()
    }

    /// What is in it, in the order of names.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }

    /// The last part of where a link leads.
    pub fn link_name(&self) -> Option<String> {
        let target = fs::read_link(&self.path).ok()?;
        file_name(&target)
    }
}

/// The last part of a path.
pub fn file_name(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(ToOwned::to_owned)
}
