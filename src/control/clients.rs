//! `/v1/clients`: lists and forgets the backends of clients while workers run.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::api::Client;
use super::flows::{self, Filter, Lens, Names, QueryError, Source};
use super::view::Clock;
use crate::flow::clients::{Clients, Key, Mapping};
use crate::flow::shared::SharedTables;
use crate::units::Ticks;

/// Positions between two yields of a removal: well below a millisecond of work.
const CHUNK: usize = 4096;
/// Positions examined per second for expired records: the whole of the largest table takes six
/// days.
const AGEING: usize = 64;

/// Query of `DELETE /v1/clients`: at least one filter, or `all`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgetQuery {
    /// Clients of this VIP only.
    pub vip: Option<String>,
    /// Clients of backends with this name only.
    pub backend: Option<String>,
    /// Clients of this network or address only.
    pub client: Option<String>,
    /// All clients.
    #[serde(default)]
    pub all: bool,
}

impl ForgetQuery {
    /// Checks the query against the existing VIPs and backends.
    ///
    /// # Errors
    /// When a name is unknown, a value is malformed, or no filter is given.
    pub fn filter(self, names: &Names) -> Result<Filter, QueryError> {
        let Self { vip, backend, client, all } = self;
        if !all && vip.is_none() && backend.is_none() && client.is_none() {
            return Err(QueryError::NothingNamed);
        }
        Filter::new(flows::Query { vip, backend, client, limit: None }, names)
    }
}

/// The clients table as a source of rows.
pub struct ClientRows(pub Arc<SharedTables>);

impl Source for ClientRows {
    fn positions(&self) -> usize {
        self.0.clients.positions()
    }

    fn row(&self, position: usize, lens: &Lens<'_>) -> Option<serde_json::Result<Vec<u8>>> {
        let (key, mapping) = self.0.clients.at(position)?;
        wanted(&key, &mapping, lens).then(|| serde_json::to_vec(&reported(&key, &mapping, lens)))
    }
}

fn wanted(key: &Key, mapping: &Mapping, lens: &Lens<'_>) -> bool {
    let Lens { names, filter, .. } = lens;
    let vip = names.vip(key.vip).map(|vip| vip.name.as_str());
    filter.wants(vip, names.backend(mapping.backend), key.client.into())
}

fn reported(key: &Key, mapping: &Mapping, lens: &Lens<'_>) -> Client {
    let Lens { names, now, .. } = lens;
    let vip = names.vip(key.vip);
    let idle = now.since(mapping.last_used);
    let lives = vip.and_then(|vip| vip.remember).is_some_and(|remember| !remember.is_over(idle));
    Client {
        vip: vip.map(|vip| vip.name.clone()),
        client: IpAddr::from(key.client),
        part: key.part,
        backend: names.backend(mapping.backend).map(str::to_owned),
        age_ms: now.since(mapping.created).as_ms(),
        idle_ms: idle.as_ms(),
        proven: mapping.proven,
        expired: !lives,
    }
}

/// Forgets the clients that match `filter`, and returns their number. Existing flows keep their
/// backends.
pub async fn forget(clients: &Clients, filter: &Filter, names: &Names, clock: &Clock) -> usize {
    let mut forgotten = 0;
    for start in (0..clients.positions()).step_by(CHUNK) {
        let lens = Lens { filter, names, now: clock(), table: 0 };
        for position in start..(start + CHUNK).min(clients.positions()) {
            let found = clients.at(position).filter(|(key, mapping)| wanted(key, mapping, &lens));
            forgotten += usize::from(found.is_some_and(|(key, _)| clients.forget(position, &key)));
        }
        tokio::task::yield_now().await;
    }
    forgotten
}

/// Forgets clients that were silent for longer than any time-out, `AGEING` positions per call:
/// the time stamps of the table wrap around. Returns the position at which the next call continues.
pub fn age(clients: &Clients, from: usize, now: Ticks) -> usize {
    let end = (from + AGEING).min(clients.positions());
    for position in from..end {
        if let Some((key, mapping)) = clients.at(position)
            && now.since(mapping.last_used).0 > Ticks::span(Ticks::MAX_SPAN).0
        {
            clients.forget(position, &key);
        }
    }
    if end == clients.positions() { 0 } else { end }
}

/// Forgets long-expired clients, some positions of the table at a time.
pub struct Ageing {
    shared: Arc<SharedTables>,
    clock: Clock,
    /// Next position to examine.
    from: usize,
}

impl Ageing {
    /// Creates a scan of this table, which starts at its first position.
    pub const fn new(shared: Arc<SharedTables>, clock: Clock) -> Self {
        Self { shared, clock, from: 0 }
    }

