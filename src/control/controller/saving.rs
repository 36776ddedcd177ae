//! Saving of the registry, so that a later process finds the VIPs and backends of every pin.

use tokio::time::Instant;
use tracing::{info, warn};

use crate::control::inputs::Save;
use crate::control::saved::{Moment, SavedRegistry};
use crate::control::state::Registry;
use crate::control::view::Clock;
use crate::units::Ticks;

/// Saver of the registry.
pub(super) struct Saving {
    /// `None`: nothing outlives the process.
    save: Option<Save>,
    /// The start: points in time are translated in one way only, so that a registry without a
    /// change is saved once.
    moment: Moment,
    saved: Option<SavedRegistry>,
    failed: bool,
    /// Whether another process has read the registry, and will save its own.
    suspended: bool,
}

impl Saving {
    pub(super) fn new(save: Option<Save>, clock: &Clock) -> Self {
        let moment = Moment { instant: Instant::now(), ticks: clock() };
        Self { save, moment, saved: None, failed: false, suspended: false }
    }

    /// Saves nothing.
    #[cfg(test)]
    pub(super) fn off() -> Self {
        let clock: Clock = std::sync::Arc::new(|| crate::units::Ticks(0));
        Self::new(None, &clock)
    }

    /// The time on the data path's clock.
    pub(super) fn now(&self) -> Ticks {
        self.moment.ticks_at(Instant::now())
    }

    /// Whether a later process finds the pins.
    pub(super) const fn is_saved(&self) -> bool {
        self.saved.is_some()
    }

    /// Saves the registry for a process that takes over, with the results of health checks; then
    /// saves nothing until [`go_on`](Self::go_on).
    ///
    /// # Errors
    /// Text for the operator.
    pub(super) fn save_for_another(&mut self, registry: &Registry) -> Result<(), String> {
        let save = self.save.as_mut().ok_or("the state of this process is in no directory")?;
        save(&registry.save_with_health(&self.moment))?;
        self.suspended = true;
        Ok(())
    }

    /// Saves again: the other process may have saved its own registry.
    pub(super) fn go_on(&mut self, registry: &Registry) {
        (self.suspended, self.saved) = (false, None);
        self.save(registry);
    }

    /// Saves the registry if it has changed, or was not saved last time. A failure is logged once,
    /// and tried again by the next call.
    pub(super) fn save(&mut self, registry: &Registry) {
        let Some(save) = self.save.as_mut().filter(|_| !self.suspended) else { return };
        let new = registry.save(&self.moment);
        if self.saved.as_ref() == Some(&new) {
            return;
        }
        match save(&new) {
            Ok(()) => {
                if std::mem::take(&mut self.failed) {
                    info!("state: saved again");
                }
                self.saved = Some(new);
            }
            Err(reason) => {
                self.saved = None;
                if !std::mem::replace(&mut self.failed, true) {
                    warn!(
                        "state: not saved: {reason}; until it is, a restart finds no pins; tried \
                         again every second"
                    );
                }
            }
        }
    }
}
