//! The store of images on a machine. One folder may serve several node agents at once.
//!
//! ```text
//! index.json              which images there are, by id, and their references
//! index.lock              held while index.json is read and rewritten
//! content.lock            shared while layers are being added, exclusive while unused ones are deleted
//! blobs/sha256/<hex>      image configurations
//! layers/<hex>            unpacked layers by diffID (its first 32 digits: overlayfs limits the length of its options)
//! uses/<owner>/<id>       which image a container of a node agent runs from: it keeps the layers
//! temporary/              what is being downloaded or unpacked
//! ```
//! A layer or a blob appears under its name only when it is complete and verified, by a rename.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{
    ImageError,
    bytes::{HashingReader, decompress, digest_of, write_atomically},
    reference::{ImageReference, is_sha256},
    unpack::unpack_layer,
};
use crate::runtime::Image;

const FORMAT: u32 = 1;

/// One image: an OCI image configuration and the layers it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the image's configuration: `sha256:…`.
    pub id: String,
    /// Canonical names, by tag and by digest.
    pub references: BTreeSet<String>,
    /// diffIDs, the lowest first.
    pub layers: Vec<String>,
    pub size_bytes: u64,
    /// `config.User` of the image, if its user part is a number.
    pub user: Option<i64>,
}

/// The parts of an OCI image configuration that a container is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfiguration {
    #[serde(default)]
    pub config: Option<ProcessDefaults>,
    #[serde(default)]
    pub rootfs: RootFileSystem,
}

impl ImageConfiguration {
    /// Reads an image's configuration, whose `rootfs.diff_ids` become names of folders.
    ///
    /// # Errors
    /// When it is no image configuration, or a layer is named by anything but a sha256 digest.
    pub fn parse(bytes: &[u8]) -> Result<ImageConfiguration, ImageError> {
        let parsed: ImageConfiguration = serde_json::from_slice(bytes)
            .map_err(|error| ImageError::Invalid(format!("the image's configuration cannot be read: {error}")))?;
        parsed.rootfs.diff_ids.iter().try_for_each(|diff_id| verify_diff_id(diff_id))?;
        Ok(parsed)
    }
}

/// `config` of the image configuration; the field names are the specification's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProcessDefaults {
    pub user: Option<String>,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: Option<String>,
    pub stop_signal: Option<String>,
}

/// `rootfs` of the image configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFileSystem {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    format: u32,
    images: BTreeMap<String, ImageRecord>,
}

/// The image store; cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    root: Arc<PathBuf>,
    /// Whose containers this process runs: the name of a folder under `uses`.
    owner: Arc<str>,
    /// One lock for each layer or reference that is being fetched in this process, so that it is fetched once.
    pub(super) in_flight: Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>,
}

/// Keeps the store's content from being collected while an image is being put together.
pub(super) struct ContentGuard {
    _lock: File,
}

impl ImageStore {
    /// Opens or creates the store. `owner` names this node agent among those that share the store.
    pub fn open(root: &Path, owner: &str) -> Result<ImageStore, ImageError> {
        for folder in ["blobs/sha256", "layers", "uses", "temporary"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(ImageError::at("cannot create", &path))?;
        }
        let uses = root.join("uses").join(owner);
        fs::create_dir_all(&uses).map_err(ImageError::at("cannot create", &uses))?;
        let root = root.canonicalize().map_err(ImageError::at("cannot resolve", root))?;
        let store = ImageStore { root: Arc::new(root), owner: owner.into(), in_flight: Arc::default() };
        store.read_index()?;
        store.remove_leftovers()?;
        Ok(store)
    }

    /// The folder of the layers; a layer's own folder is [`ImageStore::layer_name`] in it.
    pub fn layers_folder(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The name of a layer's folder in [`ImageStore::layers_folder`].
    pub fn layer_name(diff_id: &str) -> String {
        hex_of(diff_id).chars().take(32).collect()
    }

    /// The image of that name, digest reference or id, if it is here.
    pub fn find(&self, reference: &str) -> Result<Option<ImageRecord>, ImageError> {
        let index = self.read_index()?;
        if let Some(record) = index.images.get(reference) {
            return Ok(Some(record.clone()));
        }
        let parsed = ImageReference::parse(reference)?;
        Ok(find_record(&index, &parsed).cloned())
    }

    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        Ok(self.read_index()?.images.into_values().collect())
    }

