//! What the scheduler knows and decides, without a client: changes of objects in, actions out. [`crate::driver`] feeds it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1 as core;
use kube::runtime::watcher;

use crate::{
    cluster::Cluster,
    hints::{self, Change},
    node::NodeSpec,
    pod::{PodInfo, has_ended},
    preemption::{self, Plan},
    queue::Queue,
    schedule::{Decision, Scheduler},
};

/// One thing that a watch told.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "an event is handled at once; there is never more than one")]
pub enum Event {
    Node(watcher::Event<core::Node>),
    Pod(watcher::Event<core::Pod>),
    Namespace(watcher::Event<core::Namespace>),
    Service(watcher::Event<core::Service>),
}

/// What is to be done about one pod.
#[derive(Clone, Debug)]
pub enum Action {
    Bind {
        pod: Arc<PodInfo>,
        node: Arc<str>,
    },
    /// Tell the user why the pod waits.
    Report {
        pod: Arc<PodInfo>,
        message: String,
        /// The pods that are to leave for it, if that helps.
        plan: Option<Plan>,
        /// Pods of lower priority that had room reserved there and lose it.
        displaced: Vec<Arc<PodInfo>>,
    },
}

/// Objects of one kind that a new list has named so far; None when no list is under way.
#[derive(Debug, Default)]
struct Relist {
    seen: Option<HashSet<Arc<str>>>,
    complete: bool,
}

impl Relist {
    fn see(&mut self, key: &str) {
        if let Some(seen) = &mut self.seen {
            seen.insert(key.into());
        }
    }

    /// The list is complete: what it named.
    fn finish(&mut self) -> HashSet<Arc<str>> {
        self.complete = true;
        self.seen.take().unwrap_or_default()
    }
}

/// The scheduler without its edge.
#[derive(Debug)]
pub struct Brain {
    scheduler_name: String,
    cluster: Cluster,
    queue: Queue,
    scheduler: Scheduler,
    /// Pods that are counted on a node to which the API server does not yet say they are bound.
    assumed: HashSet<Arc<str>>,
    nodes: Relist,
    pods: Relist,
    namespaces: Relist,
    services: Relist,
    /// `namespace/name` of the services known.
    service_names: HashSet<Arc<str>>,
}

