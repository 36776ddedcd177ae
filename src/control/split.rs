//! Mega-proxies: sources (an address, or a network) that send more new flows than one backend
//! should carry, and the number of parts that they are split into.
//!
//! ```text
//! worker: new flow of a client-affine VIP --sample--> count per source, 2 s
//!    share of the VIP's new flows, rate --> would a backend get more than its share?
//!       no: one part          yes: 2, 4, 8 ... parts, until none does
//!    the same verdict twice: more parts        for 30 s: fewer parts
//! ```
//!
//! The VIP's own scheduler places each part, so the number of parts is right for the table in
//! force. Only new flows look at splits; pinned flows stay where they are. Pure: samples and flow
//! counts are parameters.

use hashbrown::HashMap;

use crate::config::Split;
use crate::forwarding::ForwardingTable;
use crate::forwarding::affinity::{ClientKey, MAX_SPLIT, Splits};
use crate::forwarding::scheduler::Pool;
use crate::forwarding::table::Vip;
use crate::net::{Address, BackendIndex, VipId};
use crate::stats::Sample;

/// Maximum number of sources counted in one window; later ones count only in the sum. A source that
/// is large enough to matter appears early.
const SOURCES: usize = 65_536;
/// Maximum number of split sources per VIP: more than this many cannot each be too large.
const SPLIT_SOURCES: usize = 64;
/// Maximum number of parts tried per VIP and window. Each part is one run of the scheduler, which
/// looks at every backend in the worst case, and the control thread has other work.
const TRIED: u32 = 4096;
/// Fraction of the permitted overload up to which a split fills a backend: the flows of a part, and
/// of the other clients, are not all alike.
const AIM: f64 = 0.6;
/// Windows in a row after which a split is removed or reduced: each change moves the source's
/// clients to other backends once more.
const QUIET: u8 = 15;

/// Counts of the sources of all sampled VIPs, with their splits.
#[derive(Debug, Default)]
pub struct Splitter {
    vips: HashMap<VipId, Sources>,
}

/// Sources of one VIP.
#[derive(Debug, Default)]
struct Sources {
    window: HashMap<Address, u32>,
    samples: u32,
    known: HashMap<Address, Known>,
}

/// A source that is split, or may be soon.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Base-2 logarithm of the number of parts.
    bits: u8,
    /// Bits that the last window wanted, if more than `bits`.
    more: Option<u8>,
    /// Windows in a row that wanted fewer bits, and the most bits that they wanted.
    less: (u8, u8),
    share: f64,
}

/// A source in one window.
#[derive(Debug, Clone)]
struct Source {
    address: Address,
    share: f64,
    bits: u8,
    /// Load of each backend from this source, as a share of the VIP's new flows.
    given: HashMap<BackendIndex, f64>,
}

/// Split of a source, for display.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shown {
    /// (Masked) address of the source.
    pub source: Address,
    /// Number of parts.
    pub parts: u16,
    /// Share of the VIP's new flows in the last window, 0..=1.
    pub share: f64,
}

impl Splitter {
    /// Counts a new flow.
    pub fn observe(&mut self, sample: Sample) {
        let sources = self.vips.entry(sample.vip).or_default();
        sources.samples = sources.samples.saturating_add(1);
        if let Some(count) = sources.window.get_mut(&sample.source) {
            *count += 1;
        } else if sources.window.len() < SOURCES {
            sources.window.insert(sample.source, 1);
        }
    }

    /// Ends a window of a VIP with `rate` new flows per second. Returns the new splits, if they
    /// differ from those of `vip`.
    pub fn judge(
        &mut self,
        vip: &Vip,
        table: &ForwardingTable,
        settings: &Split,
        rate: f64,
    ) -> Option<Splits> {
        let sources = self.vips.get_mut(&vip.id)?;
        let heavy = sources.heavy(settings, rate);
        let wanted = fit(heavy, vip, table, 1.0 + (settings.max_load - 1.0) * AIM);
        sources.settle(&wanted);
        sources.window.clear();
        sources.samples = 0;
        let splits = sources.splits();
        (splits != vip.splits).then_some(splits)
    }

