//! What a crowd costs a good client: the same client, at work all the time, is looked at in short windows, alone and
//! with a crowd beside it, in turn. In the last kind of window the same crowd is at another appliance on this machine: what
//! it costs there, the machine costs, and not the appliance.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use stillpoint_benches::crowd::{Crowd, Numbers, allow_descriptors};
use stillpoint_benches::good_client::GoodClient;
use stillpoint_benches::machine::Machine;
use stillpoint_benches::process::Scratch;
use stillpoint_benches::servers::{Setup, Stillpoint, VOLUME, fill};
use stillpoint_benches::stats::{Spread, quantile};
use stillpoint_benches::{Failure, cpu, frame};

/// The export of the crowd, and its size: its clients use 64 MiB.
const CROWDED: &str = "crowded";
const VOLUME_BYTES: u64 = 64 << 20;

/// Measures a good client's latency alone and in a crowd
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    place: frame::Place,
    /// Rounds: each has a window of every kind and begins with another one
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Seconds of each window
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Milliseconds before each window that do not count
    #[arg(long, default_value_t = 300)]
    warm_up_ms: u64,
    /// Clients that are connected and silent
    #[arg(long, default_value_t = 300)]
    idle: usize,
    /// Clients that send a write, a byte every 100 ms
    #[arg(long, default_value_t = 100)]
    slow: usize,
    /// Clients that ask for 500 MiB and take nothing
    #[arg(long, default_value_t = 8)]
    non_reading: usize,
    /// Clients that connect during a window, say nothing, and are sent away
    #[arg(long, default_value_t = 1000)]
    connecting: usize,
    /// They connect all at once, and not evenly over half the window
    #[arg(long)]
    at_once: bool,
    /// One more option of `stillpoint serve`; may be given several times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    serve_option: Vec<String>,
}

/// What is beside the good client in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Nobody,
    /// Idle, slow and non-reading clients.
    Standing,
    /// The same, and connecting ones.
    Connecting,
    /// The same at another appliance.
    Elsewhere,
}

impl Beside {
    const ALL: [Self; 4] = [Self::Nobody, Self::Standing, Self::Connecting, Self::Elsewhere];

    fn name(self, numbers: Numbers) -> String {
        let Numbers {
            idle,
            slow,
            non_reading,
            connecting,
        } = numbers;
        let standing = format!("{idle} idle, {slow} slow, {non_reading} non-reading");
        match self {
            Self::Nobody => "alone".into(),
            Self::Standing => standing,
            Self::Connecting => format!("the same and {connecting} connecting"),
            Self::Elsewhere => "all of these at another appliance".into(),
        }
    }
}

/// A window.
struct Window {
    beside: Beside,
    /// CPU time of the good client's appliance, per second.
    cpu: f64,
    /// How long each request took, sorted.
    latencies_ns: Vec<u64>,
}

fn main() -> ExitCode {
    frame::run("crowd", || measure(&Options::parse()))
}

/// An appliance with a volume for the good client and one for the crowd, both written from end to end.
struct Place {
    appliance: Stillpoint,
    scratch: Scratch,
}

impl Place {
    fn open(options: &Options, program: &Path, backing: &Path) -> Result<Self, Failure> {
        let scratch = Scratch::new(backing)?;
        let limit = [
            "--handshake-limit".into(),
            format!("{:.0}ms", options.seconds * 250.0),
        ];
        let room = options.idle + options.slow + options.non_reading + options.connecting + 100;
        let room = ["--connection-limit".into(), room.to_string()];
        let setup = Setup {
            program,
            serve_options: &[&limit[..], &room, &options.serve_option].concat(),
            device: None,
            pool_bytes: VOLUME_BYTES * 8,
            volume_bytes: VOLUME_BYTES,
        };
        let appliance = Stillpoint::start(&setup, &scratch)?;
        fill(&appliance.target, VOLUME_BYTES, &scratch)?;
        let crowded = appliance.add_volume(CROWDED, VOLUME_BYTES, &scratch)?;
        fill(&crowded, VOLUME_BYTES, &scratch)?;
        Ok(Self { appliance, scratch })
    }

