//! What the control loop does about drains: orders, deadlines, and the way back.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::Instant;

use super::super::admin::Refusal;
use super::super::api::{DrainRequest, Name, Ordered, UndrainRequest};
use super::super::drain::Step;
use super::super::events::{Kind, News};
use super::super::flows::list;
use super::super::state::{BackendEntry, VipEntry};
use super::super::status;
use super::Controller;
use crate::config;
use crate::forwarding::Service;
use crate::net::BackendIndex;
use crate::words::counted;

/// What a step of a drain asks for, besides being told.
struct Consequences {
    /// Backends whose generation ends.
    ended: Vec<BackendIndex>,
    /// For whom the hook is to run.
    drained: Vec<(Name, u64)>,
    /// What is to be told.
    news: Vec<(News, String)>,
}

impl Controller {
    /// Begins drains, or moves their deadlines: all that were ordered, or none.
    pub(super) fn drain(&mut self, order: &DrainRequest) -> Result<Ordered, Refusal> {
        if order.deadline_s == Some(0) {
            let error = "deadline_s = 0: use at least 1; without it, flows end by themselves";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, error));
        }
        let names = all_names(&order.vip, &order.backend, &order.also);
        self.all_known(&names)?;
        if !order.force {
            self.refuse_the_last(&names)?;
        }
        let mut begun = false;
        for name in &names {
            begun |= self.begin_drain(name, order.deadline_s.map(Duration::from_secs));
        }
        if begun {
            // At once, not at the end of the turn: the answer says that it is so.
            self.publish();
        }
        self.ordered(&names)
    }

    /// True if the forwarding table changes.
    fn begin_drain(&mut self, name: &Name, deadline: Option<Duration>) -> bool {
        let Name { vip, backend } = name;
        let now = Instant::now();
        let Some((config, index)) =
            self.registry.find(vip, backend).map(|(v, b)| (v.config.drain, b.id.index))
        else {
            return false;
        };
        let flows = status::flows_active(&self.workers, index);
        let Some(entry) = self.registry.find_mut(vip, backend) else { return false };
        // The configuration's deadline is for drains that begin.
        let active = entry.drain.service() == Service::Active;
        let deadline = deadline.or(config.deadline.filter(|_| active));
        let begun = entry.drain.begin(deadline, flows, now);
        let left = entry.drain.deadline_in_s(now);
        let until =
            left.map_or_else(|| ", no deadline".to_owned(), |s| format!(", deadline in {s} s"));
        let what = if begun { "drains" } else { "drains already" };
        let text =
            format!("backend {backend} of VIP {vip} {what}: {}{until}", counted(flows, "flow"));
        let news = News::of(Kind::DrainBegun, vip, backend).with("flows_left", flows);
        self.journal.tell(left.iter().fold(news, |news, &s| news.with("deadline_in_s", s)), text);
        begun
    }

    /// Takes backends back into service: all that were named, or none.
    pub(super) fn undrain(&mut self, order: &UndrainRequest) -> Result<Ordered, Refusal> {
        let names = all_names(&order.vip, &order.backend, &order.also);
        self.all_known(&names)?;
        let mut changed = false;
        for Name { vip, backend } in &names {
            let slow_start =
                self.registry.find(vip, backend).map(|(v, _)| v.config.drain.slow_start);
            let (Some(over), Some(entry)) = (slow_start, self.registry.find_mut(vip, backend))
            else {
                continue;
            };
            if entry.drain.cancel() {
                entry.forecast = None;
                entry.slow_start.begin(over, Instant::now());
                let text = format!("backend {backend} of VIP {vip} is back in service");
                self.journal.tell(News::of(Kind::Undrained, vip, backend), text);
                changed = true;
            }
        }
        if changed {
            self.publish();
        }
        self.ordered(&names)
    }

    /// Raises the share of new flows of backends that have come back.
    pub(super) fn advance_slow_starts(&mut self) {
        let now = Instant::now();
        for (_, backend) in self.registry.backends_mut() {
            self.dirty |= backend.slow_start.advance(now);
        }
    }

    /// Looks at every drain: whether its flows have ended, or its deadline has come.
    pub(super) fn advance_drains(&mut self) {
        let now = Instant::now();
        self.forecaster.advance(&mut self.registry, &self.workers, now);
        let mut steps = Consequences { ended: Vec::new(), drained: Vec::new(), news: Vec::new() };
        for (vip, entry) in self.registry.backends_mut() {
            if entry.drain.service() != Service::Draining {
                continue;
            }
            let flows = status::flows_active(&self.workers, entry.id.index);
            if let Some(step) = entry.drain.advance(flows, vip.drain.then, now) {
                self.dirty |= matches!(step, Step::Resets { .. });
                steps.take(step, vip, entry);
            }
        }
        for (news, text) in steps.news {
            self.journal.tell(news, text);
        }
        self.end_generations(&steps.ended);
        for (name, flows_cut) in &steps.drained {
            self.run_hook(name, *flows_cut);
        }
    }

    fn end_generations(&mut self, ended: &[BackendIndex]) {
        if ended.is_empty() {
            return;
        }
        for &index in ended {
            self.registry.end_generation(index);
        }
        self.checks.sync(self.registry.checks());
        self.dirty = true;
    }

    fn run_hook(&self, name: &Name, flows_cut: u64) {
        let Name { vip, backend } = name;
        let Some((_, entry)) = self.registry.find(vip, backend) else { return };
        let environment = vec![
            ("HOLDFAST_EVENT", Kind::Drained.as_str().to_owned()),
            ("HOLDFAST_VIP", vip.clone()),
            ("HOLDFAST_BACKEND", backend.clone()),
            ("HOLDFAST_ADDRESS", entry.config.address.to_string()),
            ("HOLDFAST_FLOWS_CUT", flows_cut.to_string()),
            ("HOLDFAST_SOCKET", self.config.control.socket.display().to_string()),
        ];
        self.hook.run(format!("{vip}/{backend}"), environment);
    }

    fn ordered(&self, names: &[Name]) -> Result<Ordered, Refusal> {
        let now = Instant::now();
        let status = |Name { vip, backend }: &Name| {
            let found = self.registry.find(vip, backend);
            let (vip, entry) = found.ok_or_else(|| self.unknown(vip, backend))?;
            Ok(status::backend_status(vip, entry, &self.workers, &self.nics, now))
        };
        let (first, others) = names.split_first().ok_or_else(|| self.unknown("", ""))?;
        let also = others.iter().map(status).collect::<Result<_, Refusal>>()?;
        Ok(Ordered { backend: status(first)?, also })
    }

    fn all_known(&self, names: &[Name]) -> Result<(), Refusal> {
        let mut unknown = names.iter().filter(|n| self.registry.find(&n.vip, &n.backend).is_none());
        unknown.next().map_or(Ok(()), |name| Err(self.unknown(&name.vip, &name.backend)))
    }

    /// The names that exist, for somebody who has used another.
    fn unknown(&self, vip: &str, backend: &str) -> Refusal {
        let entry = self.registry.vips().iter().find(|entry| entry.config.name == vip);
        let error = match entry {
            None => {
                let vips = self.registry.vips().iter().map(|entry| entry.config.name.clone());
                format!("no VIP is named {vip:?}; there are: {}", list(vips))
            }
            Some(entry) => {
                let backends = entry.backends.iter().map(|entry| entry.config.name.clone());
                let backends = list(backends);
                format!("VIP {vip} has no backend named {backend:?}; there are: {backends}")
            }
        };
        Refusal::new(StatusCode::NOT_FOUND, error)
    }

    /// An error if draining these would leave a VIP without a backend that takes new flows.
    fn refuse_the_last(&self, names: &[Name]) -> Result<(), Refusal> {
        let errors: Vec<String> = self
            .registry
            .vips()
            .iter()
            .filter(|vip| leaves_none(vip, names))
            .map(|vip| {
                let name = &vip.config.name;
                let fate = if vip.config.policy.rejects { "refused" } else { "dropped" };
                format!(
                    "VIP {name} would be left without a backend that takes new flows; add --force \
                     (\"force\": true) if new clients are to be {fate}, or first give it another \
                     backend that is up, has weight and does not drain (holdfast status)"
                )
            })
            .collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Refusal { status: StatusCode::CONFLICT, errors })
        }
    }
}

