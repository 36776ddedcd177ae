//! TCP health checks: one connecting task per backend, and a state machine for the verdict.
//!
//! The tasks only measure; the control task owns the verdicts ([`Hysteresis`]). The first result
//! decides at once; after that, `rise` successes or `fall` failures in a row change a verdict.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::api::HealthState;
use super::repeated::Repeated;
use crate::config::machine::CHECK_FILES;
use crate::config::{Backend, Health, TcpHealth, Vip};
use crate::format::reason;
use crate::net::BackendId;

/// Maximum number of concurrent checks, each with an open file. While that many
/// backends do not respond, checks of the others are late by at most the time-out.
pub const MAX_CONCURRENT: usize = CHECK_FILES;
/// Time between the first checks of two backends, and the shortest interval of a check.
const STAGGER: Duration = Duration::from_millis(1);
/// Maximum wait for the server's FIN when a connection is closed.
const LINGER: Duration = Duration::from_millis(250);

/// Verdict on a backend, from the results of its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hysteresis {
    /// The verdict; `None` before the first result.
    up: Option<bool>,
    /// Number of results in a row that contradict `up`.
    against: u32,
}

impl Hysteresis {
    /// Records one result and returns the new verdict if it changes. `rise` and `fall` are at least
    /// 1.
    pub fn observe(&mut self, success: bool, rise: u32, fall: u32) -> Option<bool> {
        if self.up == Some(success) {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let needed = if success { rise } else { fall };
        if self.up.is_some() && self.against < needed {
            return None;
        }
        *self = Self { up: Some(success), against: 0 };
        Some(success)
    }

    /// Creates the state after a verdict.
    pub const fn after(up: bool) -> Self {
        Self { up: Some(up), against: 0 }
    }

    /// The verdict; `None` before the first result.
    pub const fn verdict(self) -> Option<bool> {
        self.up
    }

    /// Verdict as a health state of the API.
    pub const fn state(self) -> HealthState {
        match self.up {
            None => HealthState::Unknown,
            Some(true) => HealthState::Up,
            Some(false) => HealthState::Down,
        }
    }

    /// Returns whether the backend may be used; a backend without a result counts as up.
    pub const fn usable(self) -> bool {
        !matches!(self.up, Some(false))
    }
}

/// Parameters of a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckSpec {
    /// Address and port to connect to.
    pub target: SocketAddr,
    /// Interval, time-out, rise and fall.
    pub health: TcpHealth,
}

impl CheckSpec {
    /// Returns the check of a backend; `None` without a health check, or without a port to connect
    /// to.
    pub fn of(vip: &Vip, backend: &Backend) -> Option<Self> {
        let Health::Tcp(health) = &vip.health else { return None };
        let port = health.port.or(backend.port).or(vip.ports.first())?;
        let target = SocketAddr::new(backend.address, port);
        Some(Self { target, health: health.clone() })
    }
}

/// Result of one check.
#[derive(Debug)]
pub struct Outcome {
    /// Checked backend.
    pub backend: BackendId,
    /// Success, or the reason of the failure.
    pub result: Result<(), String>,
}

/// Running checks, by backend.
#[derive(Debug)]
pub struct Checks {
    running: Repeated<CheckSpec>,
    permits: Arc<Semaphore>,
    outcomes: mpsc::Sender<Outcome>,
}

impl Checks {
    /// Creates an empty set of checks, which send their results to `outcomes`.
    pub fn new(outcomes: mpsc::Sender<Outcome>) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_CONCURRENT));
        Self { running: Repeated::default(), permits, outcomes }
    }

    /// Makes exactly the wanted checks run; an unchanged check continues undisturbed.
    pub fn sync(&mut self, wanted: impl IntoIterator<Item = (BackendId, CheckSpec)>) {
        let Self { running, permits, outcomes } = self;
        running.sync(wanted, |backend, spec, position| {
            let delay = offset(position, &spec.health);
            let (permits, outcomes) = (Arc::clone(permits), outcomes.clone());
            tokio::spawn(repeat(backend, spec.clone(), delay, permits, outcomes)).abort_handle()
        });
    }
}

