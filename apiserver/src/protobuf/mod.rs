//! Kubernetes' protobuf bodies (`application/vnd.kubernetes.protobuf`), read into the JSON that the rest of the server works on.
//!
//! The messages are described by `fields.txt`: one line a message, `number:name:type` for each field, in the numbering of
//! the `generated.proto` files of `k8s.io/api`. A name of `-` is a message whose fields belong to the object around it; a
//! type after `*` is a list, after `{` the values of a map.

mod wire;

use std::{collections::HashMap, sync::OnceLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use trireme_api::decode;

use wire::Reader;

/// The bytes before every body.
const MAGIC: &[u8] = b"k8s\0";
/// How deep messages may be nested.
const DEPTH_LIMIT: usize = 64;

/// Fields whose type in Kubernetes is a pointer: a zero was written on purpose. Other zeros stand for "not given".
const MEANT_ZEROS: &[&str] = &[
    "activeDeadlineSeconds",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "expirationSeconds",
    "fsGroup",
    "gracePeriodSeconds",
    "leaseDurationSeconds",
    "leaseTransitions",
    "minDomains",
    "mode",
    "partition",
    "priority",
    "progressDeadlineSeconds",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsUser",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "value",
];
/// The same for booleans.
const MEANT_FALSE: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "blockOwnerDeletion",
    "controller",
    "enableServiceLinks",
    "hostUsers",
    "immutable",
    "optional",
    "orphanDependents",
    "privileged",
    "readOnlyRootFilesystem",
    "ready",
    "runAsNonRoot",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "started",
    "terminating",
];

/// Why bytes are not a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("the protobuf message breaks off or is malformed")]
    Malformed,
    #[error("protobuf is not supported for {kind} of {api_version}; send application/json")]
    Unsupported { api_version: String, kind: String },
}

/// One field of a message.
struct Field {
    number: u32,
    /// Empty when the fields of the message belong to the object around it.
    name: &'static str,
    shape: Shape,
    kind: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Single,
    List,
    Map,
}

fn messages() -> &'static HashMap<&'static str, Vec<Field>> {
    static MESSAGES: OnceLock<HashMap<&'static str, Vec<Field>>> = OnceLock::new();
    MESSAGES.get_or_init(|| include_str!("fields.txt").lines().filter_map(message).collect())
}

fn message(line: &'static str) -> Option<(&'static str, Vec<Field>)> {
    let mut parts = line.split(' ');
    let name = parts.next()?;
    Some((name, parts.filter_map(field).collect()))
}

fn field(text: &'static str) -> Option<Field> {
    let mut parts = text.splitn(3, ':');
    let number = parts.next()?.parse().ok()?;
    let name = parts.next()?;
    let kind = parts.next()?;
    let (shape, kind) = match kind.split_at_checked(1)? {
        ("*", kind) => (Shape::List, kind),
        ("{", kind) => (Shape::Map, kind),
        _ => (Shape::Single, kind),
    };
    Some(Field { number, name: if name == "-" { "" } else { name }, shape, kind })
}

