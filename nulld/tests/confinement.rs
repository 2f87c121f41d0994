//! What nulld.toml grants works, and what it does not grant fails: real services under the real nulld.
//! Needs root, and a kernel with Landlock ABI 6, as the image's is.

mod node;

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use node::Node;

/// A configuration without an uplink, with these services of the example `confined`.
fn config(services: &str) -> String {
    format!("[network]\nmode = \"none\"\n{services}")
}

/// A service that tries these things.
fn service(name: &str, tries: &[&str], grants: &str) -> String {
    let unconfined = if grants.contains("unconfined") { "" } else { "unconfined = false\n" };
    format!(
        "[services.{name}]\npath = \"/system/bin/confined\"\nrestart = \"never\"\nargs = {tries:?}\n{unconfined}{grants}\n"
    )
}

/// Whether this machine's kernel can hold a service at all; the image's can.
fn kernel_can() -> bool {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .scope(Scope::Signal)
        .and_then(|rules| rules.handle_access(AccessFs::from_all(ABI::V6)))
        .and_then(Ruleset::create);
    if rules.is_err() {
        eprintln!(
            "skipped: this kernel has no Landlock ABI 6; the system tests show the same on the image's"
        );
    }
    rules.is_ok()
}

/// Boots and waits until the services have tried everything.
fn boot(services: &str) -> Option<Node> {
    kernel_can().then(|| Node::boot(&config(services)))
}

/// What a service found, for each thing it tried.
fn found(node: &Node, name: &str) -> Vec<(String, String)> {
    let lines = node.logs(name).into_iter().map(|line| line.line);
    let pairs = lines
        .filter_map(|line| line.split_once(" -> ").map(|(tried, how)| (tried.to_owned(), how.to_owned())));
    pairs.collect()
}

/// Checks each: `ok` and a part of the answer, or a part of the error.
fn expect(node: &Node, name: &str, wanted: &[(&str, &str)]) {
    let found = found(node, name);
    let logs = || node.logs(name).into_iter().map(|line| line.line).collect::<Vec<_>>();
    for (tried, how) in wanted {
        let is = found.iter().find(|(what, _)| what == tried);
        let is = is.unwrap_or_else(|| panic!("{name} did not try {tried}: {:?}", logs()));
        assert!(is.1.contains(how), "{name}: {tried} -> {}, wanted {how}", is.1);
        assert_eq!(is.1.starts_with("ok"), how.starts_with("ok"), "{name}: {tried} -> {}", is.1);
    }
}

/// The first word of each thing to try.
fn tries<'a>(wanted: &[(&'a str, &str)]) -> Vec<&'a str> {
    wanted.iter().map(|(tried, _)| *tried).collect()
}

const NO_FILE: &str = "No such file";
const REFUSED: &str = "Permission denied";
const READ_ONLY: &str = "Read-only file system";

#[test]
fn a_service_sees_its_grants_and_its_own_state_and_nothing_else() {
    let wanted = [
        ("read=/run/nullbox/node.json", "ok"),
        ("write=/run/nullbox/node.json", REFUSED),
        ("write=/run/nullbox/new", READ_ONLY),
        ("write=/state/a/x", "ok"),
        ("read=/state/a/x", "ok 0"),
        ("write=/run/own/x", "ok"),
        ("read=/state/b/x", NO_FILE),
        ("list=/state", REFUSED),
        ("list=/", REFUSED),
        ("read=/system/config/nulld.toml", NO_FILE),
        ("read=/etc/passwd", NO_FILE),
        ("list=/sys", NO_FILE),
        ("list=/proc", NO_FILE),
        ("read=/system/bin/nulld", NO_FILE),
        ("write=/system/bin/confined", REFUSED),
        ("write=/x", READ_ONLY),
        ("write=/tmp/x", NO_FILE),
        ("byte=/dev/urandom", "ok 1"),
        ("write=/dev/null", "ok"),
        ("byte=/dev/console", NO_FILE),
        ("unix=/run/nullbox/b.sock", "ok"),
        ("unix=/run/nulld.sock", NO_FILE),
        ("copy=/state/a/program", "ok"),
        ("start=/state/a/program", REFUSED),
    ];
    let grants = "uid = 42101\nsystem_calls = [\"files\"]\n\
        read = [\"/run/nullbox/node.json\", \"/run/nullbox/b.sock\", \"/run/nowhere\"]\nwrite = [\"/run/own\"]";
    let Some(node) = boot(
        &(service("a", &tries(&wanted), grants)
            + &service("b", &["write=/state/b/x"], "uid = 42102\nsystem_calls = [\"files\"]")),
    ) else {
        return;
    };
    expect(&node, "a", &wanted);
    expect(&node, "b", &[("write=/state/b/x", "ok")]);
    let absent = |line: &abi::control::LogLine| line.line.contains("grant_absent path=/run/nowhere");
    assert!(node.logs("a").iter().any(absent));
}

