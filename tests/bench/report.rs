//! What a run found, for people and as JSON, with the aims beside it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    jobs: usize,
    users: usize,
    concurrency: u16,
    rate: u32,
    pub(crate) bare: Vec<Round>,
    pub(crate) fleet: Vec<Round>,
    pub(crate) alone: Steady,
    pub(crate) steady: Steady,
    pub(crate) memory: Memory,
    /// What the ledger says at the end of the rounds.
    pub(crate) states: BTreeMap<String, i64>,
}

/// One drain of a preloaded queue.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Round {
    pub(crate) jobs_per_second: f64,
    pub(crate) cpu_micros_per_job: f64,
    pub(crate) commits_per_job: f64,
    pub(crate) statements_per_job: f64,
    /// As PostgreSQL counts them, polls and leases included.
    pub(crate) postgres_commits_per_job: f64,
    pub(crate) peak: u64,
    pub(crate) doubled: u64,
    pub(crate) lost: u64,
    /// Events of a job that had one already: allowed, and to be rare.
    pub(crate) events_again: u64,
    pub(crate) events_other: u64,
}

#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Steady {
    pub(crate) latency: Percentiles,
    pub(crate) commits_per_job: f64,
    pub(crate) statements_per_job: f64,
    pub(crate) cpu_micros_per_job: f64,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Memory {
    pub(crate) idle: u64,
    pub(crate) queued: u64,
}

/// Milliseconds.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Percentiles {
    p50: f64,
    p99: f64,
    most: f64,
}

impl Percentiles {
    pub(crate) fn line(&self) -> String {
        format!("p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms", self.p50, self.p99, self.most)
    }

    pub(crate) fn of(mut waits: Vec<Duration>) -> Self {
        waits.sort();
        let at = |percent: usize| {
            let index = (waits.len() * percent / 100).min(waits.len().saturating_sub(1));
            waits.get(index).map_or(0.0, |wait| wait.as_secs_f64() * 1e3)
        };
        Self { p50: at(50), p99: at(99), most: at(100) }
    }
}

/// Counts of a benchmark are far below 2^32.
pub(crate) fn number(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

pub(crate) fn signed(count: i64) -> f64 {
    f64::from(i32::try_from(count).unwrap_or(i32::MAX))
}

fn mebibytes(bytes: u64) -> f64 {
    number(bytes / 1024) / 1024.0
}

/// Median, least and most.
fn middle(rounds: &[Round], of: impl Fn(&Round) -> f64) -> (f64, f64, f64) {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    (at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

impl Report {
    pub(crate) fn new(jobs: usize, users: usize, concurrency: u16, rate: u32) -> Self {
        Self { jobs, users, concurrency, rate, ..Self::default() }
    }

    /// On standard error, while the others still run.
    pub(crate) fn tell_round(&self, round: usize) {
        if let (Some(bare), Some(fleet)) = (self.bare.last(), self.fleet.last()) {
            eprintln!(
                "round {}: bare {:.0}/s {:.0} µs, fleet {:.0}/s {:.0} µs, {:.2} commits, {:.2} statements",
                round + 1,
                bare.jobs_per_second,
                bare.cpu_micros_per_job,
                fleet.jobs_per_second,
                fleet.cpu_micros_per_job,
                fleet.commits_per_job,
                fleet.statements_per_job,
            );
        }
    }

    pub(crate) fn print(&self) {
        let line = |what: &str, rounds: &[Round], of: &dyn Fn(&Round) -> f64, digits: usize| {
            let (median, least, most) = middle(rounds, of);
            println!("{what:<44} {median:>9.digits$}   ({least:.digits$} to {most:.digits$})");
        };
        println!(
            "{} jobs a round, {} rounds, {} users, concurrency {}; medians (least to most)\n",
            self.jobs,
            self.fleet.len(),
            self.users,
            self.concurrency
        );
        line("bare consumer, jobs/s", &self.bare, &|round| round.jobs_per_second, 0);
        line("fleet, jobs/s", &self.fleet, &|round| round.jobs_per_second, 0);
        let (bare, fleet) = (
            middle(&self.bare, |round| round.jobs_per_second).0,
            middle(&self.fleet, |round| round.jobs_per_second).0,
        );
        println!("{:<44} {:>9.3}   aim: at least {:.3}", "ratio", fleet / bare, 1.0 / 8.0);
        line("bare consumer, own CPU µs/job", &self.bare, &|round| round.cpu_micros_per_job, 0);
        line("fleet, own CPU µs/job (aim: 400)", &self.fleet, &|round| round.cpu_micros_per_job, 0);
        line("commits/job under load (aim: 2)", &self.fleet, &|round| round.commits_per_job, 2);
        line("  as PostgreSQL counts them", &self.fleet, &|round| round.postgres_commits_per_job, 2);
        line("statements/job under load", &self.fleet, &|round| round.statements_per_job, 2);
        line("peak memory in a round, MiB", &self.fleet, &|round| mebibytes(round.peak), 1);
        for (name, steady) in [("alone", &self.alone), ("open loop", &self.steady)] {
            println!(
                "{:<44} p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms; {:.2} commits, {:.2} statements, {:.0} µs CPU",
                format!("publish to event, {name}"),
                steady.latency.p50,
                steady.latency.p99,
                steady.latency.most,
                steady.commits_per_job,
                steady.statements_per_job,
                steady.cpu_micros_per_job,
            );
        }
        println!("{:<44} {:>9.1}   aim: below 64", "resident when idle, MiB", mebibytes(self.memory.idle));
        println!(
            "{:<44} {:>9.1}   aim: below 128",
            "resident with a long queue, MiB",
            mebibytes(self.memory.queued)
        );
        let sum = |of: fn(&Round) -> u64| self.fleet.iter().map(of).sum::<u64>();
        println!(
            "fleet: {} lost, {} doubled, {} events repeated, {} events of another type; ledger {:?}",
            sum(|round| round.lost),
            sum(|round| round.doubled),
            sum(|round| round.events_again),
            sum(|round| round.events_other),
            self.states
        );
    }
}
