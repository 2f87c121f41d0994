//! delegation_below_parent, and that a token cannot be forged, cut, joined or widened.

use crate::world::{Random, each_seed, rules};
use abi::authority::Rules;
use abi::ids::Instance;
use abi::limits::{RULES_MEETS_MAX, TOKEN_BYTES_MAX};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use verdict::authority::Authority;
use verdict::token::{Ed25519, Key, Signature, Token, TokenError};

struct Ring;

impl Ed25519 for Ring {
    fn verify(&self, key: &Key, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
    }
    fn public(&self, seed: &Key) -> Option<Key> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok()?.public_key().as_ref().try_into().ok()
    }
    fn sign(&self, seed: &Key, message: &[u8]) -> Option<Signature> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok()?.sign(message).as_ref().try_into().ok()
    }
}

const NODE: Key = [7; 32];
const FAR: u64 = 1000;

fn node() -> Key {
    Ring.public(&NODE).unwrap()
}

fn life() -> Instance {
    "researcher.3".parse().unwrap()
}

fn seed(random: &mut Random) -> Key {
    std::array::from_fn(|_| random.below(256) as u8)
}

fn issue(rules: Rules, seed: Key) -> Result<Token, TokenError> {
    Token::issue(&life(), rules, |message| Ring.sign(&NODE, message), seed, &Ring)
}

fn ending(random: &mut Random) -> Rules {
    Rules { until_unix_ms: Some(FAR + random.below(100)), ..rules(random) }
}

fn chain(random: &mut Random, blocks: u64) -> Vec<Token> {
    let mut tokens = vec![issue(ending(random), seed(random)).unwrap()];
    for _ in 1..blocks {
        tokens.push(tokens.last().unwrap().attenuate(rules(random), seed(random), &Ring).unwrap());
    }
    tokens
}

#[test]
fn delegation_below_parent() {
    each_seed(60, |random| {
        let blocks = 1 + random.below(4);
        let mut tokens = chain(random, blocks);
        let sealed = tokens.last().unwrap().seal(&Ring).unwrap();
        tokens.push(sealed);
        let mut above: Option<Authority> = None;
        for token in &tokens {
            let read = Token::from_text(&token.to_text()).unwrap();
            assert_eq!(&read, token);
            let checked = match read.check(&node(), 0, &Ring) {
                Ok(checked) => checked,
                // A block may have ended before it began; then so have all below it.
                Err(error) => {
                    assert_eq!(error, TokenError::Expired);
                    break;
                }
            };
            assert_eq!(checked.from, life());
            assert!(above.as_ref().is_none_or(|above| checked.authority.is_below(above)));
            let parent = Authority::of(rules(random));
            if let Ok(Some(given)) = parent.delegate(&checked.authority) {
                assert!(given.is_below(&parent) && given.depth() < parent.depth());
                assert!(given.until_unix_ms() <= checked.authority.until_unix_ms());
            }
            above = Some(checked.authority);
        }
    });
}

#[test]
fn no_byte_of_a_token_can_be_changed() {
    each_seed(2, |random| {
        for token in [chain(random, 3).pop().unwrap(), chain(random, 2).pop().unwrap().seal(&Ring).unwrap()] {
            let (good, bytes) = (token.check(&node(), 0, &Ring), token.to_bytes());
            for place in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[place] ^= 1 << random.below(8);
                if let Ok(token) = Token::from_bytes(&bytes) {
                    let forged = token.check(&node(), 0, &Ring);
                    assert!(forged.is_err() && forged != good, "byte {place}");
                }
            }
            for length in 0..bytes.len() {
                assert!(Token::from_bytes(&bytes[..length]).is_err(), "cut at {length}");
            }
            let longer = [bytes.as_slice(), &[0]].concat();
            assert!(Token::from_bytes(&longer).is_err());
        }
    });
}

