//! What clients sent and heard, judged by the simulator's model: the same laws, over the real program.

use std::sync::{Mutex, MutexGuard, PoisonError};

use stillpoint_simulator::model::{Broken, Crash, CutBounds, Range, Tick, VolumeModel, Writes};
use stillpoint_simulator::stamp::{SECTOR_BYTES, Shown};

/// The history of one volume, shared by all its clients.
pub struct History {
    state: Mutex<State>,
    /// Crashes are power cuts: only what was flushed must be there after them.
    power_cuts: bool,
}

struct State {
    tick: Tick,
    writes: Writes,
    model: VolumeModel,
}

/// What a snapshot shows, sector by sector.
pub type Content = Vec<Shown>;

impl State {
    fn tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }
}

impl History {
    /// A new volume, all zeros. `volume` marks its data. Its process may be killed: all that was acknowledged must
    /// be there afterwards.
    pub fn new(volume: u32, size_bytes: u64) -> Self {
        Self {
            power_cuts: false,
            state: Mutex::new(State {
                tick: 0,
                writes: Writes::default(),
                model: VolumeModel::new(volume, size_bytes / SECTOR_BYTES as u64),
            }),
        }
    }

    /// The same, but its machine's power may be cut: what was flushed must be there afterwards.
    pub fn with_power_cuts(volume: u32, size_bytes: u64) -> Self {
        Self {
            power_cuts: true,
            ..Self::new(volume, size_bytes)
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is about to be sent, or was heard.
    pub fn now(&self) -> Tick {
        self.state().tick()
    }

    /// A write, or (with `zeros`) a discard or zeroing, is about to be sent; gives its number.
    pub fn write_sent(&self, zeros: bool, range: Range) -> Shown {
        let mut state = self.state();
        let tick = state.tick();
        let number = state.writes.send(zeros, tick);
        state.model.write_sent(number, range);
        number
    }

    /// A write was acknowledged, with FUA or without. Where only the process may be killed it is durable in any case.
    pub fn write_acknowledged(&self, number: Shown, fua: bool) {
        let mut state = self.state();
        let tick = state.tick();
        state.writes.end(number, true, fua || !self.power_cuts, tick);
    }

    /// A flush that was sent at `sent` was acknowledged.
    pub fn flushed(&self, sent: Tick) {
        self.state().writes.flushed(sent);
    }

    /// A read that was sent at `sent` was answered just now.
    pub fn read_answered(&self, first_sector: u64, bytes: &[u8], sent: Tick) -> Result<(), Broken> {
        let mut state = self.state();
        let ended = state.tick();
        let State { writes, model, .. } = &mut *state;
        model.check_read(writes, first_sector, bytes, sent, ended)
    }

    /// The process is dead, and all connections with it.
    pub fn crashed(&self) -> Tick {
        let mut state = self.state();
        let tick = state.tick();
        state.writes.crash(tick);
        tick
    }

    /// A read of the whole volume after the restart, before anything else is sent: all that is durable is there, and
    /// nothing that was never written.
    pub fn recovered(&self, bytes: &[u8]) -> Result<(), Broken> {
        let mut state = self.state();
        let tick = state.tick();
        let State { writes, model, .. } = &mut *state;
        // To the model a crash that loses nothing acknowledged is a power cut with everything acknowledged durable;
        // in return it forgets what is past.
        model.check_recovered(writes, Crash::PowerCut, 0, bytes, tick)
    }

    /// A first look at all of a snapshot that was asked for at `sent` and confirmed at `answered` (or may have
    /// been made until the crash at that tick): there was one instant in between at which the volume looked so.
    pub fn first_look(&self, bytes: &[u8], sent: Tick, answered: Tick) -> Result<Content, Broken> {
        let mut bounds = CutBounds::new(sent, answered);
        let mut content = Vec::with_capacity(bytes.len() / SECTOR_BYTES);
        let state = self.state();
        state
            .model
            .check_snapshot(&state.writes, 0, bytes, &mut bounds, &mut content)?;
        drop(state);
        bounds.check().map_err(Broken)?;
        Ok(content)
    }

    /// A later look: nothing has changed.
    pub fn next_look(&self, bytes: &[u8], content: &Content) -> Result<(), Broken> {
        let state = self.state();
        for (sector, (bytes, noted)) in bytes.chunks_exact(SECTOR_BYTES).zip(content).enumerate() {
            let shown = state.model.shown(sector as u64, bytes)?;
            if shown != *noted {
                return Err(Broken(format!(
                    "sector {sector} of the snapshot showed write {noted} at first and shows write {shown} now"
                )));
            }
        }
        Ok(())
    }
}
