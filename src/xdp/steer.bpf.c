// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The programs of one NIC. The XDP program `holdfast_steer` sends packets for a VIP, and packets from
// a NAT backend, to the AF_XDP socket of their queue; everything else stays in the kernel. The tc
// program `holdfast_guard`, below, catches the packets that should not have reached the kernel.
//
//   Ethernet to this NIC's own address, up to 2 VLAN tags
//     IPv4, IPv6; the first matching line decides:
//       ICMP   whole; echo request or error (v4: 8; 3, 11, 12. v6: 128; 1, 2, 3, 4)
//                area of the destination has ICMP                             -> redirect
//                an error, area of the destination has ERRORS                 -> redirect
//                an error, area has TUNNEL, quotes IPIP or our GUE port       -> redirect
//                an error, destination not local, quotes a packet to a
//                NAT backend (its ports, or a fragment to its address)        -> redirect
//       TCP, UDP with ports
//                destination in `vips` (its port, then port 0: any)           -> redirect
//       fragments (also the first), IPv6 headers that are not skipped, truncated ports:
//                area of the destination has a port of the protocol           -> redirect
//       any protocol but ICMP
//                area of the destination has ALL_PROTOCOLS                    -> redirect
//       TCP, UDP with ports
//                source in `returns` (its port, any, or in a range of its
//                address), destination not local                              -> redirect
//       fragments
//                source in `return_addresses` with the protocol, destination
//                not local                                                    -> redirect
//       TCP, UDP with ports
//                area of the destination has all ports of the protocol, or a
//                range with this one                                          -> redirect
//   everything else                                                           -> XDP_PASS
//
// IPv6 hop-by-hop and destination options, and one fragment header, are skipped, up to four in all:
// as many as in the workers (datapath/parse.rs), which drop packets with more.
//
// A packet for a VIP is dropped instead, if a deny list has its source, or if there are allow lists
// and one of them lacks it; see `access`.
//
// The *area* of an address is the longest prefix in `areas` that contains it; it includes the flags
// and ranges of wider prefixes (program/rules.rs provides that). A local address that is no VIP by
// itself, but lies in a VIP's prefix, is an area without the VIP's flags: it stays with the kernel.
// "Not local": not in `locals`, not multicast or broadcast.
//
// A packet for a VIP that cannot be forwarded is redirected too, so that the worker drops it with a
// reason, and the kernel does not reply with a RST. A redirect finds no socket when the process is
// dead: the packet is then dropped, never passed.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Keep the sizes in step with program/rules.rs. */
#define MAX_SERVICES 65536
#define MAX_AREAS 65536
#define MAX_PORT_RANGES 65536
#define MAX_LOCALS 4096
#define MAX_QUEUES 256
/* Prefixes of all deny and allow lists, and the entries of allow lists for other sources. */
#define MAX_LISTED 2097152
/* One for each VIP, and 0. */
#define MAX_SLOTS 4097
/* Sources with known rates; a new one takes the place of the least recently seen. */
#define MAX_SOURCES 65536
/* Time over which packets are counted, in nanoseconds. */
#define RATE_WINDOW 1000000000ULL

#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV6_FRAGMENT_OFFSET 0xfff8
/* Keep in step with datapath/parse.rs. */
#define MAX_EXTENSIONS 4
/* Length of the ICMP header in front of a quoted packet, in bytes (RFC 792, RFC 4443). */
#define ICMP_LEN 8
/* Flags in byte 13 of a TCP header (RFC 9293 3.1). */
#define TCP_SYN 0x02
#define TCP_ACK 0x10

