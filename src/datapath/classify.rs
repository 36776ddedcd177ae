//! Stage 3 of 7, classify: the flow and the direction of a packet.
//!
//! Reads: the five-tuple, the VIPs and return paths of the forwarding table. Writes: `vip`,
//! `direction` and the hashed flow key, or drops a packet that matches no VIP. Prefetches the first
//! line of the flow's look-up, unless the VIP has no pins.
//!
//! Cost: one comparison for a packet to the same VIP as the last one; else one hash look-up for the
//! VIP (a few when it listens on more than single ports, see [`ForwardingTable::listener`]), and
//! one for the full-NAT sources; one hash of the flow key.
//!
//! [`ForwardingTable::listener`]: crate::forwarding::ForwardingTable::listener

use super::batch::{Direction, Packet};
use super::context::Context;
use crate::forwarding::table::ReturnPath;
use crate::net::{
    Address, BackendIndex, FiveTuple, FlowKey, HashedKey, ListenKey, Protocol, TableSecret, Tuple,
    VipId,
};
use crate::stats::Drop;

/// The VIP of the last look-up. Most packets of a batch are for the same VIP.
#[derive(Debug)]
pub struct LastVip {
    destination: Tuple,
    vip: VipId,
}

impl LastVip {
    /// No VIP: no packet has this destination.
    pub const NONE: Self = Self { destination: HashedKey::NONE.tuple, vip: VipId::NONE };
}

/// Classifies a packet with this five-tuple. Its destination is looked up first: a NAT backend may
/// be a client of another VIP.
///
/// # Errors
/// [`Drop::NoVip`]; [`Drop::UnsupportedProtocol`] if the packet's protocol has no known ports.
#[inline(always)]
pub fn classify(
    packet: &mut Packet,
    tuple: Tuple,
    context: &Context<'_>,
    secret: &TableSecret,
    last: &mut LastVip,
) -> Result<(), Drop> {
    let mut flow = tuple;
    if tuple.goes_to(&last.destination) {
        packet.vip = last.vip;
    } else {
        let Some(vip) = context.table.listener(tuple.listen_key()) else {
            return classify_reply(packet, tuple, context, secret);
        };
        packet.vip = vip;
        match context.table.vip(vip) {
            Some(vip) if vip.protocol == Protocol::Any => flow = tuple.without_ports(),
            Some(vip) if !vip.policy.pin => {
                set_unpinned(packet, tuple, Direction::Unpinned);
                return Ok(());
            }
            _ => *last = LastVip { destination: tuple.destination(), vip },
        }
    }
    packet.direction = Direction::ToBackend;
    packet.backend = BackendIndex(u16::MAX);
    packet.flow = secret.hash(flow);
    context.flows.prefetch_bucket(&packet.flow);
    Ok(())
}

/// Classifies a packet of a flow without pins, whose key needs no hash.
fn set_unpinned(packet: &mut Packet, flow: Tuple, direction: Direction) {
    packet.direction = direction;
    packet.backend = BackendIndex(u16::MAX);
    packet.flow = HashedKey::unhashed(flow);
}

/// Whether the VIP's flows are all packets of a client to an address.
#[inline]
pub fn takes_all_protocols(vip: VipId, context: &Context<'_>) -> bool {
    context.table.vip(vip).is_some_and(|vip| vip.protocol == Protocol::Any)
}

/// Classifies a packet without a VIP: for a full-NAT source, or from a NAT backend.
#[inline(never)]
fn classify_reply(
    packet: &mut Packet,
    tuple: Tuple,
    context: &Context<'_>,
    secret: &TableSecret,
) -> Result<(), Drop> {
    let key = tuple.listen_key();
    if context.table.local().tunnels.is_answered_at(key) {
        packet.forget();
        packet.direction = Direction::Answer;
        packet.flow = HashedKey::unhashed(tuple);
        return Ok(());
    }
    let ListenKey { address, port, protocol } = key;
    if protocol == Protocol::Any {
        return classify_old(packet, tuple, context, secret).ok_or(Drop::UnsupportedProtocol);
    }
    if let Some(id) = context.shared.snat_table.sources().find(address, port) {
        // Conntrack reads the entry once it is prefetched.
        context.shared.snat_table.prefetch(id);
        packet.forget();
        packet.direction = Direction::ToClientOf(id);
        packet.flow = HashedKey::unhashed(tuple);
        return Ok(());
    }
    let source = tuple.reply_key();
    let Some(path) = context.table.return_path(source) else {
        return classify_old(packet, tuple, context, secret).ok_or(Drop::NoVip);
    };
    packet.vip = path.vip;
    let FiveTuple { dst: client, dst_port: client_port, .. } = tuple.five_tuple();
    let flow = answered_flow(client, client_port, source, path);
    if !path.pinned {
        set_unpinned(packet, flow, Direction::UnpinnedReply(source));
        return Ok(());
    }
    packet.direction = Direction::ToClient(source);
    packet.backend = path.backend;
    packet.flow = secret.hash(flow);
    context.flows.prefetch_bucket(&packet.flow);
    Ok(())
}

