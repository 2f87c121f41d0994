//! The whole control protocol: every method, who owns it, who may call it, and the shapes of what goes in and out.
//!
//! A method not in [`METHODS`] does not exist. The page is docs/control-protocol.md, and a test keeps the two equal.

use serde::{Deserialize, Serialize};

use crate::identity::{Role, Service};

mod agents;
mod disks;
mod ledger;
mod memory;
mod network;
mod system;
mod tasks;

pub use agents::*;
pub use disks::*;
pub use ledger::*;
pub use memory::*;
pub use network::*;
pub use system::*;
pub use tasks::*;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Operators with this role or a higher one.
    Operators(Role),
    /// Services of the node, over their own sockets.
    Services,
}

/// One method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    pub name: &'static str,
    pub service: Service,
    pub audience: Audience,
    /// One line for help and docs.
    pub about: &'static str,
}

const fn method_of(name: &'static str, service: Service, audience: Audience, about: &'static str) -> Method {
    Method { name, service, audience, about }
}

const READER: Audience = Audience::Operators(Role::Reader);
const OPERATOR: Audience = Audience::Operators(Role::Operator);
const ADMIN: Audience = Audience::Operators(Role::Admin);

/// All methods, by owner.
pub const METHODS: &[Method] = &[
    method_of("system.status", Service::Nulld, READER, "phases, services, addresses, memory"),
    method_of("system.logs", Service::Nulld, READER, "log of a service, from its ring; follow streams `log`"),
    method_of(
        "system.doctor",
        Service::Nulld,
        READER,
        "what is wrong with the node, and what to do about it",
    ),
    method_of("system.reboot", Service::Nulld, ADMIN, "stop everything in order and reboot"),
    method_of("system.poweroff", Service::Nulld, ADMIN, "stop everything in order and power off"),
    method_of(
        "agent.list",
        Service::Cage,
        READER,
        "all agents with their state, and manifests that are wrong",
    ),
    method_of("agent.status", Service::Cage, READER, "one agent: state, grants, limits, use, boot stages"),
    method_of(
        "agent.start",
        Service::Cage,
        OPERATOR,
        "start an agent; streams `progress`, answers when it runs",
    ),
    method_of("agent.stop", Service::Cage, OPERATOR, "stop an agent: graceful, then bounded"),
    method_of("agent.logs", Service::Cage, READER, "output of an agent; follow streams `output`"),
    method_of("agent.exec", Service::Cage, OPERATOR, "run a program in an agent's sandbox; streams `output`"),
    method_of(
        "agent.attach",
        Service::Cage,
        OPERATOR,
        "an agent's own command: streams `output`, takes `stdin`, `signal`, `resize`",
    ),
    method_of("agent.create", Service::Cage, OPERATOR, "make a kept workspace, empty or from a snapshot"),
    method_of("agent.pause", Service::Cage, OPERATOR, "freeze an agent's VM, its disks written out"),
    method_of("agent.resume", Service::Cage, OPERATOR, "let a paused agent go on"),
    method_of("agent.kill", Service::Cage, OPERATOR, "end an agent at once, without its leave"),
    method_of("agent.restart", Service::Cage, OPERATOR, "stop and start; answers when it runs"),
    method_of(
        "agent.quarantine",
        Service::Cage,
        OPERATOR,
        "freeze an agent, cut its network, keep all of it as evidence",
    ),
    method_of(
        "agent.remove",
        Service::Cage,
        OPERATOR,
        "delete a stopped agent's workspace, log and evidence",
    ),
    method_of("agent.evidence", Service::Cage, READER, "what is kept of quarantined lives"),
    method_of(
        "agent.read_evidence",
        Service::Cage,
        OPERATOR,
        "all that is kept of one quarantined life; streams `output`, `progress`",
    ),
    method_of(
        "agent.remove_evidence",
        Service::Cage,
        OPERATOR,
        "delete what is kept of one quarantined life",
    ),
    method_of("agent.read_files", Service::Cage, OPERATOR, "files of a running agent; streams `output`"),
    method_of("agent.write_files", Service::Cage, OPERATOR, "files into a running agent; takes `stdin`"),
    method_of("agent.diff", Service::Cage, READER, "what differs from the rootfs; streams `output`"),
    method_of("agent.top", Service::Cage, READER, "what each living agent uses"),
    method_of("agent.events", Service::Cage, READER, "what happened to agents; follow streams `event`"),
    method_of("agent.metrics", Service::Cage, READER, "all of it in Prometheus's text format"),
    method_of("agent.tighten", Service::Cage, OPERATOR, "narrow what a running agent's tools may do"),
    method_of("exposure.status", Service::Cage, READER, "what a life has seen, spent and may still do"),
    method_of(
        "exposure.declassify",
        Service::Cage,
        ADMIN,
        "let exactly these arguments leave as if they carried nothing",
    ),
    method_of("approval.list", Service::Cage, READER, "questions that wait; follow streams `approval`"),
    method_of("approval.decide", Service::Cage, OPERATOR, "answer a question, for one exact call"),
    method_of(
        "task.run",
        Service::Cage,
        OPERATOR,
        "a goal, a tree and a verify command; takes the tree after `ready`",
    ),
    method_of("task.list", Service::Cage, READER, "tasks, newest first"),
    method_of("task.status", Service::Cage, READER, "one task with its candidates"),
    method_of("task.watch", Service::Cage, READER, "a task until it is over; streams `task`"),
    method_of("task.cancel", Service::Cage, OPERATOR, "end a task"),
    method_of("task.pause", Service::Cage, OPERATOR, "let a task's cages stand still"),
    method_of("task.resume", Service::Cage, OPERATOR, "let a paused task go on, with more budget if asked"),
    method_of("task.remove", Service::Cage, OPERATOR, "forget a task that is over, and its files"),
    method_of(
        "task.export",
        Service::Cage,
        READER,
        "patch, diff, attestation or output of a verified task; streams `output`",
    ),
    method_of(
        "task.integrate",
        Service::Cage,
        OPERATOR,
        "give a verified patch out for one approved step; streams `output`",
    ),
    method_of("snapshot.list", Service::Cage, READER, "copies of workspaces"),
    method_of(
        "snapshot.create",
        Service::Cage,
        OPERATOR,
        "copy the workspace of a stopped, paused or quarantined agent",
    ),
    method_of("snapshot.remove", Service::Cage, OPERATOR, "delete a copy"),
    method_of("volume.list", Service::Cage, READER, "volumes of all agents"),
    method_of("volume.remove", Service::Cage, OPERATOR, "delete a volume of an agent that does not run"),
    method_of("image.list", Service::Cage, READER, "rootfs store"),
    method_of("image.inspect", Service::Cage, READER, "one image: layers, environment, who uses it"),
    method_of("image.remove", Service::Cage, OPERATOR, "remove a name, and the image with its last name"),
    method_of("image.prune", Service::Cage, OPERATOR, "remove images that no name and no agent has"),
    method_of("image.import", Service::Cage, OPERATOR, "import an OCI archive that follows the request line"),
    method_of("net.grants", Service::Egress, READER, "names each running agent may reach"),
    method_of(
        "net.denials",
        Service::Egress,
        READER,
        "what was refused, to whom, by which rule; follow streams `denial`",
    ),
    method_of("net.watch", Service::Egress, READER, "connections, denials and changes as they happen"),
    method_of("net.explain", Service::Egress, READER, "which rule decides for an agent, a name and a port"),
    method_of("net.suggest", Service::Egress, READER, "the smallest manifest change for what was refused"),
    method_of("net.policy", Service::Egress, READER, "live changes of what agents may reach"),
    method_of("net.allow", Service::Egress, OPERATOR, "a live grant for a running agent"),
    method_of("net.deny", Service::Egress, OPERATOR, "refuse a name to an agent, and cut its connections"),
    method_of("net.revoke", Service::Egress, OPERATOR, "take a grant back, and cut its connections"),
    method_of("net.forget", Service::Egress, ADMIN, "forget live changes whose file cannot be read"),
    method_of("net.lift", Service::Egress, OPERATOR, "take a denial or a revocation back"),
    method_of("net.budget", Service::Egress, READER, "what agents may spend and have spent"),
    method_of("net.reset_budget", Service::Egress, OPERATOR, "forget what an agent has spent"),
    method_of("secret.list", Service::Egress, READER, "secrets and where they go, without their values"),
    method_of(
        "secret.set",
        Service::Egress,
        ADMIN,
        "store a secret for the broker; takes the value after `ready`",
    ),
    method_of("secret.remove", Service::Egress, ADMIN, "delete a secret, and cut what uses it"),
    method_of(
        "net.attach",
        Service::Egress,
        Audience::Services,
        "a network for one VM; lives as long as the connection",
    ),
    method_of(
        "net.resolve",
        Service::Egress,
        Audience::Services,
        "addresses of a name, for the node's own services",
    ),
    method_of("net.fetch", Service::Egress, Audience::Services, "a page for an agent; streams `output`"),
    method_of(
        "net.expose",
        Service::Egress,
        Audience::Services,
        "what an agent has seen; bounds where it may connect",
    ),
    method_of("memory.write", Service::Ctxgraph, OPERATOR, "write a value under a key of an agent"),
    method_of("memory.batch", Service::Ctxgraph, OPERATOR, "several writes, all or none"),
    method_of("memory.read", Service::Ctxgraph, READER, "one entry, by digest or the newest of a key"),
    method_of("memory.query", Service::Ctxgraph, READER, "newest entries of keys with a prefix"),
    method_of("memory.history", Service::Ctxgraph, READER, "all entries of a key, newest first"),
    method_of("memory.conflicts", Service::Ctxgraph, READER, "keys with several newest entries"),
    method_of("memory.neighbours", Service::Ctxgraph, READER, "entries that an entry is linked with"),
    method_of("memory.traverse", Service::Ctxgraph, READER, "entries within some links of an entry"),
    method_of("memory.search", Service::Ctxgraph, READER, "newest entries that have words, best first"),
    method_of("memory.nearest", Service::Ctxgraph, READER, "newest entries near a vector, nearest first"),
    method_of("memory.watch", Service::Ctxgraph, READER, "entries under a prefix as they are written"),
    method_of("memory.forget", Service::Ctxgraph, OPERATOR, "delete values; what stays proves the chain"),
    method_of("memory.list", Service::Ctxgraph, READER, "agents with memory, entries and bytes of each"),
    method_of("memory.verify", Service::Ctxgraph, READER, "read every entry and check its hash"),
    method_of("memory.hashes", Service::Ctxgraph, READER, "hashes of all entries, for a sync"),
    method_of("memory.export", Service::Ctxgraph, OPERATOR, "entries as a signed bundle; streams `output`"),
    method_of("memory.import", Service::Ctxgraph, ADMIN, "entries of a bundle; takes `input`"),
    method_of(
        "memory.attach",
        Service::Ctxgraph,
        Audience::Services,
        "serve an agent's memory on a listening socket",
    ),
    method_of(
        "memory.expose",
        Service::Ctxgraph,
        Audience::Services,
        "what an agent has seen; its entries carry it",
    ),
    method_of("ledger.tail", Service::Ctxgraph, READER, "newest events; follow streams `event`"),
    method_of("ledger.query", Service::Ctxgraph, READER, "events of an agent, a kind, a time"),
    method_of("ledger.verify", Service::Ctxgraph, READER, "check the whole chain"),
    method_of("ledger.checkpoint", Service::Ctxgraph, READER, "size and root of the ledger, signed"),
    method_of("ledger.prove", Service::Ctxgraph, READER, "proof that an event stands in the ledger"),
    method_of(
        "ledger.consistency",
        Service::Ctxgraph,
        READER,
        "proof that the ledger goes on from an older one",
    ),
    method_of("ledger.export", Service::Ctxgraph, READER, "the whole ledger, signed; streams `output`"),
    method_of(
        "ledger.append",
        Service::Ctxgraph,
        Audience::Services,
        "append an event, answer with its receipt",
    ),
    method_of(
        "ledger.attest",
        Service::Ctxgraph,
        Audience::Services,
        "record a verified patch and sign its attestation",
    ),
];

/// The method of a name.
pub fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// Parameters of methods that take none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn method_names_are_distinct_and_belong_to_their_owner() {
        let names: BTreeSet<_> = METHODS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), METHODS.len());
        for method in METHODS {
            let owner = match method.name.split('.').next().unwrap() {
                "system" => Service::Nulld,
                "agent" | "image" | "snapshot" | "volume" | "task" | "approval" | "exposure" => Service::Cage,
                "net" | "secret" => Service::Egress,
                "memory" | "ledger" => Service::Ctxgraph,
                other => panic!("{other}"),
            };
            assert_eq!(method.service, owner, "{}", method.name);
        }
    }
}