/* A VIP or backend port. Port 0: any. IPv4 addresses are IPv4-mapped (RFC 4291, 2.5.5.2). */
struct service {
	__u8 address[16];
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct address {
	__u8 bytes[16];
};

/* Key of `areas`: the first `len` bits of an address, in the layout of an LPM trie. */
struct prefix {
	__u32 len;
	__u8 address[16];
};

/* Key of `port_ranges`: the first `len` bits of the following fields. A port range is stored as the
 * prefixes that make it up, 30 at most. */
struct port_prefix {
	__u32 len;
	__u32 group;
	__u8 protocol;
	__u8 zero;
	__be16 port;
};

#define PORT_PREFIX_BITS 64

/* Flags and port ranges of an address. */
struct area {
	/* Group of its port ranges in `port_ranges`; 0: none. */
	__u32 group;
	/* Flags from HAS_TCP to TUNNEL, below. */
	__u16 flags;
	/* With TUNNEL: the destination port of this box's GUE packets; 0: none. */
	__be16 gue_port;
	/* Access words: for packets that match by their port or protocol, and for those that match by
	 * their address alone. */
	__u32 access;
	__u32 opaque_access;
};

/* Bits of an access word: the lists that apply to packets for a VIP. The other bits are the VIP's
 * slot: its number and 1, or 0 where packets may be for several VIPs with other lists. 0 as a whole:
 * no lists. */
#define GLOBAL_DENY 0x00010000
#define GLOBAL_ALLOW 0x00020000
#define OWN_DENY 0x00040000
#define OWN_ALLOW 0x00080000
/* Rates of each source are limited. */
#define RATED 0x00100000
#define ANY_LIMIT (GLOBAL_DENY | GLOBAL_ALLOW | OWN_DENY | OWN_ALLOW | RATED)
#define SLOT 0x0000ffff

/* Key of `access`: the first `len` bits of the following fields. */
struct listed_prefix {
	__u32 len;
	/* slot << 2 | (allow list ? 2 : 0) | (IPv6 ? 1 : 0) */
	__be32 list;
	__u8 address[16];
};

#define LISTED_PREFIX_BITS 160
/* Value in `access` for the other sources of an allow list. */
#define NOT_ALLOWED 2

/* At least one port of the protocol: matches fragments. */
#define HAS_TCP 0x01
#define HAS_UDP 0x02
#define ALL_TCP 0x04
#define ALL_UDP 0x08
/* All protocols but ICMP. */
#define ALL_PROTOCOLS 0x10
/* ICMP echo requests and errors to a VIP; ICMP errors to a full-NAT source. */
#define ICMP 0x20
#define ERRORS 0x40
/* ICMP errors about packets of our tunnels. */
#define TUNNEL 0x80
#define HAS_ANY (HAS_TCP | HAS_UDP | ALL_PROTOCOLS)

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

/* Options, of 8 * (len + 1) bytes, or a fragment header (RFC 8200 4.2, 4.5). */
struct extension {
	__u8 next;
	__u8 len;
	__be16 offset;
	__be32 rest;
};

/* Packets by decision. `no_socket` counts the dropped ones of `steered` and `returned`; `guarded`
 * counts the packets that the guard dropped. */
struct counters {
	__u64 steered;
	__u64 returned;
	__u64 passed;
	__u64 no_socket;
	__u64 guarded;
	__u64 denied;
	__u64 not_allowed;
	__u64 over_rate;
};

/* Packets for one VIP that were dropped because of lists or rates. */
struct drops {
	__u64 denied;
	__u64 not_allowed;
	__u64 over_rate;
};

/* Limits of a VIP for each source and second; 0: none. */
struct rate {
	__u32 packets;
	__u32 syns;
};

/* An IPv4 address, or an IPv6 /64: a host may have all addresses of one. */
struct source {
	__u32 slot;
	__u8 address[16];
};

/* Packets of a source in the present window. */
struct window {
	__u64 begin;
	__u32 packets;
	__u32 syns;
};

struct mac {
	__u8 bytes[ETH_ALEN];
	__u8 zero[2];
};

/* The NIC's address. A NIC that is promiscuous, or behind a switch that floods, also receives frames
 * for other hosts. The kernel ignores those; two balancers that did not would send one packet back
 * and forth for ever. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mac);
} nic_mac SEC(".maps");

/* End of the guard, in nanoseconds of CLOCK_MONOTONIC; 0: none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} guard_end SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service);
	__type(value, __u32);
} vips SEC(".maps");

/* All rules about destinations, including VIPs of single addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_AREAS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, struct area);
} areas SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_PORT_RANGES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_prefix);
	__type(value, __u32);
} port_ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service);
	__type(value, __u32);
} returns SEC(".maps");

/* The addresses of `returns`, and of backends with port ranges. Flags in use: HAS_TCP and HAS_UDP.
 * */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct area);
} return_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCALS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
} locals SEC(".maps");

