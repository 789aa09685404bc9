use super::*;
use crate::api::model::CreatePool;
use crate::make::make_pool;
use std::fs;

fn known(devices: &[&str]) -> KnownPool {
    KnownPool {
        name: "p".to_owned(),
        id: "aa".to_owned(),
        devices: devices.iter().map(PathBuf::from).collect(),
    }
}

fn search(seen: &[(&str, &str, usize)]) -> Search {
    let seen = seen.iter().map(|&(path, pool, place)| {
        let of = Place {
            pool: pool.to_owned(),
            place,
            places: 2,
            mirrored: false,
        };
        let mark = format!("mark of {path}");
        let seen = Seen {
            mark,
            of: Some(of),
            too_small: None,
            is_told: false,
        };
        (PathBuf::from(path), seen)
    });
    Search {
        seen: seen.collect(),
        ..Search::default()
    }
}

/// The paths that a pool would be opened with.
fn paths(search: &Search, waiting: &Waiting) -> Option<Vec<String>> {
    let found = search.complete(waiting)?;
    Some(found.iter().map(|(path, _)| path.display().to_string()).collect())
}

#[test]
fn a_pool_that_was_not_opened_waits_for_all_of_its_devices_whatever_their_names() {
    let waiting = Waiting {
        known: known(&["/dev/a", "/dev/b"]),
        missing: None,
        out: Vec::new(),
        given: false,
    };
    assert_eq!(paths(&search(&[]), &waiting), None);
    assert_eq!(paths(&search(&[("/dev/a", "aa", 0)]), &waiting), None);
    let others = search(&[("/dev/a", "aa", 0), ("/dev/b", "bb", 1)]);
    assert_eq!(paths(&others, &waiting), None, "one is of another pool");
    let there = search(&[("/dev/a", "aa", 1), ("/dev/c", "aa", 0), ("/dev/d", "bb", 0)]);
    assert_eq!(
        paths(&there, &waiting).expect("all are there"),
        ["/dev/c", "/dev/a"]
    );
}

#[test]
fn an_open_pool_waits_only_for_what_it_lost() {
    let mut waiting = Waiting {
        known: known(&["/dev/a", "/dev/b"]),
        missing: Some(vec![false, true]),
        out: Vec::new(),
        given: false,
    };
    assert_eq!(paths(&search(&[("/dev/a", "aa", 0)]), &waiting), None);
    let there = search(&[("/dev/c", "aa", 1)]);
    assert_eq!(paths(&there, &waiting).expect("it is back"), ["/dev/a", "/dev/c"]);
    waiting.missing = Some(vec![true, true]);
    assert_eq!(paths(&there, &waiting), None);
}

#[test]
fn a_known_name_is_kept_and_a_copy_is_taken_for_nothing() {
    let waiting = Waiting {
        known: known(&["/dev/disk/by-id/a", "/dev/b"]),
        missing: Some(vec![true, false]),
        out: Vec::new(),
        given: false,
    };
    let named = search(&[("/dev/disk/by-id/a", "aa", 0), ("/dev/nvme9n1", "aa", 0)]);
    assert_eq!(
        paths(&named, &waiting).expect("one device"),
        ["/dev/disk/by-id/a", "/dev/b"]
    );
    let copied = search(&[("/dev/nvme8n1", "aa", 0), ("/dev/nvme9n1", "aa", 0)]);
    assert_eq!(paths(&copied, &waiting), None);
}

#[test]
fn a_copy_does_not_take_the_place_of_a_device_that_became_too_small() {
    let waiting = Waiting {
        known: known(&["/dev/a", "/dev/b"]),
        missing: Some(vec![true, false]),
        out: Vec::new(),
        given: false,
    };
    let mut search = search(&[("/dev/a", "aa", 0), ("/dev/copy", "aa", 0)]);
    let device = search.seen.get_mut(Path::new("/dev/a")).expect("there");
    device.too_small = Some("too small".to_owned());
    assert_eq!(paths(&search, &waiting), None);
    let device = search.seen.get_mut(Path::new("/dev/a")).expect("there");
    device.too_small = None;
    assert_eq!(paths(&search, &waiting).expect("as before"), ["/dev/a", "/dev/b"]);
}

#[test]
fn a_pool_that_was_only_given_is_opened_with_nothing_else() {
    let mut waiting = Waiting {
        known: known(&["/dev/a"]),
        missing: None,
        out: Vec::new(),
        given: true,
    };
    let there = search(&[("/dev/a", "aa", 0), ("/dev/b", "aa", 1)]);
    assert_eq!(paths(&there, &waiting), None, "one device was not given");
    waiting.known = known(&["/dev/a", "/dev/b"]);
    assert_eq!(paths(&there, &waiting).expect("both"), ["/dev/a", "/dev/b"]);
}

