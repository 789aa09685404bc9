//! Rows g and h: NBD through a unix socket and through TCP on loopback, with qemu-nbd and nbdkit on raw files beside it.
//! Every server has one core, the client another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stillpoint_bench::job::{Idle, Job as InProcess, Load as Depth};
use stillpoint_bench::target::{Name, Opened};
use stillpoint_benches::Failure;
use stillpoint_benches::contest;
use stillpoint_benches::cpu;
use stillpoint_benches::fio::Target;
use stillpoint_benches::frame::say;
use stillpoint_benches::machine::Machine;
use stillpoint_benches::nbd_load::{self, Load};
use stillpoint_benches::process::Scratch;
use stillpoint_benches::rounds::{CaseResult, Pace, Run, Series};
use stillpoint_benches::servers::{
    Listen, NbdKit, QemuNbd, Setup, Stillpoint, VOLUME, fill, free_address, keep_on, make_written_file,
    takes_direct,
};
use stillpoint_benches::table::{Bound, Goal, Row};
use stillpoint_benches::zram::Zram;
use stillpoint_hw::topology::{Core, allowed_cores, place_processors};

use crate::{Options, nbd};

/// Connections, and requests in flight on each.
const SHAPES: [(usize, usize); 4] = [(1, 1), (1, 32), (4, 1), (4, 32)];
/// With `--short` so many of them.
const SHORT: [(usize, usize); 2] = [(1, 1), (4, 32)];
/// The shards write what they need of it.
const POOL_IMAGE: &str = "pool.img";
/// Places in the series of a case.
const OURS: usize = 0;
const PEERS: [usize; 2] = [1, 2];
const RAW: usize = 3;

/// Row g: its table of goals on a unix socket, and beside that what fio says of longer requests and of snapshots.
///
/// # Errors
/// A server or a run fails.
pub fn unix(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new("g", "NBD on a unix socket, one core for the server");
    {
        // Its images are gone before those of the other cases are made.
        let own = Scratch::new(&options.place.backing()?)?;
        measure(options, Listen::Unix, &mut row, &own)?;
    }
    if !options.short || options.case.is_some() {
        nbd::add_cases(options, &mut row, scratch)?;
    }
    Ok(row)
}

/// Row h.
///
/// # Errors
/// As [`unix`].
pub fn tcp(options: &Options, scratch: &Scratch) -> Result<Row, Failure> {
    let mut row = Row::new("h", "NBD through TCP on loopback, one core for the server");
    measure(options, Listen::Tcp, &mut row, scratch)?;
    Ok(row)
}

fn measure(options: &Options, listen: Listen, row: &mut Row, scratch: &Scratch) -> Result<(), Failure> {
    let arena = Arena::set_up(options, listen, scratch)?;
    let mut busy = String::new();
    let shapes = if options.short { &SHORT[..] } else { &SHAPES };
    for &(connections, depth) in shapes {
        for writes in [false, true] {
            let name = format!(
                "{connections} connection{}, depth {depth} each, random {}",
                if connections == 1 { "" } else { "s" },
                if writes { "writes" } else { "reads" },
            );
            if !options.wants_case(&name) {
                continue;
            }
            say(&name);
            let case = arena.run_case(&name, writes, connections, depth)?;
            add_goals(row, &case, depth);
            busy += &format!(
                "{}{name}: {}",
                if busy.is_empty() { "" } else { "; " },
                arena.busy(&case)
            );
            row.cases.push(case);
        }
    }
    row.notes.push(format!(
        "One thread and one ring are the client, which never sleeps; blocks are asked for with simple replies, as the kernel's \
         client does. {} So much of its time it had something to do, with Stillpoint, qemu-nbd and nbdkit (near 100% it is the \
         client that is measured): {busy}.",
        match arena.cores {
            Some((server, client)) => format!("Servers have core {}, the client core {}.", server.number, client.number),
            None => "There are too few cores to give each its own.".into(),
        }
    ));
    row.notes.push(
        "nbdkit has no way past the page cache: it is told to drop what it has read or written, and answers writes when they \
         are in the page cache, where the others wait for the device. qemu-nbd and nbdkit check no sums."
            .into(),
    );
    Ok(())
}

