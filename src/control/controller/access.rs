//! Deny and allow lists: kept in force, and changed at run time.

use std::fmt::Display;
use std::time::Duration;

use axum::http::StatusCode;
use hashbrown::{HashMap, HashSet};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tracing::error;

use super::steering::Steering;
use super::world::World;
use crate::config::{self, Config, Vip};
use crate::control::admin::Reply;
use crate::control::api::{DenyEntry, DenyList, DenyRequest, ListSize};
use crate::control::denied::{Added, MAX_DENIED};
use crate::control::events::{Kind, NewEvent};
use crate::control::flows;
use crate::control::identity::continued;
use crate::control::list_loader::{ListLoader, Outcome};
use crate::control::lists::Lists;
use crate::control::refusal::Refusal;
use crate::control::state::VipEntry;
use crate::control::view::{AccessDrops, AccessMaps};
use crate::net::{ListId, ListKind, Network, VipId};
use crate::units::Ticks;

/// Longest wait of a reload for the lists; a longer change is completed after it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest time between two attempts to set lists that failed: each may take as long as a change of
/// all prefixes.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The lists in the XDP programs.
pub(super) struct Access {
    loader: ListLoader,
    /// Lists that were sent last.
    sent: Lists,
    /// Their outcome, until it is known.
    waiting: Option<oneshot::Receiver<Outcome>>,
    /// Failures since the last success.
    failures: u32,
    /// After a failure: when the lists are sent again.
    next_attempt: Instant,
    /// Packets that the lists had dropped when a VIP got its index.
    bases: HashMap<VipId, AccessDrops>,
}

/// A prefix of a command, of a VIP or of all VIPs.
struct Target {
    vip: Option<(VipId, String)>,
    prefix: Network,
}

impl Target {
    fn id(&self) -> Option<VipId> {
        self.vip.as_ref().map(|(id, _)| *id)
    }

    fn name(&self) -> Option<&str> {
        self.vip.as_ref().map(|(_, name)| name.as_str())
    }
}

impl Access {
    pub(super) fn new(maps: Box<dyn AccessMaps>) -> Self {
        Self {
            loader: ListLoader::start(maps),
            sent: Lists::new(),
            waiting: None,
            failures: 0,
            next_attempt: Instant::now(),
            bases: HashMap::new(),
        }
    }

    /// Puts the first lists into force.
    pub(super) async fn start(&mut self, world: &World) -> Result<(), String> {
        self.follow(world);
        match self.waiting.take() {
            Some(outcome) => outcome.await.unwrap_or_else(|_| Err(no_thread())),
            None => Ok(()),
        }
    }

    /// Takes the counters of VIPs that are new: their indices may have belonged to others.
    pub(super) fn index(&mut self, world: &World, steering: &mut Steering) {
        let vips: HashSet<VipId> = world.registry.all_vips().map(|vip| vip.id).collect();
        self.bases.retain(|id, _| vips.contains(id));
        for id in vips {
            self.bases.entry(id).or_insert_with(|| steering.access_drops(id));
        }
    }

    /// Sends the lists if they have changed.
    pub(super) fn follow(&mut self, world: &World) {
        let wanted = Lists::of(&world.config.access, &world.registry);
        if wanted != self.sent {
            self.send(wanted);
        }
    }

    fn send(&mut self, lists: Lists) {
        self.sent = lists.clone();
        self.waiting = Some(self.loader.load(lists));
    }

    /// Waits for the lists that were sent last, for a bounded time: a longer change goes on.
    ///
    /// # Errors
    /// The reason why not all of them are in force.
    pub(super) async fn settle(&mut self) -> Result<(), String> {
        if let Some(outcome) = &mut self.waiting
            && let Ok(outcome) = timeout(PATIENCE, outcome).await
        {
            self.waiting = None;
            let outcome = outcome.unwrap_or_else(|_| Err(no_thread()));
            self.note(&outcome);
            return outcome;
        }
        Ok(())
    }

    /// Whether a change is in progress, or could not be made.
    pub(super) const fn is_pending(&self) -> bool {
        self.waiting.is_some() || self.failures > 0
    }

    fn note(&mut self, outcome: &Outcome) {
        let Err(reason) = outcome else {
            self.failures = 0;
            return;
        };
        if self.failures == 0 {
            error!("XDP program: lists could not be set: {reason}; tried again");
        }
        let pause = Duration::from_secs(1 << self.failures.min(6)).min(LONGEST_PAUSE);
        self.next_attempt = Instant::now() + pause;
        self.failures = self.failures.saturating_add(1);
    }

