//! `stillpoint demo`: a whole appliance in a temporary directory, a snapshot in the middle of a load, and the
//! proof that it shows one instant.
//!
//! Everything goes the way a user's things go: the daemon is a process of its own, made to work through its API;
//! the load comes through the NBD socket. What the snapshot has to show follows from what the clients saw, see
//! [`proof`].

mod daemon;
mod load;
mod place;
mod proof;
mod report;
mod stamp;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cli::DemoArguments;
use crate::exit::Failure;
use crate::nbd_client::{self, Connection};
use crate::size::Size;
use daemon::Daemon;
use load::{LaneError, LaneOptions, LaneResult, Latencies, PHASES, Shared};
use place::{Place, Tied};
use proof::{Command, History, Shown};
use report::{Figures, Report, figures, grouped, time};
use stamp::BLOCK_BYTES;
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{
    CreateExport, CreatePool, CreateSnapshot, CreateVolume, ExportInfo, PoolInfo, SnapshotInfo, VolumeInfo,
};
use stillpoint_export::nbd::client::RequestFailed;

const POOL_BYTES: u64 = 8 << 30;
const VOLUME_BYTES: u64 = 256 << 20;
const OBJECT_BYTES: u64 = 4 << 20;
const BLOCKS: u64 = VOLUME_BYTES / BLOCK_BYTES as u64;
/// Bytes of one request when the whole volume is written or read.
const SWEEP_BYTES: usize = 1 << 20;
/// Such requests in flight.
const SWEEP_DEPTH: usize = 8;

const VOLUME: &str = "demo";
const SNAPSHOT: &str = "noon";

/// The parts of the run: their names and how long they take. The load goes on after the last one, unmeasured,
/// while the snapshot is read for the first time.
const PARTS: [(&str, Duration); 3] = [
    ("before", Duration::from_secs(4)),
    ("during", Duration::from_secs(2)),
    ("after", Duration::from_secs(4)),
];
const _: () = assert!(PARTS.len() < PHASES);
/// When in the second part the snapshot is ordered.
const SNAPSHOT_AFTER: Duration = Duration::from_millis(500);

/// Runs the demo.
pub fn run(arguments: &DemoArguments) -> Result<(), Failure> {
    let report = Report::new();
    let place = Place::new(arguments.dir.as_deref())?;
    let process = Tied::default();
    let outcome = perform(arguments, &place, &process, &report);
    process.wait_if_interrupted();
    if let Some(pid) = outcome? {
        let text = kept(&place, pid);
        place.keep();
        report.line(&text)?;
    }
    report.line(NEXT)
}

/// The demo itself; the daemon's process number if it is to stay.
fn perform(
    arguments: &DemoArguments,
    place: &Place,
    process: &Tied,
    report: &Report,
) -> Result<Option<u32>, Failure> {
    let daemon = prepare(arguments, place, process, report)?;
    let outcome = show(arguments, &daemon, report);
    process.wait_if_interrupted();
    report.finish();
    match outcome {
        Ok(()) => Ok(arguments.keep.then(|| daemon.let_go())),
        Err(failure) => {
            let words = daemon.last_words();
            if !words.is_empty() {
                report.line(&format!("The end of the daemon's log:\n{words}"))?;
            }
            Err(failure)
        }
    }
}

const NEXT: &str = "\
Next, on a real device (it will be overwritten):
  sudo stillpoint doctor
  sudo stillpoint serve &
  sudo stillpoint pool create tank /dev/nvme1n1
  sudo stillpoint volume create disk --size 100GiB
  sudo stillpoint export create disk
  sudo nbd-client -unix /run/stillpoint/nbd.sock -N disk -C 4 /dev/nbd0
  sudo stillpoint snapshot create disk@first";

fn kept(place: &Place, pid: u32) -> String {
    let (socket, control) = (place.nbd_socket(), place.control_socket());
    let (socket, control, directory) = (socket.display(), control.display(), place.directory().display());
    let tails = place.tails().map(|path| format!(" {}", path.display()));
    let tails = tails.unwrap_or_default();
    format!(
        "\
The daemon goes on (process {pid}). Look around:
  stillpoint --socket {control} status
  stillpoint --socket {control} snapshot show {VOLUME}@{SNAPSHOT}
  nbdinfo --list 'nbd+unix:///?socket={socket}'
  kill {pid} && rm -r {directory}{tails}    # ends it and removes everything
"
    )
}

