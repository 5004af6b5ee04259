//! `trireme image load`: puts an image on every local node, without a registry.

use anyhow::{Context, Result, bail};
use trireme_nodeagent::image::ImageStore;

use super::{layout::Layout, spec::ClusterSpec};
use crate::{cli::ImageLoadArgs, node_folder, settings::RuntimeChoice};

/// The name that the command's own accesses to the shared store go by.
const OWNER: &str = "image-load";

/// What runs the containers of the local nodes, as they have chosen if it was left to them.
fn runtime(layout: &Layout, spec: &ClusterSpec) -> Result<RuntimeChoice> {
    for node in &spec.nodes {
        if let Some(found) = node_folder::read(&layout.process(&node.name))? {
            return Ok(found.runtime);
        }
    }
    Ok(spec.runtime)
}

pub async fn load(args: ImageLoadArgs) -> Result<()> {
    let layout = Layout::find(args.folder.data_dir.as_deref())?;
    let spec = ClusterSpec::load_existing(&layout)?;
    match runtime(&layout, &spec)? {
        RuntimeChoice::Hollow => bail!("the nodes of this cluster are hollow: they run no containers and need no images"),
        RuntimeChoice::Cri => {
            bail!("the nodes of this cluster use containerd: load the image there (`ctr -n k8s.io images import`)")
        }
        RuntimeChoice::Embedded | RuntimeChoice::Auto => {}
    }
    if !args.file.exists() {
        bail!("{} does not exist", args.file.display());
    }
    let nodes = spec.nodes.len();
    let loading = tokio::task::spawn_blocking(move || {
        let store = ImageStore::open(&layout.images(), OWNER)?;
        store.load(&args.file, &args.name).with_context(|| format!("cannot load {}", args.file.display()))
    });
    let image = loading.await??;
    say!("{} is on all {nodes} nodes ({})", image.references.iter().next().map_or("the image", String::as_str), image.id);
    Ok(())
}
