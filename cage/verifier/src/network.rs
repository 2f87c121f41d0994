//! The guest's interfaces and the files that name the way out. IPv4 only; the kernel has no IPv6.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use verifier::etc;
use verifier::plan::{HOME, Network, Plan};

use abi::guest::{AUTHORITY_PATH, GUEST_UID};

use crate::beneath;
use crate::mounts::{Step, StepError};
use crate::sys::{self, InterfaceSetting};

/// The dotted mask of a prefix length of 0 to 32.
fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0))
}

/// Brings up lo, and eth0 where there is a network.
pub fn interfaces(network: Option<&Network>) -> Result<(), StepError> {
    let socket = sys::interface_socket().step("interface socket")?;
    let socket = socket.as_fd();
    sys::set_interface(socket, "lo", InterfaceSetting::Up).step("lo")?;
    let Some(network) = network else { return Ok(()) };
    for setting in [
        InterfaceSetting::Mtu(i32::from(network.mtu)),
        InterfaceSetting::Address(network.address),
        InterfaceSetting::Netmask(netmask(network.prefix)),
        InterfaceSetting::Up,
    ] {
        sys::set_interface(socket, "eth0", setting).step(format_args!("eth0 {setting:?}"))?;
    }
    sys::add_default_route(socket, network.gateway).step("default route")
}

/// Host name, /etc/resolv.conf, /etc/hosts, /etc/hostname and the agent's account.
pub fn names(root: &OwnedFd, plan: &Plan) -> Result<(), StepError> {
    rustix::system::sethostname(plan.hostname.as_bytes()).step("host name")?;
    let dir = beneath::directory(root, "etc").step("/etc")?;
    let gateway = plan.network.map(|network| network.gateway.to_string());
    for (name, text) in [
        ("resolv.conf", etc::resolv_conf(gateway.as_deref())),
        ("hosts", etc::hosts(&plan.hostname)),
        ("hostname", format!("{}\n", plan.hostname)),
    ] {
        beneath::write_file(&dir, name, &text).step(format_args!("/etc/{name}"))?;
    }
    if let (Some(pem), Some(name)) = (&plan.authority, AUTHORITY_PATH.strip_prefix("/etc/")) {
        beneath::write_file(&dir, name, pem).step(AUTHORITY_PATH)?;
    }
    // Programs run without an account too: a rootfs with an odd passwd is not refused for it.
    let _ = beneath::amend_file(&dir, "passwd", |text| etc::account_line(text, GUEST_UID, Some(HOME)));
    let _ = beneath::amend_file(&dir, "group", |text| etc::account_line(text, GUEST_UID, None));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_follow_the_prefix() {
        assert_eq!(netmask(30).to_string(), "255.255.255.252");
        assert_eq!(netmask(32).to_string(), "255.255.255.255");
        assert_eq!(netmask(0).to_string(), "0.0.0.0");
    }
}
