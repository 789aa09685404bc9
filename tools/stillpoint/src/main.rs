//! Stillpoint: block storage with snapshots over all cores. `stillpoint --help` says what it can do.

mod bench;
mod cli;
mod client;
mod commands;
mod config;
mod demo;
mod exit;
mod keep;
mod nbd_client;
mod nbd_uri;
mod output;
mod size;
mod when;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let global = cli.global;
    let result = match cli.command {
        Command::Serve(arguments) => commands::serve::run(arguments, &global),
        Command::Pool(command) => commands::pool::run(command, &global),
        Command::Device(command) => commands::device::run(&command, &global),
        Command::Volume(command) => commands::volume::run(command, &global),
        Command::Snapshot(command) => commands::snapshot::run(command, &global),
        Command::Changelog(command) => commands::changelog::run(command, &global),
        Command::Group(command) => commands::group::run(command, &global),
        Command::Schedule(command) => commands::schedule::run(command, &global),
        Command::Export(command) => commands::export::run(command, &global),
        Command::Host(command) => commands::host::run(command, &global),
        Command::Bench(command) => bench::run_command(*command, &global),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Console(arguments) => commands::console::run(&arguments, &global),
        Command::Events(arguments) => commands::events::run(&arguments, &global),
        Command::Status => commands::status::run(&global),
        Command::Stats(arguments) => commands::stats::run(&global, &arguments),
        Command::Inspect(arguments) => commands::inspect::run(arguments, &global),
        Command::Doctor => commands::doctor::run(&global),
        Command::Completions { shell } => commands::completions::run(shell),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
