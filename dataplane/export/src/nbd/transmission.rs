//! What a request header asks for, and whether it may. Source: `proto.md`, "Request types", "Size
//! constraints" and "Error values".

use super::extents::Extents;
use super::handshake::Agreed;
use super::request::{Foreseen, InOrder, Job, Status};
use super::wire::{PAYLOAD_BYTES_MAX, ReplyError, RequestHeader, command, command_flags};
use stillpoint_processor::host_view::HostView;
use stillpoint_processor::{BLOCK_BYTES, RequestKind};

/// Longest read that may ask not to be fragmented: it fits a read window wherever it begins.
pub const DF_BYTES_MAX: u32 = 2 << 20;
/// Longest payload of a refused write that is skipped; after a longer one the connection ends.
pub const SKIP_BYTES_MAX: u32 = 2 * PAYLOAD_BYTES_MAX;

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "moved once, into its slab")]
pub(super) enum Verdict {
    /// To be done: so many bytes (or shards) of it.
    Serve { job: Job, unissued: u64 },
    /// Nothing to do: success at once.
    Nothing,
    /// Not to be done. (The payload of a write is skipped first.)
    Refuse(ReplyError),
    /// The client leaves.
    Disconnect,
}

/// Judges a request against what was agreed on.
pub(super) fn judge(header: &RequestHeader, agreed: &Agreed) -> Verdict {
    if header.command == command::DISC {
        return Verdict::Disconnect;
    }
    match check(header, agreed) {
        Ok(()) if header.command == command::FLUSH => flush(&agreed.export.host_view),
        Ok(()) if header.length_bytes == 0 => Verdict::Nothing,
        Ok(()) => serve(header, agreed),
        Err(error) => Verdict::Refuse(error),
    }
}

fn check(header: &RequestHeader, agreed: &Agreed) -> Result<(), ReplyError> {
    let view = &agreed.export.host_view;
    let (flags, writes, beyond_end) = match header.command {
        command::READ if agreed.structured => (command_flags::DF, false, ReplyError::Invalid),
        command::READ | command::CACHE | command::FLUSH => (0, false, ReplyError::Invalid),
        command::WRITE => (0, true, ReplyError::NoSpace),
        command::TRIM => (0, true, ReplyError::Invalid),
        command::WRITE_ZEROES => (
            command_flags::NO_HOLE | command_flags::FAST_ZERO,
            true,
            ReplyError::NoSpace,
        ),
        command::BLOCK_STATUS if !agreed.contexts.is_empty() => {
            (command_flags::REQ_ONE, false, ReplyError::Invalid)
        }
        _ => return Err(ReplyError::Invalid),
    };
    if header.flags & !(flags | command_flags::FUA) != 0 {
        return Err(ReplyError::Invalid);
    }
    if writes && view.read_only {
        return Err(ReplyError::NotPermitted);
    }
    let length = u64::from(header.length_bytes);
    match header.command {
        command::FLUSH if header.offset_bytes != 0 || length != 0 => return Err(ReplyError::Invalid),
        command::READ | command::WRITE if header.length_bytes > PAYLOAD_BYTES_MAX => {
            return Err(ReplyError::Overflow);
        }
        command::READ if header.flags & command_flags::DF != 0 && header.length_bytes > DF_BYTES_MAX => {
            return Err(ReplyError::Overflow);
        }
        _ => {}
    }
    let unit = u64::from(view.block_bytes);
    if agreed.block_sizes && !(header.offset_bytes | length).is_multiple_of(unit) {
        return Err(ReplyError::Invalid);
    }
    if !view.contains(header.offset_bytes, length) {
        return Err(beyond_end);
    }
    if header.flags & command_flags::FAST_ZERO != 0 && header.command == command::WRITE_ZEROES {
        let (first, end) = whole_blocks(view, header);
        if header.flags & command_flags::NO_HOLE != 0 || first >= end {
            return Err(ReplyError::NotSupported);
        }
    }
    Ok(())
}

/// The part of the range made of whole blocks, as first byte and end; empty if the end is not beyond the first.
/// The last block of a volume counts as whole even where the volume ends within it.
fn whole_blocks(view: &HostView, header: &RequestHeader) -> (u64, u64) {
    let block = BLOCK_BYTES as u64;
    let end = header.offset_bytes + u64::from(header.length_bytes);
    let whole_end = if end == view.size_bytes {
        end
    } else {
        end / block * block
    };
    (header.offset_bytes.next_multiple_of(block), whole_end)
}

fn flush(view: &HostView) -> Verdict {
    let shards = 0..view.placement.shard_count;
    Verdict::Serve {
        unissued: u64::from(shards.end),
        job: Job::Flush { shards },
    }
}

fn serve(header: &RequestHeader, agreed: &Agreed) -> Verdict {
    let view = &agreed.export.host_view;
    let (offset, length) = (header.offset_bytes, u64::from(header.length_bytes));
    let has = |flag: u16| header.flags & flag != 0;
    let fua = has(command_flags::FUA);
    let mut unissued = length;
    let job = match header.command {
        command::READ => {
            let parts = view.parts(offset, length);
            if agreed.structured && !has(command_flags::DF) {
                Job::Chunks { parts }
            } else {
                Job::InOrder(InOrder::new(parts))
            }
        }
        command::WRITE => Job::Write {
            parts: view.parts(offset, length),
            fua,
        },
        command::CACHE => Job::Plain {
            kind: RequestKind::Cache,
            parts: view.parts_without_data(offset, length),
        },
        command::TRIM => {
            let (first, end) = whole_blocks(view, header);
            if first >= end {
                return Verdict::Nothing;
            }
            unissued = end - first;
            Job::Plain {
                kind: RequestKind::Discard { fua },
                parts: view.parts_without_data(first, unissued),
            }
        }
        command::WRITE_ZEROES => zeroes(view, header, has(command_flags::NO_HOLE), fua),
        command::BLOCK_STATUS => Job::Status(Status {
            all: view.parts_without_data(offset, length),
            context: 0,
            parts: view.parts_without_data(offset, length),
            asked: None,
            foreseen: Foreseen::default(),
            one: has(command_flags::REQ_ONE),
            extents: Extents::default(),
            reply: None,
            question: None,
        }),
        other => unreachable!("command {other} was refused"),
    };
    Verdict::Serve { job, unissued }
}

fn zeroes(view: &HostView, header: &RequestHeader, no_hole: bool, fua: bool) -> Job {
    let (offset, length) = (header.offset_bytes, u64::from(header.length_bytes));
    let (first, end) = whole_blocks(view, header);
    // Without a whole block in it, or with none wanted as a hole, the range is one head.
    let (head, middle) = if no_hole || first >= end {
        (length, 0)
    } else {
        (first - offset, end - first)
    };
    Job::Zeroes {
        head: view.parts(offset, head),
        middle: view.parts_without_data(offset + head, middle),
        tail: view.parts(offset + head + middle, length - head - middle),
        fua,
    }
}
