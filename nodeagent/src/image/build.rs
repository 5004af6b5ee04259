//! Builds small images in memory and writes them as archives or layouts. For tests and demonstrations: what real images
//! are made with stays outside.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::bytes::digest_of;

/// One layer under construction: a tar archive in memory.
pub struct LayerBuilder {
    tar: Builder<Vec<u8>>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        LayerBuilder { tar: Builder::new(Vec::new()) }
    }
}

impl LayerBuilder {
    pub fn file(self, path: &str, content: &[u8], mode: u32) -> io::Result<LayerBuilder> {
        self.owned_file(path, content, mode, 0, 0)
    }

    pub fn owned_file(self, path: &str, content: &[u8], mode: u32, user: u64, group: u64) -> io::Result<LayerBuilder> {
        let mut header = header(EntryType::Regular, mode);
        header.set_uid(user);
        header.set_gid(group);
        header.set_size(content.len() as u64);
        self.raw(path, header, content)
    }

    pub fn folder(self, path: &str, mode: u32) -> io::Result<LayerBuilder> {
        self.raw(path, header(EntryType::Directory, mode), &[])
    }

    pub fn symbolic_link(self, path: &str, target: &str) -> io::Result<LayerBuilder> {
        self.link(path, target, EntryType::Symlink)
    }

    pub fn hard_link(self, path: &str, target: &str) -> io::Result<LayerBuilder> {
        self.link(path, target, EntryType::Link)
    }

    /// Hides a file of a lower layer.
    pub fn whiteout(self, path: &str) -> io::Result<LayerBuilder> {
        let path = Path::new(path);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let hidden = path.with_file_name(format!(".wh.{name}"));
        self.file(&hidden.to_string_lossy(), &[], 0o644)
    }

    /// Hides everything that lower layers have in the folder.
    pub fn opaque(self, folder: &str) -> io::Result<LayerBuilder> {
        self.file(&format!("{folder}/.wh..wh..opq"), &[], 0o644)
    }

    /// An entry with a name that is written as given, however hostile.
    pub fn raw(mut self, path: &str, mut header: Header, content: &[u8]) -> io::Result<LayerBuilder> {
        let name = path.as_bytes();
        if name.len() > 99 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name is longer than 99 bytes"));
        }
        let field = &mut header.as_old_mut().name;
        field.fill(0);
        field[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.tar.append(&header, content)?;
        Ok(self)
    }

    /// The finished, uncompressed layer.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        self.tar.into_inner()
    }

    fn link(mut self, path: &str, target: &str, kind: EntryType) -> io::Result<LayerBuilder> {
        let mut header = header(kind, 0o777);
        header.set_link_name_literal(target)?;
        header.set_path(path.trim_start_matches('/'))?;
        header.set_cksum();
        self.tar.append(&header, &[][..])?;
        Ok(self)
    }
}

/// An image under construction: layers, the lowest first, and what its containers run by default.
#[derive(Clone, Debug, Default)]
pub struct ImageBuilder {
    layers: Vec<Vec<u8>>,
    config: serde_json::Map<String, Value>,
}

impl ImageBuilder {
    /// Adds a finished layer, plain.
    pub fn layer(mut self, layer: Vec<u8>) -> ImageBuilder {
        self.layers.push(layer);
        self
    }

    /// Sets a field of the image's `config`: `Entrypoint`, `Cmd`, `Env`, `User`, `WorkingDir`, `StopSignal` …
    pub fn config(mut self, field: &str, value: Value) -> ImageBuilder {
        self.config.insert(field.to_owned(), value);
        self
    }

    /// Writes what `docker save` writes: one tar archive with `manifest.json`.
    pub fn write_docker_archive(&self, path: &Path, reference: &str) -> io::Result<()> {
        let config = self.configuration();
        let config_name = format!("{}.json", digest_of(&config).trim_start_matches("sha256:"));
        let names: Vec<String> = (0..self.layers.len()).map(|number| format!("{number}/layer.tar")).collect();
        let manifest = json!([{ "Config": config_name, "RepoTags": [reference], "Layers": names }]);
        let mut tar = Builder::new(fs::File::create(path)?);
        append(&mut tar, &config_name, &config)?;
        for (name, layer) in names.iter().zip(&self.layers) {
            append(&mut tar, name, layer)?;
        }
        append(&mut tar, "manifest.json", manifest.to_string().as_bytes())?;
        tar.finish()
    }

    /// Writes an OCI layout into the folder, which is made; layers are compressed with gzip.
    pub fn write_layout(&self, folder: &Path, reference: &str) -> io::Result<()> {
        for (name, content) in self.layout(reference)? {
            let path = folder.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, content)?;
        }
        Ok(())
    }

    /// Writes an OCI archive: a tar archive of the layout.
    pub fn write_oci_archive(&self, path: &Path, reference: &str) -> io::Result<()> {
        let mut tar = Builder::new(fs::File::create(path)?);
        for (name, content) in self.layout(reference)? {
            append(&mut tar, &name.to_string_lossy(), &content)?;
        }
        tar.finish()
    }

    fn layout(&self, reference: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let config = self.configuration();
        let mut files = vec![(PathBuf::from("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        let mut blob = |content: Vec<u8>, media_type: &str| {
            let digest = digest_of(&content);
            let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": content.len() });
            files.push((PathBuf::from("blobs").join(digest.replace(':', "/")), content));
            descriptor
        };
        let mut layers = Vec::new();
        for layer in &self.layers {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut gzip, layer)?;
            layers.push(blob(gzip.finish()?, "application/vnd.oci.image.layer.v1.tar+gzip"));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        });
        let mut descriptor = blob(manifest.to_string().into_bytes(), "application/vnd.oci.image.manifest.v1+json");
        descriptor["annotations"] = json!({ "io.containerd.image.name": reference });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        files.push((PathBuf::from("index.json"), index.to_string().into_bytes()));
        Ok(files)
    }

    fn configuration(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest_of(layer)).collect();
        json!({
            "architecture": super::archive::architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes()
    }
}

/// An image with a statically linked busybox (Debian's and Ubuntu's package `busybox-static`) and links for its commands.
pub fn busybox_image(busybox: &Path) -> io::Result<ImageBuilder> {
    let mut layer = LayerBuilder::default();
    for (folder, mode) in
        [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755)]
    {
        layer = layer.folder(folder, mode)?;
    }
    layer = layer.file("bin/busybox", &fs::read(busybox)?, 0o755)?;
    for command in [
        "sh", "cat", "ls", "echo", "sleep", "true", "false", "id", "env", "hostname", "mount", "grep", "wc", "ps", "kill", "nc",
        "wget", "httpd", "ip", "ping", "head", "tail", "dd", "touch", "rm", "mkdir", "stat", "test", "date", "nslookup", "pwd",
        "seq", "sed", "awk", "tr", "cut", "sort", "find", "chmod", "chown", "df", "tee", "xargs", "printf", "uname",
    ] {
        layer = layer.symbolic_link(&format!("bin/{command}"), "busybox")?;
    }
    layer = layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:worker:/tmp:/bin/sh\n", 0o644)?.file(
        "etc/group",
        b"root:x:0:\nworker:x:1000:\nextra:x:2000:worker\n",
        0o644,
    )?;
    Ok(ImageBuilder::default()
        .layer(layer.finish()?)
        .config("Cmd", json!(["sh"]))
        .config("Env", json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])))
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}

fn append(tar: &mut Builder<fs::File>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = header(EntryType::Regular, 0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content)
}
