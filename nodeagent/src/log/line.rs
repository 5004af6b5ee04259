//! One line of the CRI's log format: `<RFC 3339 time> <stdout|stderr> <F|P> <content>`.

use jiff::Timestamp;

/// A line, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub time: Timestamp,
    /// As written, for `timestamps=true`.
    pub time_text: String,
    pub stream: Stream,
    pub completeness: Completeness,
    pub content: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Long lines are written in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    Full,
    Partial,
}

impl Line {
    /// What follows the content when it is shown.
    pub fn ending(&self) -> &'static str {
        match self.completeness {
            Completeness::Full => "\n",
            Completeness::Partial => "",
        }
    }
}

/// Reads one line without its newline; `None` when it is not in the format.
pub fn parse(line: &[u8]) -> Option<Line> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time_text = std::str::from_utf8(parts.next()?).ok()?;
    let time: Timestamp = time_text.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons; the first tells the completeness.
    let completeness = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => Completeness::Full,
        b"P" => Completeness::Partial,
        _ => return None,
    };
    let content = parts.next().unwrap_or_default().to_vec();
    Some(Line { time, time_text: time_text.to_owned(), stream, completeness, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line = parse(b"2026-01-01T00:00:01.5Z stdout F hello  world").unwrap();
        assert_eq!(
            (line.stream, line.completeness, line.content.as_slice()),
            (Stream::Stdout, Completeness::Full, &b"hello  world"[..])
        );
        assert_eq!(line.time.as_millisecond(), 1_767_225_601_500);
        assert_eq!(parse(b"2026-01-01T00:00:01Z stderr P ").unwrap().ending(), "");
        assert_eq!(parse(b"2026-01-01T00:00:01+02:00 stderr F").unwrap().content, b"");
        for bad in [&b""[..], b"hello", b"2026-01-01T00:00:01Z other F x", b"2026-01-01T00:00:01Z stdout X x", b"then stdout F x"]
        {
            assert_eq!(parse(bad), None);
        }
    }
}
