//! The console as a browser meets it: the real daemon, the real `stillpoint console`, HTTP written by hand, so that a test can
//! also send what no browser would.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::support::{Appliance, list, member, number};
use serde_json::{Value, json};

/// How long the harness waits for a line that a hang would keep from ever coming.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `stillpoint console`.
struct Console {
    child: Child,
    keys: ChildStdin,
    lines: Receiver<String>,
    address: String,
    ticket: String,
}

/// What was answered.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }

    #[track_caller]
    fn says(&self, status: u16, words: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        assert!(self.body.contains(words), "{words:?} is not in: {}", self.body);
    }
}

impl Console {
    fn started(appliance: &Appliance, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillpoint"));
        command
            .args(["console", "-o", "json", "--socket"])
            .arg(appliance.control_socket())
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let keys = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut console = Self {
            child,
            keys,
            lines,
            address: String::new(),
            ticket: String::new(),
        };
        console.take_invitation();
        console
    }

    /// Reads the next address that it prints.
    fn take_invitation(&mut self) {
        let line = self.lines.recv_timeout(PATIENCE).expect("an address");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        let url = member(&line, "/url").as_str().expect("a text").to_owned();
        let (address, ticket) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once("/#"))
            .expect("an address with a ticket");
        (self.address, self.ticket) = (address.to_owned(), ticket.to_owned());
    }

    /// Sends a request as it is given: nothing is added but the length of the body.
    fn send(&self, head: &str, headers: &[&str], body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let mut request = format!(
            "{head} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        for header in headers {
            request.push_str(&format!("{header}\r\n"));
        }
        request.push_str(&format!("\r\n{body}"));
        // It may answer and close before it has read all of it.
        let _ = stream.write_all(request.as_bytes());
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).expect("UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let head = head.to_ascii_lowercase();
        let body = if head.contains("transfer-encoding: chunked") {
            unchunked(body)
        } else {
            body.to_owned()
        };
        Answer {
            status: status.expect("a status"),
            head,
            body,
        }
    }

    /// A request as the page makes it.
    fn ask(&self, head: &str, key: &str, body: &str) -> Answer {
        let host = format!("host: {}", self.address);
        let origin = format!("origin: http://{}", self.address);
        self.send(
            head,
            &[&host, &origin, &format!("authorization: Bearer {key}")],
            body,
        )
    }

    fn admit(&self, ticket: &str) -> Answer {
        self.ask("POST /session", "", &json!({ "ticket": ticket }).to_string())
    }

    /// The key for the ticket of the address.
    fn key(&self) -> String {
        let admitted = self.admit(&self.ticket);
        assert_eq!(admitted.status, 200, "{}", admitted.body);
        member(&admitted.json(), "/key")
            .as_str()
            .expect("a text")
            .to_owned()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        body.push_str(&more[..size]);
        rest = more[size..].trim_start_matches("\r\n");
    }
    body
}

fn with_volume() -> Appliance {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("p", 1, "256MiB", &[]);
    appliance.run(&["volume", "create", "v", "--size", "16MiB"]);
    appliance
}

#[test]
fn the_page_is_served_to_everybody_and_says_what_it_may_load() {
    let appliance = Appliance::new();
    let console = Console::started(&appliance, &[], &[]);
    let host = format!("host: {}", console.address);
    let page = console.send("GET /", &[&host], "");
    page.says(200, "<title>Stillpoint</title>");
    for header in [
        "content-type: text/html",
        "content-security-policy: default-src 'none'; script-src 'self';",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(page.head.contains(header), "{header} is not in {}", page.head);
    }
    for (path, kind, words) in [
        ("/console.js", "text/javascript", "sessionStorage"),
        ("/console.css", "text/css", "prefers-color-scheme"),
        ("/icon.svg", "image/svg+xml", "<svg"),
        ("/licenses.txt", "text/plain", "MIT"),
    ] {
        let asset = console.send(&format!("GET {path}"), &[&host], "");
        asset.says(200, words);
        assert!(
            asset.head.contains(&format!("content-type: {kind}")),
            "{}",
            asset.head
        );
    }
    console.send("GET /v2", &[&host], "").says(404, "no such path");
    console
        .send("GET /../etc/passwd", &[&host], "")
        .says(404, "no such path");
}

