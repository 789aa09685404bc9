//! A disk with a volatile write cache, served over NBD by the test itself: what was written counts only when a flush
//! has completed. A power cut leaves of each write that was not flushed everything, nothing, or some of its sectors.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use stillpoint_export::nbd::wire::{
    GREETING_MAGIC, OPTION_MAGIC, OptionHeader, OptionReplyHeader, RequestHeader, SimpleReply, command,
    handshake_flags, info, option, option_reply, transmission_flags,
};
use stillpoint_simulator::random::Random;

const SECTOR_BYTES: usize = 512;
const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// NBD_EINVAL.
const INVALID: u32 = 22;
/// NBD_EIO.
const IO: u32 = 5;

/// The disk. It has no power yet when it is new.
pub struct VolatileDisk {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
}

struct State {
    /// What has reached the medium.
    medium: File,
    /// What reads show: the medium with the cache over it.
    shown: File,
    size_bytes: u64,
    /// In the order in which they came.
    unflushed: Vec<Unflushed>,
    powered: bool,
    lies: bool,
    flushes: u64,
    connections: Vec<UnixStream>,
}

struct Unflushed {
    offset_bytes: u64,
    bytes: Vec<u8>,
}

/// What a power cut did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cut {
    /// Writes that were not flushed, by what became of them.
    pub writes_kept: u64,
    /// None of their sectors reached the medium.
    pub writes_lost: u64,
    /// Some of their sectors did.
    pub writes_torn: u64,
    /// Sectors of all these writes that reached the medium.
    pub sectors_kept: u64,
    /// Sectors of all these writes that did not.
    pub sectors_lost: u64,
}

impl Cut {
    /// Both.
    pub fn add(&mut self, other: &Self) {
        self.writes_kept += other.writes_kept;
        self.writes_lost += other.writes_lost;
        self.writes_torn += other.writes_torn;
        self.sectors_kept += other.sectors_kept;
        self.sectors_lost += other.sectors_lost;
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VolatileDisk {
    /// A disk of zeros. Its medium is a sparse file in `directory`, its socket lies beside it.
    pub fn new(directory: &Path, name: &str, size_bytes: u64) -> Self {
        let sparse = |what: &str| {
            let path = directory.join(format!("{name}.{what}"));
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).open(path);
            let file = file.expect("a new file");
            file.set_len(size_bytes).expect("a sparse file");
            file
        };
        Self {
            state: Arc::new(Mutex::new(State {
                medium: sparse("medium"),
                shown: sparse("shown"),
                size_bytes,
                unflushed: Vec::new(),
                powered: false,
                lies: false,
                flushes: 0,
                connections: Vec::new(),
            })),
            socket: directory.join(format!("{name}.sock")),
        }
    }

    /// Where it is served while it has power.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Serves it.
    pub fn power_on(&self) {
        // The socket of the life before; there may have been none.
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).expect("a socket of ours");
        lock(&self.state).powered = true;
        let state = self.state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut now = lock(&state);
                if !now.powered {
                    return;
                }
                now.connections.extend(stream.try_clone());
                drop(now);
                let state = state.clone();
                // An error is the client's end, or the power cut.
                thread::spawn(move || serve(stream, &state));
            }
        });
    }

    /// From now on it answers flushes without doing anything.
    pub fn lie(&self) {
        lock(&self.state).lies = true;
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        lock(&self.state).flushes
    }

    /// The power of all these disks goes at the same moment: nothing is answered after it. Each write that was
    /// not flushed is kept, lost, or torn, each with the same chance.
    pub fn cut(disks: &[Self], random: &mut Random) -> Cut {
        let mut states: Vec<_> = disks.iter().map(|disk| lock(&disk.state)).collect();
        let mut cut = Cut::default();
        for state in &mut states {
            state.powered = false;
            for connection in state.connections.drain(..) {
                // It may have ended before.
                let _ = connection.shutdown(Shutdown::Both);
            }
            cut.add(&state.lose(random).expect("files of ours"));
        }
        drop(states);
        for disk in disks {
            disk.wake_listener();
        }
        cut
    }

    /// It looks at the power when somebody comes.
    fn wake_listener(&self) {
        let _ = UnixStream::connect(&self.socket);
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.powered = false;
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        self.wake_listener();
    }
}

impl State {
    fn read(&self, offset_bytes: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.shown.read_exact_at(bytes, offset_bytes)
    }

    fn write(&mut self, offset_bytes: u64, bytes: Vec<u8>) -> io::Result<()> {
        self.shown.write_all_at(&bytes, offset_bytes)?;
        self.unflushed.push(Unflushed { offset_bytes, bytes });
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        if self.lies {
            return Ok(());
        }
        for write in self.unflushed.drain(..) {
            self.medium.write_all_at(&write.bytes, write.offset_bytes)?;
        }
        Ok(())
    }

