//! From a container's requests and limits to cgroup numbers (`pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`).

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{
    pod::{
        model::{Role, init_slots, regular_slots},
        qos::{QosClass, qos_class},
    },
    runtime::{ContainerResources, PodResources},
};

/// The CFS period: 100 ms.
const PERIOD_US: u64 = 100_000;
const MINIMUM_QUOTA_US: i64 = 1000;
const MINIMUM_SHARES: u64 = 2;
const MAXIMUM_SHARES: u64 = 262_144;

/// A quantity in thousand-millionths of its unit; `None` when it does not parse.
pub fn nano(text: &str) -> Option<i128> {
    const NANO: i128 = 1_000_000_000;
    let text = text.trim();
    let end = text
        .char_indices()
        .find(|(index, letter)| !(letter.is_ascii_digit() || *letter == '.' || (*index == 0 && matches!(letter, '+' | '-'))))
        .map_or(text.len(), |(index, _)| index);
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let kept: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let fraction: i128 = kept.parse().ok()?;
    let value = whole.checked_mul(NANO)?.checked_add(fraction)?;
    let (multiplier, divisor): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (NANO, 1),
        "T" => (NANO * 1000, 1),
        "P" => (NANO * 1_000_000, 1),
        "E" => (NANO * NANO, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs())?;
            if power >= 0 { (factor, 1) } else { (1, factor) }
        }
    };
    let scaled = value.checked_mul(multiplier)? / divisor;
    Some(if negative { -scaled } else { scaled })
}

/// A quantity of cpu in thousandths, rounded up.
pub fn millis(text: &str) -> Option<i64> {
    let nano = nano(text)?;
    i64::try_from((nano + 999_999).div_euclid(1_000_000)).ok()
}

/// A quantity in whole units, rounded up.
pub fn whole(text: &str) -> Option<i64> {
    let nano = nano(text)?;
    i64::try_from((nano + 999_999_999).div_euclid(1_000_000_000)).ok()
}

/// The limit of `resource` of a container, as written.
pub fn limit<'a>(container: &'a Container, resource: &str) -> Option<&'a str> {
    container.resources.as_ref()?.limits.as_ref()?.get(resource).map(|quantity| quantity.0.as_str())
}

/// The request, or the limit where only that is given.
pub fn request<'a>(container: &'a Container, resource: &str) -> Option<&'a str> {
    let requests = container.resources.as_ref()?.requests.as_ref();
    requests
        .and_then(|requests| requests.get(resource))
        .map(|quantity| quantity.0.as_str())
        .or_else(|| limit(container, resource))
}

/// The cgroup limits of a container on a node with `memory_capacity_bytes`.
pub fn container_resources(pod: &Pod, container: &Container, memory_capacity_bytes: u64) -> ContainerResources {
    let cpu_request = request(container, "cpu").and_then(millis).unwrap_or(0);
    let cpu_limit = limit(container, "cpu").and_then(millis).filter(|limit| *limit > 0);
    let memory_limit = limit(container, "memory").and_then(whole).filter(|limit| *limit > 0);
    let memory_request = request(container, "memory").and_then(whole).unwrap_or(0);
    ContainerResources {
        cpu_shares: Some(shares(cpu_request)),
        cpu_quota_us: cpu_limit.map(|limit| (limit * i64::try_from(PERIOD_US / 1000).unwrap_or(100)).max(MINIMUM_QUOTA_US)),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US),
        memory_limit_bytes: memory_limit,
        pids_limit: None,
        oom_score_adj: oom_score(pod, memory_request, memory_capacity_bytes),
    }
}

/// The cgroup limits of a pod as a whole (`pkg/kubelet/cm/helpers_linux.go: ResourceConfigForPod`): what its containers ask for
/// together, and what they may use if each of them has a limit.
pub fn pod_resources(pod: &Pod) -> PodResources {
    let cpu = |container: &Container| Some(request(container, "cpu").and_then(millis).unwrap_or(0));
    let quota = |container: &Container| container_resources(pod, container, 1).cpu_quota_us;
    let memory = |container: &Container| limit(container, "memory").and_then(whole).filter(|limit| *limit > 0);
    PodResources {
        cpu_shares: Some(shares(together(pod, cpu).unwrap_or(0))),
        cpu_quota_us: together(pod, quota),
        memory_limit_bytes: together(pod, memory),
    }
}