/// Depth 1: the median below that of both. Depth 32: 1.5 times the requests of the better, at half its CPU for each.
fn add_goals(row: &mut Row, case: &CaseResult, depth: usize) {
    let name = |what: &str| format!("{}: {what}", case.case);
    if depth == 1 {
        let p50 = |run: &Run| run.measured.p50_us;
        let ratio = case.ratio_to_best(OURS, &PEERS, |run| -p50(run), p50);
        row.goals.push(Goal::new(
            name("p50 to the lower one's"),
            ratio,
            Bound::AtMost(1.0),
        ));
        return;
    }
    let iops = |run: &Run| run.measured.iops;
    let rate = case.ratio_to_best(OURS, &PEERS, iops, iops);
    row.goals.push(Goal::new(
        name("requests to the better one's"),
        rate,
        Bound::AtLeast(1.5),
    ));
    let cpu = case.ratio_to_best(OURS, &PEERS, iops, Run::cpu_s_per_million);
    row.goals
        .push(Goal::new(name("CPU for each to its"), cpu, Bound::AtMost(0.5)));
}

/// Everything that runs.
struct Arena {
    stillpoint: Stillpoint,
    ours: Target,
    qemu: QemuNbd,
    nbdkit: NbdKit,
    raw: PathBuf,
    size_bytes: u64,
    pace: Pace,
    /// The servers', and the client's.
    cores: Option<(Core, Core)>,
    _zrams: Vec<Zram>,
}

impl Arena {
    /// Starts the servers, each on an image of its own that was written from end to end.
    fn set_up(options: &Options, listen: Listen, scratch: &Scratch) -> Result<Self, Failure> {
        let (program, _) = options.place.find()?;
        let size_bytes = options.volume_bytes();
        say("writing the images");
        let mut zrams = Vec::new();
        let mut image = |name: &str, bytes: u64| -> Result<PathBuf, Failure> {
            if options.zram {
                let zram = Zram::new(bytes)?;
                let path = zram.path().to_path_buf();
                if name != POOL_IMAGE {
                    let target = Target::File {
                        path: path.clone(),
                        direct: true,
                    };
                    fill(&target, bytes, scratch)?;
                }
                zrams.push(zram);
                return Ok(path);
            }
            let path = scratch.path(name);
            make_written_file(&path, bytes, scratch)?;
            Ok(path)
        };
        let (raw, of_qemu) = (image("raw.img", size_bytes)?, image("qemu.img", size_bytes)?);
        let (of_nbdkit, pool) = (
            image("nbdkit.img", size_bytes)?,
            image(POOL_IMAGE, size_bytes * 4)?,
        );
        let qemu = QemuNbd::start(
            "qemu-nbd-socket",
            &of_qemu,
            "raw",
            &options.qemu_aio,
            listen,
            scratch,
        )?;
        let nbdkit = NbdKit::start(
            &of_nbdkit,
            takes_direct(&of_nbdkit) && !is_in_memory(&of_nbdkit),
            listen,
            scratch,
        )?;
        let address = free_address()?;
        let mut serve_options = vec!["--processors=1".to_owned()];
        if listen == Listen::Tcp {
            serve_options.push(format!("--nbd-tcp={address}"));
        }
        serve_options.extend(options.serve_option.iter().cloned());
        let setup = Setup {
            program: &program,
            serve_options: &serve_options,
            device: Some(&pool),
            pool_bytes: size_bytes * 4,
            volume_bytes: size_bytes,
        };
        let stillpoint = Stillpoint::start(&setup, scratch)?;
        fill(&stillpoint.target, size_bytes, scratch)?;
        let ours = match listen {
            Listen::Unix => stillpoint.target.clone(),
            Listen::Tcp => Target::NbdTcp {
                address,
                export: VOLUME.into(),
            },
        };
        let cores = cores();
        if let Some((core, _)) = cores {
            for server in [stillpoint.process_id(), qemu.process_id(), nbdkit.process_id()] {
                keep_on(core.number, server, scratch)?;
            }
        }
        Ok(Self {
            stillpoint,
            ours,
            qemu,
            nbdkit,
            raw,
            size_bytes,
            pace: options.pace(),
            cores,
            _zrams: zrams,
        })
    }

