//! A drain in the middle of any call loses nothing and counts nothing.

use std::sync::Arc;

use followthrough_tests::broker::within;
use followthrough_tests::world::Pair;
use futures::StreamExt;
use m365_sim::Fault;
use m365_sim::fault::When;

use super::cases::{self, Case, Clean, JOB};

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_in_the_middle_of_any_call_loses_nothing_and_counts_nothing() {
    let mut runs = Vec::new();
    for case in cases::all() {
        let clean = case.clean().await;
        for (call, _) in cases::telling(&clean.calls) {
            runs.extend(
                [When::Before, When::After].map(|when| (Pair::Embedded, case, clean.clone(), call, when)),
            );
        }
    }
    all(32, runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_servers_too_a_drain_in_the_last_call_loses_nothing() {
    let mut runs = Vec::new();
    for case in cases::all() {
        let clean = case.clean().await;
        let last = clean.calls.len() - 1;
        runs.push((Pair::Servers, case, clean, last, When::After));
    }
    all(3, runs).await;
}

async fn all(at_once: usize, runs: Vec<(Pair, Case, Arc<Clean>, usize, When)>) {
    let runs = runs.into_iter().map(|(pair, case, clean, call, when)| async move {
        let one = tokio::spawn(async move { Box::pin(run(pair, case, &clean, call, when)).await });
        one.await.err().map(|_| format!("{}: drained {when:?} call {call}", case.name))
    });
    let wrong: Vec<String> =
        futures::stream::iter(runs).buffer_unordered(at_once).filter_map(async |one| one).collect().await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn run(pair: Pair, case: Case, clean: &Clean, call: usize, when: When) {
    let Some(mut world) = case.world(pair).await else { return };
    let nth = u64::try_from(call).expect("few calls") + 1;
    let held = world.sim().inject(Fault::hold(when).nth(nth));
    world.publish(&[case.envelope(&world)]).await;
    let sim = world.sim().clone();
    within("the call to be held", sim.until(|sim| sim.holds(held))).await;
    world.cut().await;
    let row = world.job(JOB).await.expect("the row");
    let said =
        format!("{}: drained {when:?} {} {}", case.name, clean.calls[call].method, clean.calls[call].path);
    assert_eq!((row.state.as_str(), row.attempt), ("queued", 0), "{said}");
    // What Microsoft had not done yet is done before the next process looks, or a lost request would come late.
    sim.release(held);
    within("the call to end", sim.until(|sim| sim.calls().iter().all(|call| call.ended.is_some()))).await;
    world.start().await;
    world.until_state(JOB, "succeeded").await;
    let row = world.job(JOB).await.expect("the row");
    assert_eq!(row.attempt, 1, "{said}");
    let seen = world.snapshot();
    assert!(seen == clean.snapshot, "{said}: {seen:?}\ninstead of\n{:?}", clean.snapshot);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_with_patience_lets_the_call_end() {
    for case in cases::all() {
        let mut world = case.world(Pair::Embedded).await.expect("the embedded pair is always there");
        let held = world.sim().inject(Fault::hold(When::Before).nth(2));
        world.publish(&[case.envelope(&world)]).await;
        let sim = world.sim().clone();
        within("the call to be held", sim.until(|sim| sim.holds(held))).await;
        // The drain is polled first, so it has begun before the call may go on.
        tokio::join!(biased; world.stop(), async { sim.release(held) });
        assert_eq!(world.state(JOB).await, "succeeded", "{}", case.name);
        world.start().await;
        world.close().await;
    }
}
