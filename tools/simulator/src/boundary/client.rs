//! The client: sends requests, and writes down what it was answered.

use stillpoint_processor::host_view::Part;
use stillpoint_processor::ports::Buffer;
use stillpoint_processor::{
    BLOCK_BYTES, RequestError, RequestKind, ShardAnswer, ShardIndex, ShardRequest, ShareBlock, Token,
};

use super::history::{Sectors, shown};
use super::rig::{Checked, Rig, broken};
use crate::stamp::{self, SECTOR_BYTES, SECTORS_PER_BLOCK};

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    what: What,
    waiting: usize,
    failed: Option<RequestError>,
    parts: Vec<(Part, Option<Buffer>)>,
}

#[derive(Debug)]
enum What {
    /// A write or a discard of these blocks.
    Change {
        volume: u32,
        blocks: std::ops::Range<u64>,
        fua: bool,
    },
    /// For each block of the volume the state that it covers.
    Flush {
        volume: u32,
        covers: Vec<usize>,
    },
    Look {
        family: u32,
    },
}

/// Low bits of a token: the part.
const PART_BITS: u32 = 16;

impl Rig {
    /// Whether one of these blocks is being changed.
    pub(super) fn is_busy(&self, volume: u32, blocks: &std::ops::Range<u64>) -> bool {
        self.operations.values().any(|sent| match &sent.what {
            What::Change {
                volume: other,
                blocks: others,
                ..
            } => *other == volume && others.start < blocks.end && blocks.start < others.end,
            _ => false,
        })
    }

    /// Writes stamped sectors.
    pub(crate) fn send_write(&mut self, volume: u32, sector: u64, sectors: u64, fua: bool) -> Checked {
        self.history.writes += 1;
        let number = self.history.writes;
        let target = self
            .history
            .volumes
            .get_mut(&volume)
            .expect("steps know their volumes");
        let end = sector + sectors;
        let blocks = sector / SECTORS_PER_BLOCK..end.div_ceil(SECTORS_PER_BLOCK);
        for block in blocks.clone() {
            let start = block * SECTORS_PER_BLOCK;
            let within = sector.max(start) - start..end.min(start + SECTORS_PER_BLOCK) - start;
            target.blocks[block as usize].sent(within.start as usize..within.end as usize, number);
        }
        let (view, family) = (target.view(None), target.family);
        let bytes = SECTOR_BYTES as u64;
        let parts: Vec<Part> = view.parts(sector * bytes, sectors * bytes).collect();
        let buffers = parts.iter().map(|part| {
            let mut buffer = Buffer::owned(part.blocks as usize * BLOCK_BYTES);
            // What lies around the data must never reach a device.
            buffer.bytes_mut().fill(0xB7);
            let data = part.skip_bytes as usize..(part.skip_bytes + part.length_bytes) as usize;
            let first = sector + part.offset_bytes / bytes;
            stamp::fill(number, family, first, &mut buffer.bytes_mut()[data]);
            Some(buffer)
        });
        let buffers = buffers.collect();
        let what = What::Change { volume, blocks, fua };
        self.send(what, RequestKind::Write { fua }, view.view, parts, buffers)
    }

    /// Makes holes.
    pub(crate) fn send_discard(&mut self, volume: u32, block: u64, blocks: u64, fua: bool) -> Checked {
        let target = self
            .history
            .volumes
            .get_mut(&volume)
            .expect("steps know their volumes");
        let range = block..block + blocks;
        for block in range.clone() {
            target.blocks[block as usize].sent(0..SECTORS_PER_BLOCK as usize, 0);
        }
        let view = target.view(None);
        let bytes = BLOCK_BYTES as u64;
        let parts: Vec<Part> = view.parts_without_data(block * bytes, blocks * bytes).collect();
        let buffers = parts.iter().map(|_| None).collect();
        let what = What::Change {
            volume,
            blocks: range,
            fua,
        };
        self.send(what, RequestKind::Discard { fua }, view.view, parts, buffers)
    }

    /// Makes what was acknowledged durable.
    pub(crate) fn send_flush(&mut self, volume: u32) -> Checked {
        let target = &self.history.volumes[&volume];
        let covers = target.blocks.iter().map(|block| block.acknowledged()).collect();
        let view = target.view(None).view;
        let parts: Vec<Part> = (0..self.layout.shard_count)
            .map(|shard| Part {
                shard: ShardIndex(shard),
                first: ShareBlock(0),
                blocks: 0,
                skip_bytes: 0,
                length_bytes: 0,
                offset_bytes: 0,
            })
            .collect();
        let buffers = parts.iter().map(|_| None).collect();
        self.send(
            What::Flush { volume, covers },
            RequestKind::Flush,
            view,
            parts,
            buffers,
        )
    }

