//! The targets by name.

mod api;
mod configuration;
mod nbd;
mod ondisk;

/// A parser that takes any bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Runs it; panics if what must hold does not.
    pub run: fn(&[u8]),
}

const ALL: [Target; 18] = [
    Target {
        name: "label",
        run: ondisk::label,
    },
    Target {
        name: "shard_header",
        run: ondisk::shard_header,
    },
    Target {
        name: "bitmap_page",
        run: ondisk::bitmap_page,
    },
    Target {
        name: "log_page",
        run: ondisk::log_page,
    },
    Target {
        name: "record",
        run: ondisk::record,
    },
    Target {
        name: "map_page",
        run: ondisk::map_page,
    },
    Target {
        name: "directory_page",
        run: ondisk::directory_page,
    },
    Target {
        name: "directory_rows",
        run: ondisk::directory_rows,
    },
    Target {
        name: "tail_header",
        run: ondisk::tail_header,
    },
    Target {
        name: "tail_segment",
        run: ondisk::tail_segment,
    },
    Target {
        name: "catalog",
        run: ondisk::catalog,
    },
    Target {
        name: "nbd_server",
        run: nbd::server,
    },
    Target {
        name: "nbd_client",
        run: nbd::client,
    },
    Target {
        name: "nbd_replies",
        run: nbd::replies,
    },
    Target {
        name: "configuration",
        run: configuration::file,
    },
    Target {
        name: "sizes",
        run: configuration::sizes,
    },
    Target {
        name: "bench_job",
        run: configuration::bench_job,
    },
    Target {
        name: "api",
        run: api::bodies,
    },
];

/// All targets.
#[must_use]
pub fn all() -> &'static [Target] {
    &ALL
}

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<Target> {
    ALL.iter().find(|target| target.name == name).copied()
}
