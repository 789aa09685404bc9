//! What clients do: one operation is cut into parts, sent, gathered and checked.

use std::fmt;

use stillpoint_processor::host_view::{HostView, Part};
use stillpoint_processor::ports::Buffer;
use stillpoint_processor::{
    BLOCK_BYTES, Base, RequestError, RequestKind, ShardAnswer, ShardRequest, ShareBlock, SnapshotId, Token,
};

use super::looks::Look;
use super::recorder::Recorder;
use super::{Checked, State, World, broken};
use crate::machine::DIRECT;
use crate::model::{Broken, Range, Tick};
use crate::stamp::{self, SECTOR_BYTES, SECTORS_PER_BLOCK, Shown};

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Reads, and compares with what may be there.
    Read(Look),
    /// Writes stamped sectors.
    Write {
        /// The number of the write.
        number: Shown,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Writes zeros, as data.
    WriteZeros {
        /// The number of the write.
        number: Shown,
    },
    /// Makes holes.
    Discard {
        /// The number of the write.
        number: Shown,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Makes everything acknowledged durable.
    Flush,
    /// Asks what is mapped.
    BlockStatus,
    /// Asks what changed since the snapshot of this number.
    Changes(u64),
    /// Reads ahead.
    Cache,
}

/// An operation that was sent.
#[derive(Debug)]
pub struct Operation {
    /// The client that waits for it.
    client: Option<usize>,
    does: Does,
    volume: u32,
    view: HostView,
    offset_bytes: u64,
    length_bytes: u64,
    sent: Tick,
    waiting: usize,
    failed: Option<RequestError>,
    /// With the buffers that came back and the bytes of them that are valid.
    parts: Vec<(Part, Option<Buffer>, u32)>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} of {} bytes at {} of volume {}{}, sent at tick {}",
            self.does,
            self.length_bytes,
            self.offset_bytes,
            self.volume,
            self.view
                .view
                .snapshot
                .map_or(String::new(), |snapshot| format!("@{}", snapshot.0)),
            self.sent
        )
    }
}

/// Low bits of a token: the part.
const PART_BITS: u32 = 16;

impl World {
    /// Sends an operation. `snapshot` is the snapshot it looks at with its size, `None` for the live volume.
    pub(super) fn send(
        &mut self,
        client: Option<usize>,
        does: Does,
        volume: u32,
        snapshot: Option<(u64, u64)>,
        offset_bytes: u64,
        length_bytes: u64,
    ) {
        let sent = self.tick();
        let target = self.volumes.get_mut(&volume).expect("clients know their volumes");
        let (view, family) = (target.host_view(snapshot), target.family);
        target.in_flight += 1;
        if matches!(does, Does::Discard { .. }) {
            self.discarded.insert(family);
        }
        if let Some(number) = does.number() {
            let range = Range {
                first: offset_bytes / SECTOR_BYTES as u64,
                count: length_bytes / SECTOR_BYTES as u64,
            };
            self.write_sent(number, client.unwrap_or(0), volume, range, sent);
        }
        self.operations_sent += 1;
        let id = self.operations_sent;
        let mut parts = Vec::new();
        match does {
            Does::Flush => {}
            Does::Discard { .. } | Does::Cache => {
                parts.extend(view.parts_without_data(offset_bytes, length_bytes))
            }
            _ => parts.extend(view.parts(offset_bytes, length_bytes)),
        }
        let requests = if does == Does::Flush {
            self.flush_requests(id, &view)
        } else {
            let numbered = (0..).zip(&parts);
            numbered
                .map(|(index, part)| {
                    request(
                        DIRECT | id << PART_BITS | index,
                        does,
                        family,
                        &view,
                        offset_bytes,
                        part,
                    )
                })
                .collect()
        };
        let operation = Operation {
            client,
            does,
            volume,
            view,
            offset_bytes,
            length_bytes,
            sent,
            waiting: requests.len(),
            failed: None,
            parts: parts.into_iter().map(|part| (part, None, 0)).collect(),
        };
        self.trace(|| format!("send   {id}: {operation}"));
        self.operations.insert(id, operation);
        for request in requests {
            self.machine.request(request);
        }
    }