/// Starts the daemon, makes the pool, the volume and its export, and fills the volume.
fn prepare(
    arguments: &DemoArguments,
    place: &Place,
    process: &Tied,
    report: &Report,
) -> Result<Daemon, Failure> {
    report.progress("starting the daemon".to_owned());
    let directory = place.directory();
    let daemon = Daemon::start(place, process.clone(), arguments.processors)?;
    let status = daemon.status()?;
    let cores: Vec<String> = status
        .processors
        .iter()
        .map(|processor| processor.core.map_or("none".to_owned(), |core| core.to_string()))
        .collect();
    report.line(&format!(
        "daemon:    {} processors, pinned to cores {}; directory {}",
        status.processors.len(),
        cores.join(", "),
        directory.display()
    ))?;
    let client = &daemon.client;
    let _: PoolInfo = client.post(
        "/v1/pools",
        &CreatePool {
            name: "demo".to_owned(),
            devices: vec![directory.join("disk").display().to_string()],
            size_bytes: Some(POOL_BYTES),
            shards: None,
            mirror: false,
            force: false,
            force_devices: Vec::new(),
        },
    )?;
    let volume: VolumeInfo = client.post(
        "/v1/volumes",
        &CreateVolume {
            change_log: None,
            name: VOLUME.to_owned(),
            size_bytes: VOLUME_BYTES,
            pool: None,
            block_bytes: None,
            object_bytes: Some(OBJECT_BYTES),
        },
    )?;
    let _: ExportInfo = client.post("/v1/exports", &export_of(VOLUME))?;
    let spread: Vec<String> = volume
        .shares
        .iter()
        .map(|share| share.objects.to_string())
        .collect();
    report.line(&format!(
        "pool:      one sparse file of {}; volume {VOLUME} of {} in {} objects on {} shards ({})",
        Size(POOL_BYTES),
        Size(VOLUME_BYTES),
        VOLUME_BYTES / OBJECT_BYTES,
        spread.len(),
        spread.join(" + "),
    ))?;
    report.progress("filling the volume".to_owned());
    let start = Instant::now();
    fill(&daemon.nbd_socket())?;
    let rate = VOLUME_BYTES as f64 / (1 << 20) as f64 / start.elapsed().as_secs_f64();
    report.line(&format!(
        "fill:      every block written once through {}, {rate:.0} MiB/s",
        daemon.nbd_socket().display()
    ))?;
    Ok(daemon)
}

fn export_of(view: &str) -> CreateExport {
    CreateExport {
        view: view.to_owned(),
        name: None,
        read_only: false,
        allow_snapshots: false,
        pool: None,
    }
}

/// The load, the snapshot in its middle, the proof, the figures.
fn show(arguments: &DemoArguments, daemon: &Daemon, report: &Report) -> Result<(), Failure> {
    let mut run = Run::start(arguments, daemon)?;
    let mut parts = Vec::new();
    let mut taken = None;
    for (phase, (name, length)) in PARTS.into_iter().enumerate() {
        run.shared.phase.store(phase, Ordering::Relaxed);
        let start = Instant::now();
        if name == "during" {
            run.watch(name, SNAPSHOT_AFTER, report)?;
            taken = Some(take_snapshot(daemon, &run.shared, report)?);
        }
        run.watch(name, length.saturating_sub(start.elapsed()), report)?;
        parts.push((name, start.elapsed()));
    }
    run.shared.phase.store(PHASES - 1, Ordering::Relaxed);
    let (command, snapshot) = taken.expect("one of the parts is the one with the snapshot");

    report.progress("reading the snapshot while the load goes on".to_owned());
    let view = format!("{VOLUME}@{SNAPSHOT}");
    let _: ExportInfo = daemon.client.post("/v1/exports", &export_of(&view))?;
    let first = read_whole(&daemon.nbd_socket(), &view)?;
    let (history, results) = run.finish()?;
    report.progress("reading the snapshot again, and the volume".to_owned());
    let second = read_whole(&daemon.nbd_socket(), &view)?;
    let live = read_whole(&daemon.nbd_socket(), VOLUME)?;

    let shown = proof::check(&first.numbers, &history, command)
        .map_err(|flaw| Error::failure(format!("THE SNAPSHOT DOES NOT SHOW ONE INSTANT: {flaw}")))?;
    same_twice(&first, &second)?;
    moved_on(&live, &history)?;
    say_proof(report, &shown, &first, &live, &results)?;
    say_figures(report, parts, &results, &snapshot)
}

