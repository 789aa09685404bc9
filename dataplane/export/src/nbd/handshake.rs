//! The negotiation: options and their replies, up to the choice of an export. Source: `proto.md`, "Newstyle
//! negotiation" and "Option types".
//!
//! One option is handled at a time; the protocol forbids a client to send the next before it has the reply.

use super::outbox::{OUTBOX_BYTES, Outbox};
use super::wire::{
    CONTEXT_ALLOCATION, CONTEXT_BASE, EXPORT_NAME_PADDING_BYTES, GREETING_MAGIC, NAME_BYTES_MAX,
    OPTION_MAGIC, OptionReplyHeader, PAYLOAD_BYTES_MAX, PREFERRED_BLOCK_BYTES, Reader, handshake_flags, info,
    option, option_reply, transmission_flags,
};
use crate::export_table::{Export, ExportTable};
use crate::seats::Seat;

/// Options of one connection at most; a client that sends more is cut off.
pub const OPTIONS_MAX: u32 = 64;
/// Longest option that is looked at. A longer one gets "too big".
pub const OPTION_BYTES_MAX: usize = 32 << 10;
/// Longest option that is skipped politely. After a longer one the connection ends.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Metadata context id of `base:allocation`.
pub const ALLOCATION_CONTEXT_ID: u32 = 1;

/// Room that the reply to any one option (or to one entry of a list) needs.
const REPLY_BYTES_MAX: usize = 5 * (OptionReplyHeader::BYTES + 16) + 2 * NAME_BYTES_MAX;
const _: () = assert!(REPLY_BYTES_MAX <= OUTBOX_BYTES);

/// What a client and the server agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) export: Export,
    /// One of the export's connections; given back with the session.
    _seat: Seat,
    /// Structured replies.
    pub(super) structured: bool,
    /// `base:allocation` was selected for this export.
    pub(super) block_status: bool,
    /// The client asked for the block sizes and so must keep to them.
    pub(super) block_sizes: bool,
}

/// Where the negotiation goes from here.
#[derive(Debug)]
pub(super) enum Next {
    /// Another option.
    Option,
    /// The transmission phase.
    Transmission(Box<Agreed>),
    /// The end, once what was said is sent.
    Close,
}

#[derive(Debug, Default)]
pub(super) struct Handshake {
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected.
    selected_for: Option<String>,
    options: u32,
    /// Index of the next export of a list that is being sent.
    listing: Option<usize>,
}

impl Handshake {
    /// Says hello.
    pub(super) fn greet(outbox: &mut Outbox) {
        outbox.put(&GREETING_MAGIC.to_be_bytes());
        outbox.put(&OPTION_MAGIC.to_be_bytes());
        outbox.put(&(handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES).to_be_bytes());
    }

    /// Takes the client's flags; `None` if it set one that does not exist.
    pub(super) fn new(client_flags: u32) -> Option<Self> {
        let fixed = u32::from(handshake_flags::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flags::NO_ZEROES);
        (client_flags & !(fixed | no_zeroes) == 0).then(|| Self {
            fixed_newstyle: client_flags & fixed != 0,
            no_zeroes: client_flags & no_zeroes != 0,
            ..Self::default()
        })
    }

    /// Whether an option can be handled: there is room for the reply and no list is being sent.
    pub(super) fn is_ready(&self, outbox: &Outbox) -> bool {
        self.listing.is_none() && outbox.has_room(REPLY_BYTES_MAX, 1)
    }

    /// Goes on with a list that did not fit into one send.
    pub(super) fn go_on_listing(&mut self, exports: &ExportTable, outbox: &mut Outbox) {
        let Some(mut next) = self.listing else { return };
        while outbox.has_room(REPLY_BYTES_MAX, 1) {
            let Some(export) = exports.get(next) else {
                reply(outbox, option::LIST, option_reply::ACK, &[]);
                self.listing = None;
                return;
            };
            let name = export.name.as_bytes();
            reply(
                outbox,
                option::LIST,
                option_reply::SERVER,
                &[
                    &(name.len() as u32).to_be_bytes(),
                    name,
                    export.description.as_bytes(),
                ],
            );
            next += 1;
            self.listing = Some(next);
        }
    }

