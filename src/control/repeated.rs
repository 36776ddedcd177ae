//! Repeated tasks of backends: exactly those that are wanted run, each as long as nothing changes.

use hashbrown::HashMap;
use tokio::task::AbortHandle;

use crate::net::{BackendId, BackendIndex};

/// Running tasks, by backend, each with its parameters.
#[derive(Debug)]
pub struct Repeated<S>(HashMap<BackendIndex, Running<S>>);

#[derive(Debug)]
struct Running<S> {
    backend: BackendId,
    spec: S,
    task: AbortHandle,
}

impl<S> Drop for Running<S> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<S> Default for Repeated<S> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<S: PartialEq> Repeated<S> {
    /// Makes exactly the wanted tasks run; an unchanged one continues undisturbed. `start` gets the
    /// number of tasks that were started before it, from 1.
    pub fn sync(
        &mut self,
        wanted: impl IntoIterator<Item = (BackendId, S)>,
        start: impl Fn(BackendId, &S, u32) -> AbortHandle,
    ) {
        let mut before = std::mem::take(&mut self.0);
        let mut position = 0;
        for (backend, spec) in wanted {
            let same = |old: &Running<S>| old.backend == backend && old.spec == spec;
            let kept = before.remove(&backend.index).filter(same);
            let running = kept.unwrap_or_else(|| {
                position += 1;
                let task = start(backend, &spec, position);
                Running { backend, spec, task }
            });
            self.0.insert(backend.index, running);
        }
    }
}
