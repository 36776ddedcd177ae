// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The tc program of a backend, `holdfast_backend`, at the ingress of its NIC. It decapsulates packets
// for VIPs, and finds the backend that has the socket of a packet that its box has no pin for:
//
//   IPIP, GUE          inner destination in `vips`        -> decapsulated, to the kernel
//   GUE with an ask    a socket of the flow is here       -> decapsulated, to the kernel; the box is told
//   (a list of hops)   no socket, another hop is left     -> to that hop
//                      no socket, the last hop            -> decapsulated, to the kernel, which resets
//   GUE with a hello   from a box                         -> back to it: the program is here
//   everything else                                       -> the kernel
//
// An ask is the private data of a GUE header (variant 0, draft-ietf-intarea-gue-09), which a kernel
// without this program skips (net/ipv4/fou_core.c, gue_udp_recv): it then decapsulates the packet.
//
//   magic:32  next:8 count:8 family:8 flags:8  box:32|128  hop:32|128 * count  tag:64
//
// A hello is private data without a packet (protocol 59), `magic:32 zero:16 family:8 flags:8 vip:128
// tag:64`; its answer has another magic and tag.
//
// The tag is SipHash-2-4 of all that but `next`, of the minute and of the inner packet's addresses and
// ports; without it strangers could make backends send packets to each other.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>

#define MAX_HOPS 16
#define MAX_VIPS 4096
#define ASK_MAGIC 0x68664131 /* "hfA1" */
#define OWNER_MAGIC 0x68664f31 /* "hfO1" */
#define HELLO_MAGIC 0x68664831 /* "hfH1" */
#define WELCOME_MAGIC 0x68665731 /* "hfW1" */
/* In the answer to a hello: the program was loaded without the VIP. */
#define VIP_UNKNOWN 1
/* RFC 8200 4.7: nothing follows. */
#define NO_NEXT_HEADER 59
/* The packet is cut off: it is never delivered, only the owner answers. */
#define ASK_PROBE 1
/* Other backends are asked, too: the last hop does not deliver. */
#define ASK_PART 2
#define TCP_LISTEN 10
/* TCP flags. */
#define SYN 2
#define RST 4
#define ACK 16
/* Header of an ICMP or ICMPv6 error. */
#define ICMP_LEN 8
/* Kernel 6.3 (include/uapi/linux/bpf.h): without them only packets in headers of their own family. */
#define DECAP_L3_IPV4 (1ULL << 7)
#define DECAP_L3_IPV6 (1ULL << 8)
#define MINUTE_NS 60000000000ULL

struct address {
	__u8 bytes[16];
};

struct gue {
	__u8 variant_length;
	__u8 protocol;
	__be16 flags;
};

struct ask {
	__be32 magic;
	__u8 next;
	__u8 count;
	__u8 family;
	__u8 flags;
};

struct conf {
	/* Keys of the tags: the present one, and the one before it. */
	__u64 keys[2][2];
	__be16 gue_port;
	__u16 zero;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct conf);
} conf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VIPS);
	__type(key, struct address);
	__type(value, __u8);
} vips SEC(".maps");

enum count { DECAPSULATED, OWNED, PASSED_ON, LAST, PROBES_LOST, BAD_TAG, MALFORMED, REFUSED, HELLOS, COUNTS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64[COUNTS]);
} counts SEC(".maps");

/* Longest outer headers in bytes, from the IP header on: GUE's length field counts up to 31 words. */
#define MAX_OUTER (40 + 8 + 4 + 31 * 4)
/* Bytes of the inner packet that an answer to the box keeps. */
#define QUOTED 60

/* What the tag is over, as SipHash reads it: 8 bytes at a time. */
struct signed_ask {
	struct ask head; /* `next` is 0 */
	__u64 minute;
	struct address box, client, vip;
	__be16 client_port, vip_port;
	__u32 zero;
	struct address hops[MAX_HOPS];
	/* Not signed: room for the outer headers. */
	__u8 outer[MAX_OUTER];
};

#define SIGNED_FIXED (offsetof(struct signed_ask, hops) / 8)

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct signed_ask);
} scratch SEC(".maps");

