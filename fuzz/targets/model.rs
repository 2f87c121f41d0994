//! What a model's host streams: any bytes are an answer or an error, the same however they are split.
#![no_main]

use std::io::{Cursor, Read};

use coder::model::Api;
use coder::provider::read_answer;
use libfuzzer_sys::fuzz_target;

/// Gives one byte at a time.
struct Drops<'a>(Cursor<&'a [u8]>);

impl Read for Drops<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let one = out.len().min(1);
        self.0.read(&mut out[..one])
    }
}

fuzz_target!(|bytes: &[u8]| {
    for api in [Api::Openai, Api::Anthropic] {
        assert_eq!(read_answer(api, bytes), read_answer(api, Drops(Cursor::new(bytes))));
    }
});
