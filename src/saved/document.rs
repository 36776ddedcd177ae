//! The registry file: what the tables refer to, as text with a checksum.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::control::saved::SavedRegistry;
use crate::flow::memory::boot;

/// First word of the file.
const MAGIC: &str = "holdfast-state";
/// Version of the document. A version reads its own documents and those of the one before.
const VERSION: u32 = 2;
/// Version of a document without splices, which the version before can continue with, too.
const UNSPLICED: u32 = 1;

/// What the tables of a set refer to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Version of the document.
    pub version: u32,
    /// Boot ID of the machine.
    pub boot: [u64; 2],
    /// Number of the set of tables.
    pub set: u32,
    /// Seed of the hashes of the set.
    pub seed: u64,
    /// Facts on which the contents of the tables depend.
    pub facts: Facts,
    /// VIPs and backends.
    pub registry: SavedRegistry,
}

/// Facts on which the contents of the tables depend. The set goes on in place only if they are the
/// same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Number of workers: each has a flow table, and the SNAT ports that it owns.
    pub workers: usize,
    /// Flows of each family in a flow table.
    pub flows: usize,
    /// Names of the NICs: return hops contain their numbers.
    pub nics: Vec<String>,
    /// SNAT addresses, and the first and the last SNAT port.
    pub snat: (Vec<IpAddr>, u16, u16),
    /// Size of the clients table.
    pub clients: usize,
    /// Size of the fragment table.
    pub datagrams: usize,
    /// Size of the table of return hops.
    pub return_hops: usize,
}

impl Document {
    /// Creates the document of this boot.
    pub fn new(set: u32, seed: u64, facts: Facts, registry: SavedRegistry) -> Self {
        let version = if registry.is_spliced() { VERSION } else { UNSPLICED };
        Self { version, boot: boot(), set, seed, facts, registry }
    }

    /// Returns the text of the file.
    ///
    /// # Errors
    /// None is expected.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let text = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        Ok([format!("{MAGIC} {:016x}\n", checksum(&text)).as_bytes(), &text].concat())
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub fn of_bytes(bytes: &[u8]) -> Result<Self, String> {
        let newline = bytes.iter().position(|&byte| byte == b'\n').ok_or("it is cut short")?;
        let (head, text) = bytes.split_at_checked(newline + 1).ok_or("it is cut short")?;
        if *head != *format!("{MAGIC} {:016x}\n", checksum(text)).as_bytes() {
            return Err("its checksum is wrong".to_owned());
        }
        /// The part that every version has.
        #[derive(Deserialize)]
        struct Any {
            version: u32,
            boot: [u64; 2],
        }
        let wrong = |error: serde_json::Error| format!("it is malformed: {error}");
        let any: Any = serde_json::from_slice(text).map_err(wrong)?;
        if !(UNSPLICED..=VERSION).contains(&any.version) {
            return Err(format!(
                "it has version {}, and this holdfast reads versions {UNSPLICED} to {VERSION}",
                any.version
            ));
        }
        if any.boot != boot() {
            return Err("it was written before this machine was booted".to_owned());
        }
        serde_json::from_slice(text).map_err(wrong)
    }
}

/// Detects damage, not intent.
fn checksum(text: &[u8]) -> u64 {
    SipHasher13::new().hash(text)
}
