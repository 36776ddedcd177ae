//! The control loop. It handles one event at a time, and publishes at most one new forwarding table
//! after each.
//!
//! The loop has [`Parts`]: each owns its state, its event and its retry, and has its own file.
//! State that several parts read or change is in the [`World`].

mod access;
mod announcing;
mod asking;
mod drains;
mod handing_over;
mod health;
mod limits;
mod next_hops;
mod nics;
mod parts;
mod passive;
mod reloading;
mod removing;
mod saving;
mod splitting;
mod steering;
mod troubles;
mod withdrawing;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use self::access::Access;
use self::announcing::Announcing;
use self::asking::Asking;
use self::drains::{Drains, drain, undrain};
use self::handing_over::HandingOver;
use self::health::Health;
use self::next_hops::NextHops;
use self::nics::Nics;
use self::parts::Parts;
use self::reloading::{Order, Reloading};
use self::removing::Removing;
use self::saving::Saving;
use self::splitting::Splitting;
use self::steering::Steering;
use self::troubles::Troubles;
use self::world::World;
use super::admin::{self, ApiState, Request};
use super::announce::Announcer;
use super::client_hops::ClientHops;
use super::clients::Ageing;
use super::error::ControlError;
use super::events::Journal;
use super::explain::Prepared;
use super::flow_rates::FlowRates;
use super::flows::Names;
use super::gratuitous::Advertiser;
use super::hand_over::TakeOver;
use super::inputs::Inputs;
use super::netlink::{self, Netlink};
use super::pins::Pins;
use super::signals::Signal;
use super::state::VipEntry;
use super::view::WorkerEvent;
use super::{ControlSocket, HandOver, neighbour};
use crate::format::counted;
use crate::forwarding::digest::Digests;

/// Period of checking drain deadlines and worker events.
const TICK: Duration = Duration::from_millis(100);
/// Period of freeing old tables and retrying failed operations.
const SECOND: Duration = Duration::from_secs(1);

/// Wake-up sources of the loop, in addition to the events of its parts.
struct Events {
    signals: mpsc::Receiver<Signal>,
    requests: mpsc::Receiver<Request>,
    workers: crossbeam_channel::Receiver<WorkerEvent>,
    /// Changes of links.
    links: Arc<Notify>,
    tick: Interval,
    second: Interval,
}

/// The control loop.
struct Controller {
    started: Instant,
    events: Events,
    parts: Parts,
    reloading: Reloading,
    handing_over: HandingOver,
}

/// Result of the control loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// A signal has asked for a stop.
    Stopped,
    /// Another process has taken over.
    HandedOver,
}

/// Runs the control thread to its end; see [`super::run`].
pub(super) async fn serve(
    inputs: Inputs,
    signals: mpsc::Receiver<Signal>,
) -> Result<(), ControlError> {
    let Assembled { mut controller, api_state, mut control_socket, take_over, ready } =
        assemble(inputs, signals)?;
    let result = match controller.start(&mut control_socket, api_state, take_over).await {
        Ok(()) => {
            ready();
            controller.run().await
        }
        Err(error) => Err(error),
    };
    if let Ok(End::HandedOver) = result {
        controller.parts.steering.leave();
        control_socket.leave();
        return Ok(());
    }
    // Packets are forwarded as long as there is the program: what takes long comes before its end.
    controller.parts.announcing.end().await;
    drop(controller.parts.steering);
    result.map(|_| ())
}

/// The control thread before its start.
struct Assembled {
    controller: Controller,
    api_state: ApiState,
    control_socket: ControlSocket,
    take_over: Option<TakeOver>,
    ready: Box<dyn FnOnce()>,
}

