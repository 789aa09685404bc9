//! The end-to-end tests: the real program, its command line, its clients; a module for each matter. One binary, so that
//! the program's libraries are linked once and `support` is compiled once.
//!
//! `cargo nextest run -p stillpoint kill::` runs those of one module.

mod adversity;
mod architecture;
mod availability;
mod bench;
mod causality;
mod changelog;
mod changes;
mod clones;
mod command_line;
mod console;
mod crowd;
mod deletions;
mod demo;
mod filesystem;
mod fio;
mod foreign_clients;
mod fsx;
mod host_views;
mod idle;
mod in_band;
mod inspect;
mod kill;
mod malformed;
mod mirrors;
mod mounted;
mod power;
mod readme;
mod requirements;
mod resized;
mod schedules;
mod scrub;
mod soak;
mod spread;
mod support;
mod support_itself;
mod unanswered;