#[test]
fn proc_shows_a_service_itself_or_the_settings_of_the_network_or_nothing() {
    let own = [
        ("read=/proc/self/limits", "ok"),
        ("read=/proc/1/status", NO_FILE),
        ("read=/proc/sys/kernel/hostname", NO_FILE),
        ("write=/proc/self/comm", REFUSED),
    ];
    let net = [
        ("write=/proc/sys/net/ipv4/ip_forward", "ok"),
        ("read=/proc/1/status", NO_FILE),
        ("write=/proc/sys/kernel/hostname", REFUSED),
        ("write=/proc/self/comm", REFUSED),
    ];
    let Some(node) = boot(
        &(service("own", &tries(&own), "uid = 42111\nproc = \"own\"\nopen_files_max = 99")
            + &service(
                "net",
                &tries(&net),
                "uid = 42112\nproc = \"net\"\nnetwork = true\ncapabilities = [\"net_admin\"]",
            )),
    ) else {
        return;
    };
    expect(&node, "own", &own);
    expect(&node, "net", &net);
    let limits = &found(&node, "own")[0].1;
    let spaced = limits.split_whitespace().collect::<Vec<_>>().join(" ");
    for limit in
        ["Max core file size 0 0", "Max open files 99 99", "Max locked memory 0 0", "Max processes 256 256"]
    {
        assert!(spaced.contains(limit), "{limit} is not in {spaced}");
    }
}

#[test]
fn the_network_is_granted_port_by_port() {
    const NET: &str = "system_calls = [\"network\"]\nneeds = [\"server\"]\nuid = 42121\n";
    let alone = [("connect=127.0.0.1:7001", "unreachable"), ("abstract=nulld-test", "refused")];
    let shared = [
        ("connect=127.0.0.1:7001", REFUSED),
        ("listen=127.0.0.1:7002", REFUSED),
        ("abstract=nulld-test", "Operation not permitted"),
    ];
    let granted = [
        ("connect=127.0.0.1:7001", "ok"),
        ("connect=127.0.0.1:7009", REFUSED),
        ("listen=127.0.0.1:7003", "ok"),
        ("listen=127.0.0.1:7002", REFUSED),
    ];
    let anywhere = [("connect=127.0.0.1:7001", "ok"), ("listen=127.0.0.1:7004", REFUSED)];
    let server = ["listen=127.0.0.1:7001", "abstract-listen=nulld-test"];
    let Some(node) = boot(
        &(service("server", &server, "unconfined = true")
            + &service("alone", &tries(&alone), &format!("{NET}tcp_connect = [\"any\"]"))
            + &service("shared", &tries(&shared), &format!("{NET}network = true"))
            + &service(
                "granted",
                &tries(&granted),
                &format!("{NET}network = true\ntcp_connect = [7001]\ntcp_listen = [7003]"),
            )
            + &service(
                "anywhere",
                &tries(&anywhere),
                &format!("{NET}network = true\ntcp_connect = [\"any\"]"),
            )),
    ) else {
        return;
    };
    expect(&node, "alone", &alone);
    expect(&node, "shared", &shared);
    expect(&node, "granted", &granted);
    expect(&node, "anywhere", &anywhere);
}

