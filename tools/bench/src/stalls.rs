//! Stalls: the intervals in which responses took far longer than they usually do, and what happened meanwhile.
//!
//! The *usual* is the median, over all slots with requests, of the longest response of a slot: it takes half of a run to
//! move it. A response is *far* beyond it from ten times the usual on, but at least 1 ms and at most 100 ms above it. A
//! stall lasts from the intended start of the first such request to the end of the last; those closer than 5 ms are one.

use serde::Serialize;

use crate::timeline::Timeline;

/// So many times the usual is far beyond it...
const FACTOR: u64 = 10;
/// ...if it is at least so much more...
const ABOVE_NS_MIN: u64 = 1_000_000;
/// ...and so much more always is.
const ABOVE_NS_MAX: u64 = 100_000_000;
/// Stalls closer to each other are one.
const GAP_NS: u64 = 5_000_000;
/// The longest so many are listed.
pub const LISTED_MAX: usize = 100;
/// What began so long before a stall may have led to it.
const BEFORE_NS: i64 = 10_000_000;

/// Something that happened during a run; times count from the first moment of the run that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Happening {
    /// When it began; may be before the run.
    pub began_ns: i64,
    /// When it had happened.
    pub ended_ns: i64,
    /// What kind, in one word, as the daemon says it.
    pub kind: String,
    /// What it was about.
    pub subject: String,
    /// What happened, in words.
    pub text: String,
}

/// An interval in which responses took far longer than usual.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stall {
    /// Intended start of its first request, to a slot.
    pub began_ns: u64,
    /// End of its last request, to a slot.
    pub ended_ns: u64,
    /// The longest response.
    pub response_ns_max: u64,
    /// Requests that were to start in it.
    pub requests: u64,
    /// What happened meanwhile or up to 10 ms before: each kind once.
    pub meanwhile: Vec<String>,
}

/// All stalls of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stalls {
    /// What the longest response of a slot usually is.
    pub usual_ns: u64,
    /// Longer responses are stalls.
    pub threshold_ns: u64,
    /// How many there were.
    pub found: u64,
    /// The longest ones, at most [`LISTED_MAX`], in the order of time.
    pub list: Vec<Stall>,
}

impl Stalls {
    /// Those of a run.
    #[must_use]
    pub fn of(timeline: &Timeline, happenings: &[Happening]) -> Self {
        let mut longest: Vec<u64> = timeline
            .slots()
            .filter(|(_, slot)| slot.started > 0)
            .map(|(_, slot)| slot.max_ns)
            .collect();
        if longest.is_empty() {
            return Self::default();
        }
        let middle = longest.len() / 2;
        let usual_ns = *longest.select_nth_unstable(middle).1;
        let above_ns = (usual_ns * (FACTOR - 1)).clamp(ABOVE_NS_MIN, ABOVE_NS_MAX);
        let threshold_ns = usual_ns + above_ns;
        let mut all = found(timeline, threshold_ns);
        let count = all.len() as u64;
        all.sort_by_key(|stall| std::cmp::Reverse(stall.ended_ns - stall.began_ns));
        all.truncate(LISTED_MAX);
        all.sort_by_key(|stall| stall.began_ns);
        for stall in &mut all {
            let slots = stall.began_ns / timeline.slot_ns()..stall.ended_ns.div_ceil(timeline.slot_ns());
            stall.requests = slots
                .map(|index| u64::from(timeline.slot(index as usize).started))
                .sum();
            stall.meanwhile = meanwhile(stall, happenings);
        }
        Self {
            usual_ns,
            threshold_ns,
            found: count,
            list: all,
        }
    }

    /// The longest.
    #[must_use]
    pub fn longest(&self) -> Option<&Stall> {
        self.list
            .iter()
            .max_by_key(|stall| stall.ended_ns - stall.began_ns)
    }
}

fn found(timeline: &Timeline, threshold_ns: u64) -> Vec<Stall> {
    let mut all: Vec<Stall> = Vec::new();
    for (began_ns, slot) in timeline.slots().filter(|(_, slot)| slot.max_ns > threshold_ns) {
        let ended_ns = began_ns + slot.max_ns;
        match all.last_mut() {
            Some(last) if began_ns <= last.ended_ns + GAP_NS => {
                last.ended_ns = last.ended_ns.max(ended_ns);
                last.response_ns_max = last.response_ns_max.max(slot.max_ns);
            }
            _ => all.push(Stall {
                began_ns,
                ended_ns,
                response_ns_max: slot.max_ns,
                requests: 0,
                meanwhile: Vec::new(),
            }),
        }
    }
    all
}

