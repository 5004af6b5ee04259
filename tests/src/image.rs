//! The image that tests run: made here, from this machine's busybox.

use std::{path::Path, process::Command};

use trireme_nodeagent::image::build::busybox_image;

use crate::cluster::Cluster;

/// The reference under which [`load`] puts the image on every node.
pub const BUSYBOX: &str = "example.test/busybox:1";

const PROGRAM: &str = "/bin/busybox";

/// Builds the image and loads it with `trireme image load`.
///
/// # Panics
/// When this machine has no statically linked busybox and cannot install it, or the command fails.
pub fn load(cluster: &Cluster) {
    if !Path::new(PROGRAM).exists() {
        let output = Command::new("apt-get").args(["install", "--yes", "busybox-static"]).output().expect("apt-get runs");
        assert!(Path::new(PROGRAM).exists(), "install busybox-static: {}", String::from_utf8_lossy(&output.stderr));
    }
    let archive = cluster.folder().join("busybox.tar");
    let image = busybox_image(Path::new(PROGRAM)).expect("busybox is readable");
    image.write_docker_archive(&archive, BUSYBOX).expect("the archive can be written");
    cluster.trireme(&["image", "load", &archive.to_string_lossy(), "--name", BUSYBOX]);
}
