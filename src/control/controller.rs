//! The control loop: one event at a time, and after each, at most one new forwarding table.

mod drains;
mod removals;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use hashbrown::{HashMap, HashSet};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tracing::{debug, error, info, warn};

use self::removals::Recount;
use super::admin::{self, Door, Refusal, Request};
use super::announce::{Announcer, Place};
use super::answering;
use super::api::{FlowsRemoved, Reloaded, Status};
use super::clients;
use super::events::{Journal, Kind, News};
use super::explain::Prepared;
use super::flow_rates::FlowRates;
use super::flows::{Names, Pins, list};
use super::forecast::Forecaster;
use super::gratuitous::Advertiser;
use super::health::{Checks, Outcome};
use super::hook::Hook;
use super::inbound::{self, Trouble};
use super::neighbour::{self, Problem, Snapshot};
use super::netlink::{self, Netlink};
use super::nic_faults::{self, NicFault};
use super::split::Splitter;
use super::state::{BackendEntry, Registry, VipEntry};
use super::status::{self, Process, Sources};
use super::{
    AttachedView, Claim, Clock, ControlError, Inputs, Load, NicView, Signal, SteerRules,
    SteeringPort, WorkerEvent, WorkerView, reload,
};
use crate::config::machine::Level;
use crate::config::{self, Config};
use crate::flow::shared::SharedTables;
use crate::flow::table::Families;
use crate::forwarding::publish::Publisher;
use crate::forwarding::{ForwardingTable, Splits, ThisBox};
use crate::net::{NicIndex, Protocol, VipId};
use crate::words::counted;

/// Drain deadlines and workers' events are looked at this often.
const TICK: Duration = Duration::from_millis(100);
/// Old tables are freed, and what failed is tried again, this often.
const SECOND: Duration = Duration::from_secs(1);
/// How long a start or a reload waits for the next hops of new backends before it goes on.
const FIRST_RESOLUTION: Duration = Duration::from_secs(1);
/// Of that time, how long it does so without a word.
const QUIET_RESOLUTION: Duration = Duration::from_millis(200);
/// How long the new flows of a source are counted before a verdict.
const SPLIT_WINDOW: Duration = Duration::from_secs(2);
/// Results of health checks that may wait; more wait in their tasks.
const OUTCOMES: usize = 1024;

/// The last word of every reload that is refused.
const NOTHING_APPLIED: &str = "nothing was applied: the old configuration stays in force";

/// What wakes the loop.
struct Events {
    signals: mpsc::Receiver<Signal>,
    requests: mpsc::Receiver<Request>,
    outcomes: mpsc::Receiver<Outcome>,
    network: watch::Receiver<Arc<Snapshot>>,
    workers: crossbeam_channel::Receiver<WorkerEvent>,
    tick: Interval,
    second: Interval,
}

/// All changing state of the process.
struct Controller {
    started: Instant,
    config: Config,
    config_path: PathBuf,
    load: Load,
    registry: Registry,
    workers: Vec<WorkerView>,
    nics: Vec<NicView>,
    /// Per NIC, in the same order; empty before the start.
    attached: Vec<AttachedView>,
    /// Who has which backend, and how far it was looked through for those of long ago.
    clients: (Arc<SharedTables>, usize),
    clock: Clock,
    publisher: Publisher,
    /// Something that the forwarding table says has changed.
    dirty: bool,
    /// Finds sources that are too large for one backend.
    splitter: Splitter,
    /// When the window ends in which they are counted, and the flows of each VIP at its start.
    split_window: (Instant, HashMap<VipId, u64>),
    steering: Box<dyn SteeringPort>,
    /// What the XDP program was told last.
    rules: SteerRules,
    /// It was not told, or refused: try again.
    rules_pending: bool,
    checks: Checks,
    targets: watch::Sender<HashSet<IpAddr>>,
    network: Arc<Snapshot>,
    announcer: Announcer,
    /// What leads clients to the kernel.
    troubles: Vec<Trouble>,
    /// Some address is not where it should be: try again.
    announce_pending: bool,
    /// What is wrong with each NIC, in the same order.
    nic_faults: Vec<Vec<NicFault>>,
    journal: Journal,
    hook: Hook,
    forecaster: Forecaster,
    flow_rates: FlowRates,
    recount: Recount,
}

