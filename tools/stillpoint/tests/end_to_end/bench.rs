//! `stillpoint bench` against targets whose latency is known. How exact it is on a quiet machine is in docs/bench.md; here
//! the machine may be busy, and then a run may rightly say that its generator did not keep up.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::foreign::must;
use crate::support::nbdkit::Nbdkit;
use crate::support::{Appliance, list, member, number};
use serde_json::Value;

/// What a run says, and whether it succeeded.
fn bench(arguments: &[&str]) -> (Value, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["bench", "-o", "json"])
        .args(arguments)
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let json = serde_json::from_str(&text).unwrap_or_else(|error| {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("not JSON ({error}): {text}{errors}")
    });
    (json, output.status.success())
}

/// What a usage error says.
fn refused(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .arg("bench")
        .args(arguments)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

/// One word to nbdkit's filter that stops everything.
fn tell(control: &Path, word: u8) {
    let mut stream = UnixStream::connect(control).expect("it listens");
    stream.write_all(&[word]).expect("it takes it");
    let mut answer = [0];
    stream.read_exact(&mut answer).expect("it has done it");
}

#[test]
fn a_server_that_stands_still_cannot_hide_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, control) = (directory.path().join("nbd"), directory.path().join("control"));
    let control_is = format!("pause-control={}", control.display());
    let _nbdkit = Nbdkit::start(&socket, &["--filter=pause", "memory", "64M", &control_is]);
    let stop = thread::spawn(move || {
        thread::sleep(Duration::from_secs(3));
        tell(&control, b'p');
        thread::sleep(Duration::from_secs(1));
        tell(&control, b'r');
    });
    // The same second, as a program sees it that waits for an answer before it asks again. It makes 10,000 requests one after the
    // other: for its p99 to be half a second, a hundred of them would have to take 50 s.
    let fio = thread::spawn({
        let uri = format!("--uri={}", uri(&socket));
        move || {
            let job = [
                "--name=x",
                "--ioengine=nbd",
                &uri,
                "--size=64m",
                "--rw=randread",
                "--bs=4k",
            ];
            let rate = [
                "--iodepth=1",
                "--rate_iops=1000",
                "--number_ios=10000",
                "--norandommap",
            ];
            let told = must("fio", &[&job[..], &rate, &["--output-format=json"]].concat());
            // What fio says besides comes before the JSON.
            let told = &told[told.find('{').expect("JSON")..];
            serde_json::from_str::<Value>(told).expect("JSON")
        }
    });
    let hgrm = directory.path().join("all.hgrm");
    let hlog = directory.path().join("all.hlog");
    let html = directory.path().join("all.html");
    let (told, _) = bench(&[
        "run",
        &uri(&socket),
        "--rate-iops=1000",
        "--runtime=10",
        "--idle=nap",
        "--hgrm",
        hgrm.to_str().expect("UTF-8"),
        "--hlog",
        hlog.to_str().expect("UTF-8"),
        "--html",
        html.to_str().expect("UTF-8"),
    ]);
    stop.join().expect("no panic");
    let of_fio = fio.join().expect("no panic");
    let of_fio = member(&of_fio, "/jobs/0/read");
    assert_eq!(number(of_fio, "/total_ios"), 10_000);
    let p99_ns = number(of_fio, "/clat_ns/percentile/99.000000");
    let max_ns = number(of_fio, "/clat_ns/max");
    assert!(
        p99_ns < 440_000_000 && max_ns > 440_000_000,
        "it met the second, and its p99 does not show it: {p99_ns} ns, {max_ns} ns"
    );
    // A tenth of the starts lies in the second, and a tenth of these waits for more than 0.9 s.
    let response = member(&told, "/all/response");
    assert!(
        number(response, "/count") + number(&told, "/not_started") >= 9_990,
        "{told}"
    );
    assert!(number(response, "/p99_ns") >= 880_000_000, "{told}");
    assert!(number(response, "/p90_ns") < 880_000_000, "{told}");
    let text = std::fs::read_to_string(hgrm).expect("written");
    assert!(text.contains("1/(1-Percentile)") && text.contains("#[Max     ="));
    let log = std::fs::read_to_string(hlog).expect("written");
    assert_eq!(log.lines().filter(|line| line.contains("HISTF")).count(), 10);

    // The second is in the list, with when it was and how long.
    let stalls = list(&told, "/detail/stalls/list");
    let planted = stalls
        .iter()
        .find(|stall| number(stall, "/response_ns_max") >= 880_000_000)
        .unwrap_or_else(|| panic!("not listed: {stalls:?}"));
    assert!(number(planted, "/began_ns") >= 1_000_000_000, "{planted}");
    assert!(number(planted, "/requests") >= 500, "{planted}");
    assert_eq!(
        number(&told, "/stalls/found"),
        number(&told, "/detail/stalls/found")
    );
    let page = std::fs::read_to_string(html).expect("written");
    assert!(page.contains("the daemon was not asked") && page.contains("</html>"));
    assert!(!page.contains("http:") && !page.contains("https:"));
    let began = format!("{:.3} s", number(planted, "/began_ns") as f64 / 1e9);
    assert!(
        page.contains(&format!("<td class=\"end\">{began}</td>")),
        "{began}"
    );
}

