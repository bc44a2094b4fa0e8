//! Figures: samples of interleaved rounds, their medians and spread.

use std::fmt;

/// What was measured in one round for each contender, in the same unit.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    rounds: Vec<Vec<f64>>,
}

/// A median with the smallest and largest value.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

impl Spread {
    /// Of these values.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), low: at(0), high: at(values.len().saturating_sub(1)) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median.abs() >= 100.0 {
            0
        } else if self.median.abs() >= 10.0 {
            1
        } else {
            2
        };
        write!(f, "{:.digits$} ({:.digits$}..{:.digits$})", self.median, self.low, self.high)
    }
}

impl Rounds {
    /// Adds a round: one value for each contender.
    pub fn add(&mut self, values: Vec<f64>) {
        self.rounds.push(values);
    }

    /// The values of one contender over the rounds.
    #[must_use]
    pub fn contender(&self, index: usize) -> Spread {
        self.derived(|round| round[index])
    }

    /// A value computed from each round.
    #[must_use]
    pub fn derived(&self, compute: impl Fn(&[f64]) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(|round| compute(round)).collect())
    }
}

/// One row of the report.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The measured values in words.
    pub measured: String,
    /// The figure that the bar speaks of.
    pub figure: String,
    /// The bar in words.
    pub bar: String,
    /// Whether the median keeps the bar.
    pub kept: bool,
}

/// Which side of the bar is good.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Bar {
    /// Whether `value` keeps the bar.
    #[must_use]
    pub fn kept(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bar) => write!(f, "at least {bar}"),
            Self::AtMost(bar) => write!(f, "at most {bar}"),
        }
    }
}

/// The rows as a table in Markdown.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from("| what | measured | figure | bar | kept |\n|---|---|---|---|---|\n");
    for row in rows {
        let kept = if row.kept { "yes" } else { "**no**" };
        text += &format!("| {} | {} | {} | {} | {kept} |\n", row.what, row.measured, row.figure, row.bar);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_are_taken_round_by_round() {
        let mut rounds = Rounds::default();
        for (ours, raw) in [(1.0, 2.0), (3.0, 4.0), (10.0, 10.0)] {
            rounds.add(vec![ours, raw]);
        }
        assert_eq!(rounds.contender(0).to_string(), "3.00 (1.00..10.00)");
        assert_eq!(rounds.derived(|round| round[0] / round[1]).to_string(), "0.75 (0.50..1.00)");
        assert!(Bar::AtLeast(0.7).kept(0.75) && !Bar::AtMost(0.7).kept(0.75));
    }
}
