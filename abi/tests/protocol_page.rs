//! docs/control-protocol.md lists exactly the methods of the code.

use abi::control::{Audience, METHODS};

#[test]
fn the_page_lists_exactly_the_methods_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/control-protocol.md");
    let page = std::fs::read_to_string(path).expect("docs/control-protocol.md");
    let listed: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = METHODS
        .iter()
        .map(|method| {
            let who = match method.audience {
                Audience::Operators(role) => role.to_string(),
                Audience::Services => "services".to_owned(),
            };
            format!("| `{}` | {} | {who} | {} |", method.name, method.service, method.about)
        })
        .collect();
    assert_eq!(
        listed, expected,
        "copy the rows of the right side into the table of docs/control-protocol.md"
    );
}
