//! The errors of the commands, with their exit codes.

use std::io;

use super::client::ClientError;
use crate::config::ConfigErrors;
use crate::xdp::backend::BackendError;

/// Reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration has mistakes.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// The configuration does not fit this machine; one message per finding.
    #[error("{}", .0.join("\n"))]
    Machine(Vec<String>),
    /// The running holdfast could not be reached, or refused.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// A drain did not complete while the command waited for it.
    #[error("{0}")]
    Drain(String),
    /// The arguments are incomplete or contradictory.
    #[error("{0}")]
    Usage(String),
    /// The output could not be written.
    #[error("cannot write the output: {}", crate::format::reason(.0))]
    Output(#[from] io::Error),
    /// Traffic could not be generated.
    #[error("{0}")]
    Generate(String),
    /// A capture could not be replayed completely.
    #[error("{0}")]
    Replay(String),
    /// A change could not be simulated.
    #[error("{0}")]
    Whatif(String),
    /// A simulated change exceeds a bound; one message per finding.
    #[error("{}", .0.join("\n"))]
    Bound(Vec<String>),
    /// The program of a backend could not be loaded, read or removed.
    #[error("{0}")]
    Backend(#[from] BackendError),
    /// `run` could not start or had to stop.
    #[error("{0}")]
    Run(Box<dyn std::error::Error + Send + Sync>),
}

impl CliError {
    /// Returns one message per mistake.
    pub fn messages(&self) -> Vec<String> {
        match self {
            Self::Config(errors) => errors.messages(),
            Self::Machine(findings) | Self::Bound(findings) => findings.clone(),
            Self::Client(ClientError::Refused(mistakes)) => mistakes.clone(),
            other => vec![other.to_string()],
        }
    }

    /// Returns the exit code: 3 if a simulated change exceeds a bound, else 1.
    pub const fn exit_code(&self) -> u8 {
        if matches!(self, Self::Bound(_)) { 3 } else { 1 }
    }

    /// Whether the reader of the output closed it.
    pub fn is_closed_pipe(&self) -> bool {
        let closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        match self {
            Self::Output(error) | Self::Client(ClientError::Output(error)) => closed(error),
            _ => false,
        }
    }
}
