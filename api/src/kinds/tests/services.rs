//! Service, Endpoints and EndpointSlice.

use serde_json::{Value, json};

use super::{create, created, errors, table, update, yaml};
use crate::registry::Part;

#[test]
fn services_are_filled_in() {
    let cases = [
        (
            "{ports: [{port: 80}], selector: {app: a}}",
            json!({
                "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "selector": { "app": "a" },
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }]
            }),
        ),
        (
            "{type: LoadBalancer, ports: [{port: 80, targetPort: web}], sessionAffinity: ClientIP, clusterIP: 10.0.0.9}",
            json!({
                "type": "LoadBalancer", "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Cluster",
                "externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true, "clusterIP": "10.0.0.9",
                "clusterIPs": ["10.0.0.9"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 10800 } },
                "ports": [{ "port": 80, "protocol": "TCP", "targetPort": "web" }]
            }),
        ),
        (
            "{type: ExternalName, externalName: example.com}",
            json!({ "type": "ExternalName", "sessionAffinity": "None", "externalName": "example.com" }),
        ),
    ];
    for (spec, expected) in cases {
        let stored = created("", "services", &format!("metadata: {{name: a}}\nspec: {spec}"));
        assert_eq!(stored["spec"], expected, "{spec}");
        assert_eq!(stored["status"], json!({ "loadBalancer": {} }));
    }
}

#[test]
fn services_that_are_refused() {
    let cases = [
        ("{}", "spec.ports: Required value"),
        (
            "{ports: [{port: 80}, {port: 80, name: b}]}",
            "spec.ports[0].name: Required value\n\
             spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\",\"targetPort\":0}",
        ),
        (
            "{ports: [{port: 0, nodePort: 30000}]}",
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive\n\
             spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive\n\
             spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            "{type: Magic, ports: [{port: 80}]}",
            "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        ("{type: ExternalName}", "spec.externalName: Required value"),
        (
            "{clusterIP: nowhere, ports: [{port: 80}]}",
            "spec.clusterIPs[0]: Invalid value: \"nowhere\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            "{clusterIP: None, type: NodePort, ports: [{port: 80}]}",
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(errors(create("", "services", &format!("metadata: {{name: a}}\nspec: {spec}"))), expected, "{spec}");
    }
}

#[test]
fn what_was_allocated_is_kept() {
    let old = created(
        "",
        "services",
        "metadata: {name: a}\nspec: {type: NodePort, clusterIP: 10.0.0.9, ports: [{port: 80, nodePort: 30080}]}",
    );
    let with_spec = |spec: &str| yaml(&format!("metadata: {{name: a}}\nspec: {spec}"));
    let same = update("", "services", with_spec("{type: NodePort, ports: [{port: 80}, {name: b, port: 81}]}"), &old, Part::Main);
    assert_eq!(errors(same), "spec.ports[0].name: Required value");
    let kept = update("", "services", with_spec("{type: NodePort, ports: [{port: 80}]}"), &old, Part::Main).unwrap();
    assert_eq!(kept["spec"], old["spec"]);
    let mut changed = old.clone();
    changed["spec"]["type"] = json!("ClusterIP");
    let changed = update("", "services", changed, &old, Part::Main).unwrap();
    assert_eq!(changed["spec"]["ports"], json!([{ "port": 80, "protocol": "TCP", "targetPort": 80 }]));
    assert_eq!(changed["spec"]["externalTrafficPolicy"], Value::Null);
    let mut external = old.clone();
    external["spec"]["type"] = json!("ExternalName");
    external["spec"]["externalName"] = json!("example.com");
    let external = update("", "services", external, &old, Part::Main).unwrap();
    assert_eq!(external["spec"]["clusterIP"], Value::Null);
    let moved = with_spec("{type: NodePort, clusterIP: 10.0.0.10, ports: [{port: 80}]}");
    assert_eq!(
        errors(update("", "services", moved, &old, Part::Main)),
        "spec.clusterIPs[0]: Invalid value: [\"10.0.0.10\"]: may not change once set"
    );
}

#[test]
fn addresses_that_are_refused() {
    let slice = "metadata: {name: a}\naddressType: IPv4\nendpoints: [{addresses: [127.0.0.1, 'a::b']}, {addresses: []}]\nports: [{port: 1}, {port: 2}]";
    assert_eq!(
        errors(create("discovery.k8s.io", "endpointslices", slice)),
        "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)\n\
         endpoints[0].addresses[1]: Invalid value: \"a::b\": must be an IPv4 address\n\
         endpoints[1].addresses: Required value: must contain at least 1 address\n\
         ports[1].name: Duplicate value: \"\""
    );
    let endpoints = "metadata: {name: a}\nsubsets: [{ports: [{port: 80}]}, {addresses: [{ip: 10.0.0.1}], ports: [{port: 0}]}]";
    assert_eq!(
        errors(create("", "endpoints", endpoints)),
        "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`\n\
         subsets[1].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"
    );
}

#[test]
fn rows_of_services() {
    let service =
        |name: &str, spec: &str| yaml(&format!("metadata: {{name: {name}}}\nspec: {spec}\nstatus: {{loadBalancer: {{}}}}"));
    let services = [
        service(
            "inner",
            "{type: ClusterIP, clusterIP: 10.0.0.1, ports: [{port: 80, protocol: TCP}, {port: 53, protocol: UDP}], selector: {b: x, a: z}}",
        ),
        service("headless", "{type: ClusterIP, clusterIP: None}"),
        service("node", "{type: NodePort, clusterIP: 10.0.0.2, ports: [{port: 80, protocol: TCP, nodePort: 30080}]}"),
        service("balanced", "{type: LoadBalancer, clusterIP: 10.0.0.3, ports: [{port: 80, protocol: TCP}]}"),
        service("external", "{type: ExternalName, externalName: example.com}"),
    ];
    let endpoints = yaml(
        "metadata: {name: e}\nsubsets: [{addresses: [{ip: 10.0.0.1}, {ip: 10.0.0.2}], ports: [{port: 80, protocol: TCP}, {port: 81, protocol: TCP}]}]",
    );
    let slice = yaml(
        "metadata: {name: s}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]",
    );
    let empty = yaml("metadata: {name: t}\naddressType: IPv4\nendpoints: []");
    let shown = [
        table("", "services", &services),
        table("", "endpoints", &[endpoints, yaml("metadata: {name: f}")]),
        table("discovery.k8s.io", "endpointslices", &[slice, empty]),
    ];
    insta::assert_snapshot!(shown.join("\n\n"));
}
