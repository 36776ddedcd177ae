//! `GET /v1/flows`: the pinned flows of all workers, read in chunks while workers run.
//!
//! A scan never holds more than one chunk, and yields to other tasks between chunks, so that tables
//! of any size neither use much memory nor delay the control thread.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::stream::{Stream, unfold};
use hashbrown::HashMap;
use ipnet::IpNet;
use serde::Deserialize;

use super::api::Flow;
use super::pins::Pins;
use super::state::{Registry, VipEntry};
use super::view::Clock;
use crate::flow::entry::{ConntrackEntry, FlowState, State};
use crate::flow::snat::SnatPool;
use crate::forwarding::Remember;
use crate::net::{BackendId, Forward, Protocol, VipId};
use crate::units::Ticks;

/// Largest number of flows in one reply.
pub const MAX_LIMIT: usize = 1_000_000;
/// Positions between two yields: well below a millisecond of work.
const CHUNK: usize = 4096;

/// Query of the request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Flows of this VIP only.
    pub vip: Option<String>,
    /// Flows of backends with this name only.
    pub backend: Option<String>,
    /// Flows from this network or address only.
    pub client: Option<String>,
    /// Largest number of flows; default and maximum: [`MAX_LIMIT`].
    pub limit: Option<String>,
}

/// Properties of a VIP that a listing needs.
#[derive(Debug)]
pub struct NamedVip {
    /// Name of the VIP.
    pub name: String,
    /// Forwarding mode.
    pub forward: Forward,
    /// Settings of the client records, if the VIP keeps any.
    pub remember: Option<Remember>,
}

/// Names of everything that a flow or a client record may refer to.
#[derive(Debug, Default)]
pub struct Names {
    vips: HashMap<VipId, NamedVip>,
    /// Names by id, so that stale pins have no name and are left out.
    backends: HashMap<BackendId, String>,
    sources: SnatPool,
}

impl Names {
    /// Takes the present names of the registry.
    pub fn of(registry: &Registry) -> Self {
        let vips = registry.all_vips().map(|vip| {
            let (name, forward) = (vip.config.name.clone(), vip.config.forward);
            (vip.id, NamedVip { name, forward, remember: vip.config.policy.remember })
        });
        let backends = registry.all_vips().flat_map(VipEntry::all_backends);
        Self {
            vips: vips.collect(),
            backends: backends.map(|entry| (entry.id, entry.config.name.clone())).collect(),
            sources: registry.sources().clone(),
        }
    }

    /// Returns the VIP of an index.
    pub fn vip(&self, id: VipId) -> Option<&NamedVip> {
        self.vips.get(&id)
    }

    /// Full NAT: returns the SNAT address and port of a flow.
    fn source(&self, flow_state: &FlowState) -> Option<SocketAddr> {
        let (address, port) = self.sources.source(flow_state.snat_port()?)?;
        Some(SocketAddr::new(address.into(), port))
    }

    /// Returns the name of a backend, unless its generation has ended.
    pub fn backend(&self, id: BackendId) -> Option<&str> {
        self.backends.get(&id).map(String::as_str)
    }
}

/// Reasons for which a query is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No VIP or backend has this name.
    #[error("no {what} is named {name:?}; there are: {known}")]
    Unknown {
        /// `VIP` or `backend`.
        what: &'static str,
        /// Name in the query.
        name: String,
        /// Existing names.
        known: String,
    },
    /// The client is not an address.
    #[error("client = {0:?}: neither an address nor a network such as 198.51.100.0/24")]
    Client(String),
    /// The limit is not a number, or too large.
    #[error("limit = {0}: write a number, at most {MAX_LIMIT}")]
    Limit(String),
    /// No filter is given, so that everything would be forgotten.
    #[error("name the clients to forget with vip, backend or client, or all of them with all=true")]
    NothingNamed,
}

/// A checked query.
#[derive(Debug, Clone)]
pub struct Filter {
    vip: Option<String>,
    backend: Option<String>,
    client: Option<IpNet>,
    limit: usize,
}

impl Filter {
    /// Checks a query against the existing VIPs and backends.
    ///
    /// # Errors
    /// When a name is unknown, or a value is malformed.
    pub fn new(query: Query, names: &Names) -> Result<Self, QueryError> {
        let Query { vip, backend, client, limit } = query;
        known("VIP", vip.as_deref(), names.vips.values().map(|vip| &vip.name))?;
        known("backend", backend.as_deref(), names.backends.values())?;
        let client = client.map(|text| network(&text)).transpose()?;
        let number = |text: String| match text.parse() {
            Ok(limit) if limit <= MAX_LIMIT => Ok(limit),
            _ => Err(QueryError::Limit(text)),
        };
        let limit = limit.map_or(Ok(MAX_LIMIT), number)?;
        Ok(Self { vip, backend, client, limit })
    }

