//! Laws about one look at Microsoft's side: twice is once, and nothing beyond what was consented to.

use followthrough_tests::world::{ADA, Pair};

use super::cases::{self, JOB};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_job_published_again_and_again_is_done_once() {
    for case in cases::all() {
        let clean = case.clean().await;
        for pair in [Pair::Embedded, Pair::Servers] {
            let Some(world) = case.world(pair).await else { continue };
            let envelope = case.envelope(&world);
            world.publish(&[envelope.clone(), envelope.clone(), envelope.clone()]).await;
            world.until_state(JOB, "succeeded").await;
            let (status, answer) = world.submit(&envelope).await;
            assert_eq!((status.as_u16(), answer["state"].as_str()), (202, Some("succeeded")));
            world.publish(&[envelope]).await;
            world.at_rest().await;
            assert_eq!(world.sim().calls().len(), clean.calls.len(), "{}", case.name);
            assert_eq!(world.snapshot(), clean.snapshot, "{}", case.name);
            let succeeded = format!("job.succeeded.{}", case.kind);
            world.until("its event", || async { !world.events.about(JOB).is_empty() }).await;
            assert_eq!(world.events.about(JOB), [succeeded], "{}", case.name);
            let all = world.events.all();
            let told = &all.iter().find(|event| event["subject"] == JOB).expect("its event")["data"];
            assert_eq!((&told["workspace"], &told["kind"]), (&"acme".into(), &case.kind.into()));
            // Ids are the simulator's own, and the same in every world that begins alike.
            assert_eq!(
                told["result"].as_object().map(serde_json::Map::len),
                clean.result.as_object().map(serde_json::Map::len)
            );
            world.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_declared_permissions_are_enough_and_the_only_ones_used() {
    for case in cases::all().into_iter().filter(|case| !case.takes_away()) {
        let clean = case.clean().await;
        let world = case.world(Pair::Embedded).await.expect("the embedded pair is always there");
        let entry = world.registry().find(case.kind).expect("a registered kind");
        // Whatever else was consented to is missing from the tokens: a call that needs it is refused.
        let connection = world.connect(ADA, case.integration()).await;
        let granted = world.connection(connection).await.scopes;
        let beyond: Vec<String> = granted
            .iter()
            .map(|scope| scope.rsplit('/').next().unwrap_or(scope).to_owned())
            .filter(|scope| !entry.spec.scopes.contains(&scope.as_str()))
            .collect();
        world.sim().entra_policy(|policy| policy.withhold = beyond);
        world.sim().clear_calls();
        world.publish(&[case.envelope(&world)]).await;
        world.until_state(JOB, "succeeded").await;
        assert_eq!(world.snapshot(), clean.snapshot, "{}", case.name);
        let mut spoken = 0;
        for call in world.sim().calls() {
            let Some(bearer) = call.bearer else {
                assert!(call.path.ends_with("/oauth2/v2.0/token"), "{} {} as nobody", call.method, call.path);
                continue;
            };
            assert_eq!(bearer.upn, ADA, "{} {}", call.method, call.path);
            assert_eq!(bearer.scopes, entry.spec.scopes, "{} {}", call.method, call.path);
            spoken += 1;
        }
        assert!(spoken > 0, "{}", case.name);
        world.close().await;
    }
}
