//! Who may use the console: whoever was told a ticket, from the page that it serves.
//!
//! A ticket is in the address that the console prints; the first page that shows it gets a key for it, and it is good for nothing
//! any more. The page keeps the key and sends it with each request. It is no cookie: cookies of an address go to all its
//! ports, and a browser sends them by itself, whichever page asks.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, header};

use crate::error::{Error, Result};
use crate::make;

/// Browsers that have a key, at most: one more, and the oldest key is good for nothing.
const KEYS_MAX: usize = 16;

/// The ticket and the keys that are good.
#[derive(Debug, Default)]
pub(super) struct Access {
    secrets: Mutex<Secrets>,
}

#[derive(Debug, Default)]
struct Secrets {
    ticket: Option<String>,
    keys: VecDeque<String>,
}

/// Why a request is not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is for another host.
    WrongHost(String),
    /// It comes from another page.
    ForeignOrigin,
    /// It changes something and does not say from which page it comes.
    NoOrigin,
    /// It has no key, or none that is good.
    NoKey,
    /// The ticket is not good, or not any more.
    WrongTicket,
}

impl Refusal {
    pub(super) fn error(&self) -> Error {
        match self {
            Self::WrongHost(host) => Error::usage(format!("the console is not at {host:?}"))
                .hint("ask for 127.0.0.1 or localhost, with the port that leads to the console"),
            Self::ForeignOrigin => Error::usage("a request of another page is not answered"),
            Self::NoOrigin => Error::usage("a change needs the header Origin: the address of the console"),
            Self::NoKey => Error::usage("the console does not know this browser").hint(
                "press Enter where `stillpoint console` runs, or start it again, and open the address that it prints",
            ),
            Self::WrongTicket => Error::usage("this address was used already, or is not the latest").hint(
                "each lets one browser in: press Enter where `stillpoint console` runs, and open the one that it prints",
            ),
        }
    }
}

impl Access {
    /// A new ticket; an older one is good for nothing any more.
    pub(super) fn ticket(&self) -> Result<String> {
        let ticket = secret()?;
        self.secrets().ticket = Some(ticket.clone());
        Ok(ticket)
    }

    /// The key for a ticket, if it is good; it is not any more then.
    pub(super) fn admit(&self, ticket: &str) -> Result<Option<String>> {
        let key = secret()?;
        let mut secrets = self.secrets();
        if !secrets.ticket.as_deref().is_some_and(|good| same(good, ticket)) {
            return Ok(None);
        }
        secrets.ticket = None;
        if secrets.keys.len() == KEYS_MAX {
            secrets.keys.pop_front();
        }
        secrets.keys.push_back(key.clone());
        Ok(Some(key))
    }

    /// Whether a request has a key: `Authorization: Bearer KEY`.
    pub(super) fn check_key(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let given = given
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or(Refusal::NoKey)?;
        // All of them are compared: which one it is takes no time that could be measured.
        let good = self
            .secrets()
            .keys
            .iter()
            .fold(false, |good, key| good | same(key, given));
        if good { Ok(()) } else { Err(Refusal::NoKey) }
    }