    fn flush_requests(&self, id: u64, view: &HostView) -> Vec<ShardRequest> {
        self.shards()
            .map(|shard| ShardRequest {
                token: Token(DIRECT | id << PART_BITS),
                shard,
                view: view.view,
                kind: RequestKind::Flush,
                first: ShareBlock(0),
                blocks: 0,
                skip_bytes: 0,
                length_bytes: 0,
                buffer: None,
                since_ns: 0,
            })
            .collect()
    }

    /// Takes in an answer; checks the operation when it is the last one.
    pub(super) fn answered(&mut self, answer: ShardAnswer) -> Checked {
        let (id, index) = (
            (answer.token.0 & !DIRECT) >> PART_BITS,
            answer.token.0 & ((1 << PART_BITS) - 1),
        );
        let Some(operation) = self.operations.get_mut(&id) else {
            return broken(format!("operation {id} was answered more often than asked"));
        };
        if let Err(error) = answer.result {
            operation.failed = operation.failed.or(Some(error));
        }
        if let Some(part) = operation.parts.get_mut(index as usize) {
            (part.1, part.2) = (answer.buffer, answer.valid_bytes);
        }
        operation.waiting -= 1;
        if operation.waiting > 0 {
            return Ok(());
        }
        let operation = self.operations.remove(&id).expect("found above");
        let ended = self.tick();
        self.trace(|| format!("answer {id}: {operation}: {:?}", operation.failed));
        self.volume(operation.volume).in_flight -= 1;
        self.roll_back_if_idle(operation.volume);
        if let Some(client) = operation.client {
            self.think(client);
        }
        self.check(&operation, ended)
            .map_err(|Broken(why)| Broken(format!("{operation}: {why}")))
    }

    fn check(&mut self, operation: &Operation, ended: Tick) -> Checked {
        if let Some(number) = operation.does.number() {
            let durable = matches!(
                operation.does,
                Does::Write { fua: true, .. } | Does::Discard { fua: true, .. }
            );
            self.write_ended(number, operation.failed.is_none(), durable, ended);
        }
        if let Some(error) = operation.failed {
            return self.check_failure(operation, error);
        }
        if operation.client.is_some() {
            self.record(Recorder::done);
        }
        match operation.does {
            Does::Write { .. } | Does::WriteZeros { .. } | Does::Discard { .. } | Does::Cache => Ok(()),
            Does::Flush => {
                self.writes.flushed(operation.sent);
                Ok(())
            }
            Does::BlockStatus => self.check_status(operation, ended),
            Does::Changes(base) => {
                let first = operation.offset_bytes / BLOCK_BYTES as u64;
                let view = operation
                    .view
                    .view
                    .snapshot
                    .expect("two snapshots are compared")
                    .0;
                for (part, buffer, valid_bytes) in &operation.parts {
                    let bytes = buffer.as_ref().expect("the buffer comes back").bytes();
                    let first = first + part.offset_bytes / BLOCK_BYTES as u64;
                    let blocks = first..first + u64::from(part.blocks);
                    let told = &bytes[..*valid_bytes as usize];
                    self.check_changes(operation.volume, view, base, blocks, told)?;
                }
                self.coverage
                    .count("pairs of snapshots whose differences were compared");
                Ok(())
            }
            Does::Read(look) => {
                for (part, buffer, _) in &operation.parts {
                    let bytes = buffer.as_ref().expect("a read gives its buffer back").bytes();
                    let block = (operation.offset_bytes + part.offset_bytes) / BLOCK_BYTES as u64;
                    let first = block * SECTORS_PER_BLOCK;
                    let end = operation.view.size_bytes / SECTOR_BYTES as u64;
                    let sectors = (u64::from(part.blocks) * SECTORS_PER_BLOCK).min(end - first);
                    let bytes = &bytes[..sectors as usize * SECTOR_BYTES];
                    self.look_at(look, operation.volume, first, bytes, operation.sent, ended)?;
                }
                self.looked(look)
            }
        }
    }

