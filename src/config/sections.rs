//! The checked sections with their places, which the rules between sections look at.

use super::key_path::Placed;
use super::{Backend, Config, Nic, Vip};

/// The sections, while the rules between them are checked.
pub(super) struct Sections<'s> {
    /// The configuration as it would be handed out.
    pub(super) config: &'s Config,
    /// `[[nic]]`.
    pub(super) nics: &'s [Placed<Nic>],
    /// `[[vip]]`, each with its backends.
    pub(super) vips: &'s [(Placed<Vip>, Vec<Placed<Backend>>)],
}
