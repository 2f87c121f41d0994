//! What is wrong with the node, and what to do about it. Pure: facts in, findings out.

use abi::control::Doctor;

use crate::system::View;

/// Everything that is not as it should be, worst first.
pub fn examine(_view: &View<'_>) -> Doctor {
    Doctor { findings: Vec::new() }
}
