//! All that cage knows in numbers, as Prometheus's text. The names are listed in docs/metrics.md, and a test keeps the two equal.

use abi::control::{AgentState, AgentSummary, AgentUse};
use abi::metrics::{Page, count};
use std::collections::BTreeSet;

use crate::agents::Cage;
use crate::watch;

/// Each state and its word.
const STATES: [(AgentState, &str); 8] = [
    (AgentState::Stopped, "stopped"),
    (AgentState::Starting, "starting"),
    (AgentState::Running, "running"),
    (AgentState::Paused, "paused"),
    (AgentState::Quarantined, "quarantined"),
    (AgentState::Stopping, "stopping"),
    (AgentState::Exited, "exited"),
    (AgentState::Failed, "failed"),
];

/// A state as the control protocol writes it.
pub fn word(state: AgentState) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("", |(_, word)| word)
}

/// The metrics of all agents and of the store.
pub fn page(cage: &Cage) -> Page {
    let mut page = Page::default();
    let agents = cage.list().agents;
    for (state, word) in STATES {
        let number = agents.iter().filter(|agent| agent.state == state).count();
        page.gauge("nullbox_agents", "Agents by state.", &[("state", word)], count(number as u64));
    }
    for agent in &agents {
        life(&mut page, agent);
    }
    for used in watch::top(cage) {
        usage(&mut page, &used);
    }
    starts(&mut page, cage);
    happenings(&mut page, cage);
    store(&mut page, cage);
    page
}

fn life(page: &mut Page, agent: &AgentSummary) {
    let name = agent.name.as_str();
    let instance = agent.instance.as_ref().map(ToString::to_string).unwrap_or_default();
    let told = [
        ("agent", name),
        ("instance", instance.as_str()),
        ("rootfs", agent.rootfs.as_str()),
        ("version", agent.version.as_str()),
    ];
    page.gauge(
        "nullbox_agent_info",
        "What an agent is made of, and its present or last life; always 1.",
        &told,
        1,
    );
    for (state, word) in STATES {
        let labels = [("agent", name), ("state", word)];
        let is = u32::from(agent.state == state);
        page.gauge("nullbox_agent_state", "1 for the state an agent is in, 0 for the others.", &labels, is);
    }
    if let Some(healthy) = agent.healthy {
        let help = "Whether the last health check was answered well; absent without one.";
        page.gauge("nullbox_agent_healthy", help, &[("agent", name)], u32::from(healthy));
    }
    if let Some(ms) = agent.uptime_ms {
        let help = "Time since the agent's command was started.";
        page.gauge("nullbox_agent_uptime_seconds", help, &[("agent", name)], count(ms) / 1e3);
    }
}

fn usage(page: &mut Page, used: &AgentUse) {
    let of = &[("agent", used.name.as_str())];
    let cpu = "CPU time of the VM's processes in its present life.";
    page.counter("nullbox_agent_cpu_seconds_total", cpu, of, count(used.cpu_ms) / 1e3);
    let cores = f64::from(used.cpu_percent_max) / 100.0;
    page.gauge("nullbox_agent_cpu_limit_cores", "Cores an agent may use.", of, cores);
    let memory = "Memory of the VM's processes: guest RAM in use and the VMM's own.";
    page.gauge("nullbox_agent_memory_bytes", memory, of, count(used.memory_kib * 1024));
    let most = "Memory at which the kernel ends the VM.";
    page.gauge("nullbox_agent_memory_limit_bytes", most, of, count(used.memory_max_kib * 1024));
    page.gauge("nullbox_agent_tasks", "Threads of the VM's processes.", of, used.tasks);
    let read = "Bytes read from the node's disks for a VM; 0 where disks live in memory.";
    page.counter("nullbox_agent_disk_read_bytes_total", read, of, count(used.disk_read_bytes));
    let written = "Bytes written to the node's disks for a VM; 0 where disks live in memory.";
    page.counter("nullbox_agent_disk_written_bytes_total", written, of, count(used.disk_written_bytes));
    let sent = "Bytes an agent sent through egress, published ports included.";
    page.counter("nullbox_agent_network_transmit_bytes_total", sent, of, count(used.net_out_bytes));
    let received = "Bytes an agent received through egress, published ports included.";
    page.counter("nullbox_agent_network_receive_bytes_total", received, of, count(used.net_in_bytes));
    let open = "Connections open through egress, published ports included.";
    page.gauge("nullbox_agent_network_connections", open, of, used.connections);
    let refused = "What egress refused, to the agent and to who came to its published ports.";
    page.counter("nullbox_agent_network_denials_total", refused, of, count(used.net_denials));
    page.gauge("nullbox_agent_execs", "Execs and copies running.", of, used.execs);
    page.counter(
        "nullbox_agent_execs_total",
        "Execs and copies of the present life.",
        of,
        count(used.execs_total),
    );
}

