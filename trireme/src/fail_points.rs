//! Crashes on demand, for tests: a master that is told the name of a fail point kills itself when it gets there.
//!
//! `TRIREME_FAIL_POINT=log/append/after trireme master …` dies where the point is reached for the first time, `…:3` for the third.
//! With `TRIREME_FAIL_POINT=-` the same words may come later, as lines on standard input. Released binaries have no fail points.

use std::{env, io::BufRead, thread};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use trireme_storage::fail_point;

const VARIABLE: &str = "TRIREME_FAIL_POINT";
/// In place of a point: read points from standard input.
const STANDARD_INPUT: &str = "-";

/// Arms what the environment names.
///
/// # Errors
/// When it names no fail point, or this build has none.
pub fn arm_from_environment() -> Result<()> {
    let Ok(wanted) = env::var(VARIABLE) else { return Ok(()) };
    let context = || format!("{VARIABLE}={wanted}");
    if !fail_point::ENABLED {
        return Err(fail_point::ArmError::Absent).with_context(context);
    }
    if wanted != STANDARD_INPUT {
        return arm(&wanted).with_context(context);
    }
    let obey = || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Err(error) = arm(line.trim()) {
                remark!("fail point refused: {error:#}");
            }
        }
    };
    thread::Builder::new().name("fail-points".to_owned()).spawn(obey).map(|_| ()).with_context(context)
}

fn arm(wanted: &str) -> Result<()> {
    let (point, nth) = parse(wanted)?;
    let name = point.to_owned();
    fail_point::arm(point, None, nth, move || die(&name))?;
    remark!("fail point armed: {point}");
    Ok(())
}

/// `NAME`, or `NAME:N` for the Nth time that it is reached.
fn parse(wanted: &str) -> Result<(&str, u64)> {
    let Some((point, nth)) = wanted.split_once(':') else { return Ok((wanted, 1)) };
    let nth = nth.parse().ok().filter(|nth| *nth > 0).with_context(|| format!("`{nth}` is no number from 1 on"))?;
    Ok((point, nth))
}

/// `kill -9` of this process by itself: no destructor runs, nothing is flushed.
fn die(point: &str) {
    remark!("fail point reached: {point}");
    if let Err(error) = kill(Pid::this(), Signal::SIGKILL) {
        remark!("this process cannot kill itself: {error}");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_alone_or_with_a_count() {
        assert_eq!(parse("log/append/after").unwrap(), ("log/append/after", 1));
        assert_eq!(parse("log/append/after:3").unwrap(), ("log/append/after", 3));
        for wrong in ["log/append/after:", "log/append/after:0", "log/append/after:x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(arm("no/such/point").is_err());
    }
}
