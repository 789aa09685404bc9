//! Who uses a block device: partitions, volume managers, mounts and swap. All of these also count for its partitions.

use super::Machine;
use super::sysfs::Directory;

/// Who uses a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its partitions.
    pub partitions: Vec<String>,
    /// Block devices made of it or of its partitions (dm, md).
    pub holders: Vec<String>,
    /// Where it or its partitions are mounted.
    pub mounts: Vec<Mount>,
    /// It or its partitions that are used as swap.
    pub swaps: Vec<String>,
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device: the one that was asked about, or its partition.
    pub device: String,
    /// Where.
    pub path: String,
    /// Its type.
    pub file_system: String,
}

impl Usage {
    pub(super) fn of(machine: &Machine, block: &Directory, name: &str) -> Self {
        let children = block.names();
        let is_partition = |child: &String| block.below(child).below("partition").exists();
        let partitions: Vec<String> = children.into_iter().filter(is_partition).collect();
        let mut members = vec![(name.to_owned(), block.text("dev"))];
        let mut holders = block.below("holders").names();
        for partition in &partitions {
            let partition_directory = block.below(partition);
            holders.extend(partition_directory.below("holders").names());
            members.push((partition.clone(), partition_directory.text("dev")));
        }
        Self {
            mounts: mounts(machine, &members),
            swaps: swaps(machine, &members),
            partitions,
            holders,
        }
    }

    /// Whether somebody has it at this moment, so that it cannot be claimed.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        !self.holders.is_empty() || !self.mounts.is_empty() || !self.swaps.is_empty()
    }

    /// Who has it, in words; `None` if nobody.
    #[must_use]
    pub fn holder_text(&self) -> Option<String> {
        let mounts = self
            .mounts
            .iter()
            .map(|mount| format!("mounted at {}", mount.path));
        let swaps = self.swaps.iter().map(|device| format!("swap ({device})"));
        let holders = self.holders.iter().map(|holder| format!("part of {holder}"));
        let words: Vec<String> = mounts.chain(swaps).chain(holders).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// Mounts of these devices (name and number). File systems over several devices have a number of their own and are told by
/// the device's path.
fn mounts(machine: &Machine, members: &[(String, Option<String>)]) -> Vec<Mount> {
    let table = machine.proc("self/mountinfo").unwrap_or_default();
    let mut found: Vec<Mount> = table.lines().filter_map(|line| mount(line, members)).collect();
    found.dedup();
    found
}

/// A line of mountinfo (proc(5)): `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`.
fn mount(line: &str, members: &[(String, Option<String>)]) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let (number, path) = (left.next()?, left.nth(1)?);
    let mut right = right.split(' ');
    let (file_system, source) = (right.next()?, right.next()?);
    let is_member = |(name, own): &&(String, Option<String>)| {
        own.as_deref() == Some(number) || source.strip_prefix("/dev/") == Some(name)
    };
    let (device, _) = members.iter().find(is_member)?;
    Some(Mount {
        device: device.clone(),
        path: unescaped(path),
        file_system: file_system.to_owned(),
    })
}

/// Spaces, tabs, line ends and backslashes are written as three octal digits.
fn unescaped(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let replace = |text: String, (escaped, plain): &(&str, &str)| text.replace(escaped, plain);
    escapes.iter().fold(text.to_owned(), replace)
}

/// Which of these are swap (proc(5)): the first word of each line but the first is a path.
fn swaps(machine: &Machine, members: &[(String, Option<String>)]) -> Vec<String> {
    let table = machine.proc("swaps").unwrap_or_default();
    let paths: Vec<&str> = (table.lines().skip(1))
        .filter_map(|line| line.split_whitespace().next()?.strip_prefix("/dev/"))
        .collect();
    let names = members.iter().map(|(name, _)| name.clone());
    names.filter(|name| paths.contains(&name.as_str())).collect()
}

/// The number of a device, as sysfs and mountinfo write it.
pub(super) fn number_text(number: u64) -> String {
    format!("{}:{}", libc::major(number), libc::minor(number))
}
