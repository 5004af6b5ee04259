//! Loads images from an OCI layout folder, or from an OCI or `docker save` archive (plain, gzip or zstd).

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;
use tar::{Archive, EntryType};

use super::{
    ImageError,
    bytes::{HashingReader, decompress, digest_of},
    reference::{ImageReference, is_sha256},
    store::{ImageConfiguration, ImageRecord, ImageStore, TemporaryFolder},
};

/// Manifests and configurations are small; larger ones are refused instead of read into memory.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
const MAX_INDEX_DEPTH: u32 = 4;
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

impl ImageStore {
    /// Loads the image and names it. An archive of several images must hold one of that name. Blocking.
    pub fn load(&self, file: &Path, reference: &str) -> Result<ImageRecord, ImageError> {
        let reference = ImageReference::parse(reference)?;
        if file.is_dir() {
            return self.load_from(&Folder { root: file.to_owned() }, &reference);
        }
        let files = ArchiveFiles::extract(file, self.temporary_folder()?)?;
        self.load_from(&files, &reference)
    }

    fn load_from(&self, source: &dyn Source, reference: &ImageReference) -> Result<ImageRecord, ImageError> {
        if source.has("index.json") {
            return self.load_layout(source, reference);
        }
        if source.has("manifest.json") {
            return self.load_docker(source, reference);
        }
        Err(ImageError::Invalid(
            "neither an OCI layout nor a docker archive: index.json and manifest.json are missing".to_owned(),
        ))
    }

    fn load_layout(&self, source: &dyn Source, reference: &ImageReference) -> Result<ImageRecord, ImageError> {
        let index: IndexDocument = parse("index.json", &read_document(source, "index.json")?)?;
        let descriptor = choose_named(&index.manifests, reference)?;
        let (manifest, manifest_digest) = resolve(source, descriptor, 0)?;
        let config = read_blob(source, &manifest.config.digest)?;
        let configuration = ImageConfiguration::parse(&config)?;
        let diff_ids = &configuration.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::Invalid(format!(
                "the manifest has {} layers, the configuration {}",
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        let guard = self.content_guard()?;
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            if self.has_layer(diff_id) {
                continue;
            }
            let mut blob = HashingReader::new(source.open(&blob_name(&layer.digest)?)?);
            self.add_layer(&guard, diff_id, &mut blob)?;
            io::copy(&mut blob, &mut io::sink()).map_err(ImageError::io(format!("cannot read {}", layer.digest)))?;
            let found = blob.digest();
            if found != layer.digest {
                return Err(ImageError::Invalid(format!("blob {} has digest {found}", layer.digest)));
            }
        }
        self.commit(&guard, &config, &[reference.to_string(), reference.by_digest(&manifest_digest)])
    }

    fn load_docker(&self, source: &dyn Source, reference: &ImageReference) -> Result<ImageRecord, ImageError> {
        let manifests: Vec<DockerManifest> = parse("manifest.json", &read_document(source, "manifest.json")?)?;
        let named = |manifest: &&DockerManifest| {
            manifest.repo_tags.iter().flatten().any(|tag| ImageReference::parse(tag).is_ok_and(|tag| tag == *reference))
        };
        let manifest = match (manifests.as_slice(), manifests.iter().find(named)) {
            (_, Some(manifest)) | ([manifest], None) => manifest,
            ([], None) => return Err(ImageError::Invalid("the archive holds no image".to_owned())),
            (several, None) => {
                return Err(ImageError::Invalid(format!("the archive holds {} images, none of them {reference}", several.len())));
            }
        };
        let config = read_document(source, &manifest.config)?;
        let configuration = ImageConfiguration::parse(&config)?;
        if configuration.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::Invalid("manifest.json and the image's configuration name different layers".to_owned()));
        }
        let guard = self.content_guard()?;
        for (layer, diff_id) in manifest.layers.iter().zip(&configuration.rootfs.diff_ids) {
            if !self.has_layer(diff_id) {
                self.add_layer(&guard, diff_id, source.open(layer)?)?;
            }
        }
        self.commit(&guard, &config, &[reference.to_string()])
    }
}

/// The files of an image, by name.
trait Source {
    fn has(&self, name: &str) -> bool;
    fn open(&self, name: &str) -> Result<File, ImageError>;
}

struct Folder {
    root: PathBuf,
}

impl Source for Folder {
    fn has(&self, name: &str) -> bool {
        self.root.join(name).is_file()
    }

    fn open(&self, name: &str) -> Result<File, ImageError> {
        let path = self.root.join(plain_name(Path::new(name))?);
        File::open(&path).map_err(ImageError::at("cannot open", &path))
    }
}

/// An archive's regular files, extracted under numbers of our own: its names never reach the file system.
struct ArchiveFiles {
    _folder: TemporaryFolder,
    files: HashMap<PathBuf, PathBuf>,
    links: HashMap<PathBuf, PathBuf>,
}

