//! The body of an answer, sent whole, cut off, byte by byte or padded.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::Sleep;

use crate::reply::Manner;

/// Long enough for hyper to write what it has before it learns that the body ends.
const BEFORE_THE_CUT: Duration = Duration::from_millis(20);

static SPACES: [u8; 64 * 1024] = [b' '; 64 * 1024];

/// Makes hyper close the connection in the middle of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the answer is cut off, as ordered")]
pub struct CutOff;

#[derive(Debug)]
pub struct Payload {
    rest: Bytes,
    padding: u64,
    /// Most bytes per piece.
    piece: usize,
    /// The pause after each piece.
    pause: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    cut: bool,
}

impl Payload {
    /// The payload and the `Content-Length` to declare for it.
    pub fn new(body: Bytes, manner: Manner) -> (Self, u64) {
        // A body to be cut off, slow or padded has to exist.
        let body = if body.is_empty() && manner != Manner::Whole { Bytes::from_static(b"{}") } else { body };
        let length = body.len() as u64;
        let whole =
            Self { rest: body, padding: 0, piece: usize::MAX, pause: Duration::ZERO, waiting: None, cut: false };
        match manner {
            Manner::Whole => (whole, length),
            Manner::Cut => {
                let half = whole.rest.slice(..whole.rest.len() / 2);
                (Self { rest: half, pause: BEFORE_THE_CUT, cut: true, ..whole }, length)
            }
            Manner::Trickle(pause) => (Self { piece: 1, pause, ..whole }, length),
            Manner::Padded(total) => {
                let padding = total.saturating_sub(length);
                (Self { padding, ..whole }, length + padding)
            }
        }
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        if !self.rest.is_empty() {
            let piece = self.rest.len().min(self.piece);
            return Some(self.rest.split_to(piece));
        }
        let piece = usize::try_from(self.padding).unwrap_or(usize::MAX).min(SPACES.len());
        self.padding -= piece as u64;
        (piece > 0).then(|| Bytes::from_static(&SPACES[..piece]))
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(context));
            self.waiting = None;
        }
        let Some(piece) = self.next_piece() else {
            return Poll::Ready(self.cut.then_some(Err(CutOff)));
        };
        if !self.pause.is_zero() && !self.is_end_stream() {
            self.waiting = Some(Box::pin(tokio::time::sleep(self.pause)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.padding == 0 && !self.cut
    }

    /// Unknown for a body to be cut off: hyper would refuse at once to send less than the promised length.
    fn size_hint(&self) -> SizeHint {
        if self.cut { SizeHint::default() } else { SizeHint::with_exact(self.rest.len() as u64 + self.padding) }
    }
}
