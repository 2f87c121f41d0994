//! Boots real nodes and holds them to what design and manifest promise. Named and reported like `cargo test`.

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, Vec::<Trial>::new()).exit();
}
