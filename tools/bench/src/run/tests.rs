use super::*;
use crate::job::{Arrivals, Discards, Order, WriteMode};
use crate::schedule::Kind;
use crate::target::Name;

fn file(bytes: u64) -> (tempfile::NamedTempFile, Name) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(bytes).expect("it grows");
    let name = Name::File(file.path().to_owned());
    (file, name)
}

fn writing() -> Job {
    Job {
        read_percent: 0,
        ..Job::default()
    }
}

#[test]
fn what_is_written_is_verified() {
    for order in [Order::Sequential, Order::Uniform, Order::Zipf(1.1)] {
        let (_kept, name) = file(4 << 20);
        let target = Opened::open(&name, &writing()).expect("it is there");
        let job = Job {
            read_percent: 50,
            order,
            load: Load::Closed { in_flight: 8 },
            threads: 2,
            idle: Idle::Nap,
            time_ns: 300_000_000,
            verify: true,
            ..Job::default()
        };
        let outcome = run(&job, &target).expect("it runs");
        assert_eq!(outcome.verdict, Verdict::Sound);
        assert!(outcome.figures.verified > 100, "{:?}", outcome.figures.verified);
    }
}

#[test]
fn data_that_changes_meanwhile_is_found() {
    use std::os::unix::fs::FileExt;
    let (kept, name) = file(1 << 20);
    let target = Opened::open(&name, &writing()).expect("it is there");
    let job = Job {
        read_percent: 50,
        load: Load::Closed { in_flight: 4 },
        idle: Idle::Nap,
        time_ns: 300_000_000,
        verify: true,
        ..Job::default()
    };
    let outcome = thread::scope(|scope| {
        // The lock of the file is a word of honour.
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(150));
            for block in 0..256 {
                let at = block * 4096 + 1024;
                kept.as_file().write_all_at(&[9; 512], at).expect("written");
            }
        });
        run(&job, &target).expect("it runs")
    });
    let Verdict::Failed(why) = outcome.verdict else {
        panic!("nothing was found");
    };
    assert!(why.contains("wrong data at byte"), "{why}");
}

#[test]
fn an_open_loop_starts_as_many_as_it_was_told() {
    let job = Job {
        load: Load::Open {
            rate_iops: 20_000.0,
            arrivals: Arrivals::Fixed,
            in_flight_max: 64,
        },
        idle: Idle::Nap,
        time_ns: 500_000_000,
        interval_ns: Some(1_000_000_000),
        ..Job::default()
    };
    let outcome = run(&job, &Opened::Null(1 << 30)).expect("it runs");
    let all = outcome.figures.requests() + outcome.figures.not_started;
    assert!((9_999..=10_001).contains(&all), "{all}");
    assert_eq!(outcome.figures.intervals.len(), 1);
    assert_eq!(
        outcome.figures.not_started, 0,
        "nothing stands in the way: {:?}",
        outcome.verdict
    );
}

#[test]
fn the_generator_is_not_where_the_appliance_puts_a_processor() {
    let cores = |count: u32| -> Vec<Core> {
        let core = |number| Core {
            number,
            node: 0,
            package: 0,
            physical: number,
        };
        (0..count).map(core).collect()
    };
    for count in [2, 4, 8] {
        let cores = cores(count);
        let processors = place_processors(&cores, count as usize - 1, &BTreeMap::new());
        let generator = cores_for(1, &cores, Cores::OfClients);
        assert_eq!(generator[0].map(|core| core.number), Some(0));
        assert!(!processors.contains(&generator[0]), "{processors:?}");
        assert_eq!(cores_for(1, &cores, Cores::OfProcessors)[0], processors[0]);
    }
    let job = Job {
        size_bytes: Some(4 << 20),
        ..Job::default()
    };
    let inside = Opened::open(&Name::Inside(crate::inside::Place::Memory), &job).expect("it is made");
    assert_eq!(Cores::beside(&[&inside]), Cores::OfProcessors);
    let null = Opened::Null(1 << 30);
    assert_eq!(
        Cores::beside(&[&inside, &null]),
        Cores::OfClients,
        "the same for both"
    );
    assert_eq!(
        cores_for(2, &cores(2), Cores::OfClients),
        [None, None],
        "one is left"
    );
}

#[test]
fn an_outcome_says_on_which_cores_it_ran() {
    let job = Job {
        idle: Idle::Nap,
        time_ns: 1_000_000,
        ..Job::default()
    };
    let outcome = run(&job, &Opened::Null(1 << 30)).expect("it runs");
    let expected = cores_for(1, &allowed_cores(), Cores::OfClients);
    assert_eq!(outcome.cores, [expected[0].map(|core| core.number)]);
}

