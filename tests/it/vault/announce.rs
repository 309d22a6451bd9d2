//! What publishers hear of a connection, and which jobs go on with it.

use std::sync::Arc;

use followthrough::connected::Announce;
use followthrough::oauth::Consent;
use followthrough::oauth::scopes::{Integration, Resource};
use followthrough::store::outbox::OwedRow;
use followthrough::store::{StoreError, job, outbox};
use followthrough_tests::outside::REGISTRY;
use m365_sim::entra::policy::Planned;
use scoped_futures::ScopedFutureExt as _;
use serde_json::Value;

use super::world::{ADA, World, answer, new_link};

#[tokio::test]
async fn a_connection_is_announced_and_releases_the_jobs_that_waited_for_it() {
    for world in World::each().await {
        let vault = world.vault_that_tells(Arc::new(Announce { registry: REGISTRY }));
        let consent = Consent::new(vault.clone());
        for (id, kind, cause) in [
            ("waits", "test.mail", "needs_user"),
            ("waits-too", "test.mail", "needs_admin"),
            ("asks", "test.mail", "approval"),
            ("other", "test.post", "needs_user"),
        ] {
            parked(&world, id, kind, cause).await;
        }
        let created = consent.create_link(new_link(ADA, Integration::OutlookEmail)).await.expect("a link");
        assert_eq!(owed(&world).await.len(), 0, "a link is no news");
        let secret = created.url.path_segments().and_then(Iterator::last).expect("a secret");
        let back = world.visit(consent.open_link(secret).await.expect("opens")).await;
        let landing = consent.callback(answer(&back)).await.expect("a landing");
        assert_eq!(landing.code, "connected");
        let rows = owed(&world).await;
        let event: Value = serde_json::from_str(&rows[0].body).expect("JSON");
        assert_eq!(event["type"], "followthrough.connection.connected");
        assert_eq!(event["subject"], created.id.to_string());
        assert_eq!(event["data"]["workspace"], "acme");
        assert_eq!(event["data"]["integration"], "outlook-email");
        let mut released: Vec<_> = rows[1..].iter().map(|row| row.subject.as_str()).collect();
        released.sort_unstable();
        assert_eq!(released, ["job/acme/waits", "job/acme/waits-too"]);
        assert_eq!(states(&world).await, ["parked", "parked", "queued", "queued"]);

        world.running.sim.fail_token_requests(Planned::new(ADA, "invalid_grant", 50_173));
        for _ in 0..3 {
            vault.access(created.id, &Resource::Graph).await.expect_err("revoked");
        }
        vault.disconnect(created.id).await.expect("the store");
        let kinds: Vec<_> = owed(&world).await.iter().map(|row| row.target.clone()).collect();
        assert_eq!(kinds.len(), 2, "{kinds:?}");
        assert!(kinds[0].ends_with("connection.needs_user") && kinds[1].ends_with("connection.disconnected"));
    }
}

async fn parked(world: &World, id: &'static str, kind: &'static str, cause: &'static str) {
    let now = world.clock.now();
    world
        .store
        .transaction("test", |tx| {
            async move {
                followthrough::sql!(
                    tx,
                    execute,
                    "INSERT INTO jobs (workspace, id, kind, user_name, payload, digest, state, cause, created_at, updated_at)
                     VALUES ('acme', $1, $2, $3, '{}', $4, 'parked', $5, $6, $6)",
                    id,
                    kind,
                    ADA,
                    vec![0_u8],
                    cause,
                    now,
                )?;
                Ok::<_, StoreError>(())
            }
            .scope_boxed()
        })
        .await
        .expect("a parked job");
}

/// What the relay would take, and takes it.
async fn owed(world: &World) -> Vec<OwedRow> {
    let now = world.clock.now();
    world
        .store
        .transaction("test", |tx| {
            async move {
                let rows = outbox::claim(tx, "test", now, now + chrono::TimeDelta::minutes(5), 100).await?;
                outbox::sent(tx, &rows.iter().map(|row| row.seq).collect::<Vec<_>>()).await?;
                Ok::<_, StoreError>(rows)
            }
            .scope_boxed()
        })
        .await
        .expect("the outbox")
}

async fn states(world: &World) -> Vec<String> {
    let mut states = Vec::new();
    for id in ["asks", "other", "waits", "waits-too"] {
        let row = world.store.read(|tx| async move { job::find(tx, "acme", id).await }.scope_boxed()).await;
        states.push(row.expect("the store").expect("the job").state);
    }
    states
}