/// Returns the delay of the first check of the `position`-th new backend: the first ones begin at
/// once, and thousands spread evenly over one interval instead of in a burst.
fn offset(position: u32, health: &TcpHealth) -> Duration {
    let steps = health.interval.as_millis() / STAGGER.as_millis();
    let steps = u32::try_from(steps).unwrap_or(u32::MAX).max(1);
    STAGGER * (position % steps)
}

/// Repeats the check until the receiver of `outcomes` is gone; `interval` runs from start to start.
async fn repeat(
    backend: BackendId,
    spec: CheckSpec,
    delay: Duration,
    permits: Arc<Semaphore>,
    outcomes: mpsc::Sender<Outcome>,
) {
    sleep(delay).await;
    let mut ticks = interval(spec.health.interval.max(STAGGER));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Ok(permit) = permits.acquire().await else { return };
        let (result, stream) = match connect(&spec).await {
            Ok(stream) => (Ok(()), Some(stream)),
            Err(reason) => (Err(reason), None),
        };
        if outcomes.send(Outcome { backend, result }).await.is_err() {
            return;
        }
        if let Some(stream) = stream {
            close(stream).await;
        }
        drop(permit);
    }
}

async fn connect(spec: &CheckSpec) -> Result<TcpStream, String> {
    let CheckSpec { target, health } = spec;
    match timeout(health.timeout, TcpStream::connect(target)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            Err(format!("connect to {target}: connection refused"))
        }
        Ok(Err(error)) => Err(format!("connect to {target}: {}", reason(&error))),
        Err(_) => {
            Err(format!("connect to {target}: no answer within {} ms", health.timeout.as_millis()))
        }
    }
}