#[test]
fn without_a_key_or_from_elsewhere_nothing_is_answered() {
    let appliance = with_volume();
    let console = Console::started(&appliance, &[], &[]);
    let host = format!("host: {}", console.address);
    let origin = format!("origin: http://{}", console.address);
    for path in ["/v1/status", "/v1/nothing", "/history"] {
        let head = format!("GET {path}");
        console
            .send(&head, &[&host], "")
            .says(401, "does not know this browser");
        for key in ["", "x", &"0".repeat(64), &console.ticket] {
            console
                .ask(&head, key, "")
                .says(401, "does not know this browser");
        }
    }
    console.admit(&"0".repeat(64)).says(401, "was used already");
    let key = console.key();
    console.admit(&console.ticket).says(401, "was used already");
    let bearer = format!("authorization: Bearer {key}");
    console.ask("GET /v1/status", &key, "").says(200, "uptime_ns");

    // A name that an attacker lets point to this machine.
    for foreign in [
        "host: rebound.example",
        "host: rebound.example:80",
        "host: 192.168.0.1",
        "x-host: none",
    ] {
        console
            .send("GET /", &[foreign], "")
            .says(403, "the console is not at");
        console
            .send("GET /v1/status", &[foreign, &bearer], "")
            .says(403, "the console is not at");
    }
    // The other end of `ssh -L`.
    let forwarded = ["host: localhost:8080", "origin: http://localhost:8080", &bearer];
    console
        .send("GET /v1/status", &forwarded, "")
        .says(200, "uptime_ns");

    // Another page, with everything else right.
    let take = json!({"volumes": ["v"], "name": "s"}).to_string();
    for foreign in [
        "origin: http://elsewhere.example",
        "origin: null",
        "origin: http://127.0.0.1:1",
    ] {
        let answer = console.send("POST /v1/snapshots", &[&host, foreign, &bearer], &take);
        answer.says(403, "of another page");
    }
    let without = console.send("POST /v1/snapshots", &[&host, &bearer], &take);
    without.says(403, "Origin");
    assert_eq!(list(&appliance.run(&["snapshot", "list"]), "").len(), 0);
    let right = console.send("POST /v1/snapshots", &[&host, &origin, &bearer], &take);
    right.says(201, "v@s");
    assert_eq!(list(&appliance.run(&["snapshot", "list"]), "").len(), 1);
}

#[test]
fn what_the_api_does_and_refuses_comes_through() {
    let appliance = with_volume();
    let console = Console::started(&appliance, &[], &[]);
    let key = console.key();
    let status = console.ask("GET /v1/status", &key, "").json();
    assert_eq!(number(&status, "/pid"), u64::from(appliance.pid()));
    assert_eq!(member(&status, "/pools/0/name"), "p");
    let volumes = console.ask("GET /v1/volumes?pool=p", &key, "");
    assert_eq!(volumes.json(), appliance.run(&["volume", "list"]));
    let made = console.ask(
        "POST /v1/snapshots",
        &key,
        &json!({"volumes": ["v"], "name": "noon"}).to_string(),
    );
    made.says(201, "v@noon");
    assert_eq!(
        member(&appliance.run(&["snapshot", "show", "v@noon"]), "/name"),
        "v@noon"
    );
    let again = console.ask(
        "POST /v1/snapshots",
        &key,
        &json!({"volumes": ["v"], "name": "noon"}).to_string(),
    );
    again.says(409, "exists already");
    assert_eq!(member(&again.json(), "/kind"), "conflict");
    console
        .ask("GET /v1/volumes?pools=p", &key, "")
        .says(400, "unknown field");
    console
        .ask("GET /history?since=1", &key, "")
        .says(400, "unknown field");
    console
        .ask("DELETE /v1/snapshots/v%40noon", &key, "")
        .says(204, "");
    assert_eq!(list(&appliance.run(&["snapshot", "list"]), "").len(), 0);
    console
        .ask("GET /v1/nothing", &key, "")
        .says(404, "the API has no such path");
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(300 << 10));
    console
        .ask("POST /v1/volumes", &key, &long)
        .says(413, "262144 bytes");
}

