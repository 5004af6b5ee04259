//! Pulls images from registries by the OCI distribution protocol.

use std::{collections::BTreeMap, net::IpAddr, path::Path, sync::Arc};

use futures::{StreamExt, TryStreamExt};
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    manifest::OciDescriptor,
    secrets::RegistryAuth,
};
use tokio::io::AsyncWriteExt;

use super::{
    ImageError,
    archive::architecture,
    bytes::{HashingReader, digest_of},
    reference::ImageReference,
    store::{ImageConfiguration, ImageRecord, ImageStore},
};
use crate::runtime::RegistryCredentials;

const CONCURRENT_LAYERS: usize = 3;

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Registries (`host` or `host:port`) spoken to in plain HTTP. Those on loopback always are.
    pub plain_http: Vec<String>,
    /// For a registry, those to ask before it.
    pub mirrors: BTreeMap<String, Vec<String>>,
}

impl ImageStore {
    /// Pulls the image and returns it. Several calls for one image share one download.
    ///
    /// Credentials are tried in their order, then none.
    pub async fn pull(
        &self,
        options: &RegistryOptions,
        reference: &str,
        credentials: &[RegistryCredentials],
    ) -> Result<ImageRecord, ImageError> {
        let reference = ImageReference::parse(reference)?;
        let _one_at_a_time = self.only_one(&reference.to_string()).await;
        if let Some(digest) = &reference.digest
            && let Some(record) = self.find(&reference.by_digest(digest))?
        {
            return Ok(record);
        }
        let mut logins: Vec<RegistryAuth> =
            credentials.iter().map(|login| RegistryAuth::Basic(login.username.clone(), login.password.clone())).collect();
        logins.push(RegistryAuth::Anonymous);
        let mut sources = options.mirrors.get(&reference.registry).cloned().unwrap_or_default();
        sources.push(reference.registry.clone());

        let mut last = None;
        for source in &sources {
            let client = client(options, source)?;
            for login in &logins {
                match self.pull_from(&client, source, login, &reference).await {
                    Err(error @ (ImageError::Refused(_) | ImageError::Unreachable(_))) => last = Some(error),
                    result => return result,
                }
            }
        }
        Err(last.unwrap_or_else(|| ImageError::Refused(format!("no registry to pull {reference} from"))))
    }

    async fn pull_from(
        &self,
        client: &Client,
        source: &str,
        login: &RegistryAuth,
        reference: &ImageReference,
    ) -> Result<ImageRecord, ImageError> {
        let remote = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => Reference::with_digest(source.to_owned(), reference.repository.clone(), digest.clone()),
            (None, tag) => {
                let tag = tag.clone().unwrap_or_else(|| "latest".to_owned());
                Reference::with_tag(source.to_owned(), reference.repository.clone(), tag)
            }
        };
        let failed = |error| failure(reference, error);
        let (manifest, manifest_digest, list_digest) =
            client.pull_image_manifest_and_list_digest(&remote, login).await.map_err(failed)?;
        if let Some(wanted) = &reference.digest
            && *wanted != manifest_digest
            && Some(wanted) != list_digest.as_ref()
        {
            return Err(ImageError::Invalid(format!("the registry answered {wanted} with manifest {manifest_digest}")));
        }

