//! What an answer is read from: the first look, which finds its size and as much of it as fits a page, and the pages after that.

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use trireme_storage::{
    model::{KeyRange, RangeContent, RangeRequest, Revision},
    rows::Row,
    store::Store,
};

use super::{
    encode::{self, Frames, Part},
    sizes::{Known, Sizes, Sum},
};
use crate::{error::EtcdError, proto::etcdserverpb::ResponseHeader};

/// Whoever reads many rows asks so often whether they are still wanted.
const ROWS_BETWEEN_LOOKS: u64 = 1024;
/// A longer message is not sent; etcd's limit.
const MESSAGE_BYTES: u64 = i32::MAX as u64;

/// How much is held in memory of an answer.
#[derive(Clone, Copy, Debug)]
pub struct PageBytes {
    /// An answer of up to so many bytes is read in one pass.
    pub first: usize,
    /// Those that follow: one is sent while another is read.
    pub further: usize,
}

impl PageBytes {
    pub const DEFAULT: Self = Self { first: 2 << 20, further: 512 << 10 };
}

/// Reads one answer. All of its methods block.
pub struct Reader {
    store: Arc<dyn Store>,
    sizes: Arc<Sizes>,
    request: RangeRequest,
    pages: PageBytes,
    /// Cancelled when nobody waits for the answer any more.
    unwanted: CancellationToken,
}

/// The beginning of an answer.
pub struct Beginning {
    pub frames: VecDeque<Bytes>,
    /// How many bytes of the message are still to come.
    pub owed_bytes: u64,
    pub rest: Option<Rest>,
}

/// What is still to be read of an answer.
#[derive(Clone, Debug)]
pub struct Rest {
    /// The first key of what comes next.
    start: Bytes,
    rows: u64,
    /// Every page is read at this revision.
    revision: Revision,
    /// What follows the last row.
    end: Vec<u8>,
}

/// A part of an answer that is not its beginning.
pub struct Page {
    pub frames: VecDeque<Bytes>,
    pub bytes: u64,
    pub rest: Option<Rest>,
}

impl Reader {
    pub fn new(
        store: Arc<dyn Store>,
        sizes: Arc<Sizes>,
        request: RangeRequest,
        pages: PageBytes,
        unwanted: CancellationToken,
    ) -> Self {
        Self { store, sizes, request, pages, unwanted }
    }

    /// Whether all of a range is asked for, as it is now: the sums of those are kept.
    fn is_of_all(&self) -> bool {
        let RangeRequest { revision, limit, content, .. } = &self.request;
        revision.is_none() && limit.is_none() && *content != RangeContent::CountOnly
    }

    /// What the range is known to add up to now.
    pub async fn known(&self) -> Option<Known> {
        if !self.is_of_all() {
            return None;
        }
        self.sizes.now(self.store.as_ref(), &self.request.range, self.part()).await
    }

    /// The range's sum was wrong.
    pub fn forget(&self) {
        self.sizes.forget(&self.request.range, self.part());
    }

    fn part(&self) -> Part {
        match self.request.content {
            RangeContent::Values => Part::Whole,
            RangeContent::KeysOnly | RangeContent::CountOnly => Part::AllButValue,
        }
    }

    /// How many rows are wanted at most.
    fn limit(&self) -> u64 {
        match self.request.content {
            RangeContent::CountOnly => 0,
            RangeContent::Values | RangeContent::KeysOnly => self.request.limit.unwrap_or(u64::MAX),
        }
    }

