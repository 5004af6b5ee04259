//! One loop alone against the fake API server, for the loops' own tests.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trireme_api::clock::{Clock, SystemClock};

use super::fake_api::FakeApi;
use super::{Informers, RecorderSink};
use crate::{ControllersConfig, LoopContext};

/// A loop that runs.
pub struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    tasks: TaskTracker,
}

impl Running {
    pub fn start(api: &FakeApi, name: &'static str, start: fn(LoopContext) -> BoxFuture<'static, ()>) -> Self {
        Running::start_with(api, name, start, |_| {})
    }

    pub fn start_with(
        api: &FakeApi,
        name: &'static str,
        start: fn(LoopContext) -> BoxFuture<'static, ()>,
        configure: impl FnOnce(&mut ControllersConfig),
    ) -> Self {
        let mut config = ControllersConfig::default();
        configure(&mut config);
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let sink = RecorderSink::new(clock.clone());
        let context = LoopContext {
            client: api.client(),
            informers: Informers::new(api.client(), tasks.clone(), shutdown.clone(), 1),
            recorder: sink.recorder(name),
            config,
            clock,
            shutdown: shutdown.clone(),
            seed: 1,
        };
        let task = tokio::spawn(start(context));
        tasks.spawn(sink.run(api.client(), shutdown.clone()));
        Running { shutdown, task, tasks }
    }

    /// Stops the loop, which has to end promptly and leave no task behind.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        let end = async {
            self.task.await.expect("the loop does not panic");
            self.tasks.wait().await;
        };
        tokio::time::timeout(std::time::Duration::from_secs(1), end).await.expect("the loop stops promptly");
    }
}

/// `object` with what `with` has, merged field by field.
pub fn with(mut object: Value, with: Value) -> Value {
    match (&mut object, with) {
        (Value::Object(fields), Value::Object(more)) => {
            for (name, value) in more {
                let field = fields.entry(name).or_insert(Value::Null);
                *field = self::with(field.take(), value);
            }
        }
        (_, Value::Null) => {}
        (object, more) => *object = more,
    }
    object
}

/// A node that has what `more` has too.
pub fn node(name: &str, more: Value) -> Value {
    with(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {}}), more)
}
