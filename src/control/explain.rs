//! `GET /v1/explain`: the backend of a flow, and the reason for each step of the decision.
//!
//! The control thread supplies the published forwarding table and the VIP. The data path's own
//! stages process the packet, on a separate thread.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::StatusCode;
use serde::Deserialize;

use super::api::Explained;
use super::lists::Lists;
use super::refusal::Refusal;
use super::state::{Registry, VipEntry};
use super::view::NicView;
use crate::config;
use crate::forwarding::explain::{Explanation, Question, Segment, Step};
use crate::forwarding::table::name;
use crate::forwarding::{ForwardingTable, Ports};
use crate::net::{Network, NextHop, Protocol, VipId};

/// Runs a packet through the data path's stages.
pub type Explain =
    Arc<dyn Fn(&Question, &ForwardingTable) -> Result<Explanation, String> + Send + Sync>;

/// Query of the request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Name of the VIP.
    pub vip: String,
    /// Client as `address:port`, IPv6 addresses in brackets.
    pub client: String,
    /// Destination port; default: the first port of the VIP.
    pub port: Option<u16>,
    /// Try a mid-flow TCP packet, even if the flow has no pin.
    #[serde(default)]
    pub midflow: bool,
    /// Try a SYN, even if the flow has a pin.
    #[serde(default)]
    pub syn: bool,
    /// Destination address, for a VIP that is a prefix; default: the lowest one.
    pub address: Option<IpAddr>,
    /// Payload of a UDP packet, in hex digits.
    pub payload: Option<String>,
}

/// A checked query, with the names needed to word its result.
#[derive(Debug)]
pub struct Prepared {
    question: Question,
    table: Arc<ForwardingTable>,
    first: Step,
    vip: String,
    /// Names of all VIPs, including those that a reload has removed.
    vips: Vec<(VipId, String)>,
    interfaces: Vec<String>,
    /// Reason for which the XDP program drops the packet, if it does.
    dropped: Option<Step>,
}

impl Prepared {
    /// Checks a query against the existing VIPs.
    ///
    /// # Errors
    /// A [`Refusal`] that names the unknown or malformed part, and the accepted form.
    pub fn new(
        query: Query,
        registry: &Registry,
        lists: &Lists,
        table: Arc<ForwardingTable>,
        nics: &[NicView],
    ) -> Result<Self, Refusal> {
        let vip = registry.vip(&query.vip).ok_or_else(|| unknown(&query.vip, registry))?;
        let config = &vip.config;
        let address = address(query.address, config.address)?;
        let client = client(&query.client, address, config.protocol)?;
        let port = port(query.port, vip)?;
        let payload = query.payload.map_or(Ok(Vec::new()), |text| payload(&text))?;
        if !payload.is_empty() && config.protocol != Protocol::Udp {
            return Err(bad("payload: only of UDP VIPs: payloads of other protocols are not read"));
        }
        if (query.midflow || query.syn) && config.protocol != Protocol::Tcp {
            return Err(bad(
                "midflow, syn: only of TCP VIPs: elsewhere every packet may begin a flow",
            ));
        }
        let packet = match (query.syn, query.midflow) {
            (true, true) => return Err(bad("syn and midflow: a packet is one or the other")),
            (true, false) => Segment::Syn,
            (false, true) => Segment::Midflow,
            (false, false) => Segment::Likely,
        };
        let destination = SocketAddr::new(address, port);
        let config::Vip { address, ports, protocol, .. } = config;
        let why = match protocol {
            Protocol::Any => format!("listens on {address}, all protocols"),
            _ if address.is_single() => format!("listens on {destination} {}", protocol.as_str()),
            _ => format!("listens on {address} port {ports} {}", protocol.as_str()),
        };
        let outcome = format!("VIP {}", config.name);
        Ok(Self {
            question: Question { client, destination, protocol: config.protocol, packet, payload },
            table,
            first: Step { stage: "classify".to_owned(), outcome, why },
            vip: config.name.clone(),
            vips: registry.all_vips().map(|vip| (vip.id, vip.config.name.clone())).collect(),
            interfaces: nics.iter().map(|nic| nic.interface.clone()).collect(),
            dropped: lists.explain(vip, client.ip(), registry),
        })
    }

    /// Runs the packet through the stages. Blocks for about a millisecond.
    ///
    /// # Errors
    /// When the packet cannot be tried.
    pub fn ask(self, explain: &Explain) -> Result<Explained, Refusal> {
        let Self { question, table, first, vip, vips, interfaces, dropped } = self;
        if let Some(dropped) = dropped {
            let Question { client, destination, protocol, .. } = question;
            let (backend, backend_vip, frame) = (None, None, String::new());
            let steps = vec![first, dropped];
            return Ok(Explained {
                vip,
                client,
                destination,
                protocol,
                backend,
                backend_vip,
                steps,
                frame,
            });
        }
        let explanation = explain(&question, &table);
        let explanation =
            explanation.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error))?;
        let Explanation { mut steps, backend, next_hop, frame } = explanation;
        let backend = backend.and_then(|index| table.backend(index));
        let owner = backend.and_then(|backend| vips.into_iter().find(|(id, _)| *id == backend.vip));
        let backend_vip = owner.map(|(_, name)| name);
        let backend = backend.map(|backend| name(backend, &table).to_owned());
        steps.insert(0, first);
        let kept = backend_vip.as_ref().filter(|owner| **owner != vip);
        steps.extend(kept.map(|owner| Step {
            stage: "conntrack".to_owned(),
            outcome: format!("a flow of VIP {owner}"),
            why: format!("it began before a reload gave its port to VIP {vip}"),
        }));
        steps.extend(next_hop.zip(backend.as_ref()).map(|(hop, backend)| {
            let interface = interfaces.get(usize::from(hop.nic.0)).map_or("?", String::as_str);
            transmit(&hop, interface, backend)
        }));
        let Question { client, destination, protocol, .. } = question;
        let frame = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Explained { vip, client, destination, protocol, backend, backend_vip, steps, frame })
    }
}

