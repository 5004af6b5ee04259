//! The security context of a container: its own settings over the pod's (`pkg/securitycontext`). Pure.

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile as ApiSeccompProfile};

use crate::{
    pod::model::{display, identity, spec},
    runtime::{ContainerSecurity, Image, SeccompProfile},
};

/// What the runtime is told.
pub fn security(pod: &Pod, container: &Container) -> ContainerSecurity {
    let spec = spec(pod);
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let capabilities = own.capabilities.unwrap_or_default();
    let mut groups = of_pod.supplemental_groups.unwrap_or_default();
    groups.extend(of_pod.fs_group);
    ContainerSecurity {
        privileged: own.privileged.unwrap_or(false),
        run_as_user: own.run_as_user.or(of_pod.run_as_user),
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        run_as_non_root: own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false),
        supplemental_groups: groups,
        read_only_root_filesystem: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        seccomp: own.seccomp_profile.or(of_pod.seccomp_profile).map(seccomp).unwrap_or_default(),
    }
}

fn seccomp(profile: ApiSeccompProfile) -> SeccompProfile {
    match profile.type_.as_str() {
        "RuntimeDefault" => SeccompProfile::RuntimeDefault,
        "Localhost" => SeccompProfile::Localhost(profile.localhost_profile.unwrap_or_default().into()),
        _ => SeccompProfile::Unconfined,
    }
}

/// Refuses a container that must not run as root and would (`verifyRunAsNonRoot`).
///
/// # Errors
/// The message of `CreateContainerConfigError`.
pub fn verify_non_root(
    pod: &Pod,
    container: &Container,
    security: &ContainerSecurity,
    image: Option<&Image>,
) -> Result<(), String> {
    if !security.run_as_non_root {
        return Ok(());
    }
    let about = format!("(pod: {:?}, container: {})", display(&identity(pod)), container.name);
    match (security.run_as_user, image.and_then(|image| image.user)) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {about}")),
        (Some(_), _) => Ok(()),
        (None, Some(user)) if user != 0 => Ok(()),
        (None, _) => Err(format!("container has runAsNonRoot and image will run as root {about}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_containers_settings_go_before_the_pods() {
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "securityContext": { "runAsUser": 1000, "runAsGroup": 7, "fsGroup": 2000, "supplementalGroups": [5] },
            "containers": [{ "name": "c", "securityContext": { "runAsUser": 1001, "allowPrivilegeEscalation": false,
                "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] } } }] } }))
        .unwrap();
        let found = security(&pod, &pod.spec.as_ref().unwrap().containers[0]);
        assert_eq!((found.run_as_user, found.run_as_group), (Some(1001), Some(7)));
        assert_eq!(found.supplemental_groups, [5, 2000]);
        assert!(found.no_new_privileges && !found.privileged);
        assert_eq!((found.add_capabilities[0].as_str(), found.drop_capabilities[0].as_str()), ("NET_ADMIN", "ALL"));
    }

    #[test]
    fn the_seccomp_profile_is_the_containers_or_else_the_pods() {
        let local = json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "web.json" } });
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{ "name": "a" }, { "name": "b", "securityContext": local },
                { "name": "c", "securityContext": { "seccompProfile": { "type": "Unconfined" } } }] } }))
        .unwrap();
        let found: Vec<_> =
            pod.spec.as_ref().unwrap().containers.iter().map(|container| security(&pod, container).seccomp).collect();
        let local = SeccompProfile::Localhost("web.json".into());
        assert_eq!(found, [SeccompProfile::RuntimeDefault, local, SeccompProfile::Unconfined]);
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "u" }, "spec": { "containers": [{ "name": "c" }] } }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let image = |user| Image { id: String::new(), references: Vec::new(), size_bytes: 0, user };
        let must_not = |run_as_user| ContainerSecurity { run_as_non_root: true, run_as_user, ..ContainerSecurity::default() };
        assert_eq!(verify_non_root(&pod, container, &ContainerSecurity::default(), None), Ok(()));
        assert_eq!(verify_non_root(&pod, container, &must_not(Some(5)), Some(&image(None))), Ok(()));
        assert_eq!(verify_non_root(&pod, container, &must_not(None), Some(&image(Some(5)))), Ok(()));
        assert_eq!(
            verify_non_root(&pod, container, &must_not(None), Some(&image(None))),
            Err("container has runAsNonRoot and image will run as root (pod: \"web_ns(u)\", container: c)".to_owned())
        );
        assert!(verify_non_root(&pod, container, &must_not(Some(0)), None).is_err());
    }
}