    fn send(
        &mut self,
        what: What,
        kind: RequestKind,
        view: stillpoint_processor::View,
        parts: Vec<Part>,
        buffers: Vec<Option<Buffer>>,
    ) -> Checked {
        self.operations_sent += 1;
        let id = self.operations_sent;
        let requests: Vec<ShardRequest> = (0..)
            .zip(parts.iter().zip(buffers))
            .map(|(index, (part, buffer))| ShardRequest {
                token: Token(id << PART_BITS | index),
                shard: part.shard,
                view,
                kind,
                first: part.first,
                blocks: part.blocks,
                skip_bytes: part.skip_bytes,
                length_bytes: part.length_bytes,
                buffer,
                since_ns: 0,
            })
            .collect();
        let sent = Sent {
            what,
            waiting: requests.len(),
            failed: None,
            parts: parts.into_iter().map(|part| (part, None)).collect(),
        };
        self.operations.insert(id, sent);
        requests.into_iter().try_for_each(|request| self.submit(request))
    }

    /// Reads a range of blocks of a volume or of a snapshot of that size; an error if any of it was refused. Writes and
    /// flushes in flight stay there.
    pub(crate) fn read(
        &mut self,
        volume: u32,
        size: u64,
        snapshot: Option<u64>,
        blocks: std::ops::Range<u64>,
    ) -> Checked<Result<Vec<Sectors>, RequestError>> {
        if blocks.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let target = &self.history.volumes[&volume];
        let family = target.family;
        let mut view = target.view(snapshot.map(|id| (id, size)));
        view.size_bytes = size * BLOCK_BYTES as u64;
        let bytes = BLOCK_BYTES as u64;
        let parts: Vec<Part> = view
            .parts(blocks.start * bytes, (blocks.end - blocks.start) * bytes)
            .collect();
        let buffers = parts
            .iter()
            .map(|part| Some(Buffer::owned(part.blocks as usize * BLOCK_BYTES)))
            .collect();
        self.looked = None;
        self.first_looked = blocks.start;
        self.send(
            What::Look { family },
            RequestKind::Read,
            view.view,
            parts,
            buffers,
        )?;
        self.turns()?;
        match self.looked.take() {
            Some(looked) => Ok(looked),
            None => broken("a read waits for a write"),
        }
    }

    /// Takes in an answer.
    pub(super) fn answered(&mut self, answer: ShardAnswer) -> Checked {
        let (id, index) = (
            answer.token.0 >> PART_BITS,
            answer.token.0 & ((1 << PART_BITS) - 1),
        );
        let Some(sent) = self.operations.get_mut(&id) else {
            return broken(format!("request {id} was answered more often than asked"));
        };
        if let Err(error) = answer.result {
            sent.failed = sent.failed.or(Some(error));
        }
        sent.parts[index as usize].1 = answer.buffer;
        sent.waiting -= 1;
        if sent.waiting > 0 {
            return Ok(());
        }
        let sent = self.operations.remove(&id).expect("found above");
        if let Some(error) = sent.failed
            && !self.may_fail(error)
        {
            return broken(format!("{:?} failed: {error}", sent.what));
        }
        self.note(sent)
    }

    fn note(&mut self, sent: Sent) -> Checked {
        let ok = sent.failed.is_none();
        match sent.what {
            What::Change { volume, blocks, fua } => {
                let target = self.history.volumes.get_mut(&volume).expect("volumes stay known");
                for block in blocks {
                    target.blocks[block as usize].answered(ok, fua);
                }
            }
            What::Flush { volume, covers } if ok => {
                let target = self.history.volumes.get_mut(&volume).expect("volumes stay known");
                for (block, state) in target.blocks.iter_mut().zip(covers) {
                    block.flushed(state);
                }
            }
            What::Flush { .. } => {}
            What::Look { family } => {
                if let Some(error) = sent.failed {
                    self.looked = Some(Err(error));
                    return Ok(());
                }
                let mut found = Vec::new();
                for (part, buffer) in &sent.parts {
                    let bytes = buffer.as_ref().expect("a read gives its buffer back").bytes();
                    let first = self.first_looked + part.offset_bytes / BLOCK_BYTES as u64;
                    found.extend(shown(
                        family,
                        first,
                        &bytes[..part.blocks as usize * BLOCK_BYTES],
                    )?);
                }
                self.looked = Some(Ok(found));
            }
        }
        Ok(())
    }
}
