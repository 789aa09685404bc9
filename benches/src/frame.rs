//! What the mains of the benches have in common: where the appliance and the files are, how a run ends, what is kept of it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::Failure;
use crate::process;

/// Options of every bench that starts the appliance.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// A release build of the appliance
    #[arg(long, default_value = "target/release/stillpoint")]
    pub stillpoint: PathBuf,
    /// Directory for pools and images; its file system is what is measured [default: that of the binary]
    #[arg(long)]
    pub backing: Option<PathBuf>,
}

impl Place {
    /// The program and the directory for files, both as absolute paths.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn find(&self) -> Result<(PathBuf, PathBuf), Failure> {
        let found = |path: &Path, hint: &str| {
            path.canonicalize()
                .map_err(|error| format!("{}: {error}{hint}", path.display()))
        };
        let program = found(
            &self.stillpoint,
            "; build it with `cargo build --release -p stillpoint`",
        )?;
        let beside = program.parent().unwrap_or(Path::new("."));
        let backing = found(self.backing.as_deref().unwrap_or(beside), "")?;
        Ok((program, backing))
    }
}

impl Place {
    /// The directory for files alone, for what needs no appliance: where the bench itself lies, if nothing is said.
    ///
    /// # Errors
    /// It is not there.
    pub fn backing(&self) -> Result<PathBuf, Failure> {
        let program = std::env::current_exe()?;
        let beside = program.parent().unwrap_or(Path::new("."));
        let backing = self.backing.as_deref().unwrap_or(beside);
        backing
            .canonicalize()
            .map_err(|error| format!("{}: {error}", backing.display()).into())
    }
}

/// Runs a bench from its main: whatever ends it, its processes and files go with it.
pub fn run(name: &str, measure: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    process::clean_up_always();
    let ended = measure();
    process::clean_up();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{name}: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Progress, on standard error: standard output is the table.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints the tables; keeps them as `NAME.md` and everything as `NAME.json` in `out`, if there is one.
///
/// # Errors
/// A file cannot be written.
pub fn tell(name: &str, out: Option<&Path>, tables: &str, report: &impl Serialize) -> Result<(), Failure> {
    if let Some(out) = out {
        fs::create_dir_all(out)?;
        fs::write(out.join(format!("{name}.md")), tables)?;
        fs::write(
            out.join(format!("{name}.json")),
            serde_json::to_vec_pretty(report)?,
        )?;
    }
    writeln!(std::io::stdout(), "{tables}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_named_with_what_to_do() {
        let place = Place {
            stillpoint: "/no/such/program".into(),
            backing: None,
        };
        let error = place.find().expect_err("is not there").to_string();
        assert!(
            error.contains("/no/such/program") && error.contains("cargo build"),
            "{error}"
        );
    }

    #[test]
    fn a_report_is_kept_in_both_forms() {
        let out = tempfile::tempdir().expect("a directory");
        tell("x", Some(&out.path().join("new")), "| a |", &[1, 2]).expect("kept");
        let kept = |name: &str| fs::read_to_string(out.path().join("new").join(name)).expect("is there");
        assert_eq!(kept("x.md"), "| a |");
        assert_eq!(
            serde_json::from_str::<Vec<u8>>(&kept("x.json")).expect("JSON"),
            [1, 2]
        );
    }
}