    /// Notes the outcome of the last change, if there is one by now.
    fn look(&mut self) {
        use oneshot::error::TryRecvError;
        match self.waiting.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return,
            Some(Ok(outcome)) => self.note(&outcome),
            Some(Err(TryRecvError::Closed)) => self.note(&Err(no_thread())),
            None => {}
        }
        self.waiting = None;
    }

    /// Sends lists that have changed, or failed some time ago.
    pub(super) fn retry(&mut self, world: &World) {
        self.look();
        if self.waiting.is_some() {
            return;
        }
        if self.failures > 0 && self.next_attempt <= Instant::now() {
            self.send(self.sent.clone());
        }
        self.follow(world);
    }

    /// Ends prefixes after their time.
    pub(super) fn advance(&mut self, world: &mut World, steering: &mut Steering, now: Instant) {
        let ended = world.registry.denied_mut().expire(now);
        if ended.is_empty() {
            return;
        }
        for (vip, prefix) in ended {
            let name = vip.and_then(|id| name(world, id));
            let event = NewEvent::about(Kind::DenyEnded, name.as_deref());
            let text =
                format!("{prefix} is no longer denied{}: its time is over", scope(name.as_deref()));
            world.journal.record(event, text);
        }
        world.save();
        self.follow(world);
        steering.follow_or_retry(world);
    }

    /// Denies a prefix. The reply is sent when the list is in force.
    pub(super) fn add(
        &mut self,
        world: &mut World,
        steering: &mut Steering,
        order: &DenyRequest,
        reply: Reply<Result<DenyEntry, Refusal>>,
    ) {
        let entry = target(world, &order.prefix, order.vip.as_deref())
            .and_then(|target| add(world, order.for_s, &target));
        self.answer(world, steering, entry, reply);
    }

    /// Removes a prefix that was denied at run time. The reply is sent when the list is in force.
    pub(super) fn remove(
        &mut self,
        world: &mut World,
        steering: &mut Steering,
        order: &DenyRequest,
        reply: Reply<Result<DenyEntry, Refusal>>,
    ) {
        let entry = target(world, &order.prefix, order.vip.as_deref())
            .and_then(|target| remove(world, &self.sent, &target));
        self.answer(world, steering, entry, reply);
    }

    fn answer(
        &mut self,
        world: &mut World,
        steering: &mut Steering,
        entry: Result<DenyEntry, Refusal>,
        reply: Reply<Result<DenyEntry, Refusal>>,
    ) {
        if entry.is_err() {
            // The client may have disconnected.
            _ = reply.send(entry);
            return;
        }
        world.save();
        let lists = Lists::of(&world.config.access, &world.registry);
        // Sent even without a change: its outcome is that of the lists as they are.
        let outcome = self.loader.load(lists.clone());
        let (copy, waiting) = oneshot::channel();
        (self.sent, self.waiting) = (lists, Some(waiting));
        // The first prefix of a list changes the rules, too.
        let steered = steering.follow(world);
        tokio::spawn(async move {
            let outcome = outcome.await.unwrap_or_else(|_| Err(no_thread()));
            // For the retry after a failure, unless another order came since.
            _ = copy.send(outcome.clone());
            let refused = |reason| {
                let error = format!("the list is changed, but not in force: {reason}; tried again");
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
            };
            _ = reply.send(outcome.and(steered).map_err(refused).and(entry));
        });
    }

    /// Returns the prefixes of run time, and the sizes of all lists.
    pub(super) fn list(&mut self, world: &World) -> DenyList {
        self.look();
        let now = Instant::now();
        let denied = world.registry.denied().iter().map(|(vip, prefix, end)| DenyEntry {
            prefix,
            vip: vip.and_then(|id| name(world, id)),
            ends_in_s: end.map(|end| end.saturating_duration_since(now).as_secs()),
        });
        let lists = self.sent.iter().map(|(id, parts)| ListSize {
            vip: id.vip.and_then(|id| name(world, id)),
            kind: match id.kind {
                ListKind::Deny => "deny".to_owned(),
                ListKind::Allow => "allow".to_owned(),
            },
            prefixes: parts.config.len() + parts.runtime.len(),
        });
        DenyList { denied: denied.collect(), lists: lists.collect(), pending: self.is_pending() }
    }

    /// Returns the lists that were sent last.
    pub(super) const fn sent(&self) -> &Lists {
        &self.sent
    }

    /// Returns the packets that the lists have dropped since each VIP has its index.
    pub(super) fn drops(
        &mut self,
        world: &World,
        steering: &mut Steering,
    ) -> HashMap<VipId, AccessDrops> {
        self.index(world, steering);
        let vips = world.registry.vips().iter().map(|vip| vip.id);
        let base = |id| self.bases.get(&id).copied().unwrap_or_default();
        vips.map(|id| (id, steering.access_drops(id).since(base(id)))).collect()
    }
}

fn no_thread() -> String {
    "their thread has ended".to_owned()
}

/// Returns the name of a VIP.
fn name(world: &World, id: VipId) -> Option<String> {
    let vip = world.registry.all_vips().find(|vip| vip.id == id);
    vip.map(|vip| vip.config.name.clone())
}

/// Describes the VIPs of a list.
fn scope(vip: Option<&str>) -> String {
    vip.map_or_else(String::new, |vip| format!(" at VIP {vip}"))
}

fn bad(error: impl Display) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, error.to_string())
}

