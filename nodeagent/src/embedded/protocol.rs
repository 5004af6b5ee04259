//! What the agent and a pod's shim say to each other: one request for each connection, as JSON behind a big-endian
//! four-byte length. [`Request::Watch`] keeps its connection and gets a [`Response::Changed`] at each change.

use std::io::{self, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Nothing larger is read.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Ping,
    /// Creates and starts the container whose record lies in its folder.
    Start {
        id: String,
    },
    /// Sends a signal to the container's first process.
    Signal {
        id: String,
        signal: i32,
    },
    /// Kills every process of the container.
    Kill {
        id: String,
    },
    /// Answers when the container has exited.
    Wait {
        id: String,
    },
    Exec {
        id: String,
        command: Vec<String>,
        timeout_ms: u64,
    },
    ReopenLog {
        id: String,
    },
    Watch,
    /// Kills all containers and ends the shim. The answer comes when the containers have exited.
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    Done,
    /// There is no such container, or it does not run.
    NotRunning,
    Failed {
        message: String,
    },
    Executed {
        exit_code: i32,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    },
    TimedOut,
    Changed,
}

/// The message with its length before it.
pub fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Takes one message from the front of the buffer, if a whole one is there.
pub fn unframe<T: DeserializeOwned>(buffer: &[u8]) -> io::Result<Option<T>> {
    let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_MESSAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes is too large")));
    }
    match rest.get(..length) {
        Some(body) => Ok(Some(serde_json::from_slice(body)?)),
        None => Ok(None),
    }
}

pub fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    stream.write_all(&frame(message)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_only_when_it_is_whole() {
        let request = Request::Exec { id: "c".to_owned(), command: vec!["ls".to_owned()], timeout_ms: 5 };
        let frame = frame(&request).unwrap();
        for cut in 0..frame.len() {
            assert_eq!(unframe::<Request>(&frame[..cut]).unwrap(), None);
        }
        assert_eq!(unframe::<Request>(&frame).unwrap(), Some(request));
    }

    #[test]
    fn an_endless_message_is_refused() {
        assert!(unframe::<Request>(&[0xff; 8]).is_err());
    }
}
