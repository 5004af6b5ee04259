//! What the node's network asks of netlink, each call safe to repeat.

use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::{
    Error, Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::AddressAttribute,
        link::{InfoData, InfoVeth, LinkAttribute},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol},
    },
};
use trireme_api::cidr::Ipv4Cidr;

use super::NetworkError;

/// Marks the routes that are ours, so that those of others are left alone.
const OUR_ROUTES: RouteProtocol = RouteProtocol::Other(84);

/// The interface's number, if there is one of that name.
pub async fn find(handle: &Handle, name: &str) -> Result<Option<u32>, NetworkError> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) if code_of(&error) == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(NetworkError::netlink(format!("cannot look for interface {name}"))(error)),
    }
}

/// Makes the bridge, with exactly that address, and sets it up. Returns its number.
pub async fn bridge(handle: &Handle, name: &str, address: Ipv4Addr, range: Ipv4Cidr, mtu: u32) -> Result<u32, NetworkError> {
    let context = |action: &str| NetworkError::netlink(format!("cannot {action} bridge {name}"));
    let index = match find(handle, name).await? {
        Some(index) => index,
        None => {
            // An address of its own keeps the bridge's from changing as pods come and go.
            let message = LinkBridge::new(name).address(hardware_address(address)).build();
            handle.link().add(message).execute().await.map_err(context("make"))?;
            find(handle, name).await?.ok_or_else(|| NetworkError::Invalid(format!("bridge {name} vanished")))?
        }
    };
    let mut known: Vec<_> =
        handle.address().get().set_link_index_filter(index).execute().try_collect().await.map_err(context("read"))?;
    known.retain(|message| {
        message.attributes.iter().any(|attribute| matches!(attribute, AddressAttribute::Address(IpAddr::V4(_))))
    });
    let ours = |message: &rtnetlink::packet_route::address::AddressMessage| {
        message.header.prefix_len == range.prefix_length()
            && message.attributes.contains(&AddressAttribute::Address(IpAddr::V4(address)))
    };
    if !known.iter().any(ours) {
        handle
            .address()
            .add(index, IpAddr::V4(address), range.prefix_length())
            .execute()
            .await
            .map_err(context("give an address to"))?;
    }
    for stale in known.into_iter().filter(|message| !ours(message)) {
        handle.address().del(stale).execute().await.map_err(context("take an address from"))?;
    }
    let up = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
    handle.link().set(up).execute().await.map_err(context("set up"))?;
    Ok(index)
}

/// Makes a pair of interfaces: `name` here, on the bridge, and `eth0` in the namespace that the descriptor is open to.
pub async fn veth(handle: &Handle, name: &str, bridge: u32, namespace: i32, mtu: u32) -> Result<(), NetworkError> {
    let context = |action: &str| NetworkError::netlink(format!("cannot {action} interface {name}"));
    delete(handle, name).await?;
    let peer = LinkUnspec::new_with_name(POD_INTERFACE).mtu(mtu).setns_by_fd(namespace).build();
    let message = LinkVeth::new(name, POD_INTERFACE).mtu(mtu).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
    handle.link().add(message).execute().await.map_err(context("make"))?;
    let index = find(handle, name).await?.ok_or_else(|| NetworkError::Invalid(format!("interface {name} vanished")))?;
    let message = LinkUnspec::new_with_index(index).controller(bridge).up().build();
    handle.link().set(message).execute().await.map_err(context("set up"))?;
    // A pod must reach itself through a Service.
    handle.link().set_port(LinkBridgePort::new(index).hairpin(true).build()).execute().await.map_err(context("set hairpin on"))
}

/// The name of the interface inside pods.
pub const POD_INTERFACE: &str = "eth0";

/// Removes the interface; its other end goes with it.
pub async fn delete(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let Some(index) = find(handle, name).await? else { return Ok(()) };
    match handle.link().del(index).execute().await {
        Err(error) if code_of(&error) != Some(libc::ENODEV) => {
            Err(NetworkError::netlink(format!("cannot remove interface {name}"))(error))
        }
        _ => Ok(()),
    }
}

