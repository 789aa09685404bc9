//! What is to find the bugs that are planted in the program, and no more: with the feature `planted-bugs` this is built in
//! the place of all end-to-end tests.

#![allow(dead_code, reason = "one module uses a part of what they share")]

mod causality;
mod support;