    /// Keeps only the VIPs that `keep` selects.
    pub fn retain(&mut self, keep: impl Fn(VipId) -> bool) {
        self.vips.retain(|&vip, _| keep(vip));
    }

    /// Returns the splits of a VIP, the largest source first.
    pub fn shown(&self, vip: VipId) -> Vec<Shown> {
        let known = self.vips.get(&vip).into_iter().flat_map(|sources| &sources.known);
        let split = known.filter(|(_, known)| known.bits > 0);
        let shown = split.map(|(&source, known)| Shown {
            source,
            parts: 1 << known.bits,
            share: known.share,
        });
        let mut shown: Vec<Shown> = shown.collect();
        shown.sort_by(|a, b| b.share.total_cmp(&a.share));
        shown
    }
}

impl Sources {
    /// Returns the sources with enough new flows to overload anything (`min_rate`), the largest
    /// first, at most [`SPLIT_SOURCES`].
    fn heavy(&self, settings: &Split, rate: f64) -> Vec<Source> {
        let samples = f64::from(self.samples.max(1));
        let mut heavy: Vec<Source> = self
            .window
            .iter()
            .map(|(&address, &count)| (address, f64::from(count) / samples))
            .filter(|(_, share)| share * rate >= settings.min_rate)
            .map(|(address, share)| Source { address, share, bits: 0, given: HashMap::new() })
            .collect();
        heavy.sort_by(|a, b| b.share.total_cmp(&a.share));
        heavy.truncate(SPLIT_SOURCES);
        heavy
    }

    /// Applies the splits that this window wants, where they have been wanted for long enough.
    fn settle(&mut self, wanted: &[Source]) {
        for source in wanted.iter().filter(|source| source.bits > 0) {
            self.known.entry(source.address).or_default();
        }
        for (address, known) in &mut self.known {
            let source = wanted.iter().find(|source| source.address == *address);
            known.share = source.map_or(0.0, |source| source.share);
            known.settle(source.map_or(0, |source| source.bits));
        }
        self.known.retain(|_, known| known.bits > 0 || known.more.is_some());
    }

    fn splits(&self) -> Splits {
        let split = self.known.iter().filter(|(_, known)| known.bits > 0);
        Splits::new(split.map(|(&address, known)| (address, known.bits)).collect())
    }
}

impl Known {
    fn settle(&mut self, wanted: u8) {
        if wanted > self.bits {
            self.less = (0, 0);
            if let Some(last) = self.more.replace(wanted) {
                // Wanted twice in a row: the lower number counts.
                (self.bits, self.more) = (wanted.min(last), None);
            }
        } else {
            self.more = None;
            let (windows, most) = self.less;
            self.less = if wanted < self.bits { (windows + 1, most.max(wanted)) } else { (0, 0) };
            if self.less.0 >= QUIET {
                (self.bits, self.less) = (self.less.1, (0, 0));
            }
        }
    }
}

/// Splits the sources until no backend has more than `aim` times its due, nothing more can be
/// split, or [`TRIED`] parts were tried. Each step splits the source that burdens the fullest
/// backend most. The flows of all others are assumed to spread by weight.
fn fit(mut sources: Vec<Source>, vip: &Vip, table: &ForwardingTable, aim: f64) -> Vec<Source> {
    let due = due(vip, table);
    // Fewer than two backends leave nothing to spread.
    if due.len() < 2 || sources.is_empty() {
        return sources;
    }
    let others = (1.0 - sources.iter().map(|source| source.share).sum::<f64>()).max(0.0);
    let mut loads: HashMap<_, _> = due.iter().map(|(&it, due)| (it, others * due)).collect();
    for source in &mut sources {
        source.place(vip, table, &mut loads);
    }
    let mut tried = 0;
    loop {
        let over = |(backend, due): (&BackendIndex, &f64)| {
            (*backend, loads.get(backend).copied().unwrap_or(0.0) / due)
        };
        let fullest = due.iter().map(over).max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((backend, _)) = fullest.filter(|(_, load)| *load > aim) else { break };
        let burden = |source: &Source| source.given.get(&backend).copied().unwrap_or(0.0);
        let can = sources.iter_mut().filter(|source| source.bits < MAX_SPLIT);
        let source = can.max_by(|a, b| burden(a).total_cmp(&burden(b)));
        let Some(source) = source.filter(|source| burden(source) > 0.0) else { break };
        tried += 2 << source.bits;
        if tried > TRIED {
            break;
        }
        source.bits += 1;
        source.place(vip, table, &mut loads);
    }
    sources
}