fn target(world: &World, prefix: &str, vip: Option<&str>) -> Result<Target, Refusal> {
    let prefix =
        config::prefix(prefix).map_err(|(what, fix)| bad(format_args!("prefix: {what}; {fix}")))?;
    let find = |name: &str| {
        let entry = world.registry.vip(name);
        let entry = entry.ok_or_else(|| {
            let names = world.registry.vips().iter().map(|entry| entry.config.name.clone());
            let names = flows::list(names);
            let error = format!("no VIP is named {name:?}; there are: {names}");
            Refusal::new(StatusCode::NOT_FOUND, error)
        })?;
        Ok::<_, Refusal>((entry.id, entry.config.name.clone()))
    };
    Ok(Target { vip: vip.map(find).transpose()?, prefix })
}

fn add(world: &mut World, for_s: Option<u64>, target: &Target) -> Result<DenyEntry, Refusal> {
    let longest = Ticks::MAX_SPAN.as_secs();
    if for_s.is_some_and(|s| s == 0 || s > longest) {
        return Err(bad(format_args!("for_s: use 1 to {longest}, or leave it out")));
    }
    let Target { prefix, .. } = *target;
    if let Some((id, name)) = &target.vip
        && let Some(refusal) = own_list_refusal(world, *id, name)
    {
        return Err(refusal);
    }
    let end = for_s.map(|s| Instant::now() + Duration::from_secs(s));
    if world.registry.denied_mut().add(target.id(), prefix, end) == Added::Full {
        let error = format!(
            "{MAX_DENIED} prefixes are denied at run time, and there is no room for more: put them \
             into a deny_file of the configuration"
        );
        return Err(Refusal::new(StatusCode::CONFLICT, error));
    }
    let left = for_s.map_or_else(String::new, |s| format!(" for {s} s"));
    let text = format!("{prefix} is denied{}{left}", scope(target.name()));
    let event = NewEvent::about(Kind::DenyAdded, target.name());
    let event = for_s.into_iter().fold(event, |event, s| event.with("for_s", s));
    world.journal.record(event, text);
    Ok(DenyEntry { prefix, vip: target.name().map(str::to_owned), ends_in_s: for_s })
}

/// Returns the refusal of a list for a VIP whose packets the XDP program cannot distinguish from
/// those of others.
fn own_list_refusal(world: &World, id: VipId, name: &str) -> Option<Refusal> {
    let vips: Vec<_> = world.registry.vips().iter().collect();
    let vip = vips.iter().find(|vip| vip.id == id)?;
    let meets =
        |other: &&&VipEntry| other.id != id && config::share_lists(&vip.config, &other.config);
    let other = vips.iter().find(meets)?;
    let error = format!(
        "VIP {name} shares addresses with VIP {}, and has the same lists: deny the prefix at all \
         VIPs, or in the configuration of both",
        other.config.name
    );
    Some(Refusal::new(StatusCode::CONFLICT, error))
}

fn remove(world: &mut World, lists: &Lists, target: &Target) -> Result<DenyEntry, Refusal> {
    let Target { prefix, .. } = *target;
    if !world.registry.denied_mut().remove(target.id(), prefix) {
        let list = ListId { vip: target.id(), kind: ListKind::Deny };
        let is_configured = lists.get(list).is_some_and(|list| list.config.has(prefix));
        let why = if is_configured {
            "the configuration denies it: remove it there, and reload"
        } else {
            "`holdfast deny list` shows the prefixes that were"
        };
        let error = format!("{prefix} was not denied at run time{}; {why}", scope(target.name()));
        return Err(Refusal::new(StatusCode::NOT_FOUND, error));
    }
    let text = format!("{prefix} is no longer denied{}", scope(target.name()));
    world.journal.record(NewEvent::about(Kind::DenyRemoved, target.name()), text);
    Ok(DenyEntry { prefix, vip: target.name().map(str::to_owned), ends_in_s: None })
}

/// Checks a new configuration against the prefixes of run time: a VIP that has some must not share
/// addresses with another, as for new ones ([`own_list_refusal`]).
pub(super) fn check(world: &World, new: &Config) -> Result<(), Refusal> {
    let old: Vec<&VipEntry> = world.registry.vips().iter().collect();
    let configs: Vec<&Vip> = old.iter().map(|vip| &vip.config).collect();
    let denies: HashSet<VipId> = world.registry.denied().iter().filter_map(|(id, ..)| id).collect();
    for (vip, before) in new.vips.iter().zip(continued(&configs, &new.vips)) {
        let Some(before) = before.and_then(|index| old.get(index)) else { continue };
        let meets = |other: &&Vip| other.name != vip.name && config::share_lists(vip, other);
        if denies.contains(&before.id)
            && let Some(other) = new.vips.iter().find(meets)
        {
            let error = format!(
                "VIP {} has prefixes of `holdfast deny`, and would share addresses with VIP {}, \
                 which must have the same lists: remove the prefixes first",
                before.config.name, other.name
            );
            return Err(Refusal::new(StatusCode::CONFLICT, error));
        }
    }
    Ok(())
}
