//! Every bound in NullBox, in one place. Units stand last in the name; what happens at the bound is said beside it.

mod coder;
mod ctxgraph;
mod network;
mod tasks;
pub use coder::*;
pub use ctxgraph::*;
pub use network::*;
pub use tasks::*;

/// An agent's name, in bytes. Longer: the manifest is rejected.
pub const AGENT_NAME_BYTES_MAX: usize = 32;
/// Agents with a running VM at one time. One more: `agent.start` is refused.
pub const AGENTS_RUNNING_MAX: usize = 64;
/// Manifests in /system/config. More: the rest is reported and not loaded.
pub const MANIFESTS_MAX: usize = 256;
/// One manifest or node configuration file. Larger: rejected unread.
pub const CONFIG_FILE_BYTES_MAX: u64 = 64 * 1024;
/// Arguments in an agent's command or an exec, and bytes of each.
pub const COMMAND_ARGS_MAX: usize = 64;
/// Bytes of one argument.
pub const COMMAND_ARG_BYTES_MAX: usize = 4096;
/// Variables in an agent's environment.
pub const ENV_VARS_MAX: usize = 64;
/// Entries in any list of a manifest (names, paths, exec).
pub const MANIFEST_LIST_MAX: usize = 128;
/// An absolute path in a manifest, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;

/// Guest RAM a manifest may ask for, in MiB.
pub const MEMORY_MIB_MIN: u32 = 32;
/// Largest guest RAM, in MiB.
pub const MEMORY_MIB_MAX: u32 = 65_536;
/// Guest RAM when the manifest says nothing, in MiB.
pub const MEMORY_MIB_DEFAULT: u32 = 128;
/// CPU share of one core, in percent: 100 is one core, 400 is four.
pub const CPU_PERCENT_MAX: u32 = 6400;
/// CPU share when the manifest says nothing.
pub const CPU_PERCENT_DEFAULT: u32 = 100;
/// Scratch disk, in MiB. The file is sparse; the guest sees ENOSPC at the bound.
pub const DISK_MIB_MIN: u32 = 64;
/// Largest scratch disk, in MiB.
pub const DISK_MIB_MAX: u32 = 65_536;
/// Scratch disk when the manifest says nothing, in MiB.
pub const DISK_MIB_DEFAULT: u32 = 1024;
/// Processes inside a guest's agent sandbox. At the bound fork fails with EAGAIN in the guest.
pub const GUEST_PIDS_MAX: u32 = 4096;
/// Processes when the manifest says nothing.
pub const GUEST_PIDS_DEFAULT: u32 = 256;
/// Memory of a VMM beside guest RAM, in MiB, added to the cgroup's memory.max.
pub const VMM_OVERHEAD_MIB: u32 = 64;
/// Threads of one VMM jail (cgroup pids.max).
pub const VMM_PIDS_MAX: u32 = 64;