static __always_inline void count(enum count which)
{
	__u32 zero = 0;
	__u64 *all = bpf_map_lookup_elem(&counts, &zero);
	if (all) all[which]++;
}

#define ROTATE(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))
#define ROUND(a, b, c, d) do { \
	a += b; b = ROTATE(b, 13); b ^= a; a = ROTATE(a, 32); \
	c += d; d = ROTATE(d, 16); d ^= c; \
	a += d; d = ROTATE(d, 21); d ^= a; \
	c += b; b = ROTATE(b, 17); b ^= c; c = ROTATE(c, 32); \
} while (0)

/* SipHash-2-4 (Aumasson, Bernstein 2012) of `words` words of 8 bytes. */
__noinline __u64 siphash(const struct signed_ask *data, __u32 words, __u64 k0, __u64 k1)
{
	if (!data) return 0;
	__u64 a = k0 ^ 0x736f6d6570736575ULL, b = k1 ^ 0x646f72616e646f6dULL;
	__u64 c = k0 ^ 0x6c7967656e657261ULL, d = k1 ^ 0x7465646279746573ULL;
	const __u64 *word = (const void *)data;
	for (__u32 i = 0; i < offsetof(struct signed_ask, outer) / 8; i++) {
		if (i >= words) break;
		__u64 m = word[i];
		d ^= m;
		ROUND(a, b, c, d);
		ROUND(a, b, c, d);
		a ^= m;
	}
	__u64 end = (__u64)words * 8 << 56;
	d ^= end;
	ROUND(a, b, c, d);
	ROUND(a, b, c, d);
	a ^= end;
	c ^= 0xff;
	ROUND(a, b, c, d);
	ROUND(a, b, c, d);
	ROUND(a, b, c, d);
	ROUND(a, b, c, d);
	return a ^ b ^ c ^ d;
}

/* Whether the tag is one of `words` words of this minute or its neighbours, with one of the keys. */
static __noinline int is_signed(struct signed_ask *data, __u32 words, __u64 tag)
{
	__u32 zero = 0;
	struct conf *c = bpf_map_lookup_elem(&conf, &zero);
	if (!c || !data) return 0;
	__u64 minute = bpf_ktime_get_tai_ns() / MINUTE_NS;
	int is = 0;
	for (int key = 0; key < 2; key++) {
		for (int late = -1; late <= 1; late++) {
			data->minute = minute + late;
			is |= siphash(data, words, c->keys[key][0], c->keys[key][1]) == tag;
		}
	}
	data->minute = minute;
	return is;
}

/* A packet as this program sees it. Offsets in bytes from the Ethernet header on. */
struct view {
	struct address own, sender, client, vip;
	__u32 udp;        /* offset of the UDP header */
	__u32 inner;      /* offset of the inner IP header */
	__u32 tcp;        /* offset of the inner TCP header */
	__u8 outer_v6, inner_v6;
	__u8 flags;       /* TCP flags */
	__u8 is_error;    /* an ICMP error about the flow */
	__be16 client_port, vip_port;
};

static __always_inline void map_v4(struct address *to, __be32 from)
{
	__builtin_memset(to, 0, 10);
	to->bytes[10] = to->bytes[11] = 0xff;
	__builtin_memcpy(to->bytes + 12, &from, 4);
}

/* Removes the outer headers. 0: done. */
static __always_inline long decapsulate(struct __sk_buff *skb, const struct view *view)
{
	/* Segments that GRO has merged keep their length. */
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	if (view->outer_v6 != view->inner_v6)
		flags |= view->inner_v6 ? DECAP_L3_IPV6 : DECAP_L3_IPV4;
	long failed = bpf_skb_adjust_room(skb, -(__s32)(view->inner - ETH_HLEN), BPF_ADJ_ROOM_MAC, flags);
	if (failed) return failed;
	__be16 type = view->inner_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	return bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &type, sizeof(type), 0);
}