impl Brain {
    pub fn new(scheduler_name: String, seed: u64) -> Self {
        Self {
            scheduler_name,
            cluster: Cluster::new(),
            queue: Queue::new(),
            scheduler: Scheduler::new(seed),
            assumed: HashSet::new(),
            nodes: Relist::default(),
            pods: Relist::default(),
            namespaces: Relist::default(),
            services: Relist::default(),
            service_names: HashSet::new(),
        }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether the first lists are complete, so that decisions are sound.
    pub fn is_ready(&self) -> bool {
        [&self.nodes, &self.pods, &self.namespaces, &self.services].iter().all(|relist| relist.complete)
    }

    /// Whether a pod can be tried now.
    pub fn has_work(&self) -> bool {
        self.is_ready() && self.queue.has_ready()
    }

    /// Whether the pod is still waiting for a node.
    pub fn is_pending(&self, uid: &str) -> bool {
        self.queue.contains(uid)
    }

    /// Makes pods ready whose time has come.
    pub fn advance(&mut self, now: Duration) {
        self.queue.advance(now);
    }

    /// When the next back-off is over.
    pub fn next_wake(&self) -> Option<Duration> {
        self.queue.next_backoff()
    }

    pub fn on_event(&mut self, event: Event, now: Duration) {
        match event {
            Event::Node(event) => self.on_node_event(event, now),
            Event::Pod(event) => self.on_pod_event(event, now),
            Event::Namespace(event) => self.on_namespace_event(event, now),
            Event::Service(event) => self.on_service_event(event),
        }
    }

    fn on_change(&mut self, change: Change<'_>, now: Duration) {
        let namespaces = self.cluster.namespaces();
        self.queue.on_change(now, |pod, plugin| hints::helps(change, pod, plugin, namespaces));
    }

    fn on_node_event(&mut self, event: watcher::Event<core::Node>, now: Duration) {
        match event {
            watcher::Event::Init => self.nodes.seen = Some(HashSet::new()),
            watcher::Event::InitApply(node) | watcher::Event::Apply(node) => self.set_node(&node, now),
            watcher::Event::Delete(node) => self.remove_node(node.metadata.name.as_deref().unwrap_or_default(), now),
            watcher::Event::InitDone => {
                let seen = self.nodes.finish();
                let gone = self.cluster.nodes().map(|(_, node, _)| Arc::clone(&node.name)).filter(|name| !seen.contains(name));
                gone.collect::<Vec<_>>().iter().for_each(|name| self.remove_node(name, now));
            }
        }
    }

    fn set_node(&mut self, node: &core::Node, now: Duration) {
        let Some(name) = node.metadata.name.as_deref() else { return };
        self.nodes.see(name);
        let spec = Arc::new(NodeSpec::new(node));
        let old = self.cluster.set_node(name, Arc::clone(&spec));
        if old.as_ref() != Some(&spec) {
            self.on_change(Change::Node { name, old: old.as_deref(), new: &spec }, now);
        }
    }

    fn remove_node(&mut self, name: &str, now: Duration) {
        self.cluster.remove_node(name);
        self.on_change(Change::NodeRemoved, now);
    }

    fn on_pod_event(&mut self, event: watcher::Event<core::Pod>, now: Duration) {
        match event {
            watcher::Event::Init => self.pods.seen = Some(HashSet::new()),
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => {
                self.pods.see(pod.metadata.uid.as_deref().unwrap_or_default());
                self.set_pod(&pod, now);
            }
            watcher::Event::Delete(pod) => self.remove_pod(pod.metadata.uid.as_deref().unwrap_or_default(), now),
            watcher::Event::InitDone => {
                let seen = self.pods.finish();
                let mut known = self.cluster.placed_uids();
                known.extend(self.queue.uids().cloned());
                known.difference(&seen).for_each(|uid| self.remove_pod(uid, now));
            }
        }
    }

    fn set_pod(&mut self, object: &core::Pod, now: Duration) {
        let Some(pod) = PodInfo::new(object) else { return };
        let pod = Arc::new(pod);
        if has_ended(object) {
            return self.remove_pod(&pod.uid, now);
        }
        if let Some(node) = &pod.required_node {
            return self.set_placed_pod(&pod, node, now);
        }
        if self.assumed.contains(&pod.uid) {
            // An older state than the one that the binding makes.
            return;
        }
        if pod.scheduler_name != self.scheduler_name || pod.terminating {
            return self.remove_pod(&pod.uid, now);
        }
        let nominated = object.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        if let Some(node) = nominated.filter(|name| !name.is_empty() && self.cluster.nominated_node(&pod.uid).is_none()) {
            self.cluster.nominate(&pod, Some(node));
        }
        self.queue.put(pod);
    }

    fn set_placed_pod(&mut self, pod: &Arc<PodInfo>, node: &str, now: Duration) {
        self.queue.remove(&pod.uid);
        let confirmed = self.assumed.remove(&pod.uid);
        let old = self.cluster.placed_pod(&pod.uid).cloned();
        if old.as_ref() == Some(pod) {
            return;
        }
        self.cluster.place(pod, node);
        match old.filter(|_| !confirmed) {
            None => self.on_change(Change::PodPlaced(pod), now),
            Some(old) => self.on_change(Change::PodUpdated { old: &old, new: pod }, now),
        }
    }

    fn remove_pod(&mut self, uid: &str, now: Duration) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        if let Some(pod) = self.cluster.withdraw_nomination(uid) {
            self.on_change(Change::PodRemoved(&pod), now);
        }
        if let Some((pod, _)) = self.cluster.remove_pod(uid) {
            self.on_change(Change::PodRemoved(&pod), now);
        }
    }

