//! What a power cut leaves of the block writes that were at risk: each lost, kept or torn at 512 bytes, in any order.

use std::rc::Rc;

use super::medium::{Image, Page, Write};
use crate::random::Random;
use crate::stamp::SECTOR_BYTES;

/// What becomes of a block write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    Kept,
    /// These of its eight sectors are kept.
    Torn(u8),
}

/// What becomes of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    fates: Vec<Fate>,
    /// Positions in the order in which they reach the medium, if it is another than that of completion.
    order: Option<Vec<usize>>,
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Subsets of the writes at risk, if there are more than `exhaustive` of them.
    pub subsets: usize,
    /// Up to so many writes at risk all subsets are tried.
    pub exhaustive: usize,
}

impl Budget {
    /// What the tests run.
    pub const SHORT: Self = Self {
        subsets: 64,
        exhaustive: 8,
    };
    /// What runs for a night.
    pub const LONG: Self = Self {
        subsets: 4096,
        exhaustive: 12,
    };
}

impl Choice {
    /// All the same.
    pub(crate) fn all(fate: Fate, count: usize) -> Self {
        Self {
            fates: vec![fate; count],
            order: None,
        }
    }

    /// Each on its own, in any order.
    pub(crate) fn random(count: usize, random: &mut Random) -> Self {
        let mut order: Vec<usize> = (0..count).collect();
        random.shuffle(&mut order);
        Self {
            fates: (0..count).map(|_| fate(random)).collect(),
            order: Some(order),
        }
    }

    /// The devices after the power cut.
    pub(crate) fn apply(&self, image: &Image, at_risk: &[Write]) -> Image {
        assert_eq!(self.fates.len(), at_risk.len(), "a fate for each write");
        let mut left = image.durable();
        let in_order: Vec<usize> = (0..at_risk.len()).collect();
        for &index in self.order.as_ref().unwrap_or(&in_order) {
            let write = &at_risk[index];
            match self.fates[index] {
                Fate::Lost => {}
                Fate::Kept => left.settle(write.place, Rc::clone(&write.page)),
                Fate::Torn(sectors) => {
                    let page = torn(left.durable_page(write.place), &write.page, sectors);
                    left.settle(write.place, page);
                }
            }
        }
        left
    }
}

/// A block of which some sectors were written.
pub(crate) fn torn(before: Option<&Page>, after: &Page, sectors: u8) -> Page {
    let mut page = before.map_or([0; 4096], |before| **before);
    let pairs = after
        .chunks_exact(SECTOR_BYTES)
        .zip(page.chunks_exact_mut(SECTOR_BYTES));
    for (index, (new, old)) in pairs.enumerate() {
        if sectors >> index & 1 == 1 {
            old.copy_from_slice(new);
        }
    }
    Rc::new(page)
}

fn fate(random: &mut Random) -> Fate {
    match random.below(5) {
        0 | 1 => Fate::Lost,
        2 | 3 => Fate::Kept,
        _ => Fate::Torn(random.between(1, 254) as u8),
    }
}

/// What is tried of `count` writes: every subset if they are few, else some, and with them torn and reordered ones.
pub(crate) fn choices(count: usize, budget: Budget, random: &mut Random) -> Vec<Choice> {
    let mut choices = Vec::new();
    if count <= budget.exhaustive {
        for kept in 0..1usize << count {
            let fates = (0..count)
                .map(|index| {
                    if kept >> index & 1 == 1 {
                        Fate::Kept
                    } else {
                        Fate::Lost
                    }
                })
                .collect();
            choices.push(Choice { fates, order: None });
        }
        // Each of them torn, the others as may be.
        for index in 0..count {
            let mut choice = Choice::random(count, random);
            choice.fates[index] = Fate::Torn(random.between(1, 254) as u8);
            choices.push(choice);
        }
    } else {
        choices.push(Choice::all(Fate::Lost, count));
        choices.push(Choice::all(Fate::Kept, count));
        while choices.len() < budget.subsets {
            choices.push(Choice::random(count, random));
        }
    }
    choices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_writes_are_tried_in_all_subsets_and_many_as_often_as_told() {
        let mut random = Random::new(1);
        let few = choices(3, Budget::SHORT, &mut random);
        let whole: std::collections::BTreeSet<Vec<bool>> = few
            .iter()
            .filter(|choice| choice.fates.iter().all(|fate| !matches!(fate, Fate::Torn(_))))
            .map(|choice| choice.fates.iter().map(|fate| *fate == Fate::Kept).collect())
            .collect();
        assert_eq!(whole.len(), 8);
        for torn in 0..3 {
            assert!(
                few.iter()
                    .any(|choice| matches!(choice.fates[torn], Fate::Torn(_)))
            );
        }
        assert_eq!(choices(0, Budget::SHORT, &mut random).len(), 1);
        assert_eq!(choices(8, Budget::SHORT, &mut random).len(), 256 + 8);
        assert_eq!(choices(30, Budget::SHORT, &mut random).len(), 64);
        assert_eq!(choices(30, Budget::LONG, &mut random).len(), 4096);
    }

    #[test]
    fn what_is_lost_kept_torn_and_reordered_shows() {
        let image = Image::blank(&[4]);
        let page = |byte| Rc::new([byte; 4096]);
        let write = |number, byte| Write {
            number,
            place: 2,
            page: page(byte),
        };
        let at_risk = [write(0, 1), write(1, 2)];
        let first_byte = |fates: [Fate; 2], order: Option<Vec<usize>>| {
            let choice = Choice {
                fates: fates.to_vec(),
                order,
            };
            let left = choice.apply(&image, &at_risk);
            left.durable_page(2).map(|page| (page[0], page[512]))
        };
        use Fate::{Kept, Lost, Torn};
        assert_eq!(first_byte([Lost, Lost], None), None);
        assert_eq!(first_byte([Kept, Lost], None), Some((1, 1)));
        assert_eq!(first_byte([Kept, Kept], None), Some((2, 2)));
        assert_eq!(first_byte([Kept, Kept], Some(vec![1, 0])), Some((1, 1)));
        assert_eq!(first_byte([Kept, Torn(2)], None), Some((1, 2)));
    }
}
