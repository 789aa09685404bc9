//! Is a snapshot a consistent prefix? One instant between its command and the answer has to fit all blocks: what is
//! shown was sent before it, and what was sent after something shown had ended took effect after it. So all that was
//! acknowledged before the command is in, all that was sent after the answer is out, and with a write everything is
//! in that had been acknowledged (or seen by a read) when it was sent.

use super::registers::{Register, Span};
use super::{Moment, Place};
use crate::stamp::Shown;

/// What the blocks seen so far leave of the instant.
#[derive(Clone, Debug)]
pub struct Bounds {
    after: Moment,
    after_what: String,
    before: Moment,
    before_what: String,
}

impl Bounds {
    /// Between command and answer.
    #[must_use]
    pub fn new(span: Span) -> Self {
        Self {
            after: span.sent,
            after_what: "it was asked for".to_string(),
            before: span.ended,
            before_what: "it was answered".to_string(),
        }
    }

    /// Takes in that a block shows `value`.
    pub fn narrow(&mut self, (volume, block): Place, register: &Register, value: Shown) {
        let shown = register.get(value).expect("a snapshot counts as a read");
        if shown.write.sent > self.after {
            self.after = shown.write.sent;
            self.after_what =
                format!("write {value}, which block {block} of volume {volume} shows, was sent");
        }
        if let Some((before, newer)) = register.first_effect_after(shown.write.ended)
            && before < self.before
        {
            self.before = before;
            self.before_what =
                format!("write {newer}, which block {block} of volume {volume} does not show, was in effect");
        }
    }

    /// Whether an instant is left.
    ///
    /// # Errors
    /// The two facts between which there is none.
    pub fn check(&self) -> Result<(), String> {
        if self.after < self.before {
            return Ok(());
        }
        Err(format!(
            "{} at {}, but {} at {} already",
            self.after_what, self.after, self.before_what, self.before
        ))
    }
}
