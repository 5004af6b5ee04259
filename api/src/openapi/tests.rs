use super::*;
use crate::testing;

fn built() -> (Registry, Schemas) {
    let registry = testing::registry();
    let schemas = Schemas::build(&registry);
    (registry, schemas)
}

/// Each path with its methods and what they do, a line each.
fn outline(document: &Value) -> String {
    let mut lines = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(method, _)| *method != "parameters") {
            let kind = operation[GVK]["kind"].as_str().unwrap();
            lines.push(format!("{path} {method} {} {kind}", operation["operationId"].as_str().unwrap()));
        }
    }
    lines.join("\n")
}

#[test]
fn paths_and_operations() {
    let (registry, schemas) = built();
    let apps = v3_group(&registry, &schemas, "apps", "v1").unwrap();
    insta::assert_snapshot!(outline(&apps), @r#"
    /apis/apps/v1/deployments get listAppsV1DeploymentForAllNamespaces Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments delete deleteAppsV1CollectionNamespacedDeployment Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments get listAppsV1NamespacedDeployment Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments post createAppsV1NamespacedDeployment Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments/{name} delete deleteAppsV1NamespacedDeployment Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments/{name} get readAppsV1NamespacedDeployment Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments/{name} patch patchAppsV1NamespacedDeployment Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments/{name} put replaceAppsV1NamespacedDeployment Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale get readAppsV1NamespacedDeploymentScale Scale
    /apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale patch patchAppsV1NamespacedDeploymentScale Scale
    /apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale put replaceAppsV1NamespacedDeploymentScale Scale
    /apis/apps/v1/namespaces/{namespace}/deployments/{name}/status get readAppsV1NamespacedDeploymentStatus Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments/{name}/status patch patchAppsV1NamespacedDeploymentStatus Deployment
    /apis/apps/v1/namespaces/{namespace}/deployments/{name}/status put replaceAppsV1NamespacedDeploymentStatus Deployment
    "#);
    let both = outline(&v2(&registry, &schemas));
    assert!(outline(&apps).lines().all(|line| both.lines().any(|other| other == line)));
    assert!(both.contains("/api/v1/namespaces/{namespace}/pods/{name}/binding post createCoreV1NamespacedPodBinding Binding"));
    assert_eq!(v3_group(&registry, &schemas, "apps", "v2"), None);
}

#[test]
fn what_kubectl_looks_for() {
    let (registry, schemas) = built();
    let core = v3_group(&registry, &schemas, "", "v1").unwrap();
    let item = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"];
    let patch = &item["patch"];
    let names: Vec<&str> = patch["parameters"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let content = patch["requestBody"]["content"].as_object().unwrap();
    assert!(content.contains_key("application/strategic-merge-patch+json"), "{content:?}");
    assert_eq!(patch[GVK], json!({ "group": "", "version": "v1", "kind": "Pod" }));
    assert_eq!(
        item["delete"]["requestBody"]["content"]["*/*"]["schema"]["$ref"],
        "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"
    );
    let components = &core["components"]["schemas"];
    assert_eq!(components["io.k8s.api.core.v1.Pod"][GVK], json!([{ "group": "", "version": "v1", "kind": "Pod" }]));
    let containers = &components["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(
        components["io.k8s.api.core.v1.Pod"]["properties"]["spec"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.core.v1.PodSpec"
    );
    assert_eq!(components[INT_OR_STRING]["oneOf"], json!([{ "type": "integer" }, { "type": "string" }]));
    let options = components["io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"][GVK].as_array().unwrap();
    assert_eq!(options.len(), 2);
}

#[test]
fn every_reference_is_there() {
    let (registry, schemas) = built();
    for (group, version) in [("", "v1"), ("apps", "v1")] {
        let document = v3_group(&registry, &schemas, group, version).unwrap();
        let mut wanted = BTreeSet::new();
        references(&document, &mut wanted);
        let missing: Vec<&String> =
            wanted.iter().filter(|name| document["components"]["schemas"].get(name.as_str()).is_none()).collect();
        assert!(missing.is_empty() && wanted.len() > 40, "{missing:?}");
    }
    let document = v2(&registry, &schemas).to_string();
    assert!(!document.contains("#/components/"));
    let parsed: Value = serde_json::from_str(&document).unwrap();
    for reference in document.split("\"#/definitions/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(parsed["definitions"].get(reference).is_some(), "{reference}");
    }
}

#[test]
fn the_index_names_documents_by_their_content() {
    let (registry, schemas) = built();
    let index = v3_index(&registry, &schemas);
    let paths: Vec<&String> = index["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["api/v1", "apis/apps/v1"]);
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap();
    let hash = url.strip_prefix("/openapi/v3/api/v1?hash=").unwrap();
    let document = v3_group(&registry, &schemas, "", "v1").unwrap();
    assert_eq!(hash, document_hash(document.to_string().as_bytes()));
    assert_eq!(hash.len(), 128);
}

/// Splits a message into its fields: number and content (of those that have a length).
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        match key & 7 {
            0 => {
                varint(&mut bytes);
            }
            1 => bytes = &bytes[8..],
            2 => {
                let length = varint(&mut bytes) as usize;
                found.push((key >> 3, &bytes[..length]));
                bytes = &bytes[length..];
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

fn only(bytes: &[u8], field: u64) -> &[u8] {
    fields(bytes).into_iter().find(|(number, _)| *number == field).unwrap_or_else(|| panic!("no field {field}")).1
}

#[test]
fn the_protobuf_form_holds_the_same() {
    let (registry, schemas) = built();
    let document = v2(&registry, &schemas);
    let bytes = v2_protobuf(&document);
    assert_eq!(only(&bytes, 1), b"2.0");
    assert_eq!(only(only(&bytes, 2), 2), b"unversioned");
    assert_eq!(fields(only(&bytes, 8)).len(), document["paths"].as_object().unwrap().len());
    let definitions = fields(only(&bytes, 9));
    assert_eq!(definitions.len(), document["definitions"].as_object().unwrap().len());
    let pod = definitions.iter().find(|(_, entry)| only(entry, 1) == b"io.k8s.api.core.v1.Pod").unwrap().1;
    let schema = only(pod, 2);
    assert_eq!(only(only(schema, 22), 1), b"object");
    let extension = only(schema, 31);
    assert_eq!(only(extension, 1), GVK.as_bytes());
    assert_eq!(only(only(extension, 2), 2), br#"[{"group":"","kind":"Pod","version":"v1"}]"#);
    let properties = fields(only(schema, 25));
    let spec = properties.iter().find(|(_, entry)| only(entry, 1) == b"spec").unwrap().1;
    assert_eq!(only(only(spec, 2), 1), b"#/definitions/io.k8s.api.core.v1.PodSpec");
}

/// Answers every request of a client with what `answer` gives for its path, until the test ends.
fn serve(answer: impl Fn(&str, &str) -> Option<(&'static str, Vec<u8>)> + Send + Sync + 'static) -> std::net::SocketAddr {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let Some(Ok(request)) = lines.next() else { continue };
            let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let path = request.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
            let (code, content_type, body) = match answer(path, &headers.join("\n").to_lowercase()) {
                Some((content_type, body)) => ("200 OK", content_type, body),
                None => ("404 Not Found", "text/plain", Vec::new()),
            };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {code}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            // A client that goes away early is its own affair.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    address
}

#[test]
fn kubectl_explains_from_both_versions() {
    let (registry, schemas) = built();
    let v2_bytes = v2_protobuf(&v2(&registry, &schemas));
    let address = serve(move |path, headers| {
        let resources = |group_version: &str| {
            let listed = registry.iter().filter(|resource| resource.api_version() == group_version).map(|resource| {
                let (plural, kind) = (&resource.plural, &resource.kind);
                json!({ "name": plural, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["get", "list"] })
            });
            json!({ "kind": "APIResourceList", "groupVersion": group_version, "resources": listed.collect::<Vec<_>>() })
        };
        let apps = json!({ "groupVersion": "apps/v1", "version": "v1" });
        let document = match path {
            "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
            "/apis" => {
                json!({ "kind": "APIGroupList", "groups": [{ "name": "apps", "versions": [apps], "preferredVersion": apps }] })
            }
            "/api/v1" => resources("v1"),
            "/apis/apps/v1" => resources("apps/v1"),
            "/openapi/v3" => v3_index(&registry, &schemas),
            "/openapi/v3/api/v1" => v3_group(&registry, &schemas, "", "v1")?,
            "/openapi/v3/apis/apps/v1" => v3_group(&registry, &schemas, "apps", "v1")?,
            "/openapi/v2" => {
                assert!(headers.contains("application/com.github.proto-openapi.spec.v2@v1.0+protobuf"), "{headers}");
                return Some(("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", v2_bytes.clone()));
            }
            _ => return None,
        };
        Some(("application/json", document.to_string().into_bytes()))
    });
    let home = tempfile::tempdir().unwrap();
    for (output, arguments, expected) in [
        ("plaintext", &["pods.spec.containers.ports"][..], "containerPort\t<integer> -required-"),
        ("plaintext", &["deployments", "--recursive"], "matchExpressions\t<[]LabelSelectorRequirement>"),
        ("plaintext-openapiv2", &["pods.spec.containers.ports"], "containerPort\t<integer> -required-"),
        ("plaintext-openapiv2", &["deployments.spec.strategy"], "rollingUpdate\t<Object>"),
    ] {
        let run = std::process::Command::new("kubectl")
            .args(["explain", "--server", &format!("http://{address}"), "--output", output])
            .args(arguments)
            .env("HOME", home.path())
            .env_remove("KUBECONFIG")
            .output()
            .expect("kubectl is installed");
        let (text, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(text.contains(expected), "{output} {arguments:?}: {text}{errors}");
    }
}