/* Reads the inner addresses and, of TCP, ports and flags. Returns the protocol, or a negative number. */
static __always_inline int read_inner(struct __sk_buff *skb, struct view *view)
{
	int protocol;
	if (view->inner_v6) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, view->inner, &ip, sizeof(ip))) return -1;
		__builtin_memcpy(&view->client, &ip.saddr, 16);
		__builtin_memcpy(&view->vip, &ip.daddr, 16);
		protocol = ip.nexthdr;
		view->tcp = view->inner + sizeof(ip);
	} else {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, view->inner, &ip, sizeof(ip)) || ip.ihl < 5) return -1;
		map_v4(&view->client, ip.saddr);
		map_v4(&view->vip, ip.daddr);
		protocol = ip.protocol;
		view->tcp = view->inner + ip.ihl * 4;
		if (ip.frag_off & bpf_htons(0x1fff)) return protocol == IPPROTO_TCP ? -1 : protocol;
	}
	if (protocol == IPPROTO_TCP) {
		struct tcphdr tcp;
		if (bpf_skb_load_bytes(skb, view->tcp, &tcp, sizeof(tcp))) return -1;
		view->client_port = tcp.source;
		view->vip_port = tcp.dest;
		view->flags = (tcp.syn ? SYN : 0) | (tcp.rst ? RST : 0) | (tcp.ack ? ACK : 0);
	}
	return protocol;
}

/* Reads the flow that an ICMP error quotes: the quoted packet goes from the VIP to the client. 0: done. */
static __noinline int read_quoted(struct __sk_buff *skb, struct view *view)
{
	if (!view) return -1;
	struct { __be16 vip, client; } ports;
	__u32 at = view->tcp + ICMP_LEN;
	__u8 type;
	if (bpf_skb_load_bytes(skb, view->tcp, &type, sizeof(type))) return -1;
	if (view->inner_v6) {
		struct ipv6hdr ip;
		/* Errors: below 128 (RFC 4443 2.1). */
		if (type >= 128 || bpf_skb_load_bytes(skb, at, &ip, sizeof(ip))) return -1;
		if (ip.nexthdr != IPPROTO_TCP) return -1;
		__builtin_memcpy(&view->client, &ip.daddr, 16);
		at += sizeof(ip);
	} else {
		struct iphdr ip;
		/* Unreachable, time exceeded, parameter problem (RFC 792). */
		if (type != 3 && type != 11 && type != 12) return -1;
		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.ihl < 5) return -1;
		if (ip.protocol != IPPROTO_TCP || ip.frag_off & bpf_htons(0x1fff)) return -1;
		map_v4(&view->client, ip.daddr);
		at += ip.ihl * 4;
	}
	if (bpf_skb_load_bytes(skb, at, &ports, sizeof(ports))) return -1;
	view->vip_port = ports.vip;
	view->client_port = ports.client;
	view->is_error = 1;
	return 0;
}

/* Whether a socket of this host has the flow: a connection, one that closes, or a listener to which the
 * client brings back a valid SYN cookie. */
static __noinline int is_here(struct __sk_buff *skb, const struct view *view)
{
	if (!view) return 0;
	struct bpf_sock_tuple tuple = {};
	__u32 size;
	if (view->inner_v6) {
		__builtin_memcpy(tuple.ipv6.saddr, &view->client, 16);
		__builtin_memcpy(tuple.ipv6.daddr, &view->vip, 16);
		tuple.ipv6.sport = view->client_port;
		tuple.ipv6.dport = view->vip_port;
		size = sizeof(tuple.ipv6);
	} else {
		__builtin_memcpy(&tuple.ipv4.saddr, view->client.bytes + 12, 4);
		__builtin_memcpy(&tuple.ipv4.daddr, view->vip.bytes + 12, 4);
		tuple.ipv4.sport = view->client_port;
		tuple.ipv4.dport = view->vip_port;
		size = sizeof(tuple.ipv4);
	}
	struct bpf_sock *socket = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!socket) return 0;
	int here = socket->state != TCP_LISTEN;
	if (!here && (view->flags & (SYN | RST | ACK)) == ACK) {
		struct tcphdr tcp;
		struct ipv6hdr v6;
		struct iphdr v4;
		if (!bpf_skb_load_bytes(skb, view->tcp, &tcp, sizeof(tcp))) {
			if (view->inner_v6)
				here = !bpf_skb_load_bytes(skb, view->inner, &v6, sizeof(v6)) &&
				       !bpf_tcp_check_syncookie(socket, &v6, sizeof(v6), &tcp, sizeof(tcp));
			else
				here = !bpf_skb_load_bytes(skb, view->inner, &v4, sizeof(v4)) &&
				       !bpf_tcp_check_syncookie(socket, &v4, sizeof(v4), &tcp, sizeof(tcp));
		}
	}
	bpf_sk_release(socket);
	return here;
}

