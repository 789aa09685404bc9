//! What the daemon did while something was measured.

use std::path::PathBuf;

use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{EventInfo, EventList, PoolInfo};
use stillpoint_bench::run::Outcome;
use stillpoint_bench::stalls::Happening;

use crate::cli::Global;
use crate::client::{Client, with_query};
use crate::exit::Failure;

/// Events asked for at a time.
const PAGE: u32 = 1000;
/// Events of one run at most: more are forgotten by the daemon anyway.
const EVENTS_MAX: usize = 20_000;
/// What began so long before a run is of no more interest.
const BEFORE_NS: i64 = 1_000_000_000;

/// From its begin on what happens is of interest.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    /// Number of the last event before.
    last: u64,
    devices: Vec<(PathBuf, bool)>,
}

/// What happened.
#[derive(Debug)]
pub struct Happened {
    /// In the order of their numbers.
    pub happenings: Vec<Happening>,
    /// The devices of all pools, each with whether it is used past the page cache.
    pub devices: Vec<(PathBuf, bool)>,
}

impl Watch {
    /// From now on.
    ///
    /// # Errors
    /// No daemon answers.
    pub fn begin(global: &Global) -> Result<Self, Failure> {
        let client = Client::new(global);
        let newest: EventList = client.get(&with_query("/v1/events", &[("limit", Some("1"))]))?;
        let pools: Vec<PoolInfo> = client.get("/v1/pools")?;
        let devices = pools.into_iter().flat_map(|pool| pool.devices);
        Ok(Self {
            client,
            last: newest.last,
            devices: devices
                .map(|device| (PathBuf::from(device.path), device.direct))
                .collect(),
        })
    }

    /// Up to now. A run's clock and the daemon's are the same if they are on one machine.
    ///
    /// # Errors
    /// The daemon does not answer any more.
    pub fn end(self, outcome: &Outcome) -> Result<Happened, Failure> {
        let mut happenings = Vec::new();
        let mut after = self.last;
        while happenings.len() < EVENTS_MAX {
            let (from, limit) = (after.to_string(), PAGE.to_string());
            let parameters = [
                ("after", Some(from.as_str())),
                ("limit", Some(limit.as_str())),
                ("background", Some("true")),
            ];
            let page: EventList = self.client.get(&with_query("/v1/events", &parameters))?;
            let Some(last) = page.events.last() else {
                break;
            };
            if last.number <= after {
                return Err(Error::failure("the daemon started anew while it was measured").into());
            }
            after = last.number;
            happenings.extend(
                page.events
                    .into_iter()
                    .map(|event| happening(event, outcome.began_wall_ns)),
            );
        }
        let time_ns = outcome.job.time_ns as i64;
        happenings.retain(|one| one.ended_ns > -BEFORE_NS && one.began_ns < time_ns + BEFORE_NS);
        Ok(Happened {
            happenings,
            devices: self.devices,
        })
    }
}

fn happening(event: EventInfo, began_wall_ns: u64) -> Happening {
    let since = |wall_ns: u64| wall_ns.wrapping_sub(began_wall_ns) as i64;
    let subject = match (event.pool.as_str(), event.subject.as_str()) {
        (pool, "") => pool.to_owned(),
        ("", subject) => subject.to_owned(),
        (pool, subject) => format!("{pool}/{subject}"),
    };
    Happening {
        began_ns: since(event.began_ns.unwrap_or(event.time_ns)),
        ended_ns: since(event.time_ns),
        kind: event.kind,
        subject,
        text: event.text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_lies_where_it_happened_and_may_be_before_the_run() {
        let event = |began_ns, time_ns| EventInfo {
            number: 1,
            began_ns,
            time_ns,
            level: "info".into(),
            kind: "snapshot_taken".into(),
            pool: "p".into(),
            subject: "v@s".into(),
            text: "taken".into(),
        };
        let one = happening(event(Some(900), 1_500), 1_000);
        assert_eq!(
            (one.began_ns, one.ended_ns, one.subject.as_str()),
            (-100, 500, "p/v@s")
        );
        assert_eq!(happening(event(None, 1_500), 1_000).began_ns, 500);
    }
}