#[test]
fn a_report_shows_what_the_daemon_did_meanwhile() {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 1, "256MiB", &[]);
    appliance.run(&["volume", "create", "disk", "--size", "32MiB"]);
    appliance.run(&["export", "create", "disk"]);
    let html = appliance.path_text("report.html");
    let uri = appliance.uri("disk");
    let told = thread::scope(|scope| {
        let run = scope.spawn(|| {
            let socket = appliance.control_socket();
            let socket = socket.to_str().expect("UTF-8");
            let load = [
                "run",
                &uri,
                "--rw=randrw",
                "--rate-iops=500",
                "--runtime=3",
                "--fsync=4",
            ];
            let more = [
                "--numjobs=2",
                "--idle=nap",
                "--html",
                &html,
                "--daemon",
                "--socket",
                socket,
            ];
            bench(&[&load[..], &more].concat()).0
        });
        thread::sleep(Duration::from_millis(1500));
        appliance.run(&["snapshot", "create", "disk@first"]);
        appliance.run(&["snapshot", "delete", "disk@first", "--wait"]);
        run.join().expect("no panic")
    });
    let happenings = list(&told, "/detail/happenings");
    let kinds: Vec<&str> = happenings
        .iter()
        .map(|one| member(one, "/kind").as_str().expect("a word"))
        .collect();
    for kind in [
        "snapshot_taken",
        "snapshot_deleted",
        "snapshot_freed",
        "checkpointed",
    ] {
        assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
    }
    let snapshots = list(&told, "/detail/snapshots");
    assert_eq!(snapshots.len(), 1, "{told}");
    assert_eq!(member(&snapshots[0], "/name"), "p/disk@first");
    assert!(number(&snapshots[0], "/before/requests") > 0, "{told}");
    assert!(number(&snapshots[0], "/after/requests") > 0, "{told}");
    assert!(number(&snapshots[0], "/took_ns") > 0, "{told}");
    assert_eq!(list(&told, "/detail/around").len(), 100);
    let (writes, flushes) = (
        number(&told, "/writes/response/count"),
        number(&told, "/flushes/response/count"),
    );
    assert!(
        flushes > 0 && (writes / 4).abs_diff(flushes) <= 4,
        "{writes} {flushes}"
    );
    let devices = list(&told, "/detail/machine/devices");
    assert_eq!(member(&devices[0], "/path"), appliance.path_text("p-0").as_str());
    let page = std::fs::read_to_string(html).expect("written");
    assert!(page.contains("disk@first") && page.contains("checkpointed"));
}

#[test]
fn a_delay_is_seen_as_it_is_in_an_open_and_in_a_closed_loop() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("nbd");
    let delays = ["--filter=delay", "memory", "64M", "rdelay=20ms", "wdelay=10ms"];
    let _nbdkit = Nbdkit::start(&socket, &delays);
    for load in [&["--rate-iops=200"][..], &["--iodepth=4"]] {
        let common = ["run", &uri(&socket), "--rw=randrw", "--runtime=3", "--idle=nap"];
        let (told, _) = bench(&[&common[..], load].concat());
        for (kind, delay_ns) in [("reads", 20_000_000), ("writes", 10_000_000)] {
            let service = member(&told, &format!("/{kind}/service"));
            assert!(number(service, "/count") > 50, "{told}");
            assert!(number(service, "/min_ns") >= delay_ns, "{told}");
            // The quickest of many met no other delay.
            assert!(number(service, "/min_ns") < delay_ns * 3 / 2, "{told}");
            let response = number(&told, &format!("/{kind}/response/p50_ns"));
            assert!(response >= number(service, "/p50_ns"), "{told}");
        }
    }
}

