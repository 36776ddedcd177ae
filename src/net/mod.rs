//! Basic types of the network that every plane uses: addresses, five-tuples, indices, next hops,
//! VLAN tags, listen keys, and the rules that control gives the XDP program. Pure values, no I/O.

mod access;
mod address;
mod family;
mod fleet_key;
mod flow_key;
mod forward;
mod id;
mod listen;
mod network;
mod next_hop;
mod path_key;
mod protocol;
mod steer;
mod tuple;
pub mod vlan;

pub use access::{
    AccessCheck, AccessLists, ListEntry, ListId, ListKey, ListKind, ListsPresent, MAX_LISTED,
    Prefixes, SourceRate,
};
pub use address::Address;
pub use family::Family;
pub use fleet_key::FleetKey;
pub use flow_key::FlowKey;
pub use forward::Forward;
pub use id::{BackendId, BackendIndex, MAX_NICS, NicIndex, VipId};
pub use listen::{Listen, ListenKey, exact};
pub use network::{ADDRESS_BITS, BadPorts, Network, PortRange};
pub use next_hop::NextHop;
pub use path_key::PathKey;
pub use protocol::Protocol;
pub use steer::{MAX_STEERED, SteerRules};
pub(crate) use tuple::TAIL;
pub use tuple::{FiveTuple, HashedKey, TableSecret, Tuple};
