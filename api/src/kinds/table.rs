//! Columns and cells of `kubectl get`, worded as Kubernetes' printers word them (`pkg/printers/internalversion`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};

use crate::registry::Column;

/// What is shown for a value that is not there.
pub const NONE: &str = "<none>";
/// What is shown for a value that nobody knows.
pub const UNKNOWN: &str = "<unknown>";

/// A column that is always shown.
pub fn column(name: &'static str, column_type: &'static str, description: &'static str) -> Column {
    let format = if name == "Name" { "name" } else { "" };
    Column {
        name: name.into(),
        column_type: column_type.into(),
        format: format.into(),
        description: description.into(),
        priority: 0,
    }
}

/// A column that is shown only with `-o wide`.
pub fn wide(name: &'static str, column_type: &'static str, description: &'static str) -> Column {
    Column { priority: 1, format: "".into(), ..column(name, column_type, description) }
}

pub fn name_column() -> Column {
    column("Name", "string", "Name of the object; unique among the objects of its kind in its namespace.")
}

pub fn age_column() -> Column {
    column("Age", "string", "Time since the object was created.")
}

pub fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

/// The age of an object, or `<unknown>` when it has no creation time.
pub fn age(metadata: &ObjectMeta, now: Timestamp) -> String {
    since(metadata.creation_timestamp.as_ref(), now)
}

pub fn since(time: Option<&Time>, now: Timestamp) -> String {
    time.map_or_else(|| UNKNOWN.to_owned(), |time| since_timestamp(time.0, now))
}

pub fn since_timestamp(time: Timestamp, now: Timestamp) -> String {
    human_duration(now.as_millisecond() - time.as_millisecond())
}

/// A duration in the one or two largest units that matter (`k8s.io/apimachinery/pkg/util/duration`).
pub fn human_duration(milliseconds: i64) -> String {
    let seconds = milliseconds / 1000;
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if days < 365 * 8 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// The text, or `<none>` when it is missing or empty.
pub fn or_none(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or(NONE).to_owned()
}

/// The first of many, and how many more there are: `a,b,c + 2 more...`.
pub fn first_few(all: &[String], limit: usize) -> String {
    if all.len() > limit { format!("{} + {} more...", all[..limit].join(","), all.len() - limit) } else { all.join(",") }
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(labels: Option<&BTreeMap<String, String>>) -> String {
    let joined = labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    or_none(Some(&joined))
}

/// A label selector as one line: `app=x,tier in (a,b),!gone`, `<none>` when it selects everything.
pub fn selector(selector: &LabelSelector) -> String {
    let mut terms: Vec<(String, String)> =
        selector.match_labels.iter().flatten().map(|(key, value)| (key.clone(), format!("{key}={value}"))).collect();
    for expression in selector.match_expressions.iter().flatten() {
        let key = &expression.key;
        let mut values = expression.values.clone().unwrap_or_default();
        values.sort();
        let text = match expression.operator.as_str() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.clone(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        terms.push((key.clone(), text));
    }
    terms.sort();
    let joined = terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",");
    or_none(Some(&joined))
}

#[cfg(test)]
mod tests {
    use super::human_duration;

    #[test]
    fn durations_are_worded_like_kubernetes() {
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (8 * 3600, "8h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (50 * 3600, "2d2h"),
            (8 * 86400, "8d"),
            (730 * 86400, "2y"),
            (740 * 86400, "2y10d"),
            (3000 * 86400, "8y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(human_duration(seconds * 1000), expected, "{seconds} s");
        }
    }
}
