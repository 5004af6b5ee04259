//! What a container leaves behind when it ends: its termination message.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

/// Longest message from the file (`MaxContainerTerminationMessageLength`).
const MOST_BYTES: u64 = 4096;
/// Longest message from the log, and most lines of it.
const MOST_LOG_BYTES: usize = 2048;
const MOST_LOG_LINES: usize = 80;

/// What a container wrote to its termination log. Blocking.
pub fn from_file(path: &Path) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

/// The end of a container's log, for `FallbackToLogsOnError`. Blocking.
pub fn from_log(path: &Path) -> String {
    // Twice the size, as each line has a time in front.
    const READ_BYTES: u64 = 64 << 10;
    let Ok(mut file) = File::open(path) else { return String::new() };
    let size = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let mut bytes = Vec::new();
    let start = size.saturating_sub(READ_BYTES);
    if file.seek(SeekFrom::Start(start)).and_then(|_| file.read_to_end(&mut bytes)).is_err() {
        return String::new();
    }
    tail(&bytes)
}

fn tail(log: &[u8]) -> String {
    let lines: Vec<String> = log
        .split(|byte| *byte == b'\n')
        .filter_map(crate::log::line::parse)
        .map(|line| String::from_utf8_lossy(&line.content).into_owned() + line.ending())
        .collect();
    let first = lines.len().saturating_sub(MOST_LOG_LINES);
    let text = lines[first..].concat();
    let mut start = text.len().saturating_sub(MOST_LOG_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert_eq!(from_file(&path), "");
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        assert_eq!(from_file(&path).len(), 4096);
    }

    #[test]
    fn the_logs_end_is_told_without_times() {
        let lines: String = (0..100).map(|number| format!("2026-01-01T00:00:00.000000000Z stderr F line {number}\n")).collect();
        let text = tail(lines.as_bytes());
        assert!(text.starts_with("line 20\n") && text.ends_with("line 99\n"), "{text}");
    }
}
