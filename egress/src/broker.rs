//! The credential broker.

use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::policy::Admission;
use crate::sniff::Speaks;
use crate::splice::End;

/// Serves a guest's connection to a brokered host until it ends.
pub async fn serve(_: &Agent, _: &mut TcpStream, admission: &Admission) -> Result<(), End> {
    Err(End::Failed { why: format!("no broker for {}", admission.name), speaks: Speaks::Neither })
}
