//! The negotiation: options and their replies, up to the choice of an export. Source: `proto.md`, "Newstyle
//! negotiation" and "Option types".
//!
//! One option is handled at a time; the protocol forbids a client to send the next before it has the reply.

use super::contexts::{ALLOCATION_CONTEXT_ID, CONTEXTS_MAX, Context, ContextList, Queries};
use super::outbox::{OUTBOX_BYTES, Outbox};
use super::taking::{Taking, Untaken};
use super::wire::{
    CONTEXT_SNAPSHOT, EXPORT_NAME_PADDING_BYTES, GREETING_MAGIC, NAME_BYTES_MAX, OPTION_MAGIC,
    OptionReplyHeader, PAYLOAD_BYTES_MAX, PREFERRED_BLOCK_BYTES, Reader, handshake_flags, info, option,
    option_reply, transmission_flags,
};
use crate::export_table::{Export, ExportTable};
use crate::seats::Seat;
use crate::snapshot_names::{Busy, SNAPSHOT_NAME_BYTES_MAX};

/// Options of one connection at most; a client that sends more is cut off.
pub const OPTIONS_MAX: u32 = 64;
/// Longest option that is looked at. A longer one gets "too big".
pub const OPTION_BYTES_MAX: usize = 32 << 10;
/// Longest option that is skipped politely. After a longer one the connection ends.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;

/// Room that the reply to any one option (or to one entry of a list) needs.
const REPLY_BYTES_MAX: usize = 5 * (OptionReplyHeader::BYTES + 16) + 2 * NAME_BYTES_MAX;
const _: () = assert!(REPLY_BYTES_MAX <= OUTBOX_BYTES);
/// Room that the reply to a selection of contexts needs.
const SELECTION_BYTES_MAX: usize = OptionReplyHeader::BYTES
    + CONTEXTS_MAX * (OptionReplyHeader::BYTES + 4 + CONTEXT_SNAPSHOT.len() + 1 + SNAPSHOT_NAME_BYTES_MAX);
const _: () = assert!(SELECTION_BYTES_MAX <= OUTBOX_BYTES);

/// What a client and the server agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) export: Export,
    /// One of the export's connections; given back with the session.
    _seat: Seat,
    /// Structured replies.
    pub(super) structured: bool,
    /// The metadata contexts that were selected for this export.
    pub(super) contexts: Vec<Context>,
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
    /// The option cannot be handled at this instant: again in the next turn.
    Later,
}

/// A list that is being sent.
#[derive(Debug)]
enum Listing {
    /// Of exports: the index of the next one.
    Exports(usize),
    /// Of metadata contexts.
    Contexts(ContextList),
}