    fn run_case(
        &self,
        name: &str,
        writes: bool,
        connections: usize,
        depth: usize,
    ) -> Result<CaseResult, Failure> {
        let load = Load {
            writes,
            connections,
            depth,
            size_bytes: self.size_bytes,
            time: self.pace.run,
            core: self.cores.map(|(_, client)| client),
        };
        let servers = [
            ("Stillpoint", &self.ours, self.stillpoint.process_id()),
            ("qemu-nbd", &self.qemu.target, self.qemu.process_id()),
            ("nbdkit", &self.nbdkit.target, self.nbdkit.process_id()),
        ];
        let names = servers
            .map(|(name, ..)| name)
            .into_iter()
            .chain(["raw file, a lean loop"]);
        let mut series: Vec<Series> = names
            .map(|name| Series {
                contender: name.into(),
                runs: Vec::new(),
            })
            .collect();
        for round in 0..self.pace.rounds as usize {
            for turn in 0..series.len() {
                let index = (round + turn) % series.len();
                std::thread::sleep(self.pace.pause);
                let run = match servers.get(index) {
                    Some((_, target, process)) => {
                        let before = cpu::used_seconds(*process)?;
                        let measured = nbd_load::run(load, target)?;
                        let used_s = cpu::used_seconds(*process)? - before;
                        Run {
                            measured,
                            server_cpu_s: nbd_load::counted(used_s, load.time),
                        }
                    }
                    None => self.lean(writes, connections * depth)?,
                };
                series[index].runs.push(run);
            }
        }
        Ok(CaseResult::new(name.into(), false, series, RAW))
    }

    /// The raw file, with as many requests in flight.
    fn lean(&self, writes: bool, depth: usize) -> Result<Run, Failure> {
        let job = InProcess {
            read_percent: if writes { 0 } else { 100 },
            load: Depth::Closed { in_flight: depth },
            // zram is read by threads of the kernel, which a loop that spins keeps from running.
            idle: Idle::Nap,
            time_ns: self.pace.run.as_nanos() as u64,
            ramp_ns: Duration::from_millis(100).as_nanos() as u64,
            size_bytes: Some(self.size_bytes),
            ..InProcess::default()
        };
        let opened = Opened::open(&Name::File(self.raw.clone()), &job)?;
        contest::in_process(&job, &opened)
    }

    /// How much of its time the client had something to do, by server.
    fn busy(&self, case: &CaseResult) -> String {
        let share = |server: usize| {
            let busy = case.spread(server, |run| run.measured.client_cpu_s).median;
            format!("{:.0}%", busy / self.pace.run.as_secs_f64() * 100.0)
        };
        [share(OURS), share(PEERS[0]), share(PEERS[1])].join(", ")
    }
}

/// Whether a file lies in the page cache and nowhere else.
fn is_in_memory(path: &Path) -> bool {
    Machine::look(path).file_system.starts_with("tmpfs")
}

/// The core on which the appliance puts its only processor, for all servers, and another one for the client.
fn cores() -> Option<(Core, Core)> {
    let allowed = allowed_cores();
    let server = place_processors(&allowed, 1, &BTreeMap::new())
        .first()
        .copied()
        .flatten()?;
    let client = allowed.into_iter().find(|core| *core != server)?;
    Some((server, client))
}
