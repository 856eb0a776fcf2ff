//! Hears a peer out whose request was answered before its body was read. A socket that is closed with something unread in it resets its connection,
//! and the reset may take the answer (413, 401) from a peer that is still sending: it would be told of a broken pipe and never why.
//! nginx calls this a lingering close.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Time that a peer has to send what nobody wants; after it the connection is reset all the same.
const TIME: Duration = Duration::from_secs(2);

/// Bytes that are read and dropped for one connection: some times the largest body that is taken, so that a mistake is told what it was, and a
/// flood is not listened to.
const BYTES: usize = 8 << 20;

/// Bytes that are read and dropped at a time.
const STEP_BYTES: usize = 8 * 1024;

/// What a connection's stream and the bodies of its requests know together.
#[derive(Clone, Debug, Default)]
pub struct Unread(Arc<AtomicBool>);

impl Unread {
    /// A request's body, whose end is noted when it is reached.
    pub fn watch(&self, body: Incoming) -> WatchedBody {
        self.0.store(!body.is_end_stream(), Ordering::Relaxed);
        WatchedBody { body, unread: self.clone() }
    }
}

/// See [`Unread::watch`].
#[derive(Debug)]
pub struct WatchedBody {
    body: Incoming,
    unread: Unread,
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.unread.0.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose shutdown, where a body was left unread, ends when the peer has: or after [`TIME`], or [`BYTES`].
#[derive(Debug)]
pub struct Lingering<S> {
    stream: S,
    unread: Unread,
    /// Set once our half is closed and the peer is being heard out.
    end: Option<Pin<Box<Sleep>>>,
    bytes_left: usize,
}

impl<S> Lingering<S> {
    /// The stream of the connection whose bodies `unread` watches.
    pub fn new(stream: S, unread: Unread) -> Lingering<S> {
        Lingering { stream, unread, end: None, bytes_left: BYTES }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.end.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if !this.unread.0.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let end = this.end.get_or_insert_with(|| Box::pin(sleep(TIME)));
        while this.bytes_left > 0 && end.as_mut().poll(context).is_pending() {
            let mut scratch = [MaybeUninit::uninit(); STEP_BYTES];
            let mut scratch = ReadBuf::uninit(&mut scratch);
            // Whatever goes wrong now, the connection ends.
            if ready!(Pin::new(&mut this.stream).poll_read(context, &mut scratch)).is_err() || scratch.filled().is_empty() {
                break;
            }
            this.bytes_left = this.bytes_left.saturating_sub(scratch.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}
