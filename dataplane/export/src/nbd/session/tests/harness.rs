//! The world around a session: a pool that counts, shards that answer in any order, a client that reads replies.

use crate::nbd::client::{Chunk, ReplyHead, parse_chunk, parse_head};
use crate::nbd::wire::{self, ReplyError, RequestHeader, chunk, option};
use crate::nbd::{
    ALLOCATION_CONTEXT_ID, Limits, Receive, Send, Session, SessionOptions, client, session_tag,
};
use crate::{Export, ExportTable, PoolIndex};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use stillpoint_processor::host_view::{HostView, Placement};
use stillpoint_processor::ports::{Buffer, BufferPool, Room};
use stillpoint_processor::{
    BLOCK_BYTES, CHANGED, CHANGED_TO_HOLE, RequestError, RequestKind, ShardAnswer, ShardRequest, SnapshotId,
    View, VolumeId,
};

pub const TAG: u32 = 0xabcd_1234;

/// A pool with a limit that fills what it gives with garbage.
pub struct Pool {
    pub held_bytes: usize,
    pub limit_bytes: usize,
    /// What it has when nobody holds anything.
    pub total_bytes: usize,
}

impl Pool {
    pub fn new(bytes: usize) -> Self {
        Self {
            held_bytes: 0,
            limit_bytes: bytes,
            total_bytes: bytes,
        }
    }
}

impl BufferPool for Pool {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        assert!(
            length_bytes <= stillpoint_processor::PART_BYTES_MAX && length_bytes.is_multiple_of(BLOCK_BYTES)
        );
        if self.held_bytes + length_bytes > self.limit_bytes {
            return None;
        }
        self.held_bytes += length_bytes;
        let mut buffer = Buffer::owned(length_bytes);
        buffer.bytes_mut().fill(0xa5);
        Some(buffer)
    }

    fn give(&mut self, buffer: Buffer) {
        self.held_bytes -= buffer.capacity();
    }

    fn room(&self, _length_bytes: usize) -> Room {
        Room {
            free_bytes: self.limit_bytes - self.held_bytes,
            bytes: self.total_bytes,
        }
    }
}

/// A generator of numbers that a seed determines.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end.max(1)
    }
}

/// Data by shard and block.
pub type Blocks = BTreeMap<(u16, u64), Vec<u8>>;

/// All shards of a pool, one volume.
#[derive(Default)]
pub struct Shards {
    pub blocks: Blocks,
    pub pending: Vec<ShardRequest>,
    /// Every request that came: kind, blocks, shard.
    pub seen: Vec<(RequestKind, u32, u16)>,
    /// What was there when a snapshot was taken.
    pub snapshots: BTreeMap<SnapshotId, Blocks>,
    /// Parts (counted from now) that fail, and how.
    pub fail: BTreeMap<usize, RequestError>,
}

impl Shards {
    fn serve(&mut self, mut request: ShardRequest) -> ShardAnswer {
        assert_eq!(session_tag(request.token), TAG);
        let number = self.seen.len();
        self.seen.push((request.kind, request.blocks, request.shard.0));
        let result = match self.fail.get(&number) {
            Some(&error) => Err(error),
            None => Ok(()),
        };
        let mut valid_bytes = 0;
        if result.is_ok() {
            valid_bytes = self.apply(&mut request);
        }
        ShardAnswer {
            token: request.token,
            result,
            buffer: request.buffer,
            valid_bytes,
            since_ns: 0,
        }
    }

