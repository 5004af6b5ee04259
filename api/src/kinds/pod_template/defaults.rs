//! What Kubernetes fills in when a pod's specification leaves it out (`pkg/apis/core/v1/defaults.go`).

use k8s_openapi::{
    api::core::v1::{Container, EnvVar, HTTPGetAction, Lifecycle, LifecycleHandler, ObjectFieldSelector, PodSpec, Probe},
    apimachinery::pkg::api::resource::Quantity,
};

use super::volume_defaults::default_volume;

/// Defaults of a pod's specification, in a Pod or in a template.
pub fn default_spec(spec: &mut PodSpec) {
    set_if_blank(&mut spec.dns_policy, "ClusterFirst");
    set_if_blank(&mut spec.restart_policy, "Always");
    set_if_blank(&mut spec.scheduler_name, "default-scheduler");
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.security_context.get_or_insert_default();
    // The old name and the new name of the same field are always the same.
    let account =
        [&spec.service_account_name, &spec.service_account].into_iter().flatten().find(|name| !name.is_empty()).cloned();
    spec.service_account_name.clone_from(&account);
    spec.service_account = account;
    for volume in spec.volumes.iter_mut().flatten() {
        default_volume(volume);
    }
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        default_container(container);
    }
    for container in spec.ephemeral_containers.iter_mut().flatten() {
        set_if_blank(&mut container.termination_message_path, "/dev/termination-log");
        set_if_blank(&mut container.termination_message_policy, "File");
        default_pull_policy(&mut container.image_pull_policy, container.image.as_deref());
        container.resources.get_or_insert_default();
        default_environment(container.env.as_mut());
    }
}

/// On the host's network a container's ports are the host's. Applied to pods, not to templates.
pub fn share_host_network_ports(spec: &mut PodSpec) {
    if spec.host_network != Some(true) {
        return;
    }
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        for port in container.ports.iter_mut().flatten() {
            if port.host_port.unwrap_or(0) == 0 {
                port.host_port = Some(port.container_port);
            }
        }
    }
}

/// A limit without a request is a request of the same size. Applied to pods, not to templates.
pub fn default_request_from_limits(spec: &mut PodSpec) {
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let Some(resources) = container.resources.as_mut() else { continue };
        let Some(limits) = resources.limits.clone() else { continue };
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn default_container(container: &mut Container) {
    set_if_blank(&mut container.termination_message_path, "/dev/termination-log");
    set_if_blank(&mut container.termination_message_policy, "File");
    default_pull_policy(&mut container.image_pull_policy, container.image.as_deref());
    container.resources.get_or_insert_default();
    for port in container.ports.iter_mut().flatten() {
        set_if_blank(&mut port.protocol, "TCP");
    }
    default_environment(container.env.as_mut());
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    for probe in probes.into_iter().flatten() {
        default_probe(probe);
    }
    if let Some(Lifecycle { post_start, pre_stop, .. }) = container.lifecycle.as_mut() {
        for LifecycleHandler { http_get, .. } in [post_start, pre_stop].into_iter().flatten() {
            http_get.iter_mut().for_each(default_http_get);
        }
    }
}

fn default_environment(variables: Option<&mut Vec<EnvVar>>) {
    for source in variables.into_iter().flatten().filter_map(|variable| variable.value_from.as_mut()) {
        if let Some(field) = &mut source.field_ref {
            default_field_selector(field);
        }
        if let Some(resource) = &mut source.resource_field_ref {
            resource.divisor.get_or_insert(Quantity("0".to_owned()));
        }
    }
}

pub fn default_field_selector(field: &mut ObjectFieldSelector) {
    set_if_blank(&mut field.api_version, "v1");
}

fn default_probe(probe: &mut Probe) {
    for (field, value) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if field.unwrap_or(0) == 0 {
            *field = Some(value);
        }
    }
    probe.http_get.iter_mut().for_each(default_http_get);
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn default_http_get(action: &mut HTTPGetAction) {
    set_if_blank(&mut action.path, "/");
    set_if_blank(&mut action.scheme, "HTTP");
}

/// `Always` for the tag `latest`, written or meant, else `IfNotPresent`.
pub fn default_pull_policy(policy: &mut Option<String>, image: Option<&str>) {
    let always = image.is_none_or(|image| image_tag(image) == Some("latest"));
    set_if_blank(policy, if always { "Always" } else { "IfNotPresent" });
}

/// The tag of an image reference; `latest` when it has neither tag nor digest, nothing when it has a digest alone.
fn image_tag(image: &str) -> Option<&str> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match (last.rsplit_once(':'), digest) {
        (Some((_, tag)), _) => Some(tag),
        (None, Some(_)) => None,
        (None, None) => Some("latest"),
    }
}

pub fn set_if_blank(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::image_tag;

    #[test]
    fn tags_are_found() {
        let cases = [
            ("nginx", Some("latest")),
            ("nginx:1.2", Some("1.2")),
            ("registry:5000/nginx", Some("latest")),
            ("registry:5000/a/nginx:latest", Some("latest")),
            ("nginx@sha256:00", None),
            ("nginx:1@sha256:00", Some("1")),
        ];
        for (image, tag) in cases {
            assert_eq!(image_tag(image), tag, "{image}");
        }
    }
}
