//! `holdfast generate`: the traffic generator (docs/TRAFFICGEN.md).

use std::fs;
use std::io::{Write, stderr};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::error::CliError;
use crate::generator::blast::BlastEngine;
use crate::generator::draw::Distribution;
use crate::generator::engine::{Engine, EngineError};
use crate::generator::outcome::Outcome;
use crate::generator::report::{chart, csv, html, number, table};
use crate::generator::sampler::Progress;
use crate::generator::search::Search;
use crate::generator::settings::{Method, Rate, Request, Settings, Size, Traffic, float_in_range};

/// Path that stands for the standard output.
const STDOUT: &str = "-";

/// Arguments of `holdfast generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// NIC to send from: the clients' side
    #[arg(long, value_name = "NIC")]
    pub interface: String,
    /// NIC of the backends' side, if it is a different one
    #[arg(long, value_name = "NIC")]
    pub receive: Option<String>,
    /// Address and port of the VIP.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = target)]
    #[arg(help = "The VIP, as 192.0.2.10:80 or [2001:db8::10]:80")]
    pub target: SocketAddr,
    /// Addresses of the clients [default: 198.18.128.0/17 or 2001:db8:1::/64]
    #[arg(long, value_name = "CIDR", value_parser = super::flows::prefix)]
    pub clients: Option<IpNet>,
    /// Kind of packets; with tcp the generator is client and server, with real connections
    #[arg(long, value_name = "WHAT", default_value = "udp")]
    pub protocol: Protocol,
    /// Send method; prog-run is faster and measures less
    #[arg(long, value_name = "HOW", default_value = "af-xdp")]
    pub method: SendMethod,
    /// Concurrent flows, 1 to 10000000
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub flows: u64,
    /// Distribution of packets over flows
    #[arg(long, value_name = "LAW", default_value = "uniform")]
    pub distribution: Law,
    /// Exponent of zipf
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub zipf_exponent: f64,
    /// Flows that end and are replaced by new ones, per second
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub new_flows: f64,
    /// Bytes of a frame with FCS, 64 to 9000, or imix [default: the shortest with which everything
    /// is measured: 64; IPv6 84; TCP 76; TCP over IPv6 96]
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub size: Option<Size>,
    /// 500k, 1.5Mpps, 10Gbit, or max; with --search, the highest rate to try
    #[arg(long, value_name = "RATE", default_value = "max", value_parser = number::rate)]
    pub rate: Rate,
    /// Length of the run, or of each trial of a search, in seconds, 0.1 to 3600
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub seconds: f64,
    /// Length of the warm-up in seconds, which is not measured (except for affinity)
    #[arg(long, value_name = "S", default_value_t = 0.5)]
    pub warm_up: f64,
    /// Threads, each with a queue of each NIC
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub workers: u64,
    /// Cores of the workers, such as 0,2 [default: left to the kernel]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// Let backends reply to UDP packets (they always reply to TCP)
    #[arg(long)]
    pub replies: bool,
    /// Destination MAC [default: the next hop to the target, by the kernel's neighbours]
    #[arg(long, value_name = "MAC", value_parser = mac)]
    pub next_hop: Option<[u8; 6]>,
    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Search for the highest rate without loss (RFC 2544, 26.1)
    #[arg(long)]
    pub search: bool,
    /// Highest ratio of lost packets that passes a trial, with --search
    #[arg(long, value_name = "RATIO", default_value_t = 0.0)]
    pub loss_bound: f64,
    /// Precision of the search, relative to the rate
    #[arg(long, value_name = "RATIO", default_value_t = 0.01)]
    pub resolution: f64,
    /// One JSON document instead of the table, or into FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    pub json: Option<PathBuf>,
    /// CSV over time (with --search: by trial) instead of the table, or into FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    pub csv: Option<PathBuf>,
    /// Report with charts in one file: .html or .svg
    #[arg(long, value_name = "FILE", value_parser = report)]
    pub report: Option<PathBuf>,
    /// Permit addresses outside the documentation, benchmarking and private ranges
    #[arg(long)]
    pub i_own_this_network: bool,
}

/// Kind of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// UDP datagrams
    Udp,
    /// TCP connections from SYN to FIN
    Tcp,
    /// TCP SYNs and nothing else
    Syn,
}

/// Method to send packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SendMethod {
    /// AF_XDP sockets
    AfXdp,
    /// BPF_PROG_RUN with live frames, inside the kernel
    ProgRun,
}

