//! Hosts that use volumes and snapshots over NBD, with the shipping client: they connect, ask, read slowly or fast,
//! and cut their connections anywhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::ErrorKind;

use stillpoint_export::nbd::client::{ClientError, Connection};
use stillpoint_export::nbd::wire::{option, option_reply};

use super::nbd::Request;
use super::{Checked, World, broken};
use crate::network::{ClientEnd, Heard, LineHabits};
use crate::random::Random;
use crate::scenario::NbdPlan;

/// Out of so many times that a host could send but for the negotiation, it cuts its connection as often as planned
/// for a thousand requests.
const GREETINGS_PER_CUT: u64 = 50_000;
/// Marks of hosts' alarms begin here.
const HOST_MARK: u64 = 1 << 32;

/// Where a host is.
#[derive(Debug)]
enum At {
    /// Not connected.
    Away,
    /// It negotiates.
    Greeting(u64),
    /// It sends requests.
    Talking(u64, Box<Connection<ClientEnd>>),
}

/// A connection, from the first byte until the appliance has forgotten it.
#[derive(Debug)]
pub struct Link {
    /// Whose it is.
    pub host: usize,
    name: String,
    /// The volume.
    pub volume: u32,
    /// The snapshot, if it is one.
    pub snapshot: Option<u64>,
    structured: bool,
    /// The export is on its way out: requests may be refused and the connection may end.
    pub withdrawn: bool,
    /// The host has cut it, or has heard its end.
    over: bool,
    /// The appliance has forgotten it.
    gone: bool,
}

/// All hosts.
#[derive(Debug)]
pub struct Hosts {
    at: Vec<At>,
    links: BTreeMap<u64, Link>,
    links_made: u64,
    /// Requests without a reply, by connection and cookie.
    pub requests: BTreeMap<(u64, u64), Request>,
    /// Hosts that want to do something now.
    pub idle: Vec<usize>,
}

impl Hosts {
    /// Hosts that are away.
    #[must_use]
    pub fn new(plan: &NbdPlan) -> Self {
        Self {
            at: (0..plan.clients).map(|_| At::Away).collect(),
            links: BTreeMap::new(),
            links_made: 0,
            requests: BTreeMap::new(),
            idle: Vec::new(),
        }
    }

    /// Whether no request waits for its reply.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// The requests that wait.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for ((connection, cookie), request) in &self.requests {
            let link = &self.links[connection];
            let end = if link.over { ", which is over" } else { "" };
            write!(
                text,
                "\n    request {cookie} of connection {connection}{end}: {request}"
            )
            .expect("a string");
        }
        text
    }

    /// An export is on its way out, or becomes smaller.
    pub fn withdraw(&mut self, name: &str) {
        for link in self.links.values_mut().filter(|link| link.name == name) {
            link.withdrawn = true;
        }
    }

    /// The connection of a reply.
    #[must_use]
    pub fn link(&self, connection: u64) -> &Link {
        &self.links[&connection]
    }
}

fn habits(plan: &NbdPlan, random: &mut Random) -> LineHabits {
    LineHabits {
        room_bytes: *random.pick(&[100, 4096, 65_536, 1 << 20]),
        latency_ns: plan.latency_ns,
        whole_percent: *random.pick(&[30, 80, 100]),
        reading_percent: *random.pick(&[20, 90, 100]),
    }
}

impl World {
    /// Offers what there is and lets the hosts begin.
    pub(super) fn open_for_hosts(&mut self) {
        self.exports.open = self.plan.nbd.clients > 0;
        self.refresh_exports();
        for host in 0..self.plan.nbd.clients {
            self.think_as_host(host);
        }
    }

    fn think_as_host(&mut self, host: usize) {
        let delay_ns = self.random.between(200, 200 + self.plan.nbd.think_ns);
        self.machine.alarm(delay_ns, HOST_MARK | host as u64);
    }

