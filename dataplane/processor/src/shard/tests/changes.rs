//! What changed since a snapshot: the same as reading both and comparing.

use super::*;
use crate::request::{Base, CHANGED, CHANGED_TO_HOLE};

/// Blocks that the random histories touch: three leaves and a bit.
const BLOCKS: usize = 800;

impl Rig {
    /// The states of `blocks` blocks from `first` on, asked for with a buffer of `buffer_bytes` at a time.
    fn changes(
        &mut self,
        view: View,
        base: View,
        first: usize,
        blocks: usize,
        buffer_bytes: usize,
    ) -> Result<Vec<u32>, RequestError> {
        let mut states = Vec::new();
        while states.len() < blocks {
            let at = first + states.len();
            let mut asked = ask_for_changes(view, base, at, first + blocks - at);
            asked.buffer = Some(Buffer::owned(buffer_bytes));
            self.send(asked);
            let answer = self.answer();
            answer.result?;
            for (run, state) in pairs(&answer) {
                states.extend(std::iter::repeat_n(state, (run as usize).min(1 << 20)));
            }
        }
        states.truncate(blocks);
        Ok(states)
    }

    fn answer(&mut self) -> ShardAnswer {
        for _ in 0..100_000 {
            self.turn();
            if let Some(answer) = self.outbox.answers.pop() {
                return answer;
            }
        }
        panic!("no answer");
    }
}

fn ask_for_changes(view: View, base: View, first: usize, blocks: usize) -> ShardRequest {
    let base = Base {
        volume: base.volume,
        snapshot: base.snapshot.expect("a snapshot"),
    };
    request(
        view,
        RequestKind::Changes { base },
        first * BLOCK,
        blocks * BLOCK,
        None,
    )
}

fn pairs(answer: &ShardAnswer) -> Vec<(u32, u32)> {
    let bytes = &answer.buffer.as_ref().expect("a buffer").bytes()[..answer.valid_bytes as usize];
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    bytes
        .chunks_exact(8)
        .map(|pair| (word(&pair[..4]), word(&pair[4..])))
        .collect()
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

#[test]
fn what_changed_between_any_two_views_is_what_reads_differently() {
    for seed in 1..7u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let options = ShardOptions {
            map_cache_pages: [32, 256][seed as usize % 2],
            ..options()
        };
        let mut rig = Rig::with(64 << 20, options);
        let mut views = vec![rig.snapshot(1)];
        let mut stamp = 0u64;
        for _ in 0..60 {
            let first = random.below(BLOCKS - 40);
            let blocks = 1 + random.below(40);
            match random.below(10) {
                0..6 => {
                    stamp += 1;
                    let data: Vec<u8> = (0..blocks * BLOCK / 8)
                        .flat_map(|_| stamp.to_le_bytes())
                        .collect();
                    rig.write(first * BLOCK, &data);
                }
                6 | 7 => {
                    let discard = RequestKind::Discard { fua: false };
                    let answer = rig.ask(LIVE, discard, first * BLOCK, blocks * BLOCK, None);
                    assert_eq!(answer.result, Ok(()));
                }
                8 => views.push(rig.snapshot(views.len() as u64 + 1)),
                _ => rig = rig.kill(),
            }
        }
        let bases = views.clone();
        views.push(LIVE);
        let read: Vec<Vec<u8>> = views
            .iter()
            .map(|&view| rig.read(view, 0, BLOCKS * BLOCK))
            .collect();
        for (view, now) in views.iter().zip(&read) {
            for (base, then) in bases.iter().zip(&read) {
                let blocks = now.chunks_exact(BLOCK).zip(then.chunks_exact(BLOCK));
                let expected: Vec<u32> = blocks
                    .map(
                        |(now, then)| match (now == then, now.iter().all(|&byte| byte == 0)) {
                            (true, _) => 0,
                            (false, false) => CHANGED,
                            (false, true) => CHANGED | CHANGED_TO_HOLE,
                        },
                    )
                    .collect();
                let buffer_bytes = [8, 40, 64 << 10][random.below(3)];
                let told = rig.changes(*view, *base, 0, BLOCKS, buffer_bytes);
                assert_eq!(
                    told.as_ref(),
                    Ok(&expected),
                    "seed {seed}: {view:?} since {base:?}"
                );
            }
        }
    }
}

#[test]
fn a_run_without_changes_is_told_to_its_end() {
    let mut rig = Rig::new(64 << 20);
    rig.write(5 * BLOCK, &[1; BLOCK]);
    let base = rig.snapshot(1);
    rig.send(ask_for_changes(LIVE, base, 3, 2));
    assert_eq!(
        pairs(&rig.answer()),
        [((1 << 20) - 3, 0)],
        "the whole share, at one look"
    );
    rig.write((1 << 20) * BLOCK - BLOCK, &[1; BLOCK]);
    let changed = rig.changes(LIVE, base, (1 << 20) - 2, 2, 4096);
    assert_eq!(changed, Ok(vec![0, CHANGED]));
}