#[derive(Debug, Default)]
pub(super) struct Handshake {
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which metadata contexts were selected, and these.
    selected: Option<(String, Vec<Context>)>,
    /// Snapshots that this client takes.
    taking: Taking,
    options: u32,
    listing: Option<Listing>,
    /// The list waits for names of snapshots.
    busy: bool,
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
        self.listing.is_none() && outbox.has_room(REPLY_BYTES_MAX.max(SELECTION_BYTES_MAX), 1)
    }

    /// Whether a list waits for nothing but another turn.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Goes on with a list that did not fit into one send.
    pub(super) fn go_on_listing(&mut self, exports: &ExportTable, outbox: &mut Outbox) {
        self.busy = false;
        while outbox.has_room(REPLY_BYTES_MAX, 1) {
            let (option, more) = match &mut self.listing {
                None => return,
                Some(Listing::Exports(next)) => (option::LIST, Ok(list_export(exports, next, outbox))),
                Some(Listing::Contexts(list)) => {
                    (option::LIST_META_CONTEXT, list_context(exports, list, outbox))
                }
            };
            match more {
                Ok(true) => {}
                Ok(false) => {
                    reply(outbox, option, option_reply::ACK, &[]);
                    self.listing = None;
                }
                Err(Busy) => {
                    self.busy = true;
                    return;
                }
            }
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
                self.listing = Some(Listing::Exports(0));
                self.go_on_listing(exports, outbox);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(outbox, option, option_reply::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => invalid(outbox, option, b"this option takes no data"),
            option::INFO | option::GO => return self.info(option, data, exports, outbox),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                match self.meta_context(option, data, exports, outbox) {
                    Ok(()) => {}
                    Err(Untaken::NotYet) => {
                        self.options -= 1;
                        return Next::Later;
                    }
                    Err(Untaken::Refused(error, message)) => {
                        let length = message.floor_char_boundary(NAME_BYTES_MAX);
                        refuse(outbox, option, error, &message.as_bytes()[..length]);
                    }
                }
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
        let selected = self.selected.as_ref().filter(|(name, _)| *name == export.name);
        Box::new(Agreed {
            export: export.clone(),
            _seat: seat,
            structured: self.structured,
            contexts: selected.map_or(Vec::new(), |(_, contexts)| contexts.clone()),
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

    /// `LIST_META_CONTEXT` and `SET_META_CONTEXT`, see [`Queries`]. Nothing is said if it gives an error.
    fn meta_context(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &ExportTable,
        outbox: &mut Outbox,
    ) -> Result<(), Untaken> {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.selected = None;
        }
        if !self.structured {
            invalid(outbox, option, b"structured replies have to be agreed on first");
            return Ok(());
        }
        let Some(queries) = Queries::parse(data, set) else {
            invalid(outbox, option, b"the lengths in this option do not fit together");
            return Ok(());
        };
        let Some(export) = find(exports, queries.export) else {
            let message = b"there is no such export";
            refuse(outbox, option, option_reply::ERR_UNKNOWN, message);
            return Ok(());
        };
        let names = exports.snapshots(&export.name);
        if !set {
            self.listing = Some(Listing::Contexts(queries.list(&export.name, names)?));
            self.go_on_listing(exports, outbox);
            return Ok(());
        }
        let mut contexts = queries.select(names)?;
        let count = contexts.len() + queries.taking.len();
        if count > CONTEXTS_MAX {
            let message = format!("{count} contexts: {CONTEXTS_MAX} are possible at a time");
            refuse(outbox, option, option_reply::ERR_TOO_BIG, message.as_bytes());
            return Ok(());
        }
        if let Some(name) = one_name(&queries)? {
            self.taking.take(exports, export, name)?;
            let id = ALLOCATION_CONTEXT_ID + contexts.len() as u32;
            contexts.extend(Queries::of_taken(id, name, names)?);
        }
        for context in &contexts {
            context_reply(outbox, option, context.id, &context.name);
        }
        reply(outbox, option, option_reply::ACK, &[]);
        self.selected = Some((export.name.clone(), contexts));
        Ok(())
    }
}

/// Names the next export; false if there is none.
fn list_export(exports: &ExportTable, next: &mut usize, outbox: &mut Outbox) -> bool {
    let Some(export) = exports.get(*next) else {
        return false;
    };
    let name = export.name.as_bytes();
    let length = (name.len() as u32).to_be_bytes();
    let description = export.description.as_bytes();
    reply(
        outbox,
        option::LIST,
        option_reply::SERVER,
        &[&length, name, description],
    );
    *next += 1;
    true
}

/// Names the next context; false if there is none.
fn list_context(exports: &ExportTable, list: &mut ContextList, outbox: &mut Outbox) -> Result<bool, Busy> {
    let takes = exports
        .find(&list.export)
        .is_some_and(|export| exports.takes_snapshots(export));
    let name = list.next(exports.snapshots(&list.export), takes)?;
    if let Some(name) = &name {
        context_reply(outbox, option::LIST_META_CONTEXT, 0, name);
    }
    Ok(name.is_some())
}

/// The name of the snapshot that a selection takes, if it takes one.
fn one_name<'a>(queries: &Queries<'a>) -> Result<Option<&'a str>, Untaken> {
    let invalid = |message: String| Untaken::Refused(option_reply::ERR_INVALID, message);
    if queries.taking.len() > 1 {
        let count = queries.taking.len();
        return Err(invalid(format!(
            "{count} snapshots at once: select one {CONTEXT_SNAPSHOT}NAME at a time"
        )));
    }
    let name = queries.taking.first().copied().map(str::from_utf8);
    name.transpose()
        .map_err(|_| invalid("the name of the snapshot is not UTF-8".to_owned()))
}

fn context_reply(outbox: &mut Outbox, option: u32, id: u32, name: &str) {
    reply(
        outbox,
        option,
        option_reply::META_CONTEXT,
        &[&id.to_be_bytes(), name.as_bytes()],
    );
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