/// Who holds a chain makes another one of its parts: with blocks left out, doubled, of another chain, with a secret of its own.
#[test]
fn a_chain_cannot_be_cut_back_joined_or_reordered() {
    each_seed(20, |random| {
        let (mine, other) = (chain(random, 3), chain(random, 3));
        let head = 17;
        let split = |token: &Token| -> (Vec<Vec<u8>>, Vec<u8>) {
            let bytes = token.to_bytes();
            let (mut place, mut blocks) = (head, Vec::new());
            for _ in 0..bytes[head - 1] {
                let end = place + 2 + usize::from(u16::from_be_bytes([bytes[place], bytes[place + 1]])) + 96;
                blocks.push(bytes[place..end].to_vec());
                place = end;
            }
            (blocks, bytes[place..].to_vec())
        };
        let join = |blocks: &[Vec<u8>], proof: &[u8]| -> Vec<u8> {
            let mut bytes = mine[0].to_bytes()[..head - 1].to_vec();
            bytes.push(blocks.len() as u8);
            blocks.iter().for_each(|block| bytes.extend(block));
            bytes.extend(proof);
            bytes
        };
        let ((blocks, proof), (others, other_proof)) =
            (split(mine.last().unwrap()), split(other.last().unwrap()));
        let (_, sealed) = split(&mine.last().unwrap().seal(&Ring).unwrap());
        let own_secret = [&[0][..], &seed(random)].concat();
        let proofs = [&proof, &other_proof, &sealed, &own_secret];
        let arrangements = [
            vec![0],
            vec![0, 1],
            vec![0, 2],
            vec![1, 2],
            vec![0, 2, 1],
            vec![0, 1, 1, 2],
            vec![0, 1, 2, 2],
            vec![2, 1, 0],
        ];
        for proof in proofs {
            for arrangement in &arrangements {
                let taken: Vec<Vec<u8>> = arrangement.iter().map(|place| blocks[*place].clone()).collect();
                let token = Token::from_bytes(&join(&taken, proof));
                assert!(
                    token.is_ok_and(|token| token.check(&node(), 0, &Ring) == Err(TokenError::Signature)),
                    "{arrangement:?}"
                );
            }
            let joined = [&blocks[..2], &others[2..]].concat();
            assert_eq!(
                Token::from_bytes(&join(&joined, proof)).unwrap().check(&node(), 0, &Ring),
                Err(TokenError::Signature)
            );
        }
    });
}

#[test]
fn a_sealed_token_is_never_attenuated() {
    each_seed(5, |random| {
        let sealed = chain(random, 2).pop().unwrap().seal(&Ring).unwrap();
        assert_eq!(sealed.attenuate(rules(random), seed(random), &Ring), Err(TokenError::Sealed));
        assert_eq!(sealed.seal(&Ring), Err(TokenError::Sealed));
        assert!(!format!("{sealed:?}").contains("secret"));
    });
}

#[test]
fn a_token_is_of_this_node_of_one_life_and_of_its_time() {
    each_seed(5, |random| {
        let (mine, other) = (issue(ending(random), seed(random)).unwrap(), Ring.public(&[8; 32]).unwrap());
        assert!(mine.check(&node(), FAR - 1, &Ring).is_ok());
        assert_eq!(mine.check(&other, 0, &Ring), Err(TokenError::Signature));
        assert_eq!(mine.check(&node(), FAR + 100, &Ring), Err(TokenError::Expired));
        let endless = issue(Rules { until_unix_ms: None, ..rules(random) }, seed(random)).unwrap();
        assert_eq!(endless.check(&node(), 0, &Ring), Err(TokenError::Expired));
        let unsigned = Token::issue(&life(), ending(random), |_| None, seed(random), &Ring);
        assert_eq!(unsigned, Err(TokenError::Signature));
    });
}

