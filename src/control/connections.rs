//! Connections of the control API: bounded in number and in the time that they may wait for their
//! clients, so that clients that hang do not keep others out.
//!
//! ```text
//! 1..=64    served; the last 8 only for user 0, so that root gets a status whatever others do
//! full      the connection that has been idle for longest is closed for the new one
//! none idle the new one gets 503; of these, 16 at a time are answered
//! ```
//!
//! A connection is idle unless holdfast works on its request. One without a complete request header
//! is closed after 10 s, whether it is new or kept alive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::refusal::Refusal;
use crate::config::machine::API_FILES;
use crate::format::reason;

/// Most connections that are served: more than any number of operators and collectors.
pub const MAX_CONNECTIONS: usize = 64;
/// Connections among these that are kept for user 0.
const RESERVED: usize = 8;
/// Most connections that get 503 at a time.
pub const MAX_REFUSED: usize = 16;
const _: () = assert!(MAX_CONNECTIONS + MAX_REFUSED <= API_FILES);
/// Longest wait for the header of a request. Local clients send it at once.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// Wait after a connection could not be accepted: the cause, such as too many open files, does not
/// pass by itself, and the connection stays in the queue.
const RETRY: Duration = Duration::from_millis(500);

/// Serves the API until the runtime ends.
pub async fn serve(listener: UnixListener, router: Router) {
    let mut connections = Connections::default();
    let mut failed = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                failed = false;
                connections.admit(stream, &router).await;
            }
            Err(error) => {
                if !failed {
                    warn!("the control API accepts no connections: {}", reason(&error));
                }
                failed = true;
                connections.close_idlest();
                sleep(RETRY).await;
            }
        }
    }
}

/// Time since which a connection has been idle; `None` while a request is in progress.
type Idle = Arc<Mutex<Option<Instant>>>;

/// A connection that is served.
struct Connection {
    task: AbortHandle,
    idle: Idle,
}

/// Open connections.
#[derive(Default)]
struct Connections {
    served: Vec<Connection>,
    refused: Vec<AbortHandle>,
}

impl Connections {
    /// Serves a new connection, if there is room or can be made.
    async fn admit(&mut self, stream: UnixStream, router: &Router) {
        self.served.retain(|connection| !connection.task.is_finished());
        self.refused.retain(|task| !task.is_finished());
        let room = room(stream.peer_cred().map(|peer| peer.uid()).ok());
        if self.served.len() >= room {
            // New connections read their requests first: those are not idle.
            yield_now().await;
            self.close_idlest();
        }
        let idle = Idle::default();
        if self.served.len() < room {
            set_idle(&idle, Some(Instant::now()));
            let task = tokio::spawn(serve_one(stream, router.clone(), Arc::clone(&idle)));
            self.served.push(Connection { task: task.abort_handle(), idle });
        } else if self.refused.len() < MAX_REFUSED {
            let router = Router::new().fallback(no_room);
            let task = tokio::spawn(serve_one(stream, router, idle));
            self.refused.push(task.abort_handle());
        }
    }

    /// Closes the connection that has been idle for longest, if one is idle.
    fn close_idlest(&mut self) {
        let since = |connection: &Connection| {
            *connection.idle.lock().unwrap_or_else(PoisonError::into_inner)
        };
        let idle = self.served.iter().enumerate().filter_map(|(at, one)| Some((since(one)?, at)));
        if let Some((_, at)) = idle.min() {
            self.served.swap_remove(at).task.abort();
        }
    }
}

/// Returns the number of connections that are served at a time before one of this user is refused.
const fn room(uid: Option<u32>) -> usize {
    match uid {
        Some(0) => MAX_CONNECTIONS,
        _ => MAX_CONNECTIONS - RESERVED,
    }
}

async fn no_room() -> Refusal {
    let error = format!("{MAX_CONNECTIONS} requests are in progress, which is the most: try again");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error)
}

