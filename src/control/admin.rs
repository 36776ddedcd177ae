//! The control API: HTTP/1.1 on a Unix socket that only its owner can open.
//!
//! Handlers hold no state: each sends a [`Request`] to the control task and waits for the reply.
//! [`claim`] creates the socket itself.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{self, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::api::{
    DenyEntry, DenyList, DenyRequest, DrainRequest, EventList, Explained, Forgotten, Ordered,
    ReloadRequest, Reloaded, Status, UndrainRequest,
};
use super::clients::{self, ClientRows, ForgetQuery};
use super::connections;
pub use super::control_socket::{ControlSocket, claim};
use super::error::ControlError;
use super::explain::{self, Explain, Prepared};
use super::flows::{self, Filter, Names, QueryError, Scan, Source};
use super::pins::Pins;
use super::refusal::Refusal;
use super::view::Clock;
use crate::flow::shared::SharedTables;
use crate::format::reason;

/// Largest request body, in bytes. Bodies hold names and numbers only.
const MAX_BODY: usize = 64 * 1024;
/// Longest wait for the body of a request. Local clients send it at once.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// Requests queued for the control task; further requests wait in their handlers.
pub const QUEUE: usize = 64;

/// Channel for the reply to a [`Request`].
pub type Reply<T> = oneshot::Sender<T>;

/// A request from the API to the control task.
#[derive(Debug)]
pub enum Request {
    /// `GET /v1/status`.
    Status(Reply<Status>),
    /// `POST /v1/drain`.
    Drain(DrainRequest, Reply<Result<Ordered, Refusal>>),
    /// `POST /v1/undrain`.
    Undrain(UndrainRequest, Reply<Result<Ordered, Refusal>>),
    /// `POST /v1/reload`; true for a dry run.
    Reload(bool, Reply<Result<Reloaded, Refusal>>),
    /// `GET /v1/events`: events with a greater sequence number than this one.
    Events(u64, Reply<EventList>),
    /// Prepares the query of `GET /v1/explain` for the data path.
    Explain(explain::Query, Reply<Result<Prepared, Refusal>>),
    /// `POST /v1/deny`.
    Deny(DenyRequest, Reply<Result<DenyEntry, Refusal>>),
    /// `DELETE /v1/deny`.
    Undeny(DenyRequest, Reply<Result<DenyEntry, Refusal>>),
    /// `GET /v1/deny`.
    Denied(Reply<DenyList>),
    /// Names of VIPs and backends, for `/v1/flows` and `/v1/clients`.
    Names(Reply<Arc<Names>>),
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

/// State shared by all handlers.
#[derive(Clone)]
pub struct ApiState {
    /// Requests to the control task.
    pub requests: mpsc::Sender<Request>,
    /// Flow tables of all workers.
    pub tables: Vec<Arc<dyn Pins>>,
    /// Tables shared by all workers.
    pub shared: Arc<SharedTables>,
    /// Clock of the flow tables.
    pub clock: Clock,
    /// Runs a packet through the data path's stages.
    pub explain: Explain,
}

impl ControlSocket {
    /// Serves the API until the runtime ends.
    ///
    /// # Errors
    /// When the socket cannot be handed to the runtime, or is served already.
    pub fn serve(&mut self, api_state: ApiState) -> Result<(), ControlError> {
        self.own();
        let path = self.path().to_owned();
        let failed = |reason: String| ControlError::Socket { path, reason };
        let Some(listener) = self.take() else { return Err(failed("served twice".to_owned())) };
        let listener =
            tokio::net::UnixListener::from_std(listener).map_err(|error| failed(reason(&error)))?;
        tokio::spawn(connections::serve(listener, router(api_state)));
        Ok(())
    }
}

fn router(api_state: ApiState) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/drain", post(drain))
        .route("/v1/undrain", post(undrain))
        .route("/v1/reload", post(reload))
        .route("/v1/events", get(events))
        .route("/v1/flows", get(flow_lines))
        .route("/v1/clients", get(client_lines).delete(forget_clients))
        .route("/v1/explain", get(explained))
        .route("/v1/deny", get(denied).post(deny).delete(undeny))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(whole_body))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api_state)
}

/// Reads the body of a request, for a bounded time, before its handler runs.
async fn whole_body(request: http::Request<Body>, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match timeout(BODY_LIMIT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => next.run(http::Request::from_parts(parts, bytes.into())).await,
        Ok(Err(_)) => {
            let error = format!("body: length limit of {MAX_BODY} bytes exceeded, or cut off");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error).into_response()
        }
        Err(_) => {
            let error = format!("body: not complete within {} s", BODY_LIMIT.as_secs());
            Refusal::new(StatusCode::REQUEST_TIMEOUT, error).into_response()
        }
    }
}

async fn unknown(uri: Uri) -> Refusal {
    let error = format!("no such resource: {}; see docs/API.md", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, error)
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let error = format!("{} cannot be asked with {method}; see docs/API.md", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error)
}

async fn status(State(api_state): State<ApiState>) -> Result<Json<Status>, Refusal> {
    ask(&api_state, Request::Status).await.map(Json)
}