/// Reads a body: the envelope (`k8s.io/apimachinery/pkg/runtime.Unknown`), then the object in it.
///
/// # Errors
/// When it is not one, or of a kind whose messages are not described.
pub fn parse(body: &[u8]) -> Result<Value, ProtobufError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader::new(envelope);
    while let Some((number, value)) = reader.field()? {
        match number {
            1 => {
                let mut type_meta = Reader::new(value.bytes()?);
                while let Some((number, value)) = type_meta.field()? {
                    match number {
                        1 => api_version = value.text()?,
                        2 => kind = value.text()?,
                        _ => {}
                    }
                }
            }
            2 => raw = value.bytes()?,
            _ => {}
        }
    }
    let (name, _) = messages()
        .get_key_value(message_name(&api_version, &kind).as_str())
        .ok_or_else(|| ProtobufError::Unsupported { api_version: api_version.clone(), kind: kind.clone() })?;
    let mut object = Map::new();
    read_message(raw, name, &mut object, 0)?;
    object.insert("apiVersion".to_owned(), json!(api_version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

/// `core.v1.Pod` of (`v1`, `Pod`). Options that go with every group are the same message in all of them.
fn message_name(api_version: &str, kind: &str) -> String {
    if kind == "DeleteOptions" {
        return "meta.v1.DeleteOptions".to_owned();
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let package = group.split('.').next().unwrap_or_default();
    format!("{package}.{version}.{kind}")
}

fn read_message(bytes: &[u8], name: &str, object: &mut Map<String, Value>, depth: usize) -> Result<(), ProtobufError> {
    let fields = messages().get(name).filter(|_| depth < DEPTH_LIMIT).ok_or(ProtobufError::Malformed)?;
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.field()? {
        // Fields of newer versions fall away, as they do in JSON.
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        if field.name.is_empty() {
            read_message(value.bytes()?, field.kind, object, depth + 1)?;
            continue;
        }
        match field.shape {
            Shape::Single => {
                if let Some(value) = read_value(value, field.kind, depth)?.filter(|value| is_given(field, value)) {
                    object.insert(field.name.to_owned(), value);
                }
            }
            Shape::List => {
                let list = object.entry(field.name).or_insert_with(|| json!([]));
                if let (Some(list), Some(value)) = (list.as_array_mut(), read_value(value, field.kind, depth)?) {
                    list.push(value);
                }
            }
            Shape::Map => {
                let (key, value) = read_entry(value.bytes()?, field.kind, depth)?;
                let map = object.entry(field.name).or_insert_with(|| json!({}));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
        }
    }
    Ok(())
}

/// Whether a value was given, rather than written because the format always writes it.
fn is_given(field: &Field, value: &Value) -> bool {
    match value {
        // A message of its own, which is only written when it is meant; a Service's targetPort, which is always written, has 0
        // for "the same as the port", as if it were not given.
        _ if field.kind == "intorstring" && field.name != "targetPort" => true,
        Value::String(text) => !text.is_empty(),
        Value::Number(number) => number.as_i64() != Some(0) || MEANT_ZEROS.contains(&field.name),
        Value::Bool(flag) => *flag || MEANT_FALSE.contains(&field.name),
        _ => true,
    }
}

fn read_entry(bytes: &[u8], kind: &str, depth: usize) -> Result<(String, Value), ProtobufError> {
    let mut key = String::new();
    let mut value = None;
    let mut reader = Reader::new(bytes);
    while let Some((number, part)) = reader.field()? {
        match number {
            1 => key = part.text()?,
            2 => value = read_value(part, kind, depth)?,
            _ => {}
        }
    }
    let absent = || if matches!(kind, "string" | "bytes") { json!("") } else { json!({}) };
    Ok((key, value.unwrap_or_else(absent)))
}

/// One value; `None` for a time that was not given.
fn read_value(value: wire::Field<'_>, kind: &str, depth: usize) -> Result<Option<Value>, ProtobufError> {
    Ok(Some(match kind {
        "string" => json!(value.text()?),
        "bytes" => json!(STANDARD.encode(value.bytes()?)),
        "bool" => json!(value.integer()? != 0),
        "int" => json!(value.integer()?),
        "double" => json!(value.double()?),
        "time" | "microtime" => match read_time(value.bytes()?)? {
            Some(time) if kind == "time" => json!(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            Some(time) => json!(time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()),
            None => return Ok(None),
        },
        "quantity" => {
            let mut text = String::new();
            let mut reader = Reader::new(value.bytes()?);
            while let Some((number, part)) = reader.field()? {
                if number == 1 {
                    text = part.text()?;
                }
            }
            json!(text)
        }
        "intorstring" => read_int_or_string(value.bytes()?)?,
        "raw" => {
            let mut reader = Reader::new(value.bytes()?);
            let mut raw = Value::Null;
            while let Some((number, part)) = reader.field()? {
                if number == 1 {
                    // With the limits of a body of its own: what is deeper could be stored and never read again.
                    raw = decode::parse_json(part.bytes()?).map_err(|_| ProtobufError::Malformed)?.value;
                }
            }
            raw
        }
        message => {
            let mut object = Map::new();
            read_message(value.bytes()?, message, &mut object, depth + 1)?;
            Value::Object(object)
        }
    }))
}

fn read_time(bytes: &[u8]) -> Result<Option<Timestamp>, ProtobufError> {
    let (mut seconds, mut nanoseconds) = (0, 0);
    let mut reader = Reader::new(bytes);
    while let Some((number, part)) = reader.field()? {
        match number {
            1 => seconds = part.integer()?,
            2 => nanoseconds = i32::try_from(part.integer()?).map_err(|_| ProtobufError::Malformed)?,
            _ => {}
        }
    }
    if (seconds, nanoseconds) == (0, 0) {
        return Ok(None);
    }
    Timestamp::new(seconds, nanoseconds).map(Some).map_err(|_| ProtobufError::Malformed)
}

fn read_int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number_value, mut text) = (false, 0, String::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, part)) = reader.field()? {
        match number {
            1 => is_text = part.integer()? == 1,
            2 => number_value = part.integer()?,
            3 => text = part.text()?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number_value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length-delimited field.
    fn part(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).expect("a short field")];
        bytes.extend_from_slice(content);
        bytes
    }

    fn body(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let type_meta = [part(1, api_version.as_bytes()), part(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), part(1, &type_meta), part(2, object)].concat()
    }

    #[test]
    fn a_config_map_is_read() {
        let metadata = [part(1, b"a"), part(2, b""), part(8, b""), part(11, &[part(1, b"k"), part(2, b"v")].concat())].concat();
        let object = [
            part(1, &metadata),
            part(2, &[part(1, b"x"), part(2, b"y")].concat()),
            part(3, &[part(1, b"b"), part(2, &[0, 1])].concat()),
        ];
        let expected = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a", "labels": { "k": "v" } },
            "data": { "x": "y" }, "binaryData": { "b": "AAE=" },
        });
        assert_eq!(parse(&body("v1", "ConfigMap", &object.concat())), Ok(expected));
    }

    #[test]
    fn inlined_messages_and_zeros() {
        // replicas: 0 was meant; minReadySeconds: 0 is always written.
        let deployment = parse(&body("apps/v1", "Deployment", &part(2, &[0x08, 0, 0x28, 0]))).expect("a deployment");
        assert_eq!(deployment["spec"], json!({ "replicas": 0 }));
        let empty_dir = part(2, &part(2, b""));
        let volume = [part(1, b"v"), empty_dir].concat();
        let pod = parse(&body("v1", "Pod", &part(2, &part(1, &volume)))).expect("a pod");
        assert_eq!(pod["spec"]["volumes"], json!([{ "name": "v", "emptyDir": {} }]));
    }

    #[test]
    fn zeros_that_are_messages_were_meant() {
        // An IntOrString of the type 0 (a number) and the value 0.
        let zero = [0x08, 0, 0x10, 0];
        let rolling = [part(1, &zero), part(2, &zero)].concat();
        let strategy = [part(1, b"RollingUpdate"), part(2, &rolling)].concat();
        let deployment = parse(&body("apps/v1", "Deployment", &part(2, &part(4, &strategy)))).expect("a deployment");
        let expected = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 0 } });
        assert_eq!(deployment["spec"]["strategy"], expected);
        // A Service always has a targetPort; 0 is none.
        let port = [vec![0x18, 80], part(4, &zero)].concat();
        let service = parse(&body("v1", "Service", &part(2, &part(1, &port)))).expect("a service");
        assert_eq!(service["spec"]["ports"], json!([{ "port": 80 }]));
        let status = [part(1, b"c"), vec![0x48, 0]].concat();
        let pod = parse(&body("v1", "Pod", &part(3, &part(8, &status)))).expect("a pod");
        assert_eq!(pod["status"]["containerStatuses"], json!([{ "name": "c", "started": false }]));
    }

    #[test]
    fn broken_bodies_are_refused() {
        assert_eq!(parse(b"{}"), Err(ProtobufError::Magic));
        assert_eq!(parse(&[MAGIC, &[0x0a, 0x7f, 1]].concat()), Err(ProtobufError::Malformed));
        let unknown = parse(&body("v1", "Nothing", b""));
        assert!(matches!(unknown, Err(ProtobufError::Unsupported { .. })));
        assert_eq!(
            parse(&body("v1", "ConfigMap", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])),
            Err(ProtobufError::Malformed)
        );
    }

    #[test]
    fn every_type_that_is_named_is_described() {
        let builtin = ["string", "bytes", "bool", "int", "double", "time", "microtime", "quantity", "intorstring", "raw"];
        for (name, fields) in messages() {
            for field in fields {
                assert!(
                    builtin.contains(&field.kind) || messages().contains_key(field.kind),
                    "{name}.{}: {}",
                    field.name,
                    field.kind
                );
            }
        }
    }
}
