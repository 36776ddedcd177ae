//! The control API: HTTP/1.1 on a Unix socket that only its owner can open.
//!
//! Handlers hold no state: each sends a [`Request`] to the control task and waits for its answer.
//! The socket is claimed by a lock on a file beside it (`<socket>.lock`, which stays), so that the
//! socket file of a dead process is replaced and that of a living one is not.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::api::{
    ApiError, DrainRequest, EventList, Explained, Forgotten, Ordered, ReloadRequest, Reloaded,
    Status, UndrainRequest,
};
use super::clients::{self, ForgetQuery};
use super::explain::{self, Explain, Prepared};
use super::flows::{self, Filter, Names, Pins, QueryError, Scan, Source};
use super::{Clock, ControlError};
use crate::flow::clients::Clients;
use crate::words::reason;

/// Largest body of a request, in bytes: names and numbers, nothing that grows.
const MAX_BODY: usize = 64 * 1024;
/// Requests that may wait for the control task; more wait in their handlers.
pub const QUEUE: usize = 64;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<T>;

/// What the API asks of the control task.
#[derive(Debug)]
pub enum Request {
    /// `GET /v1/status`.
    Status(Reply<Status>),
    /// `POST /v1/drain`.
    Drain(DrainRequest, Reply<Result<Ordered, Refusal>>),
    /// `POST /v1/undrain`.
    Undrain(UndrainRequest, Reply<Result<Ordered, Refusal>>),
    /// `POST /v1/reload`; whether it only asks.
    Reload(bool, Reply<Result<Reloaded, Refusal>>),
    /// `GET /v1/events`: those after this number.
    Events(u64, Reply<EventList>),
    /// What `GET /v1/explain` is to ask the data path.
    Explain(explain::Query, Reply<Result<Prepared, Refusal>>),
    /// What `GET /v1/flows` needs to know.
    Names(Reply<Arc<Names>>),
}

/// An error of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// What went wrong, where, and how to fix it; never empty.
    pub errors: Vec<String>,
}

impl Refusal {
    /// With this status and one text.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, errors: vec![error.into()] }
    }
}

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        let status = match error {
            QueryError::Unknown { .. } => StatusCode::NOT_FOUND,
            QueryError::Client(_) | QueryError::Limit(_) | QueryError::NothingNamed => {
                StatusCode::BAD_REQUEST
            }
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = self.errors.join("\n");
        (self.status, Json(ApiError { error, errors: self.errors })).into_response()
    }
}

/// The control socket, claimed. Dropping it removes the socket file.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    listener: Option<UnixListener>,
    /// Holds the lock; closing it releases.
    _lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Still under the lock, so this is nobody else's file. If it has gone: the better.
        let _ = fs::remove_file(&self.path);
    }
}

/// Claims the control socket: makes its directory (0700) if it is missing, locks, listens (0600).
///
/// # Errors
/// [`ControlError::AlreadyRunning`] when a living process has it, [`ControlError::Socket`] when it
/// cannot be made.
pub fn claim(path: &Path) -> Result<Claim, ControlError> {
    let failed = |what: &str| {
        let (path, what) = (path.to_owned(), what.to_owned());
        move |error: io::Error| ControlError::Socket {
            path,
            reason: format!("{what}: {}", reason(&error)),
        }
    };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    make_private(directory).map_err(failed("its directory cannot be made"))?;
    let lock = lock(path)?;
    let listener = listen(path, directory).map_err(failed("cannot be made"))?;
    Ok(Claim { path: path.to_owned(), listener: Some(listener), _lock: lock })
}

