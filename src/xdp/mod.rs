//! Access to the kernel's XDP interfaces; contains all unsafe code of the project.
//!
//! ```text
//!  Umem --frames--> FramePool                     Nic --> Steering (XDP program, rules)
//!    |                 |                                     | redirects VIP traffic
//!    |   refill, reclaim                                     v
//!    +------------> XskQueue = one AF_XDP socket and its four rings, on one (NIC, queue)
//!                      |                 ^
//!              receive v                 | transmit, flush
//!                    Frame: move-only, one owner, so that no chunk is used twice
//! ```
//!
//! One file per kernel object. Nothing here depends on `datapath`, `control` or `config`. The order
//! at start: [`program::Steering::load`] and [`program::Steering::prepare`] for each NIC,
//! [`umem::Umem::create`], [`queue::XskQueue::open`] and [`program::Steering::set_socket`] for each
//! (NIC, queue), [`program::Steering::sync`], and [`program::Steering::attach`] last.

pub mod backend;
pub mod cpu;
pub mod fake;
pub mod generate;
pub mod memory;
pub mod nic;
pub mod packet;
pub mod program;
pub mod queue;
pub mod ring;
pub mod socket;
pub mod steer;
pub mod umem;
pub mod waker;

mod load;
mod netlink;
mod object;
mod os;
