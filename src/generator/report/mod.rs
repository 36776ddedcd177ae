//! Reports of an [`Outcome`](super::outcome::Outcome): table, CSV, charts and HTML.

pub mod chart;
pub mod csv;
pub mod html;
pub mod number;
pub mod table;
