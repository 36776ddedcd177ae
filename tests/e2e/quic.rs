//! QUIC connections whose clients move: quinn at both ends, with our connection ids at the servers.

use std::fmt::Write as _;
use std::hash::Hasher as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use holdfast::forwarding::ServerId;
use holdfast::forwarding::quic_lb::{Codec, Config as Rotation};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    Incoming, RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig,
};
use siphasher::sip::SipHasher13;

use crate::lab::{BACKENDS, Config, Family, Holdfast, Lab, Topology, vip};

/// Connections at a time; of three backends, a hash would choose another one for two in three.
const CONNECTIONS: u16 = 12;
/// Number of address changes of each client.
const MOVES: usize = 4;
/// Bytes that are sent, and returned, after each move.
const BYTES: usize = 100_000;
/// Ports of the VIP and of its backends.
const PORT: u16 = 443;
const NAT_PORT: u16 = 8443;
const NAME: &str = "quic.test";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Generates connection ids that name a server. The nonce is a hash of a counter: it never repeats
/// in a test, and looks random without a key.
struct Generator {
    codec: Arc<Codec>,
    server: ServerId,
    nonce_bytes: usize,
    count: u64,
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        self.count += 1;
        let halves = [hash(0, &self.count.to_be_bytes()), hash(1, &self.count.to_be_bytes())];
        let nonce = halves.map(u64::to_be_bytes).concat();
        let id = self.codec.encode(self.server, &nonce[..self.nonce_bytes]).unwrap();
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        1 + self.server.len() + self.nonce_bytes
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn hash(key: u8, data: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(&[key; 16]);
    hasher.write(data);
    hasher.finish()
}

/// The key of stateless resets, shared by all servers: a client whose packets reach the wrong
/// server is reset at once, instead of after its time-out.
struct ResetKey;

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        for (key, chunk) in (2..).zip(signature.chunks_mut(8)) {
            chunk.copy_from_slice(&hash(key, data).to_be_bytes()[..chunk.len()]);
        }
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut own = [0; 32];
        self.sign(data, &mut own);
        (own == *signature).then_some(()).ok_or(CryptoError)
    }
}

/// Secrets of both ends.
struct Secrets {
    server: ServerConfig,
    client: ClientConfig,
}

impl Secrets {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let certificate: CertificateDer<'static> = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        // The time-out of silence is short, so that a test ends.
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(Some(Duration::from_secs(10).try_into().unwrap()));
        let transport = Arc::new(transport);
        let mut server = ServerConfig::with_single_cert(vec![certificate], key.into()).unwrap();
        server.transport_config(Arc::clone(&transport));
        let mut client = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
        client.transport_config(transport);
        Self { server, client }
    }
}

/// A VIP and the configuration of its servers.
#[derive(Clone, Copy)]
struct Case {
    forward: &'static str,
    family: Family,
    topology: Topology,
    rotation: Rotation,
    affinity: &'static str,
}

impl Case {
    fn vip(&self) -> SocketAddr {
        (vip(self.forward, self.family, true).address().parse::<IpAddr>().unwrap(), PORT).into()
    }

    fn server_id(&self, number: usize) -> ServerId {
        let length = usize::from(self.rotation.server_id_bytes);
        ServerId::new(&vec![u8::try_from(number).unwrap() ^ 0xc4; length]).unwrap()
    }

    fn toml(&self) -> String {
        let Self { forward, family, affinity, rotation, .. } = self;
        let address = self.vip().ip();
        let mut text = format!(
            r#"
[[vip]]
name = "quic"
address = "{address}"
ports = [{PORT}]
protocol = "udp"
forward = "{forward}"
affinity = "{affinity}"
health = {{ kind = "tcp", interval_ms = 100, timeout_ms = 100, rise = 2, fall = 2, port = 80 }}
"#
        );
        let named = *affinity == "quic_cid";
        if named {
            let Rotation { rotation, server_id_bytes, nonce_bytes, key } = rotation;
            write!(
                text,
                "[[vip.quic]]\nrotation = {rotation}\nserver_id_bytes = {server_id_bytes}\n\
                 nonce_bytes = {nonce_bytes}\n"
            )
            .unwrap();
            if let Some(key) = key {
                writeln!(text, "key = \"{:032x}\"", u128::from_be_bytes(*key)).unwrap();
            }
        }
        for (number, backend) in BACKENDS.iter().enumerate() {
            let address = family.backend(backend);
            write!(text, "[[vip.backend]]\nname = \"{backend}\"\naddress = \"{address}\"\n")
                .unwrap();
            if *forward == "nat" {
                writeln!(text, "port = {NAT_PORT}").unwrap();
            }
            if named {
                writeln!(text, "server_id = \"{}\"", self.server_id(number)).unwrap();
            }
        }
        text
    }

