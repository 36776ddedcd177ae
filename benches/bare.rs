//! A bare AF_XDP layer-2 forwarder: holdfast's own rings with every stage left out.
//!
//! The reference for a worker on a NIC (`scripts/compare`): receives on one queue, writes the MAC
//! addresses, transmits. Steers by the same XDP program, with one rule, and runs until SIGTERM.
//!
//! ```sh
//! cargo bench --bench bare -- --receive eth0 --transmit eth1 --vip 192.0.2.10:80 \
//!     --to 02:00:00:00:0b:11 --core 1
//! ```

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use clap::Parser;
use holdfast::net::{ListenKey, Protocol};
use holdfast::xdp::cpu;
use holdfast::xdp::nic::Nic;
use holdfast::xdp::program::{AttachMode, SteerRules, Steering};
use holdfast::xdp::queue::{XskQueue, wait};
use holdfast::xdp::socket::Io;
use holdfast::xdp::umem::{FramePool, Umem};
use signal_hook::consts::{SIGINT, SIGTERM};

const RING: u32 = 2048;
const BATCH: usize = 64;
/// As in the worker.
const IDLE_POLLS: u32 = 64;
const SLEEP_MS: u32 = 100;

#[derive(Parser)]
struct Args {
    /// NIC to receive on (queue 0)
    #[arg(long)]
    receive: String,
    /// NIC to transmit on; may be the same
    #[arg(long)]
    transmit: String,
    /// Packets to take: UDP or TCP to this address and port
    #[arg(long)]
    vip: SocketAddr,
    /// Destination MAC to write
    #[arg(long, value_parser = mac)]
    to: [u8; 6],
    /// Core to run on
    #[arg(long)]
    core: usize,
    /// Sleep in poll(2) without packets
    #[arg(long)]
    sleep: bool,
    /// Packets per poll, at most 64
    #[arg(long, default_value_t = BATCH)]
    batch: usize,
    /// As in the configuration
    #[arg(long, default_value_t = Io::default().tx_budget)]
    tx_budget: u32,
    /// As in the configuration
    #[arg(long, default_value_t = Io::default().tx_kick)]
    tx_kick: u32,
    /// As need_wakeup = false in the configuration
    #[arg(long)]
    no_need_wakeup: bool,
    /// As in the configuration
    #[arg(long, default_value_t = Io::default().busy_poll)]
    busy_poll: u16,
    /// cargo bench adds this
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn io(&self) -> Io {
        Io {
            need_wakeup: !self.no_need_wakeup,
            tx_budget: self.tx_budget,
            tx_kick: self.tx_kick,
            busy_poll: self.busy_poll,
            ..Io::default()
        }
    }
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> =
        text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| format!("{text}: no MAC"))
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` starts it without arguments: there is nothing to measure then.
    if std::env::args().len() <= 2 {
        println!("bare: needs a NIC; see scripts/compare");
        return Ok(());
    }
    let args = Args::parse();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    cpu::pin_to_core(args.core)?;
    let (receive, transmit) = (Nic::open(&args.receive)?, Nic::open(&args.transmit)?);
    let same = receive.index() == transmit.index();
    let (umem, pool) = Umem::create(RING * 6 + 64, 2048)?;
    let input = XskQueue::open(&umem, &receive, 0, RING, args.io())?;
    let mut steering = Steering::load(&receive, AttachMode::Auto)?;
    steering.set_socket(0, &input)?;
    let output = match same {
        true => None,
        false => Some(XskQueue::open(&umem, &transmit, 0, RING, args.io())?),
    };
    let key =
        |protocol| ListenKey { address: args.vip.ip().into(), port: args.vip.port(), protocol };
    let vips = vec![key(Protocol::Udp), key(Protocol::Tcp)];
    steering.sync(&SteerRules { vips, ..SteerRules::default() })?;
    let mode = steering.attach()?;
    println!("ready, XDP {}", mode.as_str());
    let header = Header { to: args.to, from: transmit.mac() };
    Forwarder { input, output, pool, header, batch: args.batch.min(BATCH) }.run(&stop, args.sleep);
    Ok(())
}

struct Header {
    to: [u8; 6],
    from: [u8; 6],
}

struct Forwarder {
    input: XskQueue,
    output: Option<XskQueue>,
    pool: FramePool,
    header: Header,
    batch: usize,
}

impl Forwarder {
    /// Runs the worker's loop.
    fn run(&mut self, stop: &AtomicBool, may_sleep: bool) {
        let mut idle = 0_u32;
        while !stop.load(Ordering::Relaxed) {
            if self.poll() > 0 {
                idle = 0;
                continue;
            }
            idle = idle.saturating_add(1);
            if may_sleep && idle > IDLE_POLLS {
                wait([&self.input].into_iter().chain(&self.output), None, SLEEP_MS);
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Forwards one batch; returns the number of packets. The order of calls is the worker's.
    fn poll(&mut self) -> usize {
        let Self { input, output, pool, header, batch } = self;
        let mut frames = ArrayVec::<_, BATCH>::new();
        input.reclaim(pool);
        if let Some(output) = output {
            output.reclaim(pool);
        }
        let received = input.receive(*batch, |frame| frames.push(frame));
        for mut frame in frames {
            if let Some(addresses) = frame.data_mut().first_chunk_mut::<12>() {
                let (to, from) = addresses.split_at_mut(6);
                to.copy_from_slice(&header.to);
                from.copy_from_slice(&header.from);
            }
            let port = output.as_mut().unwrap_or(input);
            let refused = port.transmit(frame).err().and_then(|frame| {
                port.flush();
                port.reclaim(pool);
                port.transmit(frame).err()
            });
            if let Some(frame) = refused {
                pool.push(frame);
            }
        }
        input.refill(pool);
        if let Some(output) = output {
            output.refill(pool);
            output.flush();
        }
        input.flush();
        received
    }
}
