//! Every input that is kept for a fuzz target goes through it, and so do its prefixes and versions with a byte changed.

use std::path::Path;

use zeropoint_fuzzing::TARGETS;
use zeropoint_kernels::Isa;
use zeropoint_observer::{ActivationStatistics, StatisticsFile};

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

/// The seed of statistics files is of the version that is written now: an older one is refused at its first bytes, and what
/// lies behind would never be reached.
#[test]
fn the_seed_of_statistics_files_is_of_this_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/statistics/one-site");
    let mut site = ActivationStatistics::new(2);
    site.observe(Isa::SCALAR, &[0.5, -1.0, 0.25, 3.0]).expect("finite values");
    let header = [("samples".to_owned(), "1".to_owned())].into();
    let file = StatisticsFile { header, sites: [("a.input".to_owned(), site)].into() };
    if std::env::var_os("ZEROPOINT_UPDATE_SEEDS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("the folder can be made");
        file.save(&path).expect("it can be saved");
    }
    let loaded =
        StatisticsFile::load(&path).expect("the seed is read; ZEROPOINT_UPDATE_SEEDS=1 writes it anew");
    assert_eq!(loaded.sites, file.sites);
}