    /// Returns whether the filter matches this VIP, backend (each by its name, if it has any) and
    /// client.
    pub fn wants(&self, vip: Option<&str>, backend: Option<&str>, client: IpAddr) -> bool {
        let is = |wanted: &Option<String>, name| wanted.is_none() || wanted.as_deref() == name;
        is(&self.vip, vip)
            && is(&self.backend, backend)
            && self.client.is_none_or(|network| network.contains(&client))
    }
}

/// Converts a conntrack entry to its API form; `None` if it does not match, or is stale.
fn flow(ConntrackEntry { key, pin }: &ConntrackEntry, lens: &Lens<'_>) -> Option<Flow> {
    let Lens { filter, names, now, table } = lens;
    let vip = names.vip(pin.vip)?;
    let backend = names.backend(pin.flow_state.backend())?;
    let client = key.client_socket();
    filter.wants(Some(&vip.name), Some(backend), client.ip()).then(|| Flow {
        vip: vip.name.clone(),
        backend: backend.to_owned(),
        protocol: key.protocol,
        client,
        destination: key.vip_socket(),
        source: names.source(&pin.flow_state),
        state: state_name(key.protocol, pin.flow_state.state(), vip.forward).to_owned(),
        age_ms: now.since(pin.created).as_ms(),
        idle_ms: now.since(pin.flow_state.last_seen()).as_ms(),
        worker: *table,
    })
}

fn known<'a>(
    what: &'static str,
    name: Option<&str>,
    names: impl Iterator<Item = &'a String> + Clone,
) -> Result<(), QueryError> {
    let Some(name) = name.filter(|&name| !names.clone().any(|known| known == name)) else {
        return Ok(());
    };
    Err(QueryError::Unknown { what, name: name.to_owned(), known: list(names.cloned()) })
}

/// Lists names in an error: sorted, without duplicates, at most 20.
pub fn list(names: impl Iterator<Item = String>) -> String {
    const MOST: usize = 20;
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(MOST);
    names.truncate(MOST);
    match (names.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

fn network(text: &str) -> Result<IpNet, QueryError> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(|_| address()).map_err(|_| QueryError::Client(text.to_owned()))
}

/// Returns the name of a flow's state, by the distinctions that its time-out is chosen by.
const fn state_name(protocol: Protocol, state: State, forward: Forward) -> &'static str {
    match (protocol, state) {
        (Protocol::Udp, state) if state.has(State::FIRST) => "udp_first",
        (Protocol::Udp, _) => "udp",
        (Protocol::Any, state) if state.has(State::FIRST) => "any_first",
        (Protocol::Any, _) => "any",
        (_, state) if state.has(State::TERMINATED) => "cut",
        (_, state) if state.is_closing(forward) => "closing",
        (_, state) if state.has(State::ESTABLISHED) => "established",
        _ => "embryonic",
    }
}

/// Context of a scan, passed for each position.
pub struct Lens<'s> {
    /// Filter of the query.
    pub filter: &'s Filter,
    /// Names of VIPs and backends.
    pub names: &'s Names,
    /// Time of the scan.
    pub now: Ticks,
    /// Index of the source.
    pub table: usize,
}

/// A table that can be listed position by position.
pub trait Source: Send {
    /// Number of positions.
    fn positions(&self) -> usize;
    /// Returns the row at a position (`0..positions`) as JSON, if it is occupied and matches.
    fn row(&self, position: usize, lens: &Lens<'_>) -> Option<serde_json::Result<Vec<u8>>>;
}

impl Source for Arc<dyn Pins> {
    fn positions(&self) -> usize {
        // `usize` has at least 32 bits on all supported machines.
        usize::try_from(self.as_ref().positions()).unwrap_or(usize::MAX)
    }

