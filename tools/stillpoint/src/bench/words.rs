//! A job in the words of fio, from a command line and from a job file.

use stillpoint_appliance::Error;
use stillpoint_bench::job::{Arrivals, Discards, Idle, Job, Load, Order, WriteMode};
use stillpoint_bench::target::Name;

use crate::size::{Duration, Size};

/// Requests a second if nothing is said.
const RATE_IOPS_DEFAULT: f64 = 1000.0;
/// Requests that each thread of an open loop has with the target at most, if nothing is said.
const OPEN_IN_FLIGHT_DEFAULT: usize = 256;

/// What was said; later words win over earlier ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Words {
    /// See [`Job::name`].
    pub name: Option<String>,
    /// `read`, `randwrite`, `randrw`...
    pub rw: Option<String>,
    /// A length, or `4k/60:64k/40`.
    pub bs: Option<String>,
    /// Requests in flight.
    pub iodepth: Option<String>,
    /// Percent of reads of a mixed job.
    pub rwmixread: Option<String>,
    /// Seconds, or with a unit.
    pub runtime: Option<String>,
    /// The same.
    pub ramp_time: Option<String>,
    /// Requests a second.
    pub rate_iops: Option<String>,
    /// `linear` or `poisson`.
    pub rate_process: Option<String>,
    /// Threads.
    pub numjobs: Option<String>,
    /// Bytes used of the target.
    pub size: Option<String>,
    /// The first of them.
    pub offset: Option<String>,
    /// Writes before each flush; 0: no flushes.
    pub fsync: Option<String>,
    /// `write` or `zeroes`.
    pub write_mode: Option<String>,
    /// `0` or `1`.
    pub writefua: Option<String>,
    /// `0`, or any of fio's ways.
    pub verify: Option<String>,
    /// A number.
    pub randseed: Option<String>,
    /// `random`, `zipf:1.2`.
    pub random_distribution: Option<String>,
    /// The target.
    pub target: Option<String>,
}

impl Words {
    /// These, where `over` says nothing.
    #[must_use]
    pub fn under(self, over: Self) -> Self {
        macro_rules! either {
            ($($word:ident),*) => { Self { $($word: over.$word.or(self.$word)),* } };
        }
        either!(
            name,
            rw,
            bs,
            iodepth,
            rwmixread,
            runtime,
            ramp_time,
            rate_iops,
            rate_process,
            numjobs,
            size,
            offset,
            fsync,
            write_mode,
            writefua,
            verify,
            randseed,
            random_distribution,
            target
        )
    }

