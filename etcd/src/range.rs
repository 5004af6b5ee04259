//! What etcd does with a range after it is read: filters by revision, sorting, and the limit when either is asked for.

use trireme_storage::model::{self, KeyRange, KeyValue, RangeContent, RangeResult, Revision};

use crate::{
    convert,
    proto::etcdserverpb::{
        RangeRequest, RangeResponse,
        range_request::{SortOrder, SortTarget},
    },
};

/// Lower and upper bounds of one revision of the key-values; 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bounds {
    least: i64,
    greatest: i64,
}

impl Bounds {
    fn are_set(self) -> bool {
        self.least != 0 || self.greatest != 0
    }

    fn admit(self, revision: Revision) -> bool {
        let revision = convert::signed(revision.0);
        (self.least == 0 || revision >= self.least) && (self.greatest == 0 || revision <= self.greatest)
    }
}

/// Which of a range's key-values are wanted, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// 0 is no limit.
    limit: usize,
    order: SortOrder,
    target: SortTarget,
    modified: Bounds,
    created: Bounds,
    content: RangeContent,
}

impl Selection {
    /// What a request, which must have passed [`crate::check::range`], selects.
    pub fn of(request: &RangeRequest) -> Self {
        Self {
            limit: usize::try_from(request.limit).unwrap_or(0),
            order: request.sort_order(),
            target: request.sort_target(),
            modified: Bounds { least: request.min_mod_revision, greatest: request.max_mod_revision },
            created: Bounds { least: request.min_create_revision, greatest: request.max_create_revision },
            content: match (request.count_only, request.keys_only) {
                (true, _) => RangeContent::CountOnly,
                (false, true) => RangeContent::KeysOnly,
                (false, false) => RangeContent::Values,
            },
        }
    }

    /// Whether the first key-values of the range are the ones that are wanted.
    pub fn is_prefix(&self) -> bool {
        let in_key_order = self.target == SortTarget::Key && self.order != SortOrder::Descend;
        in_key_order && !self.modified.are_set() && !self.created.are_set()
    }

    /// What the store is asked for.
    pub fn to_store(self, range: KeyRange, revision: i64) -> model::RangeRequest {
        let sorts_by_value = self.target == SortTarget::Value && self.content == RangeContent::KeysOnly;
        model::RangeRequest {
            range,
            revision: u64::try_from(revision).ok().filter(|revision| *revision > 0).map(Revision),
            limit: (self.is_prefix() && self.limit > 0).then_some(self.limit as u64),
            content: if sorts_by_value { RangeContent::Values } else { self.content },
        }
    }

    /// The answer, but for its header.
    pub fn answer(self, result: RangeResult) -> RangeResponse {
        let RangeResult { mut key_values, count, mut more, .. } = result;
        if self.modified.are_set() || self.created.are_set() {
            key_values.retain(|found| self.modified.admit(found.mod_revision) && self.created.admit(found.create_revision));
        }
        if !self.is_prefix() {
            self.sort(&mut key_values);
            more = self.limit > 0 && key_values.len() > self.limit;
            if more {
                key_values.truncate(self.limit);
            }
        }
        let values_wanted = self.content == RangeContent::Values;
        let kvs = key_values.into_iter().map(|mut key_value| {
            if !values_wanted {
                key_value.value.clear();
            }
            convert::key_value(key_value)
        });
        RangeResponse { header: None, kvs: kvs.collect(), more, count: convert::signed(count) }
    }

    /// Sorts what is in key order; by another target than the key, "no order" is ascending (etcd's rule).
    fn sort(self, key_values: &mut [KeyValue]) {
        match self.target {
            SortTarget::Key => {}
            SortTarget::Version => key_values.sort_by_key(|found| found.version),
            SortTarget::Create => key_values.sort_by_key(|found| found.create_revision),
            SortTarget::Mod => key_values.sort_by_key(|found| found.mod_revision),
            SortTarget::Value => key_values.sort_by(|left, right| left.value.cmp(&right.value)),
        }
        if self.order == SortOrder::Descend {
            key_values.reverse();
        }
    }
}

#[cfg(test)]
mod tests {
    use trireme_storage::model::LeaseId;

    use super::*;

    /// Keys a to d; value, create revision, mod revision and version as given.
    fn found() -> RangeResult {
        let rows = [("a", "4", 1, 8, 3), ("b", "3", 2, 2, 1), ("c", "1", 5, 7, 2), ("d", "2", 6, 6, 1)];
        let key_values = rows.map(|(key, value, created, modified, version)| KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: Revision(created),
            mod_revision: Revision(modified),
            version,
            lease: LeaseId(0),
        });
        RangeResult { key_values: key_values.into(), count: 4, more: false, revision: Revision(8) }
    }

    fn keys(request: &RangeRequest) -> (String, bool) {
        let answer = Selection::of(request).answer(found());
        assert_eq!(answer.count, 4);
        let keys: Vec<&str> = answer.kvs.iter().map(|found| std::str::from_utf8(&found.key).unwrap()).collect();
        (keys.concat(), answer.more)
    }

    #[test]
    fn ranges_are_filtered_sorted_and_cut() {
        let sort = |target: SortTarget, order: SortOrder, limit| RangeRequest {
            sort_target: target.into(),
            sort_order: order.into(),
            limit,
            ..RangeRequest::default()
        };
        let cases = [
            (RangeRequest::default(), "abcd", false),
            (sort(SortTarget::Key, SortOrder::Descend, 0), "dcba", false),
            (sort(SortTarget::Key, SortOrder::Descend, 2), "dc", true),
            (sort(SortTarget::Version, SortOrder::Ascend, 0), "bdca", false),
            (sort(SortTarget::Create, SortOrder::Descend, 1), "d", true),
            (sort(SortTarget::Mod, SortOrder::None, 3), "bdc", true),
            (sort(SortTarget::Value, SortOrder::Ascend, 4), "cdba", false),
            (RangeRequest { min_mod_revision: 7, ..RangeRequest::default() }, "ac", false),
            (RangeRequest { max_mod_revision: 6, limit: 1, ..RangeRequest::default() }, "b", true),
            (RangeRequest { min_create_revision: 2, max_create_revision: 5, ..RangeRequest::default() }, "bc", false),
        ];
        for (request, expected, more) in cases {
            assert_eq!(keys(&request), (expected.to_owned(), more), "{request:?}");
        }
    }

    #[test]
    fn the_store_is_asked_for_no_more_than_is_needed() {
        let all = || KeyRange::prefix("x");
        let asked = |request: RangeRequest| {
            let asked = Selection::of(&request).to_store(all(), request.revision);
            (asked.limit, asked.content, asked.revision)
        };
        let plain = RangeRequest { limit: 5, revision: 3, ..RangeRequest::default() };
        assert_eq!(asked(plain), (Some(5), RangeContent::Values, Some(Revision(3))));
        let sorted = RangeRequest { limit: 5, revision: -1, sort_order: SortOrder::Descend.into(), ..RangeRequest::default() };
        assert_eq!(asked(sorted), (None, RangeContent::Values, None));
        let by_value = RangeRequest { keys_only: true, sort_target: SortTarget::Value.into(), ..RangeRequest::default() };
        assert_eq!(asked(by_value.clone()), (None, RangeContent::Values, None));
        let answer = Selection::of(&by_value).answer(found());
        assert!(answer.kvs.iter().all(|found| found.value.is_empty()), "only keys were asked for");
        let counted = RangeRequest { count_only: true, ..RangeRequest::default() };
        assert_eq!(asked(counted), (None, RangeContent::CountOnly, None));
    }
}
