//! Kernels whose answers to commands of ours cannot be trusted, and those that must not poll for them.

use std::path::Path;

/// A version: 6.1.63.
type Version = (u32, u32, u32);

/// From the first of each pair on, before the second, a command that the driver failed without asking the device (a controller
/// that died) comes back as if it had been done.
const HIDING: [(Version, Version); 4] = [
    ((0, 0, 0), (6, 1, 63)),
    ((6, 2, 0), (6, 5, 12)),
    ((6, 6, 0), (6, 6, 2)),
    ((6, 8, 0), (6, 11, 7)),
];

/// The first kernel that looks for the end of a polled command by its request (its commit 9408d8a37e6c, "nvme: improved uring polling").
/// Those before do it by a word of the command (`cookie`) that it shares with `task_work_cb`, and which holds an address of code as soon as
/// the device has failed it: a ring with another one in flight makes them panic.
const POLLING: Version = (6, 5, 0);

/// Why commands of our own are not for the kernel that runs; `None` if they are.
pub(super) fn refusal() -> Option<String> {
    refusal_of(running())
}

/// Whether the kernel that runs may be asked to poll, for commands and for what is read and written through block devices: until 6.2 it loses
/// what it has to cut (its commit 9cea62b2cbab, "block: don't allow splitting of a REQ_NOWAIT bio").
pub(in crate::device) fn may_poll() -> bool {
    may_poll_on(running())
}

/// Why poll queues are of no use to commands of ours on the kernel that runs; `None` if they are.
pub fn polling_refusal() -> Option<String> {
    polling_refusal_of(running())
}

fn polling_refusal_of(version: Option<Version>) -> Option<String> {
    if may_poll_on(version) {
        return None;
    }
    let kernel = version.map_or_else(
        || "this kernel".to_owned(),
        |(major, minor, patch)| format!("Linux {major}.{minor}.{patch}"),
    );
    Some(format!(
        "{kernel} panics when a device fails one of several polled commands; Linux 6.5 and newer do not"
    ))
}

fn may_poll_on(version: Option<Version>) -> bool {
    version.is_some_and(|version| version >= POLLING)
}

fn running() -> Option<Version> {
    let read = |path: &str| std::fs::read_to_string(Path::new("/proc").join(path)).unwrap_or_default();
    version(&read("version_signature"), &read("version"))
}

fn refusal_of(version: Option<Version>) -> Option<String> {
    let known = "Linux 6.1.63, 6.6.2, 6.11.7 or a later one of these series, or 6.12 and newer, tells them";
    let Some(version) = version else {
        return Some(format!(
            "what version the kernel has is not known, and some hide the errors of such commands: {known}"
        ));
    };
    let hides = (HIDING.iter()).any(|(first, fixed)| (*first..*fixed).contains(&version));
    let (major, minor, patch) = version;
    hides.then(|| format!("Linux {major}.{minor}.{patch} hides the errors of such commands: {known}"))
}

/// The version that a kernel was made from, and not the name that a distribution gave it: Ubuntu's `version_signature` ends with it,
/// Debian's `version` has it behind the distribution's name, others begin with it.
fn version(signature: &str, version: &str) -> Option<Version> {
    let debian = version.rsplit_once("Debian ").map(|(_, behind)| behind);
    signature
        .split_whitespace()
        .next_back()
        .or(debian)
        .or_else(|| version.strip_prefix("Linux version "))
        .and_then(number)
}

/// The number at the beginning of a word: `6.12.117-1` is 6.12.117, `6.18` is 6.18.0.
fn number(text: &str) -> Option<Version> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let mut parts = text[..end.unwrap_or(text.len())].split('.').map(str::parse);
    let mut part = || parts.next().transpose().ok();
    Some((part()??, part()??, part()?.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_kernel_s_and_not_the_distribution_s_name_for_it() {
        let debian = "Linux version 6.1.0-42-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, \
                      GNU ld (GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.159-1 (2025-12-30)\n";
        assert_eq!(version("", debian), Some((6, 1, 159)));
        let ubuntu = "Linux version 6.8.0-45-generic (buildd@lcy02) (x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0) 13.2.0) #45-Ubuntu SMP\n";
        assert_eq!(
            version("Ubuntu 6.8.0-45.45-generic 6.8.12\n", ubuntu),
            Some((6, 8, 12))
        );
        assert_eq!(
            version("", "Linux version 6.18.5 (root@x) (gcc) #1 SMP\n"),
            Some((6, 18, 5))
        );
        assert_eq!(
            version("", "Linux version 6.18-rc3 (root@x) (gcc) #1\n"),
            Some((6, 18, 0))
        );
        for unknown in [
            "",
            "Linux",
            "Linux version ",
            "Linux version x.y",
            "Linux version 6",
        ] {
            assert_eq!(version("", unknown), None, "{unknown}");
            assert!(refusal_of(version("", unknown)).is_some());
        }
    }

    #[test]
    fn kernels_that_panic_over_polled_commands_are_not_asked_to_poll() {
        for panicking in [None, Some((6, 1, 159)), Some((6, 4, 16))] {
            assert!(!may_poll_on(panicking), "{panicking:?}");
            let why = polling_refusal_of(panicking).expect("told why");
            assert!(why.contains("panics") && why.contains("6.5"), "{why}");
        }
        for sound in [(6, 5, 12), (6, 12, 0), (7, 0, 0)] {
            assert!(may_poll_on(Some(sound)), "{sound:?}");
            assert_eq!(polling_refusal_of(Some(sound)), None);
        }
    }

    #[test]
    fn kernels_that_hide_errors_are_refused_by_name() {
        for hiding in [
            (5, 19, 0),
            (6, 1, 62),
            (6, 2, 0),
            (6, 5, 11),
            (6, 6, 1),
            (6, 8, 12),
            (6, 11, 6),
        ] {
            let why = refusal_of(Some(hiding)).expect("refused");
            assert!(
                why.contains(&format!("{}.{}.{}", hiding.0, hiding.1, hiding.2)),
                "{why}"
            );
        }
        for telling in [
            (6, 1, 63),
            (6, 1, 159),
            (6, 5, 12),
            (6, 6, 2),
            (6, 7, 0),
            (6, 11, 7),
            (6, 12, 0),
            (7, 0, 0),
        ] {
            assert_eq!(refusal_of(Some(telling)), None, "{telling:?}");
        }
    }
}
