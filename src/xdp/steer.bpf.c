// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The XDP program of one NIC: what is for a VIP, or comes back from a NAT backend, goes to the
// AF_XDP socket of its queue; everything else stays in the kernel.
//
//   Ethernet to this NIC's own address, up to 2 VLAN tags
//     IPv4, IPv6
//       TCP, UDP, whole    destination in `vips` (port, then any port)      -> redirect
//                          source in `returns`, destination not of this box -> redirect
//       fragments, extension headers, ports cut off:
//                          destination in `vip_addresses`                   -> redirect
//   all else                                                                -> XDP_PASS
//
// What cannot be forwarded but is for a VIP is redirected too, so that the worker drops it by
// name, and the kernel does not answer it with a RST. A redirect finds no socket when the process
// is dead: then the packet is dropped, never passed.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Keep the sizes in step with program.rs. */
#define MAX_SERVICES 65536
#define MAX_LOCALS 4096
#define MAX_QUEUES 256

#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV6_FRAGMENT_OFFSET 0xfff8

/* Where somebody listens. Port 0: any. IPv4 addresses are IPv4-mapped (RFC 4291, 2.5.5.2). */
struct service {
	__u8 address[16];
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct address {
	__u8 bytes[16];
};

struct vlan_tag {
	__be16 control;
	__be16 protocol;
};

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 identification;
};

/* Packets by what was decided. `no_socket` counts those of the first two that were dropped. */
struct counters {
	__u64 steered;
	__u64 returned;
	__u64 passed;
	__u64 no_socket;
};

/* Bits in `vip_addresses`: which protocols have a VIP there. */
#define HAS_TCP 1
#define HAS_UDP 2
#define HAS_ANY (HAS_TCP | HAS_UDP)

/* The NIC's address, set when the program is loaded. A NIC that is promiscuous, or behind a switch
 * that floods, also sees frames for others: the kernel ignores those, and two balancers that did
 * not would send one packet around for ever. */
const volatile __u8 nic_mac[ETH_ALEN] = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service);
	__type(value, __u32);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
} vip_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service);
	__type(value, __u32);
} returns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCALS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
} locals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

/* What is known of a packet's network and transport headers. */
struct packet {
	struct service source;
	struct service destination;
	/* The first byte behind the IP headers, or 0 when there are no ports to be read: in a later
	 * fragment, or behind an extension header. */
	void *ports;
	/* To be redirected by destination address alone, for these protocols; 0 for none. */
	__u32 opaque;
	/* To many receivers. */
	__u8 multicast;
};

static __always_inline __u32 protocol_bit(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? HAS_TCP : protocol == IPPROTO_UDP ? HAS_UDP : 0;
}

static __always_inline void map_v4(__u8 *mapped, __be32 address)
{
	mapped[10] = 0xff;
	mapped[11] = 0xff;
	__builtin_memcpy(mapped + 12, &address, 4);
}

static __always_inline void set_protocol(struct packet *packet, __u8 protocol)
{
	packet->source.protocol = protocol;
	packet->destination.protocol = protocol;
}

/* False for what stays in the kernel whatever its addresses. */
static __always_inline int read_ipv4(struct packet *packet, void *header, void *end)
{
	struct iphdr *ip = header;
	__u32 len, bit;
	__u16 fragment;

	if ((void *)(ip + 1) > end)
		return 0;
	bit = protocol_bit(ip->protocol);
	if (!bit)
		return 0;
	map_v4(packet->source.address, ip->saddr);
	map_v4(packet->destination.address, ip->daddr);
	set_protocol(packet, ip->protocol);
	packet->multicast = (bpf_ntohl(ip->daddr) >> 28) >= 14;
	len = ip->ihl * 4;
	fragment = bpf_ntohs(ip->frag_off);
	if (fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) || len < sizeof(*ip))
		packet->opaque = bit;
	if (!(fragment & IPV4_FRAGMENT_OFFSET) && len >= sizeof(*ip))
		packet->ports = header + len;
	return 1;
}

static __always_inline int is_extension(__u8 next)
{
	switch (next) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_AH:
	case IPPROTO_DSTOPTS:
	case 135: /* mobility, RFC 6275 */
	case 139: /* host identity, RFC 7401 */
	case 140: /* shim6, RFC 5533 */
		return 1;
	}
	return 0;
}

