//! A stream some of whose bytes were read before we got it: they are given out first, then the stream itself is read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `inner`, with `prefix` in front of what it reads.
#[derive(Debug)]
pub struct Prefixed<S> {
    prefix: Vec<u8>,
    given: usize,
    inner: S,
}

impl<S> Prefixed<S> {
    /// Replays `prefix` before reading from `inner`.
    pub fn new(prefix: Vec<u8>, inner: S) -> Prefixed<S> {
        Prefixed { prefix, given: 0, inner }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = &this.prefix[this.given..];
        if rest.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        this.given += count;
        if this.given == this.prefix.len() {
            (this.prefix, this.given) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_prefix_comes_first_however_small_the_reads() {
        for chunk in 1..8 {
            let (mut peer, stream) = tokio::io::duplex(64);
            peer.write_all(b" world").await.expect("room");
            drop(peer);
            let mut stream = Prefixed::new(b"hello".to_vec(), stream);
            let mut heard = Vec::new();
            let mut buffer = vec![0; chunk];
            loop {
                match stream.read(&mut buffer).await.expect("open") {
                    0 => break,
                    count => heard.extend_from_slice(&buffer[..count]),
                }
            }
            assert_eq!(heard, b"hello world", "{chunk}");
        }
    }

    #[tokio::test]
    async fn an_empty_prefix_changes_nothing_and_writes_pass_through() {
        let (mut peer, stream) = tokio::io::duplex(64);
        let mut stream = Prefixed::new(Vec::new(), stream);
        stream.write_all(b"out").await.expect("room");
        stream.shutdown().await.expect("open");
        let mut heard = String::new();
        peer.read_to_string(&mut heard).await.expect("open");
        assert_eq!(heard, "out");
    }
}