#[test]
fn a_daemon_that_goes_away_is_said_and_found_again() {
    let appliance = with_volume();
    let console = Console::started(&appliance, &[], &[]);
    let key = console.key();
    let history = || console.ask("GET /history", &key, "").json();
    let with_figures = |history: &Value| {
        let points = list(history, "/points");
        points.iter().filter(|point| !point["figures"].is_null()).count()
    };
    appliance.wait_until("there are figures", || with_figures(&history()) > 0);
    assert_eq!(member(&history(), "/away"), &Value::Null);
    // Which event is the newest, so that pages need not wait for one.
    let newest = || number(&history(), "/newest/last");
    let before = newest();
    appliance.run(&["volume", "create", "w", "--size", "16MiB"]);
    appliance.wait_until("the event is known", || newest() > before);
    appliance.kill();
    let refused = console.ask("GET /v1/status", &key, "");
    refused.says(502, "no daemon answers");
    refused.says(502, "stillpoint serve");
    appliance.wait_until("it is noticed", || !history()["away"].is_null());
    let away = history();
    assert!(number(&away, "/away/since_ms") > 0);
    let known = with_figures(&away);
    assert!(known > 0, "what was before stays");
    appliance.start(&[]);
    console.ask("GET /v1/status", &key, "").says(200, "uptime_ns");
    appliance.wait_until("figures go on", || with_figures(&history()) > known);
    assert_eq!(member(&history(), "/away"), &Value::Null);
}

