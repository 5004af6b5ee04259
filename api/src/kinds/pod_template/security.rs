//! Validation of security contexts.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PodSecurityContext, PodSpec, SecurityContext};

use crate::{field::FieldError, kinds::validate};

/// User and group ids of Linux, as Kubernetes limits them.
fn identity(path: &str, id: Option<i64>) -> Option<FieldError> {
    let id = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id))?;
    Some(FieldError::invalid(path, id, "must be between 0 and 2147483647, inclusive"))
}

pub fn validate_pod_security(path: &str, context: &PodSecurityContext, spec: &PodSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    errors.extend(identity(&format!("{path}.fsGroup"), context.fs_group));
    errors.extend(identity(&format!("{path}.runAsUser"), context.run_as_user));
    errors.extend(identity(&format!("{path}.runAsGroup"), context.run_as_group));
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        errors.extend(identity(&format!("{path}.supplementalGroups[{index}]"), Some(*group)));
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(format!("{path}.shareProcessNamespace"), true, why));
    }
    let mut seen = BTreeSet::new();
    for (index, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let path = format!("{path}.sysctls[{index}].name");
        if sysctl.name.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if !is_sysctl(&sysctl.name) {
            let why = "must have at most 253 characters and match regex \
                       ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(path, sysctl.name.clone(), why));
        } else if !seen.insert(&sysctl.name) {
            errors.push(FieldError::duplicate(path, sysctl.name.clone()));
        }
    }
    let policies = &["Always", "OnRootMismatch"];
    errors.extend(validate::one_of_given(
        &format!("{path}.fsGroupChangePolicy"),
        context.fs_group_change_policy.as_deref(),
        policies,
    ));
    errors.extend(seccomp(path, context.seccomp_profile.as_ref()));
    errors
}

fn is_sysctl(name: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().copied().is_some_and(edge)
            && bytes.last().copied().is_some_and(edge)
            && bytes.iter().all(|&byte| edge(byte) || byte == b'-' || byte == b'_')
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

pub fn validate_container_security(path: &str, context: &SecurityContext) -> Vec<FieldError> {
    let mut errors = Vec::new();
    errors.extend(identity(&format!("{path}.runAsUser"), context.run_as_user));
    errors.extend(identity(&format!("{path}.runAsGroup"), context.run_as_group));
    errors.extend(validate::one_of_given(&format!("{path}.procMount"), context.proc_mount.as_deref(), &["Default", "Unmasked"]));
    if context.allow_privilege_escalation == Some(false) {
        let privileged = context.privileged == Some(true);
        if privileged {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path, validate::json(context), why));
        }
        let added = context.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
        if added.into_iter().flatten().any(|name| name == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path, validate::json(context), why));
        }
    }
    errors.extend(seccomp(path, context.seccomp_profile.as_ref()));
    errors
}

fn seccomp(path: &str, profile: Option<&k8s_openapi::api::core::v1::SeccompProfile>) -> Vec<FieldError> {
    let Some(profile) = profile else { return Vec::new() };
    let path = format!("{path}.seccompProfile");
    let mut errors: Vec<FieldError> =
        validate::one_of(&format!("{path}.type"), Some(&profile.type_), &["Localhost", "RuntimeDefault", "Unconfined"])
            .into_iter()
            .collect();
    let file = profile.localhost_profile.as_deref().unwrap_or_default();
    if profile.type_ == "Localhost" && file.is_empty() {
        errors.push(FieldError::required(format!("{path}.localhostProfile"), "must be set when seccomp type is Localhost"));
    } else if profile.type_ != "Localhost" && profile.localhost_profile.is_some() {
        let why = "can only be set when seccomp type is Localhost";
        errors.push(FieldError::invalid(format!("{path}.localhostProfile"), file, why));
    }
    errors
}