/// Named volumes of one agent. More: the manifest is rejected.
pub const VOLUMES_PER_AGENT_MAX: usize = 4;
/// Layers of a rootfs that are disks of their own; those above are merged into one (docs/rootfs.md).
pub const ROOTFS_DISKS_MAX: usize = 5;
/// Read-only disks of a guest: the rootfs's, and for a task the tree's and one that hides what the rootfs has at its place.
pub const GUEST_LAYERS_MAX: usize = ROOTFS_DISKS_MAX + 2;
/// Published ports of one agent. More: the manifest is rejected.
pub const PUBLISH_PER_AGENT_MAX: usize = 8;
/// Source ranges of one published port. More: the manifest is rejected.
pub const PUBLISH_SOURCES_MAX: usize = 16;
/// Ports of the node that a manifest may publish on.
pub const PUBLISH_PORT_MIN: u16 = 30_000;
/// The last of them.
pub const PUBLISH_PORT_MAX: u16 = 30_255;
/// Source ranges of all published ports of a node together: rules of its firewall. More: the network is refused.
pub const PUBLISH_SOURCES_NODE_MAX: usize = 128;
/// Open connections to one agent's published ports. One more: reset, and counted as a denial.
pub const PUBLISH_CONNECTIONS_PER_AGENT_MAX: usize = 128;
/// New connections to one agent's published ports in a second; twice as many at once. More: reset, and counted as a denial.
pub const PUBLISH_CONNECTIONS_PER_SECOND_MAX: u32 = 100;
/// Disk traffic a manifest may allow, in MiB a second, reads and writes each. Above it the guest waits.
pub const DISK_MB_PER_SEC_MAX: u32 = 10_000;
/// Shortest pause between two health checks, in seconds.
pub const HEALTH_INTERVAL_SECS_MIN: u32 = 1;
/// Longest pause between two health checks, in seconds.
pub const HEALTH_INTERVAL_SECS_MAX: u32 = 3600;
/// How long one health check may take. Later: it has failed.
pub const HEALTH_TIMEOUT_MS: u64 = 5_000;
/// How long an agent that was never healthy may take to become so. Meanwhile failed checks are told and do not count.
pub const HEALTH_START_MS: u64 = 30_000;
/// Failed health checks in a row that a manifest may tolerate.
pub const HEALTH_FAILURES_MAX: u32 = 100;
/// Restarts a manifest may ask for.
pub const RESTARTS_MAX: u32 = 1_000;
/// Restarts when the manifest says nothing.
pub const RESTARTS_DEFAULT: u32 = 5;
/// First pause before an agent is started again by its restart policy; it doubles with each restart.
pub const RESTART_PAUSE_MS_MIN: u64 = 1_000;
/// Longest pause before an agent is started again.
pub const RESTART_PAUSE_MS_MAX: u64 = 60_000;
/// After running for so long, an agent's restarts are counted from the first one again.
pub const RESTART_RESET_MS: u64 = 600_000;
/// Longest lifetime and idle time a manifest may set, in seconds (30 days).
pub const LIFETIME_SECS_MAX: u32 = 30 * 24 * 3600;
/// How long a guest has to write its disks out before it is paused. Later: it is paused all the same.
pub const PAUSE_SYNC_MS_MAX: u64 = 5_000;
/// How long the kernel may take to stop all tasks of a VM, or to let them go on. Later: the pause is refused and undone.
pub const FREEZE_MS_MAX: u64 = 5_000;
/// Quarantined lives whose evidence a node keeps. One more: the quarantine is refused before anything happens; old evidence is
/// never deleted but by `agent.remove_evidence` and `agent.remove`.
pub const EVIDENCE_MAX: usize = 64;
/// Characters of the reason that an operator gives for a quarantine. More: refused.
pub const REASON_CHARS_MAX: usize = 500;
/// Stages of its own that a guest may tell of; the rest is dropped.
pub const GUEST_STAGES_MAX: usize = 32;
/// Characters of the name of one of them; the rest is cut.
pub const GUEST_STAGE_CHARS_MAX: usize = 32;
/// Characters of what a health check says; the rest is cut.
pub const GUEST_WORDS_CHARS_MAX: usize = 200;
/// Characters of why a guest says that it failed, and of how it broke the protocol; the rest is cut.
pub const GUEST_REASON_CHARS_MAX: usize = 500;
/// Output of one exec that the guest may send before its caller took it. At the bound the program's write waits.
pub const EXEC_WINDOW_BYTES: u32 = 256 * 1024;
/// Input of one exec that the host may send before the program took it. At the bound the caller's input waits.
pub const EXEC_INPUT_WINDOW_BYTES: u32 = 128 * 1024;
/// How long the caller of an exec, a copy or an attach may take nothing. Then his call ends; an exec's program is killed.
pub const CALLER_STALL_MS_MAX: u64 = 120_000;
/// Longest time limit of an exec. Longer: refused.
pub const EXEC_TIMEOUT_MS_MAX: u64 = 24 * 3600 * 1000;
/// Rows and columns of a terminal. More: refused.
pub const TERMINAL_SIZE_MAX: u16 = 1_000;
/// A path inside a copy, in bytes (PATH_MAX less the final NUL).
pub const COPY_PATH_BYTES_MAX: usize = 4095;
/// Entries of one copy. More: it ends with an error.
pub const COPY_ENTRIES_MAX: u64 = 1_000_000;
/// Snapshots a node holds. One more: refused.
pub const SNAPSHOTS_MAX: usize = 128;
/// Volumes a node holds. One more: its agent does not start.
pub const VOLUMES_MAX: usize = 256;
/// What a copy of a disk leaves free on the node's disk, in MiB: receipts and memory are written there. Less: refused.
pub const DISK_RESERVE_MIB: u64 = 128;
/// Copies of disks made at one time. One more waits its turn.
pub const DISK_COPIES_MAX: usize = 1;
/// Agents' events kept in memory for `agent.events`; the oldest go first (the ledger keeps all).
pub const AGENT_EVENTS_KEPT_MAX: usize = 1024;
/// Events of one kind of one agent kept in a second. More: counted in the metrics and in `dropped`, not kept, so that a flood of
/// one kind does not push out the rest.
pub const AGENT_EVENTS_PER_SECOND_MAX: u32 = 20;
/// Characters of an event's detail; the rest is cut.
pub const AGENT_EVENT_CHARS_MAX: usize = 400;
/// How long cage waits for egress's counters when it is asked what agents use. Later: it answers without them.
pub const NET_USE_MS_MAX: u64 = 2_000;
/// How long cage waits for egress to go by what an agent has seen. Later: the agent is not shown it.
pub const NET_EXPOSE_MS_MAX: u64 = 8_000;
/// How long cage waits for ctxgraph to have an agent's entries carry what it has seen. Later: the agent is not shown it.
pub const MEMORY_EXPOSE_MS_MAX: u64 = 8_000;
/// How long egress waits for connections that it cut to be over. Later: `net.expose` fails.
pub const NET_CUT_MS_MAX: u64 = 5_000;
/// Where a fetched page says that it went, in bytes. Longer: left out.
pub const FETCH_LOCATION_BYTES_MAX: usize = 2048;
/// An address that is fetched, in bytes. Longer: refused.
pub const FETCH_URL_BYTES_MAX: usize = 8192;
/// Text of one part of `agent.metrics`, in bytes; a longer answer comes in several.
pub const METRICS_PART_BYTES_MAX: usize = 32 * 1024;
/// Connections to the metrics listener at a time. One more: closed unread.
pub const METRICS_CONNECTIONS_MAX: usize = 4;
/// A request's head at the metrics listener, in bytes. Longer: answered 431 and closed.
pub const METRICS_HEAD_BYTES_MAX: usize = 4096;
/// How long a request's head may take, and how long its answer may lie unread. Later: closed.
pub const METRICS_HTTP_MS_MAX: u64 = 5_000;
/// How long the node's services may take to say their metrics. Later: answered 503.
pub const METRICS_ANSWER_MS_MAX: u64 = 10_000;
/// Source ranges that may reach the metrics listener. More: the configuration is rejected.
pub const METRICS_SOURCES_MAX: usize = 16;

