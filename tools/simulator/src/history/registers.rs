//! Is a block a register? The test of Gibbons and Korach for histories in which no value is written twice ("Testing
//! Shared Memories", 1997), in n log n.
//!
//! A write and the reads that show it are a cluster. Of a cluster with an operation that ends before another one
//! begins, it is known that its value is there from the first end to the last beginning: a forward zone. Of any
//! other, only that its value is there at some instant between the last beginning and the first end: a backward zone.
//! The history has an order exactly if no read ends before its write begins, no two forward zones overlap, and no
//! backward zone lies within a forward one.

use std::collections::BTreeMap;

use super::Moment;
use crate::stamp::Shown;

/// From sending to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it was sent.
    pub sent: Moment,
    /// When the answer was there; it took effect before.
    pub ended: Moment,
}

/// A value: its write, and what reads tell of it.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// The write.
    pub write: Span,
    /// It was acknowledged, or read: it took effect.
    pub took_effect: bool,
    /// It is known to have been in effect.
    pub in_effect: Moment,
    first_end: Moment,
    last_begin: Moment,
    reads: u64,
}

/// The operations of one block.
#[derive(Debug, Default)]
pub struct Register {
    clusters: BTreeMap<Shown, Cluster>,
    /// By the sending of their writes: the earliest moment at which this or any later one is known to have been in
    /// effect, and which.
    effects: Vec<(Moment, Moment, Shown)>,
}

impl Register {
    fn cluster(write: Span, took_effect: bool) -> Cluster {
        Cluster {
            write,
            took_effect,
            in_effect: if took_effect { write.ended } else { Moment::NEVER },
            first_end: write.ended,
            last_begin: write.sent,
            reads: 0,
        }
    }

    fn initial() -> Cluster {
        let start = Span {
            sent: Moment::START,
            ended: Moment::START,
        };
        Self::cluster(start, true)
    }

    /// A write of `value`.
    pub fn write(&mut self, value: Shown, span: Span, acknowledged: bool) {
        let before = self.clusters.insert(value, Self::cluster(span, acknowledged));
        assert!(before.is_none(), "values are unique");
    }

    /// A read that showed `value`; all writes are known. 0 is what a block shows that was never written.
    ///
    /// # Errors
    /// The value was never written here, or not yet.
    pub fn read(&mut self, value: Shown, span: Span) -> Result<(), String> {
        if value == 0 {
            self.clusters.entry(0).or_insert_with(Self::initial);
        }
        let Some(cluster) = self.clusters.get_mut(&value) else {
            return Err(format!("a read shows {value}, which was never written here"));
        };
        if span.ended < cluster.write.sent {
            return Err(format!(
                "a read shows {value} at {} before it is written at {}",
                span.ended, cluster.write.sent
            ));
        }
        cluster.took_effect = true;
        cluster.reads += 1;
        cluster.in_effect = cluster.in_effect.min(span.ended);
        cluster.first_end = cluster.first_end.min(span.ended);
        cluster.last_begin = cluster.last_begin.max(span.sent);
        Ok(())
    }

    /// All reads are in.
    pub fn finish(&mut self) {
        let sent = |(value, cluster): (&Shown, &Cluster)| (cluster.write.sent, cluster.in_effect, *value);
        self.effects = self.clusters.iter().map(sent).collect();
        self.effects.sort();
        let mut next = (Moment::NEVER, 0);
        for (_, in_effect, value) in self.effects.iter_mut().rev() {
            next = next.min((*in_effect, *value));
            (*in_effect, *value) = next;
        }
    }

    /// Reads and writes that took effect.
    #[must_use]
    pub fn operations(&self) -> u64 {
        let done = self.clusters.values().filter(|cluster| cluster.took_effect);
        done.map(|cluster| cluster.reads + 1).sum()
    }

    /// What is known of a value.
    #[must_use]
    pub fn get(&self, value: Shown) -> Option<&Cluster> {
        self.clusters.get(&value)
    }

