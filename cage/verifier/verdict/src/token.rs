//! Tokens of delegation: a part of an authority, handed on without the node, made less on the way, checked with the node's key alone.
//!
//! ```text
//! token   = "nullbox-token-1\n" count(1) block{count} proof
//! block   = length(2, big endian) body next(32) signature(64)
//! body    = abi::authority::Grant as JSON, the bytes as they were signed
//! next    = Ed25519 public key that signs the next block, or the seal
//! proof   = 0x00 secret(32)        open: the secret of the last `next`; whoever has it may attenuate and use
//!         | 0x01 signature(64)     sealed: used as it is, never attenuated
//! message = "nullbox-token-1 block\n" before(64) body next      what a block's signature is over
//!         | "nullbox-token-1 seal\n" before(64)                 what the seal is over
//! ```
//! `before` is the signature of the block before, zeros before the first; so a block stands in one chain, at one place. The first block is signed
//! with the node's key. In JSON a token is its bytes in lowercase hex, at most [`limits::TOKEN_BYTES_MAX`] digits.
//!
//! Must hold: without the last secret or the seal a token is nothing, so who has a longer chain cannot cut it back to a wider one. What a
//! token allows is the meet of all its blocks. Must never: take a block for what it says before its signature was checked.

use abi::authority::{Grant, Rules};
use abi::ids::Instance;
use abi::limits;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::authority::Authority;

const MAGIC: &[u8] = b"nullbox-token-1\n";
const BLOCK: &[u8] = b"nullbox-token-1 block\n";
const SEAL: &[u8] = b"nullbox-token-1 seal\n";

pub type Key = [u8; 32];
pub type Signature = [u8; 64];

/// Ed25519 (RFC 8032), from whoever uses this: the library itself has no secrets and no random numbers.
pub trait Ed25519 {
    /// Whether the signature is that of the key over the message.
    fn verify(&self, key: &Key, message: &[u8], signature: &Signature) -> bool;
    /// The public key of a seed.
    fn public(&self, seed: &Key) -> Option<Key>;
    /// A signature with a seed.
    fn sign(&self, seed: &Key, message: &[u8]) -> Option<Signature>;
}

/// Why a token is none, or none that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// Not the bytes of a token, or too many.
    Malformed,
    /// A signature or the proof is not that of the key it should be of.
    Signature,
    /// More than one life delegates, or none.
    From,
    /// More blocks than rules may be met.
    TooMany,
    /// No end, or one that is over.
    Expired,
    /// It was sealed.
    Sealed,
    /// No key could be made of a seed.
    Seed,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenError::Malformed => "not a token",
            TokenError::Signature => "a signature in the token is not of the key it should be of",
            TokenError::From => "the token does not say from which life it comes, once and first",
            TokenError::TooMany => "the token has too many blocks",
            TokenError::Expired => "the token has no end, or its end is over",
            TokenError::Sealed => "the token is sealed",
            TokenError::Seed => "the seed is not a key",
        })
    }
}

impl core::error::Error for TokenError {}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    body: Vec<u8>,
    next: Key,
    signature: Signature,
}

#[derive(Clone, PartialEq, Eq)]
enum Proof {
    Open(Key),
    Sealed(Signature),
}

/// A chain of blocks as it came: parsed, not checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    blocks: Vec<Block>,
    proof: Proof,
}

/// A secret does not go into a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token of {} blocks", self.blocks.len())
    }
}

/// What a token that was checked gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The life that delegates.
    pub from: Instance,
    /// The meet of all blocks.
    pub authority: Authority,
}

fn message(before: Option<&Signature>, body: &[u8], next: &Key) -> Vec<u8> {
    [BLOCK, before.unwrap_or(&[0; 64]), body, next].concat()
}

impl Token {
    /// The first block. `sign` signs with the node's key, `seed` is fresh and random.
    pub fn issue(
        from: &Instance,
        rules: Rules,
        sign: impl FnOnce(&[u8]) -> Option<Signature>,
        seed: Key,
        keys: &impl Ed25519,
    ) -> Result<Token, TokenError> {
        let body = Grant { from: Some(from.clone()), rules }.to_bytes();
        let next = keys.public(&seed).ok_or(TokenError::Seed)?;
        let signature = sign(&message(None, &body, &next)).ok_or(TokenError::Signature)?;
        Token { blocks: Vec::from([Block { body, next, signature }]), proof: Proof::Open(seed) }.bounded()
    }

    /// The same, less: a further block. Whoever has an open token can, without the node. The token that was can be used no more by
    /// whoever gets this one.
    pub fn attenuate(&self, rules: Rules, seed: Key, keys: &impl Ed25519) -> Result<Token, TokenError> {
        let Proof::Open(secret) = &self.proof else { return Err(TokenError::Sealed) };
        let body = Grant { from: None, rules }.to_bytes();
        let next = keys.public(&seed).ok_or(TokenError::Seed)?;
        let before = self.blocks.last().map(|block| &block.signature);
        let signature = keys.sign(secret, &message(before, &body, &next)).ok_or(TokenError::Seed)?;
        let mut blocks = self.blocks.clone();
        blocks.push(Block { body, next, signature });
        Token { blocks, proof: Proof::Open(seed) }.bounded()
    }