/* Deny and allow lists. A source is denied if a deny list has a prefix with it. If there is an allow
 * list, its longest prefix with the source decides: the list's own ones have another value than the
 * one of length 0, which is for all other sources. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_LISTED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct listed_prefix);
	__type(value, __u32);
} access SEC(".maps");

/* By slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__type(value, struct rate);
} rates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SOURCES);
	__type(key, struct source);
	__type(value, struct window);
} sources SEC(".maps");

/* By slot. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__type(value, struct drops);
} drop_counts SEC(".maps");

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

/* Where a packet is, and what the program was called with: one of the two, and 0. */
struct frame {
	void *start;
	void *end;
	struct xdp_md *xdp;
	struct __sk_buff *skb;
};

/* Parsed network and transport headers of a packet. */
struct packet {
	struct service source;
	struct service destination;
	/* Offset of the header of a whole ICMP message from the start of the frame, or 0. 64 bits, as the
	 * verifier accepts no shorter difference of pointers. */
	__u64 icmp;
	/* Flags that cause a redirect by destination address alone, if its area has one of them; 0:
	 * none. */
	__u32 opaque;
	/* For a VIP: the lists that apply. */
	__u32 access;
	/* Whether there are ports, and they can be read: not in a later fragment, nor behind a header
	 * that is not skipped. */
	__u8 has_ports;
	/* Whether the packet is a fragment, also the first one. */
	__u8 fragment;
	/* Whether the destination is multicast or broadcast. */
	__u8 multicast;
	__u8 v6;
	__u8 icmp_error;
	/* Whether it is a whole TCP header with SYN and without ACK. */
	__u8 syn;
};

/* Where a packet goes. */
enum decision { TO_KERNEL, STEERED, RETURNED };

/* The verifier goes through a global function (not static, not inlined) once, and not again for each
 * way to it and from it: the ways to read a packet are not multiplied by the ways to judge it. That
 * keeps the time short that a start takes. All that the verifier knows about an argument there is its
 * type, so `struct packet` has no pointers into the frame, and the functions check for 0. */
#define GLOBAL __noinline

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

/* Returns 0 if the packet stays in the kernel whatever its addresses. `ports` becomes the first byte
 * behind the headers of a packet that has ports there. */
static __always_inline int read_ipv4(struct packet *packet, void *header, const struct frame *frame,
				     __be16 **ports)
{
	struct iphdr *ip = header;
	__u32 len, bit;
	__u16 fragment;

	if ((void *)(ip + 1) > frame->end)
		return 0;
	map_v4(packet->source.address, ip->saddr);
	map_v4(packet->destination.address, ip->daddr);
	set_protocol(packet, ip->protocol);
	packet->multicast = (bpf_ntohl(ip->daddr) >> 28) >= 14;
	len = ip->ihl * 4;
	fragment = bpf_ntohs(ip->frag_off);
	packet->fragment = (fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS)) != 0;
	if (ip->protocol == IPPROTO_ICMP) {
		packet->icmp = header - frame->start + len;
		return !packet->fragment && len >= sizeof(*ip);
	}
	bit = protocol_bit(ip->protocol);
	if (!bit || packet->fragment || len < sizeof(*ip))
		packet->opaque = bit | ALL_PROTOCOLS;
	if (bit && !(fragment & IPV4_FRAGMENT_OFFSET) && len >= sizeof(*ip))
		*ports = header + len;
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