/* Reads an address of the ask's family, at an offset in the packet. */
static __always_inline long read_address(struct __sk_buff *skb, __u32 at, int v6, struct address *to)
{
	if (v6) return bpf_skb_load_bytes(skb, at, to, 16);
	__be32 v4;
	long failed = bpf_skb_load_bytes(skb, at, &v4, 4);
	map_v4(to, v4);
	return failed;
}

static __always_inline __u16 sum_of(const struct iphdr *ip)
{
	__u32 sum = 0;
	const __u16 *words = (const void *)ip;
	for (int i = 0; i < 10; i++) sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

/* Sends the packet to another address, as from this host. The UDP checksum is 0. */
static __noinline int send_to(struct __sk_buff *skb, const struct view *view, const struct address *to, __u16 length)
{
	if (!view || !to) return TC_ACT_SHOT;
	if (view->outer_v6) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip))) return TC_ACT_SHOT;
		__builtin_memcpy(&ip.saddr, &view->own, 16);
		__builtin_memcpy(&ip.daddr, to, 16);
		ip.payload_len = bpf_htons(length - sizeof(ip));
		ip.hop_limit = 64;
		bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	} else {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip))) return TC_ACT_SHOT;
		__builtin_memcpy(&ip.saddr, view->own.bytes + 12, 4);
		__builtin_memcpy(&ip.daddr, to->bytes + 12, 4);
		ip.tot_len = bpf_htons(length);
		ip.ttl = 64;
		ip.check = 0;
		ip.check = sum_of(&ip);
		bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	}
	return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
}

/* Delivers the packet, and tells the box that the flow is here: the ask with another magic and tag, and
 * the inner packet's first bytes. */
static __noinline int deliver(struct __sk_buff *skb, struct view *view, struct signed_ask *data)
{
	if (!view || !data) return TC_ACT_SHOT;
	__u32 length = view->inner - ETH_HLEN;
	if (length < sizeof(struct iphdr) || length > MAX_OUTER) return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, data->outer, length)) return TC_ACT_SHOT;
	__be16 type;
	if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_proto), &type, sizeof(type))) return TC_ACT_SHOT;
	int probe = data->head.flags & ASK_PROBE;
	if (!probe) {
		if (decapsulate(skb, view)) return TC_ACT_SHOT;
		/* Passes this program again, as any packet for the VIP. */
		if (bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS)) return TC_ACT_OK;
		if (skb->len > ETH_HLEN + QUOTED) bpf_skb_change_tail(skb, ETH_HLEN + QUOTED, 0);
		__u64 flags = view->outer_v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
		if (bpf_skb_adjust_room(skb, length, BPF_ADJ_ROOM_MAC, flags)) return TC_ACT_SHOT;
		bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &type, sizeof(type), 0);
		bpf_skb_store_bytes(skb, ETH_HLEN, data->outer, length, 0);
	}
	__be32 magic = bpf_htonl(OWNER_MAGIC);
	bpf_skb_store_bytes(skb, view->udp + sizeof(struct udphdr) + sizeof(struct gue), &magic, sizeof(magic), 0);
	data->head.magic = magic;
	/* In the place of the hops, of which none is signed: the owner. */
	data->hops[0] = view->own;
	__u32 zero = 0;
	struct conf *c = bpf_map_lookup_elem(&conf, &zero);
	if (!c) return TC_ACT_SHOT;
	__u64 tag = siphash(data, SIGNED_FIXED + 2, c->keys[0][0], c->keys[0][1]);
	bpf_skb_store_bytes(skb, view->inner - sizeof(tag), &tag, sizeof(tag), 0);
	__u16 rest = skb->len - view->udp;
	__be16 udp_length = bpf_htons(rest);
	bpf_skb_store_bytes(skb, view->udp + offsetof(struct udphdr, len), &udp_length, sizeof(udp_length), 0);
	return send_to(skb, view, &data->box, skb->len - ETH_HLEN);
}