/// What happened during a stall: `kind subject` of what was alone of its kind, `kind (3 times)` of others.
fn meanwhile(stall: &Stall, happenings: &[Happening]) -> Vec<String> {
    let (from_ns, to_ns) = (stall.began_ns as i64 - BEFORE_NS, stall.ended_ns as i64);
    let mut kinds: Vec<(&Happening, u32)> = Vec::new();
    for happening in happenings
        .iter()
        .filter(|one| one.ended_ns >= from_ns && one.began_ns <= to_ns)
    {
        match kinds.iter_mut().find(|(first, _)| first.kind == happening.kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((happening, 1)),
        }
    }
    kinds
        .into_iter()
        .map(|(first, count)| match count {
            1 => format!("{} {}", first.kind, first.subject),
            _ => format!("{} ({count} times)", first.kind),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;

    const MS: u64 = 1_000_000;

    fn happening(began_ms: i64, ended_ms: i64, kind: &str) -> Happening {
        Happening {
            began_ns: began_ms * MS as i64,
            ended_ns: ended_ms * MS as i64,
            kind: kind.into(),
            subject: "vol".into(),
            text: String::new(),
        }
    }

    /// A second of requests of 50 us each millisecond, with those of the server standing still in between.
    fn timeline(stills: &[(u64, u64)]) -> Timeline {
        let job = Job {
            time_ns: 1000 * MS,
            ..Job::default()
        };
        let mut timeline = Timeline::new(&job);
        for ms in 0..1000 {
            let still = stills.iter().find(|(from, to)| (*from..*to).contains(&ms));
            timeline.ended(ms * MS, still.map_or(50_000, |(_, to)| (to - ms) * MS));
        }
        timeline
    }

    #[test]
    fn a_planted_stall_is_found_with_what_happened_meanwhile() {
        let happenings = [
            happening(280, 285, "pool_opened"),
            happening(295, 296, "snapshot_taken"),
            happening(310, 320, "checkpointed"),
            happening(330, 340, "checkpointed"),
            happening(700, 701, "snapshot_deleted"),
        ];
        let stalls = Stalls::of(&timeline(&[(300, 400), (403, 410), (600, 604)]), &happenings);
        assert_eq!((stalls.usual_ns, stalls.threshold_ns), (50_000, 50_000 + MS));
        assert_eq!(stalls.found, 2, "those that are close are one: {stalls:?}");
        let first = &stalls.list[0];
        assert_eq!((first.began_ns, first.ended_ns), (300 * MS, 410 * MS));
        assert_eq!((first.response_ns_max, first.requests), (100 * MS, 110));
        assert_eq!(first.meanwhile, ["snapshot_taken vol", "checkpointed (2 times)"]);
        assert!(stalls.list[1].meanwhile.is_empty());
        assert_eq!(stalls.longest(), Some(first));
    }

    #[test]
    fn an_even_run_has_no_stalls_and_a_slow_one_has_a_threshold_in_reach() {
        assert_eq!(Stalls::of(&timeline(&[]), &[]).found, 0);
        let mut slow = Timeline::new(&Job::default());
        (0..100).for_each(|ms| slow.ended(ms * MS, 20 * MS));
        assert_eq!(Stalls::of(&slow, &[]).threshold_ns, 120 * MS);
        let nothing = Timeline::new(&Job::default());
        assert_eq!(Stalls::of(&nothing, &[]), Stalls::default());
    }

    #[test]
    fn of_many_stalls_the_longest_are_listed() {
        let job = Job {
            time_ns: 10_000 * MS,
            ..Job::default()
        };
        let mut timeline = Timeline::new(&job);
        for ms in 0..10_000 {
            let stall = ms % 50 == 0;
            timeline.ended(ms * MS, if stall { 2 * MS + ms * 1000 } else { 10_000 });
        }
        let stalls = Stalls::of(&timeline, &[]);
        assert_eq!((stalls.found, stalls.list.len()), (200, LISTED_MAX));
        assert!(stalls.list.is_sorted_by_key(|stall| stall.began_ns));
        assert_eq!(stalls.list[0].began_ns, 5_000 * MS);
    }
}
