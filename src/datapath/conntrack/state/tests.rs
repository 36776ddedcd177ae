use super::*;

/// Arguments of [`step`].
#[derive(Debug, Clone, Copy)]
struct Case {
    state: State,
    expired: bool,
    event: Event,
    policy: Policy,
}

impl Case {
    fn is_tcp(&self) -> bool {
        match self.event {
            Event::Request(class) | Event::Reply(class) => !matches!(class, Class::Datagram { .. }),
            Event::Sweep(protocol) => protocol == Protocol::Tcp,
        }
    }

    fn is_closing(&self) -> bool {
        let both = State::FIN_CLIENT.with(State::FIN_BACKEND);
        let fins = if self.policy.forward == Forward::Nat { both } else { State::FIN_CLIENT };
        self.state.has(State::RST) || self.state.has(fins)
    }

    /// Whether both ends of a TCP connection wait for each other.
    fn is_open(&self) -> bool {
        let pin = self.is_tcp() && !self.state.has(State::REMOTE);
        pin && self.state.has(State::ESTABLISHED) && !self.is_closing()
    }

    fn is_terminated(&self) -> bool {
        self.is_tcp() && (self.state.has(State::TERMINATED) || self.policy.terminate)
    }

    fn is_reset_when_idle(&self) -> bool {
        self.policy.reset_idle && self.is_open() && !self.state.has(State::TERMINATED)
    }

    fn is_sweep(&self) -> bool {
        matches!(self.event, Event::Sweep(_))
    }

    fn is_request(&self, class: Class) -> bool {
        self.event == Event::Request(class)
    }

    fn is_reply(&self, class: Class) -> bool {
        self.event == Event::Reply(class)
    }

    fn is_ack(&self, resumes: bool) -> bool {
        PROOFS.into_iter().any(|proof| self.is_request(Class::Ack { resumes, proof }))
    }

    fn is_fin(&self) -> bool {
        PROOFS.into_iter().any(|proof| self.is_request(Class::Fin { proof }))
    }

    fn is_reply_of(&self, classes: impl Fn(Proof) -> Class) -> bool {
        PROOFS.into_iter().any(|proof| self.is_reply(classes(proof)))
    }

    fn is_dsr(&self) -> bool {
        self.policy.forward == Forward::Dsr
    }

    fn proof(&self) -> Option<Proof> {
        match self.event {
            Event::Request(Class::Ack { proof, .. } | Class::Fin { proof }) => Some(proof),
            _ => None,
        }
    }

    /// Returns the state after the client's ACK: from the bits of establishment, those it leads to.
    fn acknowledged(&self) -> State {
        const E: State = State::ESTABLISHED;
        const A: State = State::ANSWERED;
        const U: State = State::UNPROVEN;
        let step = self.proof() == Some(Proof::Step);
        let bits = E.with(A).with(U);
        let before = State(self.state.0 & bits.0);
        let after = match (self.is_dsr(), before) {
            // Established: proven by a step, where replies are not seen.
            (true, state) if state.has(E) && step => E,
            (_, state) if state.has(E) => state.without(A),
            // Embryonic, with replies: after a SYN, after a SYN-ACK, in the middle.
            (false, NONE) => E.with(U),
            (false, A) => E,
            (false, state) => state,
            // Without: after a SYN, and the three steps of a flow picked up in the middle.
            (true, state) if !step => state,
            (true, NONE) => E.with(U),
            (true, state) if state == A.with(U) => U,
            (true, U) => A,
            (true, _) => E,
        };
        self.state.without(bits).with(after).without(State::RST)
    }

    /// Whether an ACK of the client restarts the time-out.
    fn prolongs(&self) -> bool {
        let proven = self.state.has(State::ESTABLISHED) && !self.state.has(State::UNPROVEN);
        match self.proof() {
            _ if !self.is_dsr() || proven => true,
            Some(Proof::Misfit) => self.state.has(State::ESTABLISHED),
            proof => proof == Some(Proof::Step),
        }
    }

