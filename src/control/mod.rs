//! The control thread: health, drain, reload, neighbours, announcements and the control API.

pub mod api;
