//! The worked example of docs/formats/ctxgraph.md is what the code makes.

mod book;

use book::Book;
use ledger::keys::Signer;
use ledger::proof::Pass;
use ledger::receipt::{self, Standing};

fn path(pass: Option<Pass>, book: &Book) -> Vec<abi::ids::Digest> {
    let mut pass = pass.unwrap();
    book.digests().iter().for_each(|digest| pass.push(digest));
    pass.finish().unwrap()
}

#[test]
fn the_worked_example_is_true() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/formats/ctxgraph.md");
    let page: String = std::fs::read_to_string(page).unwrap();
    // Layout apart, every character counts.
    let squeeze = |text: &str| text.split_whitespace().collect::<String>();
    let page = squeeze(&page);
    let signer = Signer::from_seed(&[1; 32]).unwrap();
    let book = Book::new(7, &[2, 1]);
    let checkpoint = book.checkpoint();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut texts = vec![signer.public().to_string(), signer.public().fingerprint().to_string()];
    texts.extend(book.digests().iter().map(|digest| digest.hex()));
    texts.push(checkpoint.root.hex());
    texts.push(checkpoint.sign(&signer));
    let inclusion = path(Pass::inclusion(1, 3), &book);
    texts.extend(inclusion.iter().map(|hash| hash.hex()));
    let standing = Standing { size: 3, seq: 1, path: inclusion };
    texts.push(hex(&receipt::encode(&standing, &receipt::sign(&signer, &checkpoint.root)).unwrap()));
    texts.extend(path(Pass::consistency(1, 3), &book).iter().map(|hash| hash.hex()));
    texts.push(hex(&book.pieces()[3]));
    texts.push(ledger::export::head(&checkpoint, &signer));
    let missing: Vec<_> = texts.iter().filter(|text| !page.contains(&squeeze(text))).collect();
    assert!(
        missing.is_empty(),
        "the page has not:\n{}",
        missing.iter().map(|t| format!("{t}\n")).collect::<String>()
    );
}
