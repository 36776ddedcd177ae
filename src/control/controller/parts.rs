//! Parts of the control loop, and their effects on each other.

use tokio::time::Instant;
use tracing::error;

use super::access::Access;
use super::announcing::Announcing;
use super::asking::Asking;
use super::drains::{Drains, advance_slow_starts};
use super::health::{Health, compare_answers, release_holds};
use super::limits;
use super::next_hops::{NextHops, log_unresolved};
use super::nics::Nics;
use super::passive;
use super::removing::Removing;
use super::splitting::Splitting;
use super::steering::Steering;
use super::troubles::Troubles;
use super::withdrawing;
use super::world::World;
use crate::control::api::Status;
use crate::control::client_hops::ClientHops;
use crate::control::clients::Ageing;
use crate::control::error::ControlError;
use crate::control::flow_rates::FlowRates;
use crate::control::hand_over::TakeOver;
use crate::control::state::VipEntry;
use crate::control::status::{self, Process, Sources};

/// Parts of the control loop: each owns its state, its event and its retry, and shares the
/// [`World`].
pub(super) struct Parts {
    pub(super) world: World,
    pub(super) steering: Steering,
    pub(super) access: Access,
    pub(super) announcing: Announcing,
    pub(super) troubles: Troubles,
    pub(super) next_hops: NextHops,
    pub(super) client_hops: ClientHops,
    pub(super) health: Health,
    pub(super) asking: Asking,
    pub(super) drains: Drains,
    pub(super) removing: Removing,
    pub(super) splitting: Splitting,
    pub(super) nics: Nics,
    pub(super) ageing: Ageing,
    pub(super) flow_rates: FlowRates,
}

impl Parts {
    /// Publishes the table first, then sets the rules of the XDP program and attaches it, and then
    /// announces the addresses.
    /// If another process forwards until now, it hands over before the attachment: it goes on if a
    /// step before that fails.
    pub(super) async fn start(&mut self, take_over: Option<TakeOver>) -> Result<(), ControlError> {
        self.settle().await;
        self.world.publish();
        self.steering.start(&self.world).map_err(ControlError::Steering)?;
        // Before the first packet: no client may have a moment's access.
        self.access.index(&self.world, &mut self.steering);
        self.access.start(&self.world).await.map_err(ControlError::Steering)?;
        let is_alone = take_over.is_none();
        if let Some(take_over) = take_over {
            take_over().map_err(ControlError::NotTakenOver)?;
        }
        let attached = self.steering.attach().map_err(ControlError::Attach)?;
        self.nics.attached(attached, &self.world.nics);
        self.health.sync(&self.world.registry);
        self.asking.sync(&self.world);
        match self.announcing.announce(&mut self.world).await {
            // Connections that were taken over must not end for an address.
            Err(error) if !is_alone => error!("{error}; tried again every second"),
            announced => announced?,
        }
        Ok(())
    }

    /// Waits, for a bounded time, until the next hops of all backends are known.
    pub(super) async fn settle(&mut self) {
        self.next_hops.settle(&self.world.registry).await;
        self.follow();
        log_unresolved(&self.world);
    }

    /// Applies the latest snapshot of the resolver.
    fn follow(&mut self) {
        self.next_hops.follow(&mut self.world);
        self.announcing.follow(&self.world);
        self.troubles.follow(&mut self.world);
    }

    /// Handles a change of the network.
    pub(super) fn network(&mut self) {
        self.follow();
        self.steering.follow_or_retry(&mut self.world);
    }

    /// Runs the work that is due ten times a second.
    pub(super) fn tick(&mut self) {
        let Self { world, steering, .. } = self;
        let now = Instant::now();
        self.drains.advance(world, &mut self.health, now);
        release_holds(world, now);
        passive::release(world, now);
        self.access.advance(world, steering, now);
        advance_slow_starts(world, now);
        self.removing.release(world, steering, now);
        self.splitting.advance(world, now);
        withdrawing::advance(world, now);
        let table = world.publisher.current();
        let has_replies = |vip| table.vip(vip).is_some_and(|vip| vip.forward.translates());
        self.client_hops.advance(has_replies, &world.network.addresses, now);
    }

    /// Handles a change of a link.
    pub(super) async fn links(&mut self) -> Result<(), ControlError> {
        let Self { world, steering, .. } = self;
        self.nics.watch(world, steering)?;
        self.announcing.retry(world).await;
        Ok(())
    }

    /// Runs the work that is due every second.
    pub(super) async fn second(&mut self) -> Result<(), ControlError> {
        let Self { world, steering, .. } = self;
        self.removing.recount(world, steering);
        world.publisher.reap();
        world.saving.save(&world.registry);
        self.ageing.advance();
        self.flow_rates.advance(&world.registry, &world.workers, Instant::now());
        compare_answers(world);
        passive::watch(world, Instant::now());
        limits::watch(world);
        // A generation may have ended.
        self.asking.sync(world);
        steering.retry(world);
        self.access.index(world, steering);
        self.access.retry(world);
        self.links().await
    }

    /// Builds the status document.
    pub(super) fn status(&mut self, started: Instant, config: String) -> Status {
        let nic_counters = self.steering.counters(self.world.nics.len());
        let access_drops = self.access.drops(&self.world, &mut self.steering);
        let World {
            registry, config: in_force, workers, nics, publisher, digests, privileges, ..
        } = &self.world;
        let generation = publisher.current().generation();
        let announced_on = |vip: &VipEntry| self.announcing.interface(vip);
        let sources = Sources {
            registry,
            full_nat: &in_force.full_nat,
            workers,
            nics,
            attached: &self.nics.attached,
            nic_faults: &self.nics.faults,
            nic_counters,
            access_drops: &access_drops,
            splitter: self.splitting.splitter(),
            flow_rates: &self.flow_rates,
            announced_on: &announced_on,
        };
        let (digests, privileges) = (*digests, privileges.clone());
        status::status(&Process { started, config, generation, digests, privileges }, &sources)
    }
}
