//! Pods: what is filled in, what is refused, what may change, what `kubectl get pods -o wide` shows.

use serde_json::{Value, json};

use super::{create, created, errors, table, update, with_resource, yaml};
use crate::registry::{Deletion, Part};

const SMALL: &str = "metadata: {name: a, namespace: ns}\nspec: {containers: [{name: c, image: 'nginx:1.2'}]}";

#[test]
fn a_small_pod_is_filled_in() {
    insta::assert_json_snapshot!(created("", "pods", SMALL));
}

#[test]
fn a_large_pod_is_filled_in() {
    let text = "
metadata: {name: a, namespace: ns}
spec:
  hostNetwork: true
  serviceAccount: robot
  unknownField: 1
  initContainers: [{name: i, image: busybox, args: []}]
  containers:
  - name: c
    image: nginx
    ports: [{containerPort: 80}]
    env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: B, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]
    livenessProbe: {httpGet: {port: http}}
    lifecycle: {preStop: {httpGet: {port: 80, path: /bye}}}
    resources: {limits: {cpu: 0.5, memory: 1024Mi}}
  volumes:
  - name: empty
  - {name: secret, secret: {secretName: s}}
  - {name: map, configMap: {name: m}}
  - {name: host, hostPath: {path: /}}
  - {name: down, downwardAPI: {items: [{path: p, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: all, projected: {sources: [{serviceAccountToken: {path: t}}]}}
status: {phase: Running}
";
    insta::assert_json_snapshot!(created("", "pods", text));
}

#[test]
fn pods_that_are_refused() {
    let cases = [
        ("{}", "spec.containers: Required value"),
        (
            "{containers: [{name: A, image: ''}]}",
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric \
             characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
             validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')\nspec.containers[0].image: Required value",
        ),
        ("{containers: [{name: a, image: x}, {name: a, image: x}]}", "spec.containers[1].name: Duplicate value: \"a\""),
        (
            "{restartPolicy: Sometimes, containers: [{name: a, image: x}]}",
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (
            "{containers: [{name: a, image: x, ports: [{}, {containerPort: 70000, protocol: tcp}]}]}",
            "spec.containers[0].ports[0].containerPort: Required value\n\
             spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive\n\
             spec.containers[0].ports[1].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            "{containers: [{name: a, image: x, volumeMounts: [{name: v, mountPath: /a}, {name: v}]}]}",
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"\n\
             spec.containers[0].volumeMounts[1].name: Not found: \"v\"\n\
             spec.containers[0].volumeMounts[1].mountPath: Required value",
        ),
        (
            "{containers: [{name: a, image: x, resources: {limits: {cpu: 1}, requests: {cpu: 2, memory: -1, disk: 1}}}]}",
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1\n\
             spec.containers[0].resources.requests[disk]: Invalid value: \"disk\": must be a standard resource for containers\n\
             spec.containers[0].resources.requests[disk]: Invalid value: \"disk\": must be a standard resource type or fully \
             qualified\nspec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            "{containers: [{name: a, image: x, livenessProbe: {successThreshold: 2}, readinessProbe: {exec: {}, tcpSocket: {port: 1}}}]}",
            "spec.containers[0].livenessProbe: Required value: must specify a handler type\n\
             spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1\n\
             spec.containers[0].readinessProbe.exec.command: Required value\n\
             spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
        (
            "{containers: [{name: a, image: x, env: [{name: A, value: b, valueFrom: {}}, {name: B, valueFrom: {secretKeyRef: {}}}]}]}",
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, \
             `configMapKeyRef` or `secretKeyRef`\n\
             spec.containers[0].env[1].valueFrom.secretKeyRef.name: Required value\n\
             spec.containers[0].env[1].valueFrom.secretKeyRef.key: Required value",
        ),
        (
            "{containers: [{name: a, image: x}], tolerations: [{key: k, operator: Near}, {value: v}]}",
            "spec.tolerations[0].operator: Unsupported value: \"Near\": supported values: \"Equal\", \"Exists\"\n\
             spec.tolerations[1].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all \
             values and all keys\"",
        ),
        (
            "{containers: [{name: a, image: x}], topologySpreadConstraints: [{maxSkew: 0, whenUnsatisfiable: Never}]}",
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero\n\
             spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty\n\
             spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Never\": supported values: \
             \"DoNotSchedule\", \"ScheduleAnyway\"",
        ),
        (
            "{containers: [{name: a, image: x}], affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
             {nodeSelectorTerms: []}}, podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 0, \
             podAffinityTerm: {}}]}}}",
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have \
             at least one node selector term\n\
             spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in \
             the range 1-100\n\
             spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: Required \
             value: can not be empty",
        ),
        (
            "{containers: [{name: a, image: x}], volumes: [{name: v, secret: {}, emptyDir: {}}, {name: v, hostPath: {path: /a/../b}}]}",
            "spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type\n\
             spec.volumes[0].secret.secretName: Required value\n\
             spec.volumes[1].name: Duplicate value: \"v\"\n\
             spec.volumes[1].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            "{containers: [{name: a, image: x}], initContainers: [{name: i, image: x, livenessProbe: {exec: {command: [a]}}}]}",
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (
            "{containers: [{name: a, image: x, securityContext: {privileged: true, allowPrivilegeEscalation: false, runAsUser: -1}}]}",
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive\n\
             spec.containers[0].securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true,\
             \"runAsUser\":-1}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ),
        (
            "{containers: [{name: a, image: x, resources: {requests: {cpu: much}}}]}",
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "{containers: [{name: a, image: [x]}]}",
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal array into Go struct field \
             Container.spec.containers.image of type string",
        ),
        (
            "{terminationGracePeriodSeconds: soon}",
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field \
             PodSpec.spec.terminationGracePeriodSeconds of type int64",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(errors(create("", "pods", &format!("metadata: {{name: a}}\nspec: {spec}"))), expected, "{spec}");
    }
}

#[test]
fn little_of_a_pod_may_change() {
    let old = created("", "pods", SMALL);
    let change = |path: &str, value: Value| {
        let mut new = old.clone();
        let (parent, field) = path.rsplit_once('/').unwrap();
        new.pointer_mut(parent).unwrap()[field] = value;
        update("", "pods", new, &old, Part::Main)
    };
    let renamed = change("/spec/containers/0/image", json!("nginx:2")).unwrap();
    assert_eq!(renamed["metadata"]["generation"], 2);
    assert_eq!(change("/metadata/labels", json!({ "a": "b" })).unwrap()["metadata"]["generation"], 1);
    assert_eq!(change("/status/phase", json!("Failed")).unwrap()["status"]["phase"], "Pending");
    let tolerant = change("/spec/tolerations", json!([{ "operator": "Exists" }])).unwrap();
    assert_eq!(tolerant["spec"]["tolerations"][0]["operator"], "Exists");
    assert_eq!(
        errors(change("/spec/restartPolicy", json!("Never"))),
        "spec: Forbidden: pod updates may not change fields other than \
         `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
         existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n\
         -  spec.restartPolicy: \"Always\"\n+  spec.restartPolicy: \"Never\""
    );
    assert_eq!(
        errors(change("/spec/containers", json!([]))),
        "spec.containers: Forbidden: pod updates may not add or remove containers"
    );
    let mut running = old.clone();
    running["status"] = json!({ "phase": "Running", "podIP": "10.0.0.1" });
    running["spec"]["containers"] = json!([]);
    let stored = update("", "pods", running, &old, Part::Status).unwrap();
    assert_eq!(stored["spec"], old["spec"]);
    assert_eq!(stored["status"]["podIPs"], json!([{ "ip": "10.0.0.1" }]));
    assert_eq!(stored["status"]["qosClass"], "BestEffort");
}

#[test]
fn deletion_is_graceful_on_a_node() {
    let cases = [
        ("{}", "{}", None, Deletion::Now),
        ("{nodeName: node, terminationGracePeriodSeconds: 30}", "{}", None, Deletion::Graceful { seconds: 30 }),
        ("{nodeName: node, terminationGracePeriodSeconds: 30}", "{}", Some(5), Deletion::Graceful { seconds: 5 }),
        ("{nodeName: node, terminationGracePeriodSeconds: 30}", "{}", Some(0), Deletion::Now),
        ("{nodeName: node, terminationGracePeriodSeconds: -1}", "{}", None, Deletion::Graceful { seconds: 1 }),
        ("{nodeName: node, terminationGracePeriodSeconds: 30}", "{phase: Succeeded}", None, Deletion::Now),
    ];
    for (spec, status, seconds, expected) in cases {
        let pod = yaml(&format!("metadata: {{name: a}}\nspec: {spec}\nstatus: {status}"));
        with_resource("", "pods", |resource| {
            assert_eq!(resource.behaviour.deletion(&pod, seconds), expected, "{spec} {status} {seconds:?}");
        });
    }
}

fn pod(name: &str, spec: &str, status: &str) -> Value {
    yaml(&format!("metadata: {{name: {name}, creationTimestamp: '2026-01-01T23:00:00Z'}}\nspec: {spec}\nstatus: {status}"))
}

#[test]
fn rows_of_pods() {
    let one = "{nodeName: node, containers: [{name: c}]}";
    let init = "{containers: [{name: c}], initContainers: [{name: i}, {name: j}]}";
    let sidecar = "{containers: [{name: c}], initContainers: [{name: s, restartPolicy: Always}]}";
    let mut ending = pod("ending", one, "{phase: Running, containerStatuses: [{name: c, ready: true, state: {running: {}}}]}");
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T23:30:00Z");
    let mut lost = ending.clone();
    lost["metadata"]["name"] = json!("lost");
    lost["status"]["reason"] = json!("NodeLost");
    let pods = [
        pod("pending", "{containers: [{name: c}]}", "{phase: Pending}"),
        pod(
            "gated",
            "{containers: [{name: c}]}",
            "{phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: SchedulingGated}]}",
        ),
        pod(
            "running",
            one,
            "{phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], containerStatuses: [{name: c, ready: true, state: {running: {}}}]}",
        ),
        pod("creating", one, "{phase: Pending, containerStatuses: [{name: c, state: {waiting: {reason: ContainerCreating}}}]}"),
        pod(
            "crashing",
            one,
            "{phase: Running, containerStatuses: [{name: c, restartCount: 3, state: {waiting: {reason: CrashLoopBackOff}}, lastState: \
             {terminated: {exitCode: 1, finishedAt: '2026-01-01T23:50:00Z'}}}]}",
        ),
        pod(
            "completed",
            one,
            "{phase: Succeeded, containerStatuses: [{name: c, state: {terminated: {exitCode: 0, reason: Completed}}}]}",
        ),
        pod("failed", one, "{phase: Failed, containerStatuses: [{name: c, state: {terminated: {exitCode: 3}}}]}"),
        pod("killed", one, "{phase: Failed, containerStatuses: [{name: c, state: {terminated: {exitCode: 137, signal: 9}}}]}"),
        pod("evicted", one, "{phase: Failed, reason: Evicted}"),
        pod(
            "starting",
            init,
            "{phase: Pending, initContainerStatuses: [{name: i, state: {running: {}}}, {name: j, state: {waiting: {reason: PodInitializing}}}]}",
        ),
        pod(
            "halfway",
            init,
            "{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 0}}}, {name: j, restartCount: 2, state: \
             {terminated: {exitCode: 1, reason: Error}}}]}",
        ),
        pod(
            "looping",
            init,
            "{phase: Pending, initContainerStatuses: [{name: i, restartCount: 1, state: {waiting: {reason: CrashLoopBackOff}}}]}",
        ),
        pod(
            "sidecar",
            sidecar,
            "{phase: Running, initContainerStatuses: [{name: s, ready: true, started: true, restartCount: 1, state: {running: {}}}], \
             containerStatuses: [{name: c, ready: true, restartCount: 1, state: {running: {}}}]}",
        ),
        pod(
            "notready",
            "{containers: [{name: c}, {name: d}]}",
            "{phase: Running, containerStatuses: [{name: c, state: {terminated: {exitCode: 0, reason: Completed}}}, {name: d, ready: true, \
             state: {running: {}}}]}",
        ),
        pod(
            "gates",
            "{containers: [{name: c}], readinessGates: [{conditionType: a/b}, {conditionType: c}]}",
            "{phase: Pending, nominatedNodeName: m, conditions: [{type: c, status: 'True'}]}",
        ),
        ending,
        lost,
    ];
    insta::assert_snapshot!(table("", "pods", &pods));
}
