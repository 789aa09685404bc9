//! NBD: a server session that is fed anything, and a client that is answered anything.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use stillpoint_export::nbd::client::{Connection, ReplyHead, parse_chunk, parse_head, take_snapshot};
use stillpoint_export::nbd::{Limits, Session, SessionOptions};
use stillpoint_export::{
    Export, ExportTable, NotTaken, PoolIndex, SnapshotNames, SnapshotTaker, SnapshotWish,
};
use stillpoint_processor::host_view::{HostView, Placement};
use stillpoint_processor::ports::{Buffer, BufferPool};
use stillpoint_processor::{
    BLOCK_BYTES, Base, RequestKind, ShardAnswer, ShardRequest, SnapshotId, View, VolumeId,
};

const VOLUME_BYTES: u64 = 8 << 20;
/// Memory that a session may have at a time: its own limit, and what that allows on top.
const POOL_BYTES: usize = 8 << 20;
/// What a client may ask the server to send, before the target has seen enough of it.
const SENT_BYTES_MAX: usize = 64 << 20;

struct Pool {
    held_bytes: usize,
}

impl BufferPool for Pool {
    fn take(&mut self, length_bytes: usize) -> Option<Buffer> {
        if self.held_bytes + length_bytes > POOL_BYTES {
            return None;
        }
        self.held_bytes += length_bytes;
        Some(Buffer::owned(length_bytes))
    }

    fn give(&mut self, buffer: Buffer) {
        self.held_bytes -= buffer.capacity();
    }
}

/// Takes a snapshot at once, or says no.
#[derive(Debug)]
struct Taker;

impl SnapshotTaker for Taker {
    fn begin(&self, name: &str) -> Result<Box<dyn SnapshotWish>, NotTaken> {
        let outcome = match name.len() {
            0 => Err(NotTaken::Invalid("it has no name".to_owned())),
            1..=128 => Ok(()),
            _ => Err(NotTaken::Unable(name.to_owned())),
        };
        Ok(Box::new(Wish(outcome)))
    }
}

#[derive(Debug)]
struct Wish(Result<(), NotTaken>);

impl SnapshotWish for Wish {
    fn outcome(&mut self) -> Option<Result<(), NotTaken>> {
        Some(self.0.clone())
    }
}

fn exports() -> Arc<ExportTable> {
    let export = |name: &str, block_bytes, read_only: bool| Export {
        name: name.into(),
        pool: PoolIndex(0),
        description: format!("about {name}"),
        host_view: HostView {
            view: View {
                volume: VolumeId(1),
                snapshot: read_only.then_some(SnapshotId(9)),
            },
            placement: Placement {
                shard_count: 3,
                rotation: 1,
                object_blocks: 256,
            },
            size_bytes: VOLUME_BYTES,
            block_bytes,
            read_only,
        },
    };
    let base = Base {
        volume: VolumeId(1),
        snapshot: SnapshotId(9),
    };
    let names: Arc<dyn SnapshotNames> = Arc::new(BTreeMap::from([(String::from("noon"), base)]));
    let exports = [
        export("disk", 512, false),
        export("disk@noon", 512, true),
        export("big-blocks", 4096, false),
    ];
    let table = ExportTable::new(exports).with_snapshots(|_| Some(Arc::clone(&names)));
    Arc::new(table.with_snapshot_takers(|export| {
        let taker: Arc<dyn SnapshotTaker> = Arc::new(Taker);
        (export.name != "big-blocks").then_some(taker)
    }))
}

