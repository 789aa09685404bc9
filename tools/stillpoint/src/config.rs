//! The configuration of `serve`: a file, then options, then defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;

use crate::cli::{Global, ServeArguments};
use crate::size::{Duration, Size};
use stillpoint_appliance::daemon::{DaemonOptions, DurableWrites, PollMode, TailDirectory};
use stillpoint_appliance::{Error, directories};

/// What a processor does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Poll for a short while, then sleep until something comes.
    #[default]
    Adaptive,
    /// Never sleep.
    Busy,
    /// Sleep at once when there is nothing to do.
    Sleep,
}

/// How NVMe namespaces are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Nvme {
    /// By commands of our own where that is possible.
    #[default]
    Passthrough,
    /// As the block devices that they are.
    Block,
}

/// Whether single writes to NVMe devices are made durable one by one (FUA) where that spares a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Durable {
    /// Where the controller says that it can, and nothing speaks against believing it.
    #[default]
    Auto,
    /// Where the controller says that it can.
    Always,
    /// Nowhere.
    Never,
}

impl From<Durable> for DurableWrites {
    fn from(word: Durable) -> Self {
        match word {
            Durable::Auto => Self::Auto,
            Durable::Always => Self::Always,
            Durable::Never => Self::Never,
        }
    }
}

/// The configuration file. Keys are the options of `stillpoint serve`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ConfigFile {
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--run-dir`
    pub run_dir: Option<PathBuf>,
    /// `--tail-dir`
    pub tail_dir: Option<PathBuf>,
    /// `--nbd-unix`, all of them
    pub nbd_unix: Vec<PathBuf>,
    /// `--nbd-tcp`, all of them
    pub nbd_tcp: Vec<SocketAddr>,
    /// `--processors`
    pub processors: Option<u16>,
    /// `--no-pin`
    pub no_pin: bool,
    /// `--poll`
    pub poll: Option<Poll>,
    /// `--nvme`
    pub nvme: Option<Nvme>,
    /// `--durable-writes`
    pub durable_writes: Option<Durable>,
    /// `--map-cache`
    pub map_cache: Option<Size>,
    /// `--buffer-memory`
    pub buffer_memory: Option<Size>,
    /// `--connection-limit`
    pub connection_limit: Option<u32>,
    /// `--export-connection-limit`
    pub export_connection_limit: Option<u32>,
    /// `--handshake-limit`
    pub handshake_limit: Option<Duration>,
    /// `--pool`, all of them: each a list of devices
    pub pool: Vec<Vec<PathBuf>>,
    /// `--log`
    pub log: Option<String>,
}

impl ConfigFile {
    /// Reads a file.
    ///
    /// # Errors
    /// Usage, with the line, if it is not a configuration; not found.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let message = format!("configuration file {}: {error}", path.display());
            match error.kind() {
                std::io::ErrorKind::NotFound => Error::not_found(message),
                _ => Error::failure(message),
            }
        })?;
        Self::parse(&text)
            .map_err(|error| Error::usage(format!("configuration file {}: {error}", path.display())))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong, with the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }
}

/// What is logged unless something is said.
pub const LOG_DEFAULT: &str = "info";

/// What `serve` is to do, and what it is to log.
pub fn daemon_options(arguments: ServeArguments, global: &Global) -> Result<(DaemonOptions, String), Error> {
    let file = match &arguments.config {
        Some(path) => ConfigFile::read(path)?,
        None => ConfigFile::default(),
    };
    let state_directory = arguments
        .state_dir
        .or(file.state_dir)
        .unwrap_or_else(directories::state_directory);
    let run_directory = arguments
        .run_dir
        .or(file.run_dir)
        .unwrap_or_else(directories::run_directory);
    let control_socket = global
        .socket
        .clone()
        .or(file.socket)
        .unwrap_or_else(|| directories::control_socket(&run_directory));
    let mut nbd_unix = if arguments.nbd_unix.is_empty() {
        file.nbd_unix
    } else {
        arguments.nbd_unix
    };
    if nbd_unix.is_empty() {
        nbd_unix.push(directories::nbd_socket(&run_directory));
    }
    let nbd_tcp = if arguments.nbd_tcp.is_empty() {
        file.nbd_tcp
    } else {
        arguments.nbd_tcp
    };
    let tail_directory = match arguments.tail_dir.or(file.tail_dir) {
        None => TailDirectory::Chosen,
        Some(path) if path == Path::new("none") => TailDirectory::None,
        Some(path) => TailDirectory::Given(path),
    };
    let pools = file
        .pool
        .into_iter()
        .chain(arguments.pool.iter().map(|devices| split(devices)));
    let processors = arguments.processors.or(file.processors);
    if processors == Some(0) {
        return Err(Error::usage("0 processors: at least 1 is needed"));
    }
    let options = DaemonOptions {
        state_directory,
        run_directory,
        control_socket,
        nbd_unix,
        nbd_tcp,
        processors: processors.map(usize::from),
        pin: !(arguments.no_pin || file.no_pin),
        poll: match arguments.poll.or(file.poll).unwrap_or_default() {
            Poll::Adaptive => PollMode::Adaptive,
            Poll::Busy => PollMode::Busy,
            Poll::Sleep => PollMode::Sleep,
        },
        nvme_commands: match arguments.nvme.or(file.nvme).unwrap_or_default() {
            Nvme::Passthrough => {
                let durable = arguments.durable_writes.or(file.durable_writes);
                Some(durable.unwrap_or_default().into())
            }
            Nvme::Block => None,
        },
        map_cache_bytes: bytes(
            arguments.map_cache.or(file.map_cache),
            DaemonOptions::MAP_CACHE_BYTES,
        ),
        buffer_bytes: bytes(
            arguments.buffer_memory.or(file.buffer_memory),
            DaemonOptions::BUFFER_BYTES,
        ),
        tail_directory,
        connection_limit: connection_limit(arguments.connection_limit.or(file.connection_limit))?,
        export_connection_limit: export_connection_limit(
            arguments.export_connection_limit.or(file.export_connection_limit),
        )?,
        handshake_limit_ns: handshake_limit_ns(arguments.handshake_limit.or(file.handshake_limit))?,
        pools: pools.collect(),
    };
    Ok((
        options,
        arguments
            .log
            .or(file.log)
            .unwrap_or_else(|| LOG_DEFAULT.to_owned()),
    ))
}

fn bytes(size: Option<Size>, default: u64) -> u64 {
    size.map_or(default, |Size(bytes)| bytes)
}

fn connection_limit(limit: Option<u32>) -> Result<u32, Error> {
    const MAX: u32 = DaemonOptions::CONNECTION_LIMIT_MAX;
    match limit.unwrap_or(DaemonOptions::CONNECTION_LIMIT) {
        limit @ 1..=MAX => Ok(limit),
        limit => Err(Error::usage(format!(
            "a limit of {limit} connections: from 1 to {MAX} are possible"
        ))),
    }
}

fn export_connection_limit(limit: Option<u32>) -> Result<u32, Error> {
    match limit.unwrap_or(DaemonOptions::EXPORT_CONNECTION_LIMIT) {
        0 => Err(Error::usage("a limit of 0 connections to an export: at least 1")),
        limit => Ok(limit),
    }
}

fn handshake_limit_ns(limit: Option<Duration>) -> Result<u64, Error> {
    const NS_MIN: u64 = 1_000_000;
    match limit.map_or(DaemonOptions::HANDSHAKE_LIMIT_NS, |Duration(ns)| ns) {
        ..NS_MIN => Err(Error::usage(
            "a handshake limit of less than 1ms: nobody could connect",
        )),
        ns => Ok(ns),
    }
}

fn split(devices: &str) -> Vec<PathBuf> {
    devices.split(',').map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_appliance::ErrorKind;

    fn global() -> Global {
        Global {
            socket: None,
            output: crate::cli::Format::Table,
        }
    }

    fn read(text: &str) -> Result<ConfigFile, Error> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        ConfigFile::read(file.path())
    }

    #[test]
    fn every_key_is_read() {
        let file = read(
            r#"
            socket = "/tmp/s"
            state-dir = "/tmp/state"
            run-dir = "/tmp/run"
            tail-dir = "none"
            nbd-unix = ["/tmp/n"]
            nbd-tcp = ["127.0.0.1:10809", "[::1]:10809"]
            processors = 3
            no-pin = true
            poll = "busy"
            nvme = "block"
            durable-writes = "always"
            map-cache = "1GiB"
            buffer-memory = 33554432
            connection-limit = 100
            export-connection-limit = 10
            handshake-limit = "500ms"
            pool = [["/dev/a", "/dev/b"], ["/dev/c"]]
            log = "debug"
            "#,
        )
        .expect("a configuration");
        assert_eq!(file.map_cache, Some(Size(1 << 30)));
        assert_eq!(file.buffer_memory, Some(Size(32 << 20)));
        assert_eq!(file.pool.len(), 2);
        assert_eq!(file.handshake_limit, Some(Duration(500_000_000)));
        assert_eq!((file.poll, file.nvme), (Some(Poll::Busy), Some(Nvme::Block)));
        assert_eq!(file.durable_writes, Some(Durable::Always));
    }

    #[test]
    fn the_example_shows_every_key_and_true_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/stillpoint.example.toml");
        let text = std::fs::read_to_string(path).expect("the example");
        assert_eq!(read(&text).expect("as it is"), ConfigFile::default());
        let shown: String = text
            .lines()
            .filter_map(|line| Some(line.strip_prefix('#')?).filter(|rest| !rest.starts_with(' ')))
            .map(|line| format!("{line}\n"))
            .collect();
        let file = read(&shown).expect("with every line in force");
        // Named one by one, so that a new key cannot be forgotten here.
        let ConfigFile {
            socket,
            state_dir,
            run_dir,
            tail_dir,
            nbd_unix,
            nbd_tcp,
            processors,
            no_pin,
            poll,
            nvme,
            durable_writes,
            map_cache,
            buffer_memory,
            connection_limit,
            export_connection_limit,
            handshake_limit,
            pool,
            log,
        } = file;
        assert!(socket.is_some() && state_dir.is_some() && run_dir.is_some() && tail_dir.is_some());
        assert!(!nbd_unix.is_empty() && !nbd_tcp.is_empty() && !pool.is_empty() && processors.is_some());
        assert_eq!((no_pin, poll), (false, Some(Poll::default())));
        assert_eq!(nvme, Some(Nvme::default()));
        assert_eq!(durable_writes, Some(Durable::default()));
        assert_eq!(map_cache, Some(Size(DaemonOptions::MAP_CACHE_BYTES)));
        assert_eq!(buffer_memory, Some(Size(DaemonOptions::BUFFER_BYTES)));
        assert_eq!(connection_limit, Some(DaemonOptions::CONNECTION_LIMIT));
        assert_eq!(
            export_connection_limit,
            Some(DaemonOptions::EXPORT_CONNECTION_LIMIT)
        );
        assert_eq!(handshake_limit, Some(Duration(DaemonOptions::HANDSHAKE_LIMIT_NS)));
        assert_eq!(log.as_deref(), Some(LOG_DEFAULT));
        assert!(
            shown.contains("no-pin"),
            "a key that is false by default is shown all the same"
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = read("processors = 2\nprocesors = 3\n").expect_err("a typing error");
        assert_eq!(error.kind, ErrorKind::Usage);
        assert!(
            error.message.contains("line 2") && error.message.contains("procesors"),
            "{error}"
        );
    }

    #[test]
    fn a_value_that_cannot_be_is_refused_with_its_line() {
        for text in [
            "\nmap-cache = \"lots\"",
            "\nprocessors = -1",
            "\npoll = \"never\"",
            "\nmap-cache = -1",
            "\nhandshake-limit = \"soon\"",
            "\nconnection-limit = -1",
        ] {
            let error = read(text).expect_err(text);
            assert!(error.message.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn limits_that_let_nobody_in_are_refused() {
        for text in [
            "connection-limit = 0",
            "connection-limit = 65537",
            "export-connection-limit = 0",
            "handshake-limit = \"999us\"",
        ] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), text).expect("written");
            let arguments = ServeArguments {
                config: Some(file.path().to_owned()),
                ..ServeArguments::default()
            };
            let error = daemon_options(arguments, &global()).expect_err(text);
            assert_eq!(error.kind, ErrorKind::Usage, "{text}: {error}");
        }
    }

    #[test]
    fn options_win_over_the_file_and_the_file_over_defaults() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(
            file.path(),
            "processors = 3\nmap-cache = \"1GiB\"\nrun-dir = \"/tmp/run\"",
        )
        .expect("written");
        let arguments = ServeArguments {
            config: Some(file.path().to_owned()),
            processors: Some(5),
            pool: vec!["/dev/a,/dev/b".to_owned()],
            ..ServeArguments::default()
        };
        let (options, log) = daemon_options(arguments, &global()).expect("a configuration");
        assert_eq!(options.processors, Some(5));
        assert_eq!(options.map_cache_bytes, 1 << 30);
        assert_eq!(options.buffer_bytes, DaemonOptions::BUFFER_BYTES);
        assert_eq!(options.control_socket, Path::new("/tmp/run/control.sock"));
        assert_eq!(options.nbd_unix, [PathBuf::from("/tmp/run/nbd.sock")]);
        assert_eq!(
            options.pools,
            [[PathBuf::from("/dev/a"), PathBuf::from("/dev/b")]]
        );
        assert_eq!((options.pin, log.as_str()), (true, "info"));
        assert_eq!(options.nvme_commands, Some(DurableWrites::Auto));
    }

    #[test]
    fn only_commands_of_our_own_make_single_writes_durable() {
        for (nvme, durable_writes, commands) in [
            (None, None, Some(DurableWrites::Auto)),
            (None, Some(Durable::Always), Some(DurableWrites::Always)),
            (
                Some(Nvme::Passthrough),
                Some(Durable::Never),
                Some(DurableWrites::Never),
            ),
            (Some(Nvme::Block), Some(Durable::Always), None),
        ] {
            let arguments = ServeArguments {
                nvme,
                durable_writes,
                ..ServeArguments::default()
            };
            let (options, _) = daemon_options(arguments, &global()).expect("a configuration");
            assert_eq!(options.nvme_commands, commands);
        }
    }
}
