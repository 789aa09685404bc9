//! The corpora are replayed, and each is worth having: its inputs reach what they were made for.

use std::collections::BTreeSet;

use stillpoint_fuzz::mutate::{Random, mutated};
use stillpoint_fuzz::{all, corpus, corpus_directory};

#[test]
fn every_input_of_every_corpus_is_taken() {
    for target in all() {
        for (name, input) in corpus(target.name) {
            let run = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(run.is_ok(), "target {} fails on {name}", target.name);
        }
    }
}

#[test]
fn a_thousand_mutations_of_each_are_taken() {
    for target in all() {
        let corpus = corpus(target.name);
        for seed in 1..=1000 {
            let input = mutated(&corpus, &mut Random::new(seed));
            let run = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(run.is_ok(), "target {} fails on seed {seed}", target.name);
        }
    }
}

#[test]
fn mutations_differ_and_are_determined_by_their_seed() {
    let corpus = corpus("record");
    let input = |seed| mutated(&corpus, &mut Random::new(seed));
    assert!((1..50).all(|seed| input(seed) == input(seed)));
    let different: BTreeSet<Vec<u8>> = (1..50).map(input).collect();
    assert!(different.len() > 40);
}

#[test]
fn every_corpus_belongs_to_a_target_and_is_small() {
    let root = corpus_directory("");
    let named: BTreeSet<String> = all().iter().map(|target| target.name.to_owned()).collect();
    let there: BTreeSet<String> = std::fs::read_dir(root)
        .expect("the corpora")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(there, named);
    for target in all() {
        let bytes: usize = corpus(target.name).iter().map(|(_, input)| input.len()).sum();
        assert!(bytes < 64 << 10, "{}: {bytes} bytes", target.name);
    }
}

/// The targets that libFuzzer runs are these.
#[test]
fn libfuzzer_has_every_target() {
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer/Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).expect("there");
    for target in all() {
        assert!(
            manifest.contains(&format!("name = \"{}\"", target.name)),
            "{}",
            target.name
        );
    }
}