/* What is behind IPv6 extensions, in a word: the offset from the start of the packet in the upper half, the
 * number of the header there, and flags. */
#define SKIPPED_OFFSET 16
#define SKIPPED_NEXT 0xff
/* There was a fragment header; it was not that of a first fragment. */
#define SKIPPED_FRAGMENT 0x100
#define SKIPPED_LATER 0x200
/* Largest offset of a header behind which there is another one. */
#define MAX_OFFSET 0x3fff

/* Skips IPv6 extensions from `offset` on, the first one of which has the number `next`. */
static __always_inline __u32 skip_extensions(void *start, void *end, __u32 offset, __u32 next)
{
	__u32 flags = 0;

	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct extension *extension;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS &&
		    (next != IPPROTO_FRAGMENT || flags & SKIPPED_FRAGMENT))
			break;
		if (offset > MAX_OFFSET)
			break;
		extension = start + offset;
		if ((void *)(extension + 1) > end)
			break;
		offset += sizeof(*extension);
		if (next != IPPROTO_FRAGMENT) {
			offset += extension->len * 8;
			next = extension->next;
			continue;
		}
		next = extension->next;
		flags |= SKIPPED_FRAGMENT;
		if (extension->offset & bpf_htons(IPV6_FRAGMENT_OFFSET)) {
			flags |= SKIPPED_LATER;
			break;
		}
	}
	return offset << SKIPPED_OFFSET | flags | next;
}

GLOBAL __u32 skip_in_xdp(struct xdp_md *ctx, __u32 offset, __u32 next)
{
	return skip_extensions((void *)(long)ctx->data, (void *)(long)ctx->data_end, offset, next);
}

GLOBAL __u32 skip_in_tc(struct __sk_buff *skb, __u32 offset, __u32 next)
{
	return skip_extensions((void *)(long)skb->data, (void *)(long)skb->data_end, offset, next);
}

static __always_inline int read_ipv6(struct packet *packet, void *header, const struct frame *frame,
				     __be16 **ports)
{
	struct ipv6hdr *ip = header;
	__u32 next, bit, skipped = 0;
	void *behind = ip + 1;

	if (behind > frame->end)
		return 0;
	__builtin_memcpy(packet->source.address, &ip->saddr, 16);
	__builtin_memcpy(packet->destination.address, &ip->daddr, 16);
	packet->multicast = packet->destination.address[0] == 0xff;
	packet->v6 = 1;
	next = ip->nexthdr;
	if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_FRAGMENT) {
		__u32 offset = behind - frame->start;

		skipped = frame->xdp ? skip_in_xdp(frame->xdp, offset, next)
				     : skip_in_tc(frame->skb, offset, next);
		next = skipped & SKIPPED_NEXT;
		behind = frame->start + (skipped >> SKIPPED_OFFSET & (2 * MAX_OFFSET + 1));
	}
	packet->fragment = (skipped & SKIPPED_FRAGMENT) != 0;
	set_protocol(packet, next);
	bit = protocol_bit(next);
	if (next == IPPROTO_ICMPV6) {
		packet->icmp = behind - frame->start;
		return !packet->fragment;
	}
	if (is_extension(next))
		packet->opaque = HAS_ANY;
	else if (!bit || packet->fragment)
		packet->opaque = bit | ALL_PROTOCOLS;
	if (bit && !(skipped & SKIPPED_LATER))
		*ports = behind;
	return 1;
}

/* Returns the value of the exact port, or of the wildcard port 0. */
static __always_inline __u32 *listed(void *map, struct service *service)
{
	__be16 port = service->port;
	__u32 *found = bpf_map_lookup_elem(map, service);

	if (found)
		return found;
	service->port = 0;
	found = bpf_map_lookup_elem(map, service);
	service->port = port;
	return found;
}