    /// Waits until so many connections are left.
    fn wait_for_connections(&self, left: u64) -> Result<(), Failure> {
        let begun = Instant::now();
        while self.appliance.connections(&self.scratch)? > left {
            if begun.elapsed() > Duration::from_secs(30) {
                return Err("the crowd's connections are still open 30 s after it left".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn measure(options: &Options) -> Result<(), Failure> {
    let (program, backing) = options.place.find()?;
    let machine = Machine::look(&backing);
    let numbers = Numbers {
        idle: options.idle,
        slow: options.slow,
        non_reading: options.non_reading,
        connecting: options.connecting,
    };
    // The appliances inherit the limit.
    allow_descriptors(2 * (numbers.idle + numbers.slow + numbers.non_reading + numbers.connecting) + 1000)?;
    let here = Place::open(options, &program, &backing)?;
    let elsewhere = Place::open(options, &program, &backing)?;
    let count = options.rounds * Beside::ALL.len();
    let good = GoodClient::start(here.appliance.nbd_socket(), VOLUME, count)?;
    let mut windows = Vec::with_capacity(count);
    for round in 0..options.rounds {
        for turn in 0..Beside::ALL.len() {
            let beside = Beside::ALL[(round + turn) % Beside::ALL.len()];
            let place = if beside == Beside::Elsewhere {
                &elsewhere
            } else {
                &here
            };
            let cpu = window(options, numbers, beside, &good, windows.len(), place, &here)?;
            windows.push(Window {
                beside,
                cpu,
                latencies_ns: Vec::new(),
            });
            here.wait_for_connections(1)?;
            elsewhere.wait_for_connections(0)?;
        }
    }
    for (window, mut latencies_ns) in windows.iter_mut().zip(good.finish()?) {
        latencies_ns.sort_unstable();
        window.latencies_ns = latencies_ns;
    }
    write_table(options, &machine, numbers, &windows)
}

/// Opens a window with somebody beside the good client; gives the CPU time per second of the good client's appliance.
fn window(
    options: &Options,
    numbers: Numbers,
    beside: Beside,
    good: &GoodClient,
    number: usize,
    place: &Place,
    here: &Place,
) -> Result<f64, Failure> {
    let socket = place.appliance.nbd_socket();
    let nobody = Numbers {
        idle: 0,
        slow: 0,
        non_reading: 0,
        connecting: 0,
    };
    let (standing, connecting) = match beside {
        Beside::Nobody => (nobody, 0),
        Beside::Standing => (numbers, 0),
        Beside::Connecting | Beside::Elsewhere => (numbers, numbers.connecting),
    };
    let mut crowd = Crowd::gather(socket, CROWDED, standing)?;
    crowd.throng(Duration::from_millis(options.warm_up_ms), socket, 0, false)?;
    let time = Duration::from_secs_f64(options.seconds);
    let (cpu_before, begun) = (cpu::used_seconds(here.appliance.process_id())?, Instant::now());
    good.open_window(number);
    crowd.throng(time, socket, connecting, options.at_once)?;
    good.close_window();
    let used = cpu::used_seconds(here.appliance.process_id())? - cpu_before;
    Ok(used / begun.elapsed().as_secs_f64())
}

fn write_table(
    options: &Options,
    machine: &Machine,
    numbers: Numbers,
    windows: &[Window],
) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "Machine: {machine}.\n")?;
    writeln!(
        out,
        "Reads and writes of 4 KiB, one at a time; {} rounds of windows of {} s, after {} ms that do not count. p50 and \
         p99: medians of the windows (min..max); pooled: of all requests together; ratio: of each round's p99 to the one \
         alone.\n",
        options.rounds, options.seconds, options.warm_up_ms
    )?;
    writeln!(
        out,
        "| | requests | p50 us | p99 us | pooled p50 | pooled p99 | pooled p99.9 | p99 ratio | CPU s per s |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    let of = |beside| windows.iter().filter(move |window| window.beside == beside);
    let us = |sorted: &[u64], share| quantile(sorted, share) as f64 / 1e3;
    let p99 = |window: &Window| us(&window.latencies_ns, 0.99);
    for beside in Beside::ALL {
        let mut pooled: Vec<u64> = of(beside)
            .flat_map(|window| window.latencies_ns.iter().copied())
            .collect();
        pooled.sort_unstable();
        let spread = |spread: Spread| format!("{:.0} ({:.0}..{:.0})", spread.median, spread.min, spread.max);
        let rounds = of(beside).zip(of(Beside::Nobody));
        let ratio = Spread::of(rounds.map(|(window, alone)| p99(window) / p99(alone).max(1e-9)));
        writeln!(
            out,
            "| {} | {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.2} ({:.2}..{:.2}) | {:.2} |",
            beside.name(numbers),
            pooled.len(),
            spread(Spread::of(of(beside).map(|window| us(&window.latencies_ns, 0.5)))),
            spread(Spread::of(of(beside).map(p99))),
            us(&pooled, 0.5),
            us(&pooled, 0.99),
            us(&pooled, 0.999),
            ratio.median,
            ratio.min,
            ratio.max,
            Spread::of(of(beside).map(|window| window.cpu)).median,
        )?;
    }
    Ok(())
}
