//! Validation of probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, TCPSocketAction};

use crate::{field::FieldError, kinds::validate};

/// The actions that a probe or a hook may take; exactly one is given.
struct Action<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc_port: Option<i32>,
    sleep_seconds: Option<i64>,
}

/// A readiness, liveness or startup probe. The last two succeed at the first success.
pub fn validate_probe(path: &str, probe: &Probe, needs_one_success: NeedsOneSuccess) -> Vec<FieldError> {
    let action = Action {
        exec: probe.exec.as_ref(),
        http_get: probe.http_get.as_ref(),
        tcp_socket: probe.tcp_socket.as_ref(),
        grpc_port: probe.grpc.as_ref().map(|grpc| grpc.port),
        sleep_seconds: None,
    };
    let mut errors = validate_action(path, &action);
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        errors.extend(validate::non_negative(i64::from(value.unwrap_or(0)), &format!("{path}.{field}")));
    }
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid(format!("{path}.terminationGracePeriodSeconds"), seconds, "must be greater than 0"));
    }
    match (needs_one_success, probe.success_threshold) {
        (NeedsOneSuccess::Yes, Some(successes)) if successes != 1 => {
            errors.push(FieldError::invalid(format!("{path}.successThreshold"), successes, "must be 1"));
        }
        (NeedsOneSuccess::No, _) if probe.termination_grace_period_seconds.is_some() => {
            let seconds = probe.termination_grace_period_seconds;
            let why = "must not be set for readinessProbes";
            errors.push(FieldError::invalid(format!("{path}.terminationGracePeriodSeconds"), seconds, why));
        }
        _ => {}
    }
    errors
}

/// Whether a probe must succeed at its first success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeedsOneSuccess {
    Yes,
    No,
}

pub fn validate_lifecycle(path: &str, lifecycle: &Lifecycle) -> Vec<FieldError> {
    let hook = |name: &str, handler: &LifecycleHandler| {
        let action = Action {
            exec: handler.exec.as_ref(),
            http_get: handler.http_get.as_ref(),
            tcp_socket: handler.tcp_socket.as_ref(),
            grpc_port: None,
            sleep_seconds: handler.sleep.as_ref().map(|sleep| sleep.seconds),
        };
        validate_action(&format!("{path}.{name}"), &action)
    };
    let start = lifecycle.post_start.iter().flat_map(|handler| hook("postStart", handler));
    let stop = lifecycle.pre_stop.iter().flat_map(|handler| hook("preStop", handler));
    start.chain(stop).collect()
}

fn validate_action(path: &str, action: &Action) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut handlers = 0;
    let mut second = |field: &str, errors: &mut Vec<FieldError>| {
        handlers += 1;
        if handlers > 1 {
            errors.push(FieldError::forbidden(format!("{path}.{field}"), "may not specify more than 1 handler type"));
        }
        handlers == 1
    };
    if let Some(exec) = action.exec
        && second("exec", &mut errors)
        && exec.command.as_ref().is_none_or(Vec::is_empty)
    {
        errors.push(FieldError::required(format!("{path}.exec.command"), ""));
    }
    if let Some(http_get) = action.http_get
        && second("httpGet", &mut errors)
    {
        errors.extend(validate_http_get(&format!("{path}.httpGet"), http_get));
    }
    if let Some(tcp_socket) = action.tcp_socket
        && second("tcpSocket", &mut errors)
    {
        errors.extend(validate::port_or_name(&format!("{path}.tcpSocket.port"), &tcp_socket.port));
    }
    if let Some(port) = action.grpc_port
        && second("grpc", &mut errors)
    {
        errors.extend(validate::port_number(&format!("{path}.grpc.port"), port));
    }
    if let Some(seconds) = action.sleep_seconds
        && second("sleep", &mut errors)
    {
        errors.extend(validate::non_negative(seconds, &format!("{path}.sleep.seconds")));
    }
    if handlers == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
    errors
}

fn validate_http_get(path: &str, action: &HTTPGetAction) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = Vec::new();
    errors.extend(validate::required(&format!("{path}.path"), action.path.as_deref().unwrap_or_default()));
    errors.extend(validate::port_or_name(&format!("{path}.port"), &action.port));
    errors.extend(validate::one_of_given(&format!("{path}.scheme"), action.scheme.as_deref(), &["HTTP", "HTTPS"]));
    for (index, header) in action.http_headers.iter().flatten().enumerate() {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if header.name.is_empty() || !header.name.bytes().all(allowed) {
            let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
                       validation is '[-A-Za-z0-9]+')";
            errors.push(FieldError::invalid(format!("{path}.httpHeaders[{index}].name"), header.name.clone(), why));
        }
    }
    errors
}
