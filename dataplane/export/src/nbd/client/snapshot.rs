//! A snapshot in band: nothing but a negotiation.

use super::{ClientError, encode_option, exchange, greet, string};
use crate::nbd::wire::{CONTEXT_SNAPSHOT, option, option_reply};
use std::io;

/// Takes a snapshot, called `name`, of the volume behind an export; it is durable when this returns. Every write that was answered
/// before this was called is in it. The stream is at its end afterwards.
///
/// # Errors
/// [`ClientError`]: with `Refused`, `Protocol` there is none. If the connection broke ([`ClientError::Io`]), there may be one.
pub fn take_snapshot(
    stream: &mut (impl io::Read + io::Write),
    export: &str,
    name: &str,
) -> Result<(), ClientError> {
    greet(stream)?;
    exchange(stream, option::STRUCTURED_REPLY, &[], |_, _| ())?;
    let context = [CONTEXT_SNAPSHOT, name].concat();
    let one = 1u32.to_be_bytes();
    let data = [&string(export.as_bytes())[..], &one, &string(context.as_bytes())].concat();
    let mut is_there = false;
    exchange(stream, option::SET_META_CONTEXT, &data, |reply, data| {
        is_there |= reply == option_reply::META_CONTEXT && data.get(4..) == Some(context.as_bytes());
    })?;
    // It is there either way.
    let _ = stream.write_all(&encode_option(option::ABORT, &[]));
    if is_there {
        Ok(())
    } else {
        Err(ClientError::Protocol(
            "the context was not granted: this server takes no snapshots for its clients",
        ))
    }
}