/// Runs the control thread's work to its end; see [`super::run`].
pub(super) async fn serve(
    inputs: Inputs,
    signals: mpsc::Receiver<Signal>,
) -> Result<(), ControlError> {
    let (mut controller, mut events, door, mut claim, ready) = assemble(inputs, signals)?;
    let result = match controller.start(&mut events, &mut claim, door).await {
        Ok(()) => {
            ready();
            controller.run(&mut events).await
        }
        Err(error) => Err(error),
    };
    controller.announcer.withdraw_all().await;
    result
}

type Assembled = (Controller, Events, Door, Claim, Box<dyn FnOnce()>);

/// Opens netlink and connects the parts; nothing outside of the process has changed yet.
fn assemble(inputs: Inputs, signals: mpsc::Receiver<Signal>) -> Result<Assembled, ControlError> {
    let netlink = Netlink::open()?;
    let bell = netlink::watch()?;
    let (requests, request_receiver) = mpsc::channel(admin::QUEUE);
    let (outcome_sender, outcomes) = mpsc::channel(OUTCOMES);
    let mut registry = Registry::new(inputs.config.full_nat.numbered());
    registry.apply(&inputs.config.vips, &inputs.workers, Instant::now())?;
    let (targets, target_receiver) = watch::channel(registry.targets());
    let network = neighbour::start(netlink.clone(), bell, &inputs.nics, target_receiver);
    let tables: Vec<_> =
        inputs.workers.iter().map(|worker| Arc::clone(&worker.flows) as Arc<dyn Pins>).collect();
    let forecaster = Forecaster::new(tables.clone(), Arc::clone(&inputs.clock));
    let door = Door {
        requests,
        tables,
        shared: Arc::clone(&inputs.shared),
        clock: Arc::clone(&inputs.clock),
        explain: inputs.explain,
    };
    let events = Events {
        signals,
        requests: request_receiver,
        outcomes,
        network,
        workers: inputs.events,
        tick: patient(TICK),
        second: patient(SECOND),
    };
    let controller = Controller {
        started: Instant::now(),
        journal: Journal::default(),
        hook: Hook::new(&inputs.config.control.on_drained),
        forecaster,
        flow_rates: FlowRates::default(),
        recount: Recount::default(),
        config: inputs.config,
        config_path: inputs.config_path,
        load: inputs.load,
        registry,
        clients: (inputs.shared, 0),
        clock: inputs.clock,
        publisher: inputs.publisher,
        dirty: true,
        splitter: Splitter::default(),
        split_window: (Instant::now(), HashMap::new()),
        steering: inputs.steering,
        rules: SteerRules::default(),
        rules_pending: false,
        checks: Checks::new(outcome_sender),
        targets,
        network: Arc::default(),
        announcer: Announcer::new(netlink, &inputs.nics, Advertiser::start(inputs.send_frame)),
        troubles: Vec::new(),
        announce_pending: false,
        workers: inputs.workers,
        nics: inputs.nics,
        attached: Vec::new(),
        nic_faults: Vec::new(),
    };
    Ok((controller, events, door, inputs.claim, inputs.ready))
}