    fn on_namespace_event(&mut self, event: watcher::Event<core::Namespace>, now: Duration) {
        match event {
            watcher::Event::Init => self.namespaces.seen = Some(HashSet::new()),
            watcher::Event::InitApply(namespace) | watcher::Event::Apply(namespace) => {
                let name = namespace.metadata.name.unwrap_or_default();
                self.namespaces.see(&name);
                self.cluster.set_namespace(&name, namespace.metadata.labels.unwrap_or_default());
                self.on_change(Change::NamespaceLabels, now);
            }
            watcher::Event::Delete(namespace) => {
                self.cluster.remove_namespace(namespace.metadata.name.as_deref().unwrap_or_default());
            }
            watcher::Event::InitDone => {
                let seen = self.namespaces.finish();
                let gone = self.cluster.namespaces().keys().filter(|name| !seen.contains(*name)).cloned();
                gone.collect::<Vec<_>>().iter().for_each(|name| self.cluster.remove_namespace(name));
            }
        }
    }

    fn on_service_event(&mut self, event: watcher::Event<core::Service>) {
        match event {
            watcher::Event::Init => self.services.seen = Some(HashSet::new()),
            watcher::Event::InitApply(service) | watcher::Event::Apply(service) => {
                let (namespace, name) =
                    (service.metadata.namespace.unwrap_or_default(), service.metadata.name.unwrap_or_default());
                let key: Arc<str> = format!("{namespace}/{name}").into();
                self.services.see(&key);
                self.service_names.insert(key);
                let selector = service.spec.and_then(|spec| spec.selector).unwrap_or_default();
                self.cluster.set_service(&namespace, &name, &selector);
            }
            watcher::Event::Delete(service) => {
                let (namespace, name) =
                    (service.metadata.namespace.unwrap_or_default(), service.metadata.name.unwrap_or_default());
                self.remove_service(&format!("{namespace}/{name}"));
            }
            watcher::Event::InitDone => {
                let seen = self.services.finish();
                let gone: Vec<_> = self.service_names.difference(&seen).cloned().collect();
                gone.iter().for_each(|key| self.remove_service(key));
            }
        }
    }

    fn remove_service(&mut self, key: &str) {
        self.service_names.remove(key);
        if let Some((namespace, name)) = key.split_once('/') {
            self.cluster.remove_service(namespace, name);
        }
    }

    /// Decides about the next pod, if one is ready. A pod that is to be bound counts on its node at once.
    pub fn next(&mut self, now: Duration) -> Option<Action> {
        if !self.is_ready() {
            return None;
        }
        let pod = self.queue.pop()?;
        self.cluster.refresh_order();
        let diagnosis = match self.scheduler.schedule(&pod, &self.cluster) {
            Decision::Node(node) => {
                self.cluster.place(&pod, &node);
                self.assumed.insert(Arc::clone(&pod.uid));
                return Some(Action::Bind { pod, node });
            }
            Decision::Unschedulable(diagnosis) => diagnosis,
        };
        let preemption =
            if diagnosis.nodes == 0 { Err(String::new()) } else { preemption::find(&pod, &mut self.cluster, &diagnosis) };
        let message = diagnosis.message(preemption.as_ref().err().map(String::as_str));
        let mut displaced = Vec::new();
        if let Ok(plan) = &preemption {
            displaced = self.cluster.displace_nominated(&plan.node, pod.priority);
            self.cluster.nominate(&pod, Some(&plan.node));
        }
        self.queue.wait(&pod.uid, diagnosis.plugins, now);
        Some(Action::Report { pod, message, plan: preemption.ok(), displaced })
    }

    /// The API server has refused a binding: the pod does not count on its node any more.
    pub fn on_binding_failed(&mut self, uid: &str, now: Duration) {
        // Where the pod is bound or gone in the meantime, there is nothing to take back.
        if !self.assumed.remove(uid) {
            return;
        }
        if let Some((pod, _)) = self.cluster.remove_pod(uid) {
            self.queue.retry(uid, now);
            self.on_change(Change::PodRemoved(&pod), now);
        }
    }
}