/// Returns the share of new flows that is due to each backend that takes them.
fn due(vip: &Vip, table: &ForwardingTable) -> HashMap<BackendIndex, f64> {
    let candidates = vip.scheduler.candidates().iter();
    let taking = candidates.filter(|c| table.backend(c.backend).is_some_and(|b| b.takes_new));
    let weights: Vec<_> = taking.map(|c| (c.backend, f64::from(c.weight))).collect();
    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
    weights.into_iter().map(|(backend, weight)| (backend, weight / sum)).collect()
}

impl Source {
    /// Places each part with the VIP's scheduler, and moves the source's share of the backends'
    /// loads.
    fn place(
        &mut self,
        vip: &Vip,
        table: &ForwardingTable,
        loads: &mut HashMap<BackendIndex, f64>,
    ) {
        for (backend, given) in self.given.drain() {
            loads.entry(backend).and_modify(|load| *load -= given);
        }
        let parts = 1_u16 << self.bits;
        let mut placed = Placed { table, flows: HashMap::new(), turn: 0 };
        for part in parts..parts << 1 {
            let hash = ClientKey { client: self.address, part }.hash(table.secret());
            if let Some(backend) = vip.scheduler.scheduler().choose(hash, &mut placed) {
                *placed.flows.entry(backend).or_default() += 1;
                placed.turn += 1;
                let share = self.share / f64::from(parts);
                *self.given.entry(backend).or_default() += share;
                *loads.entry(backend).or_default() += share;
            }
        }
    }
}

/// Backends in service, with the parts placed so far as their only flows.
struct Placed<'t> {
    table: &'t ForwardingTable,
    flows: HashMap<BackendIndex, u64>,
    turn: u64,
}