    /// An option came whose data is too long to be looked at.
    pub(super) fn too_big(&mut self, option: u32, outbox: &mut Outbox) -> Next {
        if option == option::EXPORT_NAME || !self.may_go_on() {
            return Next::Close;
        }
        refuse(
            outbox,
            option,
            option_reply::ERR_TOO_BIG,
            b"this option is longer than 32 KiB",
        );
        Next::Option
    }

    /// Handles one option. [`Self::is_ready`] must be true.
    pub(super) fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &ExportTable,
        outbox: &mut Outbox,
    ) -> Next {
        if option == option::EXPORT_NAME {
            return self.export_name(data, exports, outbox);
        }
        if !self.may_go_on() {
            return Next::Close;
        }
        if option == option::ABORT {
            reply(outbox, option, option_reply::ACK, &[]);
            return Next::Close;
        }
        match option {
            option::LIST if data.is_empty() => {
                self.listing = Some(0);
                self.go_on_listing(exports, outbox);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(outbox, option, option_reply::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => invalid(outbox, option, b"this option takes no data"),
            option::INFO | option::GO => return self.info(option, data, exports, outbox),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, data, exports, outbox);
            }
            option::STARTTLS => refuse(
                outbox,
                option,
                option_reply::ERR_UNSUP,
                b"this server does not offer TLS",
            ),
            _ => refuse(
                outbox,
                option,
                option_reply::ERR_UNSUP,
                b"this server does not know this option",
            ),
        }
        Next::Option
    }

    /// Counts an option other than `EXPORT_NAME`; false if the client has used up its patience or cannot read
    /// replies at all.
    fn may_go_on(&mut self) -> bool {
        self.options += 1;
        self.fixed_newstyle && self.options <= OPTIONS_MAX
    }

    fn agree(&self, export: &Export, seat: Seat, block_sizes: bool) -> Box<Agreed> {
        Box::new(Agreed {
            export: export.clone(),
            _seat: seat,
            structured: self.structured,
            block_status: self.selected_for.as_ref() == Some(&export.name),
            block_sizes,
        })
    }

    fn export_name(&self, data: &[u8], exports: &ExportTable, outbox: &mut Outbox) -> Next {
        let Some(export) = find(exports, data) else {
            return Next::Close;
        };
        let Ok(seat) = exports.take_seat(export) else {
            return Next::Close; // this option has no way to say why
        };
        outbox.put(&export.host_view.size_bytes.to_be_bytes());
        outbox.put(&transmission_flags(export, self.structured).to_be_bytes());
        if !self.no_zeroes {
            outbox.put(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        Next::Transmission(self.agree(export, seat, false))
    }

    /// `INFO` and `GO`: `name length u32 | name | count u16 | count * kind u16`.
    fn info(&self, option: u32, data: &[u8], exports: &ExportTable, outbox: &mut Outbox) -> Next {
        let Some((name, wanted)) = parse_info(data) else {
            invalid(outbox, option, b"the lengths in this option do not fit together");
            return Next::Option;
        };
        let Some(export) = find(exports, name) else {
            refuse(
                outbox,
                option,
                option_reply::ERR_UNKNOWN,
                b"there is no such export",
            );
            return Next::Option;
        };
        let seat = if option == option::GO {
            match exports.take_seat(export) {
                Ok(seat) => Some(seat),
                Err(limit) => {
                    let message = format!("this export has {limit} connections, which is its limit");
                    refuse(outbox, option, option_reply::ERR_POLICY, message.as_bytes());
                    return Next::Option;
                }
            }
        } else {
            None
        };
        let wants = |kind: u16| wanted.chunks_exact(2).any(|pair| pair == kind.to_be_bytes());
        let info = |outbox: &mut Outbox, kind: u16, parts: [&[u8]; 3]| {
            let kind = kind.to_be_bytes();
            reply(
                outbox,
                option,
                option_reply::INFO,
                &[&kind, parts[0], parts[1], parts[2]],
            );
        };
        let flags = transmission_flags(export, self.structured).to_be_bytes();
        info(
            outbox,
            info::EXPORT,
            [&export.host_view.size_bytes.to_be_bytes(), &flags, &[]],
        );
        if wants(info::NAME) {
            info(outbox, info::NAME, [export.name.as_bytes(), &[], &[]]);
        }
        if wants(info::DESCRIPTION) && !export.description.is_empty() {
            info(
                outbox,
                info::DESCRIPTION,
                [export.description.as_bytes(), &[], &[]],
            );
        }
        let block_sizes = wants(info::BLOCK_SIZE);
        if block_sizes {
            let minimum = export.host_view.block_bytes;
            info(
                outbox,
                info::BLOCK_SIZE,
                [
                    &minimum.to_be_bytes(),
                    &PREFERRED_BLOCK_BYTES.max(minimum).to_be_bytes(),
                    &PAYLOAD_BYTES_MAX.to_be_bytes(),
                ],
            );
        }
        reply(outbox, option, option_reply::ACK, &[]);
        match seat {
            Some(seat) => Next::Transmission(self.agree(export, seat, block_sizes)),
            None => Next::Option,
        }
    }

    /// `LIST_META_CONTEXT` and `SET_META_CONTEXT`: `name | query count u32 | queries`, strings with lengths.
    fn meta_context(&mut self, option: u32, data: &[u8], exports: &ExportTable, outbox: &mut Outbox) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.selected_for = None;
        }
        if !self.structured {
            invalid(outbox, option, b"structured replies have to be agreed on first");
            return;
        }
        let Some((name, found)) = parse_queries(data, set) else {
            invalid(outbox, option, b"the lengths in this option do not fit together");
            return;
        };
        let Some(export) = find(exports, name) else {
            refuse(
                outbox,
                option,
                option_reply::ERR_UNKNOWN,
                b"there is no such export",
            );
            return;
        };
        if found {
            let id = if set { ALLOCATION_CONTEXT_ID } else { 0 };
            reply(
                outbox,
                option,
                option_reply::META_CONTEXT,
                &[&id.to_be_bytes(), CONTEXT_ALLOCATION],
            );
            if set {
                self.selected_for = Some(export.name.clone());
            }
        }
        reply(outbox, option, option_reply::ACK, &[]);
    }
}

