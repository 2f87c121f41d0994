//! Bodies on their way: a guest's towards the host, a host's towards the guest.
//!
//! Must hold: a request's body is bounded; of an answer nothing passes that was not looked through; what ends an answer early cuts the
//! guest's connection, so that a part is never taken for the whole.

use abi::limits;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::sync::OwnedSemaphorePermit;

use super::record::Record;
use super::reflect::Scan;
use crate::sniff::{Refusal, Speaks};
use crate::splice::End;

/// Why a body ends before its end; the connection knows the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("longer than {} bytes", limits::BROKER_BODY_BYTES_MAX)]
    TooLong,
    #[error("the guest ended it early")]
    Guest,
    #[error("it was cut")]
    Cut,
}

/// Bytes of a whole body that are handed on at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// A request's body.
#[derive(Debug)]
pub enum Outbound {
    /// Read, and perhaps rewritten. It takes room until its last byte was sent.
    Whole(Bytes),
    /// As it comes; trailers stay here.
    Streamed { incoming: Incoming, left: usize, too_long: Arc<AtomicBool> },
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (incoming, left, too_long) = match self.get_mut() {
            Outbound::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            // In pieces: what the connection holds back is copied, and must be little.
            Outbound::Whole(bytes) => {
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            Outbound::Streamed { incoming, left, too_long } => (incoming, left, too_long),
        };
        loop {
            let data = match ready!(Pin::new(&mut *incoming).poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(Err(_)) => return Poll::Ready(Some(Err(BodyError::Guest))),
                Some(Ok(frame)) => frame.into_data(),
            };
            let Ok(data) = data else { continue };
            let Some(still) = left.checked_sub(data.len()) else {
                too_long.store(true, Ordering::Relaxed);
                return Poll::Ready(Some(Err(BodyError::TooLong)));
            };
            *left = still;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outbound::Whole(bytes) => bytes.is_empty(),
            Outbound::Streamed { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outbound::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Outbound::Streamed { incoming, .. } => incoming.size_hint(),
        }
    }
}

/// An answer's body.
#[derive(Debug)]
pub enum Inbound {
    /// Our own words.
    Text(Option<Bytes>),
    Answer(Box<Answer>),
}

/// A host's answer, looked through as it comes.
#[derive(Debug)]
pub struct Answer {
    pub incoming: Incoming,
    pub scan: Option<Scan>,
    pub record: Record,
    /// One of the agent's calls, until the guest has its answer.
    pub _turn: OwnedSemaphorePermit,
}

impl Answer {
    /// What of a piece may go to the guest now.
    fn pass(&mut self, data: Bytes) -> Result<Bytes, End> {
        self.record.observe(&data)?;
        let Some(scan) = &mut self.scan else { return Ok(data) };
        let mut out = Vec::with_capacity(data.len());
        let found = scan.push(&data, &mut out);
        if found.is_ok() && self.incoming.is_end_stream() {
            scan.finish(&mut out);
        }
        found.map(|()| out.into()).map_err(|_| reflected(&self.record.host()))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, End>>> {
        loop {
            let data = match ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
                None => {
                    let mut rest = Vec::new();
                    if let Some(scan) = &mut self.scan {
                        scan.finish(&mut rest);
                    }
                    self.record.whole();
                    return Poll::Ready((!rest.is_empty()).then(|| Ok(rest.into())));
                }
                Some(Ok(frame)) => frame.into_data(),
                Some(Err(error)) => {
                    let why = format!("{} ended its answer early: {error}", self.record.host());
                    return Poll::Ready(Some(Err(End::Failed { why, speaks: Speaks::Neither })));
                }
            };
            let Ok(data) = data else { continue };
            let passed = match self.pass(data) {
                Ok(passed) => passed,
                Err(end) => return Poll::Ready(Some(Err(end))),
            };
            if self.incoming.is_end_stream() {
                // Nobody asks for more when all announced bytes were there.
                self.record.whole();
            }
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(passed)));
            }
        }
    }
}

/// The end of a connection on which a host sends the secret back.
pub fn reflected(host: &str) -> End {
    End::Refused(Refusal {
        what: format!("an answer of {host} that holds the secret sent to it"),
        rule: "secret-reflected",
        remedy: "there is no grant for it: do not ask the host for what it was sent".into(),
        speaks: Speaks::Neither,
    })
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let answer = match self.get_mut() {
            Inbound::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Inbound::Answer(answer) => answer,
        };
        Poll::Ready(ready!(answer.poll(context)).map(|passed| match passed {
            Ok(bytes) => Ok(Frame::data(bytes)),
            Err(end) => {
                answer.record.stop(end);
                Err(BodyError::Cut)
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Inbound::Text(text) => text.is_none(),
            Inbound::Answer(answer) => answer.record.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Inbound::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Inbound::Answer(answer) => answer.incoming.size_hint(),
        }
    }
}
