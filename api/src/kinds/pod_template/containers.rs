//! Validation of containers and init containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Volume, VolumeMount};

use super::{
    environment::{validate_sources, validate_variables},
    probes::{NeedsOneSuccess, validate_lifecycle, validate_probe},
    resources::validate_resources,
    security::validate_container_security,
    volumes::relative_path,
};
use crate::{field::FieldError, kinds::validate, names};

/// Validates `containers` and `initContainers` together: their names share one space.
pub fn validate_containers(
    path: &str,
    containers: &[Container],
    init_containers: &[Container],
    volumes: &[Volume],
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    let main_path = format!("{path}.containers");
    if containers.is_empty() {
        errors.push(FieldError::required(&main_path, ""));
    }
    let mains = containers.iter().enumerate().map(|(index, container)| (format!("{main_path}[{index}]"), container, false));
    let inits = init_containers.iter().enumerate();
    let inits = inits.map(|(index, container)| (format!("{path}.initContainers[{index}]"), container, true));
    for (path, container, is_init) in mains.chain(inits) {
        errors.extend(validate_container(&path, container, volumes));
        if !container.name.is_empty() && !seen.insert(&container.name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), container.name.clone()));
        }
        if is_init {
            errors.extend(validate_init_container(&path, container));
        } else {
            let policies = &["Always", "Never", "OnFailure"];
            errors.extend(validate::one_of_given(
                &format!("{path}.restartPolicy"),
                container.restart_policy.as_deref(),
                policies,
            ));
        }
    }
    errors
}

fn validate_container(path: &str, container: &Container, volumes: &[Volume]) -> Vec<FieldError> {
    let mut errors = validate::required_name(&format!("{path}.name"), &container.name, names::is_dns1123_label);
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(format!("{path}.image"), image, "must not have leading or trailing whitespace"));
    }
    errors.extend(validate::one_of(
        &format!("{path}.terminationMessagePolicy"),
        container.termination_message_policy.as_deref(),
        &["FallbackToLogsOnError", "File"],
    ));
    errors.extend(validate_ports(&format!("{path}.ports"), container.ports.as_deref().unwrap_or_default()));
    errors.extend(validate_variables(&format!("{path}.env"), container.env.as_deref().unwrap_or_default()));
    errors.extend(validate_sources(&format!("{path}.envFrom"), container.env_from.as_deref().unwrap_or_default()));
    errors.extend(validate_mounts(path, container, volumes));
    errors.extend(validate::one_of(
        &format!("{path}.imagePullPolicy"),
        container.image_pull_policy.as_deref(),
        &["Always", "IfNotPresent", "Never"],
    ));
    if let Some(resources) = &container.resources {
        errors.extend(validate_resources(&format!("{path}.resources"), resources));
    }
    if let Some(context) = &container.security_context {
        errors.extend(validate_container_security(&format!("{path}.securityContext"), context));
    }
    if let Some(lifecycle) = &container.lifecycle {
        errors.extend(validate_lifecycle(&format!("{path}.lifecycle"), lifecycle));
    }
    for (field, probe, success) in [
        ("livenessProbe", &container.liveness_probe, NeedsOneSuccess::Yes),
        ("readinessProbe", &container.readiness_probe, NeedsOneSuccess::No),
        ("startupProbe", &container.startup_probe, NeedsOneSuccess::Yes),
    ] {
        errors.extend(probe.iter().flat_map(|probe| validate_probe(&format!("{path}.{field}"), probe, success)));
    }
    errors
}

/// What only those init containers may have that go on running beside the others (sidecars, KEP-753).
fn validate_init_container(path: &str, container: &Container) -> Vec<FieldError> {
    let policies = &["Always", "Never", "OnFailure"];
    let mut errors: Vec<FieldError> =
        validate::one_of_given(&format!("{path}.restartPolicy"), container.restart_policy.as_deref(), policies)
            .into_iter()
            .collect();
    if container.restart_policy.as_deref() == Some("Always") {
        return errors;
    }
    let given = [
        ("lifecycle", container.lifecycle.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
    ];
    for (field, _) in given.into_iter().filter(|(_, given)| *given) {
        let why = "may not be set for init containers without restartPolicy=Always";
        errors.push(FieldError::forbidden(format!("{path}.{field}"), why));
    }
    errors
}

fn validate_ports(path: &str, ports: &[ContainerPort]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let name_path = format!("{path}.name");
            let name_errors = validate::checked(&name_path, name, names::is_port_name);
            if name_errors.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(&name_path, name));
            }
            errors.extend(name_errors);
        }
        if port.container_port == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else {
            errors.extend(validate::port_number(&format!("{path}.containerPort"), port.container_port));
        }
        if let Some(host_port) = port.host_port.filter(|port| *port != 0) {
            errors.extend(validate::port_number(&format!("{path}.hostPort"), host_port));
        }
        errors.extend(validate::one_of(&format!("{path}.protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]));
    }
    errors
}

fn validate_mounts(path: &str, container: &Container, volumes: &[Volume]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        errors.extend(validate_mount(&path, mount, volumes));
        if !mount.mount_path.is_empty() && !seen.insert(&mount.mount_path) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), mount.mount_path.clone(), "must be unique"));
        }
        let privileged = container.security_context.as_ref().and_then(|context| context.privileged) == Some(true);
        if mount.mount_propagation.as_deref() == Some("Bidirectional") && !privileged {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(format!("{path}.mountPropagation"), why));
        }
    }
    errors
}

fn validate_mount(path: &str, mount: &VolumeMount, volumes: &[Volume]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if mount.name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else if !volumes.iter().any(|volume| volume.name == mount.name) {
        errors.push(FieldError::not_found(format!("{path}.name"), mount.name.clone()));
    }
    errors.extend(validate::required(&format!("{path}.mountPath"), &mount.mount_path));
    let sub_path = mount.sub_path.as_deref().filter(|sub_path| !sub_path.is_empty());
    let expression = mount.sub_path_expr.as_deref().filter(|expression| !expression.is_empty());
    errors.extend(sub_path.into_iter().flat_map(|sub_path| relative_path(&format!("{path}.subPath"), sub_path)));
    if let Some(expression) = expression {
        if sub_path.is_some() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(format!("{path}.subPathExpr"), expression, why));
        }
        errors.extend(relative_path(&format!("{path}.subPathExpr"), expression));
    }
    errors.extend(validate::one_of_given(
        &format!("{path}.mountPropagation"),
        mount.mount_propagation.as_deref(),
        &["Bidirectional", "HostToContainer", "None"],
    ));
    errors
}
