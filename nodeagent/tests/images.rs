//! The image store. Unpacking sets owners and makes device nodes, so these tests need root.

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde_json::json;
use tar::{EntryType, Header};
use trireme_nodeagent::image::{
    ImageError, ImageRecord, ImageStore,
    build::{ImageBuilder, LayerBuilder},
};

struct Place {
    folder: tempfile::TempDir,
    store: ImageStore,
}

impl Place {
    fn new() -> Place {
        assert!(nix::unistd::Uid::effective().is_root(), "this test unpacks images and needs root");
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&folder.path().join("store"), "node-1").unwrap();
        Place { folder, store }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load_layers(&self, layers: Vec<LayerBuilder>) -> Result<ImageRecord, ImageError> {
        let image = layers.into_iter().fold(ImageBuilder::default(), |image, layer| image.layer(layer.finish().unwrap()));
        let archive = self.file("image.tar");
        image.write_docker_archive(&archive, "test").unwrap();
        self.store.load(&archive, "test")
    }

    fn layer(&self, record: &ImageRecord, number: usize) -> PathBuf {
        self.store.layers_folder().join(ImageStore::layer_name(&record.layers[number]))
    }
}

fn file(name: &str, content: &str) -> LayerBuilder {
    LayerBuilder::default().file(name, content.as_bytes(), 0o644).unwrap()
}