    /// A client or a host has thought enough.
    pub(super) fn alarmed(&mut self, mark: u64) {
        if mark & HOST_MARK == 0 {
            self.idle_clients.push(mark as usize);
        } else {
            self.hosts.idle.push((mark & !HOST_MARK) as usize);
        }
    }

    /// Lets every idle host do something.
    pub(super) fn let_hosts_act(&mut self) -> Checked {
        while let Some(host) = self.hosts.idle.pop() {
            match std::mem::replace(&mut self.hosts.at[host], At::Away) {
                At::Away => self.connect(host),
                At::Talking(connection, _) if self.random.below(1000) < self.plan.nbd.cuts => {
                    self.cut(connection);
                }
                At::Talking(connection, mut nbd) => {
                    self.ask(connection, &mut nbd)?;
                    self.hosts.at[host] = At::Talking(connection, nbd);
                }
                At::Greeting(connection) if self.random.below(GREETINGS_PER_CUT) < self.plan.nbd.cuts => {
                    self.cut(connection);
                }
                greeting @ At::Greeting(_) => self.hosts.at[host] = greeting,
            }
            self.think_as_host(host);
        }
        Ok(())
    }

    fn connect(&mut self, host: usize) {
        let known: Vec<String> = self.exports.known().map(|(name, _)| name.clone()).collect();
        if known.is_empty() {
            return;
        }
        let name = self.random.pick(&known).clone();
        let view = self.exports.known().find(|(known, _)| **known == name);
        let view = view.expect("it was picked from these").1.view.clone();
        self.hosts.links_made += 1;
        let connection = self.hosts.links_made;
        let link = Link {
            host,
            name,
            volume: view.view.volume.0,
            snapshot: view.view.snapshot.map(|snapshot| snapshot.0),
            structured: self.random.percent(75),
            withdrawn: false,
            over: false,
            gone: false,
        };
        self.trace(|| format!("dial   connection {connection}: {link:?}"));
        self.hosts.links.insert(connection, link);
        self.hosts.at[host] = At::Greeting(connection);
        let habits = habits(&self.plan.nbd, &mut self.random);
        self.machine.connect(connection, habits);
        self.coverage.count("nbd connections");
    }

    /// The host goes, with or without a goodbye, after any byte. What it has asked for may still happen until the
    /// appliance has forgotten the connection.
    fn cut(&mut self, connection: u64) {
        let unread = self.machine.with_wire(connection, |wire| wire.unread_bytes());
        let keep = self.random.below(unread as u64 + 1) as usize;
        let keep = self.random.percent(70).then_some(keep);
        let reset = self.random.percent(30);
        self.trace(|| format!("cut    connection {connection}: of {unread} bytes {keep:?} arrive"));
        self.coverage.count("nbd connections cut");
        let link = self.hosts.links.get_mut(&connection).expect("it is in use");
        link.over = true;
        let lost = self.hosts.requests.range((connection, 0)..(connection + 1, 0));
        self.coverage
            .add("nbd requests whose connection was cut", lost.count() as u64);
        self.machine
            .with_wire(connection, |wire| wire.close_client(keep, reset));
        self.finish(connection);
    }

    /// Something comes in on a connection.
    pub(super) fn host_heard(&mut self, connection: u64, heard: Heard) -> Checked {
        match heard {
            Heard::Bytes => {
                let Self { machine, random, .. } = self;
                machine.with_wire(connection, |wire| wire.take(random));
                self.listen(connection)
            }
            Heard::End => self.hear_the_end(connection),
        }
    }