impl Consequences {
    fn take(&mut self, step: Step, vip: &config::Vip, entry: &BackendEntry) {
        let (vip, backend) = (vip.name.clone(), entry.config.name.clone());
        let who = format!("backend {backend} of VIP {vip}");
        let of = |kind| News::of(kind, &vip, &backend);
        match step {
            Step::Drained => {
                self.news
                    .push((of(Kind::Drained).with("flows_cut", 0), format!("{who} is drained")));
                self.drained.push((Name { vip, backend }, 0));
            }
            Step::Kept { flows_left } | Step::Resets { flows_left } => {
                let what = match step {
                    Step::Resets { .. } => "reset",
                    _ => "kept",
                };
                let text = format!("{who}: deadline, {} left: {what}", counted(flows_left, "flow"));
                self.news.push((of(Kind::DrainDeadline).with("flows_left", flows_left), text));
            }
            Step::Cut { flows_cut, told } => {
                self.ended.push(entry.id.index);
                if !told {
                    let text = format!("{who} is drained: {} cut", counted(flows_cut, "flow"));
                    self.news.push((of(Kind::Drained).with("flows_cut", flows_cut), text));
                    self.drained.push((Name { vip, backend }, flows_cut));
                }
            }
        }
    }
}

/// The backends of an order, each once.
fn all_names(vip: &str, backend: &str, also: &[Name]) -> Vec<Name> {
    let first = Name { vip: vip.to_owned(), backend: backend.to_owned() };
    let mut names: Vec<Name> = Vec::with_capacity(also.len() + 1);
    for name in std::iter::once(&first).chain(also) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// Whether draining `names` takes the last backend from a VIP: some of them may have new flows, and no
/// other one has.
fn leaves_none(vip: &VipEntry, names: &[Name]) -> bool {
    let named = |entry: &BackendEntry| {
        names.iter().any(|name| name.vip == vip.config.name && name.backend == entry.config.name)
    };
    let begins = |entry: &BackendEntry| {
        entry.drain.service() == Service::Active && entry.config.weight > 0 && named(entry)
    };
    vip.backends.iter().any(begins)
        && !vip.backends.iter().any(|entry| entry.serves() && !named(entry))
}