/// One line of the control protocol, newline included. Longer: the connection is answered with an error and closed.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// How long a new connection may take to send its first line. Later: closed.
pub const FIRST_LINE_MS_MAX: u64 = 10_000;
/// Connections waiting for their first line at the door. One more: the oldest is closed.
pub const DOOR_PENDING_MAX: usize = 64;
/// Connections one service works on at a time. One more: answered `busy` and closed.
pub const SERVICE_CONNECTIONS_MAX: usize = 128;
/// The same of cage, where each exec is a connection of its own: two agents' worth of execs, and the rest. Two threads each.
pub const CAGE_CONNECTIONS_MAX: usize = 2 * EXECS_PER_AGENT_MAX + SERVICE_CONNECTIONS_MAX;
/// File descriptors in one message.
pub const FDS_PER_MESSAGE_MAX: usize = 4;
/// How long a service waits for another service's answer. Later: the call fails, and what depended on it is refused.
pub const PEER_CALL_MS_MAX: u64 = 30_000;
/// How long cage waits for a network or a memory port. Later: it tries again. Longer than egress may take, which waits for a receipt, or
/// cage gives up what egress then hands to nobody, again and again.
pub const ATTACH_MS_MAX: u64 = 70_000;

/// One frame of the guest protocol, header not counted. Longer: the VM is killed (guest) or halted (host).
pub const GUEST_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Execs running in one guest at a time. One more: refused.
pub const EXECS_PER_AGENT_MAX: usize = 256;
/// How long a guest may take from VM start to its hello. Later: the VM is killed. Generous: nested TCG is slow.
pub const GUEST_BOOT_MS_MAX: u64 = 120_000;
/// Guests that boot at one time: as many as the node has CPUs, and at most this. One more waits until another is ready: what
/// boots side by side on too few CPUs is late for its own timers.
pub const GUESTS_BOOTING_MAX: usize = 8;
/// Pauses before each try to start again what ran before cage or the node went down. After the last one the agent stays
/// `failed`, with its reason.
pub const AGENT_RESUME_PAUSES_MS: [u64; 4] = [0, 2_000, 10_000, 30_000];
/// Lines of a broken VM's console that `agent.status` and the log of cage show, and characters of each.
pub const VM_CONSOLE_LINES_MAX: usize = 12;
/// Characters of one such line; the rest is cut.
pub const VM_CONSOLE_CHARS_MAX: usize = 200;
/// How long an agent has after SIGTERM. Then SIGKILL, then the VM is killed.
pub const AGENT_STOP_GRACE_MS: u64 = 5_000;

