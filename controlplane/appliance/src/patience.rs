//! Waiting for a process that is dead but not gone.
//!
//! A process that was killed is reaped before the kernel has torn down its io_uring. Until then its last device writes may
//! still be on their way, and its sockets and claims on devices are held. That is as it should be: nobody may open a
//! pool while an old write can land in it. So whatever is in use is tried again for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};

/// How often it is tried.
const TRIES: u32 = 100;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a thread that waited for something stays for the next thing to wait for. Shorter than the time between two looks at the
/// devices: these would go round among all threads that there ever were at once, and none would end.
const THREADS_STAY: Duration = Duration::from_millis(500);

/// The control plane's runtime.
pub fn builder() -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.thread_keep_alive(THREADS_STAY);
    builder
}

/// Does `work`, and does it again while it says conflict; gives what it said last.
///
/// # Errors
/// Those of `work`.
pub async fn unless_in_use<T, W>(mut work: impl FnMut() -> W) -> Result<T>
where
    W: Future<Output = Result<T>>,
{
    for _ in 1..TRIES {
        match work().await {
            Err(error) if error.kind == ErrorKind::Conflict => tokio::time::sleep(PAUSE).await,
            result => return result,
        }
    }
    work().await
}

/// Does what waits for devices on a thread of its own: the control plane goes on meanwhile, however long one takes to answer.
///
/// # Errors
/// Those of `work`.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::failure(format!("waiting for devices: {error}"))))
}

/// The same, `limit` long. What is not done by then goes on alone, and what comes of it is dropped: it must change nothing.
///
/// # Errors
/// Those of `work`; unavailable if that was not enough.
pub async fn beside_for<T: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::time::timeout(limit, beside(work)).await;
    done.unwrap_or_else(|_| {
        let limit_s = limit.as_secs();
        let text = format!("{what}: no answer for {limit_s} s");
        Err(Error::new(ErrorKind::Unavailable, text).hint("the kernel's log may say why"))
    })
}

/// Devices that are asked for a sign of life, each by one thread, however many want to know.
#[derive(Debug, Default)]
pub struct SignsOfLife {
    /// What was asked and not answered yet; nobody sends anything: it ends.
    asked: Mutex<BTreeMap<PathBuf, watch::Receiver<()>>>,
}

/// Signs of life that are waited for.
#[derive(Debug)]
pub struct Awaited(BTreeMap<PathBuf, watch::Receiver<()>>);

impl SignsOfLife {
    /// Asks all of these by `question`, which has nothing to say but that it ends.
    pub fn ask<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a PathBuf>,
        question: impl Fn(&Path) + Copy + Send + 'static,
    ) -> Awaited {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, answer| answer.has_changed().is_ok());
        let one = |path: &PathBuf| {
            let answer = asked.entry(path.clone()).or_insert_with(|| {
                let (answer, awaited) = watch::channel(());
                let path = path.clone();
                tokio::task::spawn_blocking(move || {
                    question(&path);
                    drop(answer);
                });
                awaited
            });
            (path.clone(), answer.clone())
        };
        Awaited(paths.into_iter().map(one).collect())
    }
}

impl Awaited {
    /// The first of these that has not answered by then; all of them were asked.
    pub async fn silent<'a>(&self, paths: &'a [PathBuf], until: Instant) -> Option<&'a Path> {
        for path in paths {
            let mut answer = self.0[path].clone();
            let ended = async { while answer.changed().await.is_ok() {} };
            if tokio::time::timeout_at(until, ended).await.is_err() {
                return Some(path);
            }
        }
        None
    }
}

/// Questions that may never be answered, as those to a file system of a server that is gone.
///
/// Each is asked on a thread of its own, one at a time, and nobody waits long for it.
#[derive(Debug)]
pub struct Questions<K = usize, A = ()> {
    state: Arc<Mutex<Asked<K, A>>>,
}

#[derive(Debug)]
struct Asked<K, A> {
    /// What was asked and not answered yet.
    open: BTreeSet<K>,
    /// What was answered, until somebody takes it.
    answered: BTreeMap<K, A>,
}

impl<K, A> Clone for Questions<K, A> {
    fn clone(&self) -> Self {
        let state = Arc::clone(&self.state);
        Self { state }
    }
}

impl<K, A> Default for Questions<K, A> {
    fn default() -> Self {
        let asked = Asked {
            open: BTreeSet::new(),
            answered: BTreeMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(asked)),
        }
    }
}