    /// Takes a `key=value` of a job file; false if the key is not known.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let place = match key {
            "name" => &mut self.name,
            "rw" | "readwrite" => &mut self.rw,
            "bs" | "blocksize" | "bssplit" => &mut self.bs,
            "iodepth" => &mut self.iodepth,
            "rwmixread" => &mut self.rwmixread,
            "rwmixwrite" => {
                let reads = value
                    .parse::<u32>()
                    .ok()
                    .and_then(|writes| 100u32.checked_sub(writes));
                self.rwmixread =
                    Some(reads.map_or_else(|| format!("100 - {value}"), |reads| reads.to_string()));
                return true;
            }
            "runtime" | "timeout" => &mut self.runtime,
            "ramp_time" => &mut self.ramp_time,
            "rate_iops" => &mut self.rate_iops,
            "rate_process" => &mut self.rate_process,
            "numjobs" => &mut self.numjobs,
            "size" | "filesize" => &mut self.size,
            "offset" => &mut self.offset,
            "fsync" | "fdatasync" => &mut self.fsync,
            "write_mode" => &mut self.write_mode,
            "writefua" => &mut self.writefua,
            "verify" => &mut self.verify,
            "randseed" => &mut self.randseed,
            "random_distribution" => &mut self.random_distribution,
            "filename" | "uri" => &mut self.target,
            // They ask for what is done anyway.
            "time_based" | "direct" | "ioengine" | "thread" | "group_reporting" | "norandommap"
            | "do_verify" | "verify_fatal" | "invalidate" | "stonewall" => return true,
            _ => return false,
        };
        *place = Some(value.to_owned());
        true
    }

    /// What a job file says: its global section and the job of this name, or the only one.
    ///
    /// # Errors
    /// Usage: what is not understood, and where.
    pub fn of_file(text: &str, section: Option<&str>) -> Result<Self, Error> {
        let mut global = Self::default();
        let mut jobs: Vec<(String, Self)> = Vec::new();
        let mut in_global = true;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            let at = |what: String| Error::usage(format!("line {} of the job file: {what}", index + 1));
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                in_global = name == "global";
                if !in_global {
                    jobs.push((name.to_owned(), Self::default()));
                }
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or((line, "1"));
            let words = match jobs.last_mut() {
                Some((_, words)) if !in_global => words,
                _ => &mut global,
            };
            if !words.take(key.trim(), value.trim()) {
                return Err(at(format!(
                    "{:?} is not known here; remove it, or run this job with fio",
                    key.trim()
                )));
            }
        }
        let names: Vec<String> = jobs.iter().map(|(name, _)| name.clone()).collect();
        let chosen = match section {
            Some(wanted) => jobs.into_iter().find(|(name, _)| name == wanted),
            None if jobs.len() <= 1 => jobs.pop(),
            None => None,
        };
        match (chosen, names.is_empty()) {
            (Some((name, words)), _) => {
                let named = Self {
                    name: Some(name),
                    ..global
                };
                Ok(named.under(words))
            }
            (None, true) if section.is_none() => Ok(global),
            (None, _) => Err(Error::usage(format!(
                "the job file has the jobs {}: choose one with --section",
                names.join(", ")
            ))),
        }
    }

    /// The job that was asked for.
    ///
    /// # Errors
    /// Usage: a word that is not understood.
    pub fn job(&self, idle: Option<Idle>, interval_ns: Option<u64>) -> Result<Job, Error> {
        let (random, read_percent, discards) = self.kind()?;
        let order = match self.random_distribution.as_deref() {
            _ if !random => Order::Sequential,
            None | Some("random") => Order::Uniform,
            Some(text) => match text.strip_prefix("zipf:").map(str::parse) {
                Some(Ok(exponent)) => Order::Zipf(exponent),
                _ => return Err(wrong("random_distribution", text, "random or zipf:1.2")),
            },
        };
        let depth: Option<usize> = number("iodepth", &self.iodepth)?;
        let rate: Option<f64> = number("rate_iops", &self.rate_iops)?;
        let load = match (rate, depth) {
            (None, Some(in_flight)) => Load::Closed { in_flight },
            (rate, depth) => Load::Open {
                rate_iops: rate.unwrap_or(RATE_IOPS_DEFAULT),
                arrivals: match self.rate_process.as_deref() {
                    None | Some("linear" | "fixed") => Arrivals::Fixed,
                    Some("poisson") => Arrivals::Poisson,
                    Some(other) => return Err(wrong("rate_process", other, "linear or poisson")),
                },
                in_flight_max: depth.unwrap_or(OPEN_IN_FLIGHT_DEFAULT),
            },
        };
        let standard = Job::default();
        let size = |name, text: &Option<String>| -> Result<Option<u64>, Error> {
            text.as_deref().map(|text| bytes(name, text)).transpose()
        };
        Ok(Job {
            name: self.name.clone().unwrap_or(standard.name),
            read_percent,
            discards,
            write_mode: match self.write_mode.as_deref() {
                None | Some("write") => WriteMode::Data,
                Some("zeroes") => WriteMode::Zeroes,
                Some(other) => return Err(wrong("write_mode", other, "write or zeroes")),
            },
            durable_writes: match self.writefua.as_deref() {
                None | Some("0") => false,
                Some("1") => true,
                Some(other) => return Err(wrong("writefua", other, "0 or 1")),
            },
            flush_every: number("fsync", &self.fsync)?.filter(|&every| every > 0),
            order,
            lengths: lengths(self.bs.as_deref().unwrap_or("4k"))?,
            load,
            threads: number("numjobs", &self.numjobs)?.unwrap_or(1),
            idle: idle.unwrap_or(match load {
                Load::Open { .. } => Idle::Spin,
                Load::Closed { .. } => Idle::Nap,
            }),
            time_ns: time("runtime", &self.runtime)?.unwrap_or(standard.time_ns),
            ramp_ns: time("ramp_time", &self.ramp_time)?.unwrap_or(0),
            offset_bytes: size("offset", &self.offset)?.unwrap_or(0),
            size_bytes: size("size", &self.size)?,
            verify: self.verify.as_deref().is_some_and(|way| way != "0"),
            seed: number("randseed", &self.randseed)?.unwrap_or(standard.seed),
            interval_ns,
            timeline: false,
        })
    }

    /// Whether addresses are random, how many of a hundred requests read, and whether they discard.
    fn kind(&self) -> Result<(bool, u32, Discards), Error> {
        let mixed: u32 = number("rwmixread", &self.rwmixread)?.unwrap_or(50);
        let text = self.rw.as_deref().unwrap_or("randread");
        let (random, what) = text
            .strip_prefix("rand")
            .map_or((false, text), |what| (true, what));
        let (read_percent, discards) = match what {
            "read" => (100, Discards::None),
            "write" => (0, Discards::None),
            "rw" => (mixed, Discards::None),
            "readwrite" if !random => (mixed, Discards::None),
            "trim" => (0, Discards::Only),
            "trimwrite" => (0, Discards::BeforeWrites),
            _ => {
                let known = "read, write, rw, trim, trimwrite, or one of these with rand before it";
                return Err(wrong("rw", text, known));
            }
        };
        Ok((random, read_percent, discards))
    }
}