/// Classifies a packet for an address and port that a VIP had before a reload and may still have
/// flows on.
#[cold]
fn classify_old(
    packet: &mut Packet,
    tuple: Tuple,
    context: &Context<'_>,
    secret: &TableSecret,
) -> Option<()> {
    let (vip, _) = context.table.old_listener(|| tuple.listen_key())?;
    packet.vip = vip;
    packet.direction = Direction::ToBackend;
    packet.backend = BackendIndex(u16::MAX);
    let all = takes_all_protocols(vip, context);
    packet.flow = secret.hash(if all { tuple.without_ports() } else { tuple });
    context.flows.prefetch_bucket(&packet.flow);
    Some(())
}

/// Returns the flow that a packet from the NAT backend at `source` to a client replies to, if it
/// replies for this VIP port.
#[inline]
pub fn answered_flow(
    client: Address,
    client_port: u16,
    source: ListenKey,
    path: &ReturnPath,
) -> Tuple {
    Tuple::from(FlowKey {
        client,
        vip: path.vip_address,
        client_port,
        vip_port: path.vip_port.unwrap_or(source.port),
        protocol: source.protocol,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::datapath::testing::*;
    use crate::forwarding::Ports;
    use crate::net::Forward;

    /// The flow of the client's connection from a port to the VIP.
    fn flow(client_port: u16, vip_port: u16) -> FlowKey {
        let (client, vip) = (CLIENT.octets(), VIP.octets());
        FlowKey {
            client: Address::from_v4(client),
            vip: Address::from_v4(vip),
            client_port,
            vip_port,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn a_packet_goes_by_its_destination_and_a_reply_by_its_source() {
        let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
        let source = ListenKey {
            address: Address::from_v4(backend(1).octets()),
            port: 8080,
            protocol: Protocol::Tcp,
        };
        let snat =
            bed.shared.snat_table.sources().find(Address::from_v4(SNAT.octets()), 20_001).unwrap();
        let stranger = Ipv4Addr::new(203, 0, 113, 1);
        for (from, to, expected) in [
            ((CLIENT, 1), (VIP, 80), Ok((Direction::ToBackend, flow(1, 80)))),
            ((backend(1), 8080), (CLIENT, 1), Ok((Direction::ToClient(source), flow(1, 80)))),
            // A backend is a client, too.
            (
                (backend(1), 8080),
                (VIP, 80),
                Ok((Direction::ToBackend, FlowKey { client: source.address, ..flow(8080, 80) })),
            ),
            ((CLIENT, 1), (VIP, 81), Err(Drop::NoVip)),
            ((backend(1), 8081), (CLIENT, 1), Err(Drop::NoVip)),
            ((backend(2), 8080), (CLIENT, 1), Err(Drop::NoVip)),
            ((CLIENT, 1), (stranger, 80), Err(Drop::NoVip)),
        ] {
            let packet = bed.receive(&tcp(from, to, "A"));
            let got = packet.map(|packet| (packet.direction, packet.flow.key()));
            assert_eq!(got, expected, "{from:?} {to:?}");
        }
        let packet = bed.receive(&tcp((backend(0), 8080), (SNAT, 20_001), "A")).unwrap();
        assert_eq!((packet.direction, packet.vip), (Direction::ToClientOf(snat), VipId::NONE));
        let reply = bed.reply(1, 1, "A");
        assert_eq!((reply.vip, reply.backend), (VipId(0), BackendIndex(1)));
    }

    #[test]
    fn vips_of_all_protocols_have_no_ports_and_those_without_pins_no_hash() {
        let any = crate::forwarding::VipSpec {
            protocol: Protocol::Any,
            ports: Ports::All,
            ..vip(Forward::Dsr, 1)
        };
        let mut bed = Bed::new(1, &[any]);
        let packet = bed.request(7, "S");
        assert_eq!((packet.direction, packet.flow.key().client_port), (Direction::ToBackend, 0));
        let udp_vip =
            crate::forwarding::VipSpec { protocol: Protocol::Udp, ..vip(Forward::Dsr, 1) };
        let unpinned = with(udp_vip, |policy| policy.pin = false);
        bed.publish(&[unpinned]);
        let packet = bed.receive(&udp((CLIENT, 7), (VIP, 80))).unwrap();
        assert_eq!((packet.direction, packet.flow.key().client_port), (Direction::Unpinned, 7));
        assert_eq!(packet.flow.hash, HashedKey::unhashed(packet.flow.tuple).hash);
    }

    #[test]
    fn the_last_vip_is_found_again_without_a_look_up() {
        let mut bed = Bed::new(1, &[vip(Forward::Dsr, 1)]);
        let mut packet = bed.request(1, "S");
        let (tuple, secret) = (packet.flow.tuple, TableSecret::new(1));
        let mut last = LastVip { destination: tuple.destination(), vip: VipId(9) };
        classify(&mut packet, tuple, &bed.context(0, 0), &secret, &mut last).unwrap();
        assert_eq!(packet.vip, VipId(9));
        last = LastVip::NONE;
        classify(&mut packet, tuple, &bed.context(0, 0), &secret, &mut last).unwrap();
        assert_eq!(packet.vip, VipId(0));
    }
}
