//! Having a container's image on the machine, by its `imagePullPolicy` (`pkg/kubelet/images/image_manager.go`).

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use serde::Deserialize;

use crate::{
    agent::Agent,
    events::Severity,
    pod::{
        memory::{ContainerMemory, Waiting},
        model::{Slot, spec},
    },
    runtime::{Image, RegistryCredentials, RuntimeError},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

fn policy(slot: &Slot<'_>) -> PullPolicy {
    match slot.container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ if is_latest(slot.container.image.as_deref().unwrap_or_default()) => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

/// Whether a reference names no version, or `latest`.
fn is_latest(reference: &str) -> bool {
    let last = reference.rsplit('/').next().unwrap_or_default();
    !last.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// Makes sure of the image; pulls it where the policy says so.
///
/// # Errors
/// The waiting reason and message of the container.
pub async fn ensure(agent: &Agent, pod: &Pod, slot: &Slot<'_>, memory: &mut ContainerMemory) -> Result<Image, Waiting> {
    let reference = slot.container.image.clone().unwrap_or_default();
    let tell = |severity, reason, message: String| agent.recorder.container(pod, slot.name(), severity, reason, message);
    let waiting = |reason: &str, message: String| Waiting { reason: reason.to_owned(), message };
    let policy = policy(slot);
    let present = agent.runtime.image(&reference).await.map_err(|error| {
        let message = format!("Failed to inspect image {reference:?}: {error}");
        tell(Severity::Warning, "InspectFailed", message.clone());
        waiting("ImageInspectError", message)
    })?;
    match (policy, present) {
        (PullPolicy::IfNotPresent | PullPolicy::Never, Some(image)) => {
            tell(Severity::Normal, "Pulled", format!("Container image {reference:?} already present on machine"));
            return Ok(image);
        }
        (PullPolicy::Never, None) => {
            let message = format!("Container image {reference:?} is not present with pull policy of Never");
            tell(Severity::Warning, "ErrImageNeverPull", message.clone());
            return Err(waiting("ErrImageNeverPull", message));
        }
        _ => {}
    }
    let now = agent.clock.now();
    if memory.pulls.waiting_since_update(now).is_some() {
        tell(Severity::Normal, "BackOff", format!("Back-off pulling image {reference:?}"));
        let cause = memory.waiting.as_ref().map(|before| match before.reason.as_str() {
            "ImagePullBackOff" => before.message.clone(),
            reason => format!("Back-off pulling image {reference:?}: {reason}: {}", before.message),
        });
        return Err(waiting("ImagePullBackOff", cause.unwrap_or_else(|| format!("Back-off pulling image {reference:?}"))));
    }
    tell(Severity::Normal, "Pulling", format!("Pulling image {reference:?}"));
    let credentials = credentials(agent, pod, &reference).await;
    match agent.runtime.pull_image(&reference, &credentials).await {
        Ok(image) => {
            memory.pulls.reset();
            let took = Duration::try_from(agent.clock.now().duration_since(now)).unwrap_or_default();
            let took = format!("{}.{:03}s", took.as_secs(), took.subsec_millis());
            let message = format!(
                "Successfully pulled image {reference:?} in {took} ({took} including waiting). Image size: {} bytes.",
                image.size_bytes
            );
            tell(Severity::Normal, "Pulled", message);
            Ok(image)
        }
        Err(error) => {
            // A pull may take longer than the delay after it.
            let ended = agent.clock.now();
            memory.pulls.advance(ended, ended);
            let reason = match &error {
                RuntimeError::Image { reason, .. } => reason,
                _ => "ErrImagePull",
            };
            tell(Severity::Warning, "Failed", format!("Failed to pull image {reference:?}: {error}"));
            Err(waiting(reason, error.to_string()))
        }
    }
}

/// The credentials in the pod's pull secrets for the image's registry. Secrets that are missing are passed over.
async fn credentials(agent: &Agent, pod: &Pod, reference: &str) -> Vec<RegistryCredentials> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(agent.client.clone(), namespace);
    let mut found = Vec::new();
    for secret in spec(pod).image_pull_secrets.iter().flatten() {
        let Ok(Some(secret)) = secrets.get_opt(&secret.name).await else { continue };
        for data in secret.data.iter().flatten() {
            found.extend(match data.0.as_str() {
                ".dockerconfigjson" => {
                    serde_json::from_slice::<DockerConfig>(&data.1.0).map(|config| matching(config.auths, reference))
                }
                ".dockercfg" => serde_json::from_slice(&data.1.0).map(|auths| matching(auths, reference)),
                _ => continue,
            });
        }
    }
    found.into_iter().flatten().collect()
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// `username:password` in base64.
    #[serde(default)]
    auth: String,
}

fn matching(auths: BTreeMap<String, DockerAuth>, reference: &str) -> Vec<RegistryCredentials> {
    let mut fitting: Vec<_> = auths.into_iter().filter(|(key, _)| is_for(key, reference)).collect();
    // The most special first.
    fitting.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
    fitting.into_iter().filter_map(|(_, auth)| auth.credentials()).collect()
}

/// Whether an entry is for the image: a host, or a host and the beginning of a path (`pkg/credentialprovider/keyring.go`; what
/// older Docker versions wrote has the API's version for a path). A `*` stands for one part of the host name.
fn is_for(key: &str, reference: &str) -> bool {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = ["v1", "v2"].iter().find_map(|version| path.strip_prefix(version)).unwrap_or(path);
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let registry = registry(reference);
    let repository = reference.strip_prefix(registry).unwrap_or(reference);
    let (known, wanted) = (host.split('.'), registry.split('.'));
    let same_host = known.clone().count() == wanted.clone().count()
        && known.zip(wanted).all(|(known, wanted)| known == "*" || known == wanted);
    same_host && repository.trim_start_matches('/').starts_with(path.trim_matches('/'))
}

/// The host in front of a reference; Docker Hub where there is none.
fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

impl DockerAuth {
    fn credentials(self) -> Option<RegistryCredentials> {
        if !self.username.is_empty() {
            return Some(RegistryCredentials { username: self.username, password: self.password });
        }
        let text = String::from_utf8(STANDARD.decode(self.auth).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(RegistryCredentials { username: username.to_owned(), password: password.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_without_a_version_are_the_latest() {
        for (reference, expected) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:abc", false),
        ] {
            assert_eq!(is_latest(reference), expected, "{reference}");
        }
    }

    #[test]
    fn credentials_are_for_their_registry() {
        let config: DockerConfig = serde_json::from_str(
            r#"{ "auths": { "https://index.docker.io/v1/": { "auth": "dXNlcjpwYXNz" }, "r.example:5000": { "username": "u", "password": "p" } } }"#,
        )
        .unwrap();
        let found = |reference| {
            let config: BTreeMap<String, DockerAuth> = config
                .auths
                .iter()
                .map(|(key, auth)| {
                    let (username, password, auth) = (auth.username.clone(), auth.password.clone(), auth.auth.clone());
                    (key.clone(), DockerAuth { username, password, auth })
                })
                .collect();
            matching(config, reference)
                .into_iter()
                .map(|found| format!("{}:{}", found.username, found.password))
                .collect::<Vec<_>>()
        };
        assert_eq!(found("library/nginx"), ["user:pass"]);
        assert_eq!(found("r.example:5000/x/y:1"), ["u:p"]);
        assert!(found("other.example/x").is_empty());
        for (key, reference, expected) in [
            ("r.example/team", "r.example/team/web:1", true),
            ("r.example/team", "r.example/other/web:1", false),
            ("https://r.example/v2/", "r.example/other/web:1", true),
            ("*.example", "r.example/web", true),
            ("*.example", "a.r.example/web", false),
            ("docker.io/library", "library/nginx", true),
            ("docker.io/other", "library/nginx", false),
        ] {
            assert_eq!(is_for(key, reference), expected, "{key} for {reference}");
        }
    }
}
