//! Reloads: the file is read again, and refused or put into force.

use std::collections::VecDeque;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::access;
use super::parts::Parts;
use super::removing::{notify_removals, notify_renames, removals};
use super::world::World;
use crate::config::Config;
use crate::control::admin::Reply;
use crate::control::api::{FlowsRemoved, Reloaded};
use crate::control::events::{Kind, NewEvent};
use crate::control::inputs::Load;
use crate::control::refusal::Refusal;
use crate::control::reload;
use crate::format::counted;

/// Last line of every refusal of a reload.
const NOTHING_APPLIED: &str = "nothing was applied: the old configuration stays in force";

/// Likely cause of a read that does not return.
const NETWORK: &str = "does it lie on a network file system that does not respond?";
/// Longest wait for the file. A configuration with the most VIPs and backends is read and checked
/// within a second.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Origin of a reload, which gets the result.
pub(super) enum Order {
    /// SIGHUP: a refusal is logged.
    Signal,
    /// The API.
    Request { dry_run: bool, reply: Reply<Result<Reloaded, Refusal>> },
}

/// Result of reading the configuration file.
type Loaded = Result<Config, Vec<String>>;

/// A read of the file in progress.
struct Reading {
    order: Order,
    loaded: oneshot::Receiver<Loaded>,
    deadline: Instant,
}

/// Reads of the configuration file, one at a time. Each has its own thread: a file on a network file
/// system blocks its reader for as long as the server is silent (`nfs(5)`, `hard`).
pub(super) struct Reloading {
    path: PathBuf,
    load: Load,
    reading: Option<Reading>,
    /// Orders that came during a read.
    waiting: VecDeque<Order>,
    /// A read that has not returned in time, and still has its thread.
    hung: Option<oneshot::Receiver<Loaded>>,
}

impl Reloading {
    pub(super) fn new(path: PathBuf, load: Load) -> Self {
        Self { path, load, reading: None, waiting: VecDeque::new(), hung: None }
    }

    /// Path of the configuration file.
    pub(super) fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether a reload is in progress or waits.
    pub(super) fn is_busy(&self) -> bool {
        self.reading.is_some() || !self.waiting.is_empty()
    }

    /// Begins to read the file for a reload, or does so after the reads that were ordered before.
    pub(super) fn order(&mut self, order: Order) {
        self.waiting.push_back(order);
        self.read_next();
    }

    /// Begins the next read, if none is in progress.
    fn read_next(&mut self) {
        if self.reading.is_some() {
            return;
        }
        let Some(order) = self.waiting.pop_front() else { return };
        let deadline = Instant::now() + READ_LIMIT;
        self.reading = Some(Reading { order, loaded: self.start_read(), deadline });
    }