#[test]
fn beyond_the_end_of_the_snapshot_all_that_is_mapped_has_changed() {
    let mut rig = Rig::new(64 << 20);
    let resize = |share_blocks| ShardCommand::ResizeVolume {
        volume: VOLUME,
        share_blocks,
    };
    assert_eq!(rig.command(resize(300)), EventKind::Done);
    rig.write(298 * BLOCK, &[1; 2 * BLOCK]);
    let base = rig.snapshot(1);
    assert_eq!(rig.command(resize(600)), EventKind::Done);
    rig.write(299 * BLOCK, &[2; 2 * BLOCK]);
    rig.write(520 * BLOCK, &[2; BLOCK]);
    let mut expected = vec![0; 600];
    for block in [299, 300, 520] {
        expected[block] = CHANGED;
    }
    assert_eq!(rig.changes(LIVE, base, 0, 600, 4096), Ok(expected));
    // The smaller one is asked about no further than it goes.
    let live = rig.snapshot(2);
    assert_eq!(rig.changes(base, live, 299, 1, 4096), Ok(vec![CHANGED]));
    assert_eq!(
        rig.changes(base, live, 299, 2, 4096),
        Err(RequestError::OutOfRange)
    );
}

#[test]
fn without_a_snapshot_of_the_family_there_is_nothing_to_compare_with() {
    let mut rig = Rig::new(64 << 20);
    let other = VolumeId(7);
    let made = ShardCommand::CreateVolume {
        volume: other,
        share_blocks: 1 << 20,
    };
    assert_eq!(rig.command(made), EventKind::Done);
    let base = rig.snapshot(1);
    let unknown = View {
        snapshot: Some(SnapshotId(9)),
        ..LIVE
    };
    assert_eq!(rig.changes(LIVE, unknown, 0, 1, 4096), Err(RequestError::NoBase));
    assert_eq!(
        rig.changes(unknown, base, 0, 1, 4096),
        Err(RequestError::NotFound)
    );
    let stranger = View {
        volume: other,
        snapshot: None,
    };
    assert_eq!(rig.changes(stranger, base, 0, 1, 4096), Err(RequestError::NoBase));
    let delete = ShardCommand::DeleteSnapshot {
        volume: VOLUME,
        snapshot: SnapshotId(1),
    };
    assert_eq!(rig.command(delete), EventKind::Done);
    assert_eq!(rig.changes(LIVE, base, 0, 1, 4096), Err(RequestError::NoBase));
}

#[test]
fn a_clone_is_compared_with_the_snapshot_it_was_made_of_and_with_older_ones() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; 4 * BLOCK]);
    let older = rig.snapshot(1);
    rig.write(BLOCK, &[2; BLOCK]);
    let origin = rig.snapshot(2);
    let clone = ShardCommand::CloneVolume {
        volume: VolumeId(2),
        origin: VOLUME,
        snapshot: SnapshotId(2),
    };
    assert_eq!(rig.command(clone), EventKind::Done);
    let live = View {
        volume: VolumeId(2),
        snapshot: None,
    };
    let write = RequestKind::Write { fua: false };
    let written = rig.ask(live, write, 2 * BLOCK, BLOCK, Some(&[3; BLOCK]));
    assert_eq!(written.result, Ok(()));
    rig.write(3 * BLOCK, &[4; BLOCK]);
    rig = rig.kill();
    let told = |states: [u32; 4]| Ok(states.to_vec());
    assert_eq!(rig.changes(live, origin, 0, 4, 4096), told([0, 0, CHANGED, 0]));
    assert_eq!(
        rig.changes(live, older, 0, 4, 4096),
        told([0, CHANGED, CHANGED, 0])
    );
    assert_eq!(rig.changes(LIVE, origin, 0, 4, 4096), told([0, 0, 0, CHANGED]));
}

#[test]
fn an_answer_that_saw_something_newer_than_a_cut_is_held() {
    let mut rig = Rig::new(64 << 20);
    rig.write(0, &[1; 3 * BLOCK]);
    let base = rig.snapshot(1);
    let snapshot = SnapshotId(2);
    let prepare = ShardCommand::Prepare {
        snapshot,
        volumes: vec![VOLUME],
    };
    assert_eq!(rig.command(prepare), EventKind::Prepared);
    let cut = ShardCommand::Cut {
        snapshot,
        time_stamp: TimeStamp(2),
        deadline_ns: u64::MAX,
    };
    assert_eq!(rig.command(cut), EventKind::Taken);
    assert_eq!(
        rig.changes(LIVE, base, 0, 3, 4096),
        Ok(vec![0; 3]),
        "nothing newer: at once"
    );
    rig.send(request(
        LIVE,
        RequestKind::Write { fua: false },
        0,
        BLOCK,
        Some(&[2; BLOCK]),
    ));
    rig.settle_in_hold(1);
    rig.send(ask_for_changes(LIVE, base, 0, 3));
    rig.settle_in_hold(2);
    // The two blocks behind it lie in the same page, and were looked at alone.
    assert_eq!(rig.changes(LIVE, base, 1, 2, 4096), Ok(vec![0; 2]));
    let released = rig.command(ShardCommand::Release { snapshot });
    assert!(matches!(released, EventKind::Released(figures) if figures.answers_held == 2));
    let last = rig.outbox.answers.pop().expect("the answer that was held");
    assert_eq!(pairs(&last)[0], (1, CHANGED));
}

impl Rig {
    /// Turns until so many answers are held and nothing else is going on.
    fn settle_in_hold(&mut self, held: u64) {
        for _ in 0..1000 {
            self.turn();
        }
        assert!(self.outbox.answers.is_empty(), "no answer leaves");
        assert_eq!(self.processor.shards()[0].status().in_flight, held);
    }
}
