use super::*;

fn pool(chunks: usize) -> ProcessorBuffers {
    Arenas::map(1, chunks * CHUNK_BYTES)
        .expect("a small arena")
        .pool(0)
}

#[test]
fn buffers_are_aligned_large_enough_and_do_not_overlap() {
    let mut pool = pool(8);
    let mut taken = Vec::new();
    for length in [
        1,
        4096,
        4097,
        16384,
        65536,
        65537,
        262_145,
        CHUNK_BYTES,
        512,
        4096,
    ] {
        let buffer = pool.take(length).expect("enough for these");
        assert!(buffer.capacity() >= length);
        assert!((buffer.bytes().as_ptr() as usize).is_multiple_of(PIECE_BYTES_MIN));
        taken.push(buffer);
    }
    for (mark, buffer) in taken.iter_mut().enumerate() {
        buffer.bytes_mut().fill(mark as u8);
    }
    for (mark, buffer) in taken.iter().enumerate() {
        assert!(buffer.bytes().iter().all(|&byte| byte == mark as u8));
    }
    for buffer in taken {
        pool.give(buffer);
    }
    assert_eq!(pool.figures().out_bytes, 0);
}

#[test]
fn an_empty_pool_says_later_and_serves_again_after_a_give() {
    let mut pool = pool(2);
    let first = pool.take(CHUNK_BYTES).expect("one");
    let second = pool.take(CHUNK_BYTES).expect("two");
    assert!(pool.take(4096).is_none());
    assert_eq!(pool.figures().refused, 1);
    pool.give(first);
    let small = pool.take(4096).expect("a chunk came home");
    assert!(pool.take(CHUNK_BYTES).is_none());
    pool.give(small);
    pool.give(second);
    assert_eq!(pool.figures().out_bytes, 0);
}

#[test]
fn chunks_change_their_class_when_all_pieces_are_home() {
    let mut pool = pool(4);
    for _ in 0..3 {
        let small: Vec<Buffer> = std::iter::from_fn(|| pool.take(4096)).collect();
        assert_eq!(small.len(), 4 * 256);
        small.into_iter().for_each(|buffer| pool.give(buffer));
        let large: Vec<Buffer> = std::iter::from_fn(|| pool.take(CHUNK_BYTES)).collect();
        assert_eq!(large.len(), 4);
        large.into_iter().for_each(|buffer| pool.give(buffer));
    }
    assert_eq!(pool.figures().out_bytes, 0);
}

#[test]
fn a_buffer_given_on_another_thread_comes_home() {
    let arenas = Arenas::map(2, CHUNK_BYTES).expect("two small arenas");
    let mut home = arenas.pool(0);
    for round in 0..100 {
        let buffers: Vec<Buffer> = std::iter::from_fn(|| home.take(65_536)).collect();
        assert_eq!(buffers.len(), 16, "round {round}");
        std::thread::scope(|scope| {
            let arenas = &arenas;
            scope.spawn(move || {
                if round == 0 {
                    let mut away = arenas.pool(1);
                    buffers.into_iter().for_each(|buffer| away.give(buffer));
                    assert_eq!(away.figures().out_bytes, 0);
                } else {
                    let arena = &arenas.all()[0];
                    for buffer in buffers {
                        let memory = buffer.into_arena().expect("an arena buffer");
                        arena.send_home(memory.as_ptr() as usize);
                    }
                }
            });
        });
    }
    home.give(home.clone().take(4096).expect("all came home"));
    assert_eq!(home.figures().out_bytes, 0);
}

#[test]
fn random_taking_and_giving_never_hands_out_a_byte_twice() {
    let mut pool = pool(16);
    let mut out: Vec<(Buffer, u64)> = Vec::new();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for step in 0..20_000u64 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let random = (state >> 33) as usize;
        if random % 5 < 3 {
            let length = [4096, 9000, 65_536, 200_000, CHUNK_BYTES][random / 7 % 5];
            if let Some(mut buffer) = pool.take(length) {
                buffer.bytes_mut()[..8].copy_from_slice(&step.to_le_bytes());
                let end = buffer.capacity() - 8;
                buffer.bytes_mut()[end..].copy_from_slice(&step.to_le_bytes());
                out.push((buffer, step));
            }
        } else if !out.is_empty() {
            let (buffer, mark) = out.swap_remove(random % out.len());
            assert_eq!(buffer.bytes()[..8], mark.to_le_bytes());
            assert_eq!(buffer.bytes()[buffer.capacity() - 8..], mark.to_le_bytes());
            pool.give(buffer);
        }
    }
    out.into_iter().for_each(|(buffer, _)| pool.give(buffer));
    assert_eq!(pool.figures().out_bytes, 0);
}
