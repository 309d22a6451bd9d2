//! For every outward call of a clean run, and for each way in which it can go wrong: the world ends the same.

use std::sync::Arc;

use followthrough_tests::world::Pair;
use futures::StreamExt;
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::journal::Area;

use super::cases::{self, Case, Clean, JOB};

/// Worlds at once: they mostly wait. A server has fewer connections than a machine has files.
fn at_once(pair: Pair) -> usize {
    if pair == Pair::Embedded { 32 } else { 3 }
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    LostBefore,
    LostAfter,
    UnavailableBefore,
    UnavailableAfter,
    GatewayAfter,
    ThrottledBefore,
}

impl Trouble {
    const ALL: [Self; 6] = [
        Self::LostBefore,
        Self::LostAfter,
        Self::UnavailableBefore,
        Self::UnavailableAfter,
        Self::GatewayAfter,
        Self::ThrottledBefore,
    ];

    fn fault(self) -> Fault {
        match self {
            Self::LostBefore => Fault::lost_before(),
            Self::LostAfter => Fault::lost_after(),
            Self::UnavailableBefore => Fault::status(503, When::Before).header("Retry-After", "1"),
            Self::UnavailableAfter => Fault::status(503, When::After).header("Retry-After", "1"),
            // Gateways say nothing about when.
            Self::GatewayAfter => Fault::status(504, When::After),
            Self::ThrottledBefore => Fault::status(429, When::Before).header("Retry-After", "1"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_any_call_the_world_ends_as_if_nothing_had() {
    let mut runs = Vec::new();
    for case in cases::all() {
        let clean = case.clean().await;
        for (call, made) in cases::telling(&clean.calls) {
            // Of an Entra that does not say when, everybody keeps off for a minute, as MSAL does.
            let token = |trouble| made.area == Area::Entra && matches!(trouble, Trouble::GatewayAfter);
            let troubles = Trouble::ALL.into_iter().filter(|trouble| !token(*trouble));
            runs.extend(troubles.map(|trouble| (case, clean.clone(), call, trouble)));
        }
    }
    all(Pair::Embedded, runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_servers_too_the_last_call_of_each_job_may_go_wrong() {
    let mut runs = Vec::new();
    for case in cases::all() {
        let clean = case.clean().await;
        let last = clean.calls.len() - 1;
        for trouble in [Trouble::LostBefore, Trouble::LostAfter, Trouble::ThrottledBefore] {
            runs.push((case, clean.clone(), last, trouble));
        }
    }
    all(Pair::Servers, runs).await;
}

async fn all(pair: Pair, runs: Vec<(Case, Arc<Clean>, usize, Trouble)>) {
    let runs = runs.into_iter().map(|(case, clean, call, trouble)| async move {
        let one = tokio::spawn(async move { Box::pin(run(pair, case, &clean, call, trouble)).await });
        one.await.err().map(|_| format!("{}: {trouble:?} at call {call}", case.name))
    });
    let wrong: Vec<String> = futures::stream::iter(runs)
        .buffer_unordered(at_once(pair))
        .filter_map(async |one| one)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn run(pair: Pair, case: Case, clean: &Clean, call: usize, trouble: Trouble) {
    let Some(world) = case.world(pair).await else { return };
    let nth = u64::try_from(call).expect("few calls") + 1;
    let fault = world.sim().inject(trouble.fault().nth(nth));
    world.publish(&[case.envelope(&world)]).await;
    world.until_state(JOB, "succeeded").await;
    let said =
        format!("{}: {trouble:?} at {} {}", case.name, clean.calls[call].method, clean.calls[call].path);
    assert_eq!(world.sim().fault_hits(fault).1, 1, "{said}");
    let row = world.job(JOB).await.expect("the row");
    assert!(row.attempt <= 2, "{said}: {} attempts", row.attempt);
    let seen = world.snapshot();
    assert!(seen == clean.snapshot, "{said}: {seen:?}\ninstead of\n{:?}", clean.snapshot);
    world.until("its event", || async { !world.events.about(JOB).is_empty() }).await;
    assert_eq!(world.events.about(JOB), [format!("job.succeeded.{}", case.kind)], "{said}");
    world.close().await;
}
