//! Whose MAC packets for the target are sent to, as the kernel knows it.

use std::net::IpAddr;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::{Instant, sleep};

use crate::control::netlink::{Certainty, Netlink, Route};
use crate::xdp::nic::Nic;

/// How long a neighbour may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(50);

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub enum NextHopError {
    /// The kernel would send nothing there out of this NIC.
    #[error(
        "the kernel has no route to {target} out of {interface}; add one (`ip route add {target} \
         dev {interface}`, after an address), or give the MAC with --next-hop"
    )]
    NoRoute {
        /// The target.
        target: IpAddr,
        /// The client-side NIC.
        interface: String,
    },
    /// The neighbour is silent.
    #[error(
        "{hop} does not answer ARP or ND on {interface}; is the balancer running? Or give the MAC \
         with --next-hop"
    )]
    NoAnswer {
        /// The neighbour.
        hop: IpAddr,
        /// The client-side NIC.
        interface: String,
    },
    /// The kernel cannot be asked.
    #[error("cannot ask the kernel about the way to {target}: {reason}; use --next-hop")]
    Netlink {
        /// The target.
        target: IpAddr,
        /// The reason.
        reason: String,
    },
}

/// Resolves the next hop to `target`, which must be reached by `nic`; asks it by ARP or ND if it
/// is not known. Blocks for 3 s at most.
///
/// # Errors
/// [`NextHopError`]; each says what to do.
pub fn resolve(nic: &Nic, target: IpAddr) -> Result<[u8; 6], NextHopError> {
    let failed =
        |reason: &dyn ToString| NextHopError::Netlink { target, reason: reason.to_string() };
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| failed(&error))?.block_on(async {
        let netlink = Netlink::open().map_err(|error| failed(&error))?;
        let interface = || nic.name().to_owned();
        let hop = match netlink.route(target).await.map_err(|error| failed(&error))? {
            Route::Via { ifindex, hop, .. } if ifindex == nic.index() => hop,
            _ => return Err(NextHopError::NoRoute { target, interface: interface() }),
        };
        let mac = ask(&netlink, nic.index(), hop).await.map_err(|error| failed(&error))?;
        mac.ok_or_else(|| NextHopError::NoAnswer { hop, interface: interface() })
    })
}

async fn ask(
    netlink: &Netlink,
    interface: u32,
    hop: IpAddr,
) -> Result<Option<[u8; 6]>, crate::control::netlink::Error> {
    let start = Instant::now();
    let mut asked = false;
    while start.elapsed() < PATIENCE {
        let neighbour = netlink.neighbours().await?.get(&(interface, hop)).copied();
        let known = neighbour.filter(|n| matches!(n.certainty, Certainty::Good | Certainty::Stale));
        if let Some(mac) = known.and_then(|neighbour| neighbour.mac) {
            return Ok(Some(mac));
        }
        if !asked {
            netlink.probe(interface, hop).await?;
            asked = true;
        }
        sleep(POLL).await;
    }
    Ok(None)
}
