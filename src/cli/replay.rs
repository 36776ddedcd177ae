//! `holdfast replay`: fate of a capture's packets, with the reasons.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write, stderr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::CliError;
use super::table::grouped;
use crate::config::{self, Config, Neighbours};
use crate::format::{counted, reason};
use crate::net::NicIndex;
use crate::replay::{Capture, Captured, Decision, Replay, Story, Verdict};

/// Note that is printed when no neighbours file is given.
const INVENTED: &str = "next hops are invented, every backend is up, and every frame is for the NIC \
                        that it came by: name a neighbours file for the real ones (--neighbours)";
/// File size in bytes from which a progress bar is shown.
const WORTH_A_BAR: u64 = 4 << 20;

/// Arguments of `holdfast replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Capture file: pcap or pcapng, of an Ethernet
    #[arg(value_name = "IN.pcap")]
    capture: PathBuf,
    /// Write packets sent, dropped and left to the kernel, with the reasons as packet comments
    #[arg(long, value_name = "OUT.pcapng")]
    out: Option<PathBuf>,
    /// Print one JSON document per packet, one per line
    #[arg(long)]
    json: bool,
    /// MACs and MTUs of NICs and backends, and the backends' states (TOML)
    #[arg(long, value_name = "FILE")]
    neighbours: Option<PathBuf>,
    /// NIC of the packets whose interface in the capture is not in the configuration; the first NIC
    /// by default
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
}

/// Replays a capture.
///
/// # Errors
/// A mistake in one of the files. The packets read before it have been printed.
pub fn replay(args: &ReplayArgs, colours: bool, out: &mut impl Write) -> Result<(), CliError> {
    spare_inputs(args)?;
    let config = config::load(&args.config)?;
    let neighbours = args.neighbours.as_deref();
    let neighbours = neighbours.map(|path| config::load_neighbours(path, &config)).transpose()?;
    let nic = nic(args, &config)?;
    let mut replay = Replay::new(&config, neighbours.as_ref())
        .map_err(|error| CliError::Replay(error.to_string()))?;
    let note = neighbours.as_ref().map_or_else(|| INVENTED.to_owned(), |n| unknown(&config, n));
    let interfaces = replay.interfaces().to_vec();
    let in_capture = |what: &dyn std::fmt::Display| {
        CliError::Replay(format!("{}: {what}", args.capture.display()))
    };
    let file = File::open(&args.capture).map_err(|error| in_capture(&reason(&error)))?;
    let bar = bar(&file);
    let capture = Capture::new(bar.wrap_read(file), interfaces.clone(), nic);
    let mut capture = capture.map_err(|error| in_capture(&error))?;
    let mut story = open_story(args, &interfaces, &note)?;
    // A terminal gets each line at once, a file gets larger blocks.
    let mut out = BufWriter::new(out);
    let mut printer = DecisionPrinter::new(args.json, colours, interfaces, &mut out);
    printer.begin(&note)?;
    let mut print = |captured: &Captured<'_>, decision: &Decision| {
        if let Some(story) = &mut story {
            story.write(captured, decision).map_err(|error| in_story(args, &error))?;
        }
        // A parked fragment is printed when it is no longer parked.
        if decision.verdict == Verdict::Parked { Ok(()) } else { printer.print(captured, decision) }
    };
    let end = loop {
        match capture.next_packet() {
            Ok(None) => break Ok(()),
            Err(error) => break Err(in_capture(&error)),
            Ok(Some(captured)) => {
                let decision = replay.packet(&captured);
                print(&captured, &decision)?;
                replay.late().iter().try_for_each(|it| print(&it.captured(), &it.decision))?;
            }
        }
    };
    replay.end().iter().try_for_each(|it| print(&it.captured(), &it.decision))?;
    bar.finish_and_clear();
    if let Some(story) = story {
        story.finish().map_err(|error| in_story(args, &error))?;
    }
    printer.end()?;
    out.flush()?;
    end
}