/// Opens netlink and connects the parts. Changes nothing outside the process.
fn assemble(inputs: Inputs, signals: mpsc::Receiver<Signal>) -> Result<Assembled, ControlError> {
    // A socket each: the kernel dumps one table at a time per socket.
    let (for_hops, for_addresses) = (Netlink::open()?, Netlink::open()?);
    let change_notifier = netlink::watch()?;
    let links = netlink::watch_links()?;
    let (requests, request_receiver) = mpsc::channel(admin::QUEUE);
    let now = Instant::now();
    let mut registry = inputs.registry;
    registry.apply(&inputs.config.vips, &inputs.workers, now)?;
    let (targets, target_receiver) = watch::channel(registry.targets());
    let tables: Vec<_> =
        inputs.workers.iter().map(|worker| Arc::clone(&worker.flows) as Arc<dyn Pins>).collect();
    let (client_hops, hop_receiver) = ClientHops::new(tables.clone(), Arc::clone(&inputs.shared));
    let routers = registry.routers.clone();
    let wanted = neighbour::Inputs { targets: target_receiver, client_hops: hop_receiver, routers };
    let network = neighbour::start(for_hops, change_notifier, &inputs.nics, wanted);
    let on_drained = &inputs.config.control.on_drained;
    let advertiser = Advertiser::start(inputs.send_frame);
    let mut steering = Steering::new(inputs.steering);
    let access = Access::new(steering.take_lists().map_err(ControlError::Steering)?);
    let parts = Parts {
        steering,
        access,
        announcing: Announcing::new(Announcer::new(for_addresses, &inputs.nics, advertiser)),
        troubles: Troubles::default(),
        next_hops: NextHops::new(network),
        client_hops,
        health: Health::new(),
        asking: Asking::new(),
        drains: Drains::new(tables.clone(), Arc::clone(&inputs.clock), on_drained),
        removing: Removing::default(),
        splitting: Splitting::new(now),
        nics: Nics::default(),
        ageing: Ageing::new(Arc::clone(&inputs.shared), Arc::clone(&inputs.clock)),
        flow_rates: FlowRates::default(),
        world: World {
            config: inputs.config,
            registry,
            workers: inputs.workers,
            shared: Arc::clone(&inputs.shared),
            nics: inputs.nics,
            network: Arc::default(),
            targets,
            publisher: inputs.publisher,
            digests: Digests::default(),
            dirty: true,
            readdress: false,
            without_program: Vec::new(),
            macs_changed: false,
            journal: Journal::default(),
            saving: Saving::new(inputs.save, &inputs.clock),
            privileges: inputs.privileges,
        },
    };
    let events = Events {
        signals,
        requests: request_receiver,
        workers: inputs.events,
        links,
        tick: patient(TICK),
        second: patient(SECOND),
    };
    let (shared, clock, explain) = (inputs.shared, inputs.clock, inputs.explain);
    let api_state = ApiState { requests, tables, shared, clock, explain };
    let reloading = Reloading::new(inputs.config_path, inputs.load);
    let HandOver { take_over, steps, start_again } = inputs.hand_over;
    let handing_over = HandingOver::new(steps, start_again);
    let controller = Controller { started: now, events, parts, reloading, handing_over };
    let (control_socket, ready) = (inputs.control_socket, inputs.ready);
    Ok(Assembled { controller, api_state, control_socket, take_over, ready })
}

