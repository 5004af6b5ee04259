//! Writes a container's output to its log file in the CRI's format: `<time> <stream> <F or P> <text>`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use jiff::Timestamp;

/// Longer lines are written in parts.
const MAX_PART_BYTES: usize = 16 * 1024;

/// Which of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Cuts a stream of bytes into log lines.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    pending: Vec<u8>,
}

impl Lines {
    pub fn new(stream: Stream) -> Lines {
        Lines { stream, pending: Vec::new() }
    }

    /// The finished lines that the bytes make, as text of the log file.
    pub fn push(&mut self, bytes: &[u8], now: Timestamp) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_whole) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            self.pending.extend_from_slice(text);
            while self.pending.len() > MAX_PART_BYTES {
                let rest = self.pending.split_off(MAX_PART_BYTES);
                self.write(&mut out, now, "P");
                self.pending = rest;
            }
            if is_whole {
                self.write(&mut out, now, "F");
                self.pending.clear();
            }
        }
        out
    }

    /// What is left when the stream ends without a line feed.
    pub fn finish(&mut self, now: Timestamp) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.pending.is_empty() {
            self.write(&mut out, now, "F");
            self.pending.clear();
        }
        out
    }

    fn write(&self, out: &mut Vec<u8>, now: Timestamp, tag: &str) {
        let stream = match self.stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        out.extend_from_slice(format!("{now:.9} {stream} {tag} ").as_bytes());
        out.extend_from_slice(&self.pending);
        out.push(b'\n');
    }
}

/// A container's log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    pub fn open(path: PathBuf) -> io::Result<LogFile> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(&path)?;
        Ok(LogFile { path, file })
    }

    /// After a rotation: go on in a new file at the same path.
    pub fn reopen(&mut self) -> io::Result<()> {
        *self = LogFile::open(self.path.clone())?;
        Ok(())
    }

    /// Output that cannot be written is lost; the container does not suffer from a full disk.
    pub fn write(&mut self, text: &[u8]) {
        if !text.is_empty() {
            drop(self.file.write_all(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_are_written_in_the_format_of_the_cri() {
        let now: Timestamp = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        let mut lines = Lines::new(Stream::Stdout);
        assert_eq!(
            text(lines.push(b"one\n\ntw", now)),
            "2026-01-02T03:04:05.000000006Z stdout F one\n2026-01-02T03:04:05.000000006Z stdout F \n"
        );
        assert_eq!(text(lines.push(b"o\n", now)), "2026-01-02T03:04:05.000000006Z stdout F two\n");
        assert_eq!(text(lines.finish(now)), "");
        lines.push(b"rest", now);
        assert_eq!(text(lines.finish(now)), "2026-01-02T03:04:05.000000006Z stdout F rest\n");
    }

    #[test]
    fn a_long_line_comes_in_parts_that_lose_nothing() {
        let now = Timestamp::UNIX_EPOCH;
        let mut lines = Lines::new(Stream::Stderr);
        let long = vec![b'x'; 40_000];
        let mut out = lines.push(&long, now);
        out.extend(lines.push(b"\n", now));
        let written = text(out);
        let rows: Vec<Vec<&str>> = written.lines().map(|line| line.split(' ').collect()).collect();
        assert_eq!(rows.iter().map(|row| row[2]).collect::<String>(), "PPF");
        assert_eq!(rows.iter().map(|row| row[3].len()).sum::<usize>(), 40_000);
    }
}