/// Rejects an `--out` that is one of the input files, which would be overwritten.
fn spare_inputs(args: &ReplayArgs) -> Result<(), CliError> {
    let file = |path: &Path| {
        let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some((metadata.dev(), metadata.ino()))
    };
    let Some((path, out)) = args.out.as_ref().and_then(|path| Some((path, file(path)?))) else {
        return Ok(());
    };
    let inputs = [Some(&args.capture), Some(&args.config), args.neighbours.as_ref()];
    if inputs.into_iter().flatten().any(|input| file(input) == Some(out)) {
        let path = path.display();
        return Err(CliError::Usage(format!(
            "--out {path}: this replay reads that file, and would write over it; name another one"
        )));
    }
    Ok(())
}

/// Returns a note about the backends that the neighbours file lacks; empty if it has all.
fn unknown(config: &Config, neighbours: &Neighbours) -> String {
    let all = config.vips.iter().flat_map(|vip| vip.backends.iter().map(move |one| (vip, one)));
    let mut missing = all.filter(|(_, one)| !neighbours.backends.contains_key(&one.address));
    let Some((vip, backend)) = missing.next() else { return String::new() };
    let more = match missing.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "no [[neighbour]] tells of {}/{} ({}){more}: without a next hop a backend gets nothing",
        vip.name, backend.name, backend.address
    )
}

fn in_story(args: &ReplayArgs, error: &dyn std::fmt::Display) -> CliError {
    let path = args.out.as_deref().unwrap_or(std::path::Path::new("-"));
    CliError::Replay(format!("{}: {error}", path.display()))
}

/// Returns the NIC of packets whose interface the capture does not name.
fn nic(args: &ReplayArgs, config: &Config) -> Result<NicIndex, CliError> {
    let Some(name) = &args.interface else { return Ok(NicIndex(0)) };
    let found = (0..).zip(&config.nics).find(|(_, nic)| nic.interface == *name);
    found.map(|(index, _)| NicIndex(index)).ok_or_else(|| {
        let names: Vec<&str> = config.nics.iter().map(|nic| nic.interface.as_str()).collect();
        CliError::Usage(format!(
            "--interface {name}: no [[nic]] of {}; there are: {}",
            args.config.display(),
            names.join(", ")
        ))
    })
}

fn open_story(
    args: &ReplayArgs,
    interfaces: &[String],
    note: &str,
) -> Result<Option<Story<BufWriter<File>>>, CliError> {
    let Some(path) = &args.out else { return Ok(None) };
    let file = File::create(path).map_err(|error| in_story(args, &reason(&error)))?;
    let story = Story::new(BufWriter::new(file), interfaces, note);
    Ok(Some(story.map_err(|error| in_story(args, &error))?))
}

/// Progress bar of the file, on a terminal and for a large file only.
fn bar(file: &File) -> ProgressBar {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let hidden = !stderr().is_terminal() || std::io::stdout().is_terminal();
    if hidden || length < WORTH_A_BAR {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let template = "replay {bar:30} {bytes} of {total_bytes}, {eta} left";
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| {
        // The template is known to be valid.
        ProgressStyle::default_bar()
    }))
}

/// Writes the output.
struct DecisionPrinter<'o, W: Write> {
    json: bool,
    colours: bool,
    interfaces: Vec<String>,
    out: &'o mut W,
    /// Time of the first packet.
    start: Option<Duration>,
    packets: u64,
    /// Packets by verdict and reason.
    sums: BTreeMap<(Verdict, &'static str), u64>,
}

impl<'o, W: Write> DecisionPrinter<'o, W> {
    fn new(json: bool, colours: bool, interfaces: Vec<String>, out: &'o mut W) -> Self {
        Self { json, colours, interfaces, out, start: None, packets: 0, sums: BTreeMap::new() }
    }

