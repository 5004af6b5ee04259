//! What every control loop is built from: one informer (cache and change feed) per kind for the process, a work queue with
//! per-key serialisation and back-off, expectations, claiming by controller reference, the event recorder, and discovery.

pub mod claim;
pub mod discovery;
pub mod error;
pub mod expectations;
pub mod informer;
pub mod meta;
pub mod queue;
pub mod recorder;

#[cfg(test)]
pub mod fake_api;
#[cfg(test)]
pub mod test_loop;

pub use error::ControllerError;
pub use expectations::Expectations;
pub use informer::{Change, Informer, Informers, ObjectKey};
pub use queue::{Next, WorkQueue, run_workers};
pub use recorder::{EventKind, Recorder, RecorderSink};