    /// Starts a server in each backend's namespace; to be called in a runtime.
    fn start_servers(&self, lab: &Lab, secrets: &Secrets) {
        let any: IpAddr = match self.family {
            Family::V4 => [0; 4].into(),
            Family::V6 => [0; 16].into(),
        };
        let port = if self.forward == "nat" { NAT_PORT } else { PORT };
        let codec = Arc::new(Codec::new(&self.rotation).unwrap());
        for (number, backend) in BACKENDS.iter().enumerate() {
            let (codec, server) = (Arc::clone(&codec), self.server_id(number));
            let nonce_bytes = usize::from(self.rotation.nonce_bytes);
            let mut config = EndpointConfig::new(Arc::new(ResetKey));
            config.cid_generator(move || {
                let codec = Arc::clone(&codec);
                Box::new(Generator { codec, server, nonce_bytes, count: 0 })
            });
            let socket = lab.udp_socket(backend, (any, port).into());
            let endpoint =
                Endpoint::new(config, Some(secrets.server.clone()), socket, Arc::new(TokioRuntime));
            tokio::spawn(serve(endpoint.unwrap(), backend));
        }
    }
}

/// Greets every connection with the backend's name and returns its data.
async fn serve(endpoint: Endpoint, name: &'static str) {
    while let Some(incoming) = endpoint.accept().await {
        // The client reports a connection that fails.
        tokio::spawn(async move { echo(incoming, name).await.ok() });
    }
}

async fn echo(incoming: Incoming, name: &str) -> Result<(), Failure> {
    let connection = incoming.await?;
    let (mut send, mut receive) = connection.accept_bi().await?;
    send.write_all(name.as_bytes()).await?;
    let mut buffer = vec![0; 65_536];
    while let Some(length) = receive.read(&mut buffer).await? {
        send.write_all(&buffer[..length]).await?;
    }
    send.finish()?;
    connection.closed().await;
    Ok(())
}

/// One client: a connection, and one stream that goes on while the client changes its address.
struct Client {
    number: u16,
    endpoint: Endpoint,
    send: SendStream,
    receive: RecvStream,
    connection: Connection,
}

impl Client {
    async fn connect(
        number: u16,
        socket: UdpSocket,
        config: ClientConfig,
        vip: SocketAddr,
    ) -> Result<Self, Failure> {
        let endpoint =
            Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
        let connection = endpoint.connect_with(config, vip, NAME)?.await?;
        let (send, receive) = connection.open_bi().await?;
        Ok(Self { number, endpoint, send, receive, connection })
    }

    /// Sends bytes that no other client or round sends, and expects them back.
    async fn exchange(&mut self, round: usize) -> Result<(), Failure> {
        let mut expected = Vec::with_capacity(BYTES + 8);
        for word in 0..BYTES.div_ceil(8) {
            let place = [usize::from(self.number), round, word].map(usize::to_be_bytes).concat();
            expected.extend(hash(9, &place).to_be_bytes());
        }
        let mut returned = vec![0; expected.len()];
        self.send.write_all(&expected).await?;
        self.receive.read_exact(&mut returned).await?;
        if returned == expected { Ok(()) } else { Err("other bytes came back".into()) }
    }
}

