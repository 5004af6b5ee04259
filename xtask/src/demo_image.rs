//! A small container image made from this machine's busybox, to try a cluster with where no registry can be reached.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::{process, workspace};

#[derive(Debug, Args)]
pub struct DemoImageArgs {
    /// Where to write the archive [default: `bin/demo.tar` in the workspace].
    pub file: Option<PathBuf>,
}

/// Writes the image as an archive in the form of `docker save`, named `demo:1`.
///
/// # Errors
/// When there is no busybox, or a file cannot be written.
pub fn run(args: &DemoImageArgs) -> Result<()> {
    let file = args.file.clone().unwrap_or_else(|| workspace::root().join("bin/demo.tar"));
    let file = std::path::absolute(file)?;
    let folder = file.with_extension("unpacked");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot delete {}", folder.display()))?;
    }
    fill(&folder.join("root"))?;
    // Owned by root in the image, whoever makes it.
    archive(&folder.join("layer.tar"), &folder.join("root"), &["."])?;
    let layer = sha256(&folder.join("layer.tar"))?;
    fs::write(folder.join("config.json"), configuration(&layer, std::env::consts::ARCH).to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": ["demo:1"], "Layers": ["layer.tar"]}]);
    fs::write(folder.join("manifest.json"), manifest.to_string())?;
    fs::remove_dir_all(folder.join("root"))?;
    archive(&file, &folder, &["manifest.json", "config.json", "layer.tar"])?;
    fs::remove_dir_all(&folder)?;
    println!("{} holds the image demo:1", file.display());
    Ok(())
}

/// The root file system: busybox, a link to it for each of its commands, and the usual folders.
fn fill(root: &Path) -> Result<()> {
    let busybox = process::find_program("busybox").context("there is no busybox; install the package busybox-static")?;
    for folder in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("cannot make {}", root.join(folder).display()))?;
    }
    fs::copy(&busybox, root.join("bin/busybox"))?;
    let commands = process::output(Command::new(&busybox).arg("--list"))?;
    for command in commands.lines().filter(|command| *command != "busybox") {
        symlink("busybox", root.join("bin").join(command))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("etc/index.html"), "Hello from Trireme.\n")?;
    Ok(())
}

fn archive(file: &Path, folder: &Path, entries: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "-cf"]).arg(file).arg("-C").arg(folder);
    process::run(tar.args(entries))
}

/// The hexadecimal SHA-256 of a file.
fn sha256(file: &Path) -> Result<String> {
    let line = process::output(Command::new("sha256sum").arg(file))?;
    let digest = line.split_whitespace().next().unwrap_or_default().to_owned();
    ensure!(digest.len() == 64, "sha256sum printed `{line}`");
    Ok(digest)
}

/// The image's configuration, by the OCI image specification; architectures have Go's names there.
fn configuration(layer: &str, architecture: &str) -> Value {
    let architecture = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_layer_and_gos_architecture() {
        let configuration = configuration("ab", "x86_64");
        assert_eq!(configuration["architecture"], "amd64");
        assert_eq!(configuration["rootfs"]["diff_ids"], json!(["sha256:ab"]));
    }
}
