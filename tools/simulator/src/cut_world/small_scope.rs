//! Every order of a few writes and one snapshot: all that messages, device operations and time can do to each other,
//! none left out.
//!
//! The orders are walked depth first; a state is reached again by taking the same steps again. What has been seen is
//! told by a key, and not walked a second time. The key holds the coordinator and all messages whole; of a shard it holds
//! where each write stands, whether the cut caught it, until when answers are held, and the parts of snapshots, because
//! nothing else that a shard knows decides what it answers (writes go to blocks of their own). Of the past it holds what the oracle needs: which writes must not be in the
//! snapshot, because they were sent after the answer to one that is not in it, or after the snapshot was confirmed.
//!
//! A crash is tried in every state. Most messages leave no trace on devices and in log tails: what they hold, with what
//! the client knows, is told by a key as well, and recovered once.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hint::black_box;

use stillpoint_processor::ShardOptions;

use super::small::{Key, Small, Step};
use crate::model::Broken;

/// How much: less than the 32 MiB up to which the C library learns from what is freed.
const KEPT_BYTES: usize = 24 << 20;

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Shards.
    pub shards: u16,
    /// Writes.
    pub writes: usize,
    /// Whether time may run out once, anywhere.
    pub time_runs_out: bool,
    /// Whether every state ends in a kill and in a power cut as well.
    pub crashes: bool,
    /// What shards are opened with.
    pub options: ShardOptions,
}

impl Scope {
    /// So many shards and writes, and nothing that goes wrong.
    #[must_use]
    pub fn new(shards: u16, writes: usize) -> Self {
        Self {
            shards,
            writes,
            time_runs_out: false,
            crashes: false,
            options: ShardOptions {
                map_cache_pages: 64,
                in_flight_max: 16,
                #[cfg(feature = "planted-bugs")]
                planted_bug: None,
            },
        }
    }

    /// In how many ways the writes can be dealt to the shards.
    #[must_use]
    pub fn deals(&self) -> usize {
        usize::from(self.shards).pow(self.writes as u32)
    }
}

/// What was walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// States.
    pub states: u64,
    /// Steps between them.
    pub steps: u64,
    /// Orders from the beginning to an end.
    pub orders: u128,
    /// States in which nothing is left to happen and the snapshot is there.
    pub there: u64,
    /// The same, and it is not there.
    pub not_there: u64,
    /// Crashes: a kill and a power cut in every state.
    pub crashes: u64,
    /// Recoveries after these: one for all crashes that leave the same.
    pub recoveries: u64,
}

impl Walked {
    /// Adds up two walks.
    pub fn merge(&mut self, other: &Self) {
        self.states += other.states;
        self.steps += other.steps;
        self.orders = self.orders.saturating_add(other.orders);
        self.there += other.there;
        self.not_there += other.not_there;
        self.crashes += other.crashes;
        self.recoveries += other.recoveries;
    }
}

impl fmt::Display for Walked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} orders in {} states and {} steps, {} ends with the snapshot and {} without, {} crashes that leave {} \
             things to recover",
            self.orders, self.states, self.steps, self.there, self.not_there, self.crashes, self.recoveries
        )
    }
}

/// Walks every order of one deal of the writes to the shards.
///
/// # Errors
/// The first law that is broken, with the steps that lead there.
pub fn walk(scope: Scope, deal: usize) -> Result<Walked, Broken> {
    keep_freed_memory();
    let mut walked = Walked::default();
    let mut seen: HashMap<Key, Vec<Key>> = HashMap::new();
    let mut recovered: HashSet<Key> = HashSet::new();
    let mut to_walk: Vec<(Vec<Step>, Option<Key>)> = vec![(Vec::new(), None)];
    let mut first = None;
    while let Some((mut path, mut from)) = to_walk.pop() {
        let told =
            |path: &[Step], Broken(why): Broken| Broken(format!("deal {deal}: {why}; steps: {path:?}"));
        let mut small = Small::replay(scope, deal, &path).map_err(|why| told(&path, why))?;
        loop {
            let key = small.key();
            if let Some(from) = from {
                seen.get_mut(&from).expect("walked before").push(key);
                walked.steps += 1;
            }
            first = first.or(Some(key));
            if seen.contains_key(&key) {
                break;
            }
            seen.insert(key, Vec::new());
            walked.states += 1;
            if scope.crashes {
                for power_cut in [false, true] {
                    let crashed = small.crashed(power_cut);
                    if recovered.insert(crashed.crash_key(power_cut, &small)) {
                        let checked = crashed.check_after_the_crash(power_cut);
                        checked.map_err(|why| told(&path, why))?;
                        walked.recoveries += 1;
                    }
                    walked.crashes += 1;
                }
            }
            let steps = small.steps();
            let Some((next, others)) = steps.split_first() else {
                small.check_the_end(&mut walked).map_err(|why| told(&path, why))?;
                break;
            };
            for other in others {
                let branch = path.iter().chain([other]).copied().collect();
                to_walk.push((branch, Some(key)));
            }
            path.push(*next);
            from = Some(key);
            small.take(*next).map_err(|why| told(&path, why))?;
        }
    }
    walked.orders = count_orders(&seen, first.expect("there is a beginning"));
    Ok(walked)
}

/// A state is a megabyte, and a hundred thousand of them come and go. The C library gives freed memory back to the kernel and gets
/// it again for the next one, which was a third of the time, until one large piece of it was freed: then it keeps as much.
fn keep_freed_memory() {
    drop(black_box(Vec::<u8>::with_capacity(KEPT_BYTES)));
}

/// Ways from a state to an end.
fn count_orders(steps: &HashMap<Key, Vec<Key>>, first: Key) -> u128 {
    let mut known: HashMap<Key, u128> = HashMap::new();
    let mut to_count = vec![first];
    while let Some(&state) = to_count.last() {
        let next = &steps[&state];
        let missing = next.iter().filter(|key| !known.contains_key(key));
        let before = to_count.len();
        to_count.extend(missing);
        if to_count.len() == before {
            to_count.pop();
            let orders = next.iter().map(|key| known[key]).fold(0, u128::saturating_add);
            known.insert(state, if next.is_empty() { 1 } else { orders });
        }
    }
    known[&first]
}