    fn row(&self, position: usize, lens: &Lens<'_>) -> Option<serde_json::Result<Vec<u8>>> {
        let entry = self.pin_at(u32::try_from(position).ok()?)?;
        flow(&entry, lens).map(|flow| serde_json::to_vec(&flow))
    }
}

/// A scan over several sources, such as the flow tables of all workers.
pub struct Scan<S> {
    /// Sources, in the order of the listing.
    pub sources: Vec<S>,
    /// Filter of the query.
    pub filter: Filter,
    /// Names of VIPs and backends.
    pub names: Arc<Names>,
    /// Clock of the sources.
    pub clock: Clock,
}

struct Cursor<S> {
    scan: Scan<S>,
    source: usize,
    position: usize,
    left: usize,
}

impl<S: Source> Scan<S> {
    /// Streams the matching rows as JSON lines, in one part per chunk of positions.
    pub fn lines(self) -> impl Stream<Item = Result<Vec<u8>, serde_json::Error>> + Send {
        let left = self.filter.limit;
        let start = Cursor { scan: self, source: 0, position: 0, left };
        unfold(start, |mut cursor| async move {
            while cursor.left > 0 {
                let chunk = cursor.chunk()?;
                tokio::task::yield_now().await;
                match chunk {
                    Ok(chunk) if chunk.is_empty() => {}
                    chunk => return Some((chunk, cursor)),
                }
            }
            None
        })
    }
}

impl<S: Source> Cursor<S> {
    /// Reads the next chunk; `None` at the end of the last source.
    fn chunk(&mut self) -> Option<Result<Vec<u8>, serde_json::Error>> {
        let Scan { sources, filter, names, clock } = &self.scan;
        let source = sources.get(self.source)?;
        let end = self.position.saturating_add(CHUNK).min(source.positions());
        let lens = Lens { filter, names, now: clock(), table: self.source };
        let rows = (self.position..end).filter_map(|position| source.row(position, &lens));
        let mut chunk = Vec::new();
        for row in rows.take(self.left) {
            match row {
                Ok(row) => chunk.extend(row),
                Err(error) => {
                    self.left = 0;
                    return Some(Err(error));
                }
            }
            chunk.push(b'\n');
            self.left -= 1;
        }
        (self.source, self.position) =
            if end == source.positions() { (self.source + 1, 0) } else { (self.source, end) };
        Some(Ok(chunk))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
pub(super) mod tests {
    use futures_util::stream::StreamExt;

    use super::super::state::tests::{backend, vip};
    use super::*;
    use crate::flow::entry::Pin;
    use crate::net::{Address, BackendIndex, FlowKey, NextHop, NicIndex};

    /// `count` flows, one in every third slot; flow `i` comes from 198.51.100.(i % 250) and is
    /// pinned to backend `i % 2` of VIP 0.
    pub struct FakeTable(pub u32);

    impl Pins for FakeTable {
        fn positions(&self) -> u32 {
            self.0 * 3
        }

        fn ever_used(&self) -> [u32; 2] {
            [self.positions() / 2; 2]
        }

        fn pin_at(&self, slot: u32) -> Option<ConntrackEntry> {
            let i = slot / 3;
            (slot.is_multiple_of(3)).then(|| ConntrackEntry {
                key: FlowKey {
                    client: Address::from_v4([198, 51, 100, u8::try_from(i % 250).unwrap()]),
                    vip: Address::from_v4([192, 0, 2, 10]),
                    client_port: u16::try_from(i % 50_000 + 1024).unwrap(),
                    vip_port: 80,
                    protocol: Protocol::Tcp,
                },
                pin: Pin::new(
                    VipId(0),
                    BackendId { index: BackendIndex(u16::try_from(i % 2).unwrap()), generation: 0 },
                    State::ESTABLISHED,
                    0,
                    &NextHop { nic: NicIndex(0), mac: [0; 6], vlan: None },
                    Ticks(100),
                )
                .with_last_seen(Ticks(150)),
            })
        }
    }

    fn names() -> Arc<Names> {
        let mut registry = Registry::default();
        registry
            .apply(
                &[vip("web", &[backend("a", 1), backend("b", 2)])],
                &[],
                tokio::time::Instant::now(),
            )
            .unwrap();
        Arc::new(Names::of(&registry))
    }

    async fn scan(query: Query, counts: &[u32]) -> Vec<Flow> {
        let names = names();
        let scan = Scan {
            sources: counts
                .iter()
                .map(|&count| Arc::new(FakeTable(count)) as Arc<dyn Pins>)
                .collect(),
            filter: Filter::new(query, &names).unwrap(),
            names,
            clock: Arc::new(|| Ticks(200)),
        };
        let chunks: Vec<_> = scan.lines().map(Result::unwrap).collect().await;
        let lines = chunks.concat();
        let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn every_flow_of_every_worker_is_told_once() {
        let flows = scan(Query::default(), &[5000, 0, 3]).await;
        let of = |worker| flows.iter().filter(|flow| flow.worker == worker).count();
        assert_eq!((flows.len(), of(0), of(2)), (5003, 5000, 3));
        let first = flows.first().unwrap();
        assert_eq!((first.age_ms, first.idle_ms, first.state.as_str()), (1000, 500, "established"));
        assert_eq!(first.client, "198.51.100.0:1024".parse().unwrap());
        assert_eq!((first.vip.as_str(), first.backend.as_str()), ("web", "a"));
    }

    #[tokio::test]
    async fn filters_and_limit() {
        let text = |text: &str| Some(text.to_owned());
        let all = Query::default();
        for (name, query, expected) in [
            ("vip", Query { vip: text("web"), ..all.clone() }, 1000),
            ("backend", Query { backend: text("b"), ..all.clone() }, 500),
            ("address", Query { client: text("198.51.100.7"), ..all.clone() }, 5),
            ("network", Query { client: text("198.51.100.0/31"), ..all.clone() }, 10),
            ("other family", Query { client: text("::/0"), ..all.clone() }, 0),
            ("limit", Query { limit: text("7"), ..all.clone() }, 7),
            ("limit 0", Query { limit: text("0"), ..all.clone() }, 0),
            ("limit over chunks", Query { limit: text("999"), ..all }, 999),
        ] {
            assert_eq!(scan(query, &[400, 600]).await.len(), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn stale_pins_are_left_out() {
        let mut registry = Registry::default();
        registry
            .apply(
                &[vip("web", &[backend("a", 1), backend("b", 2)])],
                &[],
                tokio::time::Instant::now(),
            )
            .unwrap();
        registry.end_generation(BackendIndex(0));
        let names = Arc::new(Names::of(&registry));
        let filter = Filter::new(Query::default(), &names).unwrap();
        let sources: Vec<Arc<dyn Pins>> = vec![Arc::new(FakeTable(10))];
        let scan = Scan { sources, filter, names, clock: Arc::new(|| Ticks(200)) };
        let chunks: Vec<_> = scan.lines().map(Result::unwrap).collect().await;
        assert_eq!(chunks.concat().iter().filter(|&&byte| byte == b'\n').count(), 5);
    }

    #[test]
    fn states_are_named_as_time_outs_are_chosen() {
        let (udp, tcp) = (Protocol::Udp, Protocol::Tcp);
        let both = State::FIN_CLIENT.with(State::FIN_BACKEND);
        for (protocol, state, forward, expected) in [
            (udp, State::default(), Forward::Nat, "udp"),
            (udp, State::FIRST, Forward::Nat, "udp_first"),
            (Protocol::Any, State::default(), Forward::Dsr, "any"),
            (Protocol::Any, State::FIRST, Forward::Dsr, "any_first"),
            (tcp, State(0), Forward::Nat, "embryonic"),
            (tcp, State::ESTABLISHED, Forward::Nat, "established"),
            (tcp, State::ESTABLISHED.with(State::FIN_CLIENT), Forward::Nat, "established"),
            (tcp, State::ESTABLISHED.with(both), Forward::Nat, "closing"),
            (tcp, State::ESTABLISHED.with(State::FIN_CLIENT), Forward::Dsr, "closing"),
            (tcp, State::RST, Forward::Dsr, "closing"),
            (tcp, State::RST.with(State::TERMINATED), Forward::Dsr, "cut"),
        ] {
            assert_eq!(state_name(protocol, state, forward), expected);
        }
    }

    #[test]
    fn bad_queries_are_refused() {
        let names = names();
        let error = |query| Filter::new(query, &names).unwrap_err().to_string();
        let all = Query::default();
        assert_eq!(
            error(Query { vip: Some("wbe".to_owned()), ..all.clone() }),
            "no VIP is named \"wbe\"; there are: web"
        );
        assert_eq!(
            error(Query { backend: Some("c".to_owned()), ..all.clone() }),
            "no backend is named \"c\"; there are: a, b"
        );
        assert!(
            error(Query { client: Some("198.51".to_owned()), ..all.clone() }).contains("198.51")
        );
        for limit in ["1000001", "x", "-1", ""] {
            let expected = format!("limit = {limit}: write a number, at most 1000000");
            assert_eq!(error(Query { limit: Some(limit.to_owned()), ..all.clone() }), expected);
        }
    }

    #[test]
    fn lists_are_bounded() {
        assert_eq!(list((0..25).map(|i| format!("{i:02}"))).matches(", ").count(), 19);
        assert!(list((0..25).map(|i| i.to_string())).ends_with(" and 5 more"));
        assert_eq!(list(std::iter::empty()), "none");
    }
}
