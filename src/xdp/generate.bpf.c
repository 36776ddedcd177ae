// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The XDP programs of the traffic generator. All of them recognise a packet of the generator by the
// magic number at the start of its UDP or TCP payload; every other packet stays in the kernel.
//
//   generate_catch   receive: redirects the generator's packets to the AF_XDP socket of their queue
//   generate_sink    receive: counts and drops them, and detects flows with two backends
//   generate_blast   transmit: run by BPF_PROG_RUN with live frames; turns each frame into a packet
//                    of another flow and sends it on a NIC
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Keep in step with generate.rs. */
#define MAX_QUEUES 256
#define WATCHED 65536

/* Keep in step with generator/signature.rs: "HF" from the client, "HG" from the backend. */
#define MAGIC_REQUEST 0x4846
#define MAGIC_REPLY 0x4847

/* Keep in step with generator/tuple.rs. */
#define FIRST_PORT 1024
#define PORTS 64000

/* Longest gap of a paced sender in ns, such as the one between two calls of BPF_PROG_RUN, that is
 * made up for, at twice its pace, not by a burst. A longer gap is lost. */
#define MAX_BEHIND_NS 50000000

/* Packets between two readings of the clock by a sender without a pace: a power of two. */
#define LOOK_AT_CLOCK 64

/* The start of a packet's payload. */
struct signature {
	__be16 magic;
	__be16 flow_high;
	__be16 flow_low;
};

struct sink_counters {
	__u64 packets;
	__u64 bytes;
	/* Packets of a watched flow to a backend other than its first one. */
	__u64 violations;
};

/* State of the sender on a CPU. */
struct blast_state {
	__u64 random;
	__u64 sent;
	/* Time at which the next packet is due, in 1/256 ns. */
	__u64 due;
	/* Earliest time at which the next packet may be sent, in 1/256 ns. */
	__u64 earliest;
	/* Time after which no packet is sent, in ns of CLOCK_MONOTONIC. */
	__u64 end;
	__u64 ended;
};

/* Written once, when the object is loaded. */
const volatile __u32 ipv6 = 0;
const volatile __u32 tcp = 0;
const volatile __u32 interface = 0;
const volatile __u32 flows = 1;
/* Flows are used in turn; else at random. */
const volatile __u32 sequential = 0;
/* Last four bytes of the first client's address, in host byte order. */
const volatile __u32 client = 0;
/* One's complement sums of the frame's headers and payload, without the fields that the program
 * writes. */
const volatile __u32 ip_sum = 0;
const volatile __u32 transport_sum = 0;
/* Time between two packets in 1/256 ns; 0: as fast as possible. */
const volatile __u64 interval = 0;

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
	__type(value, struct sink_counters);
} sunk SEC(".maps");

/* Backend of the flow's first packet by flow number, or 0. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WATCHED);
	__type(key, __u32);
	__type(value, __u64);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct blast_state);
} blasts SEC(".maps");

/* Returns the signature of a packet, or 0 if the generator did not send it. Headers have no
 * options. */
static __always_inline struct signature *find_signature(void *start, void *end)
{
	struct ethhdr *ethernet = start;
	struct signature *found;
	void *transport;
	__u8 protocol;

	if ((void *)(ethernet + 1) + sizeof(struct iphdr) > end)
		return 0;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);

		protocol = ip->protocol;
		transport = ip + 1;
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end)
			return 0;
		protocol = ip->nexthdr;
		transport = ip + 1;
	} else {
		return 0;
	}
	if (protocol == IPPROTO_UDP)
		found = transport + sizeof(struct udphdr);
	else if (protocol == IPPROTO_TCP)
		found = transport + sizeof(struct tcphdr);
	else
		return 0;
	if ((void *)(found + 1) > end)
		return 0;
	if (found->magic != bpf_htons(MAGIC_REQUEST) && found->magic != bpf_htons(MAGIC_REPLY))
		return 0;
	return found;
}

SEC("xdp.frags")
int generate_catch(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (!find_signature(start, end))
		return XDP_PASS;
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
}

/* Returns the identity of a backend: its MAC (dsr), and the last two bytes of its address (nat). */
static __always_inline __u64 backend_of(struct ethhdr *ethernet)
{
	__u64 backend = 0;
	__u16 address;

	__builtin_memcpy(&backend, ethernet->h_dest, ETH_ALEN);
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		address = ((struct iphdr *)(ethernet + 1))->daddr >> 16;
	else
		address = ((struct ipv6hdr *)(ethernet + 1))->daddr.s6_addr16[7];
	return backend | (__u64)address << 48;
}

