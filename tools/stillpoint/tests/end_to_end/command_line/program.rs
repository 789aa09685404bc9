//! The program itself: exit codes, the API, the configuration, the doctor.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use super::{names, refused, with_pool, with_volume};
use crate::support::{Appliance, list, member, number};
use serde_json::{Value, json};

#[test]
fn exit_codes_say_what_kind_of_failure_it_was() {
    let appliance = with_volume();
    let tell = |arguments: &[&str]| appliance.tell(arguments);
    refused(&tell(&["volume", "create", "w"]), 2, "--size");
    refused(
        &tell(&["volume", "create", "w", "--size", "lots"]),
        2,
        "is no size",
    );
    refused(
        &tell(&["volume", "create", "a/b", "--size", "1MiB"]),
        2,
        "'/' is not allowed",
    );
    refused(
        &tell(&["volume", "create", "a@b", "--size", "1MiB"]),
        2,
        "'@' is not allowed",
    );
    refused(
        &tell(&["volume", "create", "w", "--size", "5000"]),
        2,
        "the next is 8192",
    );
    refused(
        &tell(&["volume", "create", "w", "--size", "1MiB", "--block-size", "1024"]),
        2,
        "512 and 4096",
    );
    refused(
        &tell(&["volume", "create", "w", "--size", "1MiB", "--object-size", "3MiB"]),
        2,
        "powers of two",
    );
    refused(
        &tell(&["volume", "create", "w", "--size", "1MiB", "--pool", "q"]),
        3,
        "no pool q",
    );
    refused(
        &tell(&["volume", "create", "v", "--size", "1MiB"]),
        4,
        "exists already",
    );
    refused(&tell(&["volume", "show", "w"]), 3, "no volume w");
    refused(&tell(&["volume", "delete", "w"]), 3, "no volume w");
    refused(&tell(&["snapshot", "create", "w@a"]), 3, "no volume w");
    refused(&tell(&["snapshot", "create", "v"]), 2, "volume@name");
    refused(&tell(&["snapshot", "create", "v@a/b"]), 2, "'/' is not allowed");
    refused(&tell(&["snapshot", "show", "v@a"]), 3, "no snapshot v@a");
    refused(&tell(&["snapshot", "show", "v"]), 2, "v is a volume");
    refused(&tell(&["export", "create", "v@a"]), 3, "no snapshot v@a");
    refused(&tell(&["export", "delete", "v"]), 3, "no export v");
    refused(&tell(&["pool", "show", "q"]), 3, "no pool q");
    refused(&tell(&["pool", "open", "/nonexistent"]), 3, "/nonexistent");
    refused(&tell(&["nonsense"]), 2, "nonsense");
    assert_eq!(
        names(&appliance.run(&["volume", "list"])),
        ["v"],
        "nothing of all this left a trace"
    );
}

#[test]
fn without_a_daemon_commands_say_so_and_doctor_works() {
    let appliance = Appliance::new();
    refused(&appliance.tell(&["status"]), 5, "stillpoint serve");
    let findings = appliance.run(&["doctor"]);
    let subjects: Vec<_> = list(&findings, "/findings")
        .iter()
        .map(|f| member(f, "/subject").clone())
        .collect();
    assert!(
        subjects.contains(&json!("io_uring")) && subjects.contains(&json!("daemon")),
        "{subjects:?}"
    );
    for finding in list(&findings, "/findings") {
        assert_eq!(finding["state"] == "ok", finding["mend"].is_null(), "{finding}");
    }
}