    /// The image's configuration.
    pub fn configuration(&self, id: &str) -> Result<ImageConfiguration, ImageError> {
        let path = self.blob_path(id);
        let bytes = fs::read(&path).map_err(ImageError::at("cannot read", &path))?;
        ImageConfiguration::parse(&bytes)
    }

    /// Notes that a container runs from the image, until [`ImageStore::release`]: its layers stay.
    pub fn hold(&self, container: &str, image_id: &str) -> Result<(), ImageError> {
        let _guard = self.content_guard()?;
        let path = self.use_path(container);
        write_atomically(&path, image_id.as_bytes()).map_err(ImageError::at("cannot write", &path))?;
        if self.read_index()?.images.contains_key(image_id) {
            return Ok(());
        }
        self.release(container)?;
        Err(ImageError::Invalid(format!("image {image_id} was removed")))
    }

    pub fn release(&self, container: &str) -> Result<(), ImageError> {
        let path = self.use_path(container);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::at("cannot remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Forgets the holds of this owner's containers that are not in the list (after a crash).
    pub fn retain_holds(&self, containers: &BTreeSet<String>) -> Result<(), ImageError> {
        let folder = self.root.join("uses").join(&*self.owner);
        for entry in fs::read_dir(&folder).map_err(ImageError::at("cannot list", &folder))? {
            let name = entry.map_err(ImageError::at("cannot list", &folder))?.file_name();
            let name = name.to_string_lossy();
            if !containers.contains(&*name) {
                self.release(&name)?;
            }
        }
        Ok(())
    }

    /// Takes the name from its image. An image without names, and layers that nothing uses, are deleted.
    /// An image id removes the image with all its names.
    pub fn remove(&self, reference: &str) -> Result<(), ImageError> {
        self.change_index(|index| {
            if index.images.remove(reference).is_some() {
                return Ok(());
            }
            let parsed = ImageReference::parse(reference)?;
            let Some(id) = find_record(index, &parsed).map(|record| record.id.clone()) else { return Ok(()) };
            if let Some(record) = index.images.get_mut(&id) {
                record.references.remove(&parsed.to_string());
                if parsed.digest.is_none() {
                    let repository = format!("{}@", parsed.name());
                    let tagged = format!("{}:", parsed.name());
                    if !record.references.iter().any(|other| other.starts_with(&tagged)) {
                        record.references.retain(|other| !other.starts_with(&repository));
                    }
                }
                if record.references.is_empty() {
                    index.images.remove(&id);
                }
            }
            Ok(())
        })?;
        self.collect_garbage()
    }

    /// Keeps other processes from collecting layers that are not in the index yet.
    pub(super) fn content_guard(&self) -> Result<ContentGuard, ImageError> {
        let path = self.root.join("content.lock");
        let lock = open_lock(&path)?;
        lock.lock_shared().map_err(ImageError::at("cannot lock", &path))?;
        Ok(ContentGuard { _lock: lock })
    }

    /// Whether the layer is here; one that has no digest for a name never is.
    pub(super) fn has_layer(&self, diff_id: &str) -> bool {
        self.layer_path(diff_id).is_ok_and(|path| path.is_dir())
    }

    /// A new empty folder for work in progress, on the store's file system; the caller's to delete or rename.
    pub(super) fn temporary_folder(&self) -> Result<TemporaryFolder, ImageError> {
        let path = self.root.join("temporary").join(format!("{}-{}", std::process::id(), uuid::Uuid::new_v4()));
        fs::create_dir_all(&path).map_err(ImageError::at("cannot create", &path))?;
        Ok(TemporaryFolder { path })
    }

    /// Unpacks a layer, plain or compressed, verifies its diffID, and puts it into the store. Blocking.
    pub(super) fn add_layer(&self, _guard: &ContentGuard, diff_id: &str, layer: impl Read) -> Result<(), ImageError> {
        let path = self.layer_path(diff_id)?;
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let folder = self.temporary_folder()?;
        let mut reader = HashingReader::new(decompress(layer).map_err(ImageError::io(format!("cannot read layer {diff_id}")))?);
        let root = folder.path.join("layer");
        fs::create_dir(&root).map_err(ImageError::at("cannot create", &root))?;
        fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(ImageError::at("cannot set the mode of", &root))?;
        let size_bytes =
            unpack_layer(&mut reader, &root).map_err(|source| ImageError::Layer { layer: diff_id.to_owned(), source })?;
        io::copy(&mut reader, &mut io::sink()).map_err(ImageError::io(format!("cannot read layer {diff_id}")))?;
        let found = reader.digest();
        if found != diff_id {
            return Err(ImageError::Invalid(format!("a layer has digest {found}, the image names {diff_id}")));
        }
        // The name vouches for the content, after a power failure too.
        File::open(&root)
            .and_then(|folder| Ok(nix::unistd::syncfs(folder)?))
            .map_err(ImageError::at("cannot flush to disk", &root))?;
        let size_file = self.layer_size_path(diff_id);
        write_atomically(&size_file, size_bytes.to_string().as_bytes()).map_err(ImageError::at("cannot write", &size_file))?;
        match fs::rename(&root, &path) {
            Err(_) if path.is_dir() => Ok(()),
            result => result.map_err(ImageError::at("cannot put into place", &path)),
        }
    }

    /// Enters an image whose layers are all in the store, under the given names; they move from whatever had them.
    pub(super) fn commit(
        &self,
        _guard: &ContentGuard,
        configuration: &[u8],
        references: &[String],
    ) -> Result<ImageRecord, ImageError> {
        let parsed = ImageConfiguration::parse(configuration)?;
        let id = digest_of(configuration);
        let mut size_bytes = configuration.len() as u64;
        for layer in &parsed.rootfs.diff_ids {
            if !self.has_layer(layer) {
                return Err(ImageError::Invalid(format!("image {id} misses its layer {layer}")));
            }
            size_bytes +=
                fs::read_to_string(self.layer_size_path(layer)).ok().and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
        }
        let blob = self.blob_path(&id);
        write_atomically(&blob, configuration).map_err(ImageError::at("cannot write", &blob))?;
        let user = parsed.config.and_then(|config| config.user);
        let user = user.as_deref().and_then(|user| user.split(':').next()).and_then(|user| user.parse().ok());
        self.change_index(|index| {
            for record in index.images.values_mut() {
                record.references.retain(|reference| !references.contains(reference));
            }
            let record = index.images.entry(id.clone()).or_insert_with(|| ImageRecord {
                id: id.clone(),
                references: BTreeSet::new(),
                layers: parsed.rootfs.diff_ids.clone(),
                size_bytes,
                user,
            });
            record.references.extend(references.iter().cloned());
            Ok(record.clone())
        })
    }

    /// Deletes what no image and no container needs. Does nothing while another process is adding content: the next
    /// removal looks again.
    fn collect_garbage(&self) -> Result<(), ImageError> {
        let path = self.root.join("content.lock");
        let lock = open_lock(&path)?;
        if lock.try_lock().is_err() {
            return Ok(());
        }
        let index = self.read_index()?;
        let mut images: BTreeSet<String> = index.images.keys().cloned().collect();
        let mut needed: BTreeSet<String> =
            index.images.values().flat_map(|record| &record.layers).map(|layer| Self::layer_name(layer)).collect();
        for owner in entries(&self.root.join("uses"))? {
            for held in entries(&owner)? {
                let id = fs::read_to_string(&held).unwrap_or_default();
                if let Ok(configuration) = self.configuration(&id) {
                    needed.extend(configuration.rootfs.diff_ids.iter().map(|layer| Self::layer_name(layer)));
                }
                images.insert(id);
            }
        }
        for layer in entries(&self.layers_folder())? {
            let stem = layer.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if needed.contains(&stem) {
                continue;
            }
            let removed = if layer.is_dir() { fs::remove_dir_all(&layer) } else { fs::remove_file(&layer) };
            removed.map_err(ImageError::at("cannot remove", &layer))?;
        }
        for blob in entries(&self.root.join("blobs/sha256"))? {
            let id = blob.file_name().map(|name| format!("sha256:{}", name.to_string_lossy())).unwrap_or_default();
            if !images.contains(&id) {
                fs::remove_file(&blob).map_err(ImageError::at("cannot remove", &blob))?;
            }
        }
        Ok(())
    }

    /// Deletes the work in progress of processes that are gone.
    fn remove_leftovers(&self) -> Result<(), ImageError> {
        for path in entries(&self.root.join("temporary"))? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let process = name.split('-').next().unwrap_or_default();
            if process != std::process::id().to_string() && !Path::new("/proc").join(process).exists() {
                fs::remove_dir_all(&path).map_err(ImageError::at("cannot remove", &path))?;
            }
        }
        Ok(())
    }

    fn read_index(&self) -> Result<Index, ImageError> {
        let path = self.root.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Index { format: FORMAT, images: BTreeMap::new() });
            }
            Err(error) => return Err(ImageError::at("cannot read", &path)(error)),
        };
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| ImageError::Invalid(format!("{} cannot be read: {error}", path.display())))?;
        if index.format > FORMAT {
            return Err(ImageError::Format { path: self.root.display().to_string(), found: index.format, known: FORMAT });
        }
        Ok(index)
    }

    fn change_index<T>(&self, change: impl FnOnce(&mut Index) -> Result<T, ImageError>) -> Result<T, ImageError> {
        let lock_path = self.root.join("index.lock");
        let lock = open_lock(&lock_path)?;
        lock.lock().map_err(ImageError::at("cannot lock", &lock_path))?;
        let mut index = self.read_index()?;
        let result = change(&mut index)?;
        index.images.retain(|_, record| !record.references.is_empty());
        let bytes = serde_json::to_vec_pretty(&index).map_err(|error| ImageError::Invalid(format!("image index: {error}")))?;
        let path = self.root.join("index.json");
        write_atomically(&path, &bytes).map_err(ImageError::at("cannot write", &path))?;
        Ok(result)
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.root.join("blobs/sha256").join(hex_of(digest))
    }

    fn layer_path(&self, diff_id: &str) -> Result<PathBuf, ImageError> {
        verify_diff_id(diff_id)?;
        Ok(self.layers_folder().join(Self::layer_name(diff_id)))
    }

    fn layer_size_path(&self, diff_id: &str) -> PathBuf {
        self.layers_folder().join(format!("{}.size", Self::layer_name(diff_id)))
    }

    fn use_path(&self, container: &str) -> PathBuf {
        self.root.join("uses").join(&*self.owner).join(container)
    }
}

impl From<ImageRecord> for Image {
    fn from(record: ImageRecord) -> Image {
        Image {
            id: record.id,
            references: record.references.into_iter().collect(),
            size_bytes: record.size_bytes,
            user: record.user,
        }
    }
}

/// A folder that is deleted when dropped.
pub(super) struct TemporaryFolder {
    pub path: PathBuf,
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary folder");
        }
    }
}

fn find_record<'a>(index: &'a Index, reference: &ImageReference) -> Option<&'a ImageRecord> {
    let name = match &reference.digest {
        Some(digest) => reference.by_digest(digest),
        None => reference.to_string(),
    };
    index.images.values().find(|record| record.references.contains(&name))
}

/// An image names its layers itself: only a digest may become part of a path.
fn verify_diff_id(diff_id: &str) -> Result<(), ImageError> {
    if is_sha256(diff_id) { Ok(()) } else { Err(ImageError::Invalid(format!("{diff_id:?} is no layer digest"))) }
}

fn hex_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn open_lock(path: &Path) -> Result<File, ImageError> {
    File::options().create(true).truncate(false).write(true).open(path).map_err(ImageError::at("cannot open", path))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    list().map_err(ImageError::at("cannot list", folder))
}
