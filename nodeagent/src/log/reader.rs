//! Reading a container's log file, from its end and on through rotations.

use std::{future::Future, io, os::unix::fs::MetadataExt, path::Path, time::Duration};

use bytes::Bytes;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, SeekFrom},
    sync::mpsc,
};

use super::options::{Filter, LogOptions};

const CHUNK_BYTES: usize = 64 << 10;
const POLL: Duration = Duration::from_millis(100);

/// Sends what is asked for to `sink`. With `follow`, goes on until `ended` says that the container has ended and
/// everything it wrote was sent, or until the receiver is dropped.
///
/// # Errors
/// When the file cannot be opened or read.
pub async fn read<Ended, Answer>(path: &Path, options: &LogOptions, ended: Ended, sink: mpsc::Sender<Bytes>) -> io::Result<()>
where
    Ended: Fn() -> Answer + Send,
    Answer: Future<Output = bool> + Send,
{
    let mut file = File::open(path).await?;
    if let Some(lines) = options.tail_lines {
        let start = tail_offset(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    let mut filter = Filter::new(options);
    let mut pending = Vec::new();
    let mut last_round = !options.follow;
    loop {
        if copy(&mut file, &mut pending, &mut filter, &sink).await? == Flow::Stop || filter.is_exhausted() {
            return Ok(());
        }
        if let Some(next) = rotated(&file, path).await? {
            // Whatever was written between the last read and the rename.
            if copy(&mut file, &mut pending, &mut filter, &sink).await? == Flow::Stop {
                return Ok(());
            }
            pending.clear();
            file = next;
            continue;
        }
        if last_round {
            return Ok(());
        }
        tokio::select! {
            () = sink.closed() => return Ok(()),
            () = tokio::time::sleep(POLL) => {}
        }
        // Asked before the last read, so that nothing written before the end is missed.
        last_round = ended().await;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    GoOn,
    Stop,
}

/// Sends every whole line up to the end of the file.
async fn copy(file: &mut File, pending: &mut Vec<u8>, filter: &mut Filter, sink: &mpsc::Sender<Bytes>) -> io::Result<Flow> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut chunk).await?;
        if count == 0 {
            return Ok(Flow::GoOn);
        }
        pending.extend_from_slice(&chunk[..count]);
        let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') else { continue };
        let mut shown = Vec::new();
        for line in pending[..end].split(|byte| *byte == b'\n') {
            filter.render(line, &mut shown);
        }
        pending.drain(..=end);
        if !shown.is_empty() && sink.send(Bytes::from(shown)).await.is_err() {
            return Ok(Flow::Stop);
        }
        if filter.is_exhausted() {
            return Ok(Flow::Stop);
        }
    }
}

/// The file now at `path`, if it is another one than `file`.
async fn rotated(file: &File, path: &Path) -> io::Result<Option<File>> {
    let ours = file.metadata().await?;
    match tokio::fs::metadata(path).await {
        Ok(theirs) if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) => File::open(path).await.map(Some),
        // Between the rename and the reopening there is none.
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the last `lines` lines begin.
async fn tail_offset(file: &mut File, lines: u64) -> io::Result<u64> {
    let size = file.metadata().await?.len();
    if lines == 0 {
        return Ok(size);
    }
    let mut end = size;
    let mut found = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let part = &mut chunk[..usize::try_from(end - start).unwrap_or(CHUNK_BYTES)];
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(part).await?;
        for (index, byte) in part.iter().enumerate().rev() {
            let position = start + index as u64;
            // The newline that ends the file ends the last line; it begins none.
            if *byte == b'\n' && position + 1 < size {
                found += 1;
                if found == lines {
                    return Ok(position + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;

    fn line(text: &str) -> String {
        format!("2026-01-01T00:00:00Z stdout F {text}\n")
    }

    async fn all(path: &Path, options: LogOptions) -> String {
        let (sink, mut source) = mpsc::channel(10);
        let reading = read(path, &options, || std::future::ready(true), sink);
        let collecting = async {
            let mut text = Vec::new();
            while let Some(bytes) = source.recv().await {
                text.extend_from_slice(&bytes);
            }
            String::from_utf8(text).unwrap()
        };
        let (result, text) = tokio::join!(reading, collecting);
        result.unwrap();
        text
    }

    #[tokio::test]
    async fn the_last_lines_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        // More than one chunk, so that the search goes over its border.
        let text: String = (0..5000).map(|number| line(&number.to_string())).collect();
        fs::write(&path, text).unwrap();
        for (lines, first) in [(1, 4999), (3, 4997), (4000, 1000), (9999, 0)] {
            let shown = all(&path, LogOptions { tail_lines: Some(lines), ..LogOptions::default() }).await;
            assert_eq!(shown.lines().next(), Some(first.to_string().as_str()));
            assert_eq!(shown.lines().last(), Some("4999"));
        }
        assert_eq!(all(&path, LogOptions { tail_lines: Some(0), ..LogOptions::default() }).await, "");
    }

    #[tokio::test]
    async fn following_goes_on_through_a_rotation_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut writer = fs::File::create(&path).unwrap();
        writer.write_all(line("one").as_bytes()).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let (sink, mut source) = mpsc::channel(10);
        let reading = tokio::spawn({
            let (path, ended) = (path.clone(), Arc::clone(&ended));
            async move {
                let options = LogOptions { follow: true, ..LogOptions::default() };
                read(&path, &options, || std::future::ready(ended.load(Ordering::SeqCst)), sink).await.unwrap();
            }
        });
        assert_eq!(source.recv().await.unwrap(), "one\n");
        writer.write_all(line("two").as_bytes()).unwrap();
        fs::rename(&path, folder.path().join("0.log.1")).unwrap();
        writer.write_all(line("three").as_bytes()).unwrap();
        fs::write(&path, line("four")).unwrap();
        let mut text = String::new();
        while !text.ends_with("four\n") {
            text += std::str::from_utf8(&source.recv().await.unwrap()).unwrap();
        }
        assert_eq!(text, "two\nthree\nfour\n");
        ended.store(true, Ordering::SeqCst);
        assert_eq!(source.recv().await, None, "the stream ends with the container");
        reading.await.unwrap();
    }
}