#[test]
fn signals_tasks_and_mounts_stay_within_the_service() {
    let victim = ["pid=/run/shared/pid"];
    let signals = [("signal=/run/shared/pid", "Operation not permitted")];
    let threads = [("threads=64", "ok")];
    let mounts = [("mount=/run/own/m", "ok"), ("read=/run/own/m/inside", "ok x")];
    let Some(node) = boot(
        &(service("victim", &victim, "uid = 42131\nwrite = [\"/run/shared\"]\nsystem_calls = [\"files\"]")
            + &service(
                "signals",
                &tries(&signals),
                "uid = 42131\nneeds = [\"victim\"]\nread = [\"/run/shared\"]",
            )
            + &service("threads", &tries(&threads), "uid = 42132\ntasks_max = 8")
            + &service(
                "mounts",
                &tries(&mounts),
                "write = [\"/run/own\"]\nmakes_mounts = true\ncapabilities = [\"sys_admin\"]\nsystem_calls = [\"files\", \"jails\"]",
            )),
    ) else {
        return;
    };
    expect(&node, "signals", &signals);
    expect(&node, "mounts", &mounts);
    assert!(node.path("/run/own/m").exists() && !node.path("/run/own/m/inside").exists());
    let made: usize = found(&node, "threads")[0].1.trim_start_matches("ok ").parse().unwrap();
    assert!(made < 8, "{made} threads beside the first");
}

#[test]
fn a_call_outside_the_sets_ends_the_service() {
    let network = libc::AF_INET;
    let calls: Vec<(String, String, &str)> = [
        ("execve", libc::SYS_execve, "", ""),
        ("ptrace", libc::SYS_ptrace, "", ""),
        ("mount", libc::SYS_mount, "", ""),
        ("umount", libc::SYS_umount2, "", ""),
        ("setns", libc::SYS_setns, "", ""),
        ("unshare", libc::SYS_unshare, "", ""),
        ("process", libc::SYS_clone, ":17", ""),
        ("keyctl", libc::SYS_keyctl, "", ""),
        ("bpf", libc::SYS_bpf, "", ""),
        ("uring", libc::SYS_io_uring_setup, "", ""),
        ("userfault", libc::SYS_userfaultfd, "", ""),
        ("perf", libc::SYS_perf_event_open, "", ""),
        ("kexec", libc::SYS_kexec_load, "", ""),
        ("module", libc::SYS_finit_module, "", ""),
        ("peek", libc::SYS_process_vm_readv, "", ""),
        ("getfd", libc::SYS_pidfd_getfd, "", ""),
        ("handle", libc::SYS_open_by_handle_at, "", ""),
        ("clock", libc::SYS_clock_settime, "", ""),
        ("memfd", libc::SYS_memfd_create, "", ""),
        ("kill", libc::SYS_kill, ":999999", ""),
        ("inet", libc::SYS_socket, &format!(":{network}:1:0"), ""),
        ("raw", libc::SYS_socket, &format!(":{network}:3:1"), "network"),
        ("packet", libc::SYS_socket, ":17:3:0", "network"),
        ("exec-memory", libc::SYS_mprotect, ":0:0:4", ""),
        ("write-exec", libc::SYS_mmap, ":0:4096:7", ""),
        ("namespace", libc::SYS_unshare, ":131072", "namespaces"),
    ]
    .map(|(name, number, args, set)| (name.to_owned(), format!("call={number}{args}"), set))
    .to_vec();
    if !kernel_can() {
        return;
    }
    let services: String = calls
        .iter()
        .map(|(name, call, set)| {
            let sets = if set.is_empty() { String::new() } else { format!("system_calls = [\"{set}\"]") };
            service(name, &[call], &format!("uid = 42141\n{sets}"))
        })
        .collect();
    let clone3 = format!("call={}", libc::SYS_clone3);
    let node = Node::start(&config(&(services + &service("clone3", &[&clone3], "uid = 42142"))));
    for (name, call, _) in &calls {
        let ended = node.wait_state(name, "failed", 30);
        assert!(ended.detail.contains("SIGSYS"), "{name} {call}: {ended:?} {:?}", found(&node, name));
    }
    node.wait_state("clone3", "ready", 10);
    expect(&node, "clone3", &[(&clone3, "Function not implemented")]);
}
