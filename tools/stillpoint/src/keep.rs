//! What a schedule keeps, as people write it.

use stillpoint_appliance::api::model::KeepRules;

/// `last=60,hourly=24` and so on, each rule once.
pub fn keep_rules(text: &str) -> Result<KeepRules, String> {
    let bad = |what: &str| {
        format!("{what}: write last=60,hourly=24,daily=7,weekly=4,monthly=12,yearly=10, or some of these")
    };
    let mut rules = KeepRules::default();
    let mut seen = Vec::new();
    for part in text.split(',') {
        let (name, count) = part
            .trim()
            .split_once('=')
            .ok_or_else(|| bad(&format!("{part:?} is no rule")))?;
        let count: u32 = count
            .parse()
            .map_err(|_| bad(&format!("{count:?} is no number of snapshots")))?;
        let rule = match name {
            "last" => &mut rules.last,
            "hourly" => &mut rules.hourly,
            "daily" => &mut rules.daily,
            "weekly" => &mut rules.weekly,
            "monthly" => &mut rules.monthly,
            "yearly" => &mut rules.yearly,
            _ => return Err(bad(&format!("{name:?} is no rule"))),
        };
        if seen.contains(&name) {
            return Err(bad(&format!("{name} is given twice")));
        }
        seen.push(name);
        *rule = count;
    }
    Ok(rules)
}

/// The same as text; rules that keep nothing are not said.
pub fn keep_text(rules: &KeepRules) -> String {
    let all = [
        ("last", rules.last),
        ("hourly", rules.hourly),
        ("daily", rules.daily),
        ("weekly", rules.weekly),
        ("monthly", rules.monthly),
        ("yearly", rules.yearly),
    ];
    let said: Vec<String> = all
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name}={count}"))
        .collect();
    said.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written_the_same_way() {
        let rules = keep_rules("last=60, hourly=24,daily=7").expect("rules");
        assert_eq!(
            (rules.last, rules.hourly, rules.daily, rules.weekly),
            (60, 24, 7, 0)
        );
        assert_eq!(keep_text(&rules), "last=60,hourly=24,daily=7");
        for (text, why) in [
            ("", "is no rule"),
            ("last", "is no rule"),
            ("secondly=1", "is no rule"),
            ("last=", "no number"),
            ("last=-1", "no number"),
            ("last=1,last=2", "twice"),
            ("last=99999999999", "no number"),
        ] {
            let error = keep_rules(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