    /// Starts a read on a thread of its own. While an earlier one hangs, the result is an error.
    fn start_read(&mut self) -> oneshot::Receiver<Loaded> {
        let (sender, loaded) = oneshot::channel();
        let hangs = |hung: &mut oneshot::Receiver<Loaded>| {
            matches!(hung.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        };
        if self.hung.as_mut().is_some_and(hangs) {
            let error = format!("{}: an earlier read still hangs; {NETWORK}", self.path.display());
            // The receiver is at hand.
            let _ = sender.send(Err(vec![error]));
            return loaded;
        }
        self.hung = None;
        let (load, path) = (Arc::clone(&self.load), self.path.clone());
        let read = move || {
            // The receiver has gone with the control thread.
            let _ = sender.send(load(&path));
        };
        // Without a thread, the sender is gone, which the receiver reports.
        let _ = thread::Builder::new().name("config".to_owned()).spawn(read);
        loaded
    }

    /// Waits for the end of the read in progress, for a bounded time. Without one, waits for ever.
    pub(super) async fn read(&mut self) -> (Order, Result<Config, Refusal>) {
        let loaded = match &mut self.reading {
            Some(Reading { loaded, deadline, .. }) => timeout_at(*deadline, loaded).await,
            None => std::future::pending().await,
        };
        let Some(Reading { order, loaded: receiver, .. }) = self.reading.take() else {
            return std::future::pending().await;
        };
        let path = self.path.display();
        let errors = match loaded {
            Ok(Ok(Ok(config))) => return (order, Ok(config)),
            Ok(Ok(Err(errors))) => errors,
            Ok(Err(_)) => vec![format!("{path}: cannot be read: no thread could be started")],
            Err(_) => {
                self.hung = Some(receiver);
                vec![format!("{path}: not read within {} s; {NETWORK}", READ_LIMIT.as_secs())]
            }
        };
        (order, Err(Refusal { status: StatusCode::UNPROCESSABLE_ENTITY, errors }))
    }

    /// Reloads with the file that was read for `order`, replies, and begins the next read.
    pub(super) async fn finish(
        &mut self,
        parts: &mut Parts,
        order: Order,
        new: Result<Config, Refusal>,
    ) {
        let dry_run = matches!(order, Order::Request { dry_run: true, .. });
        let result = match new {
            Ok(new) => reload(parts, new, dry_run).await,
            Err(refusal) => Err(refuse(refusal)),
        };
        if let Err(refusal) = &result
            && !dry_run
        {
            let text = format!("reload refused: {}", refusal.errors.join("; "));
            parts.world.journal.record(NewEvent::new(Kind::ReloadRefused), text);
        }
        match (order, result) {
            // The client may have disconnected.
            (Order::Request { reply, .. }, result) => _ = reply.send(result),
            // The journal has logged a refusal.
            (Order::Signal, _) => {}
        }
        self.read_next();
    }
}

/// Reloads all or nothing: errors are found before anything changes (except memory that was
/// allocated for a new address family), and a refusal states this.
async fn reload(parts: &mut Parts, new: Config, dry_run: bool) -> Result<Reloaded, Refusal> {
    check(parts, &new).await.map_err(refuse)?;
    let changes = reload::changes(&parts.world.config, &new);
    let removals = removals(&parts.world, &new).await;
    let flows = removals.iter().map(FlowsRemoved::from).collect();
    if dry_run {
        return Ok(Reloaded { changes, dry_run, flows, lists_pending: false });
    }
    let renames = reload::renames(&parts.world.config, &new);
    take_over(parts, new).await.map_err(refuse)?;
    for change in &changes {
        info!("reload: {change}");
    }
    let journal = &mut parts.world.journal;
    notify_renames(journal, renames);
    notify_removals(journal, &removals);
    let text = format!("reload: {}", counted(changes.len(), "change"));
    let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
    journal.record(NewEvent::new(Kind::Reload).with("changes", count), text);
    put_into_force(parts).await?;
    let lists_pending = parts.access.is_pending();
    Ok(Reloaded { changes, dry_run, flows, lists_pending })
}

/// Checks that a reload can apply `new`.
async fn check(parts: &mut Parts, new: &Config) -> Result<(), Refusal> {
    let frozen = reload::frozen(&parts.world.config, new);
    if !frozen.is_empty() {
        let keys = frozen.join(", ");
        let what = "cannot change while running: restart holdfast, or take the change back";
        let error = format!(
            "{keys} {what} (a reload changes [[vip]], [access], [new_flows], [tunnel] and [icmp] only)"
        );
        return Err(Refusal::new(StatusCode::CONFLICT, error));
    }
    access::check(&parts.world, new)?;
    parts.announcing.check(new).await.map_err(unprocessable)
}

/// Makes `new` the configuration, completely or not at all.
async fn take_over(parts: &mut Parts, new: Config) -> Result<(), Refusal> {
    let Parts { world, splitting, .. } = parts;
    populate(world, &new).await.map_err(unprocessable)?;
    let applied = world.registry.apply(&new.vips, &world.workers, Instant::now());
    applied.map_err(unprocessable)?;
    splitting.retain(&world.registry);
    world.config = new;
    Ok(())
}

/// Populates the memory of the flow tables and splices that `new` needs, where it is missing. Runs on
/// another thread, because it may take a second per worker.
async fn populate(world: &World, new: &Config) -> Result<(), String> {
    let tables: Vec<_> = world.workers.iter().map(|worker| Arc::clone(&worker.flows)).collect();
    let (families, spliced) = (new.families(), new.spliced());
    let shared = Arc::clone(&world.shared);
    let all = move || {
        tables.iter().try_for_each(|table| table.populate(families))?;
        shared.splices.populate(spliced)
    };
    let populated = tokio::task::spawn_blocking(all).await;
    let reported = |error: &dyn Display| {
        format!(
            "[workers] flows: {error}; if they lie on a pool of huge pages, raise vm.nr_hugepages"
        )
    };
    match populated {
        Ok(done) => done.map_err(|error| reported(&error)),
        Err(error) => Err(reported(&error)),
    }
}

/// Puts the new state into force. Removed rules leave the XDP program before the table is
/// published; new ones enter it afterwards.
async fn put_into_force(parts: &mut Parts) -> Result<(), Refusal> {
    let Parts { world, health, asking, .. } = parts;
    world.targets.send_replace(world.registry.targets());
    health.sync(&world.registry);
    asking.sync(world);
    parts.settle().await;
    let Parts { world, steering, access, announcing, .. } = parts;
    access.index(world, steering);
    access.follow(world);
    let listed = access.settle().await;
    let removed = steering.withdraw(world);
    world.publish();
    let steered = removed.and_then(|()| steering.follow(world));
    let announced = announcing.announce(world).await;
    let listed = listed.err().map(|reason| format!("the deny and allow lists are not: {reason}"));
    let steered = steered.err().map(|reason| format!("the XDP program's rules are not: {reason}"));
    let announced = announced.err().map(|error| error.to_string());
    let failures: Vec<String> = [listed, steered, announced].into_iter().flatten().collect();
    if failures.is_empty() { Ok(()) } else { Err(in_force(&failures.join("; "))) }
}

/// Returns the refusal for a failure after the new configuration was in force.
fn in_force(what: &str) -> Refusal {
    let error = format!("the configuration is in force, but {what}; tried again");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}

fn unprocessable(error: impl Display) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
}