/// A shard that does nothing, and looks at what it is asked.
fn answer(mut request: ShardRequest) -> ShardAnswer {
    let end = u64::from(request.skip_bytes) + u64::from(request.length_bytes);
    assert!(
        end <= u64::from(request.blocks) * BLOCK_BYTES as u64,
        "within its blocks"
    );
    // Three shards share the volume in objects of 1 MiB: none has more than three of them.
    let last = request.first.0 + u64::from(request.blocks);
    assert!(last <= 3 * 256, "within its share: {request:?}");
    let writes = matches!(
        request.kind,
        RequestKind::Write { .. } | RequestKind::Discard { .. }
    );
    assert!(
        !writes || request.view.snapshot.is_none(),
        "a snapshot is never written"
    );
    let mut valid_bytes = 0;
    if matches!(
        request.kind,
        RequestKind::BlockStatus | RequestKind::Changes { .. }
    ) {
        let memory = request.buffer.as_mut().expect("memory to answer in").bytes_mut();
        // What did not change is told to its end.
        let told = match request.kind {
            RequestKind::Changes { .. } => request.blocks + 300,
            _ => request.blocks,
        };
        memory[..4].copy_from_slice(&told.to_le_bytes());
        memory[4..8].copy_from_slice(&1u32.to_le_bytes());
        valid_bytes = 8;
    }
    ShardAnswer {
        token: request.token,
        result: Ok(()),
        buffer: request.buffer,
        valid_bytes,
        since_ns: 0,
    }
}

/// The first byte says how many bytes arrive at a time; the rest is what the client sends.
pub(super) fn server(data: &[u8]) {
    let Some((&step, mut unread)) = data.split_first() else {
        return;
    };
    let step = usize::from(step).max(1) * 16;
    let limits = Limits {
        requests: 16,
        data_bytes: 2 << 20,
    };
    let mut session = Session::new(SessionOptions {
        tag: 7,
        exports: exports(),
        limits,
    });
    let mut pool = Pool { held_bytes: 0 };
    let mut sent_bytes = 0;
    loop {
        let mut moved = false;
        if !unread.is_empty()
            && let Some(mut receive) = session.receive(&mut pool)
        {
            let memory = receive.memory();
            let count = memory.len().min(unread.len()).min(step);
            memory[..count].copy_from_slice(&unread[..count]);
            unread = &unread[count..];
            session.received(receive, count, &mut pool);
            moved = true;
        }
        while let Some(request) = session.next_request(&mut pool) {
            session.answer(answer(request), &mut pool);
            moved = true;
        }
        if let Some(send) = session.next_send(&mut pool) {
            let count = send.pieces().map(<[u8]>::len).sum();
            session.sent(send, count, &mut pool);
            sent_bytes += count;
            moved = true;
        }
        if !moved || session.wants_close() || sent_bytes > SENT_BYTES_MAX {
            break;
        }
    }
    session.abandon(&mut pool);
    assert!(
        session.is_drained() && pool.held_bytes == 0,
        "everything came back"
    );
}

/// A server that has said all it will ever say, and takes whatever it is told.
struct Stream<'a>(&'a [u8]);

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client whose server says this, from its greeting on; the first byte says whether it asks for structured replies.
pub(super) fn client(data: &[u8]) {
    let Some((&structured, said)) = data.split_first() else {
        return;
    };
    // A snapshot that is there or not: what it says is all there is to it.
    let _ = take_snapshot(&mut Stream(said), "disk", "noon");
    let Ok(mut connection) = Connection::open_with(Stream(said), "disk", structured & 1 == 1) else {
        return;
    };
    let sent = [
        connection.send_read(0, 4096),
        connection.send_read(512, 1 << 16),
        connection.send_write(4096, &[7; 4096], true),
        connection.send_flush(),
    ];
    if sent.iter().any(Result::is_err) {
        return;
    }
    while let Ok(Some(completed)) = connection.wait() {
        assert!(completed.data.len() <= 1 << 16, "never more than was asked for");
        connection.recycle(completed.data);
    }
}

/// Replies, one after the other, as they lie in memory.
pub(super) fn replies(mut data: &[u8]) {
    while let Ok(Some((head, length))) = parse_head(data) {
        assert!(length > 0 && length <= data.len());
        data = &data[length..];
        if let ReplyHead::Chunk(head) = head {
            let payload = &data[..data.len().min(head.length_bytes as usize)];
            let _ = parse_chunk(head.kind, payload);
            data = &data[payload.len()..];
        }
    }
}