/* Behind an IPv6 fragment header: whose fragment is it, and has it the ports? */
static __always_inline int read_fragment(struct packet *packet, struct fragment_header *header,
					 void *end)
{
	packet->opaque = HAS_ANY;
	if ((void *)(header + 1) > end || is_extension(header->next))
		return 1;
	packet->opaque = protocol_bit(header->next);
	if (!packet->opaque)
		return 0;
	set_protocol(packet, header->next);
	if (!(header->offset & bpf_htons(IPV6_FRAGMENT_OFFSET)))
		packet->ports = header + 1;
	return 1;
}

static __always_inline int read_ipv6(struct packet *packet, void *header, void *end)
{
	struct ipv6hdr *ip = header;

	if ((void *)(ip + 1) > end)
		return 0;
	__builtin_memcpy(packet->source.address, &ip->saddr, 16);
	__builtin_memcpy(packet->destination.address, &ip->daddr, 16);
	packet->multicast = packet->destination.address[0] == 0xff;
	if (protocol_bit(ip->nexthdr)) {
		set_protocol(packet, ip->nexthdr);
		packet->ports = ip + 1;
		return 1;
	}
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return read_fragment(packet, (void *)(ip + 1), end);
	packet->opaque = HAS_ANY;
	return is_extension(ip->nexthdr);
}

/* The exact port, then any. Leaves the port at 0 when it was not found. */
static __always_inline int listed(void *map, struct service *service)
{
	if (bpf_map_lookup_elem(map, service))
		return 1;
	service->port = 0;
	return bpf_map_lookup_elem(map, service) != 0;
}

static __always_inline int is_for_vip(struct packet *packet)
{
	__u32 *protocols;

	if (packet->ports && listed(&vips, &packet->destination))
		return 1;
	if (!packet->opaque)
		return 0;
	protocols = bpf_map_lookup_elem(&vip_addresses, packet->destination.address);
	return protocols && *protocols & packet->opaque;
}

static __always_inline int is_return(struct packet *packet)
{
	if (!packet->ports || packet->multicast || !listed(&returns, &packet->source))
		return 0;
	return !bpf_map_lookup_elem(&locals, packet->destination.address);
}

static __always_inline int redirect(struct xdp_md *ctx, struct counters *count)
{
	int action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);

	if (action == XDP_DROP)
		count->no_socket++;
	return action;
}

static __always_inline int is_to_nic(const struct ethhdr *ethernet)
{
	__u8 difference = 0;

#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		difference |= ethernet->h_dest[i] ^ nic_mac[i];
	return !difference;
}

/* The first byte of the network header, its protocol in `protocol`; 0 if it was cut off, or the
 * frame is for somebody else. */
static __always_inline void *skip_link(struct ethhdr *ethernet, void *end, __be16 *protocol)
{
	struct vlan_tag *tag;

	if ((void *)(ethernet + 1) > end || !is_to_nic(ethernet))
		return 0;
	*protocol = ethernet->h_proto;
	tag = (void *)(ethernet + 1);
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (*protocol != bpf_htons(ETH_P_8021Q) && *protocol != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > end)
			return 0;
		*protocol = tag->protocol;
		tag++;
	}
	return tag;
}

static __always_inline int read_packet(struct packet *packet, void *start, void *end)
{
	struct ethhdr *ethernet = start;
	__be16 protocol = 0;
	void *network = skip_link(ethernet, end, &protocol);
	__be16 *ports;

	if (!network)
		return 0;
	if (protocol == bpf_htons(ETH_P_IP)) {
		if (!read_ipv4(packet, network, end))
			return 0;
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		if (!read_ipv6(packet, network, end))
			return 0;
	} else {
		return 0;
	}
	ports = packet->ports;
	if (!ports)
		return 1;
	if ((void *)(ports + 2) > end) {
		packet->ports = 0;
		packet->opaque |= protocol_bit(packet->destination.protocol);
		return 1;
	}
	packet->source.port = ports[0];
	packet->destination.port = ports[1];
	return 1;
}

SEC("xdp.frags")
int holdfast_steer(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct packet packet = {};
	__u32 only = 0;
	struct counters *count = bpf_map_lookup_elem(&counts, &only);

	if (!count)
		return XDP_PASS;
	if (read_packet(&packet, start, end)) {
		if (is_for_vip(&packet)) {
			count->steered++;
			return redirect(ctx, count);
		}
		if (is_return(&packet)) {
			count->returned++;
			return redirect(ctx, count);
		}
	}
	count->passed++;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
