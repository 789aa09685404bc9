//! The direction of imports that ARCHITECTURE.md draws is the one that cargo sees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace")
}

/// For each member of the workspace, by its folder: the folders of the members it imports (not in tests).
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let root = root();
    let folder = |path: &str| {
        let path = Path::new(path);
        path.strip_prefix(&root)
            .ok()
            .and_then(Path::to_str)
            .map(ToOwned::to_owned)
    };
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let manifest = package["manifest_path"].as_str().expect("a path");
            let of = folder(manifest.trim_end_matches("/Cargo.toml")).expect("within the workspace");
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let normal = dependencies.iter().filter(|found| found["kind"].is_null());
            (
                of,
                normal
                    .filter_map(|found| folder(found["path"].as_str()?))
                    .collect(),
            )
        })
        .collect()
}

/// The table "The rooms" of ARCHITECTURE.md: crate, what it may import; `None` for anything.
fn rooms() -> BTreeMap<String, Option<BTreeSet<String>>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the document");
    let all: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line
                .strip_prefix('|')?
                .strip_suffix('|')?
                .split('|')
                .map(str::trim)
                .collect();
            let name = cells.first()?.strip_prefix('`')?.strip_suffix('`')?;
            (cells.len() == 3 && (name.contains('/') || name == "hw" || name == "benches"))
                .then(|| (name.to_owned(), cells[2].to_owned()))
        })
        .collect();
    let above = |index: usize| all[..index].iter().map(|(name, _)| name.clone()).collect();
    let named = |short: &str| {
        let found = all
            .iter()
            .find(|(name, _)| name == short || name.ends_with(&format!("/{short}")));
        found
            .unwrap_or_else(|| panic!("ARCHITECTURE.md names {short}, which has no row"))
            .0
            .clone()
    };
    all.iter()
        .enumerate()
        .map(|(index, (name, allowed))| {
            let allowed = match allowed.as_str() {
                "any" => None,
                "" => Some(BTreeSet::new()),
                "all of the above" => Some(above(index)),
                list => Some(list.split(", ").map(named).collect()),
            };
            (name.clone(), allowed)
        })
        .collect()
}

#[test]
fn imports_go_only_where_architecture_md_says() {
    let rooms = rooms();
    let imports = imports();
    let drawn: BTreeSet<&String> = rooms.keys().collect();
    let there: BTreeSet<&String> = imports.keys().collect();
    assert_eq!(
        drawn, there,
        "ARCHITECTURE.md has a row for every member of the workspace"
    );
    for (member, imported) in &imports {
        if let Some(allowed) = &rooms[member] {
            let stray: Vec<_> = imported.difference(allowed).collect();
            assert!(
                stray.is_empty(),
                "{member} imports {stray:?}; it may import {allowed:?}"
            );
        }
    }
}

#[test]
fn the_pure_crates_forbid_clocks_threads_and_random_order() {
    for member in [
        "dataplane/ondisk",
        "dataplane/processor",
        "dataplane/export",
        "controlplane/coordinator",
    ] {
        let text = std::fs::read_to_string(root().join(member).join("clippy.toml")).expect(member);
        for forbidden in [
            "std::time::Instant",
            "std::time::SystemTime",
            "std::sync::Mutex",
            "std::fs::File",
            "std::collections::HashMap",
            "std::thread::spawn",
        ] {
            assert!(
                text.contains(forbidden),
                "{member}/clippy.toml does not forbid {forbidden}"
            );
        }
    }
}

#[test]
fn unsafe_code_is_allowed_in_hw_alone() {
    for member in imports().keys().filter(|member| *member != "hw") {
        let manifest = std::fs::read_to_string(root().join(member).join("Cargo.toml")).expect(member);
        let after = manifest
            .split("[lints]")
            .nth(1)
            .unwrap_or_else(|| panic!("{member} has no [lints]"));
        assert!(
            after.trim_start().starts_with("workspace = true"),
            "{member} has lints of its own"
        );
    }
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace");
    assert!(workspace.contains("unsafe_code = \"deny\""));
}
