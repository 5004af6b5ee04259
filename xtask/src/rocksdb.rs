//! The cache of RocksDB's archive: compiled once for a machine, used by every clone and every target folder.
//!
//! RocksDB is C++ of about half an hour of processor time, in any profile. `librocksdb-sys` takes a finished archive from
//! `ROCKSDB_LIB_DIR` instead of compiling; this task makes that archive under a name that says what it was made from.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{process, workspace};

const PACKAGE: &str = "librocksdb-sys";
const ARCHIVE: &str = "librocksdb.a";

/// What the C++ compiler may use of the processor, by the beginning of the target triple. RocksDB checks every record and block with
/// CRC-32C: these instructions, in every x86-64 processor since 2010, take a tenth of the time that its tables take. `trireme`
/// looks for them (`processor.rs`) before it comes to one.
const INSTRUCTIONS: [(&str, &str); 1] = [("x86_64-", "-msse4.2 -mpclmul")];

#[derive(Debug, Args)]
pub struct RocksdbArgs {
    /// Print the folder where the archive is looked for, and compile nothing.
    #[arg(long)]
    pub print_folder: bool,
}

/// Everything that decides what is in the archive.
struct Recipe {
    /// The version of `librocksdb-sys`, with RocksDB's own behind the `+`.
    version: String,
    /// Its features in this workspace, sorted.
    features: Vec<String>,
    /// The first line of `c++ --version`.
    compiler: String,
    /// The target triple.
    target: String,
    /// Flags for the C++ compiler: ours, and those that the user adds.
    flags: String,
}

/// Finds or makes the archive and prints its folder.
///
/// # Errors
/// When there is no C++ compiler, RocksDB does not compile, or the cache folder cannot be written.
pub fn run(args: &RocksdbArgs) -> Result<()> {
    let folder = workspace::cache()?.join("rocksdb").join(recipe()?.key());
    if !args.print_folder {
        ensure_archive(&folder)?;
    }
    println!("{}", folder.display());
    Ok(())
}

fn recipe() -> Result<Recipe> {
    let target = workspace::host_triple()?;
    let metadata = workspace::metadata(&["--filter-platform", &target])?;
    let (version, features) = find_package(&metadata).with_context(|| format!("no crate of the workspace uses {PACKAGE}"))?;
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let described = process::output(Command::new(compiler).arg("--version"));
    let described = described.context("RocksDB needs a C++ compiler; install one (package g++)")?;
    let compiler = described.lines().next().unwrap_or_default().to_owned();
    let others = ["ROCKSDB_CXX_STD", "RUSTFLAGS"].map(|name| std::env::var(name).unwrap_or_default());
    let flags = format!("{}\n{}", cxx_flags(&target), others.join("\n")).trim().to_owned();
    Ok(Recipe { version, features, compiler, target, flags })
}

/// The flags for the C++ compiler; the user's come last, and win.
fn cxx_flags(target: &str) -> String {
    let ours = INSTRUCTIONS.iter().filter(|(start, _)| target.starts_with(start)).map(|(_, flags)| (*flags).to_owned());
    ours.chain(std::env::var("CXXFLAGS").ok()).collect::<Vec<_>>().join(" ")
}

/// The version and features of `librocksdb-sys` in the output of `cargo metadata`.
fn find_package(metadata: &Value) -> Option<(String, Vec<String>)> {
    let package = metadata["packages"].as_array()?.iter().find(|package| package["name"] == PACKAGE)?;
    let node = metadata["resolve"]["nodes"].as_array()?.iter().find(|node| node["id"] == package["id"])?;
    let mut features: Vec<String> = node["features"].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    features.sort_unstable();
    Some((package["version"].as_str()?.to_owned(), features))
}

impl Recipe {
    /// A folder name that two recipes share only if they are the same.
    fn key(&self) -> String {
        let features = self.features.join(",");
        let text = [&self.version, &features, &self.compiler, &self.target, &self.flags].map(String::as_str).join("\0");
        format!("{}-{:016x}", self.version.replace('+', "-"), fnv1a(text.as_bytes()))
    }
}

