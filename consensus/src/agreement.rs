//! Who of the members holds what the group has agreed on, judged by what each of them says of one point of the past. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::NodeId;

/// What a member learns from a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All who said something said the same.
    Agreed,
    /// A majority of the voters holds something else than this member.
    OddOneOut,
    /// A majority holds what this member holds; these do not.
    OthersDiffer(Vec<NodeId>),
    /// Some differ, and no majority is known to hold the same.
    NoMajority,
}

/// Judges what the members said (`values`, the member's own among them) of the same point. Only voters count for a majority.
pub fn judge<V: Ord>(own: NodeId, voters: &BTreeSet<NodeId>, values: &BTreeMap<NodeId, V>) -> Verdict {
    let Some(held) = values.get(&own) else { return Verdict::Agreed };
    if values.values().all(|value| value == held) {
        return Verdict::Agreed;
    }
    let mut counts: BTreeMap<&V, usize> = BTreeMap::new();
    for (_, value) in values.iter().filter(|(id, _)| voters.contains(*id)) {
        *counts.entry(value).or_default() += 1;
    }
    let majority = counts.into_iter().find(|(_, count)| *count > voters.len() / 2).map(|(value, _)| value);
    match majority {
        None => Verdict::NoMajority,
        Some(value) if value == held => {
            Verdict::OthersDiffer(values.iter().filter(|(_, value)| *value != held).map(|(id, _)| *id).collect())
        }
        Some(_) => Verdict::OddOneOut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_of_the_voters_is_right() {
        // Voters, and what each member holds; member 1 judges.
        type Case<'a> = (&'a [u64], &'a [(u64, char)], Verdict);
        let cases: &[Case<'_>] = &[
            (&[1, 2, 3], &[(1, 'a'), (2, 'a'), (3, 'a')], Verdict::Agreed),
            (&[1, 2, 3], &[(1, 'a'), (2, 'a')], Verdict::Agreed),
            (&[1, 2, 3], &[(1, 'a')], Verdict::Agreed),
            (&[1, 2, 3], &[(2, 'a'), (3, 'b')], Verdict::Agreed),
            (&[1, 2, 3], &[(1, 'b'), (2, 'a'), (3, 'a')], Verdict::OddOneOut),
            (&[1, 2, 3], &[(1, 'a'), (2, 'a'), (3, 'b')], Verdict::OthersDiffer(vec![NodeId(3)])),
            (&[1, 2, 3], &[(1, 'a'), (2, 'b')], Verdict::NoMajority),
            (&[1, 2, 3], &[(1, 'a'), (2, 'b'), (3, 'c')], Verdict::NoMajority),
            (&[1, 2], &[(1, 'a'), (2, 'b')], Verdict::NoMajority),
            (&[1, 2, 3, 4, 5], &[(1, 'b'), (2, 'a'), (3, 'a')], Verdict::NoMajority),
            (&[1, 2, 3, 4, 5], &[(1, 'b'), (2, 'a'), (3, 'a'), (4, 'a')], Verdict::OddOneOut),
            // Learners are judged, and do not count.
            (&[2, 3, 4], &[(1, 'b'), (2, 'a'), (3, 'a')], Verdict::OddOneOut),
            (&[1], &[(1, 'a'), (2, 'b'), (3, 'b')], Verdict::OthersDiffer(vec![NodeId(2), NodeId(3)])),
        ];
        for (voters, values, expected) in cases {
            let voters = voters.iter().copied().map(NodeId).collect();
            let values = values.iter().map(|(id, value)| (NodeId(*id), *value)).collect();
            assert_eq!(judge(NodeId(1), &voters, &values), *expected, "{voters:?} {values:?}");
        }
    }
}
