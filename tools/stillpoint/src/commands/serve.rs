//! `stillpoint serve`

use tracing_subscriber::EnvFilter;

use crate::cli::{Global, ServeArguments};
use crate::config;
use crate::exit::Failure;
use stillpoint_appliance::{Error, daemon};

/// Runs the appliance until it is told to stop.
pub fn run(arguments: ServeArguments, global: &Global) -> Result<(), Failure> {
    let (options, log) = config::daemon_options(arguments, global)?;
    let filter = EnvFilter::try_new(&log).map_err(|error| Error::usage(format!("--log {log}: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    daemon::run(options)?;
    Ok(())
}