impl<K: Ord + Clone + Send + 'static, A: Send + 'static> Questions<K, A> {
    /// Asks all of these that are not being asked already, each by its name, and waits until they are answered, or `limit` long. Gives
    /// the answers that nobody was given yet, whenever they were asked for.
    pub async fn ask(
        &self,
        questions: Vec<(K, impl FnOnce() -> A + Send + 'static)>,
        limit: Duration,
    ) -> BTreeMap<K, A> {
        let mut asked = Vec::new();
        for (name, question) in questions {
            if !self.state().open.insert(name.clone()) {
                continue;
            }
            let answered = self.clone();
            asked.push(tokio::task::spawn_blocking(move || {
                let answer = question();
                let mut state = answered.state();
                state.open.remove(&name);
                state.answered.insert(name, answer);
            }));
        }
        let all = async {
            for answer in asked {
                if let Err(error) = answer.await {
                    tracing::error!("asking a device: {error}");
                }
            }
        };
        // What comes later counts next time.
        let _ = tokio::time::timeout(limit, all).await;
        self.answers()
    }

    /// The answers that nobody was given yet.
    pub fn answers(&self) -> BTreeMap<K, A> {
        core::mem::take(&mut self.state().answered)
    }

    /// Whether an answer to this is still waited for.
    #[cfg(test)]
    pub fn is_open(&self, name: &K) -> bool {
        self.state().open.contains(name)
    }

    fn state(&self) -> MutexGuard<'_, Asked<K, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_without_an_answer_is_asked_once_and_not_waited_for() {
        let (questions, limit) = (Questions::default(), Duration::from_millis(50));
        let (answer, silence) = std::sync::mpsc::channel::<()>();
        let silence = Arc::new(Mutex::new(silence));
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let question = |answers: bool| {
            let (silence, asked) = (Arc::clone(&silence), Arc::clone(&asked));
            move || {
                asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                if !answers {
                    let _ = silence.lock().expect("nobody panics with it").recv();
                }
                answers
            }
        };
        let count = || asked.load(std::sync::atomic::Ordering::SeqCst);
        run(async {
            let told = questions
                .ask(vec![(7, question(false)), (8, question(true))], limit)
                .await;
            assert_eq!((count(), told), (2, BTreeMap::from([(8, true)])));
            let begun = std::time::Instant::now();
            questions
                .ask(vec![(7, question(false))], Duration::from_secs(60))
                .await;
            assert!(begun.elapsed() < Duration::from_secs(30), "nobody waits again");
            questions.ask(vec![(8, question(true))], limit).await;
            assert_eq!(count(), 3, "the others are asked, and this one is not");
            drop(answer);
            while questions.state().open.contains(&7) {
                tokio::time::sleep(PAUSE).await;
            }
            assert_eq!(
                questions.answers(),
                BTreeMap::from([(7, false)]),
                "it comes late, and counts"
            );
            let told = questions.ask(vec![(7, question(true))], limit).await;
            assert_eq!((count(), told), (4, BTreeMap::from([(7, true)])));
        });
    }

    #[test]
    fn threads_that_waited_at_once_end_although_something_is_asked_every_two_seconds() {
        const AT_ONCE: usize = 4;
        let threads = || {
            let all = std::fs::read_dir("/proc/self/task").expect("it is told");
            all.count()
        };
        run(async {
            let before = threads();
            let all_wait = Arc::new(std::sync::Barrier::new(AT_ONCE));
            let waiting = (0..AT_ONCE).map(|name| {
                let all_wait = Arc::clone(&all_wait);
                (name, move || all_wait.wait().is_leader())
            });
            let questions = Questions::default();
            let answers = questions.ask(waiting.collect(), Duration::from_secs(60)).await;
            assert_eq!(answers.len(), AT_ONCE, "each has a thread");
            for _ in 0..8 {
                tokio::time::sleep(crate::appliance::PERIOD).await;
                if threads() <= before {
                    return;
                }
                questions.ask(vec![(0, || true)], Duration::from_secs(60)).await;
            }
            panic!("{} threads, {before} before", threads());
        });
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = builder().enable_time().build().expect("a runtime");
        runtime.block_on(future)
    }

    #[test]
    fn what_is_in_use_for_a_while_is_waited_for() {
        let mut tries = 0;
        let result = run(unless_in_use(|| {
            tries += 1;
            std::future::ready(if tries < 4 {
                Err(Error::conflict("in use"))
            } else {
                Ok(tries)
            })
        }));
        assert_eq!(result, Ok(4));
    }

    #[test]
    fn other_failures_are_told_at_once() {
        let mut tries = 0;
        let result: Result<()> = run(unless_in_use(|| {
            tries += 1;
            std::future::ready(Err(Error::failure("broken")))
        }));
        assert_eq!((result.is_err(), tries), (true, 1));
    }
}
