//! Hellos to backends: whether the program of `holdfast backend` is there, and knows the VIP.
//!
//! ```text
//! task of a backend, every two seconds:  UDP socket -- hello --> program      (wire::ask)
//!                                                   <- answer --
//! ```
//!
//! Only a backend that has answered is asked for flows; after [`MISSES`] hellos without an answer it
//! is asked no longer. The tasks only measure; the control task owns the state ([`Program`]).

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use super::repeated::Repeated;
use crate::config::machine::HELLO_FILES;
use crate::net::{Address, BackendId, FleetKey};
use crate::wire::ask::{HELLO_LEN, Minute, Welcome, hello, welcome};

/// Time between two hellos to a backend.
const INTERVAL: Duration = Duration::from_secs(2);
/// Time for an answer. With [`HELLO_FILES`] at a time, thousands of silent backends are late only.
const PATIENCE: Duration = Duration::from_millis(500);
/// Time between the first hellos to two backends.
const STAGGER: Duration = Duration::from_millis(1);
/// Hellos without an answer after which a backend is asked no longer.
const MISSES: u8 = 3;

/// A hello to a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloSpec {
    /// Address of the backend, and the port of GUE.
    pub target: SocketAddr,
    /// Address of the VIP.
    pub vip: Address,
    /// The fleet's key, and the one before it.
    pub keys: [FleetKey; 2],
}

/// What has come of a hello.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reply {
    /// Nothing yet.
    #[default]
    Unknown,
    /// The program can be asked for flows of the VIP.
    Ready,
    /// The program was loaded without the VIP.
    VipUnknown,
    /// No answer, or none with a right tag.
    Silent,
    /// The host has answered that there is no program (ICMP port unreachable).
    Refused,
}

impl Reply {
    /// Keyword in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Ready => "ready",
            Self::VipUnknown => "vip_unknown",
            Self::Silent => "silent",
            Self::Refused => "refused",
        }
    }

    /// Returns what it means and how to mend it; empty for [`Reply::Ready`] and [`Reply::Unknown`].
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Unknown | Self::Ready => "",
            Self::VipUnknown => {
                "its program does not know the VIP: holdfast backend load, with every --vip"
            }
            Self::Silent => {
                "its program does not answer: not loaded, another key, a clock that is over a minute \
                 off, or a firewall"
            }
            Self::Refused => "it has no program: holdfast backend load",
        }
    }
}

/// Whether a backend can be asked, from the replies to its hellos.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Program {
    reply: Reply,
    misses: u8,
}

impl Program {
    /// The last reply that counts.
    pub const fn reply(self) -> Reply {
        self.reply
    }

    /// Whether the backend can be asked.
    pub fn is_ready(self) -> bool {
        self.reply == Reply::Ready
    }

    /// Records a reply; returns whether it changes what counts.
    pub fn observe(&mut self, reply: Reply) -> bool {
        let is_answer = matches!(reply, Reply::Ready | Reply::VipUnknown);
        self.misses = if is_answer { 0 } else { self.misses.saturating_add(1) };
        if self.is_ready() && !is_answer && self.misses < MISSES {
            return false;
        }
        std::mem::replace(&mut self.reply, reply) != reply
    }
}

/// Reply of a backend.
#[derive(Debug)]
pub struct Replied {
    /// The backend.
    pub backend: BackendId,
    /// What has come of its hello.
    pub reply: Reply,
}

/// Running hellos, by backend.
#[derive(Debug)]
pub struct Hellos {
    running: Repeated<HelloSpec>,
    permits: Arc<Semaphore>,
    replies: mpsc::Sender<Replied>,
}

impl Hellos {
    /// Creates an empty set of hellos, whose replies go to `replies`.
    pub fn new(replies: mpsc::Sender<Replied>) -> Self {
        let permits = Arc::new(Semaphore::new(HELLO_FILES));
        Self { running: Repeated::default(), permits, replies }
    }

    /// Makes exactly the wanted hellos run.
    pub fn sync(&mut self, wanted: impl IntoIterator<Item = (BackendId, HelloSpec)>) {
        let Self { running, permits, replies } = self;
        running.sync(wanted, |backend, spec, position| {
            let delay = STAGGER * (position % 2000);
            let (permits, replies) = (Arc::clone(permits), replies.clone());
            tokio::spawn(repeat(backend, spec.clone(), delay, permits, replies)).abort_handle()
        });
    }
}

