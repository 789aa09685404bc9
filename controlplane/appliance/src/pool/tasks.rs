//! Tasks of the control plane that belong to an open pool: they begin when it is open and have ended before it closes.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Pool;

/// The tasks, and the way to end them.
#[derive(Debug)]
pub(super) struct Tasks {
    ending: watch::Sender<bool>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            ending: watch::Sender::new(false),
            handles: Mutex::default(),
        }
    }
}

impl Tasks {
    /// Starts a task that ends by itself soon after [`Self::end`]; after that none is started.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if self.are_ending() {
            return;
        }
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.retain(|handle| !handle.is_finished());
        handles.push(tokio::spawn(task));
    }

    /// Does `work`, but not beyond the end of the tasks; `None`: that came first.
    pub(super) async fn until_the_end<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut ending = self.ending.subscribe();
        tokio::select! {
            // The sender lives as long as this.
            _ = ending.wait_for(|&ending| ending) => None,
            done = work => Some(done),
        }
    }

    /// Whether the tasks are to end.
    pub(super) fn are_ending(&self) -> bool {
        *self.ending.borrow()
    }

    /// Ends the tasks, and waits for what they are in the middle of.
    pub(super) async fn end(&self) {
        self.ending.send_replace(true);
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in handles {
            if let Err(error) = handle.await {
                tracing::error!("a task of a pool ended before its time: {error}");
            }
        }
    }
}

impl Pool {
    /// Starts what the control plane does for an open pool by itself.
    pub fn start_tasks(self: &Arc<Self>) {
        let first = self.itself.set(Arc::downgrade(self)).is_ok();
        assert!(first, "tasks start once");
        let pool = self.clone();
        self.tasks.spawn(async move {
            pool.tasks.until_the_end(pool.keep_time()).await;
        });
        let pool = self.clone();
        self.tasks.spawn(async move {
            pool.tasks.until_the_end(pool.watch_scrubs()).await;
        });
        self.start_granting();
        let schedules: Vec<u64> = self.catalog().schedules().map(|schedule| schedule.id).collect();
        for id in schedules {
            self.start_schedule(id);
        }
    }

    /// For a task.
    pub(super) fn itself(&self) -> Option<Arc<Self>> {
        self.itself.get().and_then(Weak::upgrade)
    }

    /// Ends that. Before the pool is closed.
    pub async fn end_tasks(&self) {
        self.tasks.end().await;
    }
}
