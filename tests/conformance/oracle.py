"""Oracle: the expected output of a balancer, written from the RFCs and docs/, not from its code.

`Oracle.judge_forward` and `judge_reply` build, with scapy, the packet that must have been sent, and list the
differences of the one that was sent. Fields that the balancer may choose (outer source inside of its prefix, GUE source
port, full-NAT source, identification) are taken from the packet that was sent, after they were checked: in
range, constant within a flow. All else is compared byte for byte.
"""

import ipaddress
from dataclasses import dataclass

from facts import ANY, TRANSLATING, TUNNELS
from compare import differences
from packets import IP, UDP, Frame, Headers, IPv6, readdressed
from segments import ACK, RST, SYN, acknowledges, clamped, flags, from_proxied, lowered, number, proxy_header, to_proxied
from rewriting import error_across, error_to_client, fewer_hops, fragments, framed, translated, with_header_sum, with_icmp

OUTER_HOPS = 64
# Bytes of an IP header.
LEAST = {4: 20, 6: 40}
DROPS = {"expired": "ttl_exceeded", "too_big": "too_big", "no_flow": "request_no_flow"}
# Type and code by IP version.
ERRORS = {"expired": {4: (11, 0), 6: (3, 0)}, "too_big": {4: (3, 4), 6: (2, 0)}}
# Longest errors: 98 bytes with the Ethernet header, as in other balancers; RFC 4443 2.4 (c).
ICMP4_PACKET, ICMP6_PACKET = 84, 1280
PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_GUE = 4, 41, 17


@dataclass
class Flow:
    """State of a flow."""

    vip: object
    backend: object
    client_mac: str
    client_tags: list
    interface: str
    # The field that differs from flow to flow: outer source, GUE source port, or full-NAT source.
    entropy: object = None
    # The flow may have started again, and then have another source in full NAT.
    renewed: bool = False
    # This packet changed the entropy field.
    fresh: bool = False
    # With PROXY protocol: the client's initial sequence number.
    first: int | None = None
    # The backend has answered the SYN.
    answered: bool = False
    # The backend has acknowledged the header.
    acknowledged: bool = False