fn wrong(name: &str, text: &str, known: &str) -> Error {
    Error::usage(format!("{name}={text:?} is not understood: give {known}"))
}

fn number<T: std::str::FromStr>(name: &str, text: &Option<String>) -> Result<Option<T>, Error> {
    let Some(text) = text else {
        return Ok(None);
    };
    let read = text.parse().map(Some);
    read.map_err(|_| wrong(name, text, "a number"))
}

/// The name of a target; a size in it is read as sizes are.
///
/// # Errors
/// It is none.
pub fn target(text: &str) -> Result<Name, String> {
    match text.strip_prefix("null:") {
        Some(size) if !size.is_empty() => match size.parse::<Size>() {
            Ok(size) => Ok(Name::Null(size.0)),
            Err(error) => Err(format!("after null: comes a size or nothing; {error}")),
        },
        _ => text.parse(),
    }
}

fn bytes(name: &str, text: &str) -> Result<u64, Error> {
    let read = text.parse::<Size>();
    read.map(|size| size.0)
        .map_err(|error| Error::usage(format!("{name}: {error}")))
}

/// Seconds, or with a unit.
fn time(name: &str, text: &Option<String>) -> Result<Option<u64>, Error> {
    let Some(text) = text else {
        return Ok(None);
    };
    let with_unit = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("{text}s")
    } else {
        text.clone()
    };
    let read = with_unit.parse::<Duration>();
    let read = read.map_err(|error| Error::usage(format!("{name}: {error}")))?;
    Ok(Some(read.0))
}