fn patient(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

impl Controller {
    /// Starts the parts, then serves the control socket.
    async fn start(
        &mut self,
        control_socket: &mut ControlSocket,
        api_state: ApiState,
        take_over: Option<TakeOver>,
    ) -> Result<(), ControlError> {
        self.parts.start(take_over).await?;
        control_socket.serve(api_state)?;
        let World { config, registry, workers, .. } = &self.parts.world;
        let vips = counted(config.vips.len(), "VIP");
        let backends = counted(registry.backends().count(), "backend");
        info!("control: {vips}, {backends}, {}", counted(workers.len(), "worker"));
        Ok(())
    }

    async fn run(&mut self) -> Result<End, ControlError> {
        let Self { events, parts, reloading, handing_over, started } = self;
        loop {
            tokio::select! {
                signal = events.signals.recv() => match signal {
                    Some(Signal::Reload) => match handing_over.refusal() {
                        None => reloading.order(Order::Signal),
                        Some(refusal) => {
                            refusal.errors.iter().for_each(|error| error!("reload: {error}"));
                        }
                    },
                    Some(Signal::HandOver) => handing_over.start_again(),
                    Some(Signal::Stop) | None => {
                        info!("stopping, as a signal asked for");
                        report_pinned_flows(&parts.world);
                        return Ok(End::Stopped);
                    }
                },
                Some(request) = events.requests.recv() => {
                    let Some(request) = refuse_change(request, handing_over) else { continue };
                    answer(request, parts, reloading, *started);
                }
                step = handing_over.step() => {
                    let is_reloading = reloading.is_busy();
                    if handing_over.execute(step, is_reloading, &mut parts.world).await? {
                        return Ok(End::HandedOver);
                    }
                }
                (order, new) = reloading.read() => reloading.finish(parts, order, new).await,
                Some(outcome) = parts.health.outcome() => {
                    parts.health.judge(outcome, &mut parts.world);
                }
                Some(replied) = parts.asking.reply() => {
                    parts.asking.record(replied, &mut parts.world);
                }
                Ok(()) = parts.next_hops.changed() => parts.network(),
                _ = events.tick.tick() => {
                    worker_failure(&events.workers)?;
                    // Drains, splits and removals would change what the other process has read.
                    if !handing_over.is_frozen() {
                        parts.tick();
                    }
                }
                () = events.links.notified() => parts.links().await?,
                _ = events.second.tick() => parts.second().await?,
            }
            if parts.world.dirty {
                parts.world.publish();
            }
            if parts.world.readdress {
                parts.announcing.retry(&mut parts.world).await;
            }
        }
    }
}

/// Refuses a request that changes something while another process takes over; returns any other
/// request.
fn refuse_change(request: Request, handing_over: &HandingOver) -> Option<Request> {
    let Some(refusal) = handing_over.refusal() else { return Some(request) };
    match request {
        Request::Drain(_, reply) => _ = reply.send(Err(refusal)),
        Request::Undrain(_, reply) => _ = reply.send(Err(refusal)),
        Request::Reload(_, reply) => _ = reply.send(Err(refusal)),
        Request::Deny(_, reply) => _ = reply.send(Err(refusal)),
        Request::Undeny(_, reply) => _ = reply.send(Err(refusal)),
        other => return Some(other),
    }
    None
}

/// Executes a request of the control socket and replies.
fn answer(request: Request, parts: &mut Parts, reloading: &mut Reloading, started: Instant) {
    // The client may have disconnected; its order is executed all the same.
    match request {
        Request::Status(reply) => _ = reply.send(parts.status(started, reloading.path())),
        Request::Drain(order, reply) => _ = reply.send(drain(&mut parts.world, &order)),
        Request::Undrain(order, reply) => _ = reply.send(undrain(&mut parts.world, &order)),
        Request::Events(since, reply) => _ = reply.send(parts.world.journal.since(since)),
        Request::Reload(dry_run, reply) => reloading.order(Order::Request { dry_run, reply }),
        Request::Explain(query, reply) => {
            let World { registry, publisher, nics, .. } = &parts.world;
            let lists = parts.access.sent();
            _ = reply.send(Prepared::new(query, registry, lists, publisher.current(), nics));
        }
        Request::Deny(order, reply) => {
            let Parts { world, steering, access, .. } = parts;
            access.add(world, steering, &order, reply);
        }
        Request::Undeny(order, reply) => {
            let Parts { world, steering, access, .. } = parts;
            access.remove(world, steering, &order, reply);
        }
        Request::Denied(reply) => _ = reply.send(parts.access.list(&parts.world)),
        Request::Names(reply) => _ = reply.send(Arc::new(Names::of(&parts.world.registry))),
    }
}

/// Reports the effect of a stop on the pinned flows: the next process finds them, unless nothing
/// outlives this one. Then translated flows are cut, because no other process can translate their
/// packets, and their endpoints are sent nothing.
fn report_pinned_flows(world: &World) {
    if world.saving.is_saved() {
        let pinned: u64 = world.workers.iter().map(|worker| worker.stats.flows_active.get()).sum();
        if pinned > 0 {
            info!("{} pinned: they go on when holdfast starts again", counted(pinned, "flow"));
        }
        return;
    }
    let translated = world.registry.all_vips().filter(|vip| vip.config.forward.translates());
    let backends = translated.flat_map(VipEntry::all_backends);
    let pinned: u64 = backends.map(|backend| world.flows_active(backend.id.index)).sum();
    if pinned > 0 {
        warn!(
            "{} of nat and full_nat pinned, some of which may just have closed: the open ones are cut, \
             and neither end is told; a client that waits for data hangs until its own time-out, \
             even if holdfast starts again; to cut nothing, drain all of their backends before a \
             stop (holdfast drain --force --wait VIP/BACKEND...)",
            counted(pinned, "flow")
        );
    }
}

/// Returns the error of the first worker that has failed, if any.
fn worker_failure(events: &crossbeam_channel::Receiver<WorkerEvent>) -> Result<(), ControlError> {
    // A closed channel is not an error here: the daemon holds a sender for as long as it lives.
    match events.try_recv() {
        Ok(WorkerEvent::Failed { worker, error }) => Err(ControlError::Worker { worker, error }),
        Err(_) => Ok(()),
    }
}
