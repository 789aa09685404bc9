//! What the parts cost, without a device and without a client: nanoseconds for each step that a request takes often, and
//! for what no way through this machine can be cheaper than (a copy, an empty call of io_uring, a socket there and back).

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use stillpoint_benches::memory_device::{MemoryDevice, RecycledBuffers};
use stillpoint_benches::stats::Spread;
use stillpoint_hw::ring::{Ring, RingOptions};
use stillpoint_processor::command::EventKind;
use stillpoint_processor::format::{PoolSpec, make_pool};
use stillpoint_processor::ports::{BufferPool, MemoryTail};
use stillpoint_processor::{
    Now, Outbox, Processor, RequestKind, Shard, ShardCommand, ShardIndex, ShardOptions, ShardRequest,
    ShareBlock, Ticket, Token, View, VolumeId,
};

const BLOCK: usize = stillpoint_processor::BLOCK_BYTES;
const VIEW: View = View {
    volume: VolumeId(1),
    snapshot: None,
};

/// Measures checksums, copies, rings, the kernel's io_uring and sockets, and a shard over memory
#[derive(Debug, Parser)]
struct Options {
    /// Only what contains this
    #[arg(long)]
    only: Option<String>,
    /// Seconds for each measurement; the median of 5 is shown
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// MiB of the volume of the shard
    #[arg(long, default_value_t = 256)]
    volume_mib: usize,
    /// Requests in flight in the shard
    #[arg(long, default_value_t = 32)]
    depth: usize,
}

const REPEATS: u32 = 5;
/// Entries that are submitted together.
const ENTRIES: usize = 32;
/// A read over NBD of one block: the request, and a simple reply with the block.
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16 + BLOCK;

fn main() {
    let options = Options::parse();
    let time = Duration::from_secs_f64(options.seconds) / REPEATS;
    let measure = |name: &str, step: &mut dyn FnMut()| {
        if options
            .only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
        {
            print(name, spread_of(time, 64, step), "");
        }
    };
    let block: Vec<u8> = (0..BLOCK).map(|i| ((i * 7) >> 3) as u8).collect();
    measure("crc32c of 4 KiB, as the shard does it", &mut || {
        black_box(stillpoint_ondisk::crc32c(black_box(&block)));
    });
    measure("crc32c of 4 KiB, crc32c crate", &mut || {
        black_box(crc32c::crc32c(black_box(&block)));
    });
    let (_sender, mut ring) = rtrb::RingBuffer::<[u64; 8]>::new(256);
    measure("idle poll of an rtrb ring", &mut || {
        let _ = black_box(ring.pop());
    });
    let (_sender, channel) = crossbeam_channel::bounded::<[u64; 8]>(256);
    measure("idle poll of a bounded crossbeam channel", &mut || {
        let _ = black_box(channel.try_recv());
    });
    let (mut sender, mut receiver) = rtrb::RingBuffer::<[u64; 8]>::new(256);
    measure("push and pop through an rtrb ring", &mut || {
        let _ = sender.push(black_box([1; 8]));
        let _ = black_box(receiver.pop());
    });
    let (sender, receiver) = crossbeam_channel::bounded::<[u64; 8]>(256);
    measure("push and pop through a bounded crossbeam channel", &mut || {
        let _ = sender.try_send(black_box([1; 8]));
        let _ = black_box(receiver.try_recv());
    });
    let mut copy = vec![0u8; BLOCK];
    measure("copy of 4 KiB, in the cache", &mut || {
        black_box(&mut copy).copy_from_slice(black_box(&block));
    });
    io_uring(&measure);
    round_trips(&options, time);
    shard(&options, time);
}

/// What the way through the kernel costs: an entry that does nothing, alone and with others.
fn io_uring(measure: &dyn Fn(&str, &mut dyn FnMut())) {
    let mut ring = match Ring::new(RingOptions::default()) {
        Ok(ring) => ring,
        Err(error) => {
            let _ = writeln!(std::io::stdout(), "io_uring: {error}");
            return;
        }
    };
    let mut completions = Vec::with_capacity(ENTRIES);
    let mut turn = |entries: usize| {
        (0..entries).for_each(|_| ring.push_nothing());
        while completions.len() < entries {
            ring.submit().expect("entries that do nothing are taken");
            ring.reap(&mut completions);
        }
        completions.clear();
    };
    measure("io_uring: an entry that does nothing", &mut || turn(1));
    measure(&format!("io_uring: {ENTRIES} of them in one call"), &mut || {
        turn(ENTRIES)
    });
}

