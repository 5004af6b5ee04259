//! What this binary asks of the processor: the instructions that RocksDB is compiled for (`xtask/src/rocksdb.rs`). A process that comes
//! to one that the processor lacks dies, and RocksDB's static variables, which are made before `main`, come to some already. So the
//! processor is looked at before that.

#![allow(unsafe_code)]

/// An instruction set, and whether this processor has it.
type Feature = (&'static str, bool);

/// Run by the loader, before everything that has no number or a higher one.
// SAFETY: entries of this section are functions of the C ABI that take nothing they need; this one relies on nothing that is made later:
// it asks the processor, and ends the process or returns.
#[used]
#[unsafe(link_section = ".init_array.00101")]
static CHECK: extern "C" fn() = check;

extern "C" fn check() {
    if let Some(lacking) = lacking(&features()) {
        remark!("trireme: this processor is too old: it lacks {lacking}, which x86-64 processors have since 2010");
        std::process::exit(1);
    }
}

#[cfg(target_arch = "x86_64")]
fn features() -> [Feature; 3] {
    [
        ("SSE4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        // A C++ compiler that may use SSE4.2 takes this one for granted.
        ("POPCNT", std::arch::is_x86_feature_detected!("popcnt")),
        ("PCLMULQDQ", std::arch::is_x86_feature_detected!("pclmulqdq")),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> [Feature; 0] {
    []
}

/// The names of those that are not there, if any is not.
fn lacking(features: &[Feature]) -> Option<String> {
    let lacking: Vec<&str> = features.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name).collect();
    (!lacking.is_empty()).then(|| lacking.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_processor_lacks_is_named() {
        assert_eq!(lacking(&[("SSE4.2", true), ("PCLMULQDQ", true)]), None);
        let some = lacking(&[("SSE4.2", false), ("POPCNT", true), ("PCLMULQDQ", false)]);
        assert_eq!(some.as_deref(), Some("SSE4.2, PCLMULQDQ"));
        assert_eq!(lacking(&features()), None, "the tests link RocksDB, too");
    }
}