fn set_idle(idle: &Idle, since: Option<Instant>) {
    *idle.lock().unwrap_or_else(PoisonError::into_inner) = since;
}

/// Serves one connection until either end closes it, or its client is silent for too long.
async fn serve_one(stream: UnixStream, router: Router, idle: Idle) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        set_idle(&idle, None);
        let (response, idle) = (router.call(request), &idle);
        async move {
            let response = response.await;
            set_idle(idle, Some(Instant::now()));
            response
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    // An error means that the client has gone, was silent, or sent no HTTP.
    let _: Result<(), hyper::Error> = builder.serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Semaphore;

    use super::super::admin::tests::Scratch;
    use super::*;

    /// A server whose `/slow` waits for a permit, and `/fast` does not.
    struct Server {
        scratch: Scratch,
        permits: Arc<Semaphore>,
        /// Number of requests for `/slow`.
        begun: Arc<AtomicUsize>,
    }

    impl Server {
        fn start() -> Self {
            let (scratch, permits) = (Scratch::new(), Arc::new(Semaphore::new(0)));
            let begun = Arc::new(AtomicUsize::new(0));
            std::fs::create_dir(&scratch.0).unwrap();
            let listener = UnixListener::bind(scratch.socket()).unwrap();
            let (waits, counts) = (Arc::clone(&permits), Arc::clone(&begun));
            let slow = move || async move {
                counts.fetch_add(1, Ordering::Relaxed);
                waits.acquire().await.map(|_| "done").unwrap()
            };
            let router = Router::new().route("/slow", get(slow)).route("/fast", get("done"));
            tokio::spawn(serve(listener, router));
            Self { scratch, permits, begun }
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.scratch.socket()).await.unwrap()
        }

        async fn send(&self, path: &str) -> UnixStream {
            let mut stream = self.connect().await;
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        }
    }

    async fn all(mut stream: UnixStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn silent_clients_are_closed_after_a_while() {
        let server = Server::start();
        let begun = Instant::now();
        assert_eq!(all(server.connect().await).await, "");
        assert!(begun.elapsed() >= HEADER_LIMIT);
        let mut half = server.connect().await;
        half.write_all(b"GET /fast HTTP/1.1\r\nhost: ").await.unwrap();
        assert_eq!(all(half).await, "", "half a header");
        let mut kept = server.connect().await;
        kept.write_all(b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(all(kept).await.ends_with("done"), "kept alive, and closed by its silence");
    }

    /// Twice as many silent connections as are served: the oldest ones are closed.
    #[tokio::test]
    async fn silent_clients_keep_no_other_out() {
        let server = Server::start();
        let mut silent = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            silent.push(server.connect().await);
        }
        assert!(all(server.send("/fast").await).await.ends_with("done"));
        for oldest in silent.drain(..MAX_CONNECTIONS) {
            assert_eq!(all(oldest).await, "");
        }
        let mut last = silent.pop().unwrap();
        last.write_all(b"GET /fast HTTP/1.0\r\n\r\n").await.unwrap();
        assert!(all(last).await.ends_with("done"));
    }

    #[tokio::test]
    async fn requests_in_progress_are_not_closed_for_new_ones() {
        let server = Server::start();
        let mut slow = Vec::new();
        let room = room(Some(rustix::process::getuid().as_raw()));
        for _ in 0..room {
            slow.push(server.send("/slow").await);
        }
        while server.begun.load(Ordering::Relaxed) < room {
            yield_now().await;
        }
        let refused = all(server.send("/fast").await).await;
        assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("try again"), "{refused}");
        server.permits.add_permits(1);
        for stream in slow {
            assert!(all(stream).await.ends_with("done"));
        }
        assert!(all(server.send("/fast").await).await.ends_with("done"));
    }

    #[test]
    fn places_are_kept_for_root() {
        assert_eq!([Some(0), Some(1000), None].map(room), [64, 56, 56]);
    }
}
