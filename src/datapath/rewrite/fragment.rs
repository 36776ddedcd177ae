//! Part of the stage rewrite: identifications of fragments with a translated source.

use crate::datapath::batch::{FragmentKind, HeaderLayout};
use crate::datapath::context::Context;
use crate::datapath::fragments;
use crate::xdp::umem::Frame;

/// Returns the identification of a fragment's datagram under its new source, where the sender's
/// number need not be unique.
#[inline]
pub(super) fn new_number(
    frame: &Frame,
    layout: &HeaderLayout,
    context: &Context<'_>,
) -> Option<u32> {
    let fragment = matches!(layout.fragment, FragmentKind::First | FragmentKind::Later);
    if fragment { fragments::number(frame, layout, context) } else { None }
}

/// Writes the identification, if there is one.
#[inline]
pub(super) fn renumber(frame: &mut Frame, layout: &HeaderLayout, number: Option<u32>) {
    if let Some(number) = number {
        fragments::renumber(frame, layout, number);
    }
}
