//! Rolling updates under every order of events: templates change and change back, ReplicaSets and pods follow late. Whatever the
//! order, the sizes never exceed the surge, availability never falls below its minimum once it was reached, and in the end the
//! newest template has all pods. A ReplicaSet's status may lag behind its spec, but not behind its pods.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

use super::conditions::{NEW_REPLICA_SET_AVAILABLE, PROGRESSING, reason};
use super::plan::{Observed, plan};
use super::progress::is_complete;
use super::strategy::{desired, max_surge, max_unavailable};

#[derive(Clone, Debug)]
enum Step {
    /// The Deployment loop makes a pass.
    Pass,
    /// The ReplicaSet loop makes a pass over one set.
    Sync(usize),
    /// One pod of a set becomes ready.
    Ready(usize),
    /// The user sets one of a few templates.
    Template(u8),
}

struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    /// Ready and unready pods of each set.
    pods: Vec<(i32, i32)>,
    clock: i64,
    was_available: bool,
}

impl World {
    fn new(replicas: i32, surge: i32, unavailable: i32) -> Self {
        let mut deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "d", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
                "revisionHistoryLimit": 2, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}},
        }))
        .unwrap();
        set_template(&mut deployment, 0);
        World { deployment, sets: Vec::new(), pods: Vec::new(), clock: 0, was_available: false }
    }

    fn step(&mut self, step: &Step) {
        self.clock += 1;
        match step {
            Step::Pass => self.pass(),
            Step::Sync(index) if !self.sets.is_empty() => self.sync(index % self.sets.len()),
            Step::Ready(index) if !self.sets.is_empty() => self.ready(index % self.sets.len()),
            Step::Sync(_) | Step::Ready(_) => {}
            Step::Template(number) => set_template(&mut self.deployment, *number),
        }
        self.check();
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.clock).unwrap()
    }

    fn pass(&mut self) {
        let replica_sets = self.sets.iter().cloned().map(Arc::new).collect();
        let plan = plan(&Observed { deployment: &self.deployment, replica_sets, pods: Vec::new(), now: self.now() }).unwrap();
        if let Some(mut created) = plan.create.map(|created| created.set) {
            created.metadata.uid = Some(format!("set-{}", self.clock));
            created.metadata.creation_timestamp = Some(Time(self.now()));
            created.metadata.generation = Some(1);
            self.sets.push(created);
            self.pods.push((0, 0));
        }
        for update in plan.update {
            let stored = self.sets.iter_mut().find(|set| set.metadata.uid == update.set.metadata.uid).unwrap();
            let respecified = stored.spec != update.set.spec;
            *stored = update.set;
            if respecified {
                stored.metadata.generation = stored.metadata.generation.map(|generation| generation + 1);
            }
        }
        for gone in plan.delete {
            let index = self.sets.iter().position(|set| set.metadata.uid == gone.metadata.uid).unwrap();
            assert_eq!(self.pods[index], (0, 0), "a ReplicaSet with pods was cleaned up");
            self.sets.remove(index);
            self.pods.remove(index);
        }
        self.deployment.status = Some(plan.status);
        if let Some(revision) = plan.revision {
            let annotations = self.deployment.metadata.annotations.get_or_insert_default();
            annotations.insert(super::annotations::REVISION.into(), revision);
        }
    }

    fn sync(&mut self, index: usize) {
        let wanted = self.sets[index].spec.as_ref().and_then(|spec| spec.replicas).unwrap();
        let (ready, unready) = &mut self.pods[index];
        let surplus = (*ready + *unready - wanted).max(0);
        let from_unready = surplus.min(*unready);
        *unready -= from_unready;
        *ready -= surplus - from_unready;
        *unready += (wanted - *ready - *unready).max(0);
        let generation = self.sets[index].metadata.generation;
        self.report(index, generation);
    }

    fn ready(&mut self, index: usize) {
        if self.pods[index].1 > 0 {
            self.pods[index].0 += 1;
            self.pods[index].1 -= 1;
        }
        let seen = self.sets[index].status.as_ref().and_then(|status| status.observed_generation);
        self.report(index, seen);
    }

    fn report(&mut self, index: usize, generation: Option<i64>) {
        let (ready, unready) = self.pods[index];
        self.sets[index].status = Some(ReplicaSetStatus {
            replicas: ready + unready,
            ready_replicas: Some(ready),
            available_replicas: Some(ready),
            observed_generation: generation,
            ..ReplicaSetStatus::default()
        });
    }

    fn check(&mut self) {
        let sizes: Vec<i32> = self.sets.iter().map(|set| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap()).collect();
        // Pods beyond a set's size are as good as gone, ready or not.
        let available: i32 = self.pods.iter().zip(&sizes).map(|((ready, _), size)| ready.min(size)).sum();
        let sizes: i32 = sizes.iter().sum();
        let limit = desired(&self.deployment) + max_surge(&self.deployment);
        assert!(sizes <= limit, "{sizes} pods asked for, {limit} allowed");
        let minimum = desired(&self.deployment) - max_unavailable(&self.deployment);
        assert!(!self.was_available || available >= minimum, "{available} pods available, {minimum} needed");
        self.was_available |= available >= minimum;
    }

    fn is_settled(&self) -> bool {
        let status = self.deployment.status.clone().unwrap_or_default();
        is_complete(&self.deployment, &status) && reason(&status, PROGRESSING) == Some(NEW_REPLICA_SET_AVAILABLE)
    }
}

fn set_template(deployment: &mut Deployment, number: u8) {
    let spec = deployment.spec.as_mut().unwrap();
    let template = serde_json::from_value(json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": format!("i:{number}")}]}}))
    .unwrap();
    if spec.template != template {
        spec.template = template;
        deployment.metadata.generation = deployment.metadata.generation.map(|generation| generation + 1);
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => Just(Step::Pass),
        5 => (0_usize..6).prop_map(Step::Sync),
        6 => (0_usize..6).prop_map(Step::Ready),
        1 => (0_u8..4).prop_map(Step::Template),
    ];
    prop::collection::vec(step, 0..250)
}

proptest! {
    #[test]
    fn sizes_and_availability_stay_within_bounds_and_the_rollout_ends(
        replicas in 0_i32..12, surge in 0_i32..5, unavailable in 0_i32..5, steps in steps(),
    ) {
        let mut world = World::new(replicas, surge, unavailable);
        for step in &steps {
            world.step(step);
        }
        // From here on everyone gets their turn and the template stays.
        for _ in 0..200 {
            world.step(&Step::Pass);
            for index in 0..world.sets.len() {
                world.step(&Step::Sync(index));
                for _ in 0..replicas + surge {
                    world.step(&Step::Ready(index));
                }
            }
        }
        prop_assert!(world.is_settled(), "{:?}", world.deployment.status);
        prop_assert!(world.sets.len() <= 3, "two revisions of history and the current one");
        // A settled world stays as it is.
        let before = world.deployment.status.clone();
        world.step(&Step::Pass);
        prop_assert_eq!(before, world.deployment.status);
    }
}