    fn is_first_datagram(&self, continues: bool) -> bool {
        let class = Class::Datagram { continues };
        (self.is_request(class) || self.is_reply(class)) && self.state.has(State::FIRST)
    }

    /// Returns the state with the bits of `set`, and without those of `clear`.
    fn with(&self, set: State, clear: State) -> State {
        self.state.with(set).without(clear)
    }

    fn terminated(&self) -> State {
        match self.state.has(State::TERMINATED) {
            true => self.state,
            false => self.with(State::TERMINATED, State::PICKED_UP),
        }
    }
}

const ACK: Class = Class::Ack { resumes: false, proof: Proof::Step };
const NONE: State = State(0);
const PROOFS: [Proof; 3] = [Proof::Misfit, Proof::Early, Proof::Step];

/// A row of the table: name, condition, verdict, next state, whether the time-out restarts.
type Row = (&'static str, fn(&Case) -> bool, Verdict, fn(&Case) -> State, fn(&Case) -> bool);

const NO: fn(&Case) -> bool = |_| false;
const YES: fn(&Case) -> bool = |_| true;
const SAME: fn(&Case) -> State = |case| case.state;
const TERMINATED: fn(&Case) -> State = Case::terminated;
/// A terminated flow lives for a fixed time from its end on.
const ONCE: fn(&Case) -> bool = |case| !case.state.has(State::TERMINATED);

/// The intended behaviour: the first matching row applies.
const TABLE: &[Row] = &[
    (
        "the sweep resets an idle connection",
        |case| case.expired && case.is_sweep() && case.is_reset_when_idle(),
        Verdict::Reset,
        TERMINATED,
        YES,
    ),
    (
        "a RST ends an idle connection that is to be reset",
        |case| case.expired && case.is_request(Class::Rst) && case.is_reset_when_idle(),
        Verdict::Forward,
        TERMINATED,
        YES,
    ),
    (
        "the client of an idle connection is reset, unless it opens another",
        |case| {
            let request = matches!(case.event, Event::Request(class) if class != Class::Syn);
            case.expired && request && case.is_reset_when_idle()
        },
        Verdict::Reset,
        TERMINATED,
        YES,
    ),
    ("an expired flow has ended", |case| case.expired, Verdict::Ended, SAME, NO),
    (
        "clients leave a backend that rehashes",
        |case| matches!(case.event, Event::Request(_)) && case.policy.rehash,
        Verdict::ChooseAgain,
        SAME,
        NO,
    ),
    (
        "a SYN opens another flow than a closing one",
        |case| case.is_request(Class::Syn) && case.is_closing(),
        Verdict::ChooseAgain,
        SAME,
        NO,
    ),
    (
        "a SYN leaves a backend that does not answer",
        |case| case.is_request(Class::Syn) && !case.policy.up,
        Verdict::ChooseAgain,
        SAME,
        NO,
    ),
    (
        "a SYN leaves a terminated flow",
        |case| case.is_request(Class::Syn) && case.is_terminated(),
        Verdict::ChooseAgain,
        SAME,
        NO,
    ),
    (
        "a SYN of another connection leaves the one with a PROXY header",
        |case| case.is_request(Class::Syn) && case.policy.new_connection,
        Verdict::ChooseAgain,
        SAME,
        NO,
    ),
    (
        "a datagram follows its connection id",
        |case| {
            let datagram = matches!(case.event, Event::Request(Class::Datagram { .. }));
            datagram && case.policy.names_other
        },
        Verdict::ChooseAgain,
        SAME,
        NO,
    ),
    (
        "the sweep probes a terminated connection",
        |case| case.is_sweep() && case.is_terminated() && case.is_open(),
        Verdict::Reset,
        TERMINATED,
        ONCE,
    ),
    ("the sweep keeps all others", Case::is_sweep, Verdict::Forward, SAME, NO),
    (
        "a RST of a terminated flow passes",
        |case| {
            let reset = case.is_request(Class::Rst) || case.is_reply(Class::Rst);
            reset && case.is_terminated()
        },
        Verdict::Forward,
        TERMINATED,
        ONCE,
    ),
    (
        "all else of a terminated flow is reset",
        Case::is_terminated,
        Verdict::Reset,
        TERMINATED,
        ONCE,
    ),
    (
        "a RST closes",
        |case| case.is_request(Class::Rst) || case.is_reply(Class::Rst),
        Verdict::Forward,
        |case| case.with(State::RST, NONE),
        YES,
    ),
    (
        "a SYN begins a flow that was picked up in the middle",
        |case| {
            let picked_up = case.state.has(State::UNPROVEN) || case.is_dsr();
            case.is_request(Class::Syn) && picked_up && !case.state.has(State::ESTABLISHED)
        },
        Verdict::Forward,
        |case| case.with(NONE, State::PICKED_UP),
        YES,
    ),
    (
        "the client's FIN",
        Case::is_fin,
        Verdict::Forward,
        |case| case.acknowledged().with(State::FIN_CLIENT),
        YES,
    ),
    (
        "the client's ACK, where no FIN of it is doubted",
        |case| {
            let doubted = case.state.has(State::FIN_CLIENT) && case.is_dsr();
            (case.is_ack(false) || case.is_ack(true)) && !doubted
        },
        Verdict::Forward,
        Case::acknowledged,
        Case::prolongs,
    ),
    (
        "the client's data takes its FIN back, where replies are not seen",
        |case| case.is_ack(true),
        Verdict::Forward,
        |case| case.acknowledged().without(State::FIN_CLIENT),
        YES,
    ),
    (
        "an ACK alone does not, and the time-out goes on",
        |case| case.is_ack(false),
        Verdict::Forward,
        Case::acknowledged,
        NO,
    ),
    (
        "the backend's SYN answers",
        |case| case.is_reply(Class::SynAck),
        Verdict::Forward,
        |case| case.with(State::ANSWERED, State::UNPROVEN),
        YES,
    ),
    (
        "the backend's ACK proves a connection",
        |case| {
            let ack = |resumes| move |proof| Class::Ack { resumes, proof };
            case.is_reply_of(ack(false)) || case.is_reply_of(ack(true))
        },
        Verdict::Forward,
        |case| case.with(State::ESTABLISHED, State::UNPROVEN),
        YES,
    ),
    (
        "the backend's FIN",
        |case| case.is_reply_of(|proof| Class::Fin { proof }),
        Verdict::Forward,
        |case| case.with(State::ESTABLISHED.with(State::FIN_BACKEND), State::UNPROVEN),
        YES,
    ),
    (
        "a backend's later datagram makes a flow go on, and does not prove its client",
        |case| case.is_first_datagram(true) && matches!(case.event, Event::Reply(_)),
        Verdict::Forward,
        |case| case.with(State::UNPROVEN, State::FIRST.with(State::ANSWERED)),
        YES,
    ),
    (
        "a client's later datagram makes a flow go on",
        |case| case.is_first_datagram(true),
        Verdict::Forward,
        |case| case.with(NONE, State::FIRST.with(State::ANSWERED)),
        YES,
    ),
    (
        "a client's datagram proves a flow that goes on",
        |case| {
            let datagram = matches!(case.event, Event::Request(Class::Datagram { .. }));
            datagram && !case.state.has(State::FIRST)
        },
        Verdict::Forward,
        |case| case.with(NONE, State::UNPROVEN),
        YES,
    ),
    (
        "one that answers the first does not, and the time-out goes on",
        |case| case.is_first_datagram(false) && matches!(case.event, Event::Reply(_)),
        Verdict::Forward,
        |case| case.with(State::ANSWERED, NONE),
        NO,
    ),
    (
        "nor does one that belongs to the first",
        |case| case.is_first_datagram(false),
        Verdict::Forward,
        SAME,
        NO,
    ),
    ("all other packets start the time-out again", YES, Verdict::Forward, SAME, YES),
];

fn classes() -> impl Iterator<Item = Class> {
    let others = [
        Class::Syn,
        Class::SynAck,
        Class::Rst,
        Class::NoAck,
        Class::Datagram { continues: false },
        Class::Datagram { continues: true },
    ];
    let judged = PROOFS.into_iter().flat_map(|proof| {
        let [ack, data] = [false, true].map(|resumes| Class::Ack { resumes, proof });
        [ack, data, Class::Fin { proof }]
    });
    others.into_iter().chain(judged)
}

/// Every state, with every event and policy: 2,162,688 combinations.
fn all_cases() -> impl Iterator<Item = Case> {
    let packets = classes().flat_map(|class| [Event::Request(class), Event::Reply(class)]);
    let sweeps = [Protocol::Tcp, Protocol::Udp, Protocol::Any].map(Event::Sweep);
    packets.chain(sweeps).flat_map(|event| (0..256_u32).map(move |bits| (event, bits))).flat_map(
        |(event, bits)| {
            (0..=u8::MAX).map(move |state| {
                let bit = |number: u32| bits >> number & 1 == 1;
                let policy = Policy {
                    forward: if bit(0) { Forward::Nat } else { Forward::Dsr },
                    up: bit(1),
                    rehash: bit(2),
                    terminate: bit(3),
                    reset_idle: bit(4),
                    new_connection: bit(5),
                    names_other: bit(6),
                };
                Case { state: State(state), expired: bit(7), event, policy }
            })
        },
    )
}

#[test]
fn every_step_is_that_of_the_table() {
    let mut used = [0_u32; TABLE.len()];
    for case in all_cases() {
        let Case { state, expired, event, policy } = case;
        let row = TABLE.iter().zip(&mut used).find(|((_, applies, ..), _)| applies(&case));
        let Some(((name, _, verdict, next, touch), used)) = row else {
            unreachable!("the last row applies to everything")
        };
        *used += 1;
        let expected = Step { state: next(&case), verdict: *verdict, touch: touch(&case) };
        assert_eq!(step(state, expired, event, policy), expected, "{name}: {case:?}");
    }
    for ((name, ..), used) in TABLE.iter().zip(used) {
        assert!(used > 0, "no combination is left for: {name}");
    }
}

#[test]
fn a_terminated_flow_stays_so_whatever_comes() {
    let terminated = all_cases().filter(|case| case.is_tcp() && case.state.has(State::TERMINATED));
    for Case { state, expired, event, policy } in terminated {
        let next = step(state, expired, event, policy);
        assert!(next.state.has(State::TERMINATED) && !next.touch, "{state:?} {event:?} {policy:?}");
    }
}

#[test]
fn a_flow_begins_in_the_state_of_its_first_packet() {
    for (class, state) in [
        (Class::Syn, NONE),
        (ACK, State::PICKED_UP),
        (Class::SynAck, State::PICKED_UP),
        (Class::NoAck, State::PICKED_UP),
        (Class::Fin { proof: Proof::Misfit }, State::PICKED_UP.with(State::FIN_CLIENT)),
        (Class::Rst, State::PICKED_UP.with(State::RST)),
        (Class::Datagram { continues: true }, State::FIRST),
    ] {
        assert_eq!(first(class), state, "{class:?}");
    }
}

#[test]
fn a_packet_that_leaves_its_pin_opens_a_flow_or_goes_on_in_one() {
    for class in classes() {
        let opens = matches!(class, Class::Syn | Class::Datagram { .. });
        let miss = if opens { Miss::Open } else { Miss::NonSyn };
        assert_eq!(Event::Request(class).miss(), miss, "{class:?}");
    }
}
