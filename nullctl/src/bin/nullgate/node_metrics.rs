//! What nulld says of the node, as Prometheus's text. The names are listed in docs/metrics.md, and a test keeps the two equal.

use abi::control::SystemStatus;
use abi::metrics::{Page, count};

/// Whether a part of the page is there.
pub fn scrape(page: &mut Page, part: &str, is_there: bool) {
    let help = "1 for each part of this page that its service answered for.";
    page.gauge("nullbox_scrape_up", help, &[("part", part)], u32::from(is_there));
}

/// Adds the node and its services.
pub fn add(page: &mut Page, status: &SystemStatus) {
    let told = [
        ("node", status.node.as_str()),
        ("version", status.version.as_str()),
        ("root_hash", status.root_hash.as_str()),
    ];
    page.gauge("nullbox_node_info", "The node and its image; always 1.", &told, 1);
    let mut number = |name, help, value: f64| page.gauge(name, help, &[], value);
    number("nullbox_node_uptime_seconds", "Since the kernel started.", count(status.uptime_ms) / 1e3);
    if let Some(ready_ms) = status.ready_ms {
        let help = "From the kernel's start to all services ready; absent while booting.";
        number("nullbox_node_boot_seconds", help, count(ready_ms) / 1e3);
    }
    let kib = |kib: u64| count(kib * 1024);
    number("nullbox_node_memory_bytes", "RAM.", kib(status.memory_total_kib));
    let help = "Memory that new work may take.";
    number("nullbox_node_memory_available_bytes", help, kib(status.memory_available_kib));
    let help = "1 if there is no state partition: all is lost at power-off.";
    number("nullbox_node_ephemeral", help, f64::from(u8::from(status.ephemeral)));
    let problems = count(status.problems.len() as u64);
    number("nullbox_node_problems", "Mistakes in the configuration.", problems);
    number("nullbox_nulld_resident_bytes", "Memory of PID 1.", kib(status.nulld_rss_kib));
    let crashes = "Crashes of PID 1 that it survived in this boot.";
    page.counter("nullbox_nulld_crashes_total", crashes, &[], status.crashes);
    for service in &status.services {
        let of = &[("service", service.name.as_str())];
        let is_ready = u32::from(service.state == "ready");
        page.gauge("nullbox_service_up", "1 for a service that is ready.", of, is_ready);
        let help = "How often a service was started again in this boot.";
        page.counter("nullbox_service_restarts_total", help, of, count(service.restarts));
        page.gauge(
            "nullbox_service_memory_bytes",
            "Memory of a service's cgroup.",
            of,
            kib(service.memory_kib),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn the_page_of_the_documentation_names_each_metric_and_no_other() {
        let names = |text: &str, open: char| -> BTreeSet<String> {
            let begun = text.split(open).filter(|part| part.starts_with("nullbox_"));
            begun
                .map(|part| part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect())
                .collect()
        };
        let (source, _) = include_str!("node_metrics.rs").split_once("#[cfg(test)]").unwrap();
        let page = include_str!("../../../../docs/metrics.md");
        let (_, of_node) = page.split_once("## Of the node").unwrap();
        let (of_node, _) = of_node.split_once("## Events").unwrap();
        assert_eq!(names(source, '"'), names(of_node, '`'));
    }
}
