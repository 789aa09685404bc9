//! Loop devices and file systems of the tests' own. They need root, and a kernel that has them.

use std::path::{Path, PathBuf};

use super::foreign::{must, run};

/// Why this machine cannot do without it what a test wants; `None` if it can.
pub fn why_not() -> Option<String> {
    let user = run("id", &["-u"]);
    if user.output.trim() != "0" {
        return Some("it needs root".to_owned());
    }
    let free = run("losetup", &["-f"]);
    (!free.success).then(|| format!("there are no loop devices here: {}", free.text.trim()))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A loop device over a file; gone when dropped.
pub struct Loop {
    /// Its path.
    pub device: PathBuf,
}

impl Loop {
    /// Over this file.
    pub fn over(file: &Path, read_only: bool) -> Self {
        let mut arguments = vec!["--find", "--show"];
        if read_only {
            arguments.push("--read-only");
        }
        arguments.push(text(file));
        Self {
            device: PathBuf::from(must("losetup", &arguments).trim()),
        }
    }

    /// Its path as text.
    pub fn path(&self) -> &str {
        text(&self.device)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // It may have been detached by the test.
        run("losetup", &["--detach", self.path()]);
    }
}

/// A file system of so many bytes in a file, mounted; unmounted when dropped.
pub struct FileSystem {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl FileSystem {
    /// ext4 of `bytes` in the file `image`, mounted at `path`, both new.
    pub fn make(image: &Path, path: &Path, bytes: u64) -> Self {
        let file = std::fs::File::create_new(image).expect("a new file");
        file.set_len(bytes).expect("a sparse file");
        std::fs::create_dir(path).expect("a new directory");
        must("mkfs.ext4", &["-q", "-m", "0", text(image)]);
        must("mount", &["-o", "loop", text(image), text(path)]);
        Self {
            path: path.to_owned(),
        }
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // Lazily: a daemon that is being ended may hold it for a moment longer.
        run("umount", &["--lazy", text(&self.path)]);
    }
}
