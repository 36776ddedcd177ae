//! Arguments that several subcommands share.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::client::{Client, ClientError};
use crate::config::SOCKET;
use crate::control::api::Name;

/// The arguments of `holdfast run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Control socket of a running holdfast.
#[derive(Debug, Args)]
pub struct SocketArgs {
    /// Control socket of the running holdfast
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
}

impl SocketArgs {
    pub(super) fn client(&self) -> Result<Client, ClientError> {
        Client::new(&self.socket)
    }
}

/// A backend as named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((vip, backend)) => Ok(Self { vip: name(vip)?, backend: name(backend)? }),
            None => Err("name the backend as VIP/BACKEND, such as web/a".to_owned()),
        }
    }
}

/// Returns the first backend, and the others as the API names them.
pub(super) fn names(targets: &[Target]) -> (Target, Vec<Name>) {
    let mut targets = targets.iter().cloned();
    // The command line has at least one target.
    let first =
        targets.next().unwrap_or_else(|| Target { vip: String::new(), backend: String::new() });
    (first, targets.map(|Target { vip, backend }| Name { vip, backend }).collect())
}

/// Checks the name of a VIP or backend: the characters that the configuration allows, which need no
/// quoting in a URI.
pub(super) fn name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err(format!("\"{text}\" is not a name; `holdfast status` lists them"));
    }
    Ok(text.to_owned())
}
