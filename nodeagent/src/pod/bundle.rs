//! The ConfigMaps, Secrets and tokens that a pod refers to, fetched together so that what uses them can be pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, Pod, Secret, ServiceAccount, Volume},
    },
};
use kube::{Api, Client, api::PostParams};

use crate::pod::model::{all_slots, spec};

/// What a pod refers to. A name with `None` was asked for and is not in the API.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    pub config_maps: BTreeMap<String, Option<Content>>,
    pub secrets: BTreeMap<String, Option<Content>>,
    /// By audience and seconds of validity.
    pub tokens: BTreeMap<TokenKey, Token>,
}

/// A token of the pod's service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    /// When another one should be asked for.
    pub renew_at: Timestamp,
}

impl Token {
    /// One that was issued at `issued_at`. It is renewed when 80 % of its life are over, or a day
    /// (`pkg/kubelet/token/token_manager.go`).
    fn new(text: String, issued_at: Timestamp, expires_at: Timestamp) -> Token {
        let life = expires_at.duration_since(issued_at).max(SignedDuration::ZERO);
        let due = (life / 5 * 4).min(SignedDuration::from_hours(24));
        Token { text, renew_at: issued_at.checked_add(due).unwrap_or(issued_at) }
    }
}

/// The entries of a ConfigMap or Secret.
pub type Content = BTreeMap<String, Vec<u8>>;

/// What kind of service account token is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKey {
    pub audience: Option<String>,
    pub seconds: i64,
}

/// What a pod refers to, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
    pub tokens: BTreeSet<TokenKey>,
}

/// Collects the references of a pod's volumes and of its containers' environments.
pub fn references(pod: &Pod) -> References {
    let mut found = References::default();
    for slot in all_slots(pod) {
        for source in slot.container.env_from.iter().flatten() {
            found.config_maps.extend(source.config_map_ref.as_ref().map(|reference| reference.name.clone()));
            found.secrets.extend(source.secret_ref.as_ref().map(|reference| reference.name.clone()));
        }
        for from in slot.container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            found.config_maps.extend(from.config_map_key_ref.as_ref().map(|reference| reference.name.clone()));
            found.secrets.extend(from.secret_key_ref.as_ref().map(|reference| reference.name.clone()));
        }
    }
    for volume in spec(pod).volumes.iter().flatten() {
        found.volume(volume);
    }
    found
}

impl References {
    fn volume(&mut self, volume: &Volume) {
        self.config_maps.extend(volume.config_map.as_ref().map(|source| source.name.clone()));
        self.secrets.extend(volume.secret.as_ref().and_then(|source| source.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            self.config_maps.extend(source.config_map.as_ref().map(|source| source.name.clone()));
            self.secrets.extend(source.secret.as_ref().map(|source| source.name.clone()));
            self.tokens.extend(source.service_account_token.as_ref().map(|token| TokenKey {
                audience: token.audience.clone().filter(|audience| !audience.is_empty()),
                seconds: token.expiration_seconds.unwrap_or(3600),
            }));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.config_maps.is_empty() && self.secrets.is_empty() && self.tokens.is_empty()
    }
}

/// Fetches everything. What cannot be fetched because the API is away is taken from `known`, the last bundle.
///
/// # Errors
/// When the API is away (or refuses) and the thing was never fetched before.
pub async fn fetch(client: &Client, pod: &Pod, known: &Bundle, now: Timestamp) -> Result<Bundle, String> {
    let references = references(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut bundle = Bundle::default();
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    for name in references.config_maps {
        let content = match config_maps.get_opt(&name).await {
            Ok(object) => object.map(config_map_content),
            Err(error) => known.config_maps.get(&name).cloned().ok_or_else(|| failed("configmap", &name, &error))?,
        };
        bundle.config_maps.insert(name, content);
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in references.secrets {
        let content = match secrets.get_opt(&name).await {
            Ok(object) => object.map(|secret| raw(secret.data)),
            Err(error) => known.secrets.get(&name).cloned().ok_or_else(|| failed("secret", &name, &error))?,
        };
        bundle.secrets.insert(name, content);
    }
    for key in references.tokens {
        let known = known.tokens.get(&key);
        let token = match known.filter(|token| now < token.renew_at) {
            Some(token) => token.clone(),
            None => match token(client, pod, &key, now).await {
                Ok(token) => token,
                Err(error) => known.cloned().ok_or_else(|| format!("failed to fetch token: {error}"))?,
            },
        };
        bundle.tokens.insert(key, token);
    }
    Ok(bundle)
}

fn failed(kind: &str, name: &str, error: &kube::Error) -> String {
    format!("failed to get {kind} {name:?}: {error}")
}

fn config_map_content(object: ConfigMap) -> Content {
    let text = object.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
    text.chain(raw(object.binary_data)).collect()
}

fn raw(data: Option<BTreeMap<String, ByteString>>) -> Content {
    data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()
}

/// Asks for a token of the pod's service account that is bound to the pod (KEP-1205).
async fn token(client: &Client, pod: &Pod, key: &TokenKey, now: Timestamp) -> Result<Token, kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let spec = spec(pod);
    let account = spec.service_account_name.as_deref().unwrap_or("default");
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: key.audience.clone().map(|audience| vec![audience]),
            expiration_seconds: Some(key.seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        }),
        ..TokenRequest::default()
    };
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    let status = answer.status.unwrap_or_default();
    let expires_at = status.expiration_timestamp.map_or(now, |time| time.0);
    Ok(Token::new(status.token.unwrap_or_default(), now, expires_at))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_renewed_before_they_expire() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(Token::new(String::new(), at(1000), at(1000 + 3600)).renew_at, at(1000 + 2880));
        assert_eq!(Token::new(String::new(), at(1000), at(1000 + 1_000_000)).renew_at, at(1000 + 86400));
        assert_eq!(Token::new(String::new(), at(1000), at(10)).renew_at, at(1000));
    }

    #[test]
    fn every_reference_is_found() {
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "initContainers": [{ "name": "i", "envFrom": [{ "configMapRef": { "name": "a" } }] }],
            "containers": [{ "name": "c", "env": [
                { "name": "X", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
                { "name": "Y", "valueFrom": { "configMapKeyRef": { "name": "b", "key": "k" } } }] }],
            "volumes": [
                { "name": "v", "configMap": { "name": "d" } },
                { "name": "w", "projected": { "sources": [
                    { "secret": { "name": "t" } }, { "serviceAccountToken": { "path": "token", "expirationSeconds": 600 } }] } }],
        } }))
        .unwrap();
        let found = references(&pod);
        assert_eq!(found.config_maps, ["a", "b", "d"].map(String::from).into());
        assert_eq!(found.secrets, ["s", "t"].map(String::from).into());
        assert_eq!(found.tokens, [TokenKey { audience: None, seconds: 600 }].into());
    }
}