fn patient(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

impl Controller {
    /// Table first, then the XDP program's rules, the program itself, and the world.
    async fn start(
        &mut self,
        events: &mut Events,
        claim: &mut Claim,
        door: Door,
    ) -> Result<(), ControlError> {
        self.await_network(&mut events.network).await;
        self.publish();
        self.steer(self.wanted_rules()).map_err(ControlError::Steering)?;
        self.attached = self.steering.attach().map_err(ControlError::Attach)?;
        self.tell_nics();
        self.checks.sync(self.registry.checks());
        let places = self.places();
        self.announcer.remove_leftovers(&places).await?;
        self.announce().await?;
        claim.serve(door)?;
        let vips = counted(self.config.vips.len(), "VIP");
        let backends = counted(self.registry.backends().count(), "backend");
        info!("control: {vips}, {backends}, {}", counted(self.workers.len(), "worker"));
        Ok(())
    }

    async fn run(&mut self, events: &mut Events) -> Result<(), ControlError> {
        loop {
            tokio::select! {
                signal = events.signals.recv() => match signal {
                    Some(Signal::Reload) => self.reload_by_signal(&mut events.network).await,
                    Some(Signal::Stop) | None => {
                        info!("stopping, as a signal asked for");
                        self.tell_cut_flows();
                        return Ok(());
                    }
                },
                Some(request) = events.requests.recv() => {
                    self.answer(request, &mut events.network).await;
                }
                Some(outcome) = events.outcomes.recv() => {
                    self.judge(outcome);
                    // All that have come are one table's worth.
                    while let Ok(outcome) = events.outcomes.try_recv() {
                        self.judge(outcome);
                    }
                }
                Ok(()) = events.network.changed() => {
                    self.follow(&mut events.network);
                    self.steer_or_retry();
                }
                _ = events.tick.tick() => {
                    worker_failure(&events.workers)?;
                    self.advance_drains();
                    self.advance_slow_starts();
                    self.release_removed();
                    self.split_sources();
                }
                _ = events.second.tick() => self.housekeep().await,
            }
            if self.dirty {
                self.publish();
            }
        }
    }

    /// Says what a stop does to flows whose packets are translated here: no other process can do that, and
    /// their ends are sent nothing.
    fn tell_cut_flows(&self) {
        let translated = self.registry.all_vips().filter(|vip| vip.config.forward.translates());
        let backends = translated.flat_map(VipEntry::all_backends);
        let pinned: u64 =
            backends.map(|backend| status::flows_active(&self.workers, backend.id.index)).sum();
        if pinned > 0 {
            warn!(
                "{} of nat and full_nat pinned, some of which may just have closed: the open ones are cut, \
                 and neither end is told; a client that waits for data hangs until its own time-out, \
                 even if holdfast starts again; to cut nothing, drain all of their backends before a \
                 stop (holdfast drain --force --wait)",
                counted(pinned, "flow")
            );
        }
    }

    fn tell_nics(&self) {
        for (nic, AttachedView { xdp, fallback }) in self.nics.iter().zip(&self.attached) {
            let NicView { interface, driver, mode, multi_buffer, queues, fallbacks, .. } = nic;
            let frames = if *multi_buffer { "multi-buffer" } else { "one frame per packet" };
            info!(
                "NIC {interface}: driver {driver}, {xdp} XDP, {mode}, {frames}, queues {queues:?}"
            );
            for reason in fallback.iter().chain(fallbacks) {
                warn!("NIC {interface}: {reason}");
            }
        }
    }

    // ---- forwarding table and XDP program ----

    /// Builds a table of all that is known, and publishes it.
    fn publish(&mut self) {
        let current = self.publisher.current();
        let specs = self.registry.patient_specs();
        let generation = current.generation() + 1;
        let secret = self.config.hash.secret;
        let table =
            ForwardingTable::build(generation, secret, self.this_box(), &specs, Some(&current));
        drop(current);
        self.publisher.publish(table);
        self.dirty = false;
        debug!("forwarding table {generation} published");
    }

    fn this_box(&self) -> ThisBox {
        // Until the network has been looked at: as at start.
        let mut mtus = self.network.nic_mtus.clone();
        if mtus.is_empty() {
            mtus = self.nics.iter().map(|nic| nic.mtu).collect();
        }
        self.config.this_box(mtus, self.nics.iter().map(|nic| nic.mac).collect())
    }

    fn wanted_rules(&self) -> SteerRules {
        self.config.tunnels.steered(self.registry.steer_rules(&self.network.addresses))
    }

    fn steer(&mut self, rules: SteerRules) -> Result<(), String> {
        if rules == self.rules && !self.rules_pending {
            return Ok(());
        }
        let result = self.steering.sync(&rules);
        self.rules_pending = result.is_err();
        self.rules = rules;
        result
    }

    /// Brings the XDP program up to date; an error is logged, and tried again every second.
    fn steer_or_retry(&mut self) {
        let failed_before = self.rules_pending;
        if let Err(reason) = self.steer_all()
            && !failed_before
        {
            error!("XDP program: rules could not be set: {reason}; tried again every second");
        }
    }

    // ---- network ----

    /// Waits, not for long, until the next hops of all backends are known.
    async fn await_network(&mut self, network: &mut watch::Receiver<Arc<Snapshot>>) {
        let targets = self.registry.targets();
        let known = |snapshot: &Arc<Snapshot>| {
            targets.iter().all(|target| {
                let hop = snapshot.hops.get(target);
                hop.is_some_and(|hop| *hop != Err(Problem::Resolving))
            })
        };
        if timeout(QUIET_RESOLUTION, network.wait_for(known)).await.is_err() {
            let most = FIRST_RESOLUTION.as_secs();
            info!("waiting for the next hops of backends, {most} s at most");
            // Late is no error: backends without a next hop take no new flows until they have one.
            let rest = FIRST_RESOLUTION.saturating_sub(QUIET_RESOLUTION);
            let _ = timeout(rest, network.wait_for(known)).await;
        }
        self.follow(network);
        self.tell_unresolved();
    }

    /// Says whose next hops are still being looked up; other problems have been told by then.
    fn tell_unresolved(&self) {
        let resolving = Err(Problem::Resolving);
        let hop = |address: &IpAddr| self.network.hops.get(address).unwrap_or(&resolving);
        let late = self.registry.backends().filter(|(_, b)| *hop(&b.config.address) == resolving);
        let late = late.map(|(vip, b)| format!("{}/{}", vip.config.name, b.config.name));
        let late: Vec<String> = late.collect();
        if !late.is_empty() {
            let late = list(late.into_iter());
            warn!("going on without next hops of {late}: no new flows for them until they answer");
        }
    }

    /// Takes over what the resolver has found.
    fn follow(&mut self, network: &mut watch::Receiver<Arc<Snapshot>>) {
        let before = std::mem::replace(&mut self.network, Arc::clone(&network.borrow_and_update()));
        self.dirty |= before.nic_mtus != self.network.nic_mtus;
        for (vip, backend) in self.registry.all_backends_mut() {
            if let Some(hop) = self.network.hops.get(&backend.config.address) {
                let next_hop = hop.as_ref().ok().copied();
                let awaited = backend.awaits_next_hop();
                self.dirty |= backend.next_hop != next_hop;
                backend.next_hop = next_hop;
                let mtu = self.network.mtus.get(&backend.config.address).copied();
                let mtu = mtu.unwrap_or(backend.mtu);
                self.dirty |= backend.mtu != mtu;
                backend.mtu = mtu;
                let problem = hop.as_ref().err().map(Problem::to_string);
                backend.next_hop_detail = problem.unwrap_or_default();
                tell_problem(vip, backend, hop.as_ref().err());
                self.dirty |= backend.awaits_next_hop() != awaited;
            }
        }
        self.announce_pending |= self.announcer.lost_any(&self.network.addresses);
        self.follow_troubles();
    }

    /// Says which addresses of VIPs lead clients to the kernel from now on, and which no longer.
    fn follow_troubles(&mut self) {
        let Snapshot { links, addresses, arp, .. } = self.network.as_ref();
        let now = inbound::troubles(&self.config, inbound::View { links, addresses, arp });
        let now: Vec<Trouble> =
            now.into_iter().filter(|trouble| trouble.level() == Level::Warning).collect();
        let before = std::mem::replace(&mut self.troubles, now);
        let among = |all: &[Trouble], one: &Trouble| all.iter().any(|other| other.is_still(one));
        for new in self.troubles.iter().filter(|trouble| !among(&before, trouble)) {
            self.journal.tell(News::about(Kind::AddressTrouble, new.vip()), new.to_string());
        }
        for gone in before.iter().filter(|trouble| !among(&self.troubles, trouble)) {
            let text = format!("no longer so: {}", gone.what());
            self.journal.tell(News::about(Kind::AddressRight, gone.vip()), text);
        }
    }

    /// Looks at every NIC, and tells what has gone wrong or is well again.
    fn watch_nics(&mut self) {
        self.nic_faults.resize(self.nics.len(), Vec::new());
        let nics = self.nics.iter().zip(&mut self.nic_faults).zip((0..).map(NicIndex));
        for ((nic, faults), index) in nics {
            let now = match self.steering.nic_now(index) {
                Ok(now) => nic_faults::faults(nic, now),
                Err(reason) => {
                    debug!("NIC {}: {reason}", nic.interface);
                    continue;
                }
            };
            let before = std::mem::replace(faults, now);
            let name = &nic.interface;
            for fault in faults.iter().filter(|fault| !before.contains(fault)) {
                let news = News::of_nic(Kind::NicFault, name, fault.as_str());
                self.journal.tell(news, format!("NIC {name}: {}", fault.text(nic)));
            }
            for fault in before.iter().filter(|fault| !faults.contains(fault)) {
                let news = News::of_nic(Kind::NicMended, name, fault.as_str());
                self.journal.tell(news, format!("NIC {name}: {} no longer", fault.as_str()));
            }
        }
    }

    // ---- health ----

    fn judge(&mut self, Outcome { backend: id, result }: Outcome) {
        let Some((vip, backend)) = self.registry.at_mut(id.index) else { return };
        // A result that was under way when the backend or its check went away.
        let Some(check) = backend.check.as_ref().filter(|_| backend.id == id) else { return };
        let (rise, fall) = (check.health.rise, check.health.fall);
        let success = result.is_ok();
        let was_known = backend.health != super::health::Hysteresis::default();
        let verdict = backend.health.observe(success, rise, fall);
        match result {
            Err(reason) => backend.health_detail = reason,
            Ok(()) if backend.health.usable() => backend.health_detail.clear(),
            Ok(()) => {}
        }
        let Some(up) = verdict else { return };
        // Not yet checked counts as up, so a first success changes nothing.
        if !was_known && up {
            return debug!("backend {} of VIP {} is up", backend.config.name, vip.name);
        }
        let (name, vip_name, detail) = (&backend.config.name, &vip.name, &backend.health_detail);
        let (kind, text) = if up {
            (Kind::BackendUp, format!("backend {name} of VIP {vip_name} is up"))
        } else {
            (Kind::BackendDown, format!("backend {name} of VIP {vip_name} is down: {detail}"))
        };
        let news = News::of(kind, vip_name, name);
        if up {
            backend.slow_start.begin(vip.drain.slow_start, Instant::now());
        }
        self.journal.tell(news, text);
        self.dirty = true;
    }

    /// Looks for backends that are up, and yet do not answer clients.
    fn compare_answers(&mut self) {
        let now = Instant::now();
        for vip in
            self.registry.vips_mut().iter_mut().filter(|v| v.config.protocol == Protocol::Tcp)
        {
            for backend in &mut vip.backends {
                let syns = status::syns(&self.workers, backend);
                backend.answering.read(syns, now);
            }
            let up = vip.backends.iter_mut().filter(|backend| backend.is_up());
            let mut up: Vec<&mut BackendEntry> = up.collect();
            let mut answers: Vec<_> = up.iter_mut().map(|backend| &mut backend.answering).collect();
            for position in answering::judge(&mut answers) {
                let Some(backend) = up.get(position) else { continue };
                tell_answers(&mut self.journal, &vip.config, backend);
            }
        }
    }

    // ---- mega-proxies ----

    /// Takes the workers' samples, and at the end of a window says which sources are split.
    fn split_sources(&mut self) {
        let samples = self.workers.iter().flat_map(|worker| worker.stats.samples.take());
        samples.for_each(|sample| self.splitter.observe(sample));
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.split_window.0);
        if elapsed < SPLIT_WINDOW {
            return;
        }
        let table = self.publisher.current();
        let counts = std::mem::take(&mut self.split_window.1);
        self.split_window.0 = now;
        for vip in self.registry.vips_mut() {
            let Some(settings) = vip.split().copied() else { continue };
            let total = status::flows_or_datagrams(&self.workers, vip);
            let before = counts.get(&vip.id).copied().unwrap_or(total);
            self.split_window.1.insert(vip.id, total);
            #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
            let rate = total.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            let Some(known) = table.vip(vip.id) else { continue };
            if let Some(splits) = self.splitter.judge(known, &table, &settings, rate) {
                tell_splits(&mut self.journal, &vip.config.name, &vip.splits, &splits);
                vip.splits = splits;
                self.dirty = true;
            }
        }
        let counted = &self.split_window.1;
        self.splitter.retain(|vip| counted.contains_key(&vip));
    }

    // ---- announcements ----

    /// Makes the VIPs' addresses be where they should be, and has the network told.
    async fn announce(&mut self) -> Result<(), ControlError> {
        let places = self.places();
        let result = self.announcer.sync(&places).await;
        self.announce_pending = result.is_err();
        Ok(result?)
    }

    async fn housekeep(&mut self) {
        self.recount_kept_places();
        self.publisher.reap();
        let (shared, aged) = &mut self.clients;
        *aged = clients::age(&shared.clients, *aged, (self.clock)());
        self.flow_rates.advance(&self.registry, &self.workers, Instant::now());
        self.compare_answers();
        self.watch_nics();
        if self.rules_pending {
            self.steer_or_retry();
        }
        if self.announce_pending
            && let Err(error) = self.announce().await
        {
            debug!("{error}; tried again");
        }
    }

    // ---- reload ----

    async fn reload_by_signal(&mut self, network: &mut watch::Receiver<Arc<Snapshot>>) {
        if let Err(refusal) = self.reload(network, false).await {
            for error in refusal.errors {
                error!("reload: {error}");
            }
        }
    }

    /// All or nothing: what can be wrong is found before anything changes (but memory, that was found for a new
    /// address family), and a refusal says so.
    async fn reload(
        &mut self,
        network: &mut watch::Receiver<Arc<Snapshot>>,
        dry_run: bool,
    ) -> Result<Reloaded, Refusal> {
        let new = self.read_file().await.map_err(refuse)?;
        let changes = reload::changes(&self.config, &new);
        let removals = self.removals(&new).await;
        let flows = removals.iter().map(FlowsRemoved::from).collect();
        if dry_run {
            return Ok(Reloaded { changes, dry_run, flows });
        }
        let renames = reload::renames(&self.config, &new);
        self.take_over(new).await.map_err(refuse)?;
        for change in &changes {
            info!("reload: {change}");
        }
        self.tell_renames(renames);
        self.tell_removals(&removals);
        let text = format!("reload: {}", counted(changes.len(), "change"));
        let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        self.journal.tell(News::new(Kind::Reload).with("changes", count), text);
        self.put_into_force(network).await?;
        Ok(Reloaded { changes, dry_run, flows })
    }

    /// Reads the file again, and looks whether a reload can make it the configuration.
    async fn read_file(&mut self) -> Result<Config, Refusal> {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let refused = |error: String| Refusal::new(status, error);
        let new = (self.load)(&self.config_path).map_err(|errors| Refusal { status, errors })?;
        let frozen = reload::frozen(&self.config, &new);
        if !frozen.is_empty() {
            let keys = frozen.join(", ");
            let what = "cannot change while running: restart holdfast, or take the change back";
            let error =
                format!("{keys} {what} (a reload changes [[vip]], [tunnel] and [icmp] only)");
            return Err(Refusal::new(StatusCode::CONFLICT, error));
        }
        let places = Place::all(&new);
        self.announcer.check(&places).await.map_err(|error| refused(error.to_string()))?;
        Ok(new)
    }

    /// Makes `new` the configuration, if all of it can be.
    async fn take_over(&mut self, new: Config) -> Result<(), Refusal> {
        let refused = |error: String| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error);
        self.populate(new.families()).await.map_err(refused)?;
        let applied = self.registry.apply(&new.vips, &self.workers, Instant::now());
        applied.map_err(|error| refused(error.to_string()))?;
        // What the registry has given up must not come back from there.
        let split = |vip: &VipEntry| vip.splits != Splits::default();
        let vips = self.registry.vips();
        self.splitter.retain(|id| vips.iter().any(|vip| vip.id == id && split(vip)));
        self.config = new;
        Ok(())
    }

    /// Memory for the flows of these address families, where the tables have none yet. Apart from this
    /// thread, as it may take a second per worker.
    async fn populate(&self, families: Families) -> Result<(), String> {
        let tables: Vec<_> = self.workers.iter().map(|worker| Arc::clone(&worker.flows)).collect();
        let all = move || tables.iter().try_for_each(|table| table.populate(families));
        let populated = tokio::task::spawn_blocking(all).await;
        let told = |error: &dyn std::fmt::Display| {
            format!(
                "[workers] flows: {error}; if they lie on a pool of huge pages, raise vm.nr_hugepages"
            )
        };
        match populated {
            Ok(done) => done.map_err(|error| told(&error)),
            Err(error) => Err(told(&error)),
        }
    }

    /// What goes leaves the XDP program before the table; what comes enters it after.
    async fn put_into_force(
        &mut self,
        network: &mut watch::Receiver<Arc<Snapshot>>,
    ) -> Result<(), Refusal> {
        self.targets.send_replace(self.registry.targets());
        self.checks.sync(self.registry.checks());
        self.await_network(network).await;
        let in_force = |what: &str| {
            let error =
                format!("the configuration is in force, but {what}; tried again every second");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
        };
        let wanted = self.wanted_rules();
        let removed = self.steer(self.rules.intersection(&wanted));
        self.publish();
        let steered = removed.and_then(|()| self.steer_all());
        let announced = self.announce().await;
        steered
            .map_err(|reason| in_force(&format!("the XDP program's rules are not: {reason}")))?;
        announced.map_err(|error| in_force(&error.to_string()))
    }

    // ---- answers ----

    async fn answer(&mut self, request: Request, network: &mut watch::Receiver<Arc<Snapshot>>) {
        // Whoever asked may have gone; an order was carried out all the same.
        match request {
            Request::Status(reply) => _ = reply.send(self.status()),
            Request::Drain(order, reply) => _ = reply.send(self.drain(&order)),
            Request::Undrain(order, reply) => _ = reply.send(self.undrain(&order)),
            Request::Events(since, reply) => _ = reply.send(self.journal.since(since)),
            Request::Reload(dry_run, reply) => {
                _ = reply.send(self.reload(network, dry_run).await);
            }
            Request::Explain(query, reply) => {
                let table = self.publisher.current();
                let prepared = Prepared::new(query, &self.registry, table, &self.nics);
                _ = reply.send(prepared);
            }
            Request::Names(reply) => _ = reply.send(Arc::new(Names::of(&self.registry))),
        }
    }

    fn status(&mut self) -> Status {
        let nic_counters = (0..).map(NicIndex).take(self.nics.len());
        let nic_counters = nic_counters
            .map(|nic| (self.steering.counters(nic), self.steering.socket_statistics(nic)))
            .collect();
        let process = Process {
            started: self.started,
            config: self.config_path.display().to_string(),
            generation: self.publisher.current().generation(),
        };
        let announced_on = |vip: &VipEntry| {
            let place = Place::of(&vip.config)?;
            self.announcer.is_ours(&place).then_some(place.interface)
        };
        let sources = Sources {
            registry: &self.registry,
            full_nat: &self.config.full_nat,
            workers: &self.workers,
            nics: &self.nics,
            attached: &self.attached,
            nic_faults: &self.nic_faults,
            nic_counters,
            splitter: &self.splitter,
            flow_rates: &self.flow_rates,
            announced_on: &announced_on,
        };
        status::status(&process, &sources)
    }
}