impl ArchiveFiles {
    fn extract(archive: &Path, folder: TemporaryFolder) -> Result<ArchiveFiles, ImageError> {
        let unreadable = || format!("cannot read {}", archive.display());
        let file = File::open(archive).map_err(ImageError::at("cannot open", archive))?;
        let mut tar = Archive::new(decompress(file).map_err(ImageError::io(unreadable()))?);
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        for entry in tar.entries().map_err(ImageError::io(unreadable()))? {
            let mut entry = entry.map_err(ImageError::io(unreadable()))?;
            let name = plain_name(&entry.path().map_err(ImageError::io(unreadable()))?)?;
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    let path = folder.path.join(files.len().to_string());
                    let mut copy = File::create(&path).map_err(ImageError::at("cannot create", &path))?;
                    io::copy(&mut entry, &mut copy).map_err(ImageError::at("cannot write", &path))?;
                    files.insert(name, path);
                }
                kind @ (EntryType::Symlink | EntryType::Link) => {
                    let Some(target) = entry.link_name().map_err(ImageError::io(unreadable()))? else { continue };
                    let base = if kind == EntryType::Symlink { name.parent() } else { None };
                    let target = fold(&base.unwrap_or(Path::new("")).join(target));
                    links.insert(name, target);
                }
                _ => {}
            }
        }
        Ok(ArchiveFiles { _folder: folder, files, links })
    }

    fn find(&self, name: &str) -> Option<&PathBuf> {
        let name = fold(Path::new(name));
        self.files.get(&name).or_else(|| self.files.get(self.links.get(&name)?))
    }
}

impl Source for ArchiveFiles {
    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn open(&self, name: &str) -> Result<File, ImageError> {
        let path = self.find(name).ok_or_else(|| ImageError::Invalid(format!("the archive misses {name}")))?;
        File::open(path).map_err(ImageError::at("cannot open", path))
    }
}

#[derive(Deserialize)]
struct IndexDocument {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct ManifestDocument {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The machine's architecture by its OCI name.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn choose_named<'a>(manifests: &'a [Descriptor], reference: &ImageReference) -> Result<&'a Descriptor, ImageError> {
    let named = |descriptor: &&Descriptor| {
        NAME_ANNOTATIONS
            .iter()
            .filter_map(|key| descriptor.annotations.get(*key))
            .any(|name| Some(name) == reference.tag.as_ref() || ImageReference::parse(name).is_ok_and(|name| name == *reference))
    };
    match (manifests, manifests.iter().find(named)) {
        (_, Some(descriptor)) => Ok(descriptor),
        ([], None) => Err(ImageError::Invalid("the layout's index is empty".to_owned())),
        ([descriptor], None) => Ok(descriptor),
        (several, None) => match several.iter().find(|descriptor| is_ours(descriptor)) {
            Some(descriptor) => Ok(descriptor),
            None => Err(ImageError::Invalid(format!("the layout holds {} images, none of them {reference}", several.len()))),
        },
    }
}

fn is_ours(descriptor: &Descriptor) -> bool {
    descriptor.platform.as_ref().is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture())
}

fn resolve(source: &dyn Source, descriptor: &Descriptor, depth: u32) -> Result<(ManifestDocument, String), ImageError> {
    let bytes = read_blob(source, &descriptor.digest)?;
    if !descriptor.media_type.contains("index") && !descriptor.media_type.contains("manifest.list") {
        return Ok((parse("the manifest", &bytes)?, descriptor.digest.clone()));
    }
    if depth >= MAX_INDEX_DEPTH {
        return Err(ImageError::Invalid("image indexes are nested too deeply".to_owned()));
    }
    let index: IndexDocument = parse("the image index", &bytes)?;
    let ours = match index.manifests.as_slice() {
        [only] => Some(only),
        several => several.iter().find(|descriptor| is_ours(descriptor)),
    };
    let ours = ours.ok_or_else(|| ImageError::Invalid(format!("no image for linux/{} in the index", architecture())))?;
    resolve(source, ours, depth + 1)
}

fn read_blob(source: &dyn Source, digest: &str) -> Result<Vec<u8>, ImageError> {
    let bytes = read_document(source, &blob_name(digest)?)?;
    let found = digest_of(&bytes);
    if found != digest {
        return Err(ImageError::Invalid(format!("blob {digest} has digest {found}")));
    }
    Ok(bytes)
}

fn blob_name(digest: &str) -> Result<String, ImageError> {
    if !is_sha256(digest) {
        return Err(ImageError::Invalid(format!("{digest:?} is no sha256 digest")));
    }
    Ok(format!("blobs/{}", digest.replacen(':', "/", 1)))
}

fn read_document(source: &dyn Source, name: &str) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let read = source.open(name)?.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes);
    let count = read.map_err(ImageError::io(format!("cannot read {name}")))?;
    if count as u64 > MAX_DOCUMENT_BYTES {
        return Err(ImageError::Invalid(format!("{name} is larger than {MAX_DOCUMENT_BYTES} bytes")));
    }
    Ok(bytes)
}

fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::Invalid(format!("{what} cannot be read: {error}")))
}

/// The name without `.` components; one that is absolute or climbs is refused.
fn plain_name(name: &Path) -> Result<PathBuf, ImageError> {
    if name.components().any(|component| !matches!(component, Component::Normal(_) | Component::CurDir)) {
        return Err(ImageError::Invalid(format!("the archive holds the name {name:?}, which climbs out of it")));
    }
    Ok(fold(name))
}

/// Folds `.` and `..` as text.
fn fold(name: &Path) -> PathBuf {
    let mut folded = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => folded.push(part),
            Component::ParentDir => {
                folded.pop();
            }
            _ => {}
        }
    }
    folded
}
