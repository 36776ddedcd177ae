//! The XDP programs of the traffic generator (`generate.bpf.c`), which redirect its packets, count
//! them, or create them inside the kernel.
//!
//! They are attached by a `bpf_link` and end with the process: unlike the balancer, a generator
//! that dies leaves nothing behind.

use std::io;
use std::os::fd::AsRawFd;

use aya::maps::{PerCpuArray, PerCpuValues, XskMap};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};

use super::load::load_in_spite_of_signals;
use super::nic::Nic;
use super::program::Attached;
use super::program::error::{
    ProgramError, io_cause, load_error, map, map_error, no_map, with_causes,
};
use super::queue::XskQueue;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generate.bpf.o"));

/// Number of flows that a [`Sink`] watches for a change of backend: the flows with the lowest
/// numbers. Keep in step with generate.bpf.c.
pub const WATCHED_FLOWS: u32 = 65_536;

/// Frames that the kernel prepares and sends together (`batch_size`; at most 256).
const BATCH: u32 = 64;

/// Longest frame in bytes, without FCS, that BPF_PROG_RUN accepts on every supported kernel: a page
/// less its headroom, its metadata and `struct skb_shared_info` (net/bpf/test_run.c).
pub const BLAST_MAX: usize = 3072;

/// Redirects the generator's packets on a NIC to AF_XDP sockets, until it is dropped.
pub struct Catcher {
    /// Owner of the link.
    _ebpf: Ebpf,
    attached: Attached,
}

impl Catcher {
    /// Attaches to `nic`, natively if its driver can, and redirects packets of each queue to its
    /// socket. Packets of the generator on another queue are dropped.
    ///
    /// # Errors
    /// [`ProgramError`], for example when the NIC has an XDP program already.
    pub fn attach<'a>(
        nic: &Nic,
        queues: impl IntoIterator<Item = (u32, &'a XskQueue)>,
    ) -> Result<Self, ProgramError> {
        let mut ebpf = load(nic.name(), &mut EbpfLoader::new())?;
        for (queue, xsk) in queues {
            let interface = nic.name().to_owned();
            let socket = xsk.fd().ok_or(ProgramError::NoSocket { interface, queue })?;
            map(&mut ebpf, "xsks")
                .and_then(XskMap::try_from)
                .and_then(|mut sockets| sockets.set(queue, socket.as_raw_fd(), 0))
                .map_err(map_error(nic.name(), "set a socket", "xsks"))?;
        }
        let attached = attach(&mut ebpf, "generate_catch", nic)?;
        Ok(Self { _ebpf: ebpf, attached })
    }

    /// XDP mode of the program.
    pub fn mode(&self) -> Attached {
        self.attached
    }
}

/// Counters of a [`Sink`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SinkCounters {
    /// Packets of the generator.
    pub packets: u64,
    /// Bytes of these packets, without FCS.
    pub bytes: u64,
    /// Packets of a watched flow to a backend other than the flow's first one.
    pub violations: u64,
}

/// Counts and drops the generator's packets on a NIC, until it is dropped.
pub struct Sink {
    interface: String,
    ebpf: Ebpf,
}

impl Sink {
    /// Attaches to `nic`, natively if its driver can.
    ///
    /// # Errors
    /// [`ProgramError`], for example when the NIC has an XDP program already.
    pub fn attach(nic: &Nic) -> Result<Self, ProgramError> {
        let mut ebpf = load(nic.name(), &mut EbpfLoader::new())?;
        attach(&mut ebpf, "generate_sink", nic)?;
        Ok(Self { interface: nic.name().to_owned(), ebpf })
    }

    /// Returns the counters, summed over all CPUs.
    ///
    /// # Errors
    /// [`ProgramError::Map`]; none is expected.
    pub fn counters(&self) -> Result<SinkCounters, ProgramError> {
        let mut sum = SinkCounters::default();
        for &[packets, bytes, violations] in
            per_cpu::<3>(&self.ebpf, &self.interface, "sunk")?.iter()
        {
            sum.packets += packets;
            sum.bytes += bytes;
            sum.violations += violations;
        }
        Ok(sum)
    }
}

/// Traffic that a [`Blaster`] sends.
#[derive(Debug, Clone)]
pub struct BlastSpec<'a> {
    /// The outgoing NIC.
    pub nic: &'a Nic,
    /// Template of the packet, without FCS; the program writes source address, source port, flow
    /// number and checksums. At most [`BLAST_MAX`] bytes, without IP or TCP options.
    pub frame: &'a [u8],
    /// Whether the packet is IPv6 (else IPv4).
    pub ipv6: bool,
    /// Whether the packet is TCP (else UDP).
    pub tcp: bool,
    /// Number of flows, at least 1.
    pub flows: u32,
    /// Whether flows are used in turn (else at random).
    pub sequential: bool,
    /// Last four bytes of the first client's address, in host byte order.
    pub client: u32,
    /// Folded sum of the IPv4 header without checksum and source address.
    pub ip_sum: u32,
    /// Folded sum of pseudo header, header and payload, without the fields that the program writes.
    pub transport_sum: u32,
    /// Time between two packets in 1/256 ns; 0: as fast as possible.
    pub interval: u64,
    /// Seed of the random flows; 0 counts as 1.
    pub seed: u64,
}

/// Creates and sends packets inside the kernel, on the thread that calls [`run`](Self::run).
///
/// Source: Documentation/bpf/bpf_prog_run.rst, "Running XDP programs in live frame mode". The NIC's
/// driver needs `ndo_xdp_xmit`; a veth end has it while its peer has an XDP program or GRO.
pub struct Blaster {
    interface: String,
    ebpf: Ebpf,
    frame: Vec<u8>,
    seed: u64,
}

