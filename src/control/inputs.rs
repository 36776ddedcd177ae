//! The inputs of the control thread, filled by the daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::admin::ControlSocket;
use super::explain::Explain;
use super::hand_over::HandOver;
use super::saved::SavedRegistry;
use super::state::Registry;
use super::view::{Clock, NicView, SendFrame, SteeringProgram, WorkerEvent, WorkerView};
use crate::config::Config;
use crate::flow::shared::SharedTables;
use crate::forwarding::publish::Publisher;
use crate::privileges::Kept;

/// Reads and checks a configuration file; errors are texts for the operator, one per mistake. May
/// block for any time, and is called on a thread of its own.
pub type Load = Arc<dyn Fn(&Path) -> Result<Config, Vec<String>> + Send + Sync>;

/// Saves the registry for a later process; the error is a text for the operator.
pub type Save = Box<dyn FnMut(&SavedRegistry) -> Result<(), String>>;

/// Inputs of the control thread, filled by the daemon.
pub struct Inputs {
    /// Configuration at the start.
    pub config: Config,
    /// Path of the configuration file; a reload reads it again.
    pub config_path: PathBuf,
    /// Reader of the configuration file.
    pub load: Load,
    /// Control socket, locked early so that a second process fails before it opens NICs.
    pub control_socket: ControlSocket,
    /// Workers, in the configuration's order.
    pub workers: Vec<WorkerView>,
    /// NICs, in the configuration's order.
    pub nics: Vec<NicView>,
    /// The registry: empty, or that of an earlier process.
    pub registry: Registry,
    /// Saver of the registry; `None`: nothing outlives the process.
    pub save: Option<Save>,
    /// Publisher of forwarding tables.
    pub publisher: Publisher,
    /// XDP program and its sockets.
    pub steering: Box<dyn SteeringProgram>,
    /// Sender of the frames that announce addresses.
    pub send_frame: SendFrame,
    /// Tables shared by all workers.
    pub shared: Arc<SharedTables>,
    /// Events of workers.
    pub events: crossbeam_channel::Receiver<WorkerEvent>,
    /// Clock of the flow tables.
    pub clock: Clock,
    /// Runs a packet through the stages of the data path, for `explain`.
    pub explain: Explain,
    /// Privileges of the control thread.
    pub privileges: Kept,
    /// Hand-over from an earlier process, and to a later one.
    pub hand_over: HandOver,
    /// Called once, when the first table is published, steered and announced.
    pub ready: Box<dyn FnOnce()>,
}
