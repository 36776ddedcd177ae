//! A bare AF_XDP layer-2 forwarder: holdfast's own rings with every stage left out.
//!
//! What a worker is measured against on a NIC (`scripts/pps`): receive on one queue, write the MAC
//! addresses, transmit. It steers by the same XDP program, by one rule.
//!
//! ```sh
//! cargo bench --bench bare -- --receive eth0 --transmit eth0 --vip 192.0.2.10:80 \
//!     --to 02:00:00:00:02:11 --core 1 --seconds 5
//! ```

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Parser;
use holdfast::flow::Protocol;
use holdfast::forwarding::ListenKey;
use holdfast::xdp::cpu;
use holdfast::xdp::nic::Nic;
use holdfast::xdp::port::Port;
use holdfast::xdp::program::{AttachMode, SteerRules, Steering};
use holdfast::xdp::socket::BindMode;
use holdfast::xdp::umem::{FramePool, Umem};

const RING: u32 = 2048;
const BATCH: usize = 64;

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
    /// How long
    #[arg(long)]
    seconds: u64,
    /// cargo bench adds this
    #[arg(long, hide = true)]
    bench: bool,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> =
        text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| format!("{text}: no MAC"))
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` starts it without arguments: there is nothing to measure then.
    if std::env::args().len() <= 2 {
        println!("bare: needs a NIC; see scripts/pps");
        return Ok(());
    }
    let args = Args::parse();
    cpu::pin_to_core(args.core)?;
    let (receive, transmit) = (Nic::open(&args.receive)?, Nic::open(&args.transmit)?);
    let same = receive.index() == transmit.index();
    let (umem, mut pool) = Umem::create(RING * 6 + 64, 2048)?;
    let mut input = Port::open(&umem, &receive, 0, RING, BindMode::Auto)?;
    let mut output = match same {
        true => None,
        false => Some(Port::open(&umem, &transmit, 0, RING, BindMode::Auto)?),
    };
    let mut steering = Steering::load(&receive, AttachMode::Auto)?;
    steering.set_socket(0, &input)?;
    let key =
        |protocol| ListenKey { address: args.vip.ip().into(), port: args.vip.port(), protocol };
    let vips = vec![key(Protocol::Udp), key(Protocol::Tcp)];
    steering.sync(&SteerRules { vips, ..SteerRules::default() })?;
    let mode = steering.attach()?;
    let header = Header { to: args.to, from: transmit.mac() };
    let started = Instant::now();
    let mut forwarded = 0;
    while started.elapsed() < Duration::from_secs(args.seconds) {
        for _ in 0..256 {
            forwarded += poll(&mut input, output.as_mut(), &mut pool, &header);
        }
    }
    let pps = forwarded as f64 / started.elapsed().as_secs_f64();
    println!("{{\"forwarded\":{forwarded},\"pps\":{pps:.0},\"xdp\":\"{}\"}}", mode.as_str());
    Ok(())
}

struct Header {
    to: [u8; 6],
    from: [u8; 6],
}

/// Forwards one batch; the order of calls is the worker's.
fn poll(
    input: &mut Port,
    mut output: Option<&mut Port>,
    pool: &mut FramePool,
    header: &Header,
) -> u64 {
    let mut frames = arrayvec::ArrayVec::<_, BATCH>::new();
    input.reclaim(pool);
    if let Some(output) = &mut output {
        output.reclaim(pool);
    }
    input.receive(BATCH, |frame| frames.push(frame));
    let mut sent = 0;
    for mut frame in frames {
        if let Some(addresses) = frame.data_mut().first_chunk_mut::<12>() {
            let (to, from) = addresses.split_at_mut(6);
            to.copy_from_slice(&header.to);
            from.copy_from_slice(&header.from);
        }
        let port = output.as_deref_mut().unwrap_or(input);
        let refused = port.transmit(frame).err().and_then(|frame| {
            port.flush();
            port.reclaim(pool);
            port.transmit(frame).err()
        });
        match refused {
            Some(frame) => pool.push(frame),
            None => sent += 1,
        }
    }
    input.flush();
    if let Some(output) = output {
        output.flush();
    }
    input.refill(pool);
    sent
}