static __always_inline struct area *area_of(const struct service *service)
{
	struct prefix key = { .len = 128 };

	__builtin_memcpy(key.address, service->address, 16);
	return bpf_map_lookup_elem(&areas, &key);
}

static __always_inline int in_range(const struct area *area, const struct service *service)
{
	struct port_prefix key = {
		.len = PORT_PREFIX_BITS,
		.group = area->group,
		.protocol = service->protocol,
		.port = service->port,
	};

	return key.group && bpf_map_lookup_elem(&port_ranges, &key);
}

/* Whether a listener of the area, other than the single ports in `vips`, is for the packet's port, or
 * for its protocol if that has none. */
static __always_inline int is_listening(const struct area *area, const struct packet *packet)
{
	__u32 bit = protocol_bit(packet->destination.protocol);
	__u32 all = bit == HAS_TCP ? ALL_TCP : bit == HAS_UDP ? ALL_UDP : 0;

	if (bit && !packet->has_ports)
		return 0;
	return area->flags & (all | ALL_PROTOCOLS) || (bit && in_range(area, &packet->destination));
}

static __always_inline int is_for_vip(struct packet *packet)
{
	__u32 *access = packet->has_ports ? listed(&vips, &packet->destination) : 0;
	struct area *area;

	if (access) {
		packet->access = *access;
		return 1;
	}
	if (!packet->opaque)
		return 0;
	area = area_of(&packet->destination);
	if (!area || !(area->flags & packet->opaque))
		return 0;
	packet->access = is_listening(area, packet) ? area->access : area->opaque_access;
	return 1;
}

static __always_inline int is_in_area(struct packet *packet)
{
	struct area *area;

	/* Packets without ports have been judged by their address. */
	if (!packet->has_ports || packet->opaque)
		return 0;
	area = area_of(&packet->destination);
	if (!area)
		return 0;
	packet->access = area->access;
	return is_listening(area, packet);
}

/* Whether a NAT backend has this address and port; for a fragment, any port of the protocol. */
static __always_inline int is_backend(struct service *service, int ports, int fragment)
{
	struct area *area;

	if (ports && listed(&returns, service))
		return 1;
	area = bpf_map_lookup_elem(&return_addresses, service->address);
	if (!area)
		return 0;
	if (fragment && area->flags & protocol_bit(service->protocol))
		return 1;
	return ports && in_range(area, service);
}

static __always_inline int is_return(struct packet *packet)
{
	if (packet->multicast || !(packet->has_ports || packet->fragment))
		return 0;
	if (!is_backend(&packet->source, packet->has_ports, packet->fragment))
		return 0;
	return !bpf_map_lookup_elem(&locals, packet->destination.address);
}

/* Destination of the packet that an ICMP error quotes. */
struct quote {
	struct service destination;
	__u8 has_ports;
	__u8 fragment;
};

static __always_inline void read_quoted_ports(struct quote *quote, __be16 *ports, void *end)
{
	if ((void *)(ports + 2) > end || !protocol_bit(quote->destination.protocol))
		return;
	quote->destination.port = ports[1];
	quote->has_ports = 1;
}

static __always_inline int read_quoted_ipv4(struct quote *quote, struct iphdr *ip, void *end)
{
	__u16 fragment;

	if ((void *)(ip + 1) > end || ip->ihl < 5)
		return 0;
	map_v4(quote->destination.address, ip->daddr);
	quote->destination.protocol = ip->protocol;
	fragment = bpf_ntohs(ip->frag_off);
	quote->fragment = (fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS)) != 0;
	if (!(fragment & IPV4_FRAGMENT_OFFSET))
		read_quoted_ports(quote, (void *)ip + ip->ihl * 4, end);
	return 1;
}