/// Log kept of one agent, in bytes; the oldest lines go first, and the loss is counted.
pub const AGENT_LOG_BYTES_MAX: usize = 1024 * 1024;
/// Tasks that nulld.toml may grant a service (cgroup pids.max). At the bound fork and new threads fail with EAGAIN.
pub const SERVICE_TASKS_MAX: u32 = 4096;
/// Open descriptors that nulld.toml may grant a service. At the bound open fails with EMFILE.
pub const SERVICE_OPEN_FILES_MAX: u32 = 64 * 1024;
/// Entries in each list of a service's grants in nulld.toml. More: the file is rejected.
pub const SERVICE_GRANTS_MAX: usize = 32;
/// Log kept of one service, in lines; the oldest go first.
pub const SERVICE_LOG_LINES_MAX: usize = 1024;
/// The same, in bytes: nulld's own memory is bounded whatever services write.
pub const SERVICE_LOG_BYTES_MAX: usize = 256 * 1024;
/// Log lines one service may write in a second. More: dropped, and the count stands in its log.
pub const SERVICE_LOG_LINES_PER_SECOND_MAX: u32 = 1000;
/// Log rings: of each service, of nulld and of the kernel. One more: its lines are dropped and counted.
pub const LOG_RINGS_MAX: usize = 64;
/// Lines of nulld's own log that callers can cause in a second. More: dropped, and the count stands in the log.
pub const OWN_LOG_LINES_PER_SECOND_MAX: u32 = 200;
/// Lines of the kernel's log kept in a second, and as many at once. More: dropped, and the count stands in the log.
pub const KERNEL_LOG_LINES_PER_SECOND_MAX: u32 = 1000;
/// One line of a service's notices to nulld, newline included. Longer: dropped.
pub const NOTICE_BYTES_MAX: usize = 256;
/// How often a service says that it is alive; less than half of the shortest `watchdog_secs_max`.
pub const SERVICE_ALIVE_MS: u64 = 2_000;
/// First pause before an ended service is started again; it doubles with each end.
pub const SERVICE_BACKOFF_MS_MIN: u64 = 1_000;
/// Longest pause before an ended service is started again; a service whose `restart_ms_min` is longer waits that long.
pub const SERVICE_BACKOFF_MS_MAX: u64 = 30_000;
/// So many times its `restart_ms_min` a service's pause grows at most.
pub const SERVICE_BACKOFF_TIMES_MAX: u64 = 30;
/// After being ready for so long, a service's next pause is the first one again.
pub const SERVICE_BACKOFF_RESET_MS: u64 = 60_000;
/// How long the kernel may take to end a killed service. Later: it is abandoned, and the log says so.
pub const SERVICE_KILL_MS_MAX: u64 = 5_000;
/// How long the services may take to be ready at boot. Later: the boot phase is `degraded` and names those that are not.
pub const SERVICES_READY_MS_MAX: u64 = 120_000;
/// How long boot waits for the uplink's address. Later: the phase `network` is `degraded`; the uplink goes on trying.
pub const UPLINK_WAIT_MS_MAX: u64 = 10_000;
/// How long a disk may take to answer a read of its label at boot. Later: it is left out, and `system.doctor` names it.
pub const DISK_ANSWER_MS_MAX: u64 = 10_000;
/// How long the state or the configuration volume may take to be mounted (a journal is replayed then). Later: it is taken for
/// broken.
pub const VOLUME_MOUNT_MS_MAX: u64 = 60_000;
/// Findings in one answer of `system.doctor`, worst first; the last one says how many more there are.
pub const FINDINGS_MAX: usize = 64;
/// How long all services together may take to stop. Later: they are killed.
pub const SHUTDOWN_MS_MAX: u64 = 60_000;
/// How long the last writes and unmounts may take. Later: the node goes down without them.
pub const SYNC_MS_MAX: u64 = 10_000;
/// Crashes of nulld within [`NULLD_CRASH_WINDOW_MS`] after which it starts and hands over nothing more, and only explains.
pub const NULLD_CRASHES_MAX: u32 = 3;
/// The time within which crashes of nulld count together.
pub const NULLD_CRASH_WINDOW_MS: u64 = 60_000;
/// Time after which the hardware restarts a node whose nulld no longer runs its loop.
pub const WATCHDOG_S: u32 = 60;
/// So many presses of ctrl-alt-del or the power button within [`FORCE_WINDOW_MS`] restart, or power off, at once.
pub const FORCE_PRESSES: usize = 7;
/// The time within which the presses count together.
pub const FORCE_WINDOW_MS: u64 = 4_000;
/// How long disks may take then. Later: the node goes down without them.
pub const FORCE_SYNC_MS_MAX: u64 = 2_000;
/// Names of time servers in nulld.toml, and how many are asked.
pub const CLOCK_SERVERS_MAX: usize = 8;
/// nulld's events waiting for the ledger. One more: dropped and counted in the log.
pub const LEDGER_QUEUE_MAX: usize = 256;
/// One log line, in bytes; the rest is cut and marked.
pub const LOG_LINE_BYTES_MAX: usize = 1024;

