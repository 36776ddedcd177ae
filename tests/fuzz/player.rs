//! A whole worker on fake rings, and the conditions that hold after every packet.

use std::cell::RefCell;
use std::time::Duration;

use holdfast::config::{self, Config};
use holdfast::net::NicIndex;
use holdfast::replay::{Captured, Decision, Replay, Sent, Verdict};

use crate::checksum::{self, Sums};

/// Configurations, by mode, of the conformance pack (tests/conformance/world.py), and one of VIPs with
/// `syn_proxy`.
const WORLDS: [(&str, &str); 7] = [
    ("dsr", include_str!("worlds/dsr.toml")),
    ("nat", include_str!("worlds/nat.toml")),
    ("full_nat", include_str!("worlds/full_nat.toml")),
    ("proxy", include_str!("worlds/proxy.toml")),
    ("ipip", include_str!("worlds/ipip.toml")),
    ("gue", include_str!("worlds/gue.toml")),
    ("syn_proxy", include_str!("worlds/syn_proxy.toml")),
];
/// Between two inputs: all flows, clients and path MTUs have expired.
const REST: Duration = Duration::from_secs(24 * 3600);

/// A worker in one mode. Its packet memory is never freed, so it serves all inputs.
pub struct Player {
    replay: Replay,
    time: Duration,
    frames: usize,
}

thread_local! {
    static PLAYERS: RefCell<[Option<Player>; WORLDS.len()]> = const { RefCell::new([const { None }; WORLDS.len()]) };
}

/// Runs `play` on the worker of a mode, which has no flows.
pub fn with_player(mode: u8, play: impl FnOnce(&mut Player)) {
    let index = usize::from(mode) % WORLDS.len();
    PLAYERS.with_borrow_mut(|players| {
        let player = players[index].get_or_insert_with(|| Player::new(WORLDS[index]));
        player.time += REST;
        play(player);
        player.end();
    });
}

impl Player {
    fn new((mode, text): (&str, &str)) -> Self {
        let config: Config = config::parse(text, mode).unwrap();
        let neighbours = include_str!("worlds/neighbours.toml");
        let neighbours = config::parse_neighbours(neighbours, "neighbours.toml", &config).unwrap();
        let replay = Replay::new(&config, Some(&neighbours)).unwrap();
        let frames = replay.frames();
        Self { replay, time: Duration::from_secs(1), frames }
    }

    /// Lets time pass.
    pub fn wait(&mut self, time: Duration) {
        self.time += time;
    }

    /// Delivers a packet; checks the decision, and returns it.
    pub fn deliver(&mut self, nic: u8, data: &[u8]) -> Decision {
        let original_len = u32::try_from(data.len()).unwrap();
        let nic = NicIndex(nic % 2);
        let decision = self.replay.packet(&Captured { nic, time: self.time, original_len, data });
        check(&decision, data);
        decision
    }

    /// Ends an input: no fragment waits any longer, every packet is in one counter, and no frame is
    /// lost.
    fn end(&mut self) {
        for late in self.replay.late().into_iter().chain(self.replay.end()) {
            check(&late.decision, late.captured().data);
            assert_ne!(late.decision.verdict, Verdict::Parked);
        }
        // More than the patience with fragments, which `end` counts from the last packet.
        self.time += Duration::from_secs(60);
        let stats = self.replay.stats();
        let named = |wanted: &str| {
            stats.named().find(|(name, _)| *name == wanted).map(|(_, value)| value).unwrap()
        };
        let dropped: u64 = stats.drops().map(|(_, count)| count).sum();
        let ended = named("transmitted") + named("handed_over") + named("answered") + dropped;
        assert_eq!(named("received"), ended, "each packet ends in one counter");
        assert_eq!(self.replay.frames(), self.frames, "lost frames");
    }
}

fn check(decision: &Decision, data: &[u8]) {
    match decision.verdict {
        Verdict::Transmit => assert!(!decision.sent.is_empty(), "{decision:?}"),
        Verdict::Drop => assert!(decision.reason.is_some(), "no reason: {decision:?}"),
        _ => {}
    }
    // Damage stays visible: it is not for holdfast to repair.
    if checksum::check(data) == Sums::Right {
        for Sent { bytes, .. } in &decision.sent {
            let sums = checksum::check(bytes);
            assert_ne!(sums, Sums::Wrong, "in {data:02x?}\nout {bytes:02x?}\n{decision:?}");
        }
    }
}
