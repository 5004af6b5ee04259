//! The conditions that pods put on nodes and on other pods, in a form that is cheap to evaluate.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::LabelSelector as LabelSelectorObject};
use serde_json::Value;
use trireme_api::selector::{LabelSelector, Operator, Requirement};

use crate::{cluster::Namespaces, node::NodeSpec};

pub type LabelMap = BTreeMap<String, String>;

/// One `nodeSelectorTerm`: all its conditions must hold; without any it matches no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    /// On `metadata.name`, the only field that Kubernetes knows here.
    name: Vec<Requirement>,
}

impl NodeTerm {
    pub fn new(term: &core::NodeSelectorTerm) -> Self {
        let parse = |list: &Option<Vec<core::NodeSelectorRequirement>>| -> Vec<Requirement> {
            list.iter().flatten().filter_map(node_requirement).collect()
        };
        Self { labels: parse(&term.match_expressions), name: parse(&term.match_fields) }
    }

    pub fn matches(&self, name: &str, node: &NodeSpec) -> bool {
        if self.labels.is_empty() && self.name.is_empty() {
            return false;
        }
        let listed = |field: &Requirement| field.key == "metadata.name" && field.values.iter().any(|value| value == name);
        self.name.iter().all(|field| match field.operator {
            Operator::In => listed(field),
            Operator::NotIn => field.key == "metadata.name" && !listed(field),
            _ => false,
        }) && self.labels.iter().all(|requirement| requirement.matches(&node.labels))
    }

    /// The only names of nodes that can match, where the term says so.
    fn only_names(&self) -> Option<BTreeSet<&str>> {
        self.name
            .iter()
            .filter(|field| field.operator == Operator::In)
            .map(|field| field.values.iter().map(String::as_str).collect::<BTreeSet<_>>())
            .reduce(|left, right| left.intersection(&right).copied().collect())
    }
}

fn node_requirement(requirement: &core::NodeSelectorRequirement) -> Option<Requirement> {
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return None,
    };
    Some(Requirement { key: requirement.key.clone(), operator, values: requirement.values.clone().unwrap_or_default() })
}

/// A pod's `nodeSelector` and node affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAffinity {
    selector: LabelMap,
    /// One of these must match, where given.
    required: Option<Vec<NodeTerm>>,
    /// Weight and term.
    pub preferred: Vec<(i64, NodeTerm)>,
}

impl NodeAffinity {
    pub fn new(spec: &core::PodSpec) -> Self {
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred = affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
        Self {
            selector: spec.node_selector.clone().unwrap_or_default(),
            required: required.map(|selector| selector.node_selector_terms.iter().map(NodeTerm::new).collect()),
            preferred: preferred
                .into_iter()
                .flatten()
                .map(|preferred| (i64::from(preferred.weight), NodeTerm::new(&preferred.preference)))
                .collect(),
        }
    }

    pub fn matches(&self, name: &str, node: &NodeSpec) -> bool {
        self.selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
            && self.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, node)))
    }

    /// The only names of nodes that can match, where every required term names some (pods of daemons do).
    pub fn only_names(&self) -> Option<BTreeSet<&str>> {
        let terms = self.required.as_ref().filter(|terms| !terms.is_empty())?;
        let mut names = BTreeSet::new();
        for term in terms {
            names.extend(term.only_names()?);
        }
        Some(names)
    }
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

impl TaintEffect {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "NoSchedule" => Some(Self::NoSchedule),
            "PreferNoSchedule" => Some(Self::PreferNoSchedule),
            "NoExecute" => Some(Self::NoExecute),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: TaintEffect,
}

