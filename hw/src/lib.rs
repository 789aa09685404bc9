//! The machine: the only unsafe code and the only system calls of Stillpoint.
//!
//! | module | what it wraps |
//! |---|---|
//! | [`ring`] | one io_uring per poll loop: devices, sockets and wake-ups in one submission per turn |
//! | [`device`] | files and block devices as a [`stillpoint_processor::ports::BlockDevice`] |
//! | [`discovery`] | which block devices there are, what they are and who uses them |
//! | [`socket`] | listeners and connections, driven by the same ring |
//! | [`wake`] | waking a poll loop that sleeps, and only then |
//! | [`buffers`] | page-aligned memory for devices and sockets, one arena per processor |
//! | [`tail`] | the log tail: memory that outlives the process |
//! | [`topology`] | cores and pinning |
//! | [`clock`] | what time it is |
//! | [`files`] | how many descriptors this process may have |
//! | [`probe`] | what this machine offers, what it lacks, how to mend it |
//!
//! Memory that the kernel may still touch is owned by these types until its completion arrived; what is
//! still in flight when one of them is dropped is leaked rather than freed.

// Operations cross the port boxed: moving them on must not copy them.
#![allow(clippy::vec_box)]

pub mod buffers;
pub mod clock;
pub mod device;
pub mod discovery;
pub mod files;
pub mod probe;
pub mod ring;
pub mod socket;
pub mod tail;
pub mod topology;
pub mod wake;