/// The lanes of the load.
struct Run {
    shared: Arc<Shared>,
    lanes: Vec<JoinHandle<Result<LaneResult, LaneError>>>,
    failed: mpsc::Receiver<String>,
}

impl Run {
    fn start(arguments: &DemoArguments, daemon: &Daemon) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            phase: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            completed: AtomicUsize::new(0),
        });
        let (say_failed, failed) = mpsc::channel();
        let lanes = u64::from(arguments.connections);
        let lanes = (0..lanes).map(|lane| {
            let options = LaneOptions {
                socket: daemon.nbd_socket(),
                export: VOLUME.to_owned(),
                lane,
                lanes,
                blocks: BLOCKS,
                depth: usize::from(arguments.depth),
            };
            load::start(options, shared.clone(), say_failed.clone())
        });
        let lanes: Result<Vec<_>, _> = lanes.collect();
        Ok(Self {
            lanes: lanes.map_err(|error| Error::failure(format!("no thread for the load: {error}")))?,
            shared,
            failed,
        })
    }

    /// Lets the load go on for a while.
    fn watch(&self, name: &str, length: Duration, report: &Report) -> Result<(), Failure> {
        let start = Instant::now();
        let before = self.shared.completed.load(Ordering::Relaxed);
        while let Some(left) = length.checked_sub(start.elapsed()) {
            match self.failed.recv_timeout(left.min(Duration::from_millis(200))) {
                Ok(message) => return Err(Error::failure(format!("the load failed: {message}")).into()),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                // All lanes have gone without a word of failure: `finish` says why.
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            let completed = self.shared.completed.load(Ordering::Relaxed) - before;
            let rate = completed as f64 / start.elapsed().as_secs_f64();
            report.progress(format!("load, {name}: {} requests/s", grouped(rate as u64)));
        }
        Ok(())
    }

    /// Ends the load; what the clients saw.
    fn finish(&mut self) -> Result<(History, Vec<LaneResult>), Failure> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut history = History::default();
        let mut results = Vec::new();
        for lane in self.lanes.drain(..) {
            let result = lane
                .join()
                .map_err(|_| Error::failure("a thread of the load broke down"))?;
            let mut result = result.map_err(|error| Error::failure(format!("the load failed: {error}")))?;
            history.lanes.push(std::mem::take(&mut result.writes));
            results.push(result);
        }
        Ok((history, results))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn take_snapshot(
    daemon: &Daemon,
    shared: &Shared,
    report: &Report,
) -> Result<(Command, SnapshotInfo), Failure> {
    let request = CreateSnapshot {
        volumes: vec![VOLUME.to_owned()],
        name: SNAPSHOT.to_owned(),
        pool: None,
        hold_limit_ns: None,
    };
    let given_ns = shared.now_ns();
    let info: SnapshotInfo = daemon.client.post("/v1/snapshots", &request)?;
    let returned_ns = shared.now_ns();
    report.line(&format!(
        "snapshot:  {} in the middle of the load; durable after {}, command took {}",
        info.name,
        time(info.durable_ns),
        time(returned_ns - given_ns)
    ))?;
    let command = Command {
        given_ns,
        returned_ns,
    };
    Ok((command, info))
}

/// Everything that an export shows.
struct Whole {
    checksum: u32,
    numbers: Vec<u64>,
}

fn connect(socket: &Path, export: &str) -> Result<Connection, Failure> {
    nbd_client::connect(socket, export).map_err(|error| Error::failure(format!("{export}: {error}")).into())
}

fn failed(error: &RequestFailed) -> Failure {
    Error::failure(error.to_string()).into()
}

/// Writes the first content of every block.
fn fill(socket: &Path) -> Result<(), Failure> {
    let mut connection = connect(socket, VOLUME)?;
    let mut memory = vec![0; SWEEP_BYTES];
    let wait = |connection: &mut Connection| -> Result<(), RequestFailed> {
        match connection.wait()? {
            Some(completed) => Ok(completed.result?),
            None => Ok(()),
        }
    };
    let sweep = |connection: &mut Connection, memory: &mut [u8]| -> Result<(), RequestFailed> {
        for offset in (0..VOLUME_BYTES).step_by(SWEEP_BYTES) {
            let first = offset / BLOCK_BYTES as u64;
            for (block, bytes) in (first..).zip(memory.chunks_exact_mut(BLOCK_BYTES)) {
                stamp::fill(bytes, block, 0);
            }
            connection.send_write(offset, memory, false)?;
            if connection.in_flight() >= SWEEP_DEPTH {
                wait(connection)?;
            }
        }
        while connection.in_flight() > 0 {
            wait(connection)?;
        }
        connection.flush()
    };
    sweep(&mut connection, &mut memory).map_err(|error| failed(&error))?;
    connection.close();
    Ok(())
}

/// Reads a whole export: its checksum, and the number of the write in each block.
fn read_whole(socket: &Path, export: &str) -> Result<Whole, Failure> {
    let mut connection = connect(socket, export)?;
    let mut whole = Whole {
        checksum: 0,
        numbers: Vec::with_capacity(BLOCKS as usize),
    };
    for offset in (0..VOLUME_BYTES).step_by(SWEEP_BYTES) {
        let data = connection
            .read(offset, SWEEP_BYTES as u32)
            .map_err(|error| failed(&error))?;
        whole.checksum = crc32c::crc32c_append(whole.checksum, &data);
        proof::read_numbers(&data, offset / BLOCK_BYTES as u64, &mut whole.numbers)
            .map_err(|flaw| Error::failure(format!("{export}: {flaw}")))?;
        connection.recycle(data);
    }
    connection.close();
    Ok(whole)
}

fn same_twice(first: &Whole, second: &Whole) -> Result<(), Failure> {
    if (first.checksum, &first.numbers) == (second.checksum, &second.numbers) {
        return Ok(());
    }
    let message = format!(
        "THE SNAPSHOT CHANGED: its checksum was {:08x} and is {:08x}",
        first.checksum, second.checksum
    );
    Err(Error::failure(message).into())
}

/// The volume has to show the last write of every block.
fn moved_on(live: &Whole, history: &History) -> Result<(), Failure> {
    let mut last = vec![0; live.numbers.len()];
    for lane in &history.lanes {
        for (write, number) in lane.iter().zip(1u64..) {
            last[write.block as usize] = number;
        }
    }
    match last
        .iter()
        .zip(&live.numbers)
        .position(|(last, live)| last != live)
    {
        None => Ok(()),
        Some(block) => {
            let message = format!("THE VOLUME LOST A WRITE: block {block} does not hold its last one");
            Err(Error::failure(message).into())
        }
    }
}

fn say_proof(
    report: &Report,
    shown: &Shown,
    snapshot: &Whole,
    live: &Whole,
    results: &[LaneResult],
) -> Result<(), Failure> {
    let changed = snapshot
        .numbers
        .iter()
        .zip(&live.numbers)
        .filter(|(then, now)| then != now)
        .count();
    let reads: u64 = results.iter().map(|result| result.reads_verified).sum();
    report.line(&format!(
        "proof:     the snapshot shows one instant: it has {} writes of the load and lacks {};\n           \
         every write that was acknowledged before one of them was sent is in it ({} were under way);\n           \
         everything acknowledged before the command is in it, nothing sent after its return is.\n           \
         Checksum {:08x}, twice, with the load going on in between. The volume moved on: {} of\n           \
         {} blocks differ, each holds its last write. {} reads under load showed the last write.",
        grouped(shown.writes_in),
        grouped(shown.writes_out),
        grouped(shown.close_calls),
        snapshot.checksum,
        grouped(changed as u64),
        grouped(BLOCKS),
        grouped(reads),
    ))
}

fn say_figures(
    report: &Report,
    parts: Vec<(&'static str, Duration)>,
    results: &[LaneResult],
    snapshot: &SnapshotInfo,
) -> Result<(), Failure> {
    let parts: Vec<Figures> = parts
        .into_iter()
        .enumerate()
        .map(|(phase, (name, elapsed))| {
            let mut latencies = Latencies::new();
            for result in results {
                let lane = &result.latencies[phase];
                latencies.reads.add(&lane.reads).expect("equal bounds");
                latencies.writes.add(&lane.writes).expect("equal bounds");
            }
            Figures {
                name,
                elapsed,
                latencies,
            }
        })
        .collect();
    report.line(&format!("\n{}\n", figures(&parts)))?;
    let longest = if snapshot.answers_held == 0 {
        String::new()
    } else {
        format!(", the longest for {}", time(snapshot.answer_held_ns_max))
    };
    report.line(&format!(
        "The snapshot held {} answers{longest}; no shard held answers for longer than {}.\n",
        snapshot.answers_held,
        time(snapshot.hold_ns_max)
    ))
}