/// `4k`, or lengths and their percent: `4k/60:64k/40`. Those without one share what is left, as with fio.
fn lengths(text: &str) -> Result<Vec<(u32, u32)>, Error> {
    let known = "a length as 4k, or lengths and their percent as 4k/60:64k/40";
    if text.contains(',') {
        let known = "one for all of them as 4k, or several and their percent as 4k/60:64k/40; lengths of reads, writes and discards \
                     each of its own (4k,8k) are not known here";
        return Err(wrong("bs", text, known));
    }
    let parts = text.split(':').map(|part| {
        let (length, share) = part.split_once('/').unwrap_or((part, ""));
        let length = u32::try_from(bytes("bs", length)?).map_err(|_| wrong("bs", text, known))?;
        let share: Option<u32> = match share {
            "" => None,
            share => Some(share.parse().map_err(|_| wrong("bs", text, known))?),
        };
        Ok((length, share))
    });
    let parts = parts.collect::<Result<Vec<_>, Error>>()?;
    let given: u64 = parts.iter().filter_map(|(_, share)| *share).map(u64::from).sum();
    let open = parts.iter().filter(|(_, share)| share.is_none()).count() as u32;
    let left = match u32::try_from(given) {
        // Nothing is said: they come equally often.
        Ok(0) if open as usize == parts.len() => 1,
        Ok(given) if given < 100 && open > 0 => 100 - given,
        Ok(100) if open == 0 => 0,
        _ => {
            return Err(Error::usage(format!(
                "bs={text:?}: the shares add up to {given}%: give percents that make 100, as 4k/60:64k/40"
            )));
        }
    };
    // In units so small that what is left can be divided.
    let unit = if left > 1 { open } else { 1 };
    let weights = parts
        .into_iter()
        .map(|(length, share)| (length, share.map_or(left, |share| share * unit)));
    Ok(weights.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        let words = Words::of_file(text, None).expect("understood");
        words.job(None, None).expect("a job")
    }

    #[test]
    fn a_simple_job_file_is_understood() {
        let text = "; a comment\n[global]\nioengine=libaio\ndirect=1\nbs=16k\nruntime=30\ntime_based\n\n[mixed]\nrw=randrw\n\
                    rwmixread=70\niodepth=32\nnumjobs=2\nsize=1g\nrandom_distribution=zipf:1.2\nverify=crc32c\n";
        let expected = Job {
            name: "mixed".into(),
            read_percent: 70,
            order: Order::Zipf(1.2),
            lengths: vec![(16384, 1)],
            load: Load::Closed { in_flight: 32 },
            threads: 2,
            idle: Idle::Nap,
            time_ns: 30_000_000_000,
            size_bytes: Some(1 << 30),
            verify: true,
            ..Job::default()
        };
        assert_eq!(job(text), expected);
    }

    #[test]
    fn without_a_depth_the_loop_is_open() {
        let open = |rate_iops, arrivals, in_flight_max| Load::Open {
            rate_iops,
            arrivals,
            in_flight_max,
        };
        assert_eq!(job("").load, open(1000.0, Arrivals::Fixed, 256));
        assert_eq!(
            job("rate_iops=5000\nrate_process=poisson\niodepth=8").load,
            open(5000.0, Arrivals::Poisson, 8)
        );
        assert_eq!(job("iodepth=8").load, Load::Closed { in_flight: 8 });
    }

    #[test]
    fn who_has_to_start_on_time_looks_all_the_time_unless_told_otherwise() {
        let idle = |text: &str, told| {
            let words = Words::of_file(text, None).expect("understood");
            words.job(told, None).expect("a job").idle
        };
        assert_eq!([idle("", None), idle("iodepth=8", None)], [Idle::Spin, Idle::Nap]);
        assert_eq!(idle("rate_iops=10\niodepth=8", None), Idle::Spin);
        assert_eq!(idle("", Some(Idle::Nap)), Idle::Nap);
        assert_eq!(idle("iodepth=8", Some(Idle::Spin)), Idle::Spin);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, said) in [
            ("rw=randtrims", "rw=\"randtrims\""),
            ("rw=randreadwrite", "rw=\"randreadwrite\""),
            ("fsync=often", "fsync"),
            ("rw=write\nwrite_mode=uncor", "write or zeroes"),
            ("rw=write\nwritefua=yes", "0 or 1"),
            ("bs=4x", "bs: "),
            ("bs=4k/x", "4k/60:64k/40"),
            ("bs=4k/50:64k/60", "add up to 110%"),
            ("bs=4k/50:64k/40", "add up to 90%"),
            ("bs=4k/100:64k", "add up to 100%"),
            ("bs=4k/4294967295:8k/1", "add up to 4294967296%"),
            ("bs=4k,8k", "reads, writes and discards"),
            ("iodepth=-1", "iodepth"),
            ("rate_process=burst", "linear or poisson"),
            ("random_distribution=pareto:1", "zipf:1.2"),
            ("runtime=1h", "runtime"),
            ("rwmixwrite=200", "rwmixread"),
        ] {
            let words = Words::of_file(text, None).expect("the keys are known");
            let error = words.job(None, None).expect_err(text);
            assert!(error.message.contains(said), "{}", error.message);
        }
        let error = Words::of_file("[a]\nrw=read\nsync_file_range=1", None).expect_err("unknown");
        assert!(error.message.contains("line 3") && error.message.contains("sync_file_range"));
    }

    #[test]
    fn discards_and_flushes_have_fios_words() {
        assert_eq!(job("rw=trim").discards, Discards::Only);
        let both = job("rw=randtrimwrite\nfdatasync=8");
        assert_eq!(
            (both.discards, both.order),
            (Discards::BeforeWrites, Order::Uniform)
        );
        assert_eq!(both.flush_every, Some(8));
        assert_eq!(job("rw=write\nfsync=0").flush_every, None);
    }

    #[test]
    fn durable_writes_and_zeros_have_fios_words() {
        let plain = job("rw=write\nwritefua=0\nwrite_mode=write");
        assert_eq!((plain.durable_writes, plain.write_mode), (false, WriteMode::Data));
        let both = job("rw=randrw\nwritefua=1\nwrite_mode=zeroes");
        assert_eq!((both.durable_writes, both.write_mode), (true, WriteMode::Zeroes));
        assert_eq!(job("rw=write\nwritefua"), job("rw=write\nwritefua=1"));
    }

    #[test]
    fn one_of_several_jobs_is_chosen() {
        let text = "[global]\nbs=8k\n[a]\nrw=read\n[b]\nrw=write\nbs=4k";
        let error = Words::of_file(text, None).expect_err("two");
        assert!(error.message.contains("a, b"));
        let chosen = Words::of_file(text, Some("b")).expect("there");
        assert_eq!(
            (chosen.rw.as_deref(), chosen.bs.as_deref()),
            (Some("write"), Some("4k"))
        );
        let chosen = Words::of_file(text, Some("a")).expect("there");
        assert_eq!(
            (chosen.name.as_deref(), chosen.bs.as_deref()),
            (Some("a"), Some("8k"))
        );
        assert!(Words::of_file(text, Some("c")).is_err());
        let chosen = Words::of_file("[a]\nrw=read\n[global]\nbs=8k", None).expect("one");
        assert_eq!(
            (chosen.rw.as_deref(), chosen.bs.as_deref()),
            (Some("read"), Some("8k"))
        );
    }

    #[test]
    fn a_target_of_nothing_has_a_size_as_sizes_are_written() {
        assert_eq!(target("null:1G"), Ok(Name::Null(1 << 30)));
        assert_eq!(target("null:4096"), Ok(Name::Null(4096)));
        assert_eq!(target("null:"), Ok(Name::Null(1 << 40)));
        assert!(target("null:x").expect_err("no size").contains("512MiB"));
        assert_eq!(target("/dev/sdz"), Ok(Name::File("/dev/sdz".into())));
    }

    #[test]
    fn lengths_have_shares() {
        assert_eq!(job("bssplit=4k/60:64k/40").lengths, [(4096, 60), (65536, 40)]);
        assert_eq!(job("bs=4k:8k").lengths, [(4096, 1), (8192, 1)]);
        let split = job("bssplit=4k/25:8k:16k/").lengths;
        assert_eq!(
            split,
            [(4096, 50), (8192, 75), (16384, 75)],
            "25%, and half of the rest each"
        );
    }
}
