//! What is offered to hosts.

use stillpoint_processor::host_view::HostView;

/// Longest name or description of an export, in bytes (the NBD protocol's limit on strings).
pub const NAME_BYTES_MAX: usize = 4096;

/// A volume or snapshot offered under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// What clients ask for: `volume` or `volume@snapshot`. Unique in its table.
    pub name: String,
    /// Text for people.
    pub description: String,
    /// What the sessions see.
    pub view: HostView,
}

/// All exports of the appliance, in the order in which they are listed. A table never changes; a new one takes
/// its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportTable {
    exports: Vec<Export>,
}

impl ExportTable {
    /// A table of these exports.
    ///
    /// # Panics
    /// If two have the same name or a name or description is longer than [`NAME_BYTES_MAX`]: the catalog lets
    /// nothing of the kind in.
    #[must_use]
    pub fn new(exports: Vec<Export>) -> Self {
        for (index, export) in exports.iter().enumerate() {
            assert!(export.name.len() <= NAME_BYTES_MAX, "name of an export");
            assert!(
                export.description.len() <= NAME_BYTES_MAX,
                "description of an export"
            );
            assert!(
                exports[..index].iter().all(|other| other.name != export.name),
                "two exports named {}",
                export.name
            );
        }
        Self { exports }
    }

    /// The exports.
    #[must_use]
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// The export of this name. The empty name stands for the only export, if there is just one.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<&Export> {
        if let Some(export) = self.exports.iter().find(|export| export.name.as_bytes() == name) {
            return Some(export);
        }
        match self.exports.as_slice() {
            [only] if name.is_empty() => Some(only),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_processor::host_view::Placement;
    use stillpoint_processor::{View, VolumeId};

    fn export(name: &str) -> Export {
        Export {
            name: name.into(),
            description: String::new(),
            view: HostView {
                view: View {
                    volume: VolumeId(1),
                    snapshot: None,
                },
                placement: Placement {
                    shard_count: 1,
                    rotation: 0,
                    object_blocks: 256,
                },
                size_bytes: 1 << 20,
                block_bytes: 512,
                read_only: false,
            },
        }
    }

    #[test]
    fn the_empty_name_is_the_only_export_or_none() {
        let one = ExportTable::new(vec![export("a")]);
        assert_eq!(one.find(b"").map(|e| e.name.as_str()), Some("a"));
        let two = ExportTable::new(vec![export("a"), export("b")]);
        assert_eq!(two.find(b""), None);
        assert_eq!(two.find(b"b").map(|e| e.name.as_str()), Some("b"));
        assert_eq!(two.find(b"c"), None);
    }

    #[test]
    #[should_panic(expected = "two exports named a")]
    fn names_are_unique() {
        let _ = ExportTable::new(vec![export("a"), export("a")]);
    }
}