/// FNV-1a, 64 bits: the same in every version of this program, which the standard library's hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Compiles the archive unless the folder has it. Only one process does at a time; others wait for it.
fn ensure_archive(folder: &Path) -> Result<()> {
    let archive = folder.join(ARCHIVE);
    if archive.is_file() {
        return Ok(());
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = File::create(folder.join("lock")).with_context(|| format!("cannot write in {}", folder.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", folder.display()))?;
    if archive.is_file() {
        return Ok(());
    }
    eprintln!(
        "Compiling RocksDB, once for this machine: 10 to 20 minutes on two cores. The archive goes to {}.",
        folder.display()
    );
    let build_folder = folder.join("build");
    let built = compile(&build_folder, &cxx_flags(&workspace::host_triple()?))?;
    // Under its final name only when it is whole.
    let unfinished = folder.join(format!("{ARCHIVE}.unfinished"));
    fs::copy(&built, &unfinished).with_context(|| format!("cannot copy {} to {}", built.display(), unfinished.display()))?;
    fs::rename(&unfinished, &archive).with_context(|| format!("cannot name {}", archive.display()))?;
    fs::remove_dir_all(&build_folder).with_context(|| format!("cannot delete {}", build_folder.display()))
}

/// Builds `librocksdb-sys` by itself, from source, and returns where its build script left the archive.
fn compile(target_folder: &Path, cxx_flags: &str) -> Result<PathBuf> {
    let mut child = workspace::cargo()
        .args(["build", "--locked", "--package", PACKAGE, "--message-format=json-render-diagnostics", "--target-dir"])
        .arg(target_folder)
        .env_remove("ROCKSDB_LIB_DIR")
        .env_remove("ROCKSDB_STATIC")
        .env("CXXFLAGS", cxx_flags)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let messages = std::io::read_to_string(child.stdout.take().context("cargo has no output")?)?;
    let status = child.wait()?;
    if !status.success() {
        bail!("RocksDB does not compile ({status})");
    }
    let folder = output_folder(&messages).with_context(|| format!("cargo does not say where {PACKAGE} was built"))?;
    std::io::stderr().flush()?;
    Ok(folder.join(ARCHIVE))
}

/// The output folder of the build script of `librocksdb-sys`, from cargo's JSON messages.
fn output_folder(messages: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut executed = messages.filter(|message| message["reason"] == "build-script-executed");
    let ours = executed.find(|message| message["package_id"].as_str().is_some_and(|id| id.contains(PACKAGE)))?;
    Some(PathBuf::from(ours["out_dir"].as_str()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            version: "0.19.0+11.8.1".into(),
            features: vec!["lz4".into(), "zstd".into()],
            compiler: "c++ 12.2.0".into(),
            target: "x86_64-unknown-linux-gnu".into(),
            flags: String::new(),
        }
    }

    #[test]
    fn the_key_is_the_same_for_the_same_recipe_alone() {
        let key = recipe().key();
        assert_eq!(key, recipe().key());
        assert!(key.starts_with("0.19.0-11.8.1-"), "{key}");
        let others = [
            Recipe { version: "0.19.1+11.8.2".into(), ..recipe() },
            Recipe { features: vec!["lz4".into()], ..recipe() },
            Recipe { compiler: "c++ 13.1.0".into(), ..recipe() },
            Recipe { target: "aarch64-unknown-linux-gnu".into(), ..recipe() },
            Recipe { flags: "-march=native".into(), ..recipe() },
        ];
        for other in others {
            assert_ne!(other.key(), key);
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // Test vectors of the FNV reference.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_package_is_found_in_the_metadata() {
        let metadata = json!({
            "packages": [{"name": "zstd-sys", "id": "a", "version": "1"}, {"name": PACKAGE, "id": "b", "version": "0.19.0+11.8.1"}],
            "resolve": {"nodes": [{"id": "b", "features": ["zstd", "lz4"]}, {"id": "a", "features": []}]},
        });
        assert_eq!(find_package(&metadata), Some(("0.19.0+11.8.1".into(), vec!["lz4".into(), "zstd".into()])));
        assert_eq!(find_package(&json!({"packages": [], "resolve": {"nodes": []}})), None);
    }

    #[test]
    fn the_build_scripts_folder_is_found_in_cargos_messages() {
        let messages = format!(
            "{}\nnot JSON\n{}\n",
            json!({"reason": "build-script-executed", "package_id": "registry+x#lz4-sys@1", "out_dir": "/a"}),
            json!({"reason": "build-script-executed", "package_id": "registry+x#librocksdb-sys@0.19.0", "out_dir": "/b"}),
        );
        assert_eq!(output_folder(&messages), Some(PathBuf::from("/b")));
    }

    #[test]
    fn an_archive_that_is_there_is_not_made_again() {
        let folder = std::env::temp_dir().join(format!("trireme-xtask-rocksdb-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(ARCHIVE), "made before").unwrap();
        ensure_archive(&folder).unwrap();
        assert_eq!(fs::read_to_string(folder.join(ARCHIVE)).unwrap(), "made before");
        fs::remove_dir_all(&folder).unwrap();
    }
}
