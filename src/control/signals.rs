//! Signals of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tokio::runtime::Runtime;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::mpsc;

use super::error::ControlError;

/// Request of an operator by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    /// SIGUSR2.
    HandOver,
}

/// Signals of the process: caught from the start on, and handled when the control thread serves. No
/// signal ends the process by itself.
#[derive(Debug)]
pub struct Signals {
    pub(super) runtime: Runtime,
    pub(super) streams: Vec<(Signal, unix::Signal)>,
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// Catches SIGTERM, SIGINT, SIGHUP and SIGUSR2.
    ///
    /// # Errors
    /// When the process lacks a resource that tokio needs.
    pub fn catch() -> Result<Self, ControlError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ControlError::Runtime)?;
        let stop = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT] {
            flag::register(number, Arc::clone(&stop)).map_err(ControlError::Runtime)?;
        }
        let entered = runtime.enter();
        let streams = [
            (Signal::Stop, SignalKind::terminate()),
            (Signal::Stop, SignalKind::interrupt()),
            (Signal::Reload, SignalKind::hangup()),
            (Signal::HandOver, SignalKind::user_defined2()),
        ];
        let streams = streams.map(|(meaning, kind)| Ok((meaning, signal(kind)?)));
        let streams: Result<_, _> = streams.into_iter().collect();
        let streams = streams.map_err(ControlError::Runtime)?;
        drop(entered);
        Ok(Self { runtime, streams, stop })
    }

    /// Returns whether a stop was requested, so that a start can be abandoned before it changes
    /// anything.
    pub fn stop_is_asked(&self) -> bool {
        // Relaxed: the flag publishes nothing else.
        self.stop.load(Ordering::Relaxed)
    }
}

/// Merges the signals into one channel.
pub(super) fn merge(streams: Vec<(Signal, unix::Signal)>) -> mpsc::Receiver<Signal> {
    let (sender, receiver) = mpsc::channel(4);
    for (meaning, mut stream) in streams {
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(meaning).await.is_ok() {}
        });
    }
    receiver
}
