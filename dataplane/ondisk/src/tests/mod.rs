//! The format as a whole: golden files, laws over all structures, and the drawing in the documentation.

mod drawing;
mod golden;
mod laws;
mod samples;
