use std::sync::Mutex;

use stillpoint_bench::job::Idle;

use super::*;

/// Remembers what it was asked.
#[derive(Default)]
struct Fake(Mutex<Vec<&'static str>>);

impl Fake {
    fn says(&self, what: &'static str) {
        self.0.lock().expect("no panic").push(what);
    }

    /// What it was asked since the last time; the same several times in a row is there once.
    fn said(&self) -> Vec<&'static str> {
        let mut all = std::mem::take(&mut *self.0.lock().expect("no panic"));
        all.dedup();
        all
    }
}

impl Appliance for Fake {
    fn look(&self) -> Result<(), Failure> {
        self.says("look");
        Ok(())
    }

    fn take(&self, name: String) -> Result<SnapshotInfo, Failure> {
        self.says("take");
        Ok(SnapshotInfo {
            name,
            pool: "p".into(),
            id: 1,
            volumes: Vec::new(),
            time_stamp_ns: since_1970(),
            locked_until_ns: 0,
            schedule: None,
            durable_ns: 0,
            hold_ns_max: 0,
            answers_held: 0,
            answer_held_ns_max: 0,
            log_bytes: 0,
            metadata_bytes: 0,
            holds: Vec::new(),
            intermediate_snapshots: Vec::new(),
        })
    }

    fn delete(&self, _: &SnapshotInfo) -> Result<(), Failure> {
        self.says("delete");
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), Failure> {
        self.says("checkpoint");
        Ok(())
    }
}

fn halves(appliance: &Fake, control: bool) -> Halves<'_, Fake> {
    Halves {
        appliance,
        // Whatever else the machine does, some are due within the run.
        every: Duration::from_millis(2),
        control,
        mark: 1,
    }
}

fn job() -> Job {
    Job {
        idle: Idle::Nap,
        time_ns: 200_000_000,
        ..Job::default()
    }
}

#[test]
fn the_same_is_done_beside_both_halves_and_their_order_alternates() {
    let (fake, target) = (Fake::default(), Opened::Null(1 << 30));
    let halves = halves(&fake, false);
    halves.warm_up(&job(), &target).expect("it runs");
    assert_eq!(fake.said(), ["look", "checkpoint"]);
    let without = ["look", "checkpoint"];
    let with = ["take", "delete", "checkpoint"];
    for (number, expected) in [
        (0, [&without[..], &with].concat()),
        (1, [&with[..], &without].concat()),
        (2, [&without[..], &with].concat()),
    ] {
        let (_, outcome, moments) = halves.round(number, &job(), &target).expect("it runs");
        assert_eq!(fake.said(), expected, "round {number}");
        let in_time = |moment: &Moment| (0..200_000_000).contains(&moment.position_ns(&outcome));
        assert!(!moments.is_empty() && moments.iter().all(in_time));
        assert!(moments.iter().all(|moment| moment.taken.is_some()));
    }
}

#[test]
fn a_control_takes_no_snapshot_and_has_moments_all_the_same() {
    let (fake, target) = (Fake::default(), Opened::Null(1 << 30));
    let halves = halves(&fake, true);
    for number in 0..2 {
        let (_, _, moments) = halves.round(number, &job(), &target).expect("it runs");
        assert_eq!(fake.said(), ["look", "checkpoint", "look", "checkpoint"]);
        assert!(!moments.is_empty() && moments.iter().all(|moment| moment.taken.is_none()));
    }
}

#[test]
fn what_was_taken_goes_also_if_more_cannot_be() {
    struct Full(Fake);
    impl Appliance for Full {
        fn look(&self) -> Result<(), Failure> {
            self.0.look()
        }

        fn take(&self, name: String) -> Result<SnapshotInfo, Failure> {
            match name.ends_with("-0") {
                true => self.0.take(name),
                false => Err(Error::failure("full").into()),
            }
        }

        fn delete(&self, info: &SnapshotInfo) -> Result<(), Failure> {
            self.0.delete(info)
        }

        fn checkpoint(&self) -> Result<(), Failure> {
            self.0.checkpoint()
        }
    }
    let full = Full(Fake::default());
    let halves = Halves {
        appliance: &full,
        every: Duration::from_millis(2),
        control: false,
        mark: 1,
    };
    let failure = halves
        .round(1, &job(), &Opened::Null(1 << 30))
        .expect_err("no room");
    assert!(matches!(failure, Failure::Refused(error) if error.message == "full"));
    assert_eq!(full.0.said(), ["take", "delete"]);
}