/// A refusal of a reload.
fn refuse(mut refusal: Refusal) -> Refusal {
    refusal.errors.push(NOTHING_APPLIED.to_owned());
    refusal
}

/// The first worker that has ended, if any.
fn worker_failure(events: &crossbeam_channel::Receiver<WorkerEvent>) -> Result<(), ControlError> {
    // Nobody left to send is the daemon's business: it holds a sender for as long as it lives.
    match events.try_recv() {
        Ok(WorkerEvent::Failed { worker, error }) => Err(ControlError::Worker { worker, error }),
        Err(_) => Ok(()),
    }
}

/// Says that a backend is suspected not to answer clients, or no longer.
fn tell_answers(journal: &mut Journal, vip: &config::Vip, backend: &BackendEntry) {
    let (name, vip_name) = (&backend.config.name, &vip.name);
    match backend.answering.suspected() {
        Some(syns) => {
            let news = News::of(Kind::SynsUnanswered, vip_name, name);
            let news = news.with("unanswered", syns.unanswered).with("syns", syns.all);
            let hint = answering::hint(vip, syns);
            journal.tell(news, format!("backend {name} of VIP {vip_name}: {hint}"));
        }
        None => {
            let text = format!("backend {name} of VIP {vip_name} answers SYNs as the others do");
            journal.tell(News::of(Kind::SynsAnswered, vip_name, name), text);
        }
    }
}

