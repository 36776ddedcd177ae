//! Reloads: the file is read again, and refused or put into force.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use axum::http::StatusCode;
use tokio::time::Instant;
use tracing::{error, info};

use super::parts::Parts;
use super::removing::{notify_removals, notify_renames, removals};
use super::world::World;
use crate::config::Config;
use crate::control::api::{FlowsRemoved, Reloaded};
use crate::control::events::{Kind, NewEvent};
use crate::control::inputs::Load;
use crate::control::refusal::Refusal;
use crate::control::reload;
use crate::flow::table::Families;
use crate::format::counted;

/// Last line of every refusal of a reload.
const NOTHING_APPLIED: &str = "nothing was applied: the old configuration stays in force";

/// Source of the configuration.
pub(super) struct Reloading {
    path: PathBuf,
    load: Load,
}

impl Reloading {
    pub(super) fn new(path: PathBuf, load: Load) -> Self {
        Self { path, load }
    }

    /// Path of the configuration file.
    pub(super) fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// Reloads by [`Self::reload`]; a refusal is logged.
    pub(super) async fn reload_by_signal(&self, parts: &mut Parts) {
        if let Err(refusal) = self.reload(parts, false).await {
            for error in refusal.errors {
                error!("reload: {error}");
            }
        }
    }

    /// Reloads all or nothing: errors are found before anything changes (except memory that was
    /// allocated for a new address family), and a refusal states this.
    pub(super) async fn reload(
        &self,
        parts: &mut Parts,
        dry_run: bool,
    ) -> Result<Reloaded, Refusal> {
        let new = self.read(parts).await.map_err(refuse)?;
        let changes = reload::changes(&parts.world.config, &new);
        let removals = removals(&parts.world, &new).await;
        let flows = removals.iter().map(FlowsRemoved::from).collect();
        if dry_run {
            return Ok(Reloaded { changes, dry_run, flows });
        }
        let renames = reload::renames(&parts.world.config, &new);
        take_over(parts, new).await.map_err(refuse)?;
        for change in &changes {
            info!("reload: {change}");
        }
        let journal = &mut parts.world.journal;
        notify_renames(journal, renames);
        notify_removals(journal, &removals);
        let text = format!("reload: {}", counted(changes.len(), "change"));
        let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        journal.record(NewEvent::new(Kind::Reload).with("changes", count), text);
        put_into_force(parts).await?;
        Ok(Reloaded { changes, dry_run, flows })
    }

    /// Reads the file again, and checks that a reload can apply it.
    async fn read(&self, parts: &mut Parts) -> Result<Config, Refusal> {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let new = (self.load)(&self.path).map_err(|errors| Refusal { status, errors })?;
        let frozen = reload::frozen(&parts.world.config, &new);
        if !frozen.is_empty() {
            let keys = frozen.join(", ");
            let what = "cannot change while running: restart holdfast, or take the change back";
            let error =
                format!("{keys} {what} (a reload changes [[vip]], [tunnel] and [icmp] only)");
            return Err(Refusal::new(StatusCode::CONFLICT, error));
        }
        parts.announcing.check(&new).await.map_err(unprocessable)?;
        Ok(new)
    }
}

/// Makes `new` the configuration, completely or not at all.
async fn take_over(parts: &mut Parts, new: Config) -> Result<(), Refusal> {
    let Parts { world, splitting, .. } = parts;
    populate(world, new.families()).await.map_err(unprocessable)?;
    let applied = world.registry.apply(&new.vips, &world.workers, Instant::now());
    applied.map_err(unprocessable)?;
    splitting.retain(&world.registry);
    world.config = new;
    Ok(())
}

/// Populates the memory of the flow tables for these address families, where it is missing. Runs on
/// another thread, because it may take a second per worker.
async fn populate(world: &World, families: Families) -> Result<(), String> {
    let tables: Vec<_> = world.workers.iter().map(|worker| Arc::clone(&worker.flows)).collect();
    let all = move || tables.iter().try_for_each(|table| table.populate(families));
    let populated = tokio::task::spawn_blocking(all).await;
    let reported = |error: &dyn Display| {
        format!(
            "[workers] flows: {error}; if they lie on a pool of huge pages, raise vm.nr_hugepages"
        )
    };
    match populated {
        Ok(done) => done.map_err(|error| reported(&error)),
        Err(error) => Err(reported(&error)),
    }
}

/// Puts the new state into force. Removed rules leave the XDP program before the table is
/// published; new ones enter it afterwards.
async fn put_into_force(parts: &mut Parts) -> Result<(), Refusal> {
    let Parts { world, health, .. } = parts;
    world.targets.send_replace(world.registry.targets());
    health.sync(&world.registry);
    parts.settle().await;
    let Parts { world, steering, announcing, .. } = parts;
    let removed = steering.withdraw(world);
    world.publish();
    let steered = removed.and_then(|()| steering.follow(world));
    let announced = announcing.announce(world).await;
    steered.map_err(|reason| in_force(&format!("the XDP program's rules are not: {reason}")))?;
    announced.map_err(|error| in_force(&error.to_string()))
}

/// Returns the refusal for a failure after the new configuration was in force.
fn in_force(what: &str) -> Refusal {
    let error = format!("the configuration is in force, but {what}; tried again every second");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}

fn unprocessable(error: impl Display) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
}

/// Returns the refusal of a reload before anything changed.
fn refuse(mut refusal: Refusal) -> Refusal {
    refusal.errors.push(NOTHING_APPLIED.to_owned());
    refusal
}
