//! Reading ranges of the applied state, and transactions that only read.

use super::{StateMachine, load_head};
use crate::{
    engine::{self, EngineError, View},
    history::{self, Overrides},
    layout::Head,
    model::{KeyRange, RangeRequest, RangeResult, Revision, Transaction, TransactionResult},
    overlay,
    rows::{self, RowVisitor},
    store::StoreError,
    transaction,
};

impl StateMachine {
    /// Reads a range of the applied state, at the newest revision or at the one that the request names.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResult, StoreError> {
        self.read_at(request.revision, |view, head| {
            let overrides = match request.revision.filter(|revision| *revision < head.revision) {
                Some(revision) => history::overrides_since(view, &request.range, revision)?,
                None => Overrides::new(),
            };
            history::range(view, request, &overrides, head.revision)
        })
    }

    /// Visits the keys of a range in order, at the newest revision or at `revision`, until the visitor breaks it off. Returns the newest
    /// revision at the moment of the read. After an error, what was visited is worth nothing.
    pub fn visit(
        &self,
        range: &KeyRange,
        revision: Option<Revision>,
        visitor: &mut RowVisitor<'_>,
    ) -> Result<Revision, StoreError> {
        self.read_at(revision, |view, head| {
            let past = revision.filter(|revision| *revision < head.revision);
            rows::visit(view, range, past, rows::WINDOW_ROWS, visitor)?;
            Ok(head.revision)
        })
    }

    /// Carries out a transaction that changes nothing ([`Transaction::is_read_only`]) on the applied state.
    ///
    /// # Errors
    /// As for a transaction in the log; [`StoreError::InvalidTransaction`] for one that writes.
    pub fn read_transaction(&self, transaction: &Transaction) -> Result<TransactionResult, StoreError> {
        if !transaction.is_read_only() {
            return Err(StoreError::InvalidTransaction("a transaction that writes must go through the log".into()));
        }
        loop {
            let (result, compacted) = engine::read(self.inner.engine.as_ref(), |view| {
                let head = load_head(view)?;
                Ok::<_, StoreError>((transaction::read(view, head, transaction), head.compacted))
            })?;
            // Rows may have gone from under the view if history was compacted since then.
            if self.compacted_revision() <= compacted {
                return result;
            }
        }
    }

    /// Runs `read` over a view that holds `revision`.
    fn read_at<T>(
        &self,
        revision: Option<Revision>,
        read: impl FnOnce(&dyn View, &Head) -> Result<T, EngineError>,
    ) -> Result<T, StoreError> {
        let (found, head) = engine::read(self.inner.engine.as_ref(), |view| {
            let head = load_head(view)?;
            if let Some(revision) = revision {
                overlay::check_readable(&head, revision)?;
            }
            Ok::<_, StoreError>((read(view, &head), head))
        })?;
        if let Some(revision) = revision.filter(|revision| *revision < head.revision) {
            self.check_not_compacted(revision)?;
        }
        Ok(found?)
    }
}
