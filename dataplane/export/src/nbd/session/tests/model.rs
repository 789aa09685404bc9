//! Random requests against a plain vector, through shards that answer in any order.

use super::harness::{Random, World, table};
use crate::nbd::Limits;
use crate::nbd::wire::{command, command_flags};

const SIZE: u64 = 6 * (1 << 20) + 512;

enum Expect {
    Done,
    Data(u64, Vec<u8>),
    Extents(u64, u64),
}

/// A range that does not overlap the others of its batch.
fn range(random: &mut Random, taken: &[(u64, u64)], longest: u64) -> Option<(u64, u64)> {
    for _ in 0..20 {
        let unit = [1, 512, 4096][random.below(3) as usize];
        let length = (1 + random.below(longest)).next_multiple_of(unit).min(SIZE);
        let offset = (random.below(SIZE - length + 1) / unit) * unit;
        let end = offset + length;
        if taken.iter().all(|&(from, to)| end <= from || offset >= to) {
            return Some((offset, length));
        }
    }
    None
}

fn run(seed: u64, structured: bool, limits: Limits, pool_bytes: usize) {
    let mut world = World::with_limits(table(SIZE), limits, pool_bytes);
    world.random.0 = seed;
    world.chunk = if seed.is_multiple_of(2) { usize::MAX } else { 3000 };
    world.connect("disk", structured);
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    let mut model = vec![0u8; SIZE as usize];
    for _ in 0..12 {
        let mut taken = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..1 + random.below(24) {
            let longest = [5000, 5000, 300_000, 3 << 20][random.below(4) as usize];
            let Some((offset, length)) = range(&mut random, &taken, longest) else {
                break;
            };
            let place = offset as usize..(offset + length) as usize;
            let (number, flags, data, expect) = match random.below(8) {
                0..3 => {
                    let data: Vec<u8> = (0..length).map(|at| (at ^ random.0) as u8).collect();
                    model[place].copy_from_slice(&data);
                    (
                        command::WRITE,
                        command_flags::FUA * random.below(2) as u16,
                        data,
                        Expect::Done,
                    )
                }
                3..6 => {
                    let data = model[place].to_vec();
                    (command::READ, 0, vec![], Expect::Data(offset, data))
                }
                6 => {
                    model[place].fill(0);
                    let flags = command_flags::NO_HOLE * random.below(2) as u16;
                    (command::WRITE_ZEROES, flags, vec![], Expect::Done)
                }
                _ if structured => (command::BLOCK_STATUS, 0, vec![], Expect::Extents(offset, length)),
                _ => (command::CACHE, 0, vec![], Expect::Done),
            };
            taken.push((offset, offset + length));
            let cookie = world.ask(number, flags, offset, length as u32, &data);
            expected.push((cookie, expect));
        }
        world.run();
        for (cookie, expect) in expected {
            let heard = world.replies.remove(&cookie).expect("an answer to every request");
            assert!(
                heard.done && heard.errors.is_empty(),
                "seed {seed}: {:?}",
                heard.errors
            );
            match expect {
                Expect::Done => assert!(heard.data.is_empty() && heard.extents.is_empty()),
                Expect::Data(offset, data) => assert!(heard.bytes(offset) == data, "seed {seed}"),
                Expect::Extents(offset, length) => {
                    let mut at = offset;
                    for (extent, state) in heard.extents {
                        let place = at as usize..(at + u64::from(extent)) as usize;
                        assert!(state == 0 || model[place].iter().all(|&byte| byte == 0));
                        at += u64::from(extent);
                    }
                    assert_eq!(at, offset + length, "seed {seed}");
                }
            }
        }
        assert!(world.replies.is_empty());
        assert_eq!(world.pool.held_bytes, 0, "nothing is held between batches");
    }
    assert!(world.read(0, SIZE as u32) == model, "seed {seed}");
    world.close();
}

#[test]
fn a_volume_behind_nbd_is_a_vector_of_bytes() {
    for seed in 1..40 {
        run(seed, seed % 3 != 0, Limits::default(), usize::MAX);
    }
}

#[test]
fn it_is_one_with_little_memory_too() {
    let limits = Limits {
        requests: 5,
        data_bytes: 4 << 20,
    };
    for seed in 1..40 {
        run(seed, seed % 3 != 0, limits, 4 << 20);
    }
}
