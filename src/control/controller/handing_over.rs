//! The hand-over to another process: what the control thread leaves alone, and when it ends.

use axum::http::StatusCode;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::world::World;
use crate::control::error::ControlError;
use crate::control::events::{Kind, NewEvent};
use crate::control::hand_over::{Outcome, StartAgain, Started, Step};
use crate::control::refusal::Refusal;

/// State of the hand-over to another process.
pub(super) struct HandingOver {
    steps: Option<mpsc::Receiver<Step>>,
    start_again: Option<StartAgain>,
    /// The other process, between its request and its success or failure.
    to: Option<u32>,
    /// The last process that this one has started, until it ends.
    started: Option<Started>,
    /// The last process of which a failure is in the journal.
    failed: Option<u32>,
}

impl HandingOver {
    pub(super) fn new(
        steps: Option<mpsc::Receiver<Step>>,
        start_again: Option<StartAgain>,
    ) -> Self {
        Self { steps, start_again, to: None, started: None, failed: None }
    }

    /// Waits for the next step of a hand-over.
    pub(super) async fn step(&mut self) -> Step {
        let Self { steps, started, .. } = self;
        tokio::select! {
            // What the other process says comes before its end.
            biased;
            Some(step) = async { steps.as_mut()?.recv().await } => step,
            Some(step) = failure(started) => step,
            else => std::future::pending().await,
        }
    }

    /// Starts the program again.
    pub(super) fn start_again(&mut self) {
        let started = match &mut self.start_again {
            Some(start) => start(),
            None => Err("the state of this process is in no directory ([state])".to_owned()),
        };
        match started {
            Ok(started) => {
                info!("SIGUSR2: started process {}, to take over", started.pid);
                self.started = Some(started);
            }
            Err(reason) => error!("SIGUSR2: no hand-over: {reason}"),
        }
    }

    /// Whether another process prepares to take over: nothing may change that it has read.
    pub(super) const fn is_frozen(&self) -> bool {
        self.to.is_some()
    }

    /// Returns the refusal of a change during a hand-over.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let pid = self.to?;
        let error = format!("process {pid} is taking over: try again in a second");
        Some(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error))
    }

    /// Executes a step; returns whether the other process has taken over.
    pub(super) async fn execute(
        &mut self,
        step: Step,
        is_reloading: bool,
        world: &mut World,
    ) -> Result<bool, ControlError> {
        match step {
            Step::Begin { pid, reply } => {
                let begun = match is_reloading {
                    true => Err("a reload is in progress: try again".to_owned()),
                    false => world.saving.save_for_another(&world.registry),
                };
                self.to = begun.is_ok().then_some(pid);
                if reply.send(begun).is_err() {
                    self.go_on("the request is void", world);
                }
            }
            Step::Cancel { reason } => self.go_on(&reason, world),
            // It may have asked before, and said why it failed.
            Step::Failed { pid, how } if self.failed != Some(pid) => {
                self.note_failure(pid, &how, world);
            }
            Step::Failed { .. } => {}
            Step::Hold { holding, outcome } => return self.hold(holding, outcome, world).await,
        }
        Ok(false)
    }

    /// Waits for the outcome of the hand-over.
    async fn hold(
        &mut self,
        holding: oneshot::Sender<()>,
        outcome: oneshot::Receiver<Outcome>,
        world: &mut World,
    ) -> Result<bool, ControlError> {
        // Without a receiver, the outcome has no sender either.
        let _ = holding.send(());
        match outcome.await {
            Ok(Outcome::HandedOver { gap }) => {
                let (pid, gap) = (self.to.unwrap_or_default(), gap.as_micros());
                info!("handed over to process {pid}: nothing was forwarded for {gap} us at most");
                return Ok(true);
            }
            Ok(Outcome::GoesOn(reason)) => self.go_on(&reason, world),
            Ok(Outcome::Failed(reason)) => return Err(ControlError::HandOver(reason)),
            Err(_) => self.go_on("its thread has failed", world),
        }
        Ok(false)
    }

    fn go_on(&mut self, reason: &str, world: &mut World) {
        if let Some(pid) = self.to.take() {
            self.note_failure(pid, reason, world);
        }
        world.saving.go_on(&world.registry);
    }

    /// Records that a process has not taken over.
    fn note_failure(&mut self, pid: u32, reason: &str, world: &mut World) {
        self.failed = Some(pid);
        let text =
            format!("the hand-over to process {pid} has failed: {reason}; this process goes on");
        world.journal.record(NewEvent::new(Kind::HandOverFailed), text);
    }
}

/// Waits for the failure of a process that was started; `None` if there is none, or it has ended
/// otherwise.
async fn failure(started: &mut Option<Started>) -> Option<Step> {
    let Started { pid, failure } = started.as_mut()?;
    let (pid, how) = (*pid, failure.await);
    *started = None;
    Some(Step::Failed { pid, how: format!("{}; it has said why", how.ok()?) })
}
