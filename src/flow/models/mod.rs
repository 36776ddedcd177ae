//! Models of the tables that threads share, for [loom](https://docs.rs/loom) (`scripts/models`).
//!
//! Each runs the tables' own functions on two or three threads, in every order of their steps up to
//! a number of preemptions, and with every value that the memory model lets a load return.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod clients;
mod flows;
mod fragments;
mod hand_over;
mod return_hops;
mod snat;
mod splices;

use std::sync::Arc;

use super::entry::{ConntrackEntry, Pin, State};
use super::table::{Families, FlowTable};
use super::writer::FlowWriter;
use crate::net::{
    Address, BackendId, BackendIndex, FlowKey, HashedKey, NextHop, NicIndex, Protocol, TableSecret,
    VipId,
};
use crate::units::Ticks;

/// Key of a flow with this number; odd ones are IPv6.
fn flow_key(number: u8) -> FlowKey {
    let v4 = number.is_multiple_of(2);
    let address = |last: u8| match v4 {
        true => Address::from_v4([198, 51, 100, last]),
        false => Address { high: 0x2001_0db8 << 32 | u64::from(last), low: last.into() },
    };
    FlowKey {
        client: address(number),
        vip: address(200),
        client_port: number.into(),
        vip_port: 80,
        protocol: Protocol::Tcp,
    }
}

fn next_hop(number: u8) -> NextHop {
    NextHop { nic: NicIndex(1), mac: [2, 0, 0, 0, 0, number], vlan: None }
}

fn backend(number: u8) -> BackendId {
    BackendId { index: BackendIndex(number.into()), generation: number.into() }
}

/// Pin of a flow: its fields follow from its number, so that those of two flows do not match.
fn pin(number: u8) -> Pin {
    let now = Ticks(number.into());
    let state = State::ESTABLISHED;
    Pin::new(VipId(number.into()), backend(number), state, number, &next_hop(number), now)
}

fn entry(number: u8) -> ConntrackEntry {
    ConntrackEntry { key: flow_key(number), pin: pin(number) }
}

fn hashed(number: u8) -> HashedKey {
    TableSecret::new(1).hash(flow_key(number).into())
}

fn flow_table(capacity: u32) -> Arc<FlowTable> {
    Arc::new(FlowTable::new(capacity, TableSecret::new(1), Families::BOTH).unwrap())
}

fn flow_writer(capacity: u32) -> FlowWriter {
    FlowWriter::new(flow_table(capacity)).unwrap()
}
