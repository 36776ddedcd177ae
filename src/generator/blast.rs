//! Sending from inside the kernel: BPF_PROG_RUN with live frames, counted by an XDP program at the
//! receiving NIC.
//!
//! This sends several times as many packets as AF_XDP in copy mode, but they carry neither sequence
//! number nor time. It measures packets sent, received and lost, and the affinity of the first
//! 65,536 flows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::draw::Distribution;
use super::engine::{EngineError, open_nics, templates};
use super::outcome::{Outcome, Sample};
use super::packet::{Segment, Template, flags};
use super::sampler::{LOOK, Progress, Sampler, Totals};
use super::settings::{Settings, Traffic};
use super::signature::Signature;
use super::tracker::Counts;
use super::tuple::Source;
use crate::xdp::cpu::{self, CpuError};
use crate::xdp::generate::{BlastSpec, Blaster, Sink, SinkCounters};
use crate::xdp::nic::Nic;
use crate::xdp::program::ProgramError;

/// Program runs in the first system call.
const FIRST_CHUNK: u32 = 1 << 14;
/// Target duration of the later system calls, in seconds. Only a signal ends a call early, and the
/// end of a call costs some 20 ms in which nothing is sent: the kernel tears down a page pool. The
/// program itself stops sending when the trial is over.
const CHUNK_S: f64 = 1.0;
/// Time without arrivals that ends a run, after the last packet was sent.
const QUIET: Duration = Duration::from_millis(100);
/// Longest wait for late arrivals after the last packet was sent.
const PATIENCE: Duration = Duration::from_secs(1);

/// A BPF_PROG_RUN generator, ready to run.
pub struct BlastEngine {
    settings: Settings,
    nic: Nic,
    sink: Sink,
    template: Template,
}

impl BlastEngine {
    /// Opens NICs and programs. Must be called in the network namespace of the NICs.
    ///
    /// # Errors
    /// [`EngineError`]; each states the remedy.
    pub fn open(settings: Settings) -> Result<Self, EngineError> {
        let (nic, backend) = open_nics(&settings)?;
        let template = templates(&settings, &nic)?.into_iter().next();
        let template = template.ok_or(EngineError::Template { size: 0 })?;
        let sink = Sink::attach(backend.as_ref().unwrap_or(&nic))?;
        Ok(Self { settings, nic, sink, template })
    }

    /// Runs a trial, like [`Engine::trial`](super::engine::Engine::trial).
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn trial(
        &mut self,
        rate: Option<f64>,
        duration: Duration,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Outcome, EngineError> {
        let before = self.sink.counters()?;
        let blasters = self.load(rate)?;
        let run = Run { start: Instant::now(), duration, stop };
        let (sent, samples) = self.run_all(blasters, &run, progress)?;
        let seconds = run.seconds().min(duration.as_secs_f64());
        let after = self.settled()?;
        let mut outcome = Outcome::new(&self.settings, rate);
        let received = Counts {
            received: after.packets - before.packets,
            bytes: after.bytes - before.bytes,
            ..Counts::default()
        };
        outcome.set_packets(seconds, (sent, sent * self.template.len() as u64), &received);
        outcome.affinity_violations = Some(after.violations - before.violations);
        outcome.samples = samples;
        Ok(outcome)
    }

    fn load(&self, rate: Option<f64>) -> Result<Vec<Blaster>, ProgramError> {
        let (frame, ip_sum, transport_sum) = prepared(&self.template, &self.settings);
        let workers = self.settings.workers;
        let spec = |index: u32| BlastSpec {
            nic: &self.nic,
            frame: &frame,
            ipv6: self.settings.layout.ipv6,
            tcp: self.settings.layout.tcp,
            flows: self.settings.flows,
            sequential: self.settings.distribution == Distribution::Sequential,
            client: self.settings.clients.first_tail(),
            ip_sum,
            transport_sum,
            interval: rate.map_or(0, |rate| interval(rate / f64::from(workers))),
            seed: super::draw::mix(self.settings.seed ^ u64::from(index) << 32),
        };
        (0..workers).map(|index| Blaster::load(&spec(index))).collect()
    }

    /// Runs all blasters; returns the number of packets sent, and the samples.
    fn run_all(
        &self,
        mut blasters: Vec<Blaster>,
        run: &Run<'_>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(u64, Vec<Sample>), EngineError> {
        let cores = &self.settings.cores;
        let first = self.sink.counters()?;
        let mut sampler = Sampler::new(run.duration);
        thread::scope(|scope| {
            let threads: Vec<_> = blasters
                .iter_mut()
                .enumerate()
                .map(|(index, blaster)| {
                    let core = cores.get(index).copied();
                    scope.spawn(move || blast(blaster, core, run))
                })
                .collect();
            while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(LOOK);
                sampler.look(totals(&first, &self.sink.counters()?, run.seconds()), progress);
            }
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| EngineError::Worker)?)
        })?;
        let sent: Result<u64, ProgramError> = blasters.iter().map(Blaster::sent).sum();
        Ok((sent?, sampler.samples))
    }

    /// Waits until nothing arrives any more, and returns the counters.
    fn settled(&self) -> Result<SinkCounters, ProgramError> {
        let start = Instant::now();
        let mut last = self.sink.counters()?;
        while start.elapsed() < PATIENCE {
            thread::sleep(QUIET);
            let now = self.sink.counters()?;
            if now == last {
                break;
            }
            last = now;
        }
        Ok(last)
    }
}

