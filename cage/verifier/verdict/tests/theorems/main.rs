//! The theorems about authority, each as a test of its name: exhaustive where the space is finite, else over seeded random worlds. A failure
//! prints its seed; `NULLBOX_SEED=N` runs that one alone.

mod approvals;
mod budget;
mod decision;
mod exposure;
mod oracle;
mod token;
mod words;
mod world;
