//! The checked sections with their positions, input of the rules between sections.

use super::checked::{Backend, Config, Nic, Vip};
use super::key_path::Located;

/// The sections, while the rules between them are checked.
pub(super) struct Sections<'s> {
    /// The configuration as it would be returned.
    pub(super) config: &'s Config,
    /// `[[nic]]`.
    pub(super) nics: &'s [Located<Nic>],
    /// `[[vip]]`, each with its backends.
    pub(super) vips: &'s [(Located<Vip>, Vec<Located<Backend>>)],
}
