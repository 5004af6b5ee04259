//! Sends one page while the next one is read.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::task::JoinHandle;
use tokio_util::sync::DropGuard;
use tonic::Status;

use super::read::{Beginning, Page, Reader, Rest};
use crate::error::{EtcdError, refuse};

/// The body of an answer. What it holds at most is the rest of one page, and the page after that.
pub struct PagedBody {
    /// What is sent next.
    frames: VecDeque<Bytes>,
    /// How many bytes of the message have not been read yet.
    owed_bytes: u64,
    ahead: Ahead,
    reader: Arc<Reader>,
    /// Ends the reading when the body is dropped.
    _waiting: DropGuard,
}

/// What comes after the frames.
enum Ahead {
    Page(JoinHandle<Result<Page, EtcdError>>),
    Trailers,
    Nothing,
}

impl PagedBody {
    pub fn new(reader: Arc<Reader>, beginning: Beginning, waiting: DropGuard) -> Self {
        let Beginning { frames, owed_bytes, rest } = beginning;
        let ahead = read_ahead(&reader, rest);
        Self { frames, owed_bytes, ahead, reader, _waiting: waiting }
    }

    /// Takes a page that was read, and has the next one read.
    fn turn(&mut self, page: Page) -> Result<(), EtcdError> {
        let owed = self.owed_bytes.checked_sub(page.bytes).filter(|owed| page.rest.is_some() || *owed == 0);
        // The client was told how long the message is.
        self.owed_bytes = owed.ok_or_else(|| {
            self.reader.forget();
            EtcdError::Internal("the pages of an answer are not as long as was found before".to_owned())
        })?;
        self.frames = page.frames;
        self.ahead = read_ahead(&self.reader, page.rest);
        Ok(())
    }

    fn end(&mut self, status: &Status) -> Option<Result<Frame<Bytes>, Status>> {
        self.ahead = Ahead::Nothing;
        let mut trailers = HeaderMap::new();
        Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
    }
}

fn read_ahead(reader: &Arc<Reader>, rest: Option<Rest>) -> Ahead {
    match rest {
        None => Ahead::Trailers,
        Some(rest) => {
            let reader = reader.clone();
            Ahead::Page(tokio::task::spawn_blocking(move || reader.read(rest)))
        }
    }
}

impl Body for PagedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = self.get_mut();
        loop {
            if let Some(frame) = body.frames.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            let read = match &mut body.ahead {
                Ahead::Nothing => return Poll::Ready(None),
                Ahead::Trailers => return Poll::Ready(body.end(&Status::ok(""))),
                Ahead::Page(page) => ready!(Pin::new(page).poll(context)),
            };
            let read = read.map_err(|error| EtcdError::Internal(error.to_string())).flatten();
            if let Err(error) = read.and_then(|page| body.turn(page)) {
                return Poll::Ready(body.end(&refuse(error)));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && matches!(self.ahead, Ahead::Nothing)
    }
}