/// Inside a pod: sets up the loopback interface.
pub async fn loopback(handle: &Handle) -> Result<(), NetworkError> {
    let up = LinkUnspec::new_with_index(1).up().build();
    handle.link().set(up).execute().await.map_err(NetworkError::netlink("cannot set up the loopback interface"))
}

/// Inside a pod: gives `eth0` its address and the route to everywhere.
pub async fn pod_interface(handle: &Handle, address: Ipv4Addr, range: Ipv4Cidr, gateway: Ipv4Addr) -> Result<(), NetworkError> {
    let context = |action: &str| NetworkError::netlink(format!("cannot {action} {POD_INTERFACE} in the pod"));
    let index = find(handle, POD_INTERFACE).await?;
    let index = index.ok_or_else(|| NetworkError::Invalid(format!("the pod has no {POD_INTERFACE}")))?;
    // Tied to the IP address, so that a neighbour's memory of an earlier pod is right.
    let message = LinkUnspec::new_with_index(index).address(hardware_address(address)).build();
    handle.link().set(message).execute().await.map_err(context("configure"))?;
    handle
        .address()
        .add(index, IpAddr::V4(address), range.prefix_length())
        .execute()
        .await
        .or_else(tolerate_existing)
        .map_err(context("give an address to"))?;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(context("set up"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
    handle.route().add(route).replace().execute().await.map_err(context("make the default route over"))
}

/// Makes our routes exactly these: a range by way of a node's address.
pub async fn routes(handle: &Handle, wanted: &[(Ipv4Cidr, Ipv4Addr)]) -> Result<(), NetworkError> {
    let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let known: Vec<RouteMessage> =
        handle.route().get(query).execute().try_collect().await.map_err(NetworkError::netlink("cannot read the routes"))?;
    for route in known.into_iter().filter(|route| route.header.protocol == OUR_ROUTES) {
        if !way_of(&route).is_some_and(|way| wanted.contains(&way)) {
            handle.route().del(route).execute().await.map_err(NetworkError::netlink("cannot remove a route"))?;
        }
    }
    let mut failed = None;
    for (range, gateway) in wanted {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.first(), range.prefix_length())
            .gateway(*gateway)
            .protocol(OUR_ROUTES)
            .build();
        // One node that cannot be reached must not keep the others from being.
        if let Err(error) = handle.route().add(route).replace().execute().await {
            failed = Some(NetworkError::netlink(format!("cannot route {range} by {gateway}"))(error));
        }
    }
    failed.map_or(Ok(()), Err)
}

fn way_of(route: &RouteMessage) -> Option<(Ipv4Cidr, Ipv4Addr)> {
    let mut destination = None;
    let mut gateway = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            _ => {}
        }
    }
    Some((Ipv4Cidr::new(destination?, route.header.destination_prefix_length)?, gateway?))
}

/// The names of interfaces that start so.
pub async fn names(handle: &Handle, prefix: &str) -> Result<Vec<String>, NetworkError> {
    let links: Vec<_> =
        handle.link().get().execute().try_collect().await.map_err(NetworkError::netlink("cannot list the interfaces"))?;
    let name = |attribute: LinkAttribute| match attribute {
        LinkAttribute::IfName(name) if name.starts_with(prefix) => Some(name),
        _ => None,
    };
    Ok(links.into_iter().filter_map(|link| link.attributes.into_iter().find_map(name)).collect())
}

fn hardware_address(address: Ipv4Addr) -> Vec<u8> {
    let [a, b, c, d] = address.octets();
    vec![0x0a, 0x58, a, b, c, d]
}

fn code_of(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}

fn tolerate_existing(error: Error) -> Result<(), Error> {
    if code_of(&error) == Some(libc::EEXIST) { Ok(()) } else { Err(error) }
}
