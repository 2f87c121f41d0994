//! Who may say what. One table; whatever does not stand in it may be said by nobody.

use super::{Actor, Event, What, Why};
use abi::identity::Role;

/// Whether this actor may ever say this. Whether it may now is the business of `table.rs`.
pub(super) fn check(event: &Event) -> Result<(), Why> {
    use What as W;
    match (event.actor, event.what) {
        (Actor::Operator(role), W::Pause | W::Resume | W::Cancel | W::Integrated { .. }) => match role {
            Role::Operator | Role::Admin => Ok(()),
            Role::Reader => Err(Why::Role),
        },
        (Actor::Agent(_), W::Heard | W::Claimed { .. }) => Ok(()),
        (Actor::VerifyVm(_), W::Verified { .. } | W::VerifyFailed | W::VerifyLost | W::Scored(_)) => Ok(()),
        (Actor::Clock, W::Tick) => Ok(()),
        (
            Actor::Cage,
            W::Accepted
            | W::Started(_)
            | W::Asks(_)
            | W::Answered(_)
            | W::ClaimRead { .. }
            | W::ClaimRefused(_)
            | W::Ended(_)
            | W::Lost(_)
            | W::VerifyBegan(_)
            | W::Minted { .. }
            | W::MintRefused(_)
            | W::Spent
            | W::NoReceipts
            | W::Restarted,
        ) => Ok(()),
        _ => Err(Why::Actor),
    }
}
