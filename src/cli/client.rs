//! Client of the control API: HTTP/1.1 over its Unix socket, one connection per request.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use crate::control::api::ApiError;
use crate::format::reason;

/// Longest wait for a reply to begin, or to continue. The control thread replies within
/// milliseconds; a reload may have to build thousands of lookup tables.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest line of a reply, in bytes: the status of a configuration with the most VIPs and backends
/// is shorter.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// Reason why a request to a running holdfast failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket has no listener.
    #[error(
        "no process listens at {}: is holdfast running? Start it with `holdfast run --config F`, \
         or name its socket with --socket",
        .0.display()
    )]
    NobodyListens(PathBuf),
    /// The socket does not exist.
    #[error(
        "no process listens at {}: there is no such socket: is holdfast running? Start it with \
         `holdfast run --config F`, or name its socket with --socket",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// The file is not a socket.
    #[error("{} is not a socket; name holdfast's control socket with --socket", .0.display())]
    NotASocket(PathBuf),
    /// The caller may not open the socket.
    #[error("{}: permission denied; run as root", .0.display())]
    PermissionDenied(PathBuf),
    /// The connection failed for any other reason.
    #[error(
        "{}: cannot connect: {}; name a control socket with --socket",
        socket.display(),
        reason(source)
    )]
    Connect {
        /// Path of the socket.
        socket: PathBuf,
        /// Error of the system call.
        source: io::Error,
    },
    /// holdfast refused the request; one text per mistake.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The reply has an unexpected format.
    #[error(
        "the answer is not understood ({0}); is it another version of holdfast, or no holdfast?"
    )]
    NotUnderstood(String),
    /// The connection broke.
    #[error("the connection broke: {0}; see whether holdfast still runs")]
    Broken(#[from] hyper::Error),
    /// No reply in time.
    #[error("no answer within {} s; see whether holdfast still runs", PATIENCE.as_secs())]
    NoAnswer(#[from] tokio::time::error::Elapsed),
    /// The output could not be written, or the runtime could not be created.
    #[error("{0}")]
    Output(#[from] io::Error),
}

/// Client of the control API; performs its requests on the calling thread.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// Creates a client of the process that listens at `socket`; does not connect yet.
    ///
    /// # Errors
    /// The system has no file descriptors left.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { socket: socket.to_owned(), runtime })
    }

    /// Sends `GET path`; returns the reply as one document.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.request(Method::GET, path, Bytes::new())?;
        document(&body)
    }

    /// Sends `POST path` with a document; returns the reply as one document.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(not_understood)?;
        let body = self.request(Method::POST, path, body.into())?;
        document(&body)
    }

    /// Sends `POST path` without a body; returns the reply as one document.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn order<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        document(&self.request(Method::POST, path, Bytes::new())?)
    }

    /// Sends `DELETE path`; returns the reply as one document.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        document(&self.request(Method::DELETE, path, Bytes::new())?)
    }

    /// Sends `GET path`; passes each line of the reply to `each` as it arrives.
    ///
    /// # Errors
    /// [`ClientError`], or the first error of `each`.
    pub fn lines(
        &self,
        path: &str,
        mut each: impl FnMut(&str) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let answer = self.send(Method::GET, path, Bytes::new()).await?;
            read_lines(answer, &mut each).await
        })
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Vec<u8>, ClientError> {
        self.runtime.block_on(async {
            let answer = self.send(method, path, body).await?;
            read_all(answer).await
        })
    }

    /// Sends a request. A reply with an error status is returned as an error.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| self.connect_error(source))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // The sender reports the errors of the connection, too.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "holdfast")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(not_understood)?;
        let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await??;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body = read_all(answer).await?;
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(ApiError { error, errors }) if errors.is_empty() => {
                Err(ClientError::Refused(vec![error]))
            }
            Ok(refusal) => Err(ClientError::Refused(refusal.errors)),
            Err(_) => Err(ClientError::NotUnderstood(format!("HTTP status {status}"))),
        }
    }

    fn connect_error(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket(socket),
            // The kernel returns the same error for a file that is not a socket and for a socket
            // without a listener.
            io::ErrorKind::ConnectionRefused if is_socket(&socket) => {
                ClientError::NobodyListens(socket)
            }
            io::ErrorKind::ConnectionRefused => ClientError::NotASocket(socket),
            io::ErrorKind::PermissionDenied => ClientError::PermissionDenied(socket),
            _ => ClientError::Connect { socket, source },
        }
    }
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// Returns the next bytes of a reply.
async fn chunk(answer: &mut Response<Incoming>) -> Result<Option<Bytes>, ClientError> {
    loop {
        match tokio::time::timeout(PATIENCE, answer.frame()).await? {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(data) = frame?.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn read_all(mut answer: Response<Incoming>) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    while let Some(data) = chunk(&mut answer).await? {
        append(&mut body, &data)?;
    }
    Ok(body)
}

async fn read_lines(
    mut answer: Response<Incoming>,
    each: &mut impl FnMut(&str) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let mut rest = Vec::new();
    while let Some(data) = chunk(&mut answer).await? {
        append(&mut rest, &data)?;
        let Some(end) = rest.iter().rposition(|&byte| byte == b'\n') else { continue };
        let lines: Vec<u8> = rest.drain(..=end).collect();
        for line in std::str::from_utf8(&lines).map_err(not_understood)?.lines() {
            each(line)?;
        }
    }
    let last = std::str::from_utf8(&rest).map_err(not_understood)?;
    if last.is_empty() { Ok(()) } else { each(last) }
}

fn append(body: &mut Vec<u8>, data: &[u8]) -> Result<(), ClientError> {
    if body.len() + data.len() > MAX_LINE {
        return Err(ClientError::NotUnderstood("it is longer than 64 MiB".to_owned()));
    }
    body.extend_from_slice(data);
    Ok(())
}

/// Parses one JSON document.
pub(super) fn document<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(not_understood)
}

fn not_understood(error: impl std::fmt::Display) -> ClientError {
    ClientError::NotUnderstood(error.to_string())
}