static __always_inline int read_quoted_ipv6(struct quote *quote, struct ipv6hdr *ip, void *end)
{
	struct fragment_header *fragment = (void *)(ip + 1);

	if ((void *)(ip + 1) > end)
		return 0;
	__builtin_memcpy(quote->destination.address, &ip->daddr, 16);
	quote->destination.protocol = ip->nexthdr;
	if (ip->nexthdr != IPPROTO_FRAGMENT) {
		read_quoted_ports(quote, (void *)(ip + 1), end);
		return 1;
	}
	if ((void *)(fragment + 1) > end)
		return 0;
	quote->fragment = 1;
	quote->destination.protocol = fragment->next;
	if (!(fragment->offset & bpf_htons(IPV6_FRAGMENT_OFFSET)))
		read_quoted_ports(quote, (void *)(fragment + 1), end);
	return 1;
}

static __always_inline int is_tunnels(const struct quote *quote, const struct area *area)
{
	switch (quote->destination.protocol) {
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
		return 1;
	case IPPROTO_UDP:
		return quote->has_ports && area->gue_port && quote->destination.port == area->gue_port;
	}
	return 0;
}

enum message { OTHER, ECHO, ERROR };

static __always_inline enum message icmp_message(__u8 protocol, __u8 type)
{
	/* RFC 792: echo; unreachable, time exceeded, parameter problem. */
	if (protocol == IPPROTO_ICMP)
		switch (type) {
		case 8:
			return ECHO;
		case 3:
		case 11:
		case 12:
			return ERROR;
		default:
			return OTHER;
		}
	/* RFC 4443, 2.1: unreachable, packet too big, time exceeded, parameter problem; echo. */
	return type >= 1 && type <= 4 ? ERROR : type == 128 ? ECHO : OTHER;
}

/* Returns the decision about an ICMP message. */
GLOBAL int judge_icmp(struct xdp_md *ctx, struct packet *packet)
{
	void *header = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct quote quote = {};
	enum message message;
	struct area *area;
	__u8 protocol;
	int whole;

	if (!packet || packet->icmp > MAX_OFFSET)
		return TO_KERNEL;
	header += packet->icmp;
	if (header + ICMP_LEN > end)
		return TO_KERNEL;
	protocol = packet->destination.protocol;
	message = icmp_message(protocol, *(__u8 *)header);
	if (message == OTHER)
		return TO_KERNEL;
	area = area_of(&packet->destination);
	if (area && area->flags & (message == ERROR ? ICMP | ERRORS : ICMP)) {
		packet->access = area->opaque_access;
		packet->icmp_error = message == ERROR;
		return STEERED;
	}
	if (message != ERROR || packet->multicast)
		return TO_KERNEL;
	whole = protocol == IPPROTO_ICMP ? read_quoted_ipv4(&quote, header + ICMP_LEN, end)
					 : read_quoted_ipv6(&quote, header + ICMP_LEN, end);
	if (!whole)
		return TO_KERNEL;
	if (area && area->flags & TUNNEL && is_tunnels(&quote, area))
		return STEERED;
	if (!is_backend(&quote.destination, quote.has_ports, quote.fragment))
		return TO_KERNEL;
	return bpf_map_lookup_elem(&locals, packet->destination.address) ? TO_KERNEL : RETURNED;
}

/* Returns the decision about a packet other than ICMP. */
GLOBAL int judge(struct packet *packet)
{
	if (!packet)
		return TO_KERNEL;
	if (is_for_vip(packet))
		return STEERED;
	if (is_return(packet))
		return RETURNED;
	return is_in_area(packet) ? STEERED : TO_KERNEL;
}

/* Returns the value of the source in a list, or 0. */
static __always_inline __u32 in_list(const struct packet *packet, __u32 slot, __u32 allow)
{
	struct listed_prefix key = { .len = LISTED_PREFIX_BITS };
	__u32 *found;

	key.list = bpf_htonl(slot << 2 | allow << 1 | packet->v6);
	__builtin_memcpy(key.address, packet->source.address, 16);
	found = bpf_map_lookup_elem(&access, &key);
	return found ? *found : 0;
}

/* Whether the source has sent more than its rate in the present second. Counts the packet. CPUs that
 * begin a window at the same time may lose some of its first packets. */