    /// The same, never to be attenuated again: safe to show.
    pub fn seal(&self, keys: &impl Ed25519) -> Result<Token, TokenError> {
        let Proof::Open(secret) = &self.proof else { return Err(TokenError::Sealed) };
        let last = self.blocks.last().ok_or(TokenError::Malformed)?;
        let signature = keys.sign(secret, &[SEAL, &last.signature].concat()).ok_or(TokenError::Seed)?;
        Token { blocks: self.blocks.clone(), proof: Proof::Sealed(signature) }.bounded()
    }

    fn bounded(self) -> Result<Token, TokenError> {
        let fits = self.blocks.iter().all(|block| u16::try_from(block.body.len()).is_ok());
        if self.blocks.len() > limits::RULES_MEETS_MAX {
            Err(TokenError::TooMany)
        } else if !fits || self.to_bytes().len() * 2 > limits::TOKEN_BYTES_MAX {
            Err(TokenError::Malformed)
        } else {
            Ok(self)
        }
    }

    /// Checks all signatures and the proof, then reads the blocks. `node` is the node's public key.
    pub fn check(&self, node: &Key, now_unix_ms: u64, keys: &impl Ed25519) -> Result<Checked, TokenError> {
        self.check_signatures(node, keys)?;
        let mut grants = self.blocks.iter().map(|block| Grant::from_bytes(&block.body));
        let first = grants.next().ok_or(TokenError::Malformed)?.map_err(|_| TokenError::Malformed)?;
        let from = first.from.ok_or(TokenError::From)?;
        let mut authority = Authority::of(first.rules);
        for grant in grants {
            let grant = grant.map_err(|_| TokenError::Malformed)?;
            if grant.from.is_some() {
                return Err(TokenError::From);
            }
            authority = authority.meet(&Authority::of(grant.rules)).map_err(|_| TokenError::TooMany)?;
        }
        if authority.until_unix_ms().is_none_or(|until| now_unix_ms >= until) {
            return Err(TokenError::Expired);
        }
        Ok(Checked { from, authority })
    }

    fn check_signatures(&self, node: &Key, keys: &impl Ed25519) -> Result<(), TokenError> {
        let (mut key, mut before) = (node, None);
        for block in &self.blocks {
            if !keys.verify(key, &message(before, &block.body, &block.next), &block.signature) {
                return Err(TokenError::Signature);
            }
            (key, before) = (&block.next, Some(&block.signature));
        }
        let before = before.ok_or(TokenError::Malformed)?;
        let is_proven = match &self.proof {
            Proof::Open(secret) => keys.public(secret).as_ref() == Some(key),
            Proof::Sealed(signature) => keys.verify(key, &[SEAL, before].concat(), signature),
        };
        if is_proven { Ok(()) } else { Err(TokenError::Signature) }
    }

    /// The bytes, as the module's head writes them down.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::from(MAGIC);
        bytes.push(u8::try_from(self.blocks.len()).unwrap_or(u8::MAX));
        for block in &self.blocks {
            bytes.extend(u16::try_from(block.body.len()).unwrap_or(u16::MAX).to_be_bytes());
            bytes.extend([block.body.as_slice(), &block.next, &block.signature].concat());
        }
        match &self.proof {
            Proof::Open(secret) => bytes.extend([&[0][..], secret].concat()),
            Proof::Sealed(signature) => bytes.extend([&[1][..], signature].concat()),
        }
        bytes
    }

    /// Parses bytes; all of them, and no others than [`Self::to_bytes`] makes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Token, TokenError> {
        parse(bytes).ok_or(TokenError::Malformed)?.bounded()
    }

    /// The token as text.
    pub fn to_text(&self) -> String {
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
        self.to_bytes().into_iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// Parses a text.
    pub fn from_text(text: &str) -> Result<Token, TokenError> {
        if !text.len().is_multiple_of(2) {
            return Err(TokenError::Malformed);
        }
        let nibble = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let bytes = text.as_bytes().chunks_exact(2).map(|pair| match pair {
            [high, low] => Some(nibble(*high)? * 16 + nibble(*low)?),
            _ => None,
        });
        Token::from_bytes(&bytes.collect::<Option<Vec<u8>>>().ok_or(TokenError::Malformed)?)
    }
}

fn parse(bytes: &[u8]) -> Option<Token> {
    let (count, mut rest) = bytes.strip_prefix(MAGIC)?.split_first()?;
    let mut blocks = Vec::new();
    for _ in 0..*count {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (body, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        let (next, after) = after.split_first_chunk::<32>()?;
        let (signature, after) = after.split_first_chunk::<64>()?;
        blocks.push(Block { body: Vec::from(body), next: *next, signature: *signature });
        rest = after;
    }
    let proof = match rest.split_first()? {
        (0, secret) => Proof::Open(secret.try_into().ok()?),
        (1, signature) => Proof::Sealed(signature.try_into().ok()?),
        _ => return None,
    };
    if blocks.is_empty() { None } else { Some(Token { blocks, proof }) }
}
