//! Seeds.

use lockd::rules::Rules;

use super::world::{Plan, run};

fn plan(seed: u64) -> Plan {
    let nodes = match seed % 5 {
        0 => 2,
        4 if seed.is_multiple_of(3) => 5,
        _ => 3,
    };
    let faults = !seed.is_multiple_of(4);
    let trouble = if seed.is_multiple_of(7) { 0.0 } else { 0.03 };
    Plan { seed, nodes, rules: Rules::from_test_environment(), trouble, faults, steps: 50 }
}

/// So many seeds, from `CSV_SEED` on if that is set.
fn seeds(most: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("CSV_SEED").unwrap_or(1);
    let most = if std::env::var_os("CSV_SOAK").is_some() { 10_000 } else { most };
    first..first + number("CSV_SEEDS").unwrap_or(most)
}

fn play(plan: Plan) -> u64 {
    run(plan).unwrap_or_else(|wrong| panic!("{wrong}"))
}

#[test]
fn without_faults_nothing_is_refused_and_nothing_is_old() {
    for seed in seeds(10) {
        play(Plan { trouble: 0.0, faults: false, ..plan(seed) });
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in seeds(50) {
        assert_eq!(play(plan(seed)), play(plan(seed)), "seed {seed}");
    }
}

#[test]
fn a_cluster_keeps_its_invariants_under_faults_and_goes_on_after_them() {
    for seed in seeds(200) {
        play(plan(seed));
    }
}