    fn begin(&mut self, note: &str) -> Result<(), CliError> {
        if !note.is_empty() {
            match self.json {
                // The output has one document per packet, and nothing else.
                true => writeln!(stderr(), "note: {note}")?,
                false => writeln!(self.out, "note: {note}\n")?,
            }
        }
        if !self.json {
            let line =
                line(["INDEX", "TIME", "VERDICT", "REASON", "VIP/BACKEND", "FLOW", "PACKET"]);
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }

    fn print(&mut self, captured: &Captured<'_>, decision: &Decision) -> Result<(), CliError> {
        if self.json {
            let text = decision.json(&self.interfaces).map_err(std::io::Error::from)?;
            return Ok(writeln!(self.out, "{text}")?);
        }
        let start = *self.start.get_or_insert(decision.time);
        self.packets += 1;
        let why = decision.reason.unwrap_or("-");
        *self.sums.entry((decision.verdict, why)).or_default() += 1;
        let time = decision.time.saturating_sub(start);
        let line = line([
            &decision.index.to_string(),
            &format!("{}.{:06}", time.as_secs(), time.subsec_micros()),
            decision.verdict.as_str(),
            why,
            &decision.place(),
            decision.flow.as_str(),
            &describe(captured.data),
        ]);
        match colour(decision.verdict).filter(|_| self.colours) {
            Some(colour) => writeln!(self.out, "\x1b[{colour}m{line}\x1b[0m")?,
            None => writeln!(self.out, "{line}")?,
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), CliError> {
        if self.json {
            return Ok(());
        }
        let packets = counted(self.packets, "packet");
        writeln!(self.out, "\n{packets}")?;
        for ((verdict, why), count) in &self.sums {
            let why = if *why == "-" { "" } else { why };
            let text = format!("{:>9}  {:<9}  {why}", grouped(*count), verdict.as_str());
            writeln!(self.out, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// Formats one line of the table. The column widths fit usual contents: the table is never in
/// memory as a whole.
fn line(cells: [&str; 7]) -> String {
    let [index, time, verdict, reason, place, flow, packet] = cells;
    format!("{index:>7}  {time:>12}  {verdict:<9}  {reason:<19}  {place:<15}  {flow:<7}  {packet}")
}

/// Returns the colour of a verdict, if it has one.
const fn colour(verdict: Verdict) -> Option<u8> {
    match verdict {
        Verdict::Transmit => None,
        Verdict::Reply => Some(32),
        Verdict::Drop => Some(31),
        Verdict::Kernel | Verdict::Truncated | Verdict::Parked => Some(90),
    }
}

/// Describes a packet as `198.51.100.7:40000 > 192.0.2.10:80 tcp S`, as far as its headers are
/// readable.
fn describe(packet: &[u8]) -> String {
    let Ok(sliced) = LaxSlicedPacket::from_ethernet(packet) else {
        return counted(packet.len(), "byte");
    };
    let mut text = String::new();
    let (source, destination, next, fragmented) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let (a, b) = (header.source_addr().to_string(), header.destination_addr().to_string());
            (a, b, ip.payload_ip_number().0, ip.payload().fragmented)
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let (a, b) = (header.source_addr(), header.destination_addr());
            let payload = ip.payload();
            (format!("[{a}]"), format!("[{b}]"), payload.ip_number.0, payload.fragmented)
        }
        Some(LaxNetSlice::Arp(_)) => return "arp".to_owned(),
        None => return link(packet),
    };
    // Writing to a string does not fail.
    let _ = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let (from, to) = (tcp.source_port(), tcp.destination_port());
            let flags = [
                (tcp.syn(), 'S'),
                (tcp.ack(), 'A'),
                (tcp.fin(), 'F'),
                (tcp.rst(), 'R'),
                (tcp.psh(), 'P'),
            ];
            let flags = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag);
            let flags: String = flags.collect();
            write!(text, "{source}:{from} > {destination}:{to} tcp {flags}")
        }
        Some(TransportSlice::Udp(udp)) => {
            let (from, to) = (udp.source_port(), udp.destination_port());
            write!(text, "{source}:{from} > {destination}:{to} udp")
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            write!(text, "{source} > {destination} icmp type {kind} code {code}")
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            write!(text, "{source} > {destination} icmpv6 type {kind} code {code}")
        }
        None if fragmented => write!(text, "{source} > {destination} protocol {next} fragment"),
        None => write!(text, "{source} > {destination} protocol {next}"),
    };
    text.trim_end().to_owned()
}

/// Describes a packet that is not IP.
fn link(packet: &[u8]) -> String {
    match packet.get(12..14) {
        Some([a, b]) => format!("ethertype 0x{a:02x}{b:02x}, {}", counted(packet.len(), "byte")),
        _ => counted(packet.len(), "byte"),
    }
}