    /// Of the values whose writes were sent after `moment`: the earliest moment at which one is known to have been in
    /// effect, and which one.
    #[must_use]
    pub fn first_effect_after(&self, moment: Moment) -> Option<(Moment, Shown)> {
        let place = self.effects.partition_point(|(sent, ..)| *sent <= moment);
        let (_, in_effect, value) = self.effects.get(place)?;
        (*in_effect < Moment::NEVER).then_some((*in_effect, *value))
    }

    /// Whether the operations have an order.
    ///
    /// # Errors
    /// The two values that exclude each other.
    pub fn check(&self) -> Result<(), String> {
        let (mut forward, mut backward) = (Vec::new(), Vec::new());
        for (&value, cluster) in self.clusters.iter().filter(|(_, cluster)| cluster.took_effect) {
            let (end, begin) = (cluster.first_end, cluster.last_begin);
            if end < begin {
                forward.push((end, begin, value));
            } else {
                backward.push((begin, end, value));
            }
        }
        forward.sort();
        for pair in forward.windows(2) {
            let ((from, to, one), (next_from, next_to, other)) = (pair[0], pair[1]);
            if next_from <= to {
                return Err(format!(
                    "it shows {one} from {from} to {to}, and {other} from {next_from} to {next_to}"
                ));
            }
        }
        for (begin, end, value) in backward {
            let place = forward.partition_point(|(from, ..)| *from < begin);
            if let Some((from, to, other)) = place.checked_sub(1).map(|place| forward[place])
                && end < to
            {
                return Err(format!(
                    "it shows {value} somewhen between {begin} and {end}, and {other} from {from} to {to}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[derive(Clone, Copy, Debug)]
    struct Done {
        writes: bool,
        value: Shown,
        span: Span,
        optional: bool,
    }

    fn at(tick: u64) -> Moment {
        Moment { tick, ns: tick }
    }

    fn fast(done: &[Done]) -> bool {
        let mut register = Register::default();
        for one in done.iter().filter(|one| one.writes) {
            register.write(one.value, one.span, !one.optional);
        }
        for one in done.iter().filter(|one| !one.writes) {
            if register.read(one.value, one.span).is_err() {
                return false;
            }
        }
        register.finish();
        register.check().is_ok()
    }

    /// Tries all orders.
    fn slow(left: &[Done], content: Shown) -> bool {
        if left.iter().all(|one| one.optional) {
            return true;
        }
        (0..left.len()).any(|index| {
            let one = left[index];
            let mut rest = left.to_vec();
            rest.remove(index);
            // What has ended before this began comes first, unless it never took effect.
            let may_be_next = !rest
                .iter()
                .any(|other| !other.optional && other.span.ended < one.span.sent)
                && (one.writes || one.value == content);
            let rest: Vec<Done> = rest
                .into_iter()
                .filter(|other| !(other.optional && other.span.ended < one.span.sent))
                .collect();
            may_be_next && slow(&rest, if one.writes { one.value } else { content })
        })
    }

    /// Random small histories, sound or not, are judged as by trying all orders.
    #[test]
    fn the_judgement_is_that_of_all_orders() {
        let mut random = Random::new(11);
        let (mut sound, mut unsound) = (0, 0);
        for _ in 0..20_000 {
            let count = random.between(2, 7);
            let mut moments: Vec<u64> = (1..=2 * count).collect();
            random.shuffle(&mut moments);
            let mut written = vec![0];
            let mut done = Vec::new();
            for pair in moments.chunks(2) {
                let span = Span {
                    sent: at(pair[0].min(pair[1])),
                    ended: at(pair[0].max(pair[1])),
                };
                let writes = random.percent(50);
                let value = if writes {
                    written.push(written.len() as Shown);
                    written.len() as Shown - 1
                } else {
                    *random.pick(&written)
                };
                let optional = writes && random.percent(20);
                done.push(Done {
                    writes,
                    value,
                    span,
                    optional,
                });
            }
            let expected = slow(&done, 0);
            assert_eq!(fast(&done), expected, "{done:?}");
            if expected {
                sound += 1;
            } else {
                unsound += 1;
            }
        }
        assert!(sound > 1000 && unsound > 1000, "{sound} sound, {unsound} not");
    }
}