    fn lose(&mut self, random: &mut Random) -> io::Result<Cut> {
        let mut cut = Cut::default();
        let writes = std::mem::take(&mut self.unflushed);
        for write in &writes {
            let fate = random.below(3);
            let (mut kept, mut lost) = (0, 0);
            for (index, sector) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
                if fate == 0 || (fate == 1 && random.percent(50)) {
                    let offset_bytes = write.offset_bytes + (index * SECTOR_BYTES) as u64;
                    self.medium.write_all_at(sector, offset_bytes)?;
                    kept += 1;
                } else {
                    lost += 1;
                }
            }
            cut.sectors_kept += kept;
            cut.sectors_lost += lost;
            match (kept, lost) {
                (_, 0) => cut.writes_kept += 1,
                (0, _) => cut.writes_lost += 1,
                _ => cut.writes_torn += 1,
            }
        }
        for mut write in writes {
            self.medium.read_exact_at(&mut write.bytes, write.offset_bytes)?;
            self.shown.write_all_at(&write.bytes, write.offset_bytes)?;
        }
        Ok(cut)
    }

    /// Does what is asked; gives the error number of NBD.
    fn apply(&mut self, request: &RequestHeader, bytes: &mut Vec<u8>) -> Result<(), u32> {
        let end = request.offset_bytes.checked_add(u64::from(request.length_bytes));
        if end.is_none_or(|end| end > self.size_bytes) {
            return Err(INVALID);
        }
        let done = match request.command {
            command::READ => {
                bytes.resize(request.length_bytes as usize, 0);
                self.read(request.offset_bytes, bytes)
            }
            command::WRITE => self.write(request.offset_bytes, std::mem::take(bytes)),
            command::FLUSH => self.flush(),
            _ => return Err(INVALID),
        };
        done.map_err(|_| IO)
    }
}

fn serve(mut stream: UnixStream, state: &Mutex<State>) -> io::Result<()> {
    negotiate(&mut stream, lock(state).size_bytes)?;
    loop {
        let mut header = [0; RequestHeader::BYTES];
        stream.read_exact(&mut header)?;
        let request = RequestHeader::decode(&header).ok_or(io::ErrorKind::InvalidData)?;
        if request.command == command::DISC || request.length_bytes > REQUEST_BYTES_MAX {
            return Ok(());
        }
        let mut bytes = Vec::new();
        if request.command == command::WRITE {
            bytes.resize(request.length_bytes as usize, 0);
            stream.read_exact(&mut bytes)?;
        }
        let mut now = lock(state);
        if !now.powered {
            return Ok(());
        }
        let error = now.apply(&request, &mut bytes).err().unwrap_or(0);
        drop(now);
        let reply = SimpleReply {
            error,
            cookie: request.cookie,
        };
        let data = if error == 0 { &bytes[..] } else { &[] };
        stream.write_all(&[&reply.encode(), data].concat())?;
    }
}

/// Fixed newstyle, as far as libnbd goes: one export, whatever its name.
fn negotiate(stream: &mut UnixStream, size_bytes: u64) -> io::Result<()> {
    stream.write_all(&GREETING_MAGIC.to_be_bytes())?;
    stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
    let flags = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
    stream.write_all(&flags.to_be_bytes())?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut header = [0; OptionHeader::BYTES];
        stream.read_exact(&mut header)?;
        let asked = OptionHeader::decode(&header).ok_or(io::ErrorKind::InvalidData)?;
        if asked.length_bytes > REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.read_exact(&mut vec![0; asked.length_bytes as usize])?;
        let mut reply = |kind, data: &[u8]| {
            let header = OptionReplyHeader {
                option: asked.option,
                reply: kind,
                length_bytes: data.len() as u32,
            };
            stream.write_all(&[&header.encode(), data].concat())
        };
        match asked.option {
            option::GO | option::INFO => {
                let can = transmission_flags::HAS_FLAGS | transmission_flags::SEND_FLUSH;
                let mut told = info::EXPORT.to_be_bytes().to_vec();
                told.extend(size_bytes.to_be_bytes());
                told.extend(can.to_be_bytes());
                reply(option_reply::INFO, &told)?;
                reply(option_reply::ACK, &[])?;
                if asked.option == option::GO {
                    return Ok(());
                }
            }
            option::ABORT => return Err(io::ErrorKind::ConnectionAborted.into()),
            _ => reply(option_reply::ERR_UNSUP, &[])?,
        }
    }
}
