//! Certificates made anew before their time is over, by whoever has the authority's key.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use trireme_api::clock::Clock;

use super::{Authority, Certificate, KeyFolder, Lifetime};

/// The longest and the shortest pause between two looks at the certificates.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Which certificates are made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    /// Those with less than a third of their time left.
    Due,
}

/// What a look at certificates came to.
#[derive(Debug, Default)]
pub struct Renewed {
    /// The certificates that were made anew.
    pub files: Vec<PathBuf>,
    /// What could not be, and why.
    pub failures: Vec<String>,
    /// In how many seconds the next one is due.
    pub next_due_seconds: Option<u64>,
}

impl Renewed {
    /// How long to wait before the next look.
    pub fn pause(&self) -> Duration {
        let due = Duration::from_secs(self.next_due_seconds.unwrap_or(u64::MAX));
        due.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }

    fn note_due(&mut self, seconds: u64) {
        self.next_due_seconds = Some(self.next_due_seconds.map_or(seconds, |known| known.min(seconds)));
    }
}

/// What certificates are renewed with.
pub struct Renewal<'a> {
    pub authority: &'a Authority,
    pub which: Which,
    /// As long as before, if it is not given.
    pub lifetime: Option<Lifetime>,
    pub now: Timestamp,
}

impl Renewal<'_> {
    /// Makes those of `names` in `folder` anew that are to be, with the same names and addresses. What cannot be renewed does not keep
    /// the rest from it.
    pub fn folder(&self, folder: &Path, names: &[String], renewed: &mut Renewed) {
        let files = KeyFolder::new(folder);
        for name in names {
            if let Err(error) = self.one(&files, name, renewed) {
                renewed.failures.push(format!("cannot renew {}: {error:#}", files.certificate(name).display()));
            }
        }
    }

    fn one(&self, files: &KeyFolder, name: &str, renewed: &mut Renewed) -> Result<()> {
        let own = Certificate::parse(self.authority.certificate())?;
        let path = files.certificate(name);
        let text = std::fs::read_to_string(&path).context("it cannot be read")?;
        let certificate = Certificate::parse(&text)?;
        ensure!(certificate.is_signed_by(&own), "it is not of this authority");
        // One that ends with its authority cannot be made to last longer.
        let is_due = certificate.is_due(self.now) && certificate.not_after < own.not_after;
        if self.which == Which::Due && !is_due {
            renewed.note_due(certificate.lifetime().until_due(certificate.left_seconds(self.now)).max(1));
            return Ok(());
        }
        let lifetime = self.lifetime.unwrap_or_else(|| certificate.lifetime());
        files.write(name, &self.authority.issue(&certificate.subject, lifetime, self.now)?)?;
        renewed.files.push(path);
        renewed.note_due(lifetime.as_duration().as_secs() * 2 / 3);
        Ok(())
    }
}

/// Renews what is due in a machine's folder, with the authority in another one, until `shutdown`.
pub async fn keep(authority_dir: PathBuf, folder: PathBuf, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    loop {
        let (from, folder, now) = (authority_dir.clone(), folder.clone(), clock.now());
        let pause = renew_by_itself(move || due(&from, &folder, now)).await;
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

fn due(authority_dir: &Path, folder: &Path, now: Timestamp) -> Result<Renewed> {
    let authority = Authority::load(authority_dir)?;
    let _lock = KeyFolder::new(authority_dir).lock()?;
    let mut renewed = Renewed::default();
    let renewal = Renewal { authority: &authority, which: Which::Due, lifetime: None, now };
    renewal.folder(folder, &KeyFolder::new(folder).names()?, &mut renewed);
    Ok(renewed)
}

/// Renews, says what was done, and tells how long to wait before it is done again.
pub async fn renew_by_itself(renew: impl FnOnce() -> Result<Renewed> + Send + 'static) -> Duration {
    let renewing = tokio::task::spawn_blocking(renew).await;
    let renewed = renewing.map_err(anyhow::Error::from).and_then(|renewed| renewed).unwrap_or_else(|error| {
        error!("certificates cannot be renewed: {error:#}");
        Renewed::default()
    });
    for path in &renewed.files {
        info!(path = %path.display(), "renewed a certificate");
    }
    for failure in &renewed.failures {
        warn!("{failure}");
    }
    renewed.pause()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Subject;

    #[test]
    fn what_is_due_is_made_anew_with_the_same_names_and_lifetime() {
        let place = tempfile::tempdir().unwrap();
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let now = at("2026-01-01T00:00:00Z");
        let authority = Authority::open(place.path(), now).unwrap();
        let files = KeyFolder::new(place.path());
        let subject = Subject::node("n1", vec!["10.0.0.1".parse().unwrap()]);
        files.write("short", &authority.issue(&subject, Lifetime::days(3), now).unwrap()).unwrap();
        files.write("long", &authority.issue(&subject, Lifetime::days(300), now).unwrap()).unwrap();
        let names = files.names().unwrap();
        let renew = |which, lifetime, now| {
            let mut renewed = Renewed::default();
            Renewal { authority: &authority, which, lifetime, now }.folder(place.path(), &names, &mut renewed);
            assert_eq!(renewed.failures, Vec::<String>::new());
            renewed
        };

        let none = renew(Which::Due, None, now);
        assert!(none.files.is_empty());
        assert_eq!(none.next_due_seconds, Some(2 * 24 * 3600));
        assert_eq!(none.pause(), LONGEST_PAUSE);

        let later = at("2026-01-03T12:00:00Z");
        let before = files.read("short").unwrap();
        assert_eq!(renew(Which::Due, None, later).files, [files.certificate("short")]);
        let after = files.read("short").unwrap();
        assert_ne!(after.key, before.key);
        let read = Certificate::parse(&after.certificate).unwrap();
        assert_eq!((read.subject.clone(), read.left_seconds(later)), (subject, 3 * 24 * 3600));

        assert_eq!(renew(Which::All, Some(Lifetime::days(7)), later).files.len(), 2);
        let all =
            files.names().unwrap().into_iter().map(|name| Certificate::parse(&files.read(&name).unwrap().certificate).unwrap());
        assert!(all.into_iter().all(|certificate| certificate.left_seconds(later) == 7 * 24 * 3600));
    }

    #[test]
    fn certificates_of_another_authority_are_left_alone() {
        let (place, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let authority = Authority::open(place.path(), now).unwrap();
        let foreign = Authority::open(other.path(), now).unwrap();
        let files = KeyFolder::new(place.path());
        files.write("api", &foreign.issue(&Subject::admin(), Lifetime::days(1), now).unwrap()).unwrap();
        let before = files.read("api").unwrap();
        let mut renewed = Renewed::default();
        let renewal = Renewal { authority: &authority, which: Which::All, lifetime: None, now };
        renewal.folder(place.path(), &["api".to_owned()], &mut renewed);
        assert!(renewed.failures[0].ends_with("api.crt: it is not of this authority"), "{:?}", renewed.failures);
        assert_eq!(files.read("api").unwrap().certificate, before.certificate);
    }
}
