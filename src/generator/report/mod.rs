//! An [`Outcome`](super::outcome::Outcome) as people and programs want it: a table, CSV, charts.

pub mod chart;
pub mod csv;
pub mod html;
pub mod number;
pub mod table;