    fn apply(&mut self, request: &mut ShardRequest) -> u32 {
        let (shard, first) = (request.shard.0, request.first.0);
        let keys = (first..first + u64::from(request.blocks)).map(|block| (shard, block));
        match request.kind {
            RequestKind::Read => {
                let bytes = request.buffer.as_mut().expect("memory to read into").bytes_mut();
                for (key, to) in keys.zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
                    match self.blocks.get(&key) {
                        Some(block) => to.copy_from_slice(block),
                        None => to.fill(0),
                    }
                }
            }
            RequestKind::Write { .. } => {
                let bytes = request.buffer.as_mut().expect("data").bytes_mut();
                let data = request.skip_bytes as usize..(request.skip_bytes + request.length_bytes) as usize;
                assert!(data.end <= request.blocks as usize * BLOCK_BYTES);
                for (index, key) in keys.enumerate() {
                    let block = self.blocks.entry(key).or_insert_with(|| vec![0; BLOCK_BYTES]);
                    let start = index * BLOCK_BYTES;
                    let (from, to) = (data.start.max(start), data.end.min(start + BLOCK_BYTES));
                    block[from - start..to - start].copy_from_slice(&bytes[from..to]);
                }
                bytes.fill(0x5a); // the owner may merge into it
            }
            RequestKind::Discard { .. } => {
                for key in keys {
                    self.blocks.remove(&key);
                }
            }
            RequestKind::BlockStatus => {
                let states = keys.map(|key| u32::from(!self.blocks.contains_key(&key)));
                return tell(request.buffer.as_mut(), states);
            }
            RequestKind::Changes { base } => {
                let then = &self.snapshots[&base.snapshot];
                let state = |key| match (self.blocks.get(&key), then.get(&key)) {
                    (now, then) if now == then => 0,
                    (Some(_), _) => CHANGED,
                    (None, _) => CHANGED | CHANGED_TO_HOLE,
                };
                // A shard tells the last run to its end where it can.
                let end = first + u64::from(request.blocks);
                let last = state((shard, end - 1));
                let beyond = (end..end + 700).map(|block| state((shard, block)));
                let states = keys.map(state).chain(beyond.take_while(|&state| state == last));
                return tell(request.buffer.as_mut(), states);
            }
            RequestKind::Flush | RequestKind::Cache => {}
        }
        0
    }
}

/// Fills a buffer with runs of states, as a shard does; gives how many bytes.
fn tell(buffer: Option<&mut Buffer>, states: impl Iterator<Item = u32>) -> u32 {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for state in states {
        match runs.last_mut() {
            Some((blocks, last)) if *last == state => *blocks += 1,
            _ => runs.push((1, state)),
        }
    }
    let memory = buffer.expect("memory to answer in").bytes_mut();
    let words = runs.iter().flat_map(|&(blocks, state)| [blocks, state]);
    let mut valid = 0;
    for (to, word) in memory.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
        valid += 4;
    }
    valid
}

/// What the client heard of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Pieces of data by offset.
    pub data: BTreeMap<u64, Vec<u8>>,
    /// What the first context told.
    pub extents: Vec<(u32, u32)>,
    /// What each context told.
    pub contexts: BTreeMap<u32, Vec<(u32, u32)>>,
    pub errors: Vec<(ReplyError, Option<u64>)>,
    pub content_chunks: usize,
    pub done: bool,
}

impl Heard {
    /// The data of a read that begins at `offset`, put together.
    pub fn bytes(&self, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (&at, piece) in &self.data {
            assert_eq!(
                at,
                offset + bytes.len() as u64,
                "chunks neither overlap nor leave gaps"
            );
            bytes.extend_from_slice(piece);
        }
        bytes
    }

    pub fn error(&self) -> Option<ReplyError> {
        self.errors.first().map(|&(error, _)| error)
    }
}

/// A session and everything around it.
pub struct World {
    pub session: Session,
    pub pool: Pool,
    pub shards: Shards,
    pub random: Random,
    /// Bytes of the client that the session has not read.
    pub unread: VecDeque<u8>,
    /// Bytes of the session that the client has not understood.
    pub heard: Vec<u8>,
    /// At most so many bytes per receive and per send.
    pub chunk: usize,
    /// Whether shards answer.
    pub answering: bool,
    /// Whether the client takes what is sent.
    pub listening: bool,
    reads: BTreeMap<u64, (u64, u32)>,
    next_cookie: u64,
    pub replies: BTreeMap<u64, Heard>,
    send: Option<Send>,
}

pub fn view(size_bytes: u64, block_bytes: u32, read_only: bool) -> HostView {
    HostView {
        view: View {
            volume: VolumeId(1),
            snapshot: read_only.then_some(SnapshotId(9)),
        },
        placement: Placement {
            shard_count: 3,
            rotation: 1,
            object_blocks: 256,
        },
        size_bytes,
        block_bytes,
        read_only,
    }
}

pub fn table(size_bytes: u64) -> Arc<ExportTable> {
    let export = |name: &str, block_bytes, read_only| Export {
        name: name.into(),
        pool: PoolIndex(0),
        description: format!("about {name}"),
        host_view: view(size_bytes, block_bytes, read_only),
    };
    Arc::new(ExportTable::new([
        export("disk", 512, false),
        export("disk@noon", 512, true),
        export("big-blocks", 4096, false),
    ]))
}

impl World {
    pub fn new(exports: Arc<ExportTable>) -> Self {
        Self::with_limits(exports, Limits::default(), usize::MAX)
    }

