//! Ethernet II and one 802.1Q tag: addressing a frame to its next hop.
//!
//! ```text
//! untagged   dst:6 src:6                 type:2 payload
//! tagged     dst:6 src:6 8100:2 pcp:3 dei:1 vlan:12 type:2 payload
//! ```

use crate::xdp::umem::Frame;

/// Bytes of a tag.
const TAG_LEN: usize = 4;

/// 802.1Q tag protocol identifier.
const TPID: [u8; 2] = [0x81, 0x00];

/// Addresses the frame, and gives it the VLAN that its next hop wants.
///
/// `tag` is the VLAN tag's value (priority and VLAN) that the frame has now. A tag that stays keeps
/// its priority; one that is added has priority 0. Returns false, with the frame unchanged, when a
/// tag must be added and there is no headroom for it.
#[inline(always)]
pub fn readdress(
    frame: &mut Frame,
    tag: Option<u16>,
    vlan: Option<u16>,
    dst: &[u8; 6],
    src: &[u8; 6],
) -> bool {
    let fits = match (tag, vlan) {
        (None, Some(_)) => frame.push_front(TAG_LEN),
        (Some(_), None) => frame.pull_front(TAG_LEN),
        _ => true,
    };
    if !fits {
        return false;
    }
    let data = frame.data_mut();
    if let Some((to, rest)) = data.split_first_chunk_mut::<6>()
        && let Some(from) = rest.first_chunk_mut::<6>()
    {
        *to = *dst;
        *from = *src;
    }
    if let Some(vlan) = vlan
        && let Some(bytes) = data.get_mut(12..16)
    {
        let tci = tag.unwrap_or(0) & 0xf000 | vlan & 0x0fff;
        let [t0, t1] = TPID;
        let [v0, v1] = tci.to_be_bytes();
        bytes.copy_from_slice(&[t0, t1, v0, v1]);
    }
    true
}