/// Makes a directory that only its owner can enter; one that exists stays as it is.
fn make_private(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn lock(socket: &Path) -> Result<File, ControlError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let failed = |error: io::Error| ControlError::Socket {
        path: path.clone(),
        reason: format!("cannot be locked: {}", reason(&error)),
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            note_pid(&mut file).map_err(failed)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The message is worth more than the number in it.
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() }.to_owned();
            Err(ControlError::AlreadyRunning { path: socket.to_owned(), pid })
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn note_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Listens with mode 0600 whatever the umask: the socket is made in a private directory and moved
/// to its place, over a dead one, when its mode is right.
fn listen(path: &Path, directory: &Path) -> io::Result<UnixListener> {
    let private = directory.join(format!(".hf{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&private)?;
    let made = listen_in(&private, path);
    let removed = fs::remove_dir(&private);
    let listener = made?;
    removed?;
    Ok(listener)
}

fn listen_in(private: &Path, path: &Path) -> io::Result<UnixListener> {
    let temporary = private.join("s");
    let listener = UnixListener::bind(&temporary)?;
    let placed = fs::set_permissions(&temporary, Permissions::from_mode(0o600))
        .and_then(|()| listener.set_nonblocking(true))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = placed {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(listener)
}

/// What handlers share.
#[derive(Clone)]
pub struct Door {
    /// To the control task.
    pub requests: mpsc::Sender<Request>,
    /// The workers' flow tables.
    pub tables: Vec<Arc<dyn Pins>>,
    /// The workers' clients table.
    pub clients: Arc<Clients>,
    /// Their clock.
    pub clock: Clock,
    /// Who says what becomes of a packet.
    pub explain: Explain,
}

impl Claim {
    /// Serves the API until the runtime ends.
    ///
    /// # Errors
    /// When the socket cannot be handed to the runtime, or is served already.
    pub fn serve(&mut self, door: Door) -> Result<(), ControlError> {
        let failed = |reason: String| ControlError::Socket { path: self.path.clone(), reason };
        let listener = self.listener.take().ok_or_else(|| failed("served twice".to_owned()))?;
        let listener =
            tokio::net::UnixListener::from_std(listener).map_err(|error| failed(reason(&error)))?;
        tokio::spawn(axum::serve(listener, router(door)).into_future());
        Ok(())
    }
}

fn router(door: Door) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/drain", post(drain))
        .route("/v1/undrain", post(undrain))
        .route("/v1/reload", post(reload))
        .route("/v1/events", get(events))
        .route("/v1/flows", get(flow_lines))
        .route("/v1/clients", get(client_lines).delete(forget_clients))
        .route("/v1/explain", get(explained))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(door)
}

async fn unknown(uri: Uri) -> Refusal {
    let error = format!("no such resource: {}; see docs/API.md", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, error)
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let error = format!("{} cannot be asked with {method}; see docs/API.md", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error)
}

async fn status(State(door): State<Door>) -> Result<Json<Status>, Refusal> {
    ask(&door, Request::Status).await.map(Json)
}

async fn drain(
    State(door): State<Door>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Ordered>, Refusal> {
    let order = parse(body)?;
    ask(&door, |reply| Request::Drain(order, reply)).await?.map(Json)
}

async fn undrain(
    State(door): State<Door>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Ordered>, Refusal> {
    let order = parse(body)?;
    ask(&door, |reply| Request::Undrain(order, reply)).await?.map(Json)
}

async fn reload(
    State(door): State<Door>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Reloaded>, Refusal> {
    let asked = match &body {
        Ok(bytes) if bytes.is_empty() => ReloadRequest::default(),
        _ => parse(body)?,
    };
    ask(&door, |reply| Request::Reload(asked.dry_run, reply)).await?.map(Json)
}

/// The query of `GET /v1/events`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    #[serde(default)]
    since: u64,
}

async fn events(
    State(door): State<Door>,
    query: Result<Query<Since>, QueryRejection>,
) -> Result<Json<EventList>, Refusal> {
    let Since { since } = understood(query, "since")?;
    ask(&door, |reply| Request::Events(since, reply)).await.map(Json)
}

async fn flow_lines(
    State(door): State<Door>,
    query: Result<Query<flows::Query>, QueryRejection>,
) -> Result<Response, Refusal> {
    let tables = door.tables.clone();
    list(door, query, tables).await
}

async fn client_lines(
    State(door): State<Door>,
    query: Result<Query<flows::Query>, QueryRejection>,
) -> Result<Response, Refusal> {
    let clients = vec![Arc::clone(&door.clients)];
    list(door, query, clients).await
}

async fn forget_clients(
    State(door): State<Door>,
    query: Result<Query<ForgetQuery>, QueryRejection>,
) -> Result<Json<Forgotten>, Refusal> {
    let query = understood(query, "vip, backend, client and all")?;
    let names = ask(&door, Request::Names).await?;
    let filter = query.filter(&names)?;
    let forgotten = clients::forget(&door.clients, &filter, &names, &door.clock).await;
    Ok(Json(Forgotten { forgotten }))
}

/// What `query` wants of `sources`, as JSON lines.
async fn list<S: Source + 'static>(
    door: Door,
    query: Result<Query<flows::Query>, QueryRejection>,
    sources: Vec<S>,
) -> Result<Response, Refusal> {
    let query = understood(query, "vip, backend, client and limit")?;
    let names = ask(&door, Request::Names).await?;
    let filter = Filter::new(query, &names)?;
    let scan = Scan { sources, filter, names, clock: door.clock };
    let kind = [(header::CONTENT_TYPE, "application/jsonl")];
    Ok((kind, Body::from_stream(scan.lines())).into_response())
}

fn understood<T>(query: Result<Query<T>, QueryRejection>, keys: &str) -> Result<T, Refusal> {
    let Query(query) = query.map_err(|error| {
        let what = error.body_text();
        let what = what.trim_start_matches("Failed to deserialize query string: ");
        let error = format!("query: {what}; the keys are {keys}, each once; see docs/API.md");
        Refusal::new(StatusCode::BAD_REQUEST, error)
    })?;
    Ok(query)
}

async fn explained(
    State(door): State<Door>,
    query: Result<Query<explain::Query>, QueryRejection>,
) -> Result<Json<Explained>, Refusal> {
    let query = understood(query, "vip, client, port, midflow, syn and payload")?;
    let prepared = ask(&door, |reply| Request::Explain(query, reply)).await??;
    let asked = tokio::task::spawn_blocking(move || prepared.ask(&door.explain)).await;
    let failed = |error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("nobody could answer: {error}"))
    };
    asked.map_err(failed)?.map(Json)
}

/// Asks the control task.
async fn ask<T>(door: &Door, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
    let stopping = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "holdfast is stopping");
    let (reply, answer) = oneshot::channel();
    door.requests.send(request(reply)).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Refusal> {
    let body = body.map_err(|error| Refusal::new(error.status(), error.body_text()))?;
    serde_json::from_slice(&body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("body: {error}; see docs/API.md"))
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
pub(super) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory that is removed at the end of its test.
    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("holdfast-test-{}-{next}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        pub fn socket(&self) -> PathBuf {
            self.0.join("control.sock")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn only_the_owner_can_open_it_and_it_goes_with_its_process() {
        let scratch = Scratch::new();
        let socket = scratch.socket();
        let claim = claim(&socket).unwrap();
        assert_eq!(mode(&socket), 0o600);
        assert_eq!(mode(socket.parent().unwrap()), 0o700);
        let files: Vec<_> = fs::read_dir(socket.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(files.len(), 2, "nothing but socket and lock: {files:?}");
        drop(claim);
        assert!(!socket.exists());
    }

    #[test]
    fn a_second_process_is_refused_and_told_who_has_it() {
        let scratch = Scratch::new();
        let first = claim(&scratch.socket()).unwrap();
        let error = claim(&scratch.socket()).unwrap_err().to_string();
        let pid = format!("holdfast already runs with this socket (pid {})", std::process::id());
        assert!(error.contains(&pid), "{error}");
        assert!(scratch.socket().exists(), "the living one's socket stays");
        drop(first);
        claim(&scratch.socket()).unwrap();
    }

    #[test]
    fn a_dead_process_s_socket_is_replaced() {
        let scratch = Scratch::new();
        make_private(&scratch.0).unwrap();
        drop(UnixListener::bind(scratch.socket()).unwrap());
        assert!(scratch.socket().exists(), "left behind");
        let _claim = claim(&scratch.socket()).unwrap();
        std::os::unix::net::UnixStream::connect(scratch.socket()).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_made_is_told() {
        let scratch = Scratch::new();
        make_private(&scratch.0).unwrap();
        let file = scratch.0.join("file");
        fs::write(&file, "").unwrap();
        let error = claim(&file.join("sub").join("control.sock")).unwrap_err().to_string();
        assert!(error.contains("its directory cannot be made"), "{error}");
        assert!(error.contains("[control] socket"), "{error}");
    }
}