/// A request to the API without the command line; status and body of the answer.
fn call(appliance: &Appliance, head: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(appliance.path("run/control.sock")).expect("connected");
    let length = body.len();
    let request =
        format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("answered");
    let status = response
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status");
    let body = response.split("\r\n\r\n").nth(1).unwrap_or_default();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn the_api_refuses_nonsense_in_its_own_words() {
    let appliance = with_pool();
    let call = |head: &str, body: &str| call(&appliance, head, body);
    for (head, body, status, kind) in [
        ("GET /v2/pools", "", 404, "not_found"),
        ("PUT /v1/pools", "", 400, "usage"),
        ("POST /v1/volumes", "", 400, "usage"),
        ("POST /v1/volumes", "{", 400, "usage"),
        ("POST /v1/volumes", "[]", 400, "usage"),
        (
            "POST /v1/volumes",
            r#"{"name":"v","size_bytes":-1}"#,
            400,
            "usage",
        ),
        (
            "POST /v1/volumes",
            r#"{"name":"v","size_bytes":4096,"size":1}"#,
            400,
            "usage",
        ),
        ("POST /v1/snapshots", r#"{"volumes":[],"name":"a"}"#, 400, "usage"),
        ("POST /v1/pools", r#"{"name":"q","devices":[]}"#, 400, "usage"),
        ("GET /v1/volumes?color=red", "", 400, "usage"),
        ("GET /v1/volumes/%2e%2e%2fetc", "", 404, "not_found"),
        ("DELETE /v1/exports/v", "", 404, "not_found"),
    ] {
        let (found, error) = call(head, body);
        assert_eq!(
            (found, &error["kind"]),
            (status, &json!(kind)),
            "{head} {body}: {error}"
        );
        assert!(
            error["message"].as_str().is_some_and(|text| !text.is_empty()),
            "{head}: {error}"
        );
    }
    let (status, volume) = call("POST /v1/volumes", r#"{"name":"v","size_bytes":1048576}"#);
    assert_eq!((status, number(&volume, "/size_bytes")), (201, 1 << 20));
}

#[test]
fn a_configuration_with_a_mistake_is_refused_with_its_line() {
    let appliance = Appliance::new();
    std::fs::write(appliance.path("config.toml"), "processors = 2\nprocesors = 3\n").expect("written");
    let serve = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
            .arg("serve")
            .args(arguments)
            .output();
        let output = output.expect("the program starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, errors) = serve(&["--config", &appliance.path_text("config.toml")]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(
        errors.contains("line 2") && errors.contains("procesors"),
        "{errors}"
    );
    let (code, errors) = serve(&["--config", &appliance.path_text("none.toml")]);
    assert_eq!(code, Some(3), "{errors}");
    let (code, errors) = serve(&["--processors", "0"]);
    assert_eq!(code, Some(2), "{errors}");
}

#[test]
fn configuration_files_can_say_everything() {
    let appliance = Appliance::new();
    let config = format!(
        "processors = 3\nno-pin = true\npoll = \"adaptive\"\nmap-cache = \"64MiB\"\ntail-dir = \"none\"\n\
         nbd-tcp = [\"127.0.0.1:0\"]\nlog = \"debug\"\nrun-dir = {:?}\n",
        appliance.path_text("run")
    );
    std::fs::write(appliance.path("config.toml"), config).expect("written");
    appliance.start(&["--config", &appliance.path_text("config.toml")]);
    appliance.create_pool("p", 1, "64MiB", &[]);
    let status = appliance.run(&["status"]);
    assert_eq!(list(&status, "/processors").len(), 3);
    assert!(
        list(&status, "/processors")
            .iter()
            .all(|processor| processor["core"].is_null())
    );
    assert_eq!(number(&status["pools"][0], "/shards"), 3);
    appliance.run(&["volume", "create", "v", "--size", "1MiB"]);
    appliance.run(&["export", "create", "v"]);
    appliance
        .connect("v")
        .write(0, &[1; 4096], true)
        .expect("written");
    appliance.kill();
    appliance.start(&["--config", &appliance.path_text("config.toml")]);
    assert_eq!(
        appliance.connect("v").read(0, 4096).expect("read"),
        [1; 4096],
        "without log tails"
    );
}

#[test]
fn completions_are_printed_for_shells() {
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["completions", "bash"])
        .output()
        .expect("starts");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("snapshot"));
}

/// V15: a snapshot is made when a host says so, from the command line and over the API, of what was written before.
#[test]
fn a_snapshot_is_made_from_the_command_line_and_over_the_api() {
    let appliance = with_volume();
    appliance.run(&["export", "create", "v"]);
    let mut connection = appliance.connect("v");
    let mut write = |byte: u8| connection.write(0, &[byte; 4096], false).expect("written");
    write(1);
    appliance.run(&["snapshot", "create", "v@by-command"]);
    write(2);
    let (status, taken) = call(
        &appliance,
        "POST /v1/snapshots",
        r#"{"volumes":["v"],"name":"by-api"}"#,
    );
    assert_eq!((status, &taken["name"]), (201, &json!("v@by-api")));
    write(3);
    for (name, byte) in [("v@by-command", 1), ("v@by-api", 2), ("v", 3)] {
        if name != "v" {
            appliance.run(&["export", "create", name]);
        }
        let shown = appliance.connect(name).read(0, 4096);
        assert_eq!(shown.expect("read"), [byte; 4096], "{name}");
    }
    let (status, listed) = call(&appliance, "GET /v1/snapshots?volume=v", "");
    assert_eq!((status, names(&listed)), (200, vec!["v@by-command", "v@by-api"]));
}
