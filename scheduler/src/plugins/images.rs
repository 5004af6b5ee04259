//! ImageLocality: more for nodes that hold the pod's images already, damped by how few nodes hold them, so that pods do not
//! all run to one node.

use crate::{cluster::Cluster, node::NodeSpec, plugins::MAX_NODE_SCORE, pod::PodInfo};

const MIN_BYTES: i64 = 23 * 1024 * 1024;
const MAX_BYTES_OF_CONTAINER: i64 = 1000 * 1024 * 1024;

pub fn score(pod: &PodInfo, spec: &NodeSpec, cluster: &Cluster, node_count: usize) -> i64 {
    if pod.images.is_empty() || spec.images.is_empty() || node_count == 0 {
        return 0;
    }
    let weighed = |image: &str, bytes: i64| (bytes as f64 * cluster.nodes_with_image(image) as f64 / node_count as f64) as i64;
    let bytes: i64 = pod.images.iter().filter_map(|image| spec.images.get(image).map(|bytes| weighed(image, *bytes))).sum();
    let max_bytes = MAX_BYTES_OF_CONTAINER * pod.images.len() as i64;
    MAX_NODE_SCORE * (bytes.clamp(MIN_BYTES, max_bytes) - MIN_BYTES) / (max_bytes - MIN_BYTES)
}
