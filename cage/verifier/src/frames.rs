//! Bytes from a non-blocking control connection, cut into frames.
//!
//! Must hold: never more than one frame beyond the bytes of the last read is buffered; a bad length ends it before it is stored.

use abi::guest::{Frame, FrameError};
use abi::limits;

const HEADER_BYTES: usize = 9;

/// Collects bytes, gives frames. After an error the connection is of no more use.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, or none until more bytes come.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(length) = self.bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > limits::GUEST_FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let whole = HEADER_BYTES + length;
        let Some(mut input) = self.bytes.get(..whole) else {
            return Ok(None);
        };
        let frame = Frame::read_from(&mut input)?;
        self.bytes.drain(..whole);
        Ok(frame)
    }

    /// Bytes of an unfinished frame; not 0 at the end of a connection means it was cut.
    pub fn pending(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::guest::Kind;

    fn wire() -> Vec<u8> {
        let mut wire = Vec::new();
        for frame in [
            Frame::data(Kind::Stdin, 3, b"hello"),
            Frame::data(Kind::Stdin, 3, b""),
            Frame::data(Kind::Signal, 0, &[7; 70]),
        ] {
            frame.write_to(&mut wire).unwrap();
        }
        wire
    }

    #[test]
    fn every_cut_of_a_stream_gives_the_same_frames() {
        let wire = wire();
        for step in 1..wire.len() {
            let (mut buffer, mut frames) = (FrameBuffer::default(), Vec::new());
            for part in wire.chunks(step) {
                buffer.push(part);
                while let Some(frame) = buffer.next_frame().unwrap() {
                    frames.push((frame.kind, frame.channel, frame.payload.len()));
                }
            }
            assert_eq!(
                frames,
                [(Kind::Stdin, 3, 5), (Kind::Stdin, 3, 0), (Kind::Signal, 0, 70)],
                "step {step}"
            );
            assert_eq!(buffer.pending(), 0);
        }
    }

    #[test]
    fn a_long_frame_ends_it_at_its_fourth_byte() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&65537u32.to_le_bytes()[..3]);
        assert!(buffer.next_frame().unwrap().is_none());
        buffer.push(&65537u32.to_le_bytes()[3..]);
        assert!(matches!(buffer.next_frame(), Err(FrameError::TooLong(65537))));
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&[0, 0, 0, 0, 200, 0, 0, 0, 0]);
        assert!(matches!(buffer.next_frame(), Err(FrameError::Kind(200))));
    }
}
