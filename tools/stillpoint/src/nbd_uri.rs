//! NBD URIs, after the NBD project's `uri.md`: where a server listens, and which export is meant.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use stillpoint_appliance::Error;

/// Where NBD servers listen if nothing is said.
const PORT: u16 = 10809;

/// `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Where.
    pub address: Address,
    /// Which; empty for the only one.
    pub export: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On a unix socket.
    Unix(PathBuf),
    /// On a TCP port of a host.
    Tcp(String, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for NbdUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |problem: &str| {
            Error::usage(format!("{text} is no NBD URI that can be used: {problem}"))
                .hint("write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, as `stillpoint export list` shows it")
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("there is no ://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decoded(export).ok_or_else(|| wrong("the name of the export is not well encoded"))?;
        let address = match scheme {
            "nbd" => tcp(authority).ok_or_else(|| wrong("the host or the port is wrong"))?,
            "nbd+unix" if authority.is_empty() => {
                let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
                let socket = socket.ok_or_else(|| wrong("there is no ?socket=PATH"))?;
                let path = decoded(socket).filter(|path| !path.is_empty());
                Address::Unix(
                    path.ok_or_else(|| wrong("the path of the socket is wrong"))?
                        .into(),
                )
            }
            "nbd+unix" => {
                return Err(wrong(
                    "a unix socket has no host: three slashes before the export",
                ));
            }
            "nbds" | "nbds+unix" => return Err(wrong("there is no TLS here")),
            _ => return Err(wrong("it begins with neither nbd:// nor nbd+unix://")),
        };
        Ok(Self { address, export })
    }
}

/// `HOST`, `HOST:PORT` or the same with `[IPv6]`.
fn tcp(authority: &str) -> Option<Address> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, port.strip_prefix(':').or(port.is_empty().then_some(""))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let port = match port {
        "" => PORT,
        port => port.parse().ok()?,
    };
    (!host.is_empty()).then(|| Address::Tcp(host.to_owned(), port))
}

/// Text with `%XX` for bytes.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = str::from_utf8(after.get(..2)?).ok()?;
            let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_say_where_and_which() {
        let tcp = |host: &str, port| Address::Tcp(host.to_owned(), port);
        let cases = [
            ("nbd://host/vm", tcp("host", 10809), "vm"),
            ("nbd://host:7/vm@noon", tcp("host", 7), "vm@noon"),
            ("nbd://[::1]:7/vm", tcp("::1", 7), "vm"),
            ("nbd://[::1]/vm", tcp("::1", 10809), "vm"),
            ("nbd://host", tcp("host", 10809), ""),
            (
                "nbd+unix:///vm?socket=/run/nbd.sock",
                Address::Unix("/run/nbd.sock".into()),
                "vm",
            ),
            (
                "nbd+unix:///a%2Fb?x=1&socket=/a%20b",
                Address::Unix("/a b".into()),
                "a/b",
            ),
        ];
        for (text, address, export) in cases {
            let export = export.to_owned();
            assert_eq!(text.parse(), Ok(NbdUri { address, export }), "{text}");
        }
    }

    #[test]
    fn what_is_no_uri_is_refused() {
        for text in [
            "",
            "vm",
            "http://host/vm",
            "nbds://host/vm",
            "nbd:///vm",
            "nbd://host:x/vm",
            "nbd://host:70000/vm",
            "nbd://[::1/vm",
            "nbd://[::1]7/vm",
            "nbd://host/%",
            "nbd://host/%+1",
            "nbd://host/%ff",
            "nbd+unix:///vm",
            "nbd+unix:///vm?socket=",
            "nbd+unix://host/vm?socket=/s",
        ] {
            assert!(text.parse::<NbdUri>().is_err(), "{text}");
        }
    }
}