/// An OCI archive, in bytes, as stored. Larger: refused.
pub const ARCHIVE_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;
/// A rootfs, unpacked, in bytes. Larger: refused (a bomb).
pub const ROOTFS_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Files in a rootfs. More: refused.
pub const ROOTFS_ENTRIES_MAX: u64 = 1_000_000;
/// Layers in an OCI image.
pub const OCI_LAYERS_MAX: usize = 128;
/// Entries of the archive itself, outside its layers. More: refused.
pub const ARCHIVE_ENTRIES_MAX: usize = 4096;
/// One JSON document of an archive (index, manifest, config). Larger: refused.
pub const OCI_JSON_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Environment of an OCI image, in bytes. More: refused.
pub const OCI_ENV_BYTES_MAX: usize = 8 * 1024;
/// One extension header (pax, GNU long name) of a tar. Larger: refused.
pub const TAR_EXTENSION_BYTES_MAX: u64 = 1024 * 1024;
/// Headers an entry may have, its own included. More: refused.
pub const TAR_EXTENSIONS_PER_ENTRY_MAX: usize = 8;
/// A path in a rootfs, and the target of a symbolic link (PATH_MAX less the final NUL).
pub const ROOTFS_PATH_BYTES_MAX: usize = 4095;
/// A name in a rootfs (NAME_MAX).
pub const ROOTFS_NAME_BYTES_MAX: usize = 255;
/// Directories above an entry of a rootfs. Deeper: refused.
pub const ROOTFS_DEPTH_MAX: usize = 256;
/// Names and link targets of all entries of an image together: what the merge holds in memory. More: refused.
pub const ROOTFS_TEXT_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Directory look-ups one merge may take (an image that needs more is built to burn time). More: refused.
pub const ROOTFS_LOOKUPS_MAX: u64 = 100_000_000;
/// Window of a zstd layer, in bytes: what unpacking holds in memory. Larger: refused.
pub const ZSTD_WINDOW_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Images and names the rootfs store holds. One more: refused.
pub const STORE_IMAGES_MAX: usize = 256;

/// Operator keys in operators.toml.
pub const OPERATORS_MAX: usize = 256;
/// Connections nullgate serves at a time. One more: closed before TLS.
pub const GATE_CONNECTIONS_MAX: usize = 2 * GATE_CONNECTIONS_PER_KEY_MAX;
/// Connections at nullgate that have not proved a key yet, of [`GATE_CONNECTIONS_MAX`]. One more: closed before TLS.
pub const GATE_HANDSHAKES_MAX: usize = 32;
/// Connections one operator key may hold. One more: answered `limit` and closed.
pub const GATE_CONNECTIONS_PER_KEY_MAX: usize = 288;
/// How long a TLS handshake at nullgate may take.
pub const GATE_HANDSHAKE_MS_MAX: u64 = 10_000;

const _: () =
    assert!(MEMORY_VALUE_BYTES_MAX * 2 <= LINE_BYTES_MAX, "a value fits a line even when escaped once");