    fn secrets(&self) -> std::sync::MutexGuard<'_, Secrets> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 256 random bits, hexadecimal.
fn secret() -> Result<String> {
    let mut text = String::with_capacity(64);
    for byte in [make::random()?, make::random()?].as_flattened() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// Whether two texts are the same, in a time that says nothing about where they differ. (Lengths are no secret.)
fn same(a: &str, b: &str) -> bool {
    let differ = |differ: u8, (a, b): (u8, u8)| std::hint::black_box(differ | (a ^ b));
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, differ) == 0
}

/// Whether a request is for this machine's loopback, and, if it says where it comes from or changes something, comes from the
/// page that lies there. Any port will do: the one that the browser sees may be that of `ssh -L`.
pub(super) fn check_place(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts
        .next()
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    if hosts.next().is_some() || !is_loopback(host) {
        return Err(Refusal::WrongHost(host.to_owned()));
    }
    match headers.get(header::ORIGIN) {
        Some(origin) if origin.as_bytes() == format!("http://{host}").as_bytes() => Ok(()),
        Some(_) => Err(Refusal::ForeignOrigin),
        None if method.is_safe() => Ok(()),
        None => Err(Refusal::NoOrigin),
    }
}

/// Whether `host[:port]` can only be this machine, whatever the name service says.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host();
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    let is_loopback = address
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback());
    !host.contains('@') && (name == "localhost" || is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(given: &[(header::HeaderName, &str)]) -> HeaderMap {
        let given = given.iter();
        given
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("a value")))
            .collect()
    }

    fn bearer(key: &str) -> HeaderMap {
        headers(&[(header::AUTHORIZATION, &format!("Bearer {key}"))])
    }

    #[test]
    fn a_ticket_lets_one_browser_in() {
        let access = Access::default();
        assert_eq!(access.admit(""), Ok(None), "there is no ticket yet");
        let first = access.ticket().expect("random numbers");
        let second = access.ticket().expect("random numbers");
        assert_eq!(second.len(), 64);
        assert_ne!(first, second);
        assert_eq!(access.admit(&first), Ok(None), "there is a later one");
        assert_eq!(access.admit(&second[..63]), Ok(None));
        let key = access.admit(&second).expect("random numbers").expect("good");
        assert_ne!(key, second);
        assert_eq!(access.admit(&second), Ok(None), "it was used");
        assert_eq!(access.check_key(&bearer(&key)), Ok(()));
        for wrong in [HeaderMap::new(), bearer(""), bearer(&second), bearer(&key[1..])] {
            assert_eq!(access.check_key(&wrong), Err(Refusal::NoKey), "{wrong:?}");
        }
        let basic = headers(&[(header::AUTHORIZATION, &format!("Basic {key}"))]);
        assert_eq!(access.check_key(&basic), Err(Refusal::NoKey));
    }

    #[test]
    fn of_too_many_keys_the_oldest_goes() {
        let access = Access::default();
        let admitted = || {
            let ticket = access.ticket().expect("random numbers");
            access.admit(&ticket).expect("random numbers").expect("good")
        };
        let oldest = admitted();
        let others: Vec<String> = (1..KEYS_MAX).map(|_| admitted()).collect();
        assert_eq!(access.check_key(&bearer(&oldest)), Ok(()));
        let newest = admitted();
        assert_eq!(access.check_key(&bearer(&oldest)), Err(Refusal::NoKey));
        for key in others.iter().chain([&newest]) {
            assert_eq!(access.check_key(&bearer(key)), Ok(()));
        }
    }

    #[test]
    fn only_what_cannot_be_anywhere_else_is_this_host() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:80",
            "localhost:4711",
            "[::1]:80",
            "127.1.2.3:1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "rebound.example:4711",
            "localhost.example",
            "127.0.0.1.example",
            "192.168.0.1",
            "0.0.0.0:80",
            "[::]:80",
            "a@127.0.0.1",
            "127.0.0.1:80/x",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn other_pages_are_refused_and_changes_say_where_they_come_from() {
        let check = |method: Method, origin: Option<&str>| {
            let mut given = vec![(header::HOST, "localhost:8000")];
            given.extend(origin.map(|origin| (header::ORIGIN, origin)));
            check_place(&method, &headers(&given))
        };
        assert_eq!(check(Method::GET, None), Ok(()));
        assert_eq!(check(Method::POST, Some("http://localhost:8000")), Ok(()));
        assert_eq!(check(Method::POST, None), Err(Refusal::NoOrigin));
        assert_eq!(check(Method::DELETE, None), Err(Refusal::NoOrigin));
        for foreign in [
            "http://localhost:8001",
            "https://localhost:8000",
            "http://127.0.0.1:8000",
            "null",
            "",
        ] {
            assert_eq!(
                check(Method::GET, Some(foreign)),
                Err(Refusal::ForeignOrigin),
                "{foreign}"
            );
            assert_eq!(
                check(Method::POST, Some(foreign)),
                Err(Refusal::ForeignOrigin),
                "{foreign}"
            );
        }
        let mut two = headers(&[(header::HOST, "localhost:8000")]);
        two.append(header::HOST, HeaderValue::from_static("localhost:8000"));
        assert!(matches!(
            check_place(&Method::GET, &two),
            Err(Refusal::WrongHost(_))
        ));
        assert!(matches!(
            check_place(&Method::GET, &HeaderMap::new()),
            Err(Refusal::WrongHost(_))
        ));
    }
}
