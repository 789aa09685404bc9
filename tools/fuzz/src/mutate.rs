//! A small mutator: what libFuzzer does to inputs, without the feedback. A seed determines all of it.

/// Bytes of an input at most.
const INPUT_BYTES_MAX: usize = 1 << 16;

/// Numbers that parsers stumble over.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];

/// A generator of numbers that a seed determines.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

/// An input made of `inputs`: one of them with up to eight changes.
#[must_use]
pub fn mutated(inputs: &[(String, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut bytes = inputs[random.below(inputs.len())].1.clone();
    for _ in 0..=random.below(8) {
        change(&mut bytes, inputs, random);
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, inputs: &[(String, Vec<u8>)], random: &mut Random) {
    if bytes.is_empty() {
        bytes.push(random.below(256) as u8);
        return;
    }
    let at = random.below(bytes.len());
    let length = 1 + random.below((bytes.len() - at).min(64));
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.below(256) as u8,
        2 => {
            let edge = EDGES[random.below(EDGES.len())];
            let width = [1, 2, 4, 8][random.below(4)];
            let number = if random.below(2) == 0 {
                edge.to_le_bytes()
            } else {
                edge.rotate_left(8 * (8 - width as u32)).to_be_bytes()
            };
            let end = bytes.len().min(at + width);
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        3 => {
            let change = random.below(16) as u8;
            bytes[at] = if random.below(2) == 0 {
                bytes[at].wrapping_add(change)
            } else {
                bytes[at].wrapping_sub(change)
            };
        }
        4 => {
            bytes.drain(at..at + length);
        }
        5 => {
            let piece = bytes[at..at + length].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, piece);
        }
        6 => bytes.truncate(at),
        _ => {
            // The beginning of one, the end of another.
            let other = &inputs[random.below(inputs.len())].1;
            let from = random.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}