/// Says which sources are split from now on, and which no longer.
fn tell_splits(journal: &mut Journal, vip: &str, old: &Splits, new: &Splits) {
    for (source, bits) in new.iter().filter(|(source, bits)| old.bits(*source) != *bits) {
        let parts = 1_u32 << bits;
        let text = format!("VIP {vip}: new flows of {source} are spread as {parts} parts by port");
        journal.tell(News::of_vip(Kind::Split, vip).with("parts", parts.into()), text);
    }
    for (source, _) in old.iter().filter(|(source, _)| new.bits(*source) == 0) {
        let text = format!("VIP {vip}: {source} is one client again");
        journal.tell(News::of_vip(Kind::Unsplit, vip), text);
    }
}

/// Logs a problem of a next hop when it comes, changes or goes; asking anew is not a change.
fn tell_problem(vip: &config::Vip, backend: &mut BackendEntry, problem: Option<&Problem>) {
    let (name, vip) = (&backend.config.name, &vip.name);
    match problem {
        Some(Problem::Resolving) => {}
        Some(problem) => {
            let text = problem.to_string();
            if backend.problem.as_ref() != Some(&text) {
                warn!("backend {name} of VIP {vip}: {text}");
                backend.problem = Some(text);
            }
        }
        None => {
            if backend.problem.take().is_some() {
                info!("backend {name} of VIP {vip}: its next hop is known again");
            }
        }
    }
}
