//! Ethernet II with up to two VLAN tags: addressing a frame to its next hop.
//!
//! ```text
//! untagged   dst:6 src:6                 type:2 payload
//! tagged     dst:6 src:6 tags:4 or 8     type:2 payload          see vlan
//! ```

use crate::net::vlan::Tags;
use crate::xdp::umem::Frame;

/// Writes the MAC addresses of the frame and replaces its VLAN tags with those of its next hop.
///
/// `tags` are the present tags of the frame; their priorities are kept. Returns false, with the
/// frame unchanged, if a tag must be added and the frame lacks headroom for it.
#[inline(always)]
pub fn readdress(
    frame: &mut Frame,
    tags: Option<Tags>,
    wanted: Option<Tags>,
    dst: &[u8; 6],
    src: &[u8; 6],
) -> bool {
    if (tags.is_some() || wanted.is_some()) && !retag(frame, tags, wanted) {
        return false;
    }
    let data = frame.data_mut();
    if let Some((to, rest)) = data.split_first_chunk_mut::<6>()
        && let Some(from) = rest.first_chunk_mut::<6>()
    {
        *to = *dst;
        *from = *src;
    }
    true
}

/// Resizes the frame for the wanted tags and writes them. The bytes in front of them are invalid
/// afterwards.
#[inline(never)]
fn retag(frame: &mut Frame, tags: Option<Tags>, wanted: Option<Tags>) -> bool {
    let len = |tags: Option<Tags>| tags.map_or(0, Tags::len);
    let (old, new) = (len(tags), len(wanted));
    let fits = if new > old { frame.push_front(new - old) } else { frame.pull_front(old - new) };
    if fits
        && let Some(wanted) = wanted
        && let Some(place) = frame.data_mut().get_mut(12..12 + new)
    {
        place.copy_from_slice(&wanted.with_priorities_of(tags).bytes());
    }
    fits
}
