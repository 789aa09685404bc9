use super::*;

fn numbers(list: &EventList) -> Vec<u64> {
    list.events.iter().map(|event| event.number).collect()
}

#[test]
fn the_last_are_kept_and_routine_does_not_push_out_trouble() {
    let events = Events::default();
    events.tell(EventKind::ShardStopped, "p", "shard 1", "write: it broke");
    for _ in 0..2 * INFO_MAX {
        events.tell(EventKind::SnapshotTaken, "p", "v@s", "taken");
    }
    let all = events.list(Some(0), usize::MAX, false);
    assert_eq!(all.events.len(), INFO_MAX + 1);
    assert_eq!(all.last, 2 * INFO_MAX as u64 + 1);
    assert_eq!(all.events[0].kind, "shard_stopped");
    assert!(numbers(&all).is_sorted());
    for _ in 0..2 * TROUBLE_MAX {
        events.tell(EventKind::BlockCorrupt, "p", "shard 1", "again");
    }
    let all = events.list(Some(0), usize::MAX, false);
    assert_eq!(all.events.len(), INFO_MAX + TROUBLE_MAX);
}

#[test]
fn one_can_page_through_all_events_and_ask_for_the_last() {
    let events = Events::default();
    for number in 0..10 {
        let kind = if number % 3 == 0 {
            EventKind::PoolRemark
        } else {
            EventKind::SnapshotTaken
        };
        events.tell(kind, "p", "v", number.to_string());
    }
    let (mut after, mut seen) = (0, Vec::new());
    loop {
        let page = events.list(Some(after), 4, false);
        let Some(last) = page.events.last() else { break };
        after = last.number;
        seen.extend(numbers(&page));
    }
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
    assert_eq!(numbers(&events.list(None, 3, false)), [8, 9, 10]);
    assert!(events.list(Some(10), 3, false).events.is_empty());
    assert_eq!(
        numbers(&events.list(Some(11), 3, false)),
        [1, 2, 3],
        "a number of an earlier life of the daemon"
    );
}

#[tokio::test]
async fn who_waits_is_woken_by_an_event_and_by_the_end() {
    let events = std::sync::Arc::new(Events::default());
    let hour = Duration::from_secs(3600);
    events.tell(EventKind::PoolOpened, "p", "", "open");
    events.wait(0, hour).await;
    events.wait(7, hour).await;
    let waiting = {
        let events = events.clone();
        tokio::spawn(async move { events.wait(1, hour).await })
    };
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    events.tell(EventKind::PoolClosed, "p", "", "closed");
    waiting.await.expect("it does not panic");
    let waiting = {
        let events = events.clone();
        tokio::spawn(async move { events.wait(2, hour).await })
    };
    tokio::task::yield_now().await;
    events.end_waiting();
    waiting.await.expect("it does not panic");
}

#[tokio::test]
async fn what_shards_do_beside_requests_pushes_nothing_out_and_wakes_nobody() {
    let events = Events::default();
    events.tell(EventKind::PoolOpened, "p", "", "open");
    events.tell(EventKind::ShardStopped, "p", "shard 1", "write: it broke");
    let when = When {
        began_ns: Some(5),
        time_ns: 7,
    };
    for _ in 0..2 * BACKGROUND_MAX {
        events.tell_of(EventKind::Checkpointed, when, "p", "shard 0", "durable");
    }
    assert_eq!(numbers(&events.list(None, usize::MAX, false)), [1, 2]);
    let all = events.list(Some(0), usize::MAX, true).events;
    assert_eq!(all.len(), BACKGROUND_MAX + 2);
    assert!(all.is_sorted_by_key(|event| event.number));
    let last = all.last().expect("there are some");
    assert_eq!((last.began_ns, last.time_ns), (Some(5), 7));
    // Nobody is told that there is something to see and then sees nothing.
    let moment = Duration::from_millis(20);
    let waited = tokio::time::timeout(moment, events.wait(2, Duration::from_secs(3600))).await;
    assert!(waited.is_err(), "it waits on");
}

#[test]
fn every_kind_has_a_word_of_its_own() {
    let words: std::collections::BTreeSet<_> = EventKind::ALL.iter().map(|kind| kind.word()).collect();
    assert_eq!(words.len(), EventKind::ALL.len());
}