/// Distribution of packets over flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Law {
    /// At random, all flows alike
    Uniform,
    /// At random, the k-th flow in proportion to 1/k^S
    Zipf,
    /// One flow after the other
    Sequential,
}

impl GenerateArgs {
    fn request(&self) -> Request {
        Request {
            interface: self.interface.clone(),
            receive: self.receive.clone(),
            target: self.target,
            clients: self.clients,
            traffic: match self.protocol {
                Protocol::Udp => Traffic::Udp,
                Protocol::Tcp => Traffic::Tcp,
                Protocol::Syn => Traffic::Syn,
            },
            method: match self.method {
                SendMethod::AfXdp => Method::AfXdp,
                SendMethod::ProgRun => Method::ProgRun,
            },
            flows: self.flows,
            distribution: match self.distribution {
                Law::Uniform => Distribution::Uniform,
                Law::Zipf => Distribution::Zipf { exponent: self.zipf_exponent },
                Law::Sequential => Distribution::Sequential,
            },
            new_flows: self.new_flows,
            size: self.size,
            rate: self.rate,
            seconds: self.seconds,
            warm_up: self.warm_up,
            workers: self.workers,
            cores: self.cores.clone(),
            replies: self.replies,
            next_hop: self.next_hop,
            seed: self.seed,
            own_network: self.i_own_this_network,
        }
    }

    fn check_search(&self) -> Result<(), crate::generator::settings::Refusal> {
        float_in_range("--loss-bound", self.loss_bound, (0.0, 0.5), "")?;
        float_in_range("--resolution", self.resolution, (0.0001, 0.5), "").map(drop)
    }
}

fn target(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let hint = match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => format!("{ip}:80"),
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:80"),
            Err(_) => "192.0.2.10:80 or [2001:db8::10]:80".to_owned(),
        };
        format!("write address and port, such as {hint}")
    })
}

fn size(text: &str) -> Result<Size, String> {
    if text == "imix" {
        return Ok(Size::Imix);
    }
    text.parse().map(Size::Fixed).map_err(|_| "write bytes, such as 64, or imix".to_owned())
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> =
        text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    let mac = bytes.ok().and_then(|bytes| bytes.try_into().ok());
    mac.ok_or_else(|| "write a MAC, such as 02:00:00:00:00:01".to_owned())
}

fn report(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let known = path.extension().is_some_and(|ending| ending == "html" || ending == "svg");
    if known { Ok(path) } else { Err("name a file that ends in .html or .svg".to_owned()) }
}

/// A generator with one of the send methods.
enum Generator {
    AfXdp(Box<Engine>),
    ProgRun(Box<BlastEngine>),
}

impl Generator {
    fn open(settings: Settings) -> Result<Self, EngineError> {
        Ok(match settings.method {
            Method::AfXdp => Self::AfXdp(Box::new(Engine::open(settings)?)),
            Method::ProgRun => Self::ProgRun(Box::new(BlastEngine::open(settings)?)),
        })
    }

    fn trial(
        &mut self,
        rate: Option<f64>,
        duration: Duration,
        stop: &AtomicBool,
    ) -> Result<Outcome, EngineError> {
        match self {
            Self::AfXdp(engine) => engine.trial(rate, duration, stop, &mut show_progress),
            Self::ProgRun(engine) => engine.trial(rate, duration, stop, &mut show_progress),
        }
    }

    fn close(&mut self, rate: Option<f64>) -> Result<(), EngineError> {
        match self {
            Self::AfXdp(engine) => engine.close(rate),
            Self::ProgRun(_) => Ok(()),
        }
    }
}

/// Generates, measures and reports. Progress goes to the standard error stream. SIGINT and SIGTERM
/// end the run early, with a report of the measurements so far.
///
/// # Errors
/// [`CliError::Generate`]: the settings are refused, or not possible on this machine.
pub fn generate(args: &GenerateArgs, out: &mut impl Write) -> Result<(), CliError> {
    let failed = |error: EngineError| CliError::Generate(error.to_string());
    let refused =
        |error: crate::generator::settings::Refusal| CliError::Generate(error.to_string());
    let settings = Settings::check(args.request()).map_err(refused)?;
    args.check_search().map_err(refused)?;
    check_outputs(args)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let (rate, duration, warm_up) = (settings.rate_pps, settings.duration, settings.warm_up);
    let mut generator = Generator::open(settings).map_err(failed)?;
    let mut early_violations = 0;
    if !warm_up.is_zero() {
        let outcome = generator.trial(rate, warm_up, &stop).map_err(failed)?;
        early_violations = outcome.affinity_violations.unwrap_or(0);
    }
    let mut outcome = if args.search {
        search(args, &mut generator, rate, duration, &stop).map_err(failed)?
    } else {
        generator.trial(rate, duration, &stop).map_err(failed)?
    };
    if let Some(violations) = &mut outcome.affinity_violations {
        *violations += early_violations;
    }
    generator.close(rate.or(Some(outcome.pps_sent).filter(|&pps| pps > 0.0))).map_err(failed)?;
    write_reports(args, &outcome, out)
}

