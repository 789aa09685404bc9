//! The mirrors of the processors: how they begin, and what they are told.

use stillpoint_ondisk::layout::Layout;
use stillpoint_processor::{Mirrors, Shard, ShardIndex, SideAt, SideState, StaleAt};

use super::{Machine, Mail, News};
use crate::device::{Devices, Port};
use crate::memory::SimulatedTail;

/// How the mirrors of a life begin.
#[derive(Debug)]
pub struct Sides {
    /// Of the pool.
    pub layout: Layout,
    /// What the labels say.
    pub states: Vec<[SideState; 2]>,
    /// What sides that are out lack.
    pub stale: Vec<StaleAt>,
    /// Bytes per second that a processor copies at most; 0: no limit.
    pub rate_bytes_per_s: u64,
    /// Wrong on purpose.
    #[cfg(feature = "planted-bugs")]
    pub bug: Option<stillpoint_processor::PlantedBug>,
}

/// What the control plane has a processor do with its mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SidesOrder {
    /// The labels say that a side is out, since this episode.
    Out(SideAt, u64),
    /// The labels say that another device takes the place of a side, since this episode.
    Replaced(SideAt, u64),
    /// A side is there again.
    Resync(SideAt),
    /// The labels say that a side is in sync.
    Joined(SideAt),
}

impl SidesOrder {
    /// The side that it is about.
    #[must_use]
    pub fn at(self) -> SideAt {
        match self {
            Self::Out(at, _) | Self::Replaced(at, _) | Self::Resync(at) | Self::Joined(at) => at,
        }
    }

    pub(super) fn carry_out(self, mirrors: &mut Mirrors<Port>) {
        match self {
            Self::Out(at, episode) => mirrors.out(at, episode),
            Self::Replaced(at, episode) => mirrors.replaced(at, episode),
            Self::Resync(at) => mirrors.resync(at),
            Self::Joined(at) => mirrors.joined(at),
        }
    }
}

/// What lies below the processors.
#[derive(Clone, Copy)]
pub struct Below<'a> {
    /// The devices.
    pub devices: &'a Devices,
    /// If they have two sides: how the mirrors begin.
    pub sides: Option<&'a Sides>,
}

impl Below<'_> {
    /// The devices as the processor of these shards sees them.
    pub(super) fn port(&self, shards: &[Shard<SimulatedTail>]) -> Mirrors<Port> {
        let port = self.devices.port();
        let Some(sides) = self.sides else {
            return Mirrors::plain(port);
        };
        let owned: Vec<ShardIndex> = shards.iter().map(Shard::index).collect();
        let stale = sides.stale.iter().filter(|stale| owned.contains(&stale.shard));
        let stale = stale.cloned().collect();
        let mut mirrors = Mirrors::new(port, &sides.layout, &sides.states, &owned, stale);
        mirrors.set_rate(sides.rate_bytes_per_s);
        #[cfg(feature = "planted-bugs")]
        mirrors.plant(sides.bug);
        mirrors
    }
}

impl Machine {
    /// Tells all processors something about a side.
    pub fn order(&mut self, order: SidesOrder) {
        for seat in 0..self.seats.len() {
            let delay_ns = self.random.latency_ns(self.pace.message_ns);
            let line = &mut self.mirror_line_ns[seat];
            *line = (*line).max(self.now_ns + delay_ns);
            let at = *line;
            self.post(at, Mail::Mirror(seat, order));
        }
    }

    /// What the mirrors of a processor have to say goes to the control plane.
    pub(super) fn post_notices(&mut self, seat: usize) {
        while let Some(notice) = self.seats[seat].processor.device_mut().take_notice() {
            self.post_of_mirror(seat, News::Mirror(seat, notice));
        }
    }

    /// In order: what was said before an order was carried out is heard before.
    pub(super) fn post_of_mirror(&mut self, seat: usize, news: News) {
        let delay_ns = self.random.latency_ns(self.pace.message_ns);
        let line = &mut self.mirror_news_line_ns[seat];
        *line = (*line).max(self.now_ns + delay_ns);
        let at = *line;
        self.post(at, Mail::News(news));
    }
}