fn transmit(hop: &NextHop, interface: &str, backend: &str) -> Step {
    let [a, b, c, d, e, f] = hop.mac;
    let vlan = hop.vlan.map(|vlan| format!(", VLAN {vlan}")).unwrap_or_default();
    Step {
        stage: "transmit".to_owned(),
        outcome: format!("{interface} to {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}{vlan}"),
        why: format!("the next hop of {backend}"),
    }
}

fn bad(error: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, error)
}

fn unknown(vip: &str, registry: &Registry) -> Refusal {
    let names = registry.vips().iter().map(|entry| entry.config.name.clone());
    let names = super::flows::list(names);
    Refusal::new(StatusCode::NOT_FOUND, format!("no VIP is named {vip:?}; there are: {names}"))
}

fn address(wanted: Option<IpAddr>, vip: Network) -> Result<IpAddr, Refusal> {
    match wanted {
        Some(wanted) if !vip.contains(wanted.into()) => Err(bad(format!(
            "address = {wanted}: the VIP has {vip}; ask about that, or leave it out"
        ))),
        wanted => Ok(wanted.unwrap_or(vip.ip())),
    }
}

fn client(text: &str, vip: IpAddr, protocol: Protocol) -> Result<SocketAddr, Refusal> {
    // Where ports have no meaning, the client needs none.
    let portless = || text.parse().ok().filter(|_: &IpAddr| protocol == Protocol::Any);
    let client = text.parse().ok().or_else(|| Some(SocketAddr::new(portless()?, 0)));
    let client: SocketAddr = client.ok_or_else(|| {
        bad(format!(
            "client = {text:?}: write address:port, such as 198.51.100.7:40000 or [2001:db8::7]:40000"
        ))
    })?;
    if client.is_ipv4() != vip.is_ipv4() {
        return Err(bad(format!("client = {client}: not of the address family of the VIP, {vip}")));
    }
    Ok(client)
}

fn port(port: Option<u16>, vip: &VipEntry) -> Result<u16, Refusal> {
    let name = &vip.config.name;
    if vip.config.protocol == Protocol::Any {
        return match port {
            Some(_) => {
                Err(bad(format!("port: VIP {name} takes all protocols, with ports or without")))
            }
            None => Ok(0),
        };
    }
    match (&vip.config.ports, port) {
        (Ports::All, None) => Err(bad(format!("port: VIP {name} listens on all ports; name one"))),
        (_, Some(0)) => Err(bad("port = 0: use 1 to 65535")),
        (ports, Some(port)) if ports.contain(port) => Ok(port),
        (ports, Some(port)) => {
            let ports = match ports {
                Ports::List(ports) => super::flows::list(ports.iter().map(ToString::to_string)),
                Ports::All => ports.to_string(),
            };
            Err(bad(format!("port = {port}: VIP {name} does not listen there; it does on {ports}")))
        }
        (Ports::List(ports), None) => ports
            .first()
            .map(|range| range.first)
            .ok_or_else(|| bad(format!("VIP {name} has no port"))),
    }
}

fn payload(text: &str) -> Result<Vec<u8>, Refusal> {
    /// Largest payload in bytes, which fits into a frame.
    const MOST: usize = 1400;
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok().filter(|_| !pair.starts_with('+'))
    };
    let bytes: Option<Vec<u8>> = digits.map(byte).collect();
    bytes
        .filter(|bytes| bytes.len() <= MOST)
        .ok_or_else(|| bad(format!("payload: write up to {MOST} bytes as pairs of hex digits")))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::state::tests::{backend, vip};
    use super::*;

    fn query(client: &str) -> Query {
        let (vip, client) = ("web".to_owned(), client.to_owned());
        Query { vip, client, port: None, address: None, midflow: false, syn: false, payload: None }
    }

    fn prepare(query: Query) -> Result<Prepared, String> {
        let mut registry = Registry::default();
        registry
            .apply(&[vip("web", &[backend("a", 1)])], &[], tokio::time::Instant::now())
            .unwrap();
        let table = Arc::new(ForwardingTable::build(
            1,
            [0; 16],
            crate::forwarding::Local::default(),
            &[],
            None,
        ));
        Prepared::new(query, &registry, &Lists::default(), table, &[])
            .map_err(|refusal| refusal.errors.join("\n"))
    }

    #[test]
    fn questions_that_cannot_be_asked_say_what_to_write() {
        let error = |query| prepare(query).err().unwrap();
        let ask = || query("198.51.100.7:40000");
        assert!(prepare(ask()).is_ok());
        for (wrong, reported) in [
            (Query { vip: "mail".to_owned(), ..ask() }, "no VIP is named \"mail\"; there are: web"),
            (query("198.51.100.7"), "write address:port"),
            (query("[2001:db8::7]:1"), "not of the address family"),
            (Query { port: Some(81), ..ask() }, "does not listen there; it does on 80"),
            (Query { port: Some(0), ..ask() }, "use 1 to 65535"),
            (Query { payload: Some("00".to_owned()), ..ask() }, "only of UDP VIPs"),
            (Query { payload: Some("0".to_owned()), ..ask() }, "pairs of hex digits"),
            (Query { payload: Some("+1".to_owned()), ..ask() }, "pairs of hex digits"),
        ] {
            let error = error(wrong);
            assert!(error.contains(reported), "{error}");
        }
    }
}
