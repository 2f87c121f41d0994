//! One microVM per agent: manifests, the rootfs store, jails and the life of a VM.
//!
//! Owns: everything under /state/cage, /run/cage and the cgroup that nulld delegates to it.
//! Must hold: what runs was asked for by the door or by `autostart`, and has a receipt; what ended leaves nothing behind.
//! Must never: believe a guest about anything but the guest itself, or read a disk that a guest wrote.

pub mod agent;
pub mod agents;
pub mod attach;
pub mod caller;
pub mod clock;
pub mod desk;
pub mod disks;
pub mod door;
pub mod ending;
pub mod events;
pub mod evidence;
pub mod exec;
pub mod files;
pub mod freezer;
pub mod guest;
pub mod images;
pub mod imports;
pub mod jail;
pub mod joint;
pub mod lease;
pub mod life;
pub mod manifests;
pub mod meet;
pub mod metrics;
pub mod order;
pub mod output;
pub mod places;
pub mod recovery;
pub mod shares;
pub mod state;
pub mod steer;
pub mod store;
pub mod sys;
pub mod tasks;
pub mod turns;
pub mod vmm;
pub mod watch;
