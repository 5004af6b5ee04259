//! What a reader of logs asks for (`v1.PodLogOptions`), and applying it to lines: pure.

use jiff::{SignedDuration, Timestamp};

use super::line::{self, Stream};

/// The query of `/containerLogs/…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
    pub stream: Option<Stream>,
}

impl LogOptions {
    /// Reads the pairs of a query.
    ///
    /// # Errors
    /// A message that names the parameter.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>, now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in pairs {
            let invalid = || format!("invalid value {value:?} for {name}");
            match name {
                "follow" => options.follow = truth(value).ok_or_else(invalid)?,
                "previous" => options.previous = truth(value).ok_or_else(invalid)?,
                "timestamps" => options.timestamps = truth(value).ok_or_else(invalid)?,
                // A negative number of lines is all of them.
                "tailLines" => options.tail_lines = u64::try_from(value.parse::<i64>().map_err(|_| invalid())?).ok(),
                "limitBytes" => options.limit_bytes = Some(value.parse().map_err(|_| invalid())?),
                "sinceSeconds" => {
                    let seconds: i64 = value.parse().map_err(|_| invalid())?;
                    options.since = Some(now.checked_sub(SignedDuration::from_secs(seconds)).map_err(|_| invalid())?);
                }
                "sinceTime" => options.since = Some(value.parse().map_err(|_| invalid())?),
                "stream" => {
                    options.stream = match value {
                        "" | "All" => None,
                        "Stdout" => Some(Stream::Stdout),
                        "Stderr" => Some(Stream::Stderr),
                        _ => return Err(invalid()),
                    }
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "true" | "1" | "" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// Turns lines of the file into what is shown.
#[derive(Clone, Debug)]
pub struct Filter {
    since: Option<Timestamp>,
    timestamps: bool,
    stream: Option<Stream>,
    left_bytes: Option<u64>,
}

impl Filter {
    pub fn new(options: &LogOptions) -> Self {
        Self { since: options.since, timestamps: options.timestamps, stream: options.stream, left_bytes: options.limit_bytes }
    }

    /// Whether the limit of bytes is used up.
    pub fn is_exhausted(&self) -> bool {
        self.left_bytes == Some(0)
    }

    /// Appends what is shown of a line (without its newline) to `shown`.
    pub fn render(&mut self, line: &[u8], shown: &mut Vec<u8>) {
        let Some(line) = line::parse(line) else { return };
        let unwanted =
            self.since.is_some_and(|since| line.time < since) || self.stream.is_some_and(|stream| stream != line.stream);
        if unwanted {
            return;
        }
        let before = shown.len();
        if self.timestamps {
            shown.extend_from_slice(line.time_text.as_bytes());
            shown.push(b' ');
        }
        shown.extend_from_slice(&line.content);
        shown.extend_from_slice(line.ending().as_bytes());
        if let Some(left) = &mut self.left_bytes {
            let added = (shown.len() - before) as u64;
            if added > *left {
                shown.truncate(before + usize::try_from(*left).unwrap_or(usize::MAX));
            }
            *left = left.saturating_sub(added);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: [&str; 3] = [
        "2026-01-01T00:00:01.000000001Z stdout F one",
        "2026-01-01T00:00:02Z stderr P two-",
        "2026-01-01T00:00:03Z stderr F three",
    ];

    fn show(query: &str) -> String {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let now = "2026-01-01T00:00:04Z".parse().unwrap();
        let mut filter = Filter::new(&LogOptions::parse(pairs, now).unwrap());
        let mut shown = Vec::new();
        LOG.iter().for_each(|line| filter.render(line.as_bytes(), &mut shown));
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn lines_are_shown_as_asked() {
        for (query, expected) in [
            ("", "one\ntwo-three\n"),
            ("sinceTime=2026-01-01T00:00:02Z", "two-three\n"),
            ("sinceSeconds=1", "three\n"),
            ("stream=Stdout", "one\n"),
            ("limitBytes=6", "one\ntw"),
            ("limitBytes=4", "one\n"),
            ("timestamps=true&sinceSeconds=1", "2026-01-01T00:00:03Z three\n"),
        ] {
            assert_eq!(show(query), expected, "{query}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for pair in
            [("follow", "maybe"), ("tailLines", "x"), ("sinceTime", "yesterday"), ("stream", "both"), ("limitBytes", "-1")]
        {
            assert!(LogOptions::parse([pair], Timestamp::UNIX_EPOCH).is_err(), "{pair:?}");
        }
        assert_eq!(LogOptions::parse([("tailLines", "-1")], Timestamp::UNIX_EPOCH).unwrap().tail_lines, None);
    }
}