/// Closes a connection as a client that is done: sends a FIN and reads the server's remaining data,
/// because unread data would turn the close into a RST, which servers log as an error.
async fn close(mut stream: TcpStream) {
    let drained = async {
        let mut scratch = [0; 512];
        stream.shutdown().await?;
        while stream.read(&mut scratch).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    // An error, or a server that keeps the connection open, ends the wait as well.
    let _ = timeout(LINGER, drained).await;
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::net::BackendIndex;

    /// Feeds `results` ('+' and '-') and returns the verdict after each: 'U' (up) or 'D' (down).
    fn verdicts(results: &str, rise: u32, fall: u32) -> String {
        let mut machine = Hysteresis::default();
        let verdict = |success| {
            machine.observe(success, rise, fall);
            if machine.usable() { 'U' } else { 'D' }
        };
        results.chars().map(|result| result == '+').map(verdict).collect()
    }

    #[test]
    fn hysteresis_rows() {
        for (name, results, rise, fall, expected) in [
            ("the first success decides", "+", 9, 9, "U"),
            ("the first failure decides", "-", 9, 9, "D"),
            ("fall counts in a row", "+--+---", 2, 3, "UUUUUUD"),
            ("rise counts in a row", "-+-++", 2, 3, "DDDDU"),
            ("one is enough where it says one", "+-+-", 1, 1, "UDUD"),
            ("a flap resets both counts", "+--+--+--", 2, 3, "UUUUUUUUU"),
        ] {
            assert_eq!(verdicts(results, rise, fall), expected, "{name}");
        }
        assert_eq!(Hysteresis::default().state(), HealthState::Unknown);
        assert!(Hysteresis::default().usable());
    }

    /// Compares every sequence of 8 results, with every rise and fall up to 3, with the definition.
    #[test]
    fn hysteresis_exhaustively() {
        for (rise, fall) in (1..=3).flat_map(|rise| (1..=3).map(move |fall| (rise, fall))) {
            for bits in 0..256_u32 {
                let results: Vec<bool> = (0..8).map(|i| bits >> i & 1 == 1).collect();
                let mut machine = Hysteresis::default();
                let mut verdict = *results.first().unwrap();
                for end in 1..=results.len() {
                    let seen = results.get(..end).unwrap();
                    let changed = machine.observe(*seen.last().unwrap(), rise, fall);
                    let before = verdict;
                    let tail = |wanted| {
                        u32::try_from(seen.iter().rev().take_while(|&&r| r == wanted).count())
                            .unwrap()
                    };
                    if tail(true) >= rise {
                        verdict = true;
                    } else if tail(false) >= fall {
                        verdict = false;
                    }
                    assert_eq!(machine.usable(), verdict, "{seen:?} rise {rise} fall {fall}");
                    assert_eq!(changed.is_some(), end == 1 || verdict != before, "{seen:?}");
                }
            }
        }
    }

    fn spec(target: SocketAddr) -> CheckSpec {
        let health = TcpHealth {
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
            port: None,
        };
        CheckSpec { target, health }
    }

    fn id(index: u16) -> BackendId {
        BackendId { index: BackendIndex(index), generation: 0 }
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn a_listener_is_found_and_its_banner_does_not_become_a_reset() {
        let (listener, address) = listener().await;
        let (sender, mut outcomes) = mpsc::channel(8);
        let mut checks = Checks::new(sender);
        checks.sync([(id(3), spec(address))]);
        let (mut peer, _) = listener.accept().await.unwrap();
        peer.write_all(b"220 ready\r\n").await.unwrap();
        let outcome = outcomes.recv().await.unwrap();
        assert_eq!((outcome.backend, outcome.result), (id(3), Ok(())));
        let mut rest = Vec::new();
        assert_eq!(peer.read_to_end(&mut rest).await.unwrap(), 0, "a FIN, not a RST");
    }

    #[tokio::test]
    async fn a_closed_port_is_told_in_words() {
        let (listener, address) = listener().await;
        drop(listener);
        let (sender, mut outcomes) = mpsc::channel(8);
        let mut checks = Checks::new(sender);
        checks.sync([(id(0), spec(address))]);
        let failure = outcomes.recv().await.unwrap().result.unwrap_err();
        assert_eq!(failure, format!("connect to {address}: connection refused"));
    }

    #[tokio::test(start_paused = true)]
    async fn checks_come_once_per_interval_and_end_when_no_longer_wanted() {
        let (listener, address) = listener().await;
        drop(listener);
        let (sender, mut outcomes) = mpsc::channel(64);
        let mut checks = Checks::new(sender);
        let begun = tokio::time::Instant::now();
        checks.sync((0..4).map(|index| (id(index), spec(address))));
        for _ in 0..4 {
            outcomes.recv().await.unwrap();
        }
        assert!(begun.elapsed() < Duration::from_millis(50), "first checks begin at once");
        for _ in 0..4 {
            outcomes.recv().await.unwrap();
        }
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert!(begun.elapsed() < Duration::from_millis(1050));
        checks.sync([(id(1), spec(address))]);
        assert_eq!(outcomes.recv().await.unwrap().backend, id(1));
        assert_eq!(outcomes.recv().await.unwrap().backend, id(1), "only one is left");
        checks.sync([]);
        assert!(timeout(Duration::from_secs(5), outcomes.recv()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_start_within_one_interval() {
        let (listener, address) = listener().await;
        drop(listener);
        let (sender, mut outcomes) = mpsc::channel(64);
        let mut checks = Checks::new(sender);
        let begun = tokio::time::Instant::now();
        checks.sync((0..3000).map(|index| (id(index), spec(address))));
        let mut seen = hashbrown::HashSet::new();
        while seen.len() < 3000 {
            seen.insert(outcomes.recv().await.unwrap().backend);
        }
        assert!(begun.elapsed() <= Duration::from_millis(1600), "{:?}", begun.elapsed());
    }
}
