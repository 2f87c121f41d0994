//! The parts of a manifest that concern memory: whose keys the agent wants, who may have its own, and what it is exposed to from
//! the beginning.

use serde::Deserialize;
use std::collections::BTreeSet;
use toml::Spanned;

use super::{Checked, Checker, Manifest};
use crate::exposure::Exposure;
use crate::ids::AgentName;
use crate::limits;
use crate::memory::{MemoryGrants, MemoryScope};
use crate::network::NetworkGrant;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMemory {
    read: Option<Spanned<Vec<Spanned<String>>>>,
    write: Option<Spanned<Vec<Spanned<String>>>>,
    share_read: Option<Spanned<Vec<Spanned<String>>>>,
    share_write: Option<Spanned<Vec<Spanned<String>>>>,
}

impl Manifest {
    /// What a life of this agent is exposed to before it has read a thing (docs/AGENT.toml.md has the table). Pure.
    pub fn exposure(&self) -> Exposure {
        let connected = !self.network_allow.is_empty() || !self.publish.is_empty();
        let (private, strangers) = match &self.authority {
            None => (
                !self.credential_refs.is_empty() || !self.read.is_empty() || !self.volumes.is_empty(),
                connected,
            ),
            // Files are reached through tools, whose results say what they carry. What is left is whom it speaks to by itself.
            Some(authority) => {
                let trusted = &authority.sources.trusted_names;
                let is_trusted =
                    |grant: &NetworkGrant| trusted.iter().any(|name| name.holds(&grant.name.to_string()));
                let strange = !self.network_allow.iter().all(is_trusted);
                (strange && !self.credential_refs.is_empty(), strange || !self.publish.is_empty())
            }
        };
        let mut exposure = Exposure::NONE;
        if private {
            exposure = exposure.and(Exposure::PRIVATE_DATA);
        }
        if strangers {
            exposure = exposure.and(Exposure::UNTRUSTED_CONTENT);
        }
        if connected {
            // Who can ask somebody outside, or answer it, can tell them something.
            exposure = exposure.and(Exposure::EXFILTRATION);
        }
        exposure
    }
}

