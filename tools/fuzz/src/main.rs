//! `stillpoint-fuzz`: mutates the corpora and runs the targets, for so many seconds in all.
//!
//! A failing run prints how to replay it: the seed of the input determines the input.

use std::panic;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use stillpoint_fuzz::mutate::{Random, mutated};
use stillpoint_fuzz::{Target, all, corpus, find};

/// Runs the fuzz targets on mutated inputs.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only this target; may be given several times
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
    /// How long, over all targets
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u64,
    /// The first input of each target
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// So many inputs of each target, however long that takes
    #[arg(long, value_name = "N")]
    inputs: Option<u64>,
}

#[expect(clippy::print_stdout, reason = "that is what it is for")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let targets: Vec<Target> = if arguments.target.is_empty() {
        all().to_vec()
    } else {
        let wanted = arguments.target.iter();
        wanted
            .map(|name| find(name).unwrap_or_else(|| panic!("there is no target {name}")))
            .collect()
    };
    let share = Duration::from_secs(arguments.seconds) / targets.len() as u32;
    let mut failed = 0;
    let mut total = 0;
    for target in &targets {
        match run(target, arguments.seed, share, arguments.inputs) {
            Ok(inputs) => {
                println!("{}: {inputs} inputs", target.name);
                total += inputs;
            }
            Err(seed) => {
                println!(
                    "{}: FAILED; replay with: stillpoint-fuzz --target {} --seed {seed} --inputs 1",
                    target.name, target.name
                );
                failed += 1;
            }
        }
    }
    println!(
        "fuzz: {} passed, {failed} failed; {total} inputs",
        targets.len() - failed
    );
    ExitCode::from(u8::from(failed > 0))
}

/// Runs a target for a while; gives the number of inputs, or the seed of the one that failed.
fn run(target: &Target, first: u64, share: Duration, inputs: Option<u64>) -> Result<u64, u64> {
    let corpus = corpus(target.name);
    let began = Instant::now();
    let mut count = 0;
    while inputs.map_or_else(|| began.elapsed() < share, |inputs| count < inputs) {
        let seed = first + count;
        let input = mutated(&corpus, &mut Random::new(seed));
        panic::catch_unwind(|| (target.run)(&input)).map_err(|_| seed)?;
        count += 1;
    }
    Ok(count)
}