impl Taint {
    pub fn new(taint: &core::Taint) -> Option<Self> {
        let effect = TaintEffect::parse(&taint.effect)?;
        Some(Self { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default(), effect })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    /// Empty tolerates every key.
    key: String,
    operator: TolerationOperator,
    /// None tolerates every effect.
    effect: Option<TaintEffect>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TolerationOperator {
    Exists,
    Equal(String),
    /// The taint's value is a number that is larger (KEP-5471).
    GreaterThan(i64),
    LessThan(i64),
}

impl Toleration {
    pub fn new(toleration: &core::Toleration) -> Option<Self> {
        let value = toleration.value.clone().unwrap_or_default();
        let operator = match toleration.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => TolerationOperator::Equal(value),
            "Exists" => TolerationOperator::Exists,
            "Gt" => TolerationOperator::GreaterThan(value.parse().ok()?),
            "Lt" => TolerationOperator::LessThan(value.parse().ok()?),
            _ => return None,
        };
        let effect = match toleration.effect.as_deref().unwrap_or_default() {
            "" => None,
            text => Some(TaintEffect::parse(text)?),
        };
        Some(Self { key: toleration.key.clone().unwrap_or_default(), operator, effect })
    }

    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && match &self.operator {
                TolerationOperator::Exists => true,
                TolerationOperator::Equal(value) => *value == taint.value,
                TolerationOperator::GreaterThan(bound) => taint.value.parse::<i64>().is_ok_and(|value| value > *bound),
                TolerationOperator::LessThan(bound) => taint.value.parse::<i64>().is_ok_and(|value| value < *bound),
            }
    }

    /// Whether it could tolerate a taint that only asks not to be preferred.
    pub fn concerns_preference(&self) -> bool {
        self.effect.is_none_or(|effect| effect == TaintEffect::PreferNoSchedule)
    }
}

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub port: i32,
    pub protocol: String,
    pub address: String,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address == ANY || other.address == ANY)
    }
}

/// One term of pod affinity or anti-affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffinityTerm {
    pub topology_key: Arc<str>,
    selector: LabelSelector,
    namespaces: BTreeSet<String>,
    /// Namespaces by their labels, beside those listed.
    namespace_selector: Option<LabelSelector>,
    /// The same text for terms that mean the same.
    pub identity: Arc<str>,
}

impl AffinityTerm {
    pub fn new(term: &core::PodAffinityTerm, namespace: &str, labels: &LabelMap) -> Self {
        let mut keyed = Vec::new();
        for (keys, operator) in [(&term.match_label_keys, Operator::In), (&term.mismatch_label_keys, Operator::NotIn)] {
            keyed.extend(
                keys.iter()
                    .flatten()
                    .filter_map(|key| Some(Requirement { key: key.clone(), operator, values: vec![labels.get(key)?.clone()] })),
            );
        }
        let selector = selector_with(term.label_selector.as_ref(), keyed);
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        let namespace_selector = term.namespace_selector.as_ref().map(|object| selector_with(Some(object), Vec::new()));
        let identity = format!("{}|{selector:?}|{namespaces:?}|{namespace_selector:?}", term.topology_key).into();
        Self { topology_key: term.topology_key.as_str().into(), selector, namespaces, namespace_selector, identity }
    }

    pub fn selects_namespace(&self, namespace: &str, namespaces: &Namespaces) -> bool {
        self.namespaces.contains(namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|selector| selector.matches(namespaces.get(namespace).unwrap_or(&LabelMap::new())))
    }

    pub fn matches(&self, namespace: &str, labels: &LabelMap, namespaces: &Namespaces) -> bool {
        self.selects_namespace(namespace, namespaces) && self.selector.matches(labels)
    }

    pub fn matches_labels(&self, labels: &LabelMap) -> bool {
        self.selector.matches(labels)
    }

    pub fn depends_on_namespace_labels(&self) -> bool {
        self.namespace_selector.is_some()
    }
}

/// A selector from an object, narrowed by more conditions. One that is not valid selects nothing.
pub fn selector_with(object: Option<&LabelSelectorObject>, mut more: Vec<Requirement>) -> LabelSelector {
    let value = object.and_then(|object| serde_json::to_value(object).ok()).unwrap_or(Value::Null);
    let selector = LabelSelector::from_json(&value).unwrap_or_else(|_| LabelSelector::nothing());
    if selector.is_nothing() || more.is_empty() {
        return selector;
    }
    more.extend(selector.requirements().iter().cloned());
    LabelSelector::new(more)
}