/// `struct blast_state` of generate.bpf.c: random, sent, due, earliest, end, ended.
type State = [u64; 6];

impl Blaster {
    /// Loads the program.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub fn load(spec: &BlastSpec<'_>) -> Result<Self, ProgramError> {
        let flags = [spec.ipv6, spec.tcp, spec.sequential].map(u32::from);
        let [ipv6, tcp, sequential] = &flags;
        let (index, flows) = (spec.nic.index(), spec.flows.max(1));
        let mut loader = EbpfLoader::new();
        loader
            .override_global("ipv6", ipv6, true)
            .override_global("tcp", tcp, true)
            .override_global("sequential", sequential, true)
            .override_global("interface", &index, true)
            .override_global("flows", &flows, true)
            .override_global("client", &spec.client, true)
            .override_global("ip_sum", &spec.ip_sum, true)
            .override_global("transport_sum", &spec.transport_sum, true)
            .override_global("interval", &spec.interval, true);
        let interface = spec.nic.name().to_owned();
        let mut ebpf = load(&interface, &mut loader)?;
        let loaded = program(&mut ebpf, "generate_blast").and_then(Xdp::load);
        loaded.map_err(|error| load_error(&interface, error.into()))?;
        Ok(Self { interface, ebpf, frame: spec.frame.to_vec(), seed: spec.seed.max(1) })
    }

    /// Resets the counters and the seed. No packet is sent after `end_ns`, in ns of the monotonic
    /// clock. Must be called before [`run`](Self::run).
    ///
    /// # Errors
    /// [`ProgramError::Map`] if the kernel refuses the values, [`ProgramError::Query`] if it does
    /// not report its number of CPUs; none is expected.
    pub fn begin(&mut self, end_ns: u64) -> Result<(), ProgramError> {
        let fail = || map_error(&self.interface, "set the end", "blasts");
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| {
            let reason = error.to_string();
            ProgramError::Query { interface: self.interface.clone(), reason }
        })?;
        let values = PerCpuValues::try_from(vec![[self.seed, 0, 0, 0, end_ns, 0]; cpus])
            .map_err(|error| fail()(aya::maps::MapError::IoError(error)))?;
        let mut states = map(&mut self.ebpf, "blasts")
            .and_then(PerCpuArray::<_, State>::try_from)
            .map_err(fail())?;
        states.set(0, values, 0).map_err(fail())
    }

    /// Runs the program `times` times. Each run sends at most one packet: none before it is due,
    /// and none after the end. Returns early on a signal.
    ///
    /// # Errors
    /// [`ProgramError::Run`].
    pub fn run(&mut self, times: u32) -> Result<(), ProgramError> {
        let interface = self.interface.clone();
        let program = program(&mut self.ebpf, "generate_blast");
        let program = program.map_err(|error| load_error(&interface, error.into()))?;
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            repeat: times,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        match program.test_run(options) {
            Ok(_) => Ok(()),
            Err(error) if io_cause(&error).is_some_and(is_interruption) => Ok(()),
            Err(error) => {
                let reason = with_causes(&error);
                Err(ProgramError::Run { interface, reason })
            }
        }
    }

    /// Returns the number of packets handed to the NIC's driver so far.
    ///
    /// # Errors
    /// [`ProgramError::Map`]; none is expected.
    pub fn sent(&self) -> Result<u64, ProgramError> {
        let states = per_cpu::<6>(&self.ebpf, &self.interface, "blasts")?;
        Ok(states.iter().map(|[_, sent, ..]| sent).sum())
    }
}

fn is_interruption(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

fn load(interface: &str, loader: &mut EbpfLoader<'_>) -> Result<Ebpf, ProgramError> {
    loader.load(OBJECT).map_err(|error| load_error(interface, error))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, aya::programs::ProgramError> {
    let program = ebpf.program_mut(name);
    program.ok_or(aya::programs::ProgramError::UnexpectedProgramType)?.try_into()
}

/// Loads the program and attaches it, natively if possible.
fn attach(ebpf: &mut Ebpf, name: &str, nic: &Nic) -> Result<Attached, ProgramError> {
    let program = program(ebpf, name)
        .and_then(|program| load_in_spite_of_signals(|| program.load()).map(|()| program));
    let program = program.map_err(|error| load_error(nic.name(), error.into()))?;
    if program.attach_to_if_index(nic.index(), XdpMode::Driver).is_ok() {
        return Ok(Attached::Native);
    }
    match program.attach_to_if_index(nic.index(), XdpMode::Skb) {
        Ok(_) => Ok(Attached::Generic),
        Err(error) => Err(ProgramError::Attach {
            interface: nic.name().to_owned(),
            mode: "native and generic",
            reason: with_causes(&error),
            hint: "the generator needs a NIC without an XDP program: see `ip link` and \
                   `bpftool net`",
        }),
    }
}

/// Returns the values of a per-CPU array's only entry.
fn per_cpu<const N: usize>(
    ebpf: &Ebpf,
    interface: &str,
    name: &'static str,
) -> Result<PerCpuValues<[u64; N]>, ProgramError>
where
    [u64; N]: aya::Pod,
{
    ebpf.map(name)
        .ok_or_else(|| no_map(name))
        .and_then(PerCpuArray::<_, [u64; N]>::try_from)
        .and_then(|values| values.get(&0, 0))
        .map_err(map_error(interface, "read", name))
}
