//! Holds back what a connection writes until it has nothing more to say for now, or has enough to say: HTTP/2 writes and flushes each
//! frame by itself, and each of those would be a system call and, on the other side, a wake-up.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// From so many bytes on it is worth a write: eight full TLS records.
const HELD_BYTES: usize = 8 * ((16 << 10) + 22);
/// A buffer that has grown beyond this is given back when it is empty.
const KEPT_BYTES: usize = 16 << 10;

/// A stream that holds back what is written, once [`Corked::cork`] was called. Clones share it; whoever corks it must call
/// [`Corked::poll_release`] whenever the writer has stopped writing.
pub struct Corked<S> {
    inner: Arc<Mutex<Inner<S>>>,
}

impl<S> Clone for Corked<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<S> {
    stream: S,
    is_corked: bool,
    held: Vec<u8>,
    /// How much of `held` is written.
    written: usize,
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Writes everything that is held.
    fn poll_write_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.held[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.written = 0;
        self.held.clear();
        Poll::Ready(Ok(()))
    }

    /// Takes what is to be written, when there is room for it: what is held never grows beyond its limit and one call's.
    fn poll_hold(&mut self, context: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.held.len() >= HELD_BYTES {
            ready!(self.poll_write_held(context))?;
        }
        pieces.iter().for_each(|piece| self.held.extend_from_slice(piece));
        Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// A stream that, for now, writes at once.
    pub fn new(stream: S) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { stream, is_corked: false, held: Vec::new(), written: 0 })) }
    }

    /// From here on, what is written is held back.
    pub fn cork(&self) {
        self.inner.lock().is_corked = true;
    }

    /// Writes what is held, as far as the stream takes it; the task is woken when it takes more.
    pub fn poll_release(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        ready!(inner.poll_write_held(context))?;
        if inner.held.capacity() > KEPT_BYTES {
            inner.held = Vec::new();
        }
        Pin::new(&mut inner.stream).poll_flush(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner.lock().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.lock();
        if inner.is_corked {
            inner.poll_hold(context, pieces)
        } else {
            Pin::new(&mut inner.stream).poll_write_vectored(context, pieces)
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        if inner.is_corked { Poll::Ready(Ok(())) } else { Pin::new(&mut inner.stream).poll_flush(context) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        ready!(inner.poll_write_held(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_written_is_held_until_it_is_released_or_much() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut corked = Corked::new(near);
        let handle = corked.clone();
        let mut received = vec![0; 8];
        corked.write_all(b"at once ").await.unwrap();
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(received, b"at once ");

        handle.cork();
        corked.write_all(b"held ").await.unwrap();
        corked.flush().await.unwrap();
        assert!(futures::FutureExt::now_or_never(far.read_u8()).is_none(), "a flush does not release it");
        corked.write_all(b"too").await.unwrap();
        poll_fn(|context| handle.poll_release(context)).await.unwrap();
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(received, b"held too");

        // Much is written without being released, and what is last when the stream is shut down.
        let much = vec![7; 3 * HELD_BYTES + 5];
        let (written, received) = tokio::join!(
            async {
                corked.write_all(&much).await.unwrap();
                corked.shutdown().await.unwrap();
                drop((corked, handle));
            },
            async {
                let mut received = Vec::new();
                far.read_to_end(&mut received).await.unwrap();
                received
            }
        );
        assert_eq!((written, received), ((), much));
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_stops_the_writer() {
        let (near, _far) = tokio::io::duplex(64);
        let mut corked = Corked::new(near);
        corked.cork();
        let chunk = vec![1; 1 << 14];
        let mut taken = 0;
        while futures::FutureExt::now_or_never(corked.write_all(&chunk)).is_some() {
            taken += chunk.len();
            assert!(taken < 2 * HELD_BYTES, "what is held has a limit");
        }
        assert!(taken >= HELD_BYTES);
    }
}