#[test]
fn a_generator_that_is_asked_for_too_much_blames_itself() {
    let job = Job {
        load: Load::Open {
            rate_iops: 90e6,
            arrivals: Arrivals::Fixed,
            in_flight_max: 8,
        },
        time_ns: 50_000_000,
        ..Job::default()
    };
    let outcome = run(&job, &Opened::Null(1 << 30)).expect("it runs");
    assert_eq!(outcome.figures.not_started, 0);
    assert!(
        matches!(outcome.verdict, Verdict::GeneratorLate(why) if why.contains("the generator did not keep up"))
    );
}

#[test]
fn what_an_earlier_run_wrote_is_not_taken_for_what_this_one_wrote() {
    let (kept, name) = file(1 << 20);
    let target = Opened::open(&name, &writing()).expect("it is there");
    let job = Job {
        read_percent: 0,
        order: Order::Sequential,
        load: Load::Closed { in_flight: 4 },
        idle: Idle::Nap,
        time_ns: 50_000_000,
        verify: true,
        ..Job::default()
    };
    let first_sector = || {
        let outcome = run(&job, &target).expect("it runs");
        assert_eq!(outcome.verdict, Verdict::Sound);
        std::fs::read(kept.path()).expect("readable")[16..24].to_vec()
    };
    assert_ne!(first_sector(), first_sector(), "the mark of the run");
}

#[test]
fn discards_and_flushes_reach_a_file_and_are_told_apart() {
    use std::os::unix::fs::MetadataExt;
    let (kept, name) = file(1 << 20);
    std::fs::write(kept.path(), vec![7; 1 << 20]).expect("written");
    let target = Opened::open(&name, &writing()).expect("it is there");
    let blocks = || kept.as_file().metadata().expect("there").blocks();
    let before = blocks();
    let job = Job {
        read_percent: 0,
        discards: Discards::Only,
        order: Order::Sequential,
        load: Load::Closed { in_flight: 4 },
        idle: Idle::Nap,
        // Long enough for all of it, also on a busy machine.
        time_ns: 1_000_000_000,
        ..Job::default()
    };
    let outcome = run(&job, &target).expect("it runs");
    assert_eq!(outcome.verdict, Verdict::Sound);
    assert!(outcome.figures.kind(Kind::Discard).response.len() >= 256);
    assert!(blocks() < before / 2, "{} of {before} blocks are left", blocks());

    for in_flight in [1, 8] {
        let job = Job {
            discards: Discards::BeforeWrites,
            flush_every: Some(3),
            load: Load::Closed { in_flight },
            time_ns: 100_000_000,
            timeline: true,
            ..job.clone()
        };
        let outcome = run(&job, &target).expect("it runs");
        assert_eq!(outcome.verdict, Verdict::Sound);
        let count = |kind| outcome.figures.kind(kind).response.len();
        let (writes, discards) = (count(Kind::Write), count(Kind::Discard));
        assert!(
            writes > 0 && discards.abs_diff(writes) <= 8,
            "{writes} {discards}"
        );
        // What was in flight at the end may have had no time for its flush.
        assert!(
            (writes / 3).abs_diff(count(Kind::Flush)) <= 8,
            "{writes} {}",
            count(Kind::Flush)
        );
        assert_eq!(outcome.figures.requests(), writes + discards);
    }
}

#[test]
fn zeros_and_durable_writes_reach_a_file() {
    for durable_writes in [false, true] {
        let (kept, name) = file(1 << 20);
        std::fs::write(kept.path(), vec![7; 1 << 20]).expect("written");
        let job = Job {
            write_mode: WriteMode::Zeroes,
            durable_writes,
            lengths: vec![(65536, 1)],
            offset_bytes: 65536,
            size_bytes: Some(512 << 10),
            order: Order::Sequential,
            verify: true,
            time_ns: 100_000_000,
            idle: Idle::Nap,
            ..writing()
        };
        let target = Opened::open(&name, &job).expect("it is there");
        let outcome = run(&job, &target).expect("it runs");
        assert_eq!(outcome.verdict, Verdict::Sound);
        assert!(outcome.figures.verified > 0 && outcome.figures.kind(Kind::Write).response.len() >= 8);
        let held = std::fs::read(kept.path()).expect("there");
        let zeros = 65536..65536 + (512 << 10);
        assert!(held[zeros.clone()].iter().all(|&byte| byte == 0));
        assert!(
            held[..zeros.start]
                .iter()
                .chain(&held[zeros.end..])
                .all(|&byte| byte == 7)
        );
    }
}

