//! How many descriptors this process may have.

/// Raises the limit on open descriptors as far as this process may; gives what it is then.
///
/// Most systems start a process with 1024, for the sake of programs that use `select`, and let it have far more.
#[must_use]
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: fills in the structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return u64::MAX; // unknown: whoever asks for too many will be told
    }
    let before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads the structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return before;
    }
    limit.rlim_max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_once_and_for_all() {
        let limit = raise_descriptor_limit();
        assert!(limit > 0);
        assert_eq!(raise_descriptor_limit(), limit);
        let said = std::fs::read_to_string("/proc/self/limits").expect("the limits");
        let line = said
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .expect("the line");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[3], words[4], "soft and hard: {line}");
    }
}
