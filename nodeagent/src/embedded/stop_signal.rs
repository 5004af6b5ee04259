//! The signal that an image wants to be stopped by.

use std::str::FromStr;

use nix::sys::signal::Signal;

/// A signal by name (`SIGTERM`, `TERM`) or number, as images give it.
pub fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    Signal::from_str(&name).ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_as_images_write_them() {
        for (text, expected) in [("SIGTERM", Some(15)), ("quit", Some(3)), ("9", Some(9)), ("0", None), ("SIGWHAT", None)] {
            assert_eq!(parse_signal(text), expected, "{text}");
        }
    }
}
