//! Blocks that say which write they come from, and that cannot be mistaken for another one's or a mixture.

/// Size of a stamped block, in bytes.
pub const BLOCK_BYTES: usize = 4096;

const WORDS: usize = BLOCK_BYTES / 8;

/// A block that no write of this demo made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Fills `bytes` (one block) as write number `sequence` of block `block`.
pub fn fill(bytes: &mut [u8], block: u64, sequence: u64) {
    assert_eq!(bytes.len(), BLOCK_BYTES);
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&expected(index, block, sequence).to_le_bytes());
    }
}

/// The number of the write that made this content of block `block`.
///
/// # Errors
/// [`Broken`] if no write of this block looks like that.
pub fn read(bytes: &[u8], block: u64) -> Result<u64, Broken> {
    let mut words = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let sequence = words.next().ok_or(Broken)?;
    let matches = words
        .enumerate()
        .all(|(index, word)| word == expected(index + 1, block, sequence));
    if matches && bytes.len() == BLOCK_BYTES {
        Ok(sequence)
    } else {
        Err(Broken)
    }
}

/// Word 0 is the write's number, word 1 the block's; the others are made of both.
fn expected(index: usize, block: u64, sequence: u64) -> u64 {
    match index {
        0 => sequence,
        1 => block,
        2..WORDS => {
            (sequence ^ block.rotate_left(32) ^ (index as u64) << 16).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }
        _ => unreachable!("a block has {WORDS} words"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_knows_its_write_and_nothing_else_passes() {
        let mut one = vec![0; BLOCK_BYTES];
        let mut two = vec![0; BLOCK_BYTES];
        fill(&mut one, 7, 100);
        fill(&mut two, 7, 101);
        assert_eq!(read(&one, 7), Ok(100));
        assert_eq!(read(&one, 8), Err(Broken), "another block's");
        for cut in [8, 512, 2048, 4088] {
            let torn = [&two[..cut], &one[cut..]].concat();
            assert_eq!(read(&torn, 7), Err(Broken), "torn at {cut}");
        }
        assert_eq!(read(&vec![0; BLOCK_BYTES], 7), Err(Broken));
        assert_eq!(read(&one[..512], 7), Err(Broken));
    }
}