static __always_inline int exceeds_rate(const struct packet *packet)
{
	__u32 slot = packet->access & SLOT;
	struct rate *rate = bpf_map_lookup_elem(&rates, &slot);
	struct source source = { .slot = slot };
	__u64 now = bpf_ktime_get_ns();
	struct window *window, first = { .begin = now };

	if (!rate)
		return 0;
	__builtin_memcpy(source.address, packet->source.address, 8);
	if (!packet->v6)
		__builtin_memcpy(source.address + 8, packet->source.address + 8, 8);
	window = bpf_map_lookup_elem(&sources, &source);
	if (!window) {
		bpf_map_update_elem(&sources, &source, &first, BPF_ANY);
		window = bpf_map_lookup_elem(&sources, &source);
		if (!window)
			return 0;
	}
	if (now - window->begin >= RATE_WINDOW) {
		window->begin = now;
		window->packets = 0;
		window->syns = 0;
	}
	__sync_fetch_and_add(&window->packets, 1);
	if (packet->syn)
		__sync_fetch_and_add(&window->syns, 1);
	return (rate->packets && window->packets > rate->packets) ||
	       (packet->syn && rate->syns && window->syns > rate->syns);
}

enum verdict { ALLOWED, DENIED, UNLISTED, OVER_RATE };

/* Errors about the packets of allowed clients come from any router, so allow lists leave them out. */
static __always_inline enum verdict judge_source(const struct packet *packet)
{
	__u32 lists = packet->access, slot = lists & SLOT;

	if (lists & GLOBAL_DENY && in_list(packet, 0, 0))
		return DENIED;
	if (lists & OWN_DENY && in_list(packet, slot, 0))
		return DENIED;
	if (packet->icmp_error)
		return lists & RATED && exceeds_rate(packet) ? OVER_RATE : ALLOWED;
	if (lists & GLOBAL_ALLOW && in_list(packet, 0, 1) == NOT_ALLOWED)
		return UNLISTED;
	if (lists & OWN_ALLOW && in_list(packet, slot, 1) == NOT_ALLOWED)
		return UNLISTED;
	return lists & RATED && exceeds_rate(packet) ? OVER_RATE : ALLOWED;
}

/* Whether the lists drop the packet. Counts it if so. */
GLOBAL int is_dropped(struct packet *packet)
{
	__u32 slot, only = 0;
	struct counters *count = bpf_map_lookup_elem(&counts, &only);
	enum verdict verdict;
	struct drops *drops;

	if (!packet || !count)
		return 0;
	verdict = judge_source(packet);
	if (verdict == ALLOWED)
		return 0;
	slot = packet->access & SLOT;
	drops = bpf_map_lookup_elem(&drop_counts, &slot);
	if (verdict == DENIED) {
		count->denied++;
		if (drops)
			drops->denied++;
	} else if (verdict == UNLISTED) {
		count->not_allowed++;
		if (drops)
			drops->not_allowed++;
	} else {
		count->over_rate++;
		if (drops)
			drops->over_rate++;
	}
	return 1;
}

static __always_inline int redirect(struct xdp_md *ctx, struct counters *count)
{
	int action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);

	if (action == XDP_DROP)
		count->no_socket++;
	return action;
}

static __always_inline int is_to_nic(const struct ethhdr *ethernet, void *end)
{
	__u32 only = 0;
	struct mac *mac = bpf_map_lookup_elem(&nic_mac, &only);
	__u8 difference = 0;

	if ((void *)(ethernet + 1) > end || !mac)
		return 0;
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		difference |= ethernet->h_dest[i] ^ mac->bytes[i];
	return !difference;
}

