//! Whether the pairs of [`crate::workloads::pairs`] are there as their writers were told.
//!
//! Every acknowledged write is there, whole, at the revision it was acknowledged with; none that failed is; one whose outcome is unknown is
//! there entirely or not at all; revisions follow real time; a writer's register shows its newest write.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    history::{Outcome, Write},
    workloads::pairs::Keys,
};

/// What one member holds: the value and the revision at which it was put, by key.
pub type Stored = BTreeMap<String, (String, i64)>;

/// Everything that is wrong with what is `stored` under the keys of `run`, one line each.
pub fn violations(run: &str, history: &[Write], stored: &Stored) -> Vec<String> {
    let mut found = Vec::new();
    let mut explained = BTreeSet::new();
    let mut newest: BTreeMap<usize, (i64, u64)> = BTreeMap::new();
    for write in history {
        let keys = Keys::of(run, write.writer, write.number);
        let halves = [&keys.left, &keys.right].map(|key| {
            explained.insert(key.clone());
            stored.get(key)
        });
        let name = format!("write {} of writer {}", write.number, write.writer);
        let present = match halves {
            [None, None] => None,
            [Some(left), Some(right)] if left == right && left.0 == keys.value => Some(left.1),
            [Some(left), Some(right)] => {
                found.push(format!("{name} is torn or changed: {left:?} and {right:?}"));
                continue;
            }
            [left, right] => {
                found.push(format!("only a half of {name} is there: {left:?} and {right:?}"));
                continue;
            }
        };
        match (write.outcome, present) {
            (Outcome::Acknowledged(told), Some(at)) if told == at => {}
            (Outcome::Acknowledged(told), Some(at)) => found.push(format!("{name} was acknowledged at {told} and lies at {at}")),
            (Outcome::Acknowledged(told), None) => found.push(format!("{name}, acknowledged at {told}, is lost")),
            (Outcome::Failed, Some(at)) => found.push(format!("{name} failed and lies at {at}")),
            (Outcome::Failed, None) | (Outcome::Unknown, _) => {}
        }
        if let Some(at) = present {
            let entry = newest.entry(write.writer).or_insert((at, write.number));
            *entry = (*entry).max((at, write.number));
        }
    }
    for (writer, (at, number)) in newest {
        let register = Keys::of(run, writer, number).register;
        let shown = stored.get(&register);
        if shown != Some(&(number.to_string(), at)) {
            found.push(format!("the register of writer {writer} shows {shown:?}, its newest write is {number} at {at}"));
        }
        explained.insert(register);
    }
    found.extend(stored.keys().filter(|key| !explained.contains(*key)).map(|key| format!("nobody wrote {key}")));
    found.extend(disorder(history));
    found
}

/// Writes that were begun after another one was acknowledged and yet got no greater revision.
fn disorder(history: &[Write]) -> Vec<String> {
    let acknowledged = |write: &Write| match write.outcome {
        Outcome::Acknowledged(revision) => Some((*write, revision)),
        Outcome::Failed | Outcome::Unknown => None,
    };
    let mut begun: Vec<(Write, i64)> = history.iter().filter_map(acknowledged).collect();
    let mut ended = begun.clone();
    begun.sort_by_key(|(write, _)| write.invoked);
    ended.sort_by_key(|(write, _)| write.completed);
    let mut over = ended.into_iter().peekable();
    let mut greatest: Option<(Write, i64)> = None;
    let mut found = Vec::new();
    for (write, revision) in begun {
        while let Some(earlier) = over.next_if(|(earlier, _)| earlier.completed < write.invoked) {
            if greatest.is_none_or(|(_, known)| earlier.1 > known) {
                greatest = Some(earlier);
            }
        }
        if let Some((earlier, known)) = greatest
            && revision <= known
        {
            found.push(format!("{write:?} began after {earlier:?} was acknowledged and has no greater revision"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(writer: usize, number: u64, invoked: u64, completed: u64, outcome: Outcome) -> Write {
        Write { writer, number, invoked, completed, outcome }
    }

    /// What a member holds that has carried out these writes (writer, number, revision), in this order.
    fn holding(writes: &[(usize, u64, i64)]) -> Stored {
        let mut stored = Stored::new();
        for (writer, number, revision) in writes {
            let keys = Keys::of("r", *writer, *number);
            stored.insert(keys.left, (keys.value.clone(), *revision));
            stored.insert(keys.right, (keys.value, *revision));
            stored.insert(keys.register, (number.to_string(), *revision));
        }
        stored
    }

    fn good() -> (Vec<Write>, Stored) {
        let history = vec![
            write(0, 1, 0, 3, Outcome::Acknowledged(5)),
            write(1, 1, 1, 2, Outcome::Acknowledged(6)),
            write(0, 2, 4, 5, Outcome::Failed),
            write(0, 3, 6, 7, Outcome::Unknown),
            write(1, 2, 8, 9, Outcome::Unknown),
            write(0, 4, 10, 11, Outcome::Acknowledged(9)),
        ];
        (history, holding(&[(0, 1, 5), (1, 1, 6), (0, 3, 7), (0, 4, 9)]))
    }

    #[test]
    fn what_fits_has_no_violation() {
        let (history, stored) = good();
        assert_eq!(violations("r", &history, &stored), Vec::<String>::new());
    }

    #[test]
    fn each_violation_is_found() {
        type Damage = fn(&mut Vec<Write>, &mut Stored);
        let cases: [(&str, Damage); 9] = [
            ("is lost", |_, stored| {
                let keys = Keys::of("r", 1, 1);
                stored.retain(|key, _| ![&keys.left, &keys.right, &keys.register].contains(&key));
            }),
            ("failed and lies at", |_, stored| stored.extend(holding(&[(0, 2, 6), (0, 4, 9)]))),
            ("only a half", |_, stored| {
                stored.remove(&Keys::of("r", 0, 3).right);
            }),
            ("torn or changed", |_, stored| {
                stored.insert(Keys::of("r", 0, 1).left, ("other".into(), 5));
            }),
            ("torn or changed", |_, stored| {
                let keys = Keys::of("r", 0, 3);
                stored.insert(keys.right, (keys.value, 8));
            }),
            ("acknowledged at 9 and lies at 10", |_, stored| stored.extend(holding(&[(0, 4, 10)]))),
            ("the register of writer 0 shows", |_, stored| {
                stored.insert(Keys::of("r", 0, 4).register, ("3".into(), 7));
            }),
            ("nobody wrote", |_, stored| {
                stored.insert("r/9/9/left".into(), ("x".into(), 3));
            }),
            ("has no greater revision", |history, _| history[5].outcome = Outcome::Acknowledged(6)),
        ];
        for (expected, damage) in cases {
            let (mut history, mut stored) = good();
            damage(&mut history, &mut stored);
            let found = violations("r", &history, &stored);
            assert!(found.iter().any(|violation| violation.contains(expected)), "{expected}: {found:?}");
        }
    }
}