/// Time limits of one trial.
struct Run<'a> {
    start: Instant,
    duration: Duration,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    fn is_over(&self) -> bool {
        // Relaxed: the flag publishes nothing else.
        self.start.elapsed() >= self.duration || self.stop.load(Ordering::Relaxed)
    }

    fn left(&self) -> Duration {
        self.duration.saturating_sub(self.start.elapsed())
    }

    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// Sends in chunks until the time is over.
fn blast(blaster: &mut Blaster, core: Option<usize>, run: &Run<'_>) -> Result<(), EngineError> {
    core.map_or(Ok::<(), CpuError>(()), cpu::pin_to_core)?;
    let left = u64::try_from(run.left().as_nanos()).unwrap_or(u64::MAX);
    blaster.begin(cpu::monotonic_ns().saturating_add(left))?;
    let mut times = FIRST_CHUNK;
    while !run.is_over() {
        let start = Instant::now();
        blaster.run(times)?;
        times = next_chunk(times, start.elapsed(), run.left());
    }
    Ok(())
}

/// Returns the program runs for the next call, after `times` runs took `took`, with `left` to go.
#[expect(clippy::cast_possible_truncation, reason = "a float cast saturates")]
#[expect(clippy::cast_sign_loss, reason = "both are positive")]
fn next_chunk(times: u32, took: Duration, left: Duration) -> u32 {
    let per_second = f64::from(times) / took.as_secs_f64().max(1e-6);
    let chunk = (per_second * left.as_secs_f64().min(CHUNK_S)) as u32;
    // A call that was slow by chance must not make the next ones tiny.
    chunk.clamp(FIRST_CHUNK, times.saturating_mul(16))
}

/// Returns the packet before the program writes into it, and the sums that the program starts from.
fn prepared(template: &Template, settings: &Settings) -> (Vec<u8>, u32, u32) {
    let mut frame = template.bytes().to_vec();
    let flags = match settings.traffic {
        Traffic::Syn => flags::SYN,
        Traffic::Tcp | Traffic::Udp => flags::ACK,
    };
    let segment = Segment { sequence: 0, acknowledgement: 0, flags };
    let signature = Signature { flow: 0, sequence: 0, run: 0, time: 0 };
    // Without address, port and flow number, which the program adds.
    template.write(&mut frame, Source { tail: 0, port: 0 }, segment, &signature);
    let (ip_sum, mut sum) = template.sums();
    if settings.layout.tcp {
        sum = sum.add_u16(u16::from(flags));
    }
    (frame, u32::from(ip_sum.folded()), u32::from(sum.folded()))
}

/// Time between two packets, in 1/256 ns.
#[expect(clippy::cast_possible_truncation, reason = "a float cast saturates")]
#[expect(clippy::cast_sign_loss, reason = "rates are positive; a float cast saturates")]
fn interval(rate: f64) -> u64 {
    ((256e9 / rate).round() as u64).max(1)
}

/// Returns the counts of the sink since `first`. The number of packets sent is known only at the
/// end.
fn totals(first: &SinkCounters, now: &SinkCounters, time_s: f64) -> Totals {
    Totals {
        time_s,
        sent: 0,
        received: now.packets - first.packets,
        violations: now.violations - first.violations,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_to_their_time_and_end_with_the_run() {
        let ms = Duration::from_millis;
        let long = Duration::from_secs(10);
        assert_eq!(next_chunk(FIRST_CHUNK, ms(1), long), FIRST_CHUNK * 16, "step by step");
        assert_eq!(next_chunk(1_000_000, ms(100), long), 10_000_000);
        assert_eq!(next_chunk(1_000_000, ms(100), ms(50)), 500_000, "no longer than the run");
        assert_eq!(next_chunk(1_000_000, ms(100), ms(0)), FIRST_CHUNK);
        assert_eq!(next_chunk(FIRST_CHUNK, Duration::ZERO, long), FIRST_CHUNK * 16);
    }

    #[test]
    fn intervals_are_in_fractions_of_nanoseconds() {
        assert_eq!([1e6, 3e6, 1e12].map(interval), [256_000, 85_333, 1]);
    }

    #[test]
    fn a_prepared_packet_needs_address_port_and_flow_only() {
        use super::super::packet::Common;
        use super::super::packet::tests::common;
        use super::super::settings::Size;
        use super::super::settings::tests::request;
        use crate::wire::checksum::Delta;
        for (traffic, tcp) in [(Traffic::Udp, false), (Traffic::Tcp, true), (Traffic::Syn, true)] {
            let mut request = request();
            (request.traffic, request.size) = (traffic, Some(Size::Fixed(100)));
            let Ok(settings) = Settings::check(request) else { unreachable!("a good request") };
            let common: Common = common(false, tcp);
            let Some(template) = Template::new(&common, 100) else { unreachable!("it fits") };
            let (mut frame, ip_sum, transport_sum) = prepared(&template, &settings);
            // As generate.bpf.c does.
            let (address, port, flow) = (0xc612_8001_u32, 2000_u16, 0x0001_0203_u32);
            super::super::packet::put(&mut frame, 26, address.to_be_bytes());
            super::super::packet::put(&mut frame, 34, port.to_be_bytes());
            let payload = settings.layout.payload();
            super::super::packet::put(&mut frame, payload + 2, flow.to_be_bytes());
            let ip = Delta::default().add_u32(ip_sum).add_u32(address).checksum();
            let transport = Delta::default().add_u32(transport_sum).add_u32(address);
            let transport = transport.add_u16(port).add_u32(flow).checksum();
            super::super::packet::put(&mut frame, 24, ip.to_be_bytes());
            let at = settings.layout.transport_checksum();
            super::super::packet::put(&mut frame, at, transport.to_be_bytes());
            super::super::packet::tests::assert_checksums(&frame);
        }
    }
}