    /// Examines the next positions.
    pub fn advance(&mut self) {
        self.from = age(&self.shared.clients, self.from, (self.clock)());
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use futures_util::stream::StreamExt;

    use super::super::flows::Scan;
    use super::super::state::Registry;
    use super::super::state::tests::{backend, vip, with};
    use super::*;
    use crate::flow::shared::TableSizes;
    use crate::forwarding::sticky::{Hold, Reentry, Remember, Sticky};
    use crate::net::{Address, BackendId, BackendIndex, TableSecret, VipId};

    const NOW: Ticks = Ticks(628);

    /// Clients 198.51.100.0 to .9 of VIP 0, alternating between backends `a` and `b`. The first
    /// three were silent for longer than the VIP's time-out of a second and a period; the last one
    /// has a backend that is gone.
    fn some() -> (Arc<SharedTables>, Arc<Names>) {
        let mut registry = Registry::default();
        let sticky = Sticky { on_drain: Hold::Release, on_down: Hold::Keep };
        let remember =
            Remember { timeout: Ticks(100), sticky: Some(sticky), on_reentry: Reentry::Hash };
        let web = vip("web", &[backend("a", 1), backend("b", 2)]);
        let web = with(web, |policy| policy.remember = Some(remember));
        registry.apply(&[web], &[], tokio::time::Instant::now()).unwrap();
        let secret = TableSecret::new(1);
        let shared = SharedTables::new(Arc::from([]), &secret, TableSizes::default()).unwrap();
        let clients = &shared.clients;
        for number in 0..10_u8 {
            let index = BackendIndex(u16::from(number % 2));
            let id = BackendId { index, generation: u16::from(number == 9) };
            let used = Ticks(if number < 3 { 399 } else { 400 + u32::from(number) });
            clients.assign(&key(number), id, used, |_, _| true).unwrap();
            clients.touch(&key(number), Some(id), used, number == 4);
        }
        (shared, Arc::new(Names::of(&registry)))
    }

    fn key(number: u8) -> Key {
        Key { vip: VipId(0), client: Address::from_v4([198, 51, 100, number]), part: 1 }
    }

    fn query(vip: &str, backend: &str, client: &str) -> ForgetQuery {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        ForgetQuery { vip: given(vip), backend: given(backend), client: given(client), all: false }
    }

    async fn listed(shared: &Arc<SharedTables>, names: &Arc<Names>) -> Vec<Client> {
        let scan = Scan {
            sources: vec![ClientRows(Arc::clone(shared))],
            filter: Filter::new(flows::Query::default(), names).unwrap(),
            names: Arc::clone(names),
            clock: Arc::new(|| NOW),
        };
        let chunks: Vec<_> = scan.lines().map(Result::unwrap).collect().await;
        let lines = chunks.concat();
        let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let mut clients: Vec<Client> =
            lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
        clients.sort_by_key(|client| client.client);
        clients
    }

    #[tokio::test]
    async fn every_client_is_told_once_with_its_backend() {
        let (shared, names) = some();
        let listed = listed(&shared, &names).await;
        assert_eq!(listed.len(), 10);
        let fourth = listed.get(4).unwrap();
        assert_eq!(fourth.vip.as_deref(), Some("web"));
        assert_eq!((fourth.backend.as_deref(), fourth.part), (Some("a"), 1));
        assert_eq!((fourth.age_ms, fourth.idle_ms), (2240, 2240));
        let with = |flag: fn(&Client) -> bool| listed.iter().filter(|c| flag(c)).count();
        assert_eq!((with(|c| c.expired), with(|c| c.proven)), (3, 1));
        assert_eq!(listed.last().unwrap().backend, None, "its backend is gone");
    }

    #[tokio::test]
    async fn only_named_clients_are_forgotten() {
        for (query, left) in [
            (query("web", "", ""), 0),
            (query("", "b", ""), 6),
            (query("", "", "198.51.100.0/30"), 6),
            (query("web", "a", "198.51.100.0/30"), 8),
            (ForgetQuery { all: true, ..ForgetQuery::default() }, 0),
        ] {
            let (shared, names) = some();
            let name = format!("{query:?}");
            let filter = query.filter(&names).unwrap();
            let clock: Clock = Arc::new(|| NOW);
            assert_eq!(forget(&shared.clients, &filter, &names, &clock).await, 10 - left, "{name}");
            assert_eq!(listed(&shared, &names).await.len(), left, "{name}");
        }
    }

    #[test]
    fn a_query_that_names_nothing_is_refused() {
        let (_, names) = some();
        let error = ForgetQuery::default().filter(&names).unwrap_err().to_string();
        assert!(error.contains("all=true"), "{error}");
        assert!(query("x", "", "").filter(&names).is_err());
    }

    #[test]
    fn mappings_of_long_ago_go() {
        let (shared, _) = some();
        let clients = &shared.clients;
        let count = || (0..clients.positions()).filter(|&at| clients.at(at).is_some()).count();
        let around = |now: Ticks| {
            let mut at = age(clients, 0, now);
            while at != 0 {
                at = age(clients, at, now);
            }
        };
        let month = Ticks::span(Ticks::MAX_SPAN);
        around(Ticks(399).after(month));
        assert_eq!(count(), 10);
        around(Ticks(400).after(month));
        assert_eq!(count(), 7);
    }
}