/// What a client waits for at least: its request goes to a thread that sleeps in `read`, and a reply with a block comes back.
fn round_trips(options: &Options, time: Duration) {
    let wanted = |name: &str| (options.only.as_ref()).is_none_or(|only| name.contains(only.as_str()));
    let unix = "round trip through a unix socket, 4 KiB back";
    if wanted(unix) {
        let (client, server) = UnixStream::pair().expect("a pair of sockets");
        round_trip(unix, time, client, server);
    }
    let tcp = "round trip through TCP on loopback, 4 KiB back";
    if wanted(tcp) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("has one");
        let client = TcpStream::connect(address).expect("somebody listens");
        let (server, _) = listener.accept().expect("somebody connects");
        for socket in [&client, &server] {
            socket.set_nodelay(true).expect("can be set");
        }
        round_trip(tcp, time, client, server);
    }
}

fn round_trip(
    name: &str,
    time: Duration,
    mut client: impl Read + Write,
    mut server: impl Read + Write + Send + 'static,
) {
    // It ends with its socket.
    let answering = thread::spawn(move || {
        let (mut request, reply) = ([0; REQUEST_BYTES], [0; REPLY_BYTES]);
        while server.read_exact(&mut request).is_ok() && server.write_all(&reply).is_ok() {}
    });
    let mut reply = [0; REPLY_BYTES];
    let ns = spread_of(time, 16, &mut || {
        client.write_all(&[0; REQUEST_BYTES]).expect("somebody reads");
        client.read_exact(&mut reply).expect("somebody answers");
    });
    print(name, ns, "");
    drop(client);
    answering.join().expect("ends with its socket");
}

/// Nanoseconds of a step: each sample runs `batch` steps between two looks at the clock until `time` is over.
fn spread_of(time: Duration, batch: u32, step: &mut dyn FnMut()) -> Spread {
    Spread::of((0..REPEATS).map(|_| {
        let begun = Instant::now();
        let mut steps = 0u64;
        while begun.elapsed() < time {
            for _ in 0..batch {
                step();
            }
            steps += u64::from(batch);
        }
        begun.elapsed().as_nanos() as f64 / steps as f64
    }))
}

fn print(name: &str, ns: Spread, more: &str) {
    let _ = writeln!(
        std::io::stdout(),
        "{name:52} {:>9.1} ns  ({:.1}..{:.1}){more}",
        ns.median,
        ns.min,
        ns.max
    );
}

fn shard(options: &Options, time: Duration) {
    let wanted = |name: &str| {
        options
            .only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };
    let jobs = [
        ("shard: 4 KiB random read", RequestKind::Read, true),
        (
            "shard: 4 KiB random write",
            RequestKind::Write { fua: false },
            true,
        ),
        (
            "shard: 4 KiB sequential write",
            RequestKind::Write { fua: false },
            false,
        ),
    ];
    if !jobs.iter().any(|(name, ..)| wanted(name)) {
        return;
    }
    let mut rig = Rig::new(options.volume_mib << 20, options.depth);
    rig.fill();
    for (name, kind, random) in jobs.into_iter().filter(|(name, ..)| wanted(name)) {
        let before = (rig.device().operations, rig.device().transfers, rig.answered);
        let ns = spread_of(time, 1, &mut || rig.round(kind, random));
        let requests = (rig.answered - before.2) as f64;
        let per_request = Spread {
            median: ns.median / rig.depth as f64,
            min: ns.min / rig.depth as f64,
            max: ns.max / rig.depth as f64,
        };
        let more = format!(
            "  {:.0} kIOPS of one core; per request {:.2} operations, {:.2} transfers",
            1e6 / per_request.median,
            (rig.device().operations - before.0) as f64 / requests,
            (rig.device().transfers - before.1) as f64 / requests,
        );
        print(&format!("{name}, depth {}", rig.depth), per_request, &more);
    }
}