    pub fn with_limits(exports: Arc<ExportTable>, limits: Limits, pool_bytes: usize) -> Self {
        let options = SessionOptions {
            tag: TAG,
            exports,
            limits,
        };
        Self {
            session: Session::new(options),
            pool: Pool {
                held_bytes: 0,
                limit_bytes: pool_bytes,
                total_bytes: pool_bytes,
            },
            shards: Shards::default(),
            random: Random(0x9e37_79b9_7f4a_7c15),
            unread: VecDeque::new(),
            heard: Vec::new(),
            chunk: usize::MAX,
            answering: true,
            listening: true,
            reads: BTreeMap::new(),
            next_cookie: 1,
            replies: BTreeMap::new(),
            send: None,
        }
    }

    /// A session in the transmission phase of `disk`.
    pub fn connected(size_bytes: u64, structured: bool) -> Self {
        let mut world = Self::new(table(size_bytes));
        world.connect("disk", structured);
        world
    }

    pub fn connect(&mut self, name: &str, structured: bool) {
        self.connect_with(name, structured, &[b"base:allocation"]);
    }

    /// The same with these metadata contexts.
    pub fn connect_with(&mut self, name: &str, structured: bool, contexts: &[&[u8]]) {
        self.unread.extend(hello_with(name, structured, contexts));
        self.run();
        assert_eq!(self.export_name(), Some(name));
        self.heard.clear();
    }

    pub fn export_name(&self) -> Option<&str> {
        self.session.export().map(|export| export.name.as_str())
    }

    /// One turn of the poll loop; false if nothing happened.
    pub fn turn(&mut self) -> bool {
        let mut moved = false;
        if self.answering && !self.shards.pending.is_empty() {
            self.answer_one();
            moved = true;
        }
        while let Some(request) = self.session.next_request(&mut self.pool) {
            self.shards.pending.push(request);
            moved = true;
        }
        if !self.unread.is_empty()
            && let Some(receive) = self.session.receive(&mut self.pool)
        {
            self.give_bytes(receive);
            moved = true;
        }
        if self.listening {
            if self.send.is_none() {
                self.send = self.session.next_send(&mut self.pool);
            }
            if let Some(send) = self.send.take() {
                assert!(send.pieces().count() <= crate::nbd::PIECES_MAX);
                let mut count = 0;
                for piece in send.pieces() {
                    let taken = piece.len().min(self.chunk - count);
                    self.heard.extend_from_slice(&piece[..taken]);
                    count += taken;
                }
                self.session.sent(send, count, &mut self.pool);
                moved = true;
            }
        }
        moved
    }

    /// A shard answers any of the parts it has.
    pub fn answer_one(&mut self) {
        let index = self.random.below(self.shards.pending.len() as u64) as usize;
        let request = self.shards.pending.swap_remove(index);
        let answer = self.shards.serve(request);
        self.session.answer(answer, &mut self.pool);
    }

    fn give_bytes(&mut self, mut receive: Receive) {
        let memory = receive.memory();
        let count = memory.len().min(self.unread.len()).min(self.chunk);
        take_front(&mut self.unread, &mut memory[..count]);
        self.session.received(receive, count, &mut self.pool);
    }

    /// Turns until nothing happens any more.
    pub fn run(&mut self) {
        let mut turns = 0;
        while self.turn() {
            turns += 1;
            assert!(turns < 10_000_000, "a session that never rests");
        }
        if self.session.export().is_some() && !self.reads_nothing() {
            self.understand();
        }
    }

    fn reads_nothing(&self) -> bool {
        self.next_cookie == 1
    }