/* A GUE packet with an ask of `words` words of private data. */
static __always_inline int asked(struct __sk_buff *skb, struct view *view, __u32 words)
{
	__u32 zero = 0, at = view->udp + sizeof(struct udphdr) + sizeof(struct gue);
	struct signed_ask *data = bpf_map_lookup_elem(&scratch, &zero);
	if (!data) return TC_ACT_SHOT;
	struct ask *head = &data->head;
	if (bpf_skb_load_bytes(skb, at, head, sizeof(*head))) goto malformed;
	int v6 = head->family == 6;
	__u32 each = v6 ? 16 : 4, hops = head->count, next = head->next;
	if (v6 != view->outer_v6 || hops > MAX_HOPS || next > hops) goto malformed;
	if (words * 4 != sizeof(*head) + (1 + hops) * each + 8) goto malformed;
	head->next = 0;
	if (read_address(skb, at + sizeof(*head), v6, &data->box)) goto malformed;
	for (__u32 i = 0; i < MAX_HOPS; i++) {
		if (i >= hops) break;
		if (read_address(skb, at + sizeof(*head) + (1 + i) * each, v6, &data->hops[i])) goto malformed;
	}
	data->client = view->client;
	data->vip = view->vip;
	data->client_port = view->client_port;
	data->vip_port = view->vip_port;
	data->zero = 0;
	__u64 tag;
	if (bpf_skb_load_bytes(skb, view->inner - sizeof(tag), &tag, sizeof(tag))) goto malformed;
	if (!is_signed(data, SIGNED_FIXED + hops * 2, tag)) {
		count(BAD_TAG);
		return TC_ACT_SHOT;
	}
	if (is_here(skb, view)) {
		count(OWNED);
		/* Nothing to pin: the packet that the error is about came from here, or the connection ends. */
		if (view->is_error || view->flags & RST) return decapsulate(skb, view) ? TC_ACT_SHOT : TC_ACT_OK;
		return deliver(skb, view, data);
	}
	if (next < hops) {
		count(PASSED_ON);
		struct address *to = &data->hops[next & (MAX_HOPS - 1)];
		__u8 after = next + 1;
		bpf_skb_store_bytes(skb, at + offsetof(struct ask, next), &after, sizeof(after), 0);
		return send_to(skb, view, to, skb->len - ETH_HLEN);
	}
	if (head->flags & (ASK_PROBE | ASK_PART)) {
		count(PROBES_LOST);
		return TC_ACT_SHOT;
	}
	count(LAST);
	return decapsulate(skb, view) ? TC_ACT_SHOT : TC_ACT_OK;
malformed:
	count(MALFORMED);
	return TC_ACT_SHOT;
}

struct hello {
	struct ask head;
	struct address vip;
	__u64 tag;
};

/* Answers the hello of a box. */
static __noinline int greeted(struct __sk_buff *skb, struct view *view)
{
	if (!view) return TC_ACT_SHOT;
	__u32 zero = 0, at = view->udp + sizeof(struct udphdr) + sizeof(struct gue);
	struct conf *c = bpf_map_lookup_elem(&conf, &zero);
	struct signed_ask *data = bpf_map_lookup_elem(&scratch, &zero);
	struct hello hello, answer;
	struct udphdr udp;
	if (!c || !data) return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, at, &hello, sizeof(hello))) return TC_ACT_OK;
	if (bpf_skb_load_bytes(skb, view->udp, &udp, sizeof(udp))) return TC_ACT_OK;
	if (hello.head.magic != bpf_htonl(HELLO_MAGIC)) return TC_ACT_OK;
	data->head = hello.head;
	data->box = view->sender;
	__builtin_memset(&data->client, 0, sizeof(data->client));
	data->vip = hello.vip;
	data->client_port = data->vip_port = 0;
	data->zero = 0;
	if (!is_signed(data, SIGNED_FIXED, hello.tag)) {
		count(BAD_TAG);
		return TC_ACT_SHOT;
	}
	count(HELLOS);
	data->head.magic = bpf_htonl(WELCOME_MAGIC);
	data->head.flags = bpf_map_lookup_elem(&vips, &data->vip) ? 0 : VIP_UNKNOWN;
	data->client = view->own;
	answer.head = data->head;
	answer.vip = hello.vip;
	answer.tag = siphash(data, SIGNED_FIXED, c->keys[0][0], c->keys[0][1]);
	__be16 ports[2] = { udp.dest, udp.source };
	bpf_skb_store_bytes(skb, at, &answer, sizeof(answer), 0);
	bpf_skb_store_bytes(skb, view->udp, ports, sizeof(ports), 0);
	/* Addresses and ports only change places: the rest of the checksum's change. A socket takes no
	 * packet without one over IPv6 (RFC 8200 8.1). */
	__s64 change = bpf_csum_diff((void *)&hello, sizeof(hello), (void *)&answer, sizeof(answer), 0);
	bpf_l4_csum_replace(skb, view->udp + offsetof(struct udphdr, check), 0, change, BPF_F_MARK_MANGLED_0);
	return send_to(skb, view, &view->sender, skb->len - ETH_HLEN);
}

