//! Every input that is kept for a fuzz target goes through it, and so do its prefixes and versions with a byte changed.

use std::path::Path;

use zeropoint_fuzzing::TARGETS;

#[test]
fn kept_inputs_and_their_neighbours_are_read_or_refused() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    for (name, target) in TARGETS {
        let mut files: Vec<_> = std::fs::read_dir(seeds.join(name))
            .unwrap_or_else(|error| panic!("seeds of {name}: {error}"))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has seeds");
        for file in files {
            let input = std::fs::read(&file).expect("a seed");
            target(&input);
            let step = (input.len() / 24).max(1);
            for at in (0..input.len()).step_by(step) {
                target(&input[..at]);
                let mut changed = input.clone();
                for bit in [0x01, 0x80] {
                    changed[at] ^= bit;
                    target(&changed);
                }
            }
        }
    }
}
