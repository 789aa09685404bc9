//! Every field of every structure on the devices flipped, one at a time: what is read then is right, or refused.

use std::rc::Rc;

use stillpoint_ondisk::tail::SegmentHeader;
use stillpoint_processor::ports::LogTail;

use super::fields::{Field, bytes_of, fields_of, kind_of};
use super::outcome::{Outcome, outcome};
use crate::boundary::history::History;
use crate::boundary::medium::{Image, Page, Place};
use crate::boundary::memory::Tail;
use crate::boundary::play::Player;
use crate::boundary::rig::{Checked, Rig};
use crate::boundary::{script_of, scripts_by_hand, start};
use crate::model::{Broken, Crash};
use crate::random::{Random, mix};
use crate::world::Coverage;

/// How many pools are damaged.
#[must_use]
pub fn pools() -> u64 {
    scripts_by_hand()
}

/// Flips a bit of every field (or of every byte) of every structure of a pool, one at a time.
///
/// # Errors
/// The field whose damage led to wrong data.
pub fn run(number: u64, every_byte: bool) -> Result<Coverage, Broken> {
    let script = script_of(number);
    let mut rig = start(&script)?;
    Player::new(&script).play(&mut rig, |_| Ok(true))?;
    // What was flushed last is marked, and everything has reached the medium: the damage is the only fault.
    rig.finish(|_| Ok(()))?;
    while rig.wait() {
        rig.finish(|_| Ok(()))?;
    }
    let history = std::mem::take(&mut rig.history);
    let now_ns = rig.now_ns;
    let image = all_kept(&rig);
    let tails = rig.die().1;
    let mut damage = Damage {
        image,
        history,
        now_ns,
        random: Random::new(mix(number ^ 0xDA_4A6E)),
        coverage: Coverage::default(),
    };
    let named = |Broken(why)| Broken(format!("script {}: {why}", script.name));
    damage.flip_tails(&tails).map_err(named)?;
    for place in 0..damage.image.base.len() as Place {
        let Some(page) = damage.image.durable_page(place).cloned() else {
            continue;
        };
        let fields = if every_byte {
            bytes_of(&page[..])
        } else {
            fields_of(&page[..])
        };
        for field in fields {
            damage.flip(place, &page, &field).map_err(named)?;
        }
    }
    Ok(damage.coverage)
}

fn all_kept(rig: &Rig) -> Image {
    let image = rig.image();
    let mut kept = image.durable();
    for write in image.at_risk() {
        kept.settle(write.place, write.page);
    }
    kept
}

struct Damage {
    image: Image,
    history: History,
    now_ns: u64,
    random: Random,
    coverage: Coverage,
}

impl Damage {
    fn flip(&mut self, place: Place, page: &Page, field: &Field) -> Checked {
        let mut bytes = **page;
        let at = self
            .random
            .between(field.bytes.start as u64, field.bytes.end as u64 - 1) as usize;
        let bit = self.random.below(8);
        bytes[at] ^= 1 << bit;
        let mut image = self.image.clone();
        image.settle(place, Rc::new(bytes));
        let outcome =
            outcome(&image, None, &self.history, Crash::PowerCut, self.now_ns).map_err(|Broken(why)| {
                Broken(format!(
                    "bit {bit} of byte {at} ({} of {} {}) flipped: {why}",
                    field.name,
                    field.structure,
                    self.where_is(place)
                ))
            })?;
        self.coverage.count("fields flipped");
        self.coverage
            .count(match kind_of(&page[..]).expect("it has fields") {
                "PoolLabel" => "fields of pool labels",
                "ShardHeader" => "fields of shard headers",
                "BitmapPage" => "fields of bitmap pages",
                "LogPage" => "fields of log pages",
                "MapPage" => "fields of map pages",
                _ => "fields of directory pages",
            });
        self.coverage.count(match outcome {
            Outcome::Right => "and everything was right",
            Outcome::RefusedOpen => "and the pool was refused",
            Outcome::RefusedRead => "and some reads were refused",
        });
        Ok(())
    }

    /// The log tails, which are memory: what they alone hold may be gone when they are damaged, but nothing that was
    /// flushed is, and nothing is mixed up.
    fn flip_tails(&mut self, tails: &[Tail]) -> Checked {
        const HEADER_FIELDS: [usize; 5] = [0, 4, 8, 16, 24];
        let records = (size_of::<SegmentHeader>()..2048).step_by(13);
        for (shard, tail) in tails.iter().enumerate() {
            for segment in 0..tail.0.as_ref().map_or(0, |segments| segments.len()) {
                for at in HEADER_FIELDS.into_iter().chain(records.clone()) {
                    let mut tails = tails.to_vec();
                    let bit = self.random.below(8);
                    tails[shard].segment(segment)[at] ^= 1 << bit;
                    let history = &self.history;
                    outcome(&self.image, Some(tails), history, Crash::PowerCut, self.now_ns).map_err(
                        |Broken(why)| {
                            Broken(format!(
                                "bit {bit} of byte {at} of segment {segment} of a log tail: {why}"
                            ))
                        },
                    )?;
                    self.coverage.count("fields of log tails");
                }
            }
        }
        Ok(())
    }

    fn where_is(&self, place: Place) -> String {
        let starts = &self.image.starts;
        let device = starts.iter().rposition(|start| *start <= place).unwrap_or(0);
        format!("in block {} of device {device}", place - starts[device])
    }
}