#[test]
fn what_was_tried_in_vain_is_tried_again_when_a_device_has_changed() {
    let waiting = Waiting {
        known: known(&["/dev/a", "/dev/b"]),
        missing: None,
        out: Vec::new(),
        given: false,
    };
    let mut search = search(&[("/dev/a", "aa", 0), ("/dev/b", "aa", 1)]);
    let found = search.complete(&waiting).expect("all are there");
    search.tried.insert("aa".to_owned(), found);
    assert_eq!(paths(&search, &waiting), None);
    search.seen.get_mut(Path::new("/dev/b")).expect("there").mark = "another".to_owned();
    assert!(paths(&search, &waiting).is_some());
}

#[tokio::test]
async fn labels_are_read_once_and_again_when_something_else_is_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("device");
    let request = CreatePool {
        name: "p".to_owned(),
        devices: vec![path.display().to_string()],
        size_bytes: Some(64 << 20),
        shards: Some(1),
        mirror: false,
        force: false,
        force_devices: Vec::new(),
    };
    let (devices, files) = make_pool(&request, 1).expect("made");
    drop(files);
    let waiting = Waiting {
        known: KnownPool {
            name: "p".to_owned(),
            id: devices.id_text(),
            devices: vec![path.clone()],
        },
        missing: None,
        out: Vec::new(),
        given: false,
    };
    let mut search = Search::default();
    let looked = async |search: &mut Search| {
        search.look(std::slice::from_ref(&waiting)).await;
        paths(search, &waiting)
    };
    let there = Some(vec![path.display().to_string()]);
    assert_eq!(looked(&mut search).await, there);
    // As if something else had been seen there: it is not looked at again while it is the same.
    search.seen.get_mut(&path).expect("seen").of = None;
    assert_eq!(looked(&mut search).await, None);
    // Cut off, it is not there; with its size it is.
    let file = fs::File::options().write(true).open(&path).expect("there");
    file.set_len(32 << 20).expect("cut off");
    assert_eq!(looked(&mut search).await, None, "too small");
    let told = search.seen[&path].too_small.as_ref().expect("it is told of");
    for words in ["has 33554432 bytes", "67108864", "give the device its size back"] {
        assert!(told.contains(words), "{told}");
    }
    file.set_len(64 << 20).expect("grown");
    assert_eq!(looked(&mut search).await, there);
    let away = directory.path().join("away");
    fs::rename(&path, &away).expect("renamed");
    assert_eq!(looked(&mut search).await, None);
    assert!(!search.seen.contains_key(&path));
    fs::write(&path, vec![0; 1 << 20]).expect("written");
    assert_eq!(looked(&mut search).await, None, "no label");
    fs::rename(&away, &path).expect("renamed");
    assert_eq!(looked(&mut search).await, there);
}

/// It is asked once, is not there for so long, and hides no other; what it says at last counts.
#[tokio::test]
async fn a_path_that_does_not_answer_is_not_there_until_it_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    for name in ["silent", "other"] {
        fs::write(path(name), vec![0; 1 << 20]).expect("written");
    }
    let mut waiting = Waiting {
        known: known(&[]),
        missing: None,
        out: Vec::new(),
        given: false,
    };
    waiting.known.devices = vec![path("silent"), path("other")];
    let mut search = Search::default();
    let late = Seen {
        mark: "late".to_owned(),
        of: None,
        too_small: None,
        is_told: false,
    };
    let (answer, silence) = std::sync::mpsc::channel::<Seen>();
    let asked = vec![(path("silent"), move || silence.recv().ok())];
    search.questions.ask(asked, Duration::from_millis(10)).await;
    let begun = std::time::Instant::now();
    search.look(std::slice::from_ref(&waiting)).await;
    assert!(begun.elapsed() < LOOK_LIMIT, "nobody waits again");
    assert!(search.seen.contains_key(&path("other")) && !search.seen.contains_key(&path("silent")));
    answer.send(late.clone()).expect("somebody listens");
    // One that came while the next look was under way would be asked for again by it.
    while search.questions.is_open(&path("silent")) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    search.look(std::slice::from_ref(&waiting)).await;
    assert_eq!(
        search.seen[&path("silent")],
        late,
        "it is not asked again at once"
    );
    search.look(std::slice::from_ref(&waiting)).await;
    assert_ne!(search.seen[&path("silent")], late);
}