/// Whether the other end has closed it.
fn has_ended(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("set");
    !matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn idle_connections_keep_nobody_out_and_end() {
    let appliance = Appliance::started(&[]);
    let console = Console::started(&appliance, &[], &[]);
    let key = console.key();
    let idle: Vec<TcpStream> = (0..130)
        .map(|_| TcpStream::connect(&console.address).expect("connected"))
        .collect();
    console.ask("GET /v1/status", &key, "").says(200, "uptime_ns");
    let ended = idle.iter().filter(|stream| has_ended(stream)).count();
    assert!(
        (66..130).contains(&ended),
        "the oldest made room, not all: {ended}"
    );
    appliance.wait_until("idle connections end", || idle.iter().all(has_ended));
}

#[test]
fn a_request_that_does_not_end_and_an_answer_that_is_not_taken_do() {
    let appliance = Appliance::new();
    let console = Console::started(&appliance, &[], &[]);
    let mut slow = TcpStream::connect(&console.address).expect("connected");
    let mut deaf = TcpStream::connect(&console.address).expect("connected");
    slow.write_all(b"GET / HTTP/1.1\r\nhost: ").expect("sent");
    // More than all buffers on the way hold.
    let request = format!("GET /console.js HTTP/1.1\r\nhost: {}\r\n\r\n", console.address);
    deaf.write_all(request.repeat(400).as_bytes()).expect("sent");
    for (what, stream) in [("the slow one ends", &mut slow), ("the deaf one ends", &mut deaf)] {
        stream.set_nonblocking(true).expect("set");
        // Whoever has closed it refuses what still comes.
        appliance.wait_until(what, || {
            let sent = stream.write(b"x");
            sent.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
        });
    }
}

#[test]
fn a_pool_that_failed_says_which_devices_it_had() {
    let appliance = with_volume();
    appliance.stop();
    let pools = |answer: &Answer| list(&answer.json(), "").to_vec();
    let (path, away) = (appliance.path("p-0"), appliance.path("away"));
    fs::rename(&path, &away).expect("moved");
    appliance.start(&[]);
    let console = Console::started(&appliance, &[], &[]);
    let key = console.key();
    let failed = pools(&console.ask("GET /v1/pools", &key, ""));
    assert_eq!(member(&failed[0], "/state"), "failed");
    assert_eq!(member(&failed[0], "/known_devices"), &json!([path]));
    fs::rename(&away, &path).expect("moved");
    // What the page does when it is to try.
    let devices = json!({ "devices": member(&failed[0], "/known_devices") }).to_string();
    console
        .ask("POST /v1/pools/open", &key, &devices)
        .says(200, "\"state\":\"open\"");
    let opened = pools(&console.ask("GET /v1/pools", &key, ""));
    assert_eq!(opened[0].get("known_devices"), None);
}

#[test]
fn schedules_are_run_through_the_console() {
    let appliance = with_volume();
    let console = Console::started(&appliance, &[], &[]);
    let key = console.key();
    let make = |name: &str, due: (&str, Value)| {
        let mut request = json!({"name": name, "pool": "p", "volumes": ["v"], "time_zone": "Europe/Berlin",
            "keep": {"last": 2, "daily": 7}});
        request[due.0] = due.1;
        console.ask("POST /v1/schedules", &key, &request.to_string())
    };
    make("often", ("every_ns", json!(3_600_000_000_000_u64))).says(201, "\"active\"");
    make("nightly", ("cron", json!("30 2 * * *"))).says(201, "Europe/Berlin");
    make("never", ("cron", json!("30 2 * *"))).says(400, "cron");
    let ask = |head: &str| console.ask(head, &key, "");
    ask("POST /v1/schedules/often/pause?pool=p").says(200, "\"paused\"");
    ask("POST /v1/schedules/often/run?pool=p").says(201, "v@often-");
    ask("GET /v1/schedules/often?pool=p").says(200, "\"kept\":[{");
    ask("POST /v1/schedules/often/resume?pool=p").says(200, "\"active\"");
    ask("DELETE /v1/schedules/often?pool=p").says(204, "");
    let left = ask("GET /v1/schedules").json();
    assert_eq!(
        (list(&left, "").len(), member(&left, "/0/name")),
        (1, &json!("nightly"))
    );
}

#[test]
fn enter_lets_another_browser_in_and_the_first_stays() {
    let appliance = Appliance::started(&[]);
    let mut console = Console::started(&appliance, &[], &[]);
    let (first, used) = (console.key(), console.ticket.clone());
    console.keys.write_all(b"\n").expect("pressed");
    console.take_invitation();
    assert_ne!(console.ticket, used);
    let second = console.key();
    for key in [&first, &second] {
        console.ask("GET /v1/status", key, "").says(200, "uptime_ns");
    }
}

#[test]
fn it_listens_on_loopback_addresses_only() {
    let appliance = Appliance::new();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8080"] {
        let told = appliance.tell(&["console", "--listen", address]);
        assert_eq!(told.code, 2, "{}", told.errors);
        assert!(told.errors.contains("ssh -L"), "{}", told.errors);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let told = appliance.tell(&["console", "--listen", &address]);
    assert_eq!(told.code, 1, "{}", told.errors);
    assert!(told.errors.contains(&address), "{}", told.errors);
}

#[test]
fn the_browser_is_shown_the_address_without_telling_everybody() {
    let appliance = Appliance::new();
    let script = "#!/bin/sh\nprintf %s \"$1\" > \"$0.new\" && mv \"$0.new\" \"$0.told\"\n";
    fs::write(appliance.path("xdg-open"), script).expect("written");
    fs::set_permissions(appliance.path("xdg-open"), fs::Permissions::from_mode(0o700)).expect("set");
    let search = format!("{}:/usr/bin:/bin", appliance.path_text(""));
    let console = Console::started(&appliance, &["--open"], &[("PATH", &search)]);
    let told = appliance.path("xdg-open.told");
    appliance.wait_until("the browser is started", || told.exists());
    let page = fs::read_to_string(told).expect("a path");
    assert!(
        !page.contains(&console.ticket),
        "everybody sees arguments: {page}"
    );
    let mode = fs::metadata(&page).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let content = fs::read_to_string(&page).expect("a page");
    assert!(
        content.contains(&format!("http://{}/#{}", console.address, console.ticket)),
        "{content}"
    );
}
