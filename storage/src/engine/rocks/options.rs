//! How RocksDB is set up for each use. Memory is bounded and small when idle: caches and memtables fill with use only.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DBCompressionType, DBRecoveryMode, LogLevel, Options,
    WriteOptions,
};

use crate::{
    engine::{Durability, Keyspace, trailing_revision},
    format::Purpose,
};

/// What an operator may tune.
#[derive(Clone, Debug)]
pub struct RocksOptions {
    purpose: Purpose,
    /// Blocks, indexes and filters of tables in memory.
    pub block_cache_bytes: usize,
    /// One memtable of a key space with values; two or three exist at most.
    pub write_buffer_bytes: usize,
}

const STATE: [Keyspace; 5] = [Keyspace::Meta, Keyspace::Current, Keyspace::History, Keyspace::Versions, Keyspace::Leases];
const LOG: [Keyspace; 2] = [Keyspace::Meta, Keyspace::Log];

impl RocksOptions {
    /// For the engine of a [`crate::state_machine::StateMachine`].
    pub fn for_state() -> Self {
        Self { purpose: Purpose::State, block_cache_bytes: 64 << 20, write_buffer_bytes: 16 << 20 }
    }

    /// For the engine of a [`crate::log::RaftLog`].
    pub fn for_log() -> Self {
        Self { purpose: Purpose::Log, block_cache_bytes: 8 << 20, write_buffer_bytes: 16 << 20 }
    }

    pub(super) fn keyspaces(&self) -> &'static [Keyspace] {
        match self.purpose {
            Purpose::State => &STATE,
            Purpose::Log => &LOG,
        }
    }
}

/// What the options hold on to for the life of an engine, through every reopening.
pub(super) struct Shared {
    cache: Cache,
    /// Rows of older revisions may go; see [`crate::engine::Engine::discard_below`].
    pub horizon: Arc<AtomicU64>,
}

impl Shared {
    pub fn new(options: &RocksOptions) -> Self {
        Self { cache: Cache::new_lru_cache(options.block_cache_bytes), horizon: Arc::default() }
    }
}

pub(super) fn database(options: &RocksOptions) -> Options {
    let mut database = Options::default();
    database.create_if_missing(true);
    database.create_missing_column_families(true);
    // After a loss of power the log must hold every synced record: a damaged one before the torn tail is an error. The state may lose its
    // newest writes, from one point on; the log brings them back.
    database.set_wal_recovery_mode(match options.purpose {
        Purpose::Log => DBRecoveryMode::TolerateCorruptedTailRecords,
        Purpose::State => DBRecoveryMode::PointInTime,
    });
    database.set_max_total_wal_size(4 * options.write_buffer_bytes as u64);
    database.set_max_background_jobs(2);
    database.set_max_open_files(256);
    database.set_keep_log_file_num(2);
    database.set_max_log_file_size(4 << 20);
    database.set_log_level(LogLevel::Warn);
    database.set_stats_dump_period_sec(0);
    database.set_skip_stats_update_on_db_open(true);
    database
}

/// To look at a database that is to stay as it is, reading its own log as strictly as `recovery` says.
pub(super) fn reading(recovery: DBRecoveryMode) -> Options {
    let mut database = Options::default();
    database.create_if_missing(false);
    database.set_wal_recovery_mode(recovery);
    database.set_max_open_files(256);
    database.set_skip_stats_update_on_db_open(true);
    database
}

pub(super) fn families(options: &RocksOptions, shared: &Shared) -> Vec<ColumnFamilyDescriptor> {
    let names = options.keyspaces().iter();
    names.map(|keyspace| ColumnFamilyDescriptor::new(keyspace.name(), family(*keyspace, options, shared))).collect()
}

fn family(keyspace: Keyspace, options: &RocksOptions, shared: &Shared) -> Options {
    let mut family = Options::default();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&shared.cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    if matches!(keyspace, Keyspace::Current | Keyspace::History) {
        // Whether a key exists is asked before every put; most new keys are answered by the filter alone.
        table.set_bloom_filter(10.0, false);
    }
    if keyspace == Keyspace::Current {
        // Ranges read these one after the other: larger blocks take less than half of the processor time, and point reads as much as before.
        table.set_block_size(16 << 10);
        family.set_memtable_prefix_bloom_ratio(0.05);
        family.set_memtable_whole_key_filtering(true);
    }
    family.set_block_based_table_factory(&table);
    // What is soon rewritten, or purged, is not worth compressing.
    let (upper, lower) = match options.purpose {
        Purpose::Log => (DBCompressionType::None, DBCompressionType::None),
        Purpose::State => (DBCompressionType::None, DBCompressionType::Lz4),
    };
    family.set_compression_per_level(&[upper, upper, lower, lower, lower, lower, lower]);
    let with_values = matches!(keyspace, Keyspace::Current | Keyspace::History | Keyspace::Log);
    family.set_write_buffer_size(if with_values { options.write_buffer_bytes } else { options.write_buffer_bytes / 4 });
    family.set_max_write_buffer_number(3);
    if keyspace == Keyspace::Versions {
        let horizon = Arc::clone(&shared.horizon);
        family.set_compaction_filter("trireme-versions", move |_, key: &[u8], _: &[u8]| {
            if trailing_revision(key) < horizon.load(Ordering::Acquire) {
                CompactionDecision::Remove
            } else {
                CompactionDecision::Keep
            }
        });
        // Tables that see no writes are filtered too, in the end.
        family.set_periodic_compaction_seconds(6 * 3600);
    }
    family
}

pub(super) fn write(durability: Durability) -> WriteOptions {
    let mut write = WriteOptions::default();
    write.set_sync(durability == Durability::Sync);
    write
}
