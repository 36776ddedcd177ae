//! Part of the stage rewrite: identifications of fragments with a translated source.

use crate::datapath::batch::{Part, Shape};
use crate::datapath::context::Context;
use crate::datapath::fragments;
use crate::xdp::umem::Frame;

/// The number that a fragment's datagram gets with its new source, where its own need not be unique.
#[inline]
pub(super) fn new_number(frame: &Frame, shape: &Shape, context: &Context<'_>) -> Option<u32> {
    let fragment = matches!(shape.part, Part::First | Part::Later);
    if fragment { fragments::number(frame, shape, context) } else { None }
}

/// Writes that number.
#[inline]
pub(super) fn renumber(frame: &mut Frame, shape: &Shape, number: Option<u32>) {
    if let Some(number) = number {
        fragments::renumber(frame, shape, number);
    }
}