/// Where the time of each agent's last start went.
fn starts(page: &mut Page, cage: &Cage) {
    for agent in cage.known_agents() {
        let stages = agent.facts().stages_ms.clone();
        let help = "From the request to the end of each stage of the last start.";
        for (stage, ms) in &stages {
            let labels = [("agent", agent.name.as_str()), ("stage", stage.as_str())];
            page.gauge("nullbox_agent_start_stage_seconds", help, &labels, count(*ms) / 1e3);
        }
    }
}

/// What happened since cage began, from its count of events.
fn happenings(page: &mut Page, cage: &Cage) {
    for (agent, what, times) in cage.events.counts() {
        let of = &[("agent", agent.as_str())];
        match what.as_str() {
            "restarting" => {
                let help = "Starts by the restart policy since cage began.";
                page.counter("nullbox_agent_restarts_total", help, of, count(times));
            }
            "denied" => {
                let help = "What the sandbox in the guest refused since cage began, as the guest says.";
                page.counter("nullbox_agent_sandbox_denials_total", help, of, count(times));
            }
            _ => {}
        }
        let labels = [("agent", agent.as_str()), ("event", what.as_str())];
        let help = "What happened to an agent since cage began, by kind.";
        page.counter("nullbox_agent_events_total", help, &labels, count(times));
    }
}

fn store(page: &mut Page, cage: &Cage) {
    let images = cage.store.list();
    page.gauge("nullbox_images", "Images in the rootfs store.", &[], count(images.len() as u64));
    let layers: BTreeSet<_> =
        images.iter().flat_map(|image| &image.layers).map(|layer| (layer.digest, layer.bytes)).collect();
    let bytes = layers.iter().map(|(_, bytes)| bytes).sum();
    page.gauge("nullbox_image_store_bytes", "Bytes of the store's layers, each once.", &[], count(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::control::AgentUse;

    fn example() -> Page {
        let mut page = Page::default();
        let summary = AgentSummary {
            name: "a".parse().unwrap(),
            version: "1\"\n".into(),
            state: AgentState::Running,
            instance: Some("a.2".parse().unwrap()),
            rootfs: "python".into(),
            uptime_ms: Some(1500),
            detail: String::new(),
            restarts: 0,
            healthy: Some(true),
        };
        life(&mut page, &summary);
        usage(&mut page, &AgentUse { name: "a".into(), cpu_ms: 2500, memory_kib: 4, ..AgentUse::default() });
        page
    }

    #[test]
    fn an_agent_is_told_in_base_units_and_its_words_cannot_break_a_line() {
        let text = example().text();
        for line in [
            "nullbox_agent_info{agent=\"a\",instance=\"a.2\",rootfs=\"python\",version=\"1\\\"\\n\"} 1",
            "nullbox_agent_state{agent=\"a\",state=\"running\"} 1",
            "nullbox_agent_state{agent=\"a\",state=\"failed\"} 0",
            "nullbox_agent_healthy{agent=\"a\"} 1",
            "nullbox_agent_uptime_seconds{agent=\"a\"} 1.5",
            "nullbox_agent_cpu_seconds_total{agent=\"a\"} 2.5",
            "nullbox_agent_memory_bytes{agent=\"a\"} 4096",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE nullbox_agent_state gauge").count(), 1);
    }

    #[test]
    fn states_are_written_as_the_control_protocol_writes_them() {
        for (state, word) in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), word);
        }
    }

    #[test]
    fn the_page_of_the_documentation_names_each_metric_and_no_other() {
        let names = |text: &str, open: char| -> BTreeSet<String> {
            let begun = text.split(open).filter(|part| part.starts_with("nullbox_"));
            begun
                .map(|part| part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect())
                .collect()
        };
        let (source, _) = include_str!("metrics.rs").split_once("#[cfg(test)]").unwrap();
        let page = include_str!("../../docs/metrics.md");
        let (_, of_agents) = page.split_once("## Of agents").unwrap();
        let (of_agents, _) = of_agents.split_once("## Of the node").unwrap();
        assert_eq!(names(source, '"'), names(of_agents, '`'));
    }
}