/* Returns the network header, with its ethertype in `protocol`; 0 if the packet is truncated. */
static __always_inline void *skip_link(struct ethhdr *ethernet, void *end, __be16 *protocol)
{
	struct vlan_tag *tag;

	if ((void *)(ethernet + 1) > end)
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

static __always_inline int read_packet(struct packet *packet, const struct frame *frame)
{
	struct ethhdr *ethernet = frame->start;
	void *end = frame->end;
	__be16 protocol = 0;
	void *network = skip_link(ethernet, end, &protocol);
	__be16 *ports = 0;

	if (!network)
		return 0;
	if (protocol == bpf_htons(ETH_P_IP)) {
		if (!read_ipv4(packet, network, frame, &ports))
			return 0;
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		if (!read_ipv6(packet, network, frame, &ports))
			return 0;
	} else {
		return 0;
	}
	if (!ports)
		return 1;
	if ((void *)(ports + 2) > end) {
		packet->opaque |= protocol_bit(packet->destination.protocol) | ALL_PROTOCOLS;
		return 1;
	}
	packet->has_ports = 1;
	packet->source.port = ports[0];
	packet->destination.port = ports[1];
	if (packet->source.protocol == IPPROTO_TCP && (void *)ports + 14 <= end)
		packet->syn = (((__u8 *)ports)[13] & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	return 1;
}

SEC("xdp.frags")
int holdfast_steer(struct xdp_md *ctx)
{
	struct frame frame = {
		.start = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.xdp = ctx,
	};
	struct packet packet = {};
	int decision = TO_KERNEL;
	__u32 only = 0;
	struct counters *count = bpf_map_lookup_elem(&counts, &only);

	if (!count)
		return XDP_PASS;
	if (is_to_nic(frame.start, frame.end) && read_packet(&packet, &frame))
		decision = packet.icmp ? judge_icmp(ctx, &packet) : judge(&packet);
	switch (decision) {
	case STEERED:
		if (packet.access & ANY_LIMIT && is_dropped(&packet))
			return XDP_DROP;
		count->steered++;
		break;
	case RETURNED:
		count->returned++;
		break;
	default:
		count->passed++;
		return XDP_PASS;
	}
	return redirect(ctx, count);
}

/* Whether this process has ended, and the next one has not started in time. */
static __always_inline int has_ended(void)
{
	__u32 only = 0;
	__u64 *end = bpf_map_lookup_elem(&guard_end, &only);

	return end && *end && bpf_ktime_get_ns() > *end;
}

/* Bytes that decide: Ethernet, two VLAN tags, an IPv6 header with some extensions (the longest IPv4
 * header has 60 bytes), ports. Behind longer extensions the address decides. */
#define GUARD_LEN (ETH_HLEN + 8 + 128 + 4)

/* The guard, behind the XDP program at ingress: drops the packets that the XDP program would
 * redirect. Only packets that it missed come here, because it was removed, replaced, or has not yet
 * been given the NIC's new MAC. The kernel's TCP would answer them by a RST, and a kernel that
 * forwards would send a backend's reply to the client, which would answer by a RST; either ends a
 * connection that goes on as soon as the XDP program is back. ICMP is left to the kernel, which
 * resets nothing for it. */
SEC("classifier")
int holdfast_guard(struct __sk_buff *skb)
{
	struct packet packet = {};
	__u32 only = 0, len = skb->len < GUARD_LEN ? skb->len : GUARD_LEN;
	struct counters *count = bpf_map_lookup_elem(&counts, &only);
	struct frame frame = { .skb = skb };

	/* Also ignores frames for other hosts, as the kernel's TCP does. */
	if (!count || skb->pkt_type != PACKET_HOST || has_ended())
		return TC_ACT_UNSPEC;
	/* Headers may lie outside of the linear part, which is all that a program can read. */
	if ((long)skb->data_end - (long)skb->data < len)
		bpf_skb_pull_data(skb, len);
	frame.start = (void *)(long)skb->data;
	frame.end = (void *)(long)skb->data_end;
	if (!read_packet(&packet, &frame) || packet.icmp || judge(&packet) == TO_KERNEL)
		return TC_ACT_UNSPEC;
	count->guarded++;
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