SEC("xdp.frags")
int generate_sink(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct signature *signature = find_signature(start, end);
	struct sink_counters *counters;
	__u64 backend, *first;
	__u32 key = 0;

	if (!signature)
		return XDP_PASS;
	counters = bpf_map_lookup_elem(&sunk, &key);
	if (!counters)
		return XDP_DROP;
	counters->packets++;
	counters->bytes += end - start;
	key = (__u32)bpf_ntohs(signature->flow_high) << 16 | bpf_ntohs(signature->flow_low);
	if (key >= WATCHED)
		return XDP_DROP;
	if (start + sizeof(struct ethhdr) + sizeof(struct ipv6hdr) > end)
		return XDP_DROP;
	first = bpf_map_lookup_elem(&watched, &key);
	if (!first)
		return XDP_DROP;
	backend = backend_of(start);
	if (!*first)
		*first = backend;
	else if (*first != backend)
		counters->violations++;
	return XDP_DROP;
}

/* Returns the checksum of a sum. */
static __always_inline __be16 checksum(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return bpf_htons(~sum);
}

static __always_inline __u32 next_flow(struct blast_state *state)
{
	if (sequential)
		return state->sent % flows;
	/* xorshift64 (Marsaglia 2003), and the high bits scaled to the number of flows. */
	state->random ^= state->random << 13;
	state->random ^= state->random >> 7;
	state->random ^= state->random << 17;
	return (state->random >> 32) * flows >> 32;
}

/* Whether a packet is due now. */
static __always_inline int is_due(struct blast_state *state)
{
	__u64 now;

	if (state->ended || (!interval && state->sent % LOOK_AT_CLOCK))
		return !state->ended;
	now = bpf_ktime_get_ns();
	if (now >= state->end) {
		state->ended = 1;
		return 0;
	}
	if (!interval)
		return 1;
	now <<= 8;
	if (now < state->due || now < state->earliest)
		return 0;
	if (now - state->due > (__u64)MAX_BEHIND_NS << 8)
		state->due = now;
	state->due += interval;
	state->earliest = now + interval / 2;
	return 1;
}

/* Writes source address, source port and flow number, and updates the checksums. */
static __always_inline int write_packet(void *start, void *end, __u32 flow)
{
	__u32 address = client + flow / PORTS;
	__u16 port = FIRST_PORT + flow % PORTS;
	__u64 sum = (address >> 16) + (address & 0xffff);
	struct signature *signature;
	void *transport;

	if (ipv6) {
		struct ipv6hdr *ip = start + sizeof(struct ethhdr);

		if ((void *)(ip + 1) > end)
			return 0;
		ip->saddr.s6_addr32[3] = bpf_htonl(address);
		transport = ip + 1;
	} else {
		struct iphdr *ip = start + sizeof(struct ethhdr);

		if ((void *)(ip + 1) > end)
			return 0;
		ip->saddr = bpf_htonl(address);
		ip->check = checksum(ip_sum + sum);
		transport = ip + 1;
	}
	sum += transport_sum + port + (flow >> 16) + (flow & 0xffff);
	if (tcp) {
		struct tcphdr *header = transport;

		signature = (void *)(header + 1);
		if ((void *)(signature + 1) > end)
			return 0;
		header->source = bpf_htons(port);
		header->check = checksum(sum);
	} else {
		struct udphdr *header = transport;

		signature = (void *)(header + 1);
		if ((void *)(signature + 1) > end)
			return 0;
		header->source = bpf_htons(port);
		header->check = checksum(sum);
		/* 0 would mean "no checksum". */
		if (!header->check)
			header->check = 0xffff;
	}
	signature->flow_high = bpf_htons(flow >> 16);
	signature->flow_low = bpf_htons(flow & 0xffff);
	return 1;
}

SEC("xdp")
int generate_blast(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 key = 0;
	struct blast_state *state = bpf_map_lookup_elem(&blasts, &key);

	if (!state || !is_due(state))
		return XDP_DROP;
	if (!write_packet(start, end, next_flow(state)))
		return XDP_ABORTED;
	state->sent++;
	return bpf_redirect(interface, 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