/// One shard over memory, with as many requests in flight as are wanted.
struct Rig {
    processor: Processor<MemoryDevice, MemoryTail>,
    buffers: RecycledBuffers,
    outbox: Outbox,
    now: Now,
    blocks: u64,
    depth: usize,
    answered: u64,
    state: u64,
    next: u64,
}

impl Rig {
    fn new(volume_bytes: usize, depth: usize) -> Self {
        let pool_bytes = volume_bytes * 2 + (128 << 20);
        let mut device = MemoryDevice::new(pool_bytes);
        let spec = PoolSpec {
            pool: [3; 16],
            name: "micro".into(),
            shard_count: 1,
            created_ns: 1,
            devices: vec![([1; 16], (pool_bytes / BLOCK) as u64)],
            second_sides: Vec::new(),
        };
        let layout = make_pool(&mut device, &spec).expect("memory takes a pool");
        let now = Now {
            monotonic_ns: 1,
            wall_ns: 1,
        };
        let tail = MemoryTail::default();
        let opened = Shard::open(
            &layout,
            ShardIndex(0),
            &mut device,
            tail,
            ShardOptions::default(),
            now,
        );
        let (shard, _) = opened.expect("a new pool opens");
        let mut rig = Self {
            processor: Processor::new(device, vec![shard]),
            buffers: RecycledBuffers::default(),
            outbox: Outbox::default(),
            now,
            blocks: (volume_bytes / BLOCK) as u64,
            depth,
            answered: 0,
            state: 0x1234_5678_9ABC_DEF1,
            next: 0,
        };
        rig.create_volume();
        rig
    }

    fn device(&mut self) -> &MemoryDevice {
        self.processor.device_mut()
    }

    fn turn(&mut self) {
        self.now.monotonic_ns += 1_000;
        self.now.wall_ns += 1_000;
        self.processor.poll(self.now, &mut self.buffers, &mut self.outbox);
    }

    fn create_volume(&mut self) {
        let command = ShardCommand::CreateVolume {
            volume: VIEW.volume,
            share_blocks: self.blocks,
        };
        self.processor
            .command(ShardIndex(0), Ticket(1), command, self.now);
        while self.outbox.events.is_empty() {
            self.turn();
        }
        let event = self.outbox.events.pop().expect("looked at");
        assert_eq!(event.kind, EventKind::Done, "the volume is made");
    }

    fn fill(&mut self) {
        let step = 256;
        for first in (0..self.blocks).step_by(step) {
            self.send(RequestKind::Write { fua: false }, first, step as u32);
            self.wait_for(1);
        }
    }

    fn send(&mut self, kind: RequestKind, first: u64, blocks: u32) {
        let length_bytes = blocks as usize * BLOCK;
        let request = ShardRequest {
            token: Token(1),
            shard: ShardIndex(0),
            view: VIEW,
            kind,
            first: ShareBlock(first),
            blocks,
            skip_bytes: 0,
            length_bytes: length_bytes as u32,
            buffer: self.buffers.take(length_bytes),
            since_ns: self.now.monotonic_ns,
        };
        assert!(
            self.processor.submit(request, self.now).is_ok(),
            "depth is below the limit"
        );
    }

    fn wait_for(&mut self, answers: usize) {
        while self.outbox.answers.len() < answers {
            self.turn();
        }
        for answer in self.outbox.answers.drain(..) {
            assert_eq!(answer.result, Ok(()), "memory does not fail");
            self.buffers
                .give(answer.buffer.expect("reads and writes have buffers"));
            self.answered += 1;
        }
    }

    /// `depth` requests, and their answers.
    fn round(&mut self, kind: RequestKind, random: bool) {
        for _ in 0..self.depth {
            self.next = if random { self.random() } else { self.next + 1 } % self.blocks;
            self.send(kind, self.next, 1);
        }
        self.wait_for(self.depth);
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}