fn search(
    args: &GenerateArgs,
    generator: &mut Generator,
    highest: Option<f64>,
    duration: Duration,
    stop: &AtomicBool,
) -> Result<Outcome, EngineError> {
    let search = Search { loss_bound: args.loss_bound, resolution: args.resolution, highest };
    // Affinity must hold over the whole search, not only in its best trial.
    let mut violations = None;
    let trial = |rate: Option<f64>| {
        let outcome = generator.trial(rate, duration, stop)?;
        report_trial(rate, &outcome, args.loss_bound);
        violations = outcome.affinity_violations.map(|now| now + violations.unwrap_or(0));
        Ok::<_, EngineError>(outcome)
    };
    // Relaxed: the flag publishes nothing else.
    let found = search.run(trial, || stop.load(Ordering::Relaxed))?;
    let outcome = found.unwrap_or_default();
    Ok(Outcome { affinity_violations: violations, ..outcome })
}

/// Prints a line of progress, once per second.
fn show_progress(progress: &Progress) {
    let sample = &progress.sample;
    let sent = if sample.pps_sent > 0.0 {
        format!("{}pps sent, ", number::short(sample.pps_sent))
    } else {
        String::new()
    };
    // The run continues even if the progress cannot be printed.
    let _ = writeln!(
        stderr(),
        "{:4.0} of {:.0} s: {sent}{}pps received, {} missing, {} affinity violations",
        sample.time_s,
        progress.of_s,
        number::short(sample.pps_received),
        progress.missing,
        sample.affinity_violations,
    );
}

fn report_trial(rate: Option<f64>, outcome: &Outcome, bound: f64) {
    let offered = rate.map_or("max".to_owned(), |pps| format!("{}pps", number::short(pps)));
    let verdict = if outcome.loss_ratio <= bound { "at most the bound" } else { "too much" };
    // The search continues even if the line cannot be printed.
    let _ = writeln!(
        stderr(),
        "trial at {offered}: {}pps sent, {} lost, {verdict}",
        number::short(outcome.pps_sent),
        outcome.lost,
    );
}

/// Checks that the reports can be written: better known before the first packet than after the
/// last.
fn check_outputs(args: &GenerateArgs) -> Result<(), CliError> {
    let stdout = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new(STDOUT));
    if stdout(&args.json) && stdout(&args.csv) {
        let what = "--json and --csv cannot both go to the standard output; name a file behind one";
        return Err(CliError::Generate(what.to_owned()));
    }
    let files = [&args.json, &args.csv, &args.report].into_iter().flatten();
    for path in files.filter(|path| *path != Path::new(STDOUT)) {
        let opened = fs::OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|error| {
            CliError::Generate(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    Ok(())
}

fn write_reports(
    args: &GenerateArgs,
    outcome: &Outcome,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let mut printed = false;
    if let Some(path) = &args.json {
        let document = serde_json::to_string(outcome)
            .map_err(|error| CliError::Generate(format!("cannot write JSON: {error}")))?;
        printed |= put(path, &format!("{document}\n"), out)?;
    }
    if let Some(path) = &args.csv {
        printed |= put(path, &csv::csv(outcome), out)?;
    }
    if let Some(path) = &args.report {
        let svg = path.extension().is_some_and(|ending| ending == "svg");
        let text = if svg { chart::combined(outcome) } else { html::html(outcome) };
        put(path, &text, out)?;
    }
    if !printed {
        out.write_all(table::table(outcome).as_bytes())?;
    }
    Ok(())
}

/// Prints `text` or writes it to a file; returns true if it was printed.
fn put(path: &Path, text: &str, out: &mut impl Write) -> Result<bool, CliError> {
    if path == Path::new(STDOUT) {
        out.write_all(text.as_bytes())?;
        return Ok(true);
    }
    fs::write(path, text)
        .map_err(|error| CliError::Generate(format!("cannot write {}: {error}", path.display())))?;
    Ok(false)
}