impl Pool for Placed<'_> {
    fn accepts(&mut self, backend: BackendIndex) -> bool {
        self.table.backend(backend).is_some_and(|backend| backend.takes_new)
    }

    fn active(&self, backend: BackendIndex) -> u64 {
        self.flows.get(&backend).copied().unwrap_or(0)
    }

    fn active_total(&self) -> u64 {
        self.turn
    }

    fn turn(&self) -> u64 {
        self.turn
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;
    use crate::forwarding::table::testing::{backend, spec};
    use crate::forwarding::{Affinity, Local};

    const SETTINGS: Split = Split { max_load: 1.25, min_rate: 50.0 };

    fn table(backends: u16) -> ForwardingTable {
        split(backends, &Splits::default())
    }

    fn split(backends: u16, splits: &Splits) -> ForwardingTable {
        let mut spec = spec(0);
        spec.policy.affinity = Affinity::Client;
        spec.splits = splits.clone();
        spec.backends = (0..backends).map(backend).collect();
        ForwardingTable::build(1, [7; 16], Local::default(), &[spec], None)
    }

    fn address(number: u32) -> Address {
        Address::from_v4((0xc612_0000 + number).to_be_bytes())
    }

    /// Runs a window of two seconds with `flows` samples, `share` percent of them from
    /// `address(0)`.
    fn window(
        splitter: &mut Splitter,
        table: &ForwardingTable,
        flows: u32,
        share: u32,
    ) -> Option<Splits> {
        for number in 0..flows {
            let source = if number % 100 < share { 0 } else { 1 + number % 50_000 };
            splitter.observe(Sample { vip: VipId(0), source: address(source) });
        }
        let vip = table.vip(VipId(0)).unwrap();
        splitter.judge(vip, table, &SETTINGS, f64::from(flows) / 2.0)
    }

    #[test]
    fn a_source_that_is_too_large_is_split_when_it_was_so_twice() {
        let (table, mut splitter) = (table(8), Splitter::default());
        assert_eq!(window(&mut splitter, &table, 10_000, 40), None);
        let splits = window(&mut splitter, &table, 10_000, 40).unwrap();
        let bits = splits.bits(address(0));
        assert!((3..=9).contains(&bits), "{bits}");
        assert_eq!(splits.iter().count(), 1);
        let table = split(8, &splits);
        assert_eq!(window(&mut splitter, &table, 10_000, 40), None, "it stays so");
        let shown = splitter.shown(VipId(0));
        assert_eq!(shown.first().map(|shown| shown.parts), Some(1 << bits));
        assert!((shown.first().unwrap().share - 0.4).abs() < 0.001);
    }

    #[test]
    fn it_is_whole_again_after_half_a_minute_of_quiet_and_not_before() {
        let (table, mut splitter) = (table(8), Splitter::default());
        window(&mut splitter, &table, 10_000, 40);
        let table = split(8, &window(&mut splitter, &table, 10_000, 40).unwrap());
        for _ in 1..QUIET {
            assert_eq!(window(&mut splitter, &table, 10_000, 0), None);
        }
        assert_eq!(window(&mut splitter, &table, 10_000, 0), Some(Splits::default()));
        assert_eq!(splitter.shown(VipId(0)), []);
    }

    #[test]
    fn a_source_that_comes_and_goes_stays_split() {
        let (table, mut splitter) = (table(8), Splitter::default());
        window(&mut splitter, &table, 10_000, 40);
        let table = split(8, &window(&mut splitter, &table, 10_000, 40).unwrap());
        for round in 0..100 {
            let share = if round % 10 == 0 { 40 } else { 0 };
            assert_eq!(window(&mut splitter, &table, 10_000, share), None, "round {round}");
        }
    }

    #[test]
    fn sources_that_overload_no_backend_are_not_split() {
        let mut splitter = Splitter::default();
        for (name, backends, flows, share) in [
            ("too few flows to matter", 8, 100, 40),
            ("a small source", 8, 10_000, 1),
            ("one backend", 1, 10_000, 40),
            ("no backend", 0, 10_000, 40),
        ] {
            let table = table(backends);
            for _ in 0..3 {
                assert_eq!(window(&mut splitter, &table, flows, share), None, "{name}");
            }
        }
    }

    /// A window must not occupy the control thread for long.
    #[test]
    fn many_large_sources_take_bounded_time() {
        let (table, mut splitter) = (table(100), Splitter::default());
        let vip = table.vip(VipId(0)).unwrap();
        let mut judge = || {
            (0..64_000).for_each(|number| {
                splitter.observe(Sample { vip: VipId(0), source: address(number % 64) });
            });
            splitter.judge(vip, &table, &SETTINGS, 32_000.0)
        };
        assert_eq!(judge(), None);
        let parts = judge().unwrap().iter().map(|(_, bits)| 1 << bits).sum::<u32>();
        assert!((64..=TRIED).contains(&parts), "{parts}");
    }

    #[test]
    fn a_flood_of_addresses_takes_bounded_memory() {
        let mut splitter = Splitter::default();
        for number in 0..200_000 {
            splitter.observe(Sample { vip: VipId(0), source: address(number) });
        }
        assert_eq!(splitter.vips.get(&VipId(0)).unwrap().window.len(), SOURCES);
        splitter.retain(|_| false);
        assert!(splitter.vips.is_empty());
    }
}
