//! Tests of tasks: their states, change sets, verified patches and diffs.

mod diff;
mod model;
mod patch;
mod step;
mod support;
mod theorems;
