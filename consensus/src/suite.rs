//! openraft's own test suite for storage, over the adapters of this crate.

use std::sync::Arc;

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;
use trireme_storage::{
    engine::{
        Engine,
        memory::MemoryEngine,
        rocks::{RocksEngine, RocksOptions},
    },
    log::RaftLog,
    state_machine::StateMachine,
};

use crate::{log_store::LogStore, machine::Machine, types::TypeConfig};

fn stores(log: Arc<dyn Engine>, state: Arc<dyn Engine>) -> (LogStore, Machine) {
    let log = LogStore::open(RaftLog::open(log).unwrap()).unwrap();
    let machine = Machine::new(StateMachine::open(state).unwrap(), tokio_util::sync::CancellationToken::new()).unwrap();
    (log, machine)
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, Machine> for InMemory {
    async fn build(&self) -> Result<((), LogStore, Machine), StorageError<TypeConfig>> {
        let (log, machine) = stores(Arc::new(MemoryEngine::new()), Arc::new(MemoryEngine::new()));
        Ok(((), log, machine))
    }
}

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let log = RocksEngine::open(folder.path().join("log"), RocksOptions::for_log()).unwrap();
        let state = RocksEngine::open(folder.path().join("state"), RocksOptions::for_state()).unwrap();
        let (log, machine) = stores(Arc::new(log), Arc::new(state));
        Ok((folder, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_adapters_pass_openrafts_suite_in_memory() {
    Suite::test_all(InMemory).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_adapters_pass_openrafts_suite_on_disk() {
    Suite::test_all(OnDisk).await.unwrap();
}
