//! Return hops: next hops towards the clients of VIPs without pins, across all workers.
//!
//! ```text
//! hash of the client's address --> bucket, one line of four entries, the latest client first:
//!   (return hop:64  return hop xor hash:64) x 4
//! ```
//!
//! A reply without a pin carries only the client's address. The kernel cannot supply the next hop:
//! packets of VIPs bypass it, so that it knows neither the MAC of a client on the local network,
//! nor which of several routers the client's packets come by. So each datagram records its origin,
//! as a pin would, and the reply returns there.
//!
//! Fixed memory, any number of readers and writers, no lock. The two words of an entry check each
//! other: words of two writers do not match, and count as no entry. A new client replaces the
//! client of its bucket that was silent for longest, so a flood of forged sources evicts a client
//! only if it fills the bucket between a datagram and its reply; that reply is then dropped, never
//! misdirected.
//!
//! Cost: one line per datagram, written only if something has changed, and one per reply.

use super::entry::ReturnHop;
use super::header::{Kind, TableError};
use super::memory::{Parts, TableMemory};
use crate::net::{Address, TableSecret};
use crate::sync::{AtomicU64, Ordering};
use crate::xdp::memory::Mapping;

/// The layout of the table, with the hash by which buckets are found.
const KIND: Kind = Kind { name: *b"rethops-", version: 1 };

/// Entries of a bucket: a cache line.
const ENTRIES: usize = 4;
/// Clients that a process knows at a time: 4 MiB. With a million new ones a second, each has a
/// quarter of a second for the reply to its datagram.
pub const CLIENTS: usize = 262_144;
/// Memory per client, in bytes.
pub const BYTES_PER_CLIENT: usize = size_of::<Entry>();

/// The table of return hops. See the module's documentation.
#[derive(Debug)]
pub struct ReturnHops {
    buckets: Mapping<Bucket>,
    secret: TableSecret,
}

crate::shareable_struct! {
    #[derive(Debug, Default)]
    #[repr(C, align(64))]
    struct Bucket {
        entries: [Entry; ENTRIES],
    }
}

#[cfg(not(holdfast_loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

crate::shareable_struct! {
    #[derive(Debug, Default)]
    #[repr(C)]
    struct Entry {
        hop: AtomicU64,
        check: AtomicU64,
    }
}

/// Contents of an entry: a client's tag (0: no client), and its return hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Noted {
    tag: u64,
    hop: u64,
}

impl Entry {
    #[inline]
    fn read(&self) -> Noted {
        // Relaxed: the words check each other.
        let hop = self.hop.load(Ordering::Relaxed);
        Noted { tag: hop ^ self.check.load(Ordering::Relaxed), hop }
    }

    #[inline]
    fn write(&self, Noted { tag, hop }: Noted) {
        self.hop.store(hop, Ordering::Relaxed);
        self.check.store(hop ^ tag, Ordering::Relaxed);
    }
}

impl ReturnHops {
    /// Takes over the table that an earlier process has left, or makes one for `clients` clients
    /// ([`BYTES_PER_CLIENT`] each). `secret` keys its hash, so that the clients of one bucket cannot
    /// be computed.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn open(
        memory: &dyn TableMemory,
        clients: usize,
        secret: &TableSecret,
    ) -> Result<Self, TableError> {
        let entries = clients.div_ceil(ENTRIES).max(1);
        let table = Parts { kind: KIND, name: "return_hops", entries, secret };
        // The words of an entry check each other: a half-written one counts as none.
        let (buckets, _) = table.open(memory, |_: &Bucket| ())?;
        Ok(Self { buckets, secret: secret.clone() })
    }

    /// Records the next hop from which a client's datagram came.
    #[inline]
    pub fn record(&self, client: Address, hop: ReturnHop) {
        let Some((Bucket { entries }, tag)) = self.bucket(client) else { return };
        let mut carried = Noted { tag, hop: hop.0 };
        if entries.first().is_some_and(|first| first.read() == carried) {
            return;
        }
        // The latest client comes first, and the others move back up to the first gap.
        for entry in entries {
            let here = entry.read();
            entry.write(carried);
            if here.tag == tag || here.tag == 0 {
                return;
            }
            carried = here;
        }
    }

    /// Returns the hop from which the last datagram of a client came, if it is still known.
    #[inline]
    pub fn find(&self, client: Address) -> Option<ReturnHop> {
        let (Bucket { entries }, tag) = self.bucket(client)?;
        let mut recorded = entries.iter().map(Entry::read);
        recorded.find(|recorded| recorded.tag == tag).map(|recorded| ReturnHop(recorded.hop))
    }

    #[inline]
    fn bucket(&self, client: Address) -> Option<(&Bucket, u64)> {
        let hash = self.secret.hash_words::<16>(&client.words());
        let number = (u128::from(hash) * self.buckets.len() as u128) >> 64;
        // 0 is the tag of an empty entry.
        Some((self.buckets.get(usize::try_from(number).ok()?)?, hash | 1))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::super::memory::Anonymous;
    use super::*;
    use crate::net::NicIndex;

    fn client(number: u32) -> Address {
        Address::from_v4(number.to_be_bytes())
    }

    fn hop(mac: u64) -> ReturnHop {
        ReturnHop::new(mac, NicIndex(1), None).unwrap()
    }

    #[test]
    fn the_last_hop_of_a_client_is_found() {
        let hops = ReturnHops::open(&Anonymous, 64, &TableSecret::new(1)).unwrap();
        assert_eq!(hops.find(client(1)), None);
        hops.record(client(1), hop(7));
        assert_eq!(hops.find(client(1)), Some(hop(7)));
        hops.record(client(1), hop(8));
        assert_eq!(hops.find(client(1)), Some(hop(8)));
        assert_eq!(hops.find(client(2)), None);
    }

    #[test]
    fn a_new_client_takes_the_place_of_the_longest_silent_one() {
        let hops = ReturnHops::open(&Anonymous, ENTRIES, &TableSecret::new(1)).unwrap();
        for number in 1..=4 {
            hops.record(client(number), hop(number.into()));
        }
        // The first client sends again, by another hop.
        hops.record(client(1), hop(10));
        hops.record(client(5), hop(5));
        let found: Vec<_> = (1..=5).map(|number| hops.find(client(number))).collect();
        let expected = [Some(hop(10)), None, Some(hop(3)), Some(hop(4)), Some(hop(5))];
        assert_eq!(found, expected);
    }

    /// Two writers and a reader in one bucket: no client is ever given the hop of another one.
    #[test]
    fn threads_never_give_a_client_the_hop_of_another() {
        let hops = Arc::new(ReturnHops::open(&Anonymous, ENTRIES, &TableSecret::new(1)).unwrap());
        thread::scope(|scope| {
            for worker in 0..2_u32 {
                let hops = &hops;
                scope.spawn(move || {
                    for round in 0..100_000_u32 {
                        let number = (round * 7 + worker * 3) % 8;
                        hops.record(client(number), hop(number.into()));
                    }
                });
            }
            for round in 0..100_000_u32 {
                let number = round % 8;
                let found = hops.find(client(number));
                assert!(found.is_none_or(|found| found == hop(number.into())), "{number}");
            }
        });
        let known = (0..8).filter(|&number| hops.find(client(number)).is_some()).count();
        assert!((1..=ENTRIES).contains(&known), "{known}");
    }
}