#[test]
fn a_token_is_bounded() {
    each_seed(2, |random| {
        let mut token = issue(Rules { until_unix_ms: Some(FAR), ..Rules::default() }, seed(random)).unwrap();
        for _ in 1..RULES_MEETS_MAX {
            token = token.attenuate(Rules::default(), seed(random), &Ring).unwrap();
        }
        assert!(token.check(&node(), 0, &Ring).is_ok());
        assert_eq!(token.attenuate(Rules::default(), seed(random), &Ring), Err(TokenError::TooMany));
        let long = Rules {
            read: (0..64).map(|n| format!("/{n}{}", "x".repeat(200)).parse().unwrap()).collect(),
            ..Rules::default()
        };
        assert_eq!(issue(long, seed(random)), Err(TokenError::Malformed));
        for text in ["", "zz", "abc", &"00".repeat(TOKEN_BYTES_MAX)] {
            assert_eq!(Token::from_text(text), Err(TokenError::Malformed));
        }
        assert!(Token::from_text(&token.to_text().to_uppercase()).is_err(), "one spelling");
        let empty = [b"nullbox-token-1\n".as_slice(), &[0, 0], &[0; 32]].concat();
        assert_eq!(Token::from_bytes(&empty), Err(TokenError::Malformed));
    });
}

#[test]
fn the_longest_token_is_read_and_one_byte_more_is_not() {
    let of_patterns = |lengths: &[usize]| {
        let pattern = |length: &usize| format!("/{}", "x".repeat(length - 1)).parse().unwrap();
        let read = lengths.iter().map(pattern).collect();
        issue(Rules { until_unix_ms: Some(FAR), read, ..Rules::default() }, [1; 32])
    };
    let mut lengths = vec![1000; 7];
    // A further pattern takes its own length, two quotes and a comma.
    let rest = TOKEN_BYTES_MAX / 2 - of_patterns(&lengths).unwrap().to_bytes().len() - 3;
    lengths.push(rest);
    let longest = of_patterns(&lengths).unwrap();
    assert_eq!(longest.to_text().len(), TOKEN_BYTES_MAX);
    assert_eq!(Token::from_text(&longest.to_text()).as_ref(), Ok(&longest));
    lengths[7] += 1;
    assert_eq!(of_patterns(&lengths), Err(TokenError::Malformed));
    assert_eq!(Token::from_text(&format!("{}0", longest.to_text())), Err(TokenError::Malformed));
}

/// A later block that says from which life it comes would speak for another one.
#[test]
fn only_the_first_block_names_a_life() {
    let (first, second) = ([1; 32], [2; 32]);
    let token = issue(Rules { until_unix_ms: Some(FAR), ..Rules::default() }, first).unwrap();
    let bytes = token.to_bytes();
    let signature: Signature = bytes[bytes.len() - 97..bytes.len() - 33].try_into().unwrap();
    let forge = |before: &[u8], secret: &Key, body: &[u8]| {
        let next = Ring.public(&second).unwrap();
        let signed = Ring.sign(secret, &[b"nullbox-token-1 block\n", before, body, &next].concat()).unwrap();
        [&(body.len() as u16).to_be_bytes()[..], body, &next, &signed].concat()
    };
    let with_life = br#"{"from":"admin.1","rules":{}}"#;
    let mut longer = bytes[..bytes.len() - 33].to_vec();
    longer[16] = 2;
    longer.extend(forge(&signature, &first, with_life));
    longer.extend([&[0][..], &second].concat());
    assert_eq!(Token::from_bytes(&longer).unwrap().check(&node(), 0, &Ring), Err(TokenError::From));
    let proof = [&[0][..], &second].concat();
    for (body, error) in [
        (&br#"{"rules":{"until_unix_ms":5}}"#[..], TokenError::From),
        (&b"{}"[..], TokenError::Malformed),
        (&b""[..], TokenError::Malformed),
    ] {
        let alone = [b"nullbox-token-1\n\x01".as_slice(), &forge(&[0; 64], &NODE, body), &proof].concat();
        assert_eq!(Token::from_bytes(&alone).unwrap().check(&node(), 0, &Ring), Err(error));
    }
}