    /// Understands what has come in.
    fn listen(&mut self, connection: u64) -> Checked {
        let host = self.hosts.links[&connection].host;
        match std::mem::replace(&mut self.hosts.at[host], At::Away) {
            At::Away => broken("a host that is away hears something"),
            At::Greeting(_) => self.negotiate(host, connection),
            At::Talking(_, mut nbd) => {
                loop {
                    match nbd.wait() {
                        Ok(Some(completed)) => self.replied(connection, completed)?,
                        Ok(None) => break,
                        Err(ClientError::Io(error)) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return broken(format!("connection {connection}: {error}")),
                    }
                }
                self.hosts.at[host] = At::Talking(connection, nbd);
                self.machine.with_wire(connection, |_| ());
                Ok(())
            }
        }
    }

    fn negotiate(&mut self, host: usize, connection: u64) -> Checked {
        let link = &self.hosts.links[&connection];
        let end = self.machine.client_end(connection);
        match Connection::open_with(end, &link.name, link.structured) {
            Ok(nbd) => {
                if link.structured != nbd.export().structured || link.structured != nbd.export().block_status
                {
                    return broken(format!(
                        "connection {connection} did not get what it asked for: {:?}",
                        nbd.export()
                    ));
                }
                self.machine.with_wire(connection, |wire| wire.negotiated());
                self.hosts.at[host] = At::Talking(connection, Box::new(nbd));
            }
            Err(ClientError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                self.hosts.at[host] = At::Greeting(connection);
                // What was written may move.
                self.machine.with_wire(connection, |_| ());
            }
            Err(ClientError::Refused { option, error, .. })
                if link.withdrawn && option == option::GO && error == option_reply::ERR_UNKNOWN =>
            {
                self.coverage.count("nbd exports that were just withdrawn");
                self.cut(connection);
            }
            // The same answer to the choice of a metadata context reads as "not supported", and then `GO` is refused.
            Err(error) => return broken(format!("connection {connection}: {error}")),
        }
        Ok(())
    }

    fn hear_the_end(&mut self, connection: u64) -> Checked {
        let link = self.hosts.links.get_mut(&connection).expect("it is in use");
        let (host, name) = (link.host, link.name.clone());
        link.over = true;
        if !link.withdrawn {
            return broken(format!(
                "the appliance ended connection {connection} to {name} by itself"
            ));
        }
        self.trace(|| format!("end    connection {connection} to {name}"));
        self.coverage.count("nbd connections ended by the appliance");
        self.hosts.at[host] = At::Away;
        self.machine
            .with_wire(connection, |wire| wire.close_client(None, false));
        self.finish(connection);
        Ok(())
    }

    /// The appliance has forgotten a connection. The host may still hear what was said before.
    pub(super) fn connection_gone(&mut self, connection: u64) {
        let link = self.hosts.links.get_mut(&connection);
        link.expect("it is forgotten once").gone = true;
        self.finish(connection);
    }

    /// Once both sides are done with a connection, what was not replied to does not happen any more.
    fn finish(&mut self, connection: u64) {
        let link = &self.hosts.links[&connection];
        if !(link.over && link.gone) {
            return;
        }
        let open = self.hosts.requests.range((connection, 0)..(connection + 1, 0));
        let open: Vec<(u64, u64)> = open.map(|(key, _)| *key).collect();
        let tick = self.tick();
        for key in open {
            let request = self.hosts.requests.remove(&key).expect("it was found");
            if let Some(number) = request.number() {
                self.write_ended(number, false, false, tick);
            }
        }
        self.hosts.links.remove(&connection);
        self.machine.forget_connection(connection);
    }

    /// The appliance dies: some of what it had said still arrives.
    pub(super) fn hosts_hear_the_last(&mut self) -> Checked {
        for host in 0..self.hosts.at.len() {
            if let At::Talking(connection, _) = &self.hosts.at[host] {
                let connection = *connection;
                let Self { machine, random, .. } = self;
                machine.with_wire(connection, |wire| wire.take(random));
                self.listen(connection)?;
            }
            self.hosts.at[host] = At::Away;
        }
        self.hosts.links.clear();
        self.hosts.requests.clear();
        self.hosts.idle.clear();
        self.exports = super::Exports::default();
        Ok(())
    }
}
