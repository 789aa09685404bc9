//! What no client should send, sent to the real program: hand-made cases, and recorded sessions with random damage.
//!
//! Whatever comes, the process lives, a good client is served, no byte changes that no well-formed request named, and
//! everything that was taken comes back.

mod handshake;
mod mutated;
mod request_cases;
mod requests;

use crate::support::good_client::GoodClient;
use crate::support::nbd::Connection;
use crate::support::process::{descriptors, resident_bytes};
use crate::support::raw::{Raw, hello};
use crate::support::{Appliance, list, number};
use stillpoint_simulator::random::mix;

/// Size of the volumes that are attacked.
const VOLUME_BYTES: u64 = 4 << 20;
/// Resident memory may grow by so much for good: the buffers of two processors and what the allocator keeps.
const GROWTH_BYTES: u64 = 192 << 20;

/// A daemon with volumes full of a known content under attack, and a good client on another.
struct Siege {
    appliance: Appliance,
    good: GoodClient,
    pid: u32,
    descriptors: usize,
    resident_bytes: u64,
}

/// What the block-sized piece at `offset` of a volume holds at first: never the magic of a request.
fn content(offset: u64) -> [u8; 8] {
    (mix(offset) | 0x8080_8080_8080_8080).to_le_bytes()
}

/// All of a volume at first.
fn contents() -> Vec<u8> {
    (0..VOLUME_BYTES / 8).flat_map(|word| content(word * 8)).collect()
}

impl Siege {
    /// Volumes (and exports, through which snapshots may be taken) `v0`, `v1`, ... with 512-byte blocks, and a read-only export `ro` of the first.
    fn begin(volumes: usize, arguments: &[&str]) -> Self {
        let appliance = Appliance::started(&[&["--processors", "2"], arguments].concat());
        appliance.create_pool("p", 1, "1GiB", &[]);
        let create = |name: &str| {
            let size = VOLUME_BYTES.to_string();
            let more = ["--block-size", "512", "--object-size", "1MiB"];
            appliance.run(&[&["volume", "create", name, "--size", &size], &more[..]].concat());
            appliance.run(&["export", "create", name, "--allow-snapshots"]);
        };
        create("good");
        for volume in 0..volumes {
            let name = format!("v{volume}");
            create(&name);
            let mut connection = appliance.connect(&name);
            let bytes = contents();
            for offset in (0..bytes.len()).step_by(1 << 20) {
                connection
                    .write(offset as u64, &bytes[offset..offset + (1 << 20)], false)
                    .unwrap_or_else(|error| panic!("{error}"));
            }
        }
        appliance.run(&["export", "create", "v0", "--name", "ro", "--read-only"]);
        let good = GoodClient::start(&appliance.nbd_socket(), "good", 7);
        good.wait_for(100);
        let pid = appliance.pid();
        let mut siege = Self {
            appliance,
            good,
            pid,
            descriptors: 0,
            resident_bytes: resident_bytes(pid),
        };
        siege.wait_until_alone();
        siege.descriptors = descriptors(pid);
        siege
    }

    /// Waits until only the good client is connected.
    fn wait_until_alone(&self) {
        self.appliance.wait_until("the attackers are gone", || {
            number(&self.appliance.run(&["status"]), "/connections") == 1
        });
    }

    /// A connection to an export that was chosen properly.
    fn chosen(&self, export: &str, structured: bool, wanted: &[u16]) -> Raw {
        let mut raw = Raw::open(&self.appliance.nbd_socket()).expect("greeted");
        raw.send(&hello(export, structured, wanted));
        raw.skip_options();
        raw
    }

    /// # Panics
    /// If there are snapshots: nothing malformed takes one.
    fn assert_no_snapshots(&self) {
        let found = self.appliance.run(&["snapshot", "list"]);
        assert!(list(&found, "").is_empty(), "{found:#}");
    }

    /// All of a volume.
    fn read(&self, volume: &str) -> Vec<u8> {
        let mut connection = Connection::open(&self.appliance.nbd_socket(), volume).expect("served");
        connection
            .read_all()
            .unwrap_or_else(|error| panic!("{volume}: {error}"))
    }

    /// Ends it.
    ///
    /// # Panics
    /// If the daemon is not the same process as before with the same descriptors, if it has grown, or if the good client
    /// was not served.
    fn end(self) {
        self.good.wait_for(100);
        self.wait_until_alone();
        assert_eq!(self.appliance.pid(), self.pid);
        assert_eq!(
            number(&self.appliance.run(&["status"]), "/pid"),
            u64::from(self.pid),
            "the process lives"
        );
        // Fewer if the connection of a command was still being closed when they were counted.
        self.appliance.wait_until("the descriptors are back", || {
            descriptors(self.pid) <= self.descriptors
        });
        let resident = resident_bytes(self.pid);
        eprintln!(
            "resident memory: {} MiB before, {} MiB after",
            self.resident_bytes >> 20,
            resident >> 20
        );
        assert!(
            resident <= self.resident_bytes + GROWTH_BYTES,
            "it has grown to {resident} bytes"
        );
        eprintln!("the good client: {}", self.good.finish().line());
        let status = self.appliance.run(&["status"]);
        for processor in list(&status, "/processors") {
            for shard in list(processor, "/shards") {
                assert_eq!(shard["stopped"], false, "{shard}");
                assert_eq!(number(shard, "/corrupt_blocks"), 0);
            }
        }
        self.appliance.stop();
    }
}
