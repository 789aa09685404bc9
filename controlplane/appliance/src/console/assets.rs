//! The page: made of `controlplane/console/src` by `npm run build` there, kept with the sources, and embedded here.

use axum::http::header::{self, HeaderName};
use axum::response::{IntoResponse, Response};

/// A file of the page.
#[derive(Debug)]
pub(super) struct Asset {
    /// Where the browser finds it.
    pub(super) path: &'static str,
    kind: &'static str,
    content: &'static str,
}

macro_rules! asset {
    ($path:literal, $file:literal, $kind:literal) => {
        Asset {
            path: $path,
            kind: $kind,
            content: include_str!(concat!("../../../console/dist/", $file)),
        }
    };
}

/// All of them.
pub(super) static ALL: &[Asset] = &[
    asset!("/", "index.html", "text/html; charset=utf-8"),
    asset!("/console.js", "console.js", "text/javascript; charset=utf-8"),
    asset!("/console.css", "console.css", "text/css; charset=utf-8"),
    asset!("/icon.svg", "icon.svg", "image/svg+xml"),
    asset!("/licenses.txt", "licenses.txt", "text/plain; charset=utf-8"),
];

/// With every answer: nothing comes from elsewhere, nothing is inline, nothing is kept, nobody frames it.
pub(super) static HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

impl Asset {
    pub(super) fn response(&self) -> Response {
        ([(header::CONTENT_TYPE, self.kind)], self.content).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    /// What all files of the page may come to.
    const BYTES_MAX: usize = 200 << 10;

    fn place() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../console")
    }

    fn files(directory: &str) -> BTreeSet<String> {
        let found = std::fs::read_dir(place().join(directory)).expect("a directory");
        found
            .map(|entry| {
                let name = entry.expect("an entry").file_name();
                format!("{directory}/{}", name.to_str().expect("UTF-8"))
            })
            .collect()
    }

    /// Without node: the build says what it was made of and what it made, and that is what is there.
    #[test]
    fn the_page_is_what_its_sources_say() {
        let again = "run `npm ci && npm run build` in controlplane/console";
        let list = std::fs::read_to_string(place().join("dist/made-of.txt")).expect("the list of the build");
        let mut listed = BTreeSet::new();
        for line in list.lines() {
            let (sum, name) = line.split_once("  ").expect("a sum and a name");
            let content = std::fs::read(place().join(name));
            let content = content.unwrap_or_else(|error| panic!("{name}: {error}: {again}"));
            assert_eq!(
                format!("{:08x}", crc32c::crc32c(&content)),
                sum,
                "{name} is another now: {again}"
            );
            listed.insert(name.to_owned());
        }
        let mut there = files("src");
        there.extend(files("dist"));
        there.remove("dist/made-of.txt");
        for name in ["build.mjs", "package.json", "package-lock.json", "tsconfig.json"] {
            there.insert(name.to_owned());
        }
        assert_eq!(listed, there, "{again}");
    }

    #[test]
    fn the_page_is_small_whole_and_loads_nothing_from_elsewhere() {
        let bytes: usize = ALL.iter().map(|asset| asset.content.len()).sum();
        assert!(bytes <= BYTES_MAX, "{bytes}");
        let page = ALL.iter().find(|asset| asset.path == "/").expect("the page");
        for asset in ALL
            .iter()
            .filter(|asset| asset.path.ends_with(".js") || asset.path.ends_with(".css"))
        {
            assert!(page.content.contains(asset.path), "{}", asset.path);
        }
        for inline in ["<style", "style=", "onclick", "javascript:", "//"] {
            assert!(!page.content.contains(inline), "{inline}");
        }
        assert_eq!(page.content.matches("<script").count(), 1);
        assert!(
            page.content.contains("<script src=\"/console.js\""),
            "{}",
            page.content
        );
    }
}