    /// Looks at the whole range, for the sizes, and keeps a page of it. What is `known` of it need not be looked at.
    pub fn begin(
        &self,
        known: Option<Known>,
        header_at: impl FnOnce(Revision) -> Option<ResponseHeader>,
    ) -> Result<Beginning, EtcdError> {
        let (part, limit) = (self.part(), self.limit());
        let mut frames = Frames::first();
        let (mut sum, mut kept) = (Sum::default(), 0);
        let mut next = None;
        let asked = self.request.revision.or(known.map(|known| known.revision));
        let newest = self.store.visit(&self.request.range, asked, &mut |row: Row<'_>| {
            sum.rows += 1;
            if sum.rows <= limit {
                let bytes = encode::row_bytes(&row, part);
                sum.bytes += bytes as u64;
                if next.is_none() && (kept == 0 || frames.bytes() + bytes <= self.pages.first) {
                    frames.put_row(&row, part);
                    kept += 1;
                } else if next.is_none() {
                    next = Some(Bytes::copy_from_slice(row.key));
                    if known.is_some() {
                        return ControlFlow::Break(());
                    }
                }
            }
            self.go_on_at(sum.rows)
        })?;
        self.check_wanted()?;
        // The header tells as of when the answer is, so that a watch can go on from there.
        let as_of = known.map_or(newest, |known| known.revision);
        let sum = known.filter(|_| next.is_some()).map_or(sum, |known| known.sum);
        let beginning = encode::beginning(header_at(as_of));
        let more = self.request.content != RangeContent::CountOnly && sum.rows > limit;
        let end = encode::end(more, sum.rows);
        let message_bytes = beginning.len() as u64 + sum.bytes + end.len() as u64;
        let length = u32::try_from(message_bytes).ok().filter(|_| message_bytes <= MESSAGE_BYTES);
        let length = length.ok_or(EtcdError::AnswerTooLarge { bytes: message_bytes, limit: MESSAGE_BYTES })?;
        let read_bytes = (beginning.len() + frames.bytes()) as u64;
        let rest = match next {
            None => {
                frames.put_end(&end);
                None
            }
            Some(start) => {
                if self.is_of_all() {
                    self.sizes.note(&self.request.range, part, Known { revision: as_of, sum });
                }
                let rows = sum.rows.min(limit).saturating_sub(kept);
                Some(Rest { start, rows, revision: self.request.revision.unwrap_or(as_of), end })
            }
        };
        let owed_bytes = if rest.is_some() { message_bytes.saturating_sub(read_bytes) } else { 0 };
        Ok(Beginning { frames: frames.into_first(&beginning, length), owed_bytes, rest })
    }

    /// Reads the next page.
    pub fn read(&self, rest: Rest) -> Result<Page, EtcdError> {
        let part = self.part();
        let mut frames = Frames::further();
        let (mut looked_at, mut kept) = (0_u64, 0_u64);
        let mut next = None;
        let end = match &self.request.range {
            KeyRange::Span { end, .. } => end.clone(),
            // One key is no more than the beginning.
            KeyRange::One(_) => return Err(EtcdError::Internal("an answer of one key has no second page".to_owned())),
        };
        let range = KeyRange::Span { start: rest.start, end };
        self.store.visit(&range, Some(rest.revision), &mut |row: Row<'_>| {
            looked_at += 1;
            if kept == rest.rows {
                return ControlFlow::Break(());
            }
            if kept > 0 && frames.bytes() + encode::row_bytes(&row, part) > self.pages.further {
                next = Some(Bytes::copy_from_slice(row.key));
                return ControlFlow::Break(());
            }
            frames.put_row(&row, part);
            kept += 1;
            self.go_on_at(looked_at)
        })?;
        self.check_wanted()?;
        let rest = match next {
            Some(start) => Some(Rest { start, rows: rest.rows - kept, ..rest }),
            None => {
                frames.put_end(&rest.end);
                None
            }
        };
        Ok(Page { bytes: frames.bytes() as u64, frames: frames.into_further(), rest })
    }

    fn go_on_at(&self, row: u64) -> ControlFlow<()> {
        if row.is_multiple_of(ROWS_BETWEEN_LOOKS) && self.unwanted.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// What was broken off is no answer.
    fn check_wanted(&self) -> Result<(), EtcdError> {
        if self.unwanted.is_cancelled() { Err(EtcdError::Internal("the client has gone".to_owned())) } else { Ok(()) }
    }
}