class Oracle:
    """Judges packets of one configuration, in their order."""

    def __init__(self, facts):
        self.facts = facts
        self.flows = {}
        # Flows of fragmented datagrams, by source, destination, protocol and identification.
        self.datagrams = {}
        # New identifications of the datagrams in full NAT, as two clients may have chosen the same
        # one.
        self.identifications = {}

    # ---- expected verdict ----

    def expect(self, data, backend):
        """Returns the expected result of a well-formed packet from a client, if `backend` (a name) is chosen.

        One of "kernel", "no_flow", "out", "too_big", "expired".
        """
        headers = Headers(data)
        _, _, destination, port, protocol = self._datagram(headers)
        vip = self.facts.vip_of(destination, protocol, port)
        if vip is None:
            return "kernel"
        if vip.forward in TRANSLATING and headers.hops <= 1:
            return "expired"
        if vip.forward == "full_nat" and self._is_lone_reset(data, headers):
            return "no_flow"
        hop = vip.backends[backend].hop
        fixed = headers.dont_fragment or vip.forward not in TUNNELS
        too_big = self._length(data, headers, vip, vip.backends[backend]) > hop.mtu
        return "too_big" if too_big and fixed else "out"

    def _length(self, data, headers, vip, backend):
        """Returns the length of the packet after forwarding, without a PROXY header."""
        if vip.forward == "full_nat" and backend.address.version != headers.version:
            return LEAST[backend.address.version] + len(data) - headers.transport
        return len(data) + self._overhead(vip, backend)

    def _is_lone_reset(self, data, headers):
        """Whether the packet is a RST of an unknown flow, which gets no SNAT port."""
        return self._key(headers) not in self.flows and headers.protocol == 6 and bool(flags(data, headers) & RST)

    def may_be_forgotten(self, data):
        """Whether the packet is a RST of a flow that a SYN, not forwarded itself, may have ended."""
        headers = Headers(data)
        flow = self.flows.get(self._key(headers))
        return flow is not None and flow.renewed and headers.protocol == 6 and bool(flags(data, headers) & RST)

    def any_backend(self, data):
        """Returns the name of a backend of the packet's VIP; None without a VIP."""
        _, _, destination, port, protocol = Headers(data).flow()
        vip = self.facts.vip_of(destination, protocol, port)
        return next(iter(vip.backends), None) if vip else None

    # ---- from a client to a backend ----

    def judge_forward(self, frame, interface, name, sent):
        """Judges a client's frame from `interface`; `sent` are (interface, bytes) to backend `name`."""
        data = frame.data
        headers = Headers(data)
        flow = self._flow_of(frame, headers, interface, name)
        if isinstance(flow, str):
            return [flow]
        hop = flow.backend.hop
        if hop is None:
            return [f"{name} has no neighbour, so nothing can be sent to it"]
        problems, outs = [], []
        for nic, out in sent:
            if nic not in (None, hop.interface):
                problems.append(f"sent out of {nic}, but {name} is behind {hop.interface}")
            outs.append(Frame(out))
        inners = self._inner_packets(data, flow, hop, len(sent), problems)
        for inner, out in zip(inners, outs):
            expected = self._to_backend(inner, headers, flow, hop, out, problems)
            if expected is not None:
                whole = framed(expected, hop.mac, self.facts.nics[hop.interface].mac, hop.tags, frame)
                problems += differences(whole, out.raw, frame.padding)
        return problems

    @staticmethod
    def _key(headers):
        """Returns the flow of a packet as its sender sees it; for an ICMP error, that of the quoted packet."""
        if not headers.is_error():
            return headers.flow()
        source, source_port, destination, port, protocol = Headers(headers.data[headers.transport + 8:]).flow()
        return destination, port, source, source_port, protocol

    def _datagram(self, headers):
        """Returns the flow of a packet; for a later fragment, that of the first fragment, or None if that is unknown."""
        key = self._key(headers)
        if headers.fragment is None:
            return key
        datagram = key[0], key[2], key[4], headers.fragment[2]
        if headers.fragment[0] == 0:
            self.datagrams[datagram] = key
        return self.datagrams.get(datagram)

    def _flow_of(self, frame, headers, interface, name):
        key = self._datagram(headers)
        if key is None:
            return "forwarded, but the first fragment of its datagram has not been seen"
        vip = self.facts.vip_of(key[2], key[4], key[3])
        if vip is None:
            return f"forwarded to {name}, but no VIP listens at {key[2]} port {key[3]} protocol {key[4]}"
        if name not in vip.backends:
            return f"forwarded to {name}, which is no backend of {vip.name}"
        if vip.protocol == ANY:
            key = key[0], 0, key[2], 0, ANY
        flow = self.flows.get(key)
        if flow is None or flow.backend.name != name or flow.vip.name != vip.name:
            flow = Flow(vip, vip.backends[name], frame.src, frame.tags, interface)
            if not headers.is_error():
                self.flows[key] = flow
        if not headers.is_error():
            flow.client_mac, flow.client_tags, flow.interface = frame.src, frame.tags, interface
        return flow

    def _inner_packets(self, data, flow, hop, count, problems):
        """Returns the packets to send: the packet itself, or its fragments if it is too long for a tunnel."""
        overhead = self._overhead(flow.vip, flow.backend)
        if self._length(data, Headers(data), flow.vip, flow.backend) <= hop.mtu:
            if count != 1:
                problems.append(f"{count} frames were sent, not 1")
            return [data]
        headers = Headers(data)
        if headers.version == 4 and not headers.dont_fragment and flow.vip.forward in TUNNELS:
            pieces = fragments(data, hop.mtu - overhead)
            if count != len(pieces):
                problems.append(f"{count} frames were sent, not {len(pieces)} fragments")
            return pieces
        problems.append(f"{len(data)} bytes and {overhead} of outer headers were sent over an MTU of {hop.mtu}")
        return []

    def _overhead(self, vip, backend):
        if vip.forward not in TUNNELS:
            return 0
        return (20 if backend.address.version == 4 else 40) + (12 if vip.forward == "gue" else 0)

    def _to_backend(self, data, headers, flow, hop, out, problems):
        mode = flow.vip.forward
        if out.data is None or out.data[0] >> 4 not in (4, 6) or len(out.data) < LEAST[out.data[0] >> 4]:
            problems.append(f"what was sent is no IP packet: {out.summary()}")
            return None
        seen = Headers(out.data)
        crosses = mode == "full_nat" and flow.backend.address.version != headers.version
        data = self._with_mss(data, headers, flow, grows=crosses and headers.version == 4)
        if mode == "dsr":
            return data
        if mode in TUNNELS:
            return self._encapsulated(data, flow, seen, problems)
        port = flow.backend.port
        if headers.is_error():
            return self._error_to_backend(data, headers, flow, seen, problems)
        if mode == "nat":
            return fewer_hops(readdressed(data, destination=(str(flow.backend.address), port)))
        return self._full_nat(data, headers, flow, seen, problems)

    @staticmethod
    def _with_mss(data, headers, flow, grows):
        """Returns the packet with its MSS clamped to the VIP's limit and to the other family's header."""
        return clamped(lowered(data, LEAST[6] - LEAST[4], headers) if grows else data, flow.vip.keys.get("mss"), headers)

    def _encapsulated(self, data, flow, seen, problems):
        """Encapsulates a packet: RFC 2003, RFC 2473, GUE variant 0 (draft-ietf-intarea-gue; net/ipv4/fou.c of Linux)."""
        inner_version, version = data[0] >> 4, flow.backend.address.version
        protocol = PROTOCOL_IPV4 if inner_version == 4 else PROTOCOL_IPV6
        traffic_class = data[1] if inner_version == 4 else (data[0] & 15) << 4 | data[1] >> 4
        if seen.version != version:
            problems.append(f"outer IPv{seen.version}, but {flow.backend.address} is IPv{version}")
            return None
        source = ipaddress.ip_address(seen.source)
        prefix = self.facts.tunnel_sources[version]
        if prefix is None or source not in prefix:
            problems.append(f"outer source {source} is not in {prefix}")
        body, next_protocol, entropy = data, protocol, (source,)
        if flow.vip.forward == "gue":
            body, next_protocol = self._gue(data, protocol, seen, problems), PROTOCOL_GUE
            entropy = source, seen.ports and seen.ports[0]
        if version == 6:
            entropy = *entropy, seen.flow_label
        self._constant(flow, entropy, problems, "outer source")
        if version == 4:
            outer = IP(src=seen.source_text, dst=str(flow.backend.address), tos=traffic_class, ttl=OUTER_HOPS, id=seen.identification,
                       flags="DF" if self._outer_df(data) else 0, proto=next_protocol)
        else:
            # RFC 6438: the flow label carries the flow's entropy.
            outer = IPv6(src=seen.source_text, dst=str(flow.backend.address), tc=traffic_class, hlim=OUTER_HOPS, fl=seen.flow_label,
                         nh=next_protocol)
        return bytes(outer / body)

    def _gue(self, data, protocol, seen, problems):
        if seen.protocol != PROTOCOL_GUE or seen.ports is None:
            problems.append("no UDP header behind the outer IP header")
            return data
        port = seen.ports[0]
        if port < 0xC000:
            problems.append(f"GUE source port {port} is not in the ephemeral range 49152-65535 (RFC 8086 3.2.1)")
        header = bytes([0, protocol, 0, 0])
        # RFC 6935, RFC 6936: a checksum of 0, also over IPv6.
        return UDP(sport=port, dport=self.facts.gue_port, chksum=0, len=8 + 4 + len(data)) / (header + data)

    def _outer_df(self, data):
        if self.facts.tunnel_df == "inner":
            return data[0] >> 4 == 6 or bool(data[6] & 0x40)
        return self.facts.tunnel_df == "set"

    def _constant(self, flow, entropy, problems, what):
        if flow.entropy is None or flow.renewed:
            flow.fresh = flow.entropy != entropy
            flow.entropy, flow.renewed = entropy, False
        elif flow.entropy != entropy:
            problems.append(f"{what} was {flow.entropy} in this flow, and is {entropy}")

    # ---- full NAT ----

    def _full_nat(self, data, headers, flow, seen, problems):
        backend, port = flow.backend, flow.backend.port or (headers.ports and headers.ports[1])
        source = ipaddress.ip_address(seen.source)
        source_port = seen.ports and seen.ports[0]
        if not any(source in prefix for prefix in self.facts.pool):
            problems.append(f"source {source} is not in the pool {self.facts.pool}")
        if (headers.ports is None) != (seen.ports is None):
            problems.append("what was sent has ports where none belong, or none where some do")
            return None
        if headers.ports is None:
            # A later fragment has no ports, before and after forwarding.
            source_port = flow.entropy[1]
        if source_port not in self.facts.pool_ports:
            problems.append(f"source port {source_port} is not in {self.facts.pool_ports}")
        if headers.ports and headers.protocol == 6 and flags(data, headers) & (SYN | ACK) == SYN:
            # Another connection of the same client and port may have another source.
            flow.renewed = True
        self._constant(flow, (source, source_port), problems, "full-NAT source")
        ends = (str(source), source_port), (str(backend.address), port)
        came = len(data) - headers.transport
        if flow.vip.keys.get("proxy") == "v2":
            data = self._proxied(data, headers, flow)
            headers = Headers(data)
        if headers.version == backend.address.version:
            return fewer_hops(self._renumbered(readdressed(data, *ends), headers, seen, problems))
        return translated(data, headers, *ends, seen, came)

    def _renumbered(self, data, headers, seen, problems):
        """Returns a fragment with its new identification, one for all fragments of the datagram."""
        if headers.fragment is None or seen.fragment is None:
            return data
        came = headers.source, headers.destination, headers.protocol, headers.fragment[2]
        given = self.identifications.setdefault(came, seen.fragment[2])
        if given != seen.fragment[2]:
            problems.append(f"the datagram had identification {given}, and has {seen.fragment[2]}")
        out = bytearray(data)
        if headers.version == 4:
            out[4:6] = given.to_bytes(2, "big")
            return with_header_sum(out)
        at = seen.transport - 4
        out[at:at + 4] = given.to_bytes(4, "big")
        return bytes(out)

    def _proxied(self, data, headers, flow):
        if flow.fresh:
            opens = flags(data, headers) & (SYN | ACK) == SYN
            flow.first, flow.fresh = number(data, headers, 4) if opens else None, False
            flow.answered = flow.acknowledged = False
        source, source_port, destination, port, _ = headers.flow()
        if flow.first is None:
            # The SYN was not seen: the expected numbers are unknown.
            return data
        return to_proxied(data, proxy_header((source, source_port), (destination, port)), flow)

    # ---- replies of the balancer itself ----

    def judge_error(self, frame, way, outcome):
        """Judges the ICMP error that replies to `frame`, or its drop under the rate limit; `way` is the reason."""
        self.note(frame.data)
        if outcome.verdict == "drop":
            later = Headers(frame.data).fragment is not None and Headers(frame.data).fragment[0] > 0
            # All fragments of a datagram are dropped with the first one.
            wanted = "fragment_first_dropped" if later else DROPS[way]
            return [] if outcome.line["reason"] == wanted else [f"it was to be dropped as {wanted}"]
        if outcome.verdict != "reply" or way not in ERRORS or len(outcome.sent) != 1:
            return [f"it was to be answered or dropped: {way}"]
        data, out = frame.data, Frame(outcome.sent[0][1])
        problems, reply = [], out.data
        headers = Headers(reply)
        if headers.destination != Headers(data).source or out.dst != frame.src:
            problems.append(f"the error goes to {out.summary()}, not to the sender of the packet")
        message, quote = reply[headers.transport:], reply[headers.transport + 8:]
        expected = ERRORS[way][headers.version]
        if headers.protocol != (1 if headers.version == 4 else 58) or tuple(message[:2]) != expected:
            problems.append(f"{out.summary()}: expected ICMP type and code {expected}")
        if data[:len(quote)] != quote or len(quote) < min(len(data), Headers(data).transport + 8):
            problems.append("what is quoted is not the beginning of the packet, headers and 8 bytes at least")
        # The headers and 8 bytes behind them are quoted in any case (RFC 1122 3.2.2).
        longest = max(ICMP4_PACKET, 28 + Headers(data).transport + 8) if headers.version == 4 else ICMP6_PACKET
        if len(reply) > longest:
            problems.append(f"the error has {len(reply)} bytes, more than {longest}")
        return problems

    def note(self, data):
        """Records a packet that is not forwarded: a SYN may have ended its flow, which then starts again."""
        headers = Headers(data)
        key = self._key(headers)
        if not headers.is_error() and key in self.flows and headers.protocol == 6 and flags(data, headers) & (SYN | ACK) == SYN:
            self.flows[key].renewed = True

    # ---- from a backend to a client ----

    def judge_reply(self, frame, key, sent):
        """Judges a backend's reply in the flow `key`; `sent` are (interface, bytes) to the client."""
        flow = self.flows[key]
        if len(sent) != 1:
            return [f"{len(sent)} frames were sent, not 1"]
        nic, out = sent[0]
        problems = [] if nic in (None, flow.interface) else [f"sent out of {nic}; the client is at {flow.interface}"]
        data = frame.data
        headers = Headers(data)
        client, client_port, vip, vip_port, _ = key
        ends = (vip, vip_port), (client, client_port)
        crosses = headers.version != ipaddress.ip_address(client).version
        data = self._with_mss(data, headers, flow, grows=crosses and headers.version == 4)
        if flow.first is not None and not headers.is_error():
            flow.answered |= bool(flags(data, headers) & SYN)
            length = len(proxy_header(ends[1], ends[0]))
            came, data = data, from_proxied(data, length, flow)
            flow.acknowledged |= flow.answered and acknowledges(came, length, flow.first)
        headers = Headers(data)
        if headers.is_error() and crosses:
            of_quote = (client, client_port), (vip, vip_port)
            links = self.facts.nics[flow.interface].mtu, flow.backend.hop.mtu
            expected = error_across(data, headers, (vip, client), of_quote, Headers(Frame(out).data), links)
        elif headers.is_error():
            expected = error_to_client(data, headers, ends)
        elif not crosses:
            expected = fewer_hops(readdressed(data, *ends))
        else:
            expected = translated(data, headers, *ends, Headers(Frame(out).data))
        vlans = [tag & 0xFFF for tag in flow.client_tags]
        whole = framed(expected, flow.client_mac, self.facts.nics[flow.interface].mac, vlans, frame)
        return problems + differences(whole, out, frame.padding)

    def is_stray(self, key, data):
        """Whether a backend's SYN does not acknowledge the SYN of its flow with a PROXY header."""
        flow, headers = self.flows[key], Headers(data)
        if flow.vip.keys.get("proxy") != "v2" or headers.is_error() or not flags(data, headers) & SYN:
            return False
        known = flags(data, headers) & ACK and flow.first is not None and not flow.acknowledged
        return not known or number(data, headers, 8) != (flow.first + 1) % 2**32

    def flow_of_reply(self, frame):
        """Returns the key of the flow that a backend's frame belongs to; None without a match."""
        headers = Headers(frame.data)
        source, source_port, destination, port, protocol = self._key(headers)
        for key, known in self.flows.items():
            # Ports first, as their comparison is faster.
            if known.vip.forward not in TRANSLATING or key[4] != protocol or (known.entropy or key)[1] != port:
                continue
            if (source, source_port) != (str(known.backend.address), known.backend.port or key[3]):
                continue
            if destination == str(known.entropy[0]) if known.entropy else destination == key[0]:
                return key
        return None

    # ---- ICMP errors ----

    def _error_to_backend(self, data, headers, flow, seen, problems):
        """Returns an error about VIP -> client; the quote becomes the backend's packet (RFC 5508, RFC 7915 4.2)."""
        at = headers.transport + 8
        backend = str(flow.backend.address), flow.backend.port
        if flow.vip.forward == "nat":
            quoted = readdressed(data[at:], source=backend)
            return fewer_hops(with_icmp(data[:at] + quoted, headers, destination=backend[0]))
        if flow.entropy is None:
            problems.append("an error about a flow that has no source of ours")
            return None
        source, port = str(flow.entropy[0]), flow.entropy[1]
        if flow.renewed:
            # The flow's last packet was not forwarded: only this error shows the source that the
            # flow would have had.
            _, _, source, port, _ = Headers(seen.data[seen.transport + 8:]).flow()
            flow.entropy, flow.renewed = (ipaddress.ip_address(source), port), False
        if headers.version != flow.backend.address.version:
            backend = backend[0], backend[1] or Headers(data[at:]).ports[0]
            links = flow.backend.hop.mtu, self.facts.nics[flow.interface].mtu
            return error_across(data, headers, (seen.source_text, backend[0]), (backend, (source, port)), seen, links)
        quoted = readdressed(data[at:], source=backend, destination=(source, port))
        return fewer_hops(with_icmp(data[:at] + quoted, headers, source=seen.source_text, destination=backend[0]))