        let mut configuration_bytes = Vec::new();
        client.pull_blob(&remote, &manifest.config, &mut configuration_bytes).await.map_err(failed)?;
        let found = digest_of(&configuration_bytes);
        if found != manifest.config.digest {
            return Err(ImageError::Invalid(format!("blob {} has digest {found}", manifest.config.digest)));
        }
        let configuration = ImageConfiguration::parse(&configuration_bytes)?;
        let diff_ids = configuration.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::Invalid(format!("{reference}: manifest and configuration name different layers")));
        }

        let guard = Arc::new(self.blocking(ImageStore::content_guard).await?);
        futures::stream::iter(manifest.layers.into_iter().zip(diff_ids).map(|(layer, diff_id)| {
            let (guard, remote) = (guard.clone(), &remote);
            async move {
                let _one_at_a_time = self.only_one(&diff_id).await;
                if self.has_layer(&diff_id) {
                    return Ok(());
                }
                let folder = self.temporary_folder()?;
                let file = folder.path.join("blob");
                download(client, remote, &layer, &file).await.map_err(|error| match error {
                    DownloadError::Registry(error) => failure(reference, error),
                    DownloadError::Image(error) => error,
                })?;
                let digest = layer.digest;
                self.blocking(move |store| {
                    // The guard lives as long as this thread works, even if the caller gave up.
                    let guard = guard;
                    let blob = std::fs::File::open(&file).map_err(ImageError::at("cannot open", &file))?;
                    let mut blob = HashingReader::new(blob);
                    store.add_layer(&guard, &diff_id, &mut blob)?;
                    std::io::copy(&mut blob, &mut std::io::sink()).map_err(ImageError::at("cannot read", &file))?;
                    let found = blob.digest();
                    drop(folder);
                    if found == digest { Ok(()) } else { Err(ImageError::Invalid(format!("blob {digest} has digest {found}"))) }
                })
                .await
            }
        }))
        .buffer_unordered(CONCURRENT_LAYERS)
        .try_collect::<()>()
        .await?;

        let mut names = vec![reference.to_string(), reference.by_digest(&manifest_digest)];
        names.extend(list_digest.map(|digest| reference.by_digest(&digest)));
        if reference.digest.is_some() {
            names.remove(0);
        }
        self.blocking(move |store| {
            let guard = guard;
            store.commit(&guard, &configuration_bytes, &names)
        })
        .await
    }

    /// Waits until nobody else in this process works on `key`.
    async fn only_one(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut in_flight = self.in_flight.lock();
            in_flight.retain(|_, lock| lock.strong_count() > 0);
            match in_flight.get(key).and_then(std::sync::Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    in_flight.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }

    /// Runs work with the store on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => Err(ImageError::Io { context: "image store".to_owned(), source: std::io::Error::other(error) }),
        }
    }
}

enum DownloadError {
    Registry(OciDistributionError),
    Image(ImageError),
}

async fn download(client: &Client, image: &Reference, layer: &OciDescriptor, path: &Path) -> Result<(), DownloadError> {
    let write_error = |error| DownloadError::Image(ImageError::at("cannot write", path)(error));
    let mut file = tokio::fs::File::create(path).await.map_err(write_error)?;
    let mut stream = client.pull_blob_stream(image, layer).await.map_err(DownloadError::Registry)?;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| DownloadError::Registry(OciDistributionError::IoError(error)))?;
        file.write_all(&chunk).await.map_err(write_error)?;
    }
    file.flush().await.map_err(write_error)
}

fn client(options: &RegistryOptions, registry: &str) -> Result<Client, ImageError> {
    let plain = is_loopback(registry) || options.plain_http.iter().any(|known| known == registry);
    let config = ClientConfig {
        protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(std::time::Duration::from_secs(15)),
        read_timeout: Some(std::time::Duration::from_secs(60)),
        platform_resolver: Some(Box::new(|entries| {
            let ours = entries.iter().find(|entry| {
                entry.platform.as_ref().is_some_and(|platform| {
                    platform.os.to_string() == "linux" && platform.architecture.to_string() == architecture()
                })
            });
            ours.map(|entry| entry.digest.clone())
        })),
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| ImageError::Unreachable(format!("no client for registry {registry}: {error}")))
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.rfind(':') {
        Some(colon) if !registry.ends_with(']') => &registry[..colon],
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn failure(reference: &ImageReference, error: OciDistributionError) -> ImageError {
    let message = format!("failed to pull image \"{reference}\": {error}");
    match &error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => ImageError::Unreachable(message),
        OciDistributionError::ServerError { code, .. } if *code >= 500 => ImageError::Unreachable(message),
        OciDistributionError::RegistryError { envelope, .. }
            if envelope.errors.iter().any(|error| error.code == OciErrorCode::Toomanyrequests) =>
        {
            ImageError::Unreachable(message)
        }
        OciDistributionError::DigestError(_) => ImageError::Invalid(message),
        _ => ImageError::Refused(message),
    }
}