    /// Queues a request with its payload; its cookie.
    pub fn ask(
        &mut self,
        command: u16,
        flags: u16,
        offset_bytes: u64,
        length_bytes: u32,
        data: &[u8],
    ) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if command == wire::command::READ {
            self.reads.insert(cookie, (offset_bytes, length_bytes));
        }
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset_bytes,
            length_bytes,
        };
        self.unread.extend(header.encode());
        self.unread.extend(data);
        cookie
    }

    /// Asks, runs, and returns what was heard.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Heard {
        let cookie = self.ask(command, flags, offset, length, data);
        self.run();
        let heard = self.replies.remove(&cookie).unwrap_or_default();
        assert!(
            heard.done,
            "an answer to command {command} flags {flags} at {offset}+{length}"
        );
        heard
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let heard = self.call(wire::command::WRITE, 0, offset, data.len() as u32, data);
        assert_eq!(heard.errors, [], "write at {offset}");
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        let heard = self.call(wire::command::READ, 0, offset, length, &[]);
        assert_eq!(heard.errors, [], "read at {offset}");
        heard.bytes(offset)
    }

    /// Reads whole replies off what was heard.
    pub fn understand(&mut self) {
        let mut at = 0;
        while let Some((head, length)) = parse_head(&self.heard[at..]).expect("a reply") {
            let body = at + length;
            let end = match head {
                ReplyHead::Simple(reply) => {
                    let read = self.reads.get(&reply.cookie).copied();
                    let length = read
                        .filter(|_| reply.error == 0)
                        .map_or(0, |(_, length)| length as usize);
                    let Some(data) = self.heard.get(body..body + length) else {
                        break;
                    };
                    let heard = self.replies.entry(reply.cookie).or_default();
                    assert!(!heard.done, "one reply per request");
                    heard.done = true;
                    if reply.error != 0 {
                        heard.errors.push((ReplyError::from_number(reply.error), None));
                    }
                    if let Some((offset, _)) = read.filter(|_| length > 0) {
                        heard.data.insert(offset, data.to_vec());
                    }
                    body + length
                }
                ReplyHead::Chunk(head) => {
                    let end = body + head.length_bytes as usize;
                    let Some(payload) = self.heard.get(body..end) else {
                        break;
                    };
                    let heard = self.replies.entry(head.cookie).or_default();
                    assert!(!heard.done, "nothing after the last chunk");
                    heard.done = head.flags & chunk::DONE != 0;
                    match parse_chunk(head.kind, payload).expect("a chunk") {
                        Chunk::None => assert!(heard.done),
                        Chunk::Data { offset_bytes, bytes } => {
                            heard.content_chunks += 1;
                            let before = heard.data.insert(offset_bytes, bytes.to_vec());
                            assert_eq!(before, None);
                        }
                        Chunk::Hole { .. } => panic!("holes are not sent"),
                        Chunk::Extents { context, extents } => {
                            heard.content_chunks += 1;
                            if context == ALLOCATION_CONTEXT_ID {
                                heard.extents.clone_from(&extents);
                            }
                            let before = heard.contexts.insert(context, extents);
                            assert_eq!(before, None, "one chunk per context");
                        }
                        Chunk::Error {
                            error,
                            offset_bytes,
                            message,
                        } => {
                            assert_eq!(message, error.message().as_bytes());
                            heard.errors.push((error, offset_bytes));
                        }
                    }
                    end
                }
            };
            at = end;
        }
        self.heard.drain(..at);
    }

    /// Closes the connection, brings everything back and checks that nothing is left behind.
    pub fn close(mut self) {
        self.session.abandon(&mut self.pool);
        if let Some(send) = self.send.take() {
            self.session.sent(send, 0, &mut self.pool);
        }
        assert!(self.session.wants_close());
        assert!(self.session.next_request(&mut self.pool).is_none());
        assert!(self.session.next_send(&mut self.pool).is_none());
        assert!(self.session.receive(&mut self.pool).is_none());
        while let Some(request) = self.shards.pending.pop() {
            assert!(!self.session.is_drained());
            let answer = self.shards.serve(request);
            self.session.answer(answer, &mut self.pool);
        }
        assert!(self.session.is_drained());
        assert_eq!(self.pool.held_bytes, 0, "every buffer came back");
    }
}

/// Moves bytes off the front.
pub fn take_front(bytes: &mut VecDeque<u8>, to: &mut [u8]) {
    let taken = bytes.drain(..to.len());
    to.iter_mut().zip(taken).for_each(|(to, byte)| *to = byte);
}

/// A client's negotiation, from its flags to `GO`.
pub fn hello(name: &str, structured: bool) -> Vec<u8> {
    hello_with(name, structured, &[b"base:allocation"])
}

/// The same with these metadata contexts.
pub fn hello_with(name: &str, structured: bool, contexts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    if structured {
        bytes.extend(client::encode_option(option::STRUCTURED_REPLY, &[]));
        bytes.extend(client::encode_option(
            option::SET_META_CONTEXT,
            &queries(name, contexts),
        ));
    }
    bytes.extend(client::encode_option(option::GO, &client::encode_go(name, &[])));
    bytes
}

/// Data of a metadata context option.
pub fn queries(name: &str, queries: &[&[u8]]) -> Vec<u8> {
    let mut data = client::string(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend(client::string(query));
    }
    data
}
