//! table
/// t
pub struct ForwardingTable;