#[test]
fn what_it_writes_to_a_volume_is_verified_and_stays() {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 1, "256MiB", &[]);
    appliance.run(&["volume", "create", "disk", "--size", "32MiB"]);
    appliance.run(&["export", "create", "disk"]);
    let job = appliance.path("job.fio");
    let text = "[global]\nioengine=nbd\nbs=16k\n[mixed]\nrw=randrw\nrwmixread=40\niodepth=8\nverify=crc32c\nruntime=2\nnumjobs=2\n";
    std::fs::write(&job, text).expect("written");
    let job = job.to_str().expect("UTF-8");
    let (told, ended_well) = bench(&["run", &appliance.uri("disk"), "--job", job, "--idle=nap"]);
    assert!(ended_well, "{told}");
    assert_eq!(member(&told, "/name"), "mixed");
    assert_eq!(member(&told, "/loop_kind"), "closed");
    assert!(
        number(&told, "/verified") > 100 && number(&told, "/errors") == 0,
        "{told}"
    );
    let mapped = number(&appliance.run(&["volume", "show", "disk"]), "/mapped_bytes");
    assert!(mapped >= 1 << 20, "it wrote");

    // A snapshot can be read, and is not written.
    appliance.run(&["snapshot", "create", "disk@now"]);
    appliance.run(&["export", "create", "disk@now"]);
    let uri = appliance.uri("disk@now");
    let (_, ended_well) = bench(&["run", &uri, "--runtime=1", "--iodepth=4", "--idle=nap"]);
    assert!(ended_well);
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["bench", "run", &uri, "--rw=randwrite"])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("read-only"));
}

#[test]
fn a_file_is_measured_compared_and_swept() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    let file = path.to_str().expect("UTF-8");
    must("fallocate", &["-l", "16MiB", file]);
    let (told, ended_well) = bench(&[
        "run",
        file,
        "--rw=randwrite",
        "--iodepth=4",
        "--runtime=1",
        "--verify",
    ]);
    assert!(ended_well && number(&told, "/verified") > 0, "{told}");

    let (told, ended_well) = bench(&[
        "compare",
        file,
        "null:",
        "--iodepth=1",
        "--size=16MiB",
        "--runtime=100ms",
        "--rounds=7",
    ]);
    assert!(ended_well, "{told}");
    let p50 = member(&told, "/percentiles/0");
    assert_eq!(member(p50, "/percentile"), "p50");
    let high = member(p50, "/ratio_high").as_f64().expect("a number");
    assert!(high < 1.0, "nothing is faster than a file: {told}");

    let (told, ended_well) = bench(&["sweep", file, "--steps=3", "--runtime=300ms", "--idle=nap"]);
    let verdict = member(&told, "/knee/verdict");
    assert_eq!(
        ended_well,
        verdict != "unknown",
        "it fails if the generator was in the way, and only then: {told}"
    );
    let rates: Vec<f64> = list(&told, "/steps")
        .iter()
        .map(|step| member(step, "/rate_iops").as_f64().expect("a number"))
        .collect();
    assert!(rates.len() == 3 && rates.is_sorted(), "{told}");
}