impl Checker<'_> {
    pub(super) fn memory(&self, raw: RawMemory, own: &AgentName) -> Checked<MemoryGrants> {
        let mut left = limits::MEMORY_SCOPES_MAX;
        let mut bytes = 0;
        let mut scopes = |list, field| self.scopes(list, field, own, &mut left, &mut bytes);
        Ok(MemoryGrants {
            read: scopes(raw.read, "capabilities.memory.read")?,
            write: scopes(raw.write, "capabilities.memory.write")?,
            share_read: scopes(raw.share_read, "capabilities.memory.share_read")?,
            share_write: scopes(raw.share_write, "capabilities.memory.share_write")?,
        })
    }

    /// One list, sorted; `left` and `bytes` are what the four lists may still have, and have, together.
    fn scopes(
        &self,
        list: Option<Spanned<Vec<Spanned<String>>>>,
        field: &str,
        own: &AgentName,
        left: &mut usize,
        bytes: &mut usize,
    ) -> Checked<Vec<MemoryScope>> {
        let mut scopes = BTreeSet::new();
        for entry in list.map(Spanned::into_inner).unwrap_or_default() {
            let scope = match entry.get_ref().parse::<MemoryScope>() {
                Ok(scope) => scope,
                Err(rule) => {
                    return self.wrong(entry.span(), field, rule, "write for example \"librarian:notes/\"");
                }
            };
            if scope.agent == *own {
                let rule = "names the agent itself, whose memory is its own without a grant";
                return self.wrong(entry.span(), field, rule, "remove it, or name another agent");
            }
            *bytes += serde_json::to_string(&scope).map_or(usize::MAX, |text| text.len() + 1);
            if *left == 0 || *bytes > limits::MEMORY_SCOPES_BYTES_MAX {
                let rule = format!(
                    "at most {} entries and {} bytes in the four lists of `memory` together",
                    limits::MEMORY_SCOPES_MAX,
                    limits::MEMORY_SCOPES_BYTES_MAX
                );
                return self.wrong(entry.span(), field, rule, "write shorter prefixes, which hold more keys");
            }
            *left -= 1;
            if !scopes.insert(scope) {
                return self.wrong(entry.span(), field, "stands in the list twice", "remove one of the two");
            }
        }
        Ok(scopes.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    const HEAD: &str =
        "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n[capabilities]\n";

    fn with(lines: &str) -> Checked<Manifest> {
        parse("AGENT.toml", &format!("{HEAD}{lines}"))
    }

    #[test]
    fn grants_of_memory_are_parsed_whole() {
        let manifest = with(
            "memory.read = [\"b:notes/\", \"b:\"]\nmemory.share_read = [\"c:it's : \\\"x\\\"\"]\nmemory.share_write = [\"c:inbox/\"]",
        )
        .unwrap();
        let text = |scopes: &[MemoryScope]| scopes.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&manifest.memory.read), ["b:", "b:notes/"]);
        assert_eq!(text(&manifest.memory.write), Vec::<String>::new());
        assert_eq!(text(&manifest.memory.share_read), ["c:it's : \"x\""]);
        assert_eq!(text(&manifest.memory.share_write), ["c:inbox/"]);
        assert_eq!(with("").unwrap().memory, MemoryGrants::default());
    }

    #[test]
    fn each_mistake_in_memory_is_refused_with_line_field_value_and_remedy() {
        let many =
            (0..=limits::MEMORY_SCOPES_MAX).map(|n| format!("\"b:{n}\"")).collect::<Vec<_>>().join(",");
        let long = (0..60).map(|n| format!("\"b:{n}{}\"", "x".repeat(250))).collect::<Vec<_>>().join(",");
        let cases = [
            ("read = [\"notes/\"]".to_owned(), "read", "AGENT:PREFIX"),
            ("read = [\"a b:notes/\"]".to_owned(), "read", "agent's name"),
            ("write = [\"a:notes/\"]".to_owned(), "write", "the agent itself"),
            ("share_read = [\"a:\"]".to_owned(), "share_read", "the agent itself"),
            ("share_write = [\"b:x\", \"b:x\"]".to_owned(), "share_write", "twice"),
            (format!("share_read = [\"b:{}\"]", "x".repeat(257)), "share_read", "256 bytes"),
            (format!("read = [{many}]"), "read", "at most 64 entries"),
            (format!("read = [{long}]"), "read", "bytes in the four lists"),
        ];
        for (line, field, rule) in cases {
            let error = with(&format!("memory.{line}")).unwrap_err();
            assert_eq!(
                (error.line, error.field.as_str()),
                (7, format!("capabilities.memory.{field}").as_str())
            );
            assert!(error.rule.contains(rule), "{error}");
            assert!(!error.value.is_empty() && !error.remedy.is_empty(), "{error}");
        }
        let half = |n: usize| (0..n).map(|n| format!("\"b:{n}\"")).collect::<Vec<_>>().join(",");
        let both = |n| with(&format!("memory.read = [{}]\nmemory.write = [{}]", half(32), half(n)));
        assert!(both(32).is_ok() && both(33).is_err(), "the bound is for the lists together");
        assert!(with("memory.reads = []").is_err());
    }

    #[test]
    fn what_a_manifest_grants_is_what_it_exposes_to() {
        let (private, outside) =
            (Exposure::PRIVATE_DATA, Exposure::UNTRUSTED_CONTENT.and(Exposure::EXFILTRATION));
        for (lines, exposure) in [
            ("", Exposure::NONE),
            ("filesystem.write = [\"/data\"]", Exposure::NONE),
            ("memory.read = [\"b:\"]", Exposure::NONE),
            ("filesystem.read = [\"/data\"]", private),
            ("volumes.v = { path = \"/data\", max_mb = 64 }", private),
            ("credential_refs = [\"KEY\"]", private),
            ("network.allow = [\"a.test\"]", outside),
            ("network.publish = [{ guest_port = 1, node_port = 30000, from = [\"192.0.2.1\"] }]", outside),
            ("network.allow = [\"a.test\"]\ncredential_refs = [\"KEY\"]", private.and(outside)),
        ] {
            assert_eq!(with(lines).unwrap().exposure(), exposure, "{lines}");
        }
    }
}