/// The export of this name; names are UTF-8.
fn find<'a>(exports: &'a ExportTable, name: &[u8]) -> Option<&'a Export> {
    exports.find(str::from_utf8(name).ok()?)
}

/// The flags an export is offered with.
pub(super) fn transmission_flags(export: &Export, structured: bool) -> u16 {
    use transmission_flags as flag;
    let mut flags =
        flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
    flags |= if export.host_view.read_only {
        flag::READ_ONLY
    } else {
        flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
    };
    if structured {
        flags |= flag::SEND_DF;
    }
    flags
}

/// The name and the kinds of information wanted, two bytes each.
fn parse_info(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = Reader::new(data);
    let name = reader.string()?;
    let count = reader.u16()?;
    let wanted = reader.take(usize::from(count) * 2)?;
    (reader.rest().is_empty() && name.len() <= NAME_BYTES_MAX).then_some((name, wanted))
}

/// The export's name and whether a query finds `base:allocation`. No query at all finds it when listing.
fn parse_queries(data: &[u8], set: bool) -> Option<(&[u8], bool)> {
    let mut reader = Reader::new(data);
    let name = reader.string()?;
    let count = reader.u32()?;
    let mut found = count == 0 && !set;
    for _ in 0..count {
        let query = reader.string()?;
        if query.len() > NAME_BYTES_MAX {
            return None;
        }
        found |= query == CONTEXT_ALLOCATION || (query == CONTEXT_BASE && !set);
    }
    (reader.rest().is_empty() && name.len() <= NAME_BYTES_MAX).then_some((name, found))
}

fn reply(outbox: &mut Outbox, option: u32, reply: u32, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let header = OptionReplyHeader {
        option,
        reply,
        length_bytes: length as u32,
    };
    outbox.put(&header.encode());
    for part in parts {
        outbox.put(part);
    }
}

fn refuse(outbox: &mut Outbox, option: u32, error: u32, message: &[u8]) {
    reply(outbox, option, error, &[message]);
}

fn invalid(outbox: &mut Outbox, option: u32, message: &[u8]) {
    refuse(outbox, option, option_reply::ERR_INVALID, message);
}