/// A file system in memory makes no zeros by itself.
#[test]
fn zeros_that_a_target_refuses_are_written_and_that_is_remarked() {
    let kept = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    std::fs::write(kept.path(), vec![7; 1 << 20]).expect("written");
    let name = Name::File(kept.path().to_owned());
    let job = Job {
        write_mode: WriteMode::Zeroes,
        order: Order::Sequential,
        verify: true,
        time_ns: 100_000_000,
        idle: Idle::Nap,
        ..writing()
    };
    let target = Opened::open(&name, &job).expect("it is there");
    assert!(target.remarks().is_empty(), "nobody has asked it for zeros");
    let outcome = run(&job, &target).expect("it runs");
    assert_eq!(outcome.verdict, Verdict::Sound);
    let remarks = target.remarks();
    let path = kept.path().display().to_string();
    assert!(
        matches!(&remarks[..], [one] if one.contains(&path) && one.contains("written as data")),
        "{remarks:?}"
    );
}

#[test]
fn what_should_be_zeros_and_is_not_is_found() {
    use std::os::unix::fs::FileExt;
    let (kept, name) = file(1 << 20);
    let job = Job {
        write_mode: WriteMode::Zeroes,
        read_percent: 50,
        verify: true,
        time_ns: 400_000_000,
        idle: Idle::Nap,
        ..writing()
    };
    let target = Opened::open(&name, &job).expect("it is there");
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            for at in (0..1 << 20).step_by(4096) {
                kept.as_file().write_all_at(b"x", at + 100).expect("written");
            }
        });
        run(&job, &target).expect("it runs")
    });
    let Verdict::Failed(why) = outcome.verdict else {
        panic!("nothing was found");
    };
    assert!(why.contains("should be zero"), "{why}");
}

#[test]
fn a_flush_has_no_place_in_the_rate() {
    let job = Job {
        read_percent: 0,
        flush_every: Some(1),
        load: Load::Open {
            rate_iops: 2_000.0,
            arrivals: Arrivals::Fixed,
            in_flight_max: 1,
        },
        idle: Idle::Nap,
        time_ns: 500_000_000,
        ..Job::default()
    };
    let outcome = run(&job, &Opened::Null(1 << 30)).expect("it runs");
    let all = outcome.figures.requests() + outcome.figures.not_started;
    assert!((999..=1001).contains(&all), "{all}");
    let flushes = outcome.figures.kind(Kind::Flush).response.len();
    assert!(flushes.abs_diff(outcome.figures.requests()) <= 1, "{flushes}");
}

#[test]
fn a_job_beyond_the_end_is_refused() {
    let (_kept, name) = file(1 << 20);
    let target = Opened::open(&name, &Job::default()).expect("it is there");
    let job = Job {
        size_bytes: Some(2 << 20),
        ..Job::default()
    };
    assert!(matches!(run(&job, &target), Err(RunError::Job(_))));
    let deep = Job {
        load: Load::Closed { in_flight: 1000 },
        ..Job::default()
    };
    assert!(matches!(run(&deep, &target), Err(RunError::Job(BadJob(why))) if why.contains("256")));
}

#[test]
fn what_is_written_in_process_is_verified_in_memory_and_on_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pool");
    for place in ["inside:memory".to_owned(), format!("inside:{}", path.display())] {
        for length_bytes in [512, 4096, 65536] {
            let job = Job {
                read_percent: 50,
                lengths: vec![(length_bytes, 1)],
                load: Load::Closed { in_flight: 8 },
                threads: 2,
                idle: Idle::Nap,
                // A busy machine gets something done in it, too.
                time_ns: 300_000_000,
                size_bytes: Some(8 << 20),
                verify: true,
                flush_every: Some(50),
                ..Job::default()
            };
            let name: Name = place.parse().expect("a name");
            let target = Opened::open(&name, &job).expect("it is made");
            let outcome = run(&job, &target).expect("it runs");
            assert_eq!(outcome.verdict, Verdict::Sound);
            assert!(outcome.figures.verified > 20, "{:?}", outcome.figures.verified);
            let Opened::Inside(inside) = &target else {
                panic!("the data plane in this process")
            };
            let figures = inside.figures();
            assert!(figures.flushes > 0 && figures.written_bytes > 0, "{figures:?}");
            let snapshot = inside.snapshot().expect("taken");
            assert_eq!(run(&job, &target).expect("again").verdict, Verdict::Sound);
            inside.delete_snapshot(snapshot).expect("deleted");
        }
    }
    assert!(!path.exists(), "what was made is removed");
}

#[test]
fn a_file_that_is_there_is_not_taken_for_a_pool_without_consent() {
    let (kept, _) = file(512 << 20);
    let job = Job {
        size_bytes: Some(4 << 20),
        ..Job::default()
    };
    let path = kept.path().display();
    let refused = Opened::open(&format!("inside:{path}").parse().expect("a name"), &job);
    assert!(
        refused
            .expect_err("refused")
            .to_string()
            .contains("exists already")
    );
    let agreed = Opened::open(&format!("inside+force:{path}").parse().expect("a name"), &job);
    assert_eq!(agreed.expect("taken").size_bytes(), 4 << 20);
}