SEC("classifier")
int holdfast_backend(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct conf *c = bpf_map_lookup_elem(&conf, &zero);
	if (!c) return TC_ACT_OK;
	struct view view = {};
	__u8 protocol;
	__u32 transport;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.ihl != 5) return TC_ACT_OK;
		if (ip.frag_off & bpf_htons(0x3fff)) return TC_ACT_OK;
		map_v4(&view.sender, ip.saddr);
		map_v4(&view.own, ip.daddr);
		protocol = ip.protocol;
		transport = ETH_HLEN + sizeof(ip);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip))) return TC_ACT_OK;
		__builtin_memcpy(&view.sender, &ip.saddr, 16);
		__builtin_memcpy(&view.own, &ip.daddr, 16);
		protocol = ip.nexthdr;
		transport = ETH_HLEN + sizeof(ip);
		view.outer_v6 = 1;
	} else {
		return TC_ACT_OK;
	}
	__u32 words = 0;
	if (protocol == IPPROTO_UDP) {
		struct udphdr udp;
		struct gue gue;
		if (bpf_skb_load_bytes(skb, transport, &udp, sizeof(udp)) || udp.dest != c->gue_port) return TC_ACT_OK;
		if (bpf_skb_load_bytes(skb, transport + sizeof(udp), &gue, sizeof(gue))) return TC_ACT_OK;
		/* Variant 0, no control message, no optional fields. */
		if (gue.variant_length & 0xe0 || gue.flags) return TC_ACT_OK;
		words = gue.variant_length & 0x1f;
		view.udp = transport;
		view.inner = transport + sizeof(udp) + sizeof(gue) + words * 4;
		protocol = gue.protocol;
		if (protocol == NO_NEXT_HEADER && words * 4 == sizeof(struct hello)) return greeted(skb, &view);
	} else {
		view.inner = transport;
	}
	if (protocol != IPPROTO_IPIP && protocol != IPPROTO_IPV6) return TC_ACT_OK;
	view.inner_v6 = protocol == IPPROTO_IPV6;
	int inside = read_inner(skb, &view);
	if (inside < 0) return TC_ACT_OK;
	if (!bpf_map_lookup_elem(&vips, &view.vip)) {
		count(REFUSED);
		return TC_ACT_OK;
	}
	__be32 magic = 0;
	if (words && !bpf_skb_load_bytes(skb, view.udp + sizeof(struct udphdr) + sizeof(struct gue), &magic, 4) &&
	    magic == bpf_htonl(ASK_MAGIC)) {
		int is_icmp = inside == (view.inner_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
		if (inside != IPPROTO_TCP && (!is_icmp || read_quoted(skb, &view))) {
			count(MALFORMED);
			return TC_ACT_SHOT;
		}
		return asked(skb, &view, words);
	}
	if (decapsulate(skb, &view)) return TC_ACT_OK;
	count(DECAPSULATED);
	return TC_ACT_OK;
}

char _license[] SEC("license") = "Dual MIT/GPL";