const _: () = assert!(MEMORY_VALUE_NODES_MAX < MEMORY_LINE_NODES_MAX);
const _: () = assert!(LEDGER_EVENT_BYTES_MAX * 2 <= LINE_BYTES_MAX, "an event fits a line");
const _: () = assert!(
    NETWORK_ALLOW_BYTES_MAX
        + PUBLISH_PER_AGENT_MAX * (64 + PUBLISH_SOURCES_MAX * 24)
        + CREDENTIALS_PER_AGENT_MAX * 80
        + 2048
        < LINE_BYTES_MAX,
    "what cage asks of egress for an agent fits a line"
);
const _: () = assert!(
    MEMORY_SCOPES_BYTES_MAX + 2 * MEMORY_SHARES_BYTES_MAX + 2048 < LINE_BYTES_MAX,
    "what cage asks of ctxgraph for an agent fits a line"
);
const _: () = assert!(
    NET_CUT_MS_MAX < NET_EXPOSE_MS_MAX && NET_EXPOSE_MS_MAX < MEMORY_NOTED_MS_MAX,
    "each waits for the next"
);
const _: () = assert!(ATTACH_MS_MAX > 2 * PEER_CALL_MS_MAX, "a receipt may take two calls of the ledger");
const _: () =
    assert!(SERVICE_ALIVE_MS * 2 < 5_000, "a service is never found hung between two signs of life");
const _: () = assert!(FORCE_SYNC_MS_MAX < WATCHDOG_S as u64 * 1000 / 3, "the loop's longest wait is no hang");
const _: () = assert!(GATE_HANDSHAKES_MAX < GATE_CONNECTIONS_MAX);
const _: () =
    assert!(EXECS_PER_AGENT_MAX < GATE_CONNECTIONS_PER_KEY_MAX, "one key can have all execs of an agent");
const _: () =
    assert!(GATE_CONNECTIONS_PER_KEY_MAX < GATE_CONNECTIONS_MAX, "one key cannot lock out the others");
const _: () = assert!(MEMORY_HEADS_SUPERSEDED_MAX <= MEMORY_HEADS_MAX, "what a node writes, another takes");
const _: () = assert!(MEMORY_MIB_MIN <= MEMORY_MIB_DEFAULT && MEMORY_MIB_DEFAULT <= MEMORY_MIB_MAX);
const _: () = assert!(DISK_MIB_MIN <= DISK_MIB_DEFAULT && DISK_MIB_DEFAULT <= DISK_MIB_MAX);
const _: () =
    assert!(PUBLISH_PER_AGENT_MAX * PUBLISH_SOURCES_MAX <= PUBLISH_SOURCES_NODE_MAX, "one agent always fits");
const _: () =
    assert!(METRICS_PART_BYTES_MAX + METRICS_PART_BYTES_MAX / 2 < LINE_BYTES_MAX, "a part fits a line");
const _: () = assert!(
    AGENTS_RUNNING_MAX
        * 2
        * (PROXY_CONNECTIONS_PER_AGENT_MAX + PUBLISH_CONNECTIONS_PER_AGENT_MAX + PROXY_PIPES_PER_AGENT_MAX)
        < SERVICE_OPEN_FILES_MAX as usize,
    "no agent's connections take the descriptors of another's"
);
const _: () = assert!(
    AGENTS_RUNNING_MAX
        * ((PROXY_CONNECTIONS_PER_AGENT_MAX + PUBLISH_CONNECTIONS_PER_AGENT_MAX)
            * (PROXY_SOCKET_BYTES_MIN + PROXY_CONNECTION_BYTES_MAX)
            // The broker reads from both sides into buffers of its own.
            + PROXY_CONNECTIONS_PER_AGENT_MAX * 2 * BROKER_HEAD_BYTES_MAX
            + PROXY_SOCKET_BYTES_SHARED
            + PROXY_PIPES_PER_AGENT_MAX * 64 * 1024
            + PROXY_UNDECIDED_BYTES_MAX)
        + BROKER_BODIES_BYTES_MAX
        + 2 * BROKER_PLANS_MAX * BROKER_BODY_BYTES_MAX
        + (EGRESS_OWN_MIB << 20)
        <= EGRESS_MEMORY_MIB << 20,
    "what all agents can make egress and the kernel hold is within its memory"
);
const _: () = assert!(EXEC_WINDOW_BYTES as usize >= GUEST_FRAME_BYTES_MAX, "a window holds a frame");
const _: () = assert!(EXEC_INPUT_WINDOW_BYTES as usize >= GUEST_FRAME_BYTES_MAX, "a window holds a frame");
