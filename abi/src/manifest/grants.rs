//! The parts of a manifest that describe an agent's life and what it shares with the node: restarts, health, volumes, ports.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use toml::Spanned;

use super::{Checked, Checker, HealthCheck, Published, Restart, RestartPolicy, VolumeGrant};
use crate::ids::Name;
use crate::limits;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHealthCheck {
    port: Spanned<i64>,
    path: Option<Spanned<String>>,
    interval_secs: Option<Spanned<i64>>,
    max_failures: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawVolume {
    path: Spanned<String>,
    max_mb: Spanned<i64>,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPublished {
    guest_port: Spanned<i64>,
    node_port: Spanned<i64>,
    from: Spanned<Vec<Spanned<String>>>,
}

impl Checker<'_> {
    /// A number that must be given.
    fn required(
        &self,
        value: &Spanned<i64>,
        field: &str,
        legal: RangeInclusive<u32>,
        unit: &str,
    ) -> Checked<u32> {
        match u32::try_from(*value.get_ref()) {
            Ok(number) if legal.contains(&number) => Ok(number),
            _ => {
                let rule = format!("must be {} to {} ({unit})", legal.start(), legal.end());
                self.wrong(value.span(), field, rule, format!("write for example {}", legal.start()))
            }
        }
    }

    /// A number, or no bound at all.
    pub(super) fn optional(
        &self,
        value: Option<Spanned<i64>>,
        field: &str,
        legal: RangeInclusive<u32>,
        unit: &str,
    ) -> Checked<Option<u32>> {
        value.map(|value| self.required(&value, field, legal, unit)).transpose()
    }

    pub(super) fn seconds(&self, value: Option<Spanned<i64>>, field: &str) -> Checked<Option<u32>> {
        self.optional(value, field, 1..=limits::LIFETIME_SECS_MAX, "seconds")
    }

    fn port(&self, value: &Spanned<i64>, field: &str) -> Checked<u16> {
        let port = self.required(value, field, 1..=u32::from(u16::MAX), "a TCP port")?;
        Ok(u16::try_from(port).unwrap_or(u16::MAX)) // the range was checked
    }

    pub(super) fn restart(&self, policy: RestartPolicy, max: Option<Spanned<i64>>) -> Checked<Restart> {
        let field = "agent.max_restarts";
        if let (RestartPolicy::Never, Some(max)) = (policy, &max) {
            let rule = "restart is \"never\", so there is nothing to bound";
            return self.wrong(max.span(), field, rule, "remove it, or set restart = \"on-failure\"");
        }
        let max = self.number(max, field, 1..=limits::RESTARTS_MAX, limits::RESTARTS_DEFAULT, "restarts")?;
        Ok(Restart { policy, max })
    }

    pub(super) fn health_check(&self, check: RawHealthCheck) -> Checked<HealthCheck> {
        let at = |name: &str| format!("capabilities.health_check.{name}");
        let path = match check.path {
            None => "/".to_owned(),
            Some(path) => {
                let text = path.get_ref();
                let plain = text.bytes().all(|b| b.is_ascii_graphic());
                if !text.starts_with('/') || text.len() > limits::PATH_BYTES_MAX || !plain {
                    let rule = "must begin with `/` and have visible ASCII characters only";
                    return self.wrong(
                        path.span(),
                        &at("path"),
                        rule,
                        "write for example path = \"/health\"",
                    );
                }
                path.into_inner()
            }
        };
        let (least, most) = (limits::HEALTH_INTERVAL_SECS_MIN, limits::HEALTH_INTERVAL_SECS_MAX);
        Ok(HealthCheck {
            port: self.port(&check.port, &at("port"))?,
            path,
            interval_secs: self.number(
                check.interval_secs,
                &at("interval_secs"),
                least..=most,
                10,
                "seconds",
            )?,
            max_failures: self.number(
                check.max_failures,
                &at("max_failures"),
                1..=limits::HEALTH_FAILURES_MAX,
                3,
                "failures in a row",
            )?,
        })
    }

    pub(super) fn volumes(
        &self,
        volumes: BTreeMap<String, Spanned<RawVolume>>,
    ) -> Checked<BTreeMap<Name, VolumeGrant>> {
        let mut checked = BTreeMap::new();
        let mut paths = BTreeSet::new();
        for (name, volume) in volumes {
            let (span, volume) = (volume.span(), volume.into_inner());
            let at = |part: &str| format!("capabilities.volumes.{name}{part}");
            let Ok(name) = name.parse::<Name>() else {
                let rule = "a volume's name must be 1 to 32 of A-Z a-z 0-9 _ -";
                return self.wrong(span, &at(""), rule, "rename it");
            };
            if checked.len() == limits::VOLUMES_PER_AGENT_MAX {
                let rule = format!("at most {} volumes are allowed", limits::VOLUMES_PER_AGENT_MAX);
                return self.wrong(span, "capabilities.volumes", rule, "remove some");
            }
            let path = self.path(&volume.path, &at(".path"), true)?;
            let overlaps = |other: &String| {
                let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
                *other == path || below(other, &path) || below(&path, other)
            };
            if paths.iter().any(overlaps) {
                let rule = "two volumes lie in one another";
                return self.wrong(volume.path.span(), &at(".path"), rule, "choose another path");
            }
            paths.insert(path.clone());
            let sizes = limits::DISK_MIB_MIN..=limits::DISK_MIB_MAX;
            let size_mib = self.required(&volume.max_mb, &at(".max_mb"), sizes, "MiB")?;
            checked.insert(name, VolumeGrant { path, size_mib, read_only: volume.read_only });
        }
        Ok(checked)
    }

    pub(super) fn publish(
        &self,
        list: Option<Spanned<Vec<Spanned<RawPublished>>>>,
    ) -> Checked<Vec<Published>> {
        let field = "capabilities.network.publish";
        let Some(list) = list else { return Ok(Vec::new()) };
        let (span, entries) = (list.span(), list.into_inner());
        if entries.len() > limits::PUBLISH_PER_AGENT_MAX {
            let rule = format!("{} entries: at most {}", entries.len(), limits::PUBLISH_PER_AGENT_MAX);
            return self.wrong(span, field, rule, "remove some");
        }
        let mut published: Vec<Published> = Vec::new();
        for entry in entries {
            let (span, entry) = (entry.span(), entry.into_inner());
            let ports = u32::from(limits::PUBLISH_PORT_MIN)..=u32::from(limits::PUBLISH_PORT_MAX);
            let node_port = self.required(&entry.node_port, field, ports, "ports of the node for this")?;
            let one = Published {
                guest_port: self.port(&entry.guest_port, field)?,
                node_port: u16::try_from(node_port).unwrap_or(limits::PUBLISH_PORT_MAX), // the range was checked
                from: self.sources(entry.from, field)?,
            };
            if published.iter().any(|other| other.node_port == one.node_port) {
                return self.wrong(span, field, "two entries have one node_port", "choose another one");
            }
            published.push(one);
        }
        Ok(published)
    }

    fn sources(&self, from: Spanned<Vec<Spanned<String>>>, field: &str) -> Checked<Vec<crate::ids::Source>> {
        let (span, list) = (from.span(), from.into_inner());
        if list.is_empty() || list.len() > limits::PUBLISH_SOURCES_MAX {
            let rule = format!("`from` must have 1 to {} ranges", limits::PUBLISH_SOURCES_MAX);
            return self.wrong(span, field, rule, "write for example from = [\"192.0.2.0/24\"]");
        }
        let mut ranges = Vec::new();
        for entry in list {
            match entry.get_ref().parse() {
                Ok(range) => ranges.push(range),
                Err(error) => {
                    let error: crate::ids::IdError = error;
                    return self.wrong(
                        entry.span(),
                        field,
                        error.to_string(),
                        "write for example \"192.0.2.0/24\"",
                    );
                }
            }
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use crate::manifest::{RestartPolicy, Workspace, parse};

    fn text(agent: &str, capabilities: &str) -> String {
        format!(
            "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/bin/x\"]\n{agent}\n[capabilities]\n{capabilities}\n"
        )
    }

    #[test]
    fn what_is_left_out_is_the_least() {
        let manifest = parse("f", &text("", "")).unwrap();
        assert_eq!(manifest.restart.policy, RestartPolicy::Never);
        assert_eq!(manifest.workspace, Workspace::Ephemeral);
        assert!(!manifest.stdin && !manifest.tty && manifest.health_check.is_none());
        assert!(manifest.volumes.is_empty() && manifest.publish.is_empty());
        assert!(manifest.lifetime_secs_max.is_none() && manifest.idle_secs_max.is_none());
    }

    #[test]
    fn all_of_a_life_can_be_said() {
        let manifest = parse(
            "f",
            &text(
                "restart = \"on-failure\"\nmax_restarts = 2\nworkspace = \"kept\"\nstdin = true\ntty = true\nmax_lifetime_secs = 60\nidle_timeout_secs = 5",
                "max_disk_mb_per_sec = 20\nhealth_check = { port = 8080, path = \"/up\", interval_secs = 2, max_failures = 1 }\nvolumes.data = { path = \"/data\", max_mb = 64 }\nnetwork.publish = [{ guest_port = 80, node_port = 30080, from = [\"10.0.0.0/8\"] }]",
            ),
        )
        .unwrap();
        assert_eq!((manifest.restart.max, manifest.lifetime_secs_max), (2, Some(60)));
        assert_eq!(manifest.health_check.unwrap().path, "/up");
        assert_eq!(manifest.volumes.values().next().unwrap().size_mib, 64);
        assert_eq!(manifest.publish.first().unwrap().from.first().unwrap().to_string(), "10.0.0.0/8");
        assert_eq!((manifest.workspace, manifest.disk_mb_per_sec), (Workspace::Kept, Some(20)));
    }

    #[test]
    fn each_mistake_names_its_field_and_rule() {
        let volume = "volumes.data = { path = \"/data\", max_mb = 64 }";
        for (agent, capabilities, field, rule) in [
            ("restart = \"sometimes\"", "", "agent.restart", "unknown variant"),
            ("max_restarts = 3", "", "agent.max_restarts", "nothing to bound"),
            ("restart = \"always\"\nmax_restarts = 0", "", "agent.max_restarts", "1 to"),
            ("max_lifetime_secs = 0", "", "agent.max_lifetime_secs", "1 to"),
            ("", "health_check = { port = 0 }", "capabilities.health_check.port", "1 to 65535"),
            ("", "health_check = { port = 1, path = \"x\" }", "capabilities.health_check.path", "begin with"),
            ("", "health_check = { port = 1, path = \"/a b\" }", "capabilities.health_check.path", "visible"),
            ("", "volumes.\"a b\" = { path = \"/data\", max_mb = 64 }", "capabilities.volumes.a b", "name"),
            (
                "",
                "volumes.data = { path = \"/proc/x\", max_mb = 64 }",
                "capabilities.volumes.data.path",
                "system",
            ),
            (
                "",
                "volumes.data = { path = \"/data\", max_mb = 1 }",
                "capabilities.volumes.data.max_mb",
                "64 to",
            ),
            (
                "",
                &format!("{volume}\nvolumes.more = {{ path = \"/data/x\", max_mb = 64 }}"),
                "capabilities.volumes.more.path",
                "one another",
            ),
            (
                "",
                "network.publish = [{ guest_port = 80, node_port = 80, from = [\"10.0.0.0/8\"] }]",
                "capabilities.network.publish",
                "30000 to",
            ),
            (
                "",
                "network.publish = [{ guest_port = 80, node_port = 30000, from = [] }]",
                "capabilities.network.publish",
                "`from`",
            ),
            (
                "",
                "network.publish = [{ guest_port = 80, node_port = 30000, from = [\"10.0.0.1/8\"] }]",
                "capabilities.network.publish",
                "source range",
            ),
        ] {
            let error = parse("f", &text(agent, capabilities)).unwrap_err();
            assert!(error.rule.contains(rule), "{field}: {error}");
            assert!(error.field == field || rule == "unknown variant", "{field}: {error}");
        }
    }
}
