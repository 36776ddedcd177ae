//! MAC of the next hop to the target, from the kernel's routes and neighbours.

use std::net::IpAddr;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::{Instant, sleep};

use crate::control::netlink::{Netlink, Route};
use crate::xdp::nic::Nic;

/// Longest wait for a neighbour's reply.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time between two reads of the neighbour table.
const POLL: Duration = Duration::from_millis(50);

/// Reasons for which the next hop cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum NextHopError {
    /// The kernel would not send to the target out of this NIC.
    #[error(
        "the kernel has no route to {target} out of {interface}; add one (`ip route add {target} \
         dev {interface}`, after an address), or give the MAC with --next-hop"
    )]
    NoRoute {
        /// Target address.
        target: IpAddr,
        /// Interface name of the client-side NIC.
        interface: String,
    },
    /// The neighbour does not reply.
    #[error(
        "{hop} does not answer ARP or ND on {interface}; is the balancer running? Or give the MAC \
         with --next-hop"
    )]
    NoAnswer {
        /// Address of the neighbour.
        hop: IpAddr,
        /// Interface name of the client-side NIC.
        interface: String,
    },
    /// A netlink request failed.
    #[error("cannot ask the kernel about the way to {target}: {reason}; use --next-hop")]
    Netlink {
        /// Target address.
        target: IpAddr,
        /// The kernel's error.
        reason: String,
    },
}

/// Resolves the next hop to `target`, which must be reached by `nic`. Probes it by ARP or ND if its
/// MAC is not known. Blocks for 3 s at most.
///
/// # Errors
/// [`NextHopError`]; each states the remedy.
pub fn resolve(nic: &Nic, target: IpAddr) -> Result<[u8; 6], NextHopError> {
    let failed =
        |reason: &dyn ToString| NextHopError::Netlink { target, reason: reason.to_string() };
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| failed(&error))?.block_on(async {
        let mut netlink = Netlink::open().map_err(|error| failed(&error))?;
        let interface = || nic.name().to_owned();
        let hop = match netlink.route(target).await.map_err(|error| failed(&error))? {
            Route::Via { ifindex, hop, .. } if ifindex == nic.index() => hop,
            _ => return Err(NextHopError::NoRoute { target, interface: interface() }),
        };
        let mac = ask(&mut netlink, nic.index(), hop).await.map_err(|error| failed(&error))?;
        mac.ok_or_else(|| NextHopError::NoAnswer { hop, interface: interface() })
    })
}

async fn ask(
    netlink: &mut Netlink,
    interface: u32,
    hop: IpAddr,
) -> Result<Option<[u8; 6]>, crate::control::netlink::Error> {
    let start = Instant::now();
    let mut asked = false;
    while start.elapsed() < PATIENCE {
        let neighbour = netlink.neighbours().await?.get(&(interface, hop)).copied();
        if let Some(mac) = neighbour.and_then(|neighbour| neighbour.usable()) {
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