/// The most that containers that run at one time need, or `None` when one of them gives no value: an init container runs beside
/// the sidecars before it, the regular ones beside all of them.
fn together(pod: &Pod, value: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let (mut sidecars, mut most) = (0_i64, 0_i64);
    for slot in init_slots(pod) {
        let own = value(slot.container)?;
        most = most.max(sidecars.saturating_add(own));
        if slot.role == Role::Sidecar {
            sidecars = sidecars.saturating_add(own);
        }
    }
    let mut regular = sidecars;
    for slot in regular_slots(pod) {
        regular = regular.saturating_add(value(slot.container)?);
    }
    Some(most.max(regular))
}

fn shares(millis: i64) -> u64 {
    (u64::try_from(millis).unwrap_or(0) * 1024 / 1000).clamp(MINIMUM_SHARES, MAXIMUM_SHARES)
}

/// `pkg/kubelet/qos/policy.go`: the less of the node's memory a burstable container asks for, the sooner it dies.
fn oom_score(pod: &Pod, memory_request: i64, memory_capacity_bytes: u64) -> i32 {
    let critical = pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= 2_000_000_000);
    if critical {
        return -997;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let capacity = i128::from(memory_capacity_bytes.max(1));
            let score = 1000 - 1000 * i128::from(memory_request) / capacity;
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_read_in_every_form() {
        for (text, expected) in [
            ("1", Some(1_000_000_000)),
            ("100m", Some(100_000_000)),
            ("1.5", Some(1_500_000_000)),
            (".5", Some(500_000_000)),
            ("1Ki", Some(1_024_000_000_000)),
            ("2e3", Some(2_000_000_000_000)),
            ("12E-1", Some(1_200_000_000)),
            ("-1", Some(-1_000_000_000)),
            ("1E", Some(1_000_000_000_000_000_000_000_000_000)),
            ("", None),
            ("Gi", None),
            ("1Xi", None),
        ] {
            assert_eq!(nano(text), expected, "{text:?}");
        }
        assert_eq!(millis("1n"), Some(1));
        assert_eq!(whole("1.1"), Some(2));
        assert_eq!(whole("128Mi"), Some(134_217_728));
    }

    #[test]
    fn a_pod_has_what_its_containers_have_together() {
        let limits = |cpu: &str, memory: &str| json!({ "limits": { "cpu": cpu, "memory": memory } });
        let case = |init: serde_json::Value, regular: serde_json::Value| {
            let pod = serde_json::from_value(json!({ "spec": { "initContainers": init, "containers": regular } })).unwrap();
            let found = pod_resources(&pod);
            (found.cpu_shares, found.cpu_quota_us, found.memory_limit_bytes)
        };
        let two = json!([{ "name": "a", "resources": limits("1", "64") }, { "name": "b", "resources": limits("500m", "32") }]);
        assert_eq!(case(json!([]), two.clone()), (Some(1536), Some(150_000), Some(96)));
        let init = json!([{ "name": "s", "restartPolicy": "Always", "resources": limits("1", "10") },
            { "name": "i", "resources": limits("2", "20") }]);
        assert_eq!(case(init, two), (Some(3072), Some(300_000), Some(106)));
        let one = json!([{ "name": "a", "resources": limits("1", "64") }, { "name": "b" }]);
        assert_eq!(case(json!([]), one), (Some(1024), None, None), "a limit of each, or none of all");
        assert_eq!(case(json!([]), json!([{ "name": "a" }])), (Some(2), None, None));
    }

    #[test]
    fn limits_become_cgroup_numbers() {
        let gibibyte = 1 << 30;
        let case = |resources: serde_json::Value| {
            let pod: Pod =
                serde_json::from_value(json!({ "spec": { "containers": [{ "name": "c", "resources": resources }] } })).unwrap();
            let resources = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], 4 * gibibyte);
            (resources.cpu_shares, resources.cpu_quota_us, resources.memory_limit_bytes, resources.oom_score_adj)
        };
        assert_eq!(case(json!({})), (Some(2), None, None, 1000));
        assert_eq!(
            case(json!({ "requests": { "cpu": "250m", "memory": "1Gi" }, "limits": { "cpu": "500m" } })),
            (Some(256), Some(50_000), None, 750)
        );
        assert_eq!(
            case(json!({ "limits": { "cpu": "1", "memory": "64Mi" } })),
            (Some(1024), Some(100_000), Some(67_108_864), -997)
        );
        assert_eq!(case(json!({ "limits": { "cpu": "1m" } })).1, Some(1000));
        assert_eq!(case(json!({ "requests": { "memory": "1" } })).3, 999);
    }
}