/// Repeats the hello until the receiver of `replies` is gone.
async fn repeat(
    backend: BackendId,
    spec: HelloSpec,
    delay: Duration,
    permits: Arc<Semaphore>,
    replies: mpsc::Sender<Replied>,
) {
    sleep(delay).await;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Ok(permit) = permits.acquire().await else { return };
        let reply = match timeout(PATIENCE * 2, greet(&spec)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Reply::Refused,
            Ok(Err(_)) | Err(_) => Reply::Silent,
        };
        drop(permit);
        if replies.send(Replied { backend, reply }).await.is_err() {
            return;
        }
    }
}

/// Sends a hello, and waits for its answer; others are ignored.
async fn greet(spec: &HelloSpec) -> io::Result<Reply> {
    let HelloSpec { target, vip, keys } = spec;
    let local = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(target).await?;
    let who = (socket.local_addr()?.ip().into(), *vip, target.ip().into());
    let (asker, ..) = who;
    let [key, _] = keys;
    socket.send(&hello(asker, *vip, key, Minute::now())).await?;
    let until = Instant::now() + PATIENCE;
    let mut payload = [0; HELLO_LEN + 1];
    loop {
        let Ok(received) = timeout_at(until, socket.recv(&mut payload)).await else {
            return Ok(Reply::Silent);
        };
        let answer = payload.get(..received?).unwrap_or_default();
        match welcome(answer, who, keys, Minute::now()) {
            Some(Welcome::Ready) => return Ok(Reply::Ready),
            Some(Welcome::VipUnknown) => return Ok(Reply::VipUnknown),
            None => {}
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;
    use crate::net::BackendIndex;

    const KEY: FleetKey = FleetKey([5; 16]);

    #[test]
    fn a_backend_can_be_asked_after_an_answer_and_until_three_are_missing() {
        use Reply::{Ready, Refused, Silent, Unknown, VipUnknown};
        for (replies, expected) in [
            (&[][..], (Unknown, false)),
            (&[Silent], (Silent, false)),
            (&[Ready], (Ready, true)),
            (&[Ready, Silent, Silent], (Ready, true)),
            (&[Ready, Silent, Refused, Silent], (Silent, false)),
            (&[Ready, Silent, Silent, Ready, Silent, Silent], (Ready, true)),
            (&[Ready, VipUnknown], (VipUnknown, false)),
            (&[Refused, Ready], (Ready, true)),
        ] {
            let mut program = Program::default();
            for reply in replies {
                let before = program.reply();
                let changes = program.observe(*reply);
                assert_eq!(changes, program.reply() != before, "{replies:?}");
            }
            assert_eq!((program.reply(), program.is_ready()), expected, "{replies:?}");
        }
    }

    async fn reply_of(spec: HelloSpec) -> Reply {
        let (sender, mut replies) = mpsc::channel(1);
        let mut hellos = Hellos::new(sender);
        let backend = BackendId { index: BackendIndex(3), generation: 1 };
        hellos.sync([(backend, spec)]);
        let replied = replies.recv().await.unwrap();
        assert_eq!(replied.backend, backend);
        replied.reply
    }

    #[tokio::test]
    async fn a_host_without_the_program_refuses_or_is_silent() {
        let vip = Address::from_v4([192, 0, 2, 10]);
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(local).await.unwrap();
            let target = socket.local_addr().unwrap();
            let spec = HelloSpec { target, vip, keys: [KEY, KEY] };
            let silent = reply_of(spec.clone());
            let echo = async {
                let mut bytes = [0; 100];
                let (len, from) = socket.recv_from(&mut bytes).await.unwrap();
                let asker = from.ip().into();
                assert_eq!(bytes.get(..len).unwrap(), hello(asker, vip, &KEY, Minute::now()));
                // What comes back is no answer.
                socket.send_to(bytes.get(..len).unwrap(), from).await.unwrap();
            };
            assert_eq!(tokio::join!(silent, echo).0, Reply::Silent);
            drop(socket);
            assert_eq!(reply_of(spec).await, Reply::Refused);
        }
    }
}
