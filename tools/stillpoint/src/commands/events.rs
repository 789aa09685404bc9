//! `stillpoint events`

use crate::cli::{EventsArguments, Format, Global};
use crate::client::{Client, with_query};
use crate::exit::Failure;
use crate::output;
use stillpoint_appliance::api::model::{EventInfo, EventList};

/// How long one question waits for an event.
const WAIT_S: &str = "30";

/// Does what is asked.
pub fn run(arguments: &EventsArguments, global: &Global) -> Result<(), Failure> {
    let client = Client::new(global);
    let limit = arguments.limit.to_string();
    let after = arguments.after.map(|after| after.to_string());
    let parameters = [
        ("after", after.as_deref()),
        ("limit", Some(limit.as_str())),
        ("background", arguments.background.then_some("true")),
    ];
    let first: EventList = client.get(&with_query("/v1/events", &parameters))?;
    if !arguments.follow {
        return output::print(global, &first, |list| lines(&list.events));
    }
    let mut known = first.events.last().map_or(first.last, |event| event.number);
    print(global, &first.events)?;
    loop {
        let after = known.to_string();
        let parameters = [("after", Some(after.as_str())), ("wait_s", Some(WAIT_S))];
        let more: EventList = client.get(&with_query("/v1/events", &parameters))?;
        known = more.events.last().map_or(known, |event| event.number);
        print(global, &more.events)?;
    }
}

fn print(global: &Global, events: &[EventInfo]) -> Result<(), Failure> {
    for event in events {
        let line = match global.output {
            Format::Json => serde_json::to_string(event).expect("plain data"),
            Format::Table => line(event),
        };
        output::line(&line)?;
    }
    Ok(())
}

fn lines(events: &[EventInfo]) -> String {
    events.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// One line for each, of the same shape whether it is one of many or the only one.
fn line(event: &EventInfo) -> String {
    let subject = match (event.pool.as_str(), event.subject.as_str()) {
        (pool, "") => pool.to_owned(),
        ("", subject) => subject.to_owned(),
        (pool, subject) => format!("{pool}/{subject}"),
    };
    format!(
        "{:>5}  {}  {:<7}  {:<18}  {subject}: {}",
        event.number,
        output::time(event.time_ns),
        event.level,
        event.kind,
        event.text
    )
}