#[test]
fn what_cannot_be_measured_is_refused_with_what_to_do() {
    for (arguments, said) in [
        (&["run"][..], "no target"),
        (&["run", "null:", "--bs=1000"], "multiple of 512"),
        (&["run", "null:4096", "--offset=8192"], "--size"),
        (&["run", "null:", "--rw=erase"], "trimwrite"),
        (&["run", "null:", "--bs=4k/50:64k/60"], "add up to 110%"),
        (&["run", "null:much"], "512MiB"),
        (&["run", "null:", "--fsync=1"], "nothing is written"),
        (&["run", "null:", "--rw=trim", "--verify"], "may read as anything"),
        (&["run", "nbd+tls://host/disk"], "nbd+unix:///EXPORT?socket=PATH"),
        (&["run", "null:", "--job=/nowhere/job.fio"], "/nowhere/job.fio"),
        (&["compare", "null:", "null:", "--rounds=2"], "3..=1000"),
        (
            &[
                "snapshot-cost",
                "null:",
                "--volume=v",
                "--every=9s",
                "--runtime=1",
            ],
            "--every that fits",
        ),
    ] {
        let errors = refused(arguments);
        assert!(errors.contains(said), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_run_that_failed_says_why_once_and_where_it_ran() {
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args([
            "bench",
            "run",
            "null:1G",
            "--rate-iops=90000000",
            "--runtime=50ms",
        ])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let said = "the generator did not keep up";
    assert_eq!((text.matches(said).count(), errors.matches(said).count()), (1, 0));
    assert!(errors.contains("the verdict says why"), "{errors}");
    let generator = text.lines().find(|line| line.starts_with("generator"));
    assert!(generator.expect("a line").contains("core"), "{text}");
}

#[test]
fn a_sweep_that_cannot_be_made_fails_and_blames_the_generator() {
    // Nothing is as fast as nothing: all that is late is the generator. Of its last rate it has no time left.
    let (told, ended_well) = bench(&["sweep", "null:", "--steps=3", "--runtime=100ms"]);
    let steps = list(&told, "/steps");
    for step in steps {
        assert_ne!(member(step, "/behind"), "target", "{told}");
    }
    let late = steps.iter().any(|step| member(step, "/behind") == "generator");
    assert_eq!(ended_well, member(&told, "/knee/verdict") != "unknown", "{told}");
    assert!(late || ended_well, "{told}");
}

#[test]
fn a_comparison_says_what_its_ratio_is_of() {
    let program = env!("CARGO_BIN_EXE_stillpoint");
    let job = ["--iodepth=1", "--runtime=10ms", "--rounds=3"];
    let text = must(
        program,
        &[&["bench", "compare", "null:", "null:"][..], &job].concat(),
    );
    assert!(
        text.contains("The ratio is that of each round by itself"),
        "{text}"
    );
}

#[test]
fn an_export_that_is_not_there_is_named() {
    let appliance = Appliance::started(&["--processors", "1"]);
    let failed = appliance.tell(&["bench", "run", &appliance.uri("nope"), "--runtime=1"]);
    assert_eq!(failed.code, 1);
    let said = &failed.errors;
    assert!(
        said.contains("there is no export \"nope\" on this server"),
        "{said}"
    );
    assert!(said.contains("`stillpoint export list`"), "{said}");
}

#[test]
fn every_kind_of_target_is_in_the_help() {
    let help = must(env!("CARGO_BIN_EXE_stillpoint"), &["bench", "run", "--help"]);
    for kind in [
        "nvme:",
        "nbd+unix:",
        "nbd://",
        "null:",
        "inside:memory",
        "inside+force:",
    ] {
        assert!(help.contains(kind), "{kind}: {help}");
    }
}

#[test]
fn what_a_snapshot_costs_is_measured_and_the_snapshots_are_gone() {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 1, "256MiB", &[]);
    appliance.run(&["volume", "create", "disk", "--size", "32MiB"]);
    appliance.run(&["export", "create", "disk"]);
    let uri = appliance.uri("disk");
    let job = [
        "--rw=randrw",
        "--iodepth=2",
        "--runtime=400ms",
        "--idle=nap",
        "--rounds=6",
    ];
    let cost = ["bench", "snapshot-cost", &uri, "--volume=disk", "--every=100ms"];
    let told = appliance.run(&[&cost[..], &job].concat());
    assert_eq!(number(&told, "/cost/rounds"), 6, "{told}");
    // Four were due in each round; a busy machine may come to fewer, but not to none.
    let snapshots = number(&told, "/cost/snapshots");
    assert!((6..=24).contains(&snapshots), "{told}");
    assert_eq!(list(&told, "/cost/percentiles").len(), 4);
    assert!(number(&told, "/durable_ns/min") > 0, "{told}");
    assert!(
        number(&told, "/hold_ns/max") >= number(&told, "/hold_ns/p50"),
        "{told}"
    );
    assert_eq!(number(&told, "/cost/extra/of"), 6, "{told}");
    assert!(list(&appliance.run(&["snapshot", "list"]), "").is_empty());

    // Without snapshots in either half the same is done and shown.
    let told = appliance.run(&[&cost[..], &job, &["--control"]].concat());
    assert_eq!(member(&told, "/control"), &Value::Bool(true), "{told}");
    assert!(number(&told, "/cost/snapshots") >= 6, "moments: {told}");
    assert_eq!(number(&told, "/durable_ns/max"), 0, "none was taken: {told}");

    // What cannot be is said before the target is as much as opened.
    let failed = appliance.tell(&[
        "bench",
        "snapshot-cost",
        "/nowhere/at/all",
        "--volume=none",
        "--runtime=300ms",
        "--every=100ms",
    ]);
    assert_eq!(failed.code, 3, "{}", failed.errors);
    assert!(failed.errors.contains("none"), "{}", failed.errors);
}