async fn drain(
    State(api_state): State<ApiState>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Ordered>, Refusal> {
    let order = parse(body)?;
    ask(&api_state, |reply| Request::Drain(order, reply)).await?.map(Json)
}

async fn undrain(
    State(api_state): State<ApiState>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Ordered>, Refusal> {
    let order = parse(body)?;
    ask(&api_state, |reply| Request::Undrain(order, reply)).await?.map(Json)
}

async fn reload(
    State(api_state): State<ApiState>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Reloaded>, Refusal> {
    let asked = match &body {
        Ok(bytes) if bytes.is_empty() => ReloadRequest::default(),
        _ => parse(body)?,
    };
    ask(&api_state, |reply| Request::Reload(asked.dry_run, reply)).await?.map(Json)
}

/// The query of `GET /v1/events`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    #[serde(default)]
    since: u64,
}

async fn events(
    State(api_state): State<ApiState>,
    query: Result<Query<Since>, QueryRejection>,
) -> Result<Json<EventList>, Refusal> {
    let Since { since } = understood(query, "since")?;
    ask(&api_state, |reply| Request::Events(since, reply)).await.map(Json)
}

async fn flow_lines(
    State(api_state): State<ApiState>,
    query: Result<Query<flows::Query>, QueryRejection>,
) -> Result<Response, Refusal> {
    let tables = api_state.tables.clone();
    list(api_state, query, tables).await
}

async fn client_lines(
    State(api_state): State<ApiState>,
    query: Result<Query<flows::Query>, QueryRejection>,
) -> Result<Response, Refusal> {
    let clients = vec![ClientRows(Arc::clone(&api_state.shared))];
    list(api_state, query, clients).await
}

async fn forget_clients(
    State(api_state): State<ApiState>,
    query: Result<Query<ForgetQuery>, QueryRejection>,
) -> Result<Json<Forgotten>, Refusal> {
    let query = understood(query, "vip, backend, client and all")?;
    let names = ask(&api_state, Request::Names).await?;
    let filter = query.filter(&names)?;
    let forgotten =
        clients::forget(&api_state.shared.clients, &filter, &names, &api_state.clock).await;
    Ok(Json(Forgotten { forgotten }))
}

async fn denied(State(api_state): State<ApiState>) -> Result<Json<DenyList>, Refusal> {
    ask(&api_state, Request::Denied).await.map(Json)
}

async fn deny(
    State(api_state): State<ApiState>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<DenyEntry>, Refusal> {
    let order = parse(body)?;
    ask(&api_state, |reply| Request::Deny(order, reply)).await?.map(Json)
}

/// The query of `DELETE /v1/deny`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Undeny {
    prefix: String,
    vip: Option<String>,
}

async fn undeny(
    State(api_state): State<ApiState>,
    query: Result<Query<Undeny>, QueryRejection>,
) -> Result<Json<DenyEntry>, Refusal> {
    let Undeny { prefix, vip } = understood(query, "prefix and vip")?;
    let order = DenyRequest { prefix, vip, for_s: None };
    ask(&api_state, |reply| Request::Undeny(order, reply)).await?.map(Json)
}

/// Streams the rows of `sources` that match `query`, as JSON lines.
async fn list<S: Source + 'static>(
    api_state: ApiState,
    query: Result<Query<flows::Query>, QueryRejection>,
    sources: Vec<S>,
) -> Result<Response, Refusal> {
    let query = understood(query, "vip, backend, client and limit")?;
    let names = ask(&api_state, Request::Names).await?;
    let filter = Filter::new(query, &names)?;
    let scan = Scan { sources, filter, names, clock: api_state.clock };
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
    State(api_state): State<ApiState>,
    query: Result<Query<explain::Query>, QueryRejection>,
) -> Result<Json<Explained>, Refusal> {
    let query = understood(query, "vip, client, port, midflow, syn and payload")?;
    let prepared = ask(&api_state, |reply| Request::Explain(query, reply)).await??;
    let asked = tokio::task::spawn_blocking(move || prepared.ask(&api_state.explain)).await;
    let failed =
        |error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("no answer: {error}"));
    asked.map_err(failed)?.map(Json)
}

/// Sends a request to the control task and waits for the reply.
async fn ask<T>(
    api_state: &ApiState,
    request: impl FnOnce(Reply<T>) -> Request,
) -> Result<T, Refusal> {
    let stopping = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "holdfast is stopping");
    let (reply, answer) = oneshot::channel();
    api_state.requests.send(request(reply)).await.map_err(|_| stopping())?;
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
    //! Bodies that do not come, and helpers shared by tests of the control socket.
    use std::fs;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    /// A directory that is removed at the end of its test.
    pub struct Scratch(pub PathBuf);

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

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let scratch = Scratch::new();
        fs::create_dir(&scratch.0).unwrap();
        let listener = UnixListener::bind(scratch.socket()).unwrap();
        let router = Router::new().route("/", post("done")).layer(from_fn(whole_body));
        tokio::spawn(connections::serve(listener, router));
        for (body, expected) in [("whole", "HTTP/1.1 200 "), ("half", "HTTP/1.1 408 ")] {
            let mut stream = UnixStream::connect(scratch.socket()).await.unwrap();
            let header = "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5";
            stream.write_all(format!("{header}\r\n\r\n{body}").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(expected), "{body}: {answer}");
        }
    }
}
