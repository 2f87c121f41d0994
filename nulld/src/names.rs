//! Names as the node itself sees them, for nulld's own services: egress resolves them.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use abi::control::{NetResolve, Resolved};
use abi::identity::Service;
use abi::rpc::{Incoming, Request};
use abi::wire::Connection;

/// The addresses of a host, in the order to try. An address needs no egress. `patience`: for each read and write to egress, whose
/// own bound is [`abi::limits::RESOLVE_MS_MAX`].
pub fn resolve(host: &str, patience: Duration) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let name = host.parse().map_err(|_| io::Error::other("it is neither a name nor an address"))?;
    let unreachable =
        |error: io::Error| io::Error::new(error.kind(), format!("egress cannot be asked: {error}"));
    let mut connection = Connection::connect(Service::Egress.socket_path()).map_err(unreachable)?;
    connection.set_timeout(Some(patience))?;
    let params = serde_json::to_value(NetResolve { name })?;
    connection.write_line(&Request::call(1, "net.resolve", params)).map_err(io::Error::other)?;
    let line = connection.read_line().map_err(io::Error::other)?.unwrap_or_default();
    match serde_json::from_str(&line)? {
        Incoming::Response(response) => match (response.result, response.error) {
            (Some(value), None) => Ok(serde_json::from_value::<Resolved>(value)?.addresses),
            (_, Some(error)) => Err(io::Error::other(error.to_string())),
            (None, None) => Err(io::Error::other("egress answered nothing")),
        },
        Incoming::Notification(_) => Err(io::Error::other("egress answered what was not asked")),
    }
}
