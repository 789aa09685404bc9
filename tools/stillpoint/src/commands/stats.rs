//! `stillpoint stats`

use std::collections::BTreeMap;

use crate::cli::{Global, StatsArguments};
use crate::client::Client;
use crate::exit::Failure;
use crate::output::{self, table};
use crate::size::Duration;
use stillpoint_appliance::api::model::StageInfo;

/// Orders of kinds and stages in the table; what is not here comes last.
const KINDS: [&str; 5] = ["read", "write", "discard", "flush", "query"];
const STAGES: [&str; 8] = [
    "receive", "ring", "map", "device", "log", "held", "reply", "total",
];

/// What identifies a row: place of its kind, of its stage, and the processor if they are told apart.
type Key = (usize, usize, Option<u16>);

#[derive(Debug, Default)]
struct Row {
    count: u64,
    sum_ns: u64,
    counted: BTreeMap<u64, u64>,
}

/// Does what is asked.
pub fn run(global: &Global, arguments: &StatsArguments) -> Result<(), Failure> {
    let client = Client::new(global);
    let infos = || client.get::<Vec<StageInfo>>("/v1/stages");
    let Some(during) = arguments.during else {
        return output::print(global, &infos()?, |infos| show(infos, arguments.processors));
    };
    let before = infos()?;
    std::thread::sleep(std::time::Duration::from_nanos(during.0));
    let since = difference(&before, infos()?);
    output::print(global, &since, |infos| show(infos, arguments.processors))
}

/// What was counted after `before`.
fn difference(before: &[StageInfo], mut after: Vec<StageInfo>) -> Vec<StageInfo> {
    for info in &mut after {
        let same = |old: &&StageInfo| {
            (old.processor, &old.kind, &old.stage) == (info.processor, &info.kind, &info.stage)
        };
        let Some(old) = before.iter().find(same) else {
            continue;
        };
        let counted: BTreeMap<u64, u64> = old.counted.iter().copied().collect();
        info.count = info.count.saturating_sub(old.count);
        info.sum_ns = info.sum_ns.saturating_sub(old.sum_ns);
        for (end_ns, count) in &mut info.counted {
            *count = count.saturating_sub(counted.get(end_ns).copied().unwrap_or(0));
        }
        info.counted.retain(|(_, count)| *count > 0);
    }
    after.retain(|info| info.count > 0);
    after
}

fn show(infos: &[StageInfo], processors: bool) -> String {
    let place = |names: &[&str], name: &str| names.iter().position(|&n| n == name).unwrap_or(names.len());
    let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
    for info in infos {
        let key = (
            place(&KINDS, &info.kind),
            place(&STAGES, &info.stage),
            processors.then_some(info.processor),
        );
        let row = rows.entry(key).or_default();
        row.count += info.count;
        row.sum_ns += info.sum_ns;
        for &(end_ns, count) in &info.counted {
            *row.counted.entry(end_ns).or_default() += count;
        }
    }
    let name = |names: &[&str], place: usize| names.get(place).map_or("?", |name| *name).to_owned();
    let lines = rows.iter().map(|(&(kind, stage, processor), row)| {
        vec![
            name(&KINDS, kind),
            name(&STAGES, stage),
            processor.map_or_else(|| "all".to_owned(), |processor| processor.to_string()),
            row.count.to_string(),
            Duration(row.sum_ns / row.count.max(1)).to_string(),
            Duration(row.below(500)).to_string(),
            Duration(row.below(990)).to_string(),
            Duration(row.below(999)).to_string(),
            Duration(row.below(1_000)).to_string(),
        ]
    });
    let columns = [
        "KIND",
        "STAGE",
        ">PROCESSOR",
        ">COUNT",
        ">MEAN",
        ">P50 <",
        ">P99 <",
        ">P99.9 <",
        ">ALL <",
    ];
    table(&columns, lines)
}

impl Row {
    /// The time that so many of a thousand took less than.
    fn below(&self, per_mille: u64) -> u64 {
        let total: u64 = self.counted.values().sum();
        let wanted = (u128::from(total) * u128::from(per_mille)).div_ceil(1_000) as u64;
        let mut seen = 0;
        for (&end_ns, &count) in &self.counted {
            seen += count;
            if seen >= wanted {
                return end_ns;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(processor: u16, stage: &str, counted: &[(u64, u64)]) -> StageInfo {
        StageInfo {
            processor,
            kind: "read".to_owned(),
            stage: stage.to_owned(),
            count: counted.iter().map(|(_, count)| count).sum(),
            sum_ns: counted.iter().map(|(end_ns, count)| end_ns * count).sum(),
            counted: counted.to_vec(),
        }
    }

    #[test]
    fn processors_are_added_up_and_stages_keep_their_order() {
        let infos = [
            info(0, "device", &[(1_000, 98), (5_000, 1)]),
            info(1, "device", &[(1_000, 1)]),
            info(0, "ring", &[(100, 4)]),
        ];
        let text = show(&infos, false);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1][..4], ["read", "ring", "all", "4"]);
        assert_eq!(lines[2][..4], ["read", "device", "all", "100"]);
        assert_eq!(
            lines[2][6..],
            ["1.00", "µs", "1.00", "µs", "5.00", "µs", "5.00", "µs"]
        );
        assert_eq!(show(&infos, true).lines().count(), 4);
    }

    #[test]
    fn a_difference_is_what_came_in_between() {
        let before = [
            info(0, "device", &[(1_000, 5), (2_000, 1)]),
            info(0, "map", &[(16, 3)]),
        ];
        let after = vec![
            info(0, "device", &[(1_000, 5), (2_000, 4)]),
            info(0, "map", &[(16, 3)]),
        ];
        assert_eq!(difference(&before, after), [info(0, "device", &[(2_000, 3)])]);
    }
}