fn header(kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

#[test]
fn the_three_forms_of_an_image_give_the_same_image() {
    let place = Place::new();
    let image = ImageBuilder::default()
        .layer(file("a", "one").finish().unwrap())
        .layer(file("b", "two").finish().unwrap())
        .config("User", json!("1000:0"))
        .config("StopSignal", json!("SIGQUIT"));
    image.write_docker_archive(&place.file("docker.tar"), "app:v1").unwrap();
    image.write_oci_archive(&place.file("oci.tar"), "app:v1").unwrap();
    image.write_layout(&place.file("layout"), "app:v1").unwrap();
    let packed = zstd::encode_all(std::fs::File::open(place.file("docker.tar")).unwrap(), 1).unwrap();
    std::fs::write(place.file("docker.tar.zst"), packed).unwrap();

    let mut ids = Vec::new();
    for (number, form) in ["docker.tar", "oci.tar", "layout", "docker.tar.zst"].iter().enumerate() {
        let record = place.store.load(&place.file(form), &format!("app:{number}")).unwrap();
        assert_eq!(record.user, Some(1000));
        ids.push(record.id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(place.store.list().unwrap().len(), 1);
    let configuration = place.store.configuration(&ids[0]).unwrap().config.unwrap();
    assert_eq!(configuration.stop_signal.as_deref(), Some("SIGQUIT"));
    for name in ["app:0", "docker.io/library/app:3", &ids[0]] {
        assert_eq!(place.store.find(name).unwrap().unwrap().id, ids[0], "{name}");
    }
    assert_eq!(place.store.find("app:9").unwrap(), None);
}

#[test]
fn layers_keep_what_the_archive_says_of_files() {
    let place = Place::new();
    let layer = LayerBuilder::default()
        .folder("etc", 0o750)
        .unwrap()
        .owned_file("etc/secret", b"hush", 0o4640, 12, 34)
        .unwrap()
        .hard_link("etc/same", "etc/secret")
        .unwrap()
        .symbolic_link("etc/link", "/outside/../secret")
        .unwrap()
        .file("deep/er/file", b"", 0o644)
        .unwrap()
        .file("etc/twice", b"first", 0o644)
        .unwrap()
        .file("etc/twice", b"second", 0o600)
        .unwrap();
    let record = place.load_layers(vec![layer]).unwrap();
    let root = place.layer(&record, 0);
    let secret = root.join("etc/secret").metadata().unwrap();
    assert_eq!((secret.uid(), secret.gid(), secret.mode() & 0o7777, secret.len()), (12, 34, 0o4640, 4));
    assert_eq!(secret.mtime(), 1_700_000_000);
    assert_eq!(root.join("etc/same").metadata().unwrap().ino(), secret.ino());
    assert_eq!(root.join("etc/link").read_link().unwrap(), Path::new("/outside/../secret"));
    assert_eq!(root.join("etc").metadata().unwrap().mode() & 0o7777, 0o750);
    assert_eq!(root.join("etc").metadata().unwrap().mtime(), 1_700_000_000);
    assert!(root.join("deep/er/file").is_file());
    assert_eq!(std::fs::read_to_string(root.join("etc/twice")).unwrap(), "second");
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    let place = Place::new();
    let upper = LayerBuilder::default().whiteout("dir/gone").unwrap().folder("opaque", 0o755).unwrap().opaque("opaque").unwrap();
    let record = place.load_layers(vec![file("dir/gone", "x"), upper]).unwrap();
    let root = place.layer(&record, 1);
    let whiteout = root.join("dir/gone").symlink_metadata().unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert_eq!(xattr::get(root.join("opaque"), "trusted.overlay.opaque").unwrap().as_deref(), Some(&b"y"[..]));
    assert!(!root.join("opaque/.wh..wh..opq").exists());
}

#[test]
fn nothing_in_an_archive_reaches_outside_its_layer() {
    let place = Place::new();
    let outside = place.file("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "intact").unwrap();
    let target = outside.to_str().unwrap();

    let climbing = LayerBuilder::default().raw("../outside/new", header(EntryType::Regular), &[]).unwrap();
    let error = place.load_layers(vec![climbing]).unwrap_err();
    assert!(error.to_string().contains("climbs out of the layer"), "{error}");

    let through_link = LayerBuilder::default().symbolic_link("way", target).unwrap().file("way/new", b"x", 0o644).unwrap();
    assert!(place.load_layers(vec![through_link]).is_err(), "a link to nowhere in the layer is not followed");

    let relative_link = LayerBuilder::default()
        .symbolic_link("way", "../../../../../../../../../../..")
        .unwrap()
        .file(&format!("way{target}/victim"), b"broken", 0o644)
        .unwrap();
    place.load_layers(vec![relative_link]).unwrap();

    let hard = LayerBuilder::default().hard_link("copy", &format!("{target}/victim")).unwrap();
    assert!(place.load_layers(vec![hard]).is_err());
    let hard_through_link =
        LayerBuilder::default().symbolic_link("way", target).unwrap().hard_link("copy", "way/victim").unwrap();
    assert!(place.load_layers(vec![hard_through_link]).is_err());

    let overwrite = LayerBuilder::default()
        .symbolic_link("victim", &format!("{target}/victim"))
        .unwrap()
        .file("victim", b"broken", 0o644)
        .unwrap();
    place.load_layers(vec![overwrite]).unwrap();

    let removal = LayerBuilder::default().symbolic_link("way", target).unwrap().whiteout("way/victim").unwrap();
    assert!(place.load_layers(vec![removal]).is_err());

    let mut device = header(EntryType::Char);
    device.set_device_major(0).unwrap();
    device.set_device_minor(0).unwrap();
    assert!(place.load_layers(vec![LayerBuilder::default().raw("null", device, &[]).unwrap()]).is_err());

    assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "intact");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(place.file("store/temporary")).unwrap().count(), 0, "nothing half done stays");
}

#[test]
fn content_that_is_not_what_its_digest_says_is_refused() {
    let place = Place::new();
    let image = ImageBuilder::default().layer(file("a", "one").finish().unwrap());
    image.write_layout(&place.file("layout"), "app").unwrap();
    let blobs = place.file("layout/blobs/sha256");
    for blob in std::fs::read_dir(&blobs).unwrap().flatten() {
        let original = std::fs::read(blob.path()).unwrap();
        let mut changed = original.clone();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(blob.path(), &changed).unwrap();
        assert!(place.store.load(&place.file("layout"), "app").is_err(), "{:?}", blob.file_name());
        std::fs::write(blob.path(), &original).unwrap();
    }
    assert!(place.store.list().unwrap().is_empty());
    std::fs::write(place.file("text"), "no archive at all").unwrap();
    assert!(place.store.load(&place.file("text"), "app").is_err());
    std::fs::write(place.file("empty"), "").unwrap();
    assert!(place.store.load(&place.file("empty"), "app").is_err());
    place.store.load(&place.file("layout"), "app").unwrap();
}

#[test]
fn layers_stay_as_long_as_an_image_or_a_container_needs_them() {
    let place = Place::new();
    let other_node = ImageStore::open(&place.file("store"), "node-2").unwrap();
    let shared = || file("base", "base").finish().unwrap();
    for name in ["one", "two"] {
        let image = ImageBuilder::default().layer(shared()).layer(file(name, name).finish().unwrap());
        image.write_docker_archive(&place.file("i.tar"), name).unwrap();
        place.store.load(&place.file("i.tar"), name).unwrap();
    }
    let layers =
        || std::fs::read_dir(place.store.layers_folder()).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(layers(), 3);
    place.store.remove("one").unwrap();
    assert_eq!(layers(), 2, "the shared layer and that of `two`");

    let two = other_node.find("two").unwrap().unwrap();
    other_node.hold("container", &two.id).unwrap();
    place.store.remove("two").unwrap();
    assert_eq!(place.store.find("two").unwrap(), None);
    assert_eq!(layers(), 2, "a container of the other node runs from it");
    other_node.retain_holds(&Default::default()).unwrap();
    place.store.remove("two").unwrap();
    assert_eq!(layers(), 0);
    assert!(place.store.hold("late", &two.id).is_err());
}

#[test]
fn a_name_moves_to_the_newest_image() {
    let place = Place::new();
    let first = place.load_layers(vec![file("a", "1")]).unwrap();
    let second = place.load_layers(vec![file("a", "2")]).unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(place.store.find("test").unwrap().unwrap().id, second.id);
    assert_eq!(place.store.list().unwrap().len(), 1, "the first has no name left");
}

#[test]
fn a_store_of_a_newer_format_is_left_alone() {
    let place = Place::new();
    let index = place.file("store/index.json");
    std::fs::write(&index, r#"{"format":99,"images":{}}"#).unwrap();
    assert!(matches!(ImageStore::open(&place.file("store"), "node-1"), Err(ImageError::Format { found: 99, .. })));
    assert!(place.store.load(&place.file("missing"), "x").is_err());
    assert_eq!(std::fs::read_to_string(&index).unwrap(), r#"{"format":99,"images":{}}"#);
}

#[test]
fn an_image_cannot_name_a_folder_of_the_machine_as_its_layer() {
    let place = Place::new();
    let host = place.file("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("secret"), "of the node").unwrap();
    for diff_id in [host.to_str().unwrap(), "sha256:../../host", "../../host", "sha512:00"] {
        let docker = place.file("docker");
        std::fs::create_dir_all(&docker).unwrap();
        std::fs::write(docker.join("layer.tar"), file("a", "x").finish().unwrap()).unwrap();
        std::fs::write(docker.join("config.json"), json!({ "rootfs": { "diff_ids": [diff_id] } }).to_string()).unwrap();
        let manifest = json!([{ "Config": "config.json", "Layers": ["layer.tar"] }]);
        std::fs::write(docker.join("manifest.json"), manifest.to_string()).unwrap();
        let refused = place.store.load(&docker, "evil");
        assert!(
            matches!(&refused, Err(ImageError::Invalid(why)) if why.contains("is no layer digest")),
            "{diff_id}: {refused:?}"
        );
        assert!(place.store.list().unwrap().is_empty());
    }
}