    fn check_failure(&mut self, operation: &Operation, error: RequestError) -> Checked {
        let changes = matches!(operation.does, Does::Write { .. } | Does::WriteZeros { .. });
        let snapshot = operation.view.view.snapshot;
        let ended = snapshot.is_some_and(|id| self.snapshots[&id.0].state != State::There);
        match error {
            RequestError::NoSpace if changes => self.coverage.count("writes refused for lack of space"),
            RequestError::NotFound if ended => {
                self.coverage.count("reads of snapshots that were just deleted")
            }
            RequestError::Io | RequestError::ShardStopped if self.plan.device_errors > 0 => {
                self.coverage.count("requests failed by device errors");
            }
            RequestError::Corrupt if self.plan.corruption => self.coverage.count("damage noticed"),
            error => return broken(format!("failed: {error}")),
        }
        Ok(())
    }

    fn check_status(&mut self, operation: &Operation, ended: Tick) -> Checked {
        for (part, buffer, valid_bytes) in &operation.parts {
            let bytes = &buffer.as_ref().expect("the buffer comes back").bytes()[..*valid_bytes as usize];
            let mut block = (operation.offset_bytes + part.offset_bytes) / BLOCK_BYTES as u64;
            let last = block + u64::from(part.blocks);
            let mut previous = None;
            for pair in bytes.chunks_exact(8) {
                let word = |at: usize| u32::from_le_bytes(pair[at..at + 4].try_into().expect("four bytes"));
                let (blocks, state) = (u64::from(word(0)), word(4));
                if state > 1 || blocks == 0 || block + blocks > last || previous == Some(state) {
                    return broken(format!(
                        "status says {blocks} blocks of state {state} from block {block} on"
                    ));
                }
                previous = Some(state);
                if state == 1 {
                    let target = &self.volumes[&operation.volume];
                    let range = Range {
                        first: block * SECTORS_PER_BLOCK,
                        count: (blocks * SECTORS_PER_BLOCK).min(target.sectors() - block * SECTORS_PER_BLOCK),
                    };
                    target
                        .model
                        .check_hole(&self.writes, range, operation.sent, ended)?;
                }
                block += blocks;
            }
            if block < last && bytes.len() < BLOCK_BYTES {
                return broken(format!(
                    "status ends at block {block} of {last} though there was room"
                ));
            }
        }
        Ok(())
    }
}

impl Does {
    fn number(self) -> Option<Shown> {
        match self {
            Self::Write { number, .. } | Self::WriteZeros { number } | Self::Discard { number, .. } => {
                Some(number)
            }
            _ => None,
        }
    }
}

fn request(
    token: u64,
    does: Does,
    family: u32,
    view: &HostView,
    offset_bytes: u64,
    part: &Part,
) -> ShardRequest {
    let memory_bytes = part.blocks as usize * BLOCK_BYTES;
    let (kind, buffer) = match does {
        Does::Read(_) => (RequestKind::Read, Some(Buffer::owned(memory_bytes))),
        Does::Write { .. } | Does::WriteZeros { .. } => {
            let mut buffer = Buffer::owned(memory_bytes);
            let bytes = buffer.bytes_mut();
            // What lies around the data must never reach a device.
            bytes.fill(0xB7);
            let data = &mut bytes[part.skip_bytes as usize..(part.skip_bytes + part.length_bytes) as usize];
            let sector = (offset_bytes + part.offset_bytes) / SECTOR_BYTES as u64;
            match does {
                Does::Write { number, .. } => stamp::fill(number, family, sector, data),
                _ => data.fill(0),
            }
            let fua = matches!(does, Does::Write { fua: true, .. });
            (RequestKind::Write { fua }, Some(buffer))
        }
        Does::Discard { fua, .. } => (RequestKind::Discard { fua }, None),
        Does::BlockStatus => (RequestKind::BlockStatus, Some(Buffer::owned(BLOCK_BYTES))),
        Does::Changes(base) => {
            let base = Base {
                volume: view.view.volume,
                snapshot: SnapshotId(base),
            };
            (RequestKind::Changes { base }, Some(Buffer::owned(memory_bytes)))
        }
        Does::Cache => (RequestKind::Cache, None),
        Does::Flush => unreachable!("a flush has no parts"),
    };
    ShardRequest {
        token: Token(token),
        shard: part.shard,
        view: view.view,
        kind,
        first: part.first,
        blocks: part.blocks,
        skip_bytes: part.skip_bytes,
        length_bytes: part.length_bytes,
        buffer,
        since_ns: 0,
    }
}
