//! What commands print.
//!
//! A reader may go away before everything is printed (`trireme status | head -1`). That ends nothing: the command finishes what it
//! does, quietly. Any other failure to print, as on a full disk, makes the command fail when it is done ([`finish`]).

use std::{
    fmt::Arguments,
    io::{self, Write},
};

use anyhow::{Context, Result};
use parking_lot::Mutex;

/// Prints a line to the standard output.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::output::result(format_args!("{}\n", format_args!($($part)*)))
    };
}

/// Prints a line to the standard error: what is not the command's result.
macro_rules! remark {
    ($($part:tt)*) => {
        $crate::output::remark(format_args!($($part)*))
    };
}

/// The first failure of the standard output.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints to the standard output, as it is.
pub fn result(text: Arguments<'_>) {
    write(&mut io::stdout().lock(), text, &mut FAILURE.lock());
}

/// Prints a line to the standard error. When that fails there is nobody left to tell.
pub fn remark(line: Arguments<'_>) {
    let _nobody_listens = writeln!(io::stderr().lock(), "{line}");
}

/// Ends the output of the process.
///
/// # Errors
/// When something could not be printed although somebody was there to read it.
pub fn finish() -> Result<()> {
    write(&mut io::stdout().lock(), format_args!(""), &mut FAILURE.lock());
    outcome(FAILURE.lock().take()).context("cannot write to the standard output")
}

/// Nothing is printed after a failure: a reader should not find a hole in the middle.
fn write(output: &mut impl Write, text: Arguments<'_>, failure: &mut Option<io::Error>) {
    if failure.is_none() {
        *failure = output.write_fmt(text).and_then(|()| output.flush()).err();
    }
}

fn outcome(failure: Option<io::Error>) -> io::Result<()> {
    match failure {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many writes, then fails.
    struct Limited {
        writes: usize,
        text: String,
        kind: io::ErrorKind,
    }

    impl Write for Limited {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.writes == 0 {
                self.writes = usize::MAX;
                return Err(self.kind.into());
            }
            self.writes -= 1;
            self.text.push_str(std::str::from_utf8(bytes).map_err(io::Error::other)?);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure_and_a_full_disk_is_one() {
        for (kind, fails) in [(io::ErrorKind::BrokenPipe, false), (io::ErrorKind::StorageFull, true)] {
            let (mut output, mut failure) = (Limited { writes: 1, text: String::new(), kind }, None);
            for line in ["one", "two", "three"] {
                write(&mut output, format_args!("{line}"), &mut failure);
            }
            assert_eq!(output.text, "one", "nothing follows what was lost");
            assert_eq!(outcome(failure).is_err(), fails, "{kind}");
        }
        assert!(outcome(None).is_ok());
    }
}