/// Returns the refusal of a reload before anything changed.
fn refuse(mut refusal: Refusal) -> Refusal {
    refusal.errors.push(NOTHING_APPLIED.to_owned());
    refusal
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::control::reload::tests::config;

    /// Reads that end when the test sends their results.
    fn held() -> (Reloading, Sender<Loaded>) {
        let (results, next) = channel::<Loaded>();
        let next = Mutex::new(next);
        let load: Load = Arc::new(move |_| next.lock().unwrap().recv().unwrap());
        (Reloading::new("/etc/holdfast.toml".into(), load), results)
    }

    async fn result(reloading: &mut Reloading) -> Result<Config, String> {
        reloading.order(Order::Signal);
        let (_, new) = reloading.read().await;
        new.map_err(|refusal| refusal.errors.join("\n"))
    }

    /// The first read hangs; the second is not even begun; the third one follows the file's return.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_read_in_time_is_an_error_and_its_read_is_not_repeated() {
        let (mut reloading, results) = held();
        let error = result(&mut reloading).await.unwrap_err();
        assert!(error.starts_with("/etc/holdfast.toml: not read within 10 s;"), "{error}");
        let error = result(&mut reloading).await.unwrap_err();
        assert!(error.starts_with("/etc/holdfast.toml: an earlier read still hangs;"), "{error}");
        results.send(Err(vec!["too late".to_owned()])).unwrap();
        while reloading.hung.as_mut().is_some_and(|hung| hung.try_recv().is_err()) {
            thread::yield_now();
        }
        // A thread's reply does not keep a paused clock from jumping to the time limit.
        tokio::time::resume();
        results.send(Ok(config(Vec::new()))).unwrap();
        assert_eq!(result(&mut reloading).await, Ok(config(Vec::new())));
    }

    /// Orders are carried out one after the other.
    #[tokio::test]
    async fn orders_wait_for_the_read_in_progress() {
        let (mut reloading, results) = held();
        for _ in 0..3 {
            reloading.order(Order::Signal);
        }
        assert_eq!(reloading.waiting.len(), 2);
        for left in [1, 0, 0] {
            results.send(Err(vec!["a mistake".to_owned()])).unwrap();
            let (_, new) = reloading.read().await;
            assert_eq!(new.unwrap_err().errors, ["a mistake"]);
            reloading.read_next();
            assert_eq!(reloading.waiting.len(), left);
        }
    }
}