/// The complete run of a client with these sockets in order; returns its backend.
async fn converse(
    number: u16,
    sockets: Vec<UdpSocket>,
    config: ClientConfig,
    vip: SocketAddr,
) -> Result<String, Failure> {
    let mut sockets = sockets.into_iter();
    let mut client = Client::connect(number, sockets.next().unwrap(), config, vip).await?;
    // The server sends first when it receives the stream's first bytes.
    let first = client.send.write_all(&[0]).await;
    first?;
    let mut name = [0; 2];
    client.receive.read_exact(&mut name).await?;
    client.receive.read_exact(&mut [0]).await?;
    client.exchange(0).await?;
    for (round, socket) in (1..).zip(sockets) {
        client.endpoint.rebind(socket)?;
        client.exchange(round).await?;
    }
    client.connection.close(0_u32.into(), b"done");
    client.endpoint.wait_idle().await;
    Ok(String::from_utf8(name.to_vec())?)
}

/// Runs all clients of a case; returns each one's backend or failure, and holdfast's counts of
/// flows by connection id and of new flows.
fn run(case: &Case) -> (Vec<Result<String, Failure>>, (u64, u64)) {
    let lab = Lab::up(case.topology);
    let config = Config { more: case.toml(), ..Config::new(&lab, 2, Vec::new()) };
    let holdfast = Holdfast::start(&lab, &config);
    let secrets = Secrets::new();
    // Two client addresses in turn, each time with another port.
    let socket = |turn: usize| {
        let address: IpAddr = case.family.client(turn % 2).parse().unwrap();
        lab.udp_socket("client", (address, 0).into())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ends = runtime.block_on(async {
        case.start_servers(&lab, &secrets);
        let clients = (0..CONNECTIONS).map(|number| {
            let sockets = (0..=MOVES).map(socket).collect();
            tokio::spawn(converse(number, sockets, secrets.client.clone(), case.vip()))
        });
        let mut ends = Vec::new();
        for client in clients.collect::<Vec<_>>() {
            ends.push(client.await.unwrap());
        }
        ends
    });
    let totals = holdfast.status().totals;
    holdfast.stop();
    (ends, (totals.flows_by_cid, totals.flows_new))
}

fn rotation(rotation: u8, server_id_bytes: u8, nonce_bytes: u8, key: bool) -> Rotation {
    let key = key.then_some(*b"a key of a test!");
    Rotation { rotation, server_id_bytes, nonce_bytes, key }
}

fn assert_all_stay(case: &Case) {
    let (ends, (by_cid, new)) = run(case);
    let backends: Vec<String> = ends.into_iter().map(|end| end.unwrap()).collect();
    assert_eq!(backends.len(), usize::from(CONNECTIONS));
    assert!(backends.iter().any(|backend| *backend != backends[0]), "{backends:?}");
    // Every move is a new five-tuple without a pin: the connection id alone named the backend.
    let (connections, moves) = (u64::from(CONNECTIONS), MOVES as u64);
    assert!(by_cid >= connections * moves, "{by_cid} flows by connection id");
    assert!(new >= connections, "{new} flows by hash: the first packets");
}

#[test]
fn quic_connections_stay_when_clients_move_dsr() {
    assert_all_stay(&Case {
        forward: "dsr",
        family: Family::V4,
        topology: Topology::TwoNic,
        rotation: rotation(0, 3, 4, false),
        affinity: "quic_cid",
    });
}

#[test]
fn quic_connections_stay_when_clients_move_nat() {
    assert_all_stay(&Case {
        forward: "nat",
        family: Family::V4,
        topology: Topology::Stick,
        rotation: rotation(2, 8, 8, true),
        affinity: "quic_cid",
    });
}

#[test]
fn quic_connections_stay_when_clients_move_nat_v6() {
    assert_all_stay(&Case {
        forward: "nat",
        family: Family::V6,
        topology: Topology::TwoNic,
        rotation: rotation(6, 10, 5, true),
        affinity: "quic_cid",
    });
}

/// Without connection ids the connections break, so the test can fail.
#[test]
fn quic_connections_break_when_clients_move_and_the_hash_decides() {
    let (ends, (by_cid, _)) = run(&Case {
        forward: "dsr",
        family: Family::V4,
        topology: Topology::Stick,
        rotation: rotation(0, 3, 4, false),
        affinity: "flow",
    });
    let broken = ends.iter().filter(|end| end.is_err()).count();
    assert!(broken > ends.len() / 2, "{broken} of {}: {ends:?}", ends.len());
    assert_eq!(by_cid, 0);
}
