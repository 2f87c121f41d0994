//! A guest's side of a brokered connection: its bytes pass [`Requests`] before hyper reads them, so that what hyper would read more
//! kindly than a host does is refused.
//!
//! Must hold: nothing behind a wrong byte is read; a head is whole within its time.

use abi::limits;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::http::{Requests, Wrong};
use crate::moved::Moved;
use crate::open::Cut;

/// Bytes of one read.
const CHUNK: usize = 8 * 1024;

/// What a connection's parts tell each other.
#[derive(Debug)]
pub struct Pulse {
    /// On either of its sides.
    pub moved: Moved,
    wrong: Mutex<Option<Wrong>>,
    cut: Mutex<Option<Cut>>,
}

impl Pulse {
    /// From now on.
    pub fn new() -> Arc<Pulse> {
        Arc::new(Pulse { moved: Moved::begin(), wrong: Mutex::default(), cut: Mutex::default() })
    }

    /// The connection must end for this reason.
    pub fn cut(&self, why: Cut) {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Whether it must.
    pub fn is_cut(&self) -> Option<Cut> {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was wrong with the guest's bytes.
    pub fn wrong(&self) -> Option<Wrong> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The stream.
#[derive(Debug)]
pub struct Strict<S> {
    inner: S,
    requests: Requests,
    /// Bytes that passed and were not read yet, from `read` on.
    passed: Vec<u8>,
    read: usize,
    /// Runs while a head is not whole.
    head_late: Option<Pin<Box<Sleep>>>,
    pulse: Arc<Pulse>,
}

impl<S> Strict<S> {
    /// For requests to this name and port.
    pub fn new(inner: S, name: &str, port: u16, pulse: Arc<Pulse>) -> Strict<S> {
        let requests = Requests::new(name, port);
        Strict { inner, requests, passed: Vec::new(), read: 0, head_late: None, pulse }
    }

    /// The stream, for a last word.
    pub fn inner(&mut self) -> &mut S {
        &mut self.inner
    }

    fn refuse(&self, wrong: Wrong) {
        *self.pulse.wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(wrong);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let waiting = self.passed.get(self.read..).unwrap_or_default();
            if !waiting.is_empty() {
                let now = waiting.len().min(buffer.remaining());
                buffer.put_slice(waiting.get(..now).unwrap_or_default());
                self.read += now;
                return Poll::Ready(Ok(()));
            }
            // An idle connection keeps no buffer.
            (self.passed, self.read) = (Vec::new(), 0);
            if self.pulse.wrong().is_some() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            if Pin::new(&mut self.inner).poll_read(context, &mut chunk)?.is_pending() {
                if let Some(late) = &mut self.head_late {
                    ready!(late.as_mut().poll(context));
                    self.refuse(Wrong::Protocol("an HTTP head that is not whole in time"));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                return Poll::Pending;
            }
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.pulse.moved.now();
            let Strict { requests, passed, .. } = &mut *self;
            if let Err(wrong) = requests.push(chunk.filled(), passed) {
                self.refuse(wrong);
            }
            let allowed = Duration::from_millis(limits::PROXY_FIRST_BYTES_MS_MAX);
            match self.requests.within_head() {
                true if self.head_late.is_none() => self.head_late = Some(Box::pin(sleep(allowed))),
                true => {}
                false => self.head_late = None,
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes));
        self.pulse.moved.now();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pulse.wrong().is_some() {
            return Poll::Ready(Ok(())); // the guest is still to be told
        }
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
