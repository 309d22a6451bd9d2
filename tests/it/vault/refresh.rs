//! Refreshing: once per connection, saved before used, and never to a connection's harm without a reason.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use followthrough::auth::{Bearer, Tokens as _};
use followthrough::clock::Clock;
use followthrough::http::Call;
use followthrough::oauth::scopes::{Integration, Resource};
use followthrough::outcome::{Cause, Classify as _, Disposition};
use followthrough::schedule;
use followthrough::store::StoreError;
use followthrough::store::connection::{self, Status};
use followthrough::vault::seal::Keys;
use followthrough::vault::{VaultError, token_place};
use futures::future::join_all;
use m365_sim::Fault;
use m365_sim::entra::policy::Planned;
use m365_sim::fault::When;
use scoped_futures::ScopedFutureExt as _;
use secrecy::ExposeSecret as _;
use serde_json::json;
use url::Url;

use super::world::{ADA, BOB, World, new_link};

const MAIL: Integration = Integration::OutlookEmail;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_calls_with_no_token_make_one_request() {
    for world in World::each().await {
        let connection = world.connected(ADA, MAIL).await;
        let tokens = world.vault.tokens(&connection);
        let resource = world.running.base_url();
        let all = join_all((0..200).map(|_| tokens.access(&resource))).await;
        let mut secrets: Vec<_> =
            all.into_iter().map(|token| token.expect("a token").expose_secret().to_owned()).collect();
        secrets.dedup();
        assert_eq!(secrets.len(), 1);
        assert_eq!(world.refreshes(), [200]);
        let request = &world.token_requests("refresh_token")[0];
        assert!(request.path.starts_with(&format!("/{}/", connection.tenant_id.expect("a tenant"))));
        let scope = request.form("scope").expect("a scope");
        assert!(scope.contains("Mail.ReadWrite") && scope.ends_with(" offline_access"), "{scope}");
        world.no_violations();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_never_show_an_old_refresh_token() {
    for world in World::each().await {
        world.running.sim.entra_policy(|policy| {
            policy.strict_reuse = true;
            policy.reuse_grace_seconds = 0;
        });
        let connection = world.connected(ADA, MAIL).await;
        let vaults: Vec<_> = (0..4).map(|_| world.another_vault()).collect();
        let calls = vaults
            .iter()
            .flat_map(|vault| (0..50).map(|_| async { vault.access(connection.id, &Resource::Graph).await }));
        for token in join_all(calls).await {
            token.expect("a token");
        }
        assert_eq!(world.refreshes(), [200; 4]);
        world.no_violations();
        assert_eq!(world.connection(connection.id).await.status, Status::Connected);
    }
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends_and_an_old_one_serves_while_entra_is_away() {
    let start = DateTime::parse_from_rfc3339("2026-11-24T09:00:00Z").expect("a time").to_utc();
    let clock = Clock::manual(start);
    for world in World::each_with(|_| {}, &clock).await {
        stop(&world, clock.now());
        let connection = world.connected(ADA, MAIL).await;
        let token = || world.vault.access(connection.id, &Resource::Graph);
        let first = token().await.expect("a token");
        pass(&world, TimeDelta::minutes(50));
        assert_eq!(token().await.expect("kept").serial, first.serial);
        pass(&world, TimeDelta::minutes(6));
        let fault = Fault::status(503, When::Before).path("/*/oauth2/v2.0/token").header("retry-after", "30");
        world.running.sim.inject(fault);
        assert_eq!(token().await.expect("still good").serial, first.serial);
        assert_eq!(token().await.expect("still good").serial, first.serial);
        assert_eq!(world.refreshes(), [200, 503], "not asked again before its Retry-After");
        pass(&world, TimeDelta::seconds(31));
        assert_ne!(token().await.expect("renewed").serial, first.serial);
        assert_eq!(world.connection(connection.id).await.status, Status::Connected);
        world.no_violations();
    }
}

#[tokio::test]
async fn every_refusal_ends_with_the_one_who_can_act() {
    type Case = (&'static str, u64, Option<(Status, Cause)>);
    let cases: [Case; 12] = [
        ("interaction_required", 50076, Some((Status::NeedsUser, Cause::NeedsUser))),
        ("invalid_grant", 50079, Some((Status::NeedsUser, Cause::NeedsUser))),
        ("interaction_required", 50158, Some((Status::NeedsUser, Cause::NeedsUser))),
        ("invalid_grant", 70043, Some((Status::NeedsUser, Cause::NeedsUser))),
        ("invalid_grant", 50173, Some((Status::NeedsUser, Cause::NeedsUser))),
        ("invalid_grant", 700_082, Some((Status::NeedsUser, Cause::NeedsUser))),
        ("invalid_grant", 65001, Some((Status::NeedsUser, Cause::NeedsUser))),
        ("invalid_grant", 53003, Some((Status::NeedsAdmin, Cause::NeedsAdmin))),
        ("invalid_grant", 50105, Some((Status::NeedsAdmin, Cause::NeedsAdmin))),
        ("invalid_client", 7_000_215, None),
        ("invalid_client", 7_000_222, None),
        ("unauthorized_client", 700_016, Some((Status::NeedsAdmin, Cause::NeedsAdmin))),
    ];
    for world in World::each().await {
        let connection = world.connected(ADA, MAIL).await;
        for (error, code, expected) in cases {
            world.running.sim.fail_token_requests(Planned::new(ADA, error, code));
            let vault = world.another_vault();
            let refused = vault.access(connection.id, &Resource::Graph).await.expect_err(error);
            match expected {
                Some((_, cause)) => {
                    assert_eq!(refused.disposition(), Disposition::Park(cause), "{code}: {refused}");
                }
                None => {
                    assert!(matches!(refused.disposition(), Disposition::Defer { .. }), "{code}: {refused}");
                }
            }
            let after = world.connection(connection.id).await;
            assert_eq!(after.status, expected.map_or(Status::Connected, |(status, _)| status), "{code}");
            assert_eq!(world.told.take(), expected.map(|(status, _)| status).into_iter().collect::<Vec<_>>());
            if let Some((_, cause)) = expected {
                // Whoever asks again is told so by the row, without a request.
                let before = world.refreshes().len();
                let again = vault.access(connection.id, &Resource::Graph).await.expect_err("waits");
                assert_eq!(again.disposition(), Disposition::Park(cause));
                assert_eq!(world.refreshes().len(), before);
                assert_eq!(world.told.take(), []);
            }
            // The grant was kept: when it works again, so does the connection.
            vault.keep_alive(connection.id).await.unwrap_or_else(|error| {
                assert!(expected.is_none(), "{code}: {error}");
            });
            assert_eq!(world.connection(connection.id).await.status, Status::Connected, "{code}");
            world.told.take();
        }
    }
}

#[tokio::test]
async fn throttles_and_outages_never_change_a_connection() {
    let clock = Clock::manual(DateTime::parse_from_rfc3339("2026-11-24T09:00:00Z").expect("a time").to_utc());
    for world in World::each_with(|_| {}, &clock).await {
        stop(&world, clock.now());
        let connection = world.connected(ADA, MAIL).await;
        for status in [429, 500, 503] {
            let fault = Fault::status(status, When::Before).path("/*/oauth2/v2.0/token").times(100);
            world.running.sim.inject(fault.header("retry-after", "7"));
            for _ in 0..100 {
                let error = world.vault.access(connection.id, &Resource::Graph).await.expect_err("throttled");
                let Disposition::Retry { after: Some(after) } = error.disposition() else {
                    panic!("{error}")
                };
                assert_eq!(after, Duration::from_secs(7));
                pass(&world, TimeDelta::seconds(8));
            }
        }
        assert_eq!(world.connection(connection.id).await.status, Status::Connected);
        world.vault.access(connection.id, &Resource::Graph).await.expect("over");
        assert_eq!(world.told.take(), []);
    }
}

#[tokio::test]
async fn a_loop_that_entra_detects_is_left_for_minutes() {
    let clock = Clock::manual(DateTime::parse_from_rfc3339("2026-11-24T09:00:00Z").expect("a time").to_utc());
    for world in World::each_with(|_| {}, &clock).await {
        stop(&world, clock.now());
        let connection = world.connected(ADA, MAIL).await;
        world.running.sim.fail_token_requests(Planned::new(ADA, "invalid_grant", 50_196));
        for _ in 0..10 {
            let error = world.vault.access(connection.id, &Resource::Graph).await.expect_err("a loop");
            assert!(matches!(error.disposition(), Disposition::Defer { .. }), "{error}");
            pass(&world, TimeDelta::seconds(20));
        }
        assert_eq!(world.refreshes(), [400]);
        pass(&world, TimeDelta::minutes(3));
        world.vault.access(connection.id, &Resource::Graph).await.expect("the pause is over");
        assert_eq!(world.connection(connection.id).await.status, Status::Connected);
    }
}

#[tokio::test]
async fn a_refused_secret_touches_no_connection_and_is_not_asked_with_again() {
    for world in World::each().await {
        let ada = world.connected(ADA, MAIL).await;
        let calendar = world.connected(ADA, Integration::OutlookCalendar).await;
        let vault =
            world.vault_with_settings(|settings| settings.client_secret = Some("planted-wrong".into()));
        for id in [ada.id, ada.id, calendar.id] {
            let error = vault.access(id, &Resource::Graph).await.expect_err("wrong secret");
            assert!(matches!(error.disposition(), Disposition::Defer { .. }), "jobs go on by themselves");
            assert_eq!(error.code(), "invalid_client");
            let shown = format!("{error} {error:?} {vault:?}");
            assert!(!shown.contains("planted"), "{shown}");
            assert_eq!(world.connection(id).await.status, Status::Connected);
        }
        assert_eq!(world.refreshes().len(), 1);
        assert_eq!(world.told.take(), []);
    }
}

#[tokio::test]
async fn what_is_wrong_with_one_tenant_stops_no_other_connection() {
    for world in World::each().await {
        let ada = world.connected(ADA, MAIL).await;
        let bob = world.connected(BOB, MAIL).await;
        for (error, code) in [("unauthorized_client", 123_456), ("invalid_client", 50_013)] {
            world.running.sim.fail_token_requests(Planned::new(ADA, error, code));
            let vault = world.another_vault();
            let refused = vault.access(ada.id, &Resource::Graph).await.expect_err("refused");
            assert_eq!(refused.disposition(), Disposition::Park(Cause::Operator), "{refused}");
            vault.access(bob.id, &Resource::Graph).await.expect("Bob's own tenant accepts us");
        }
    }
}

#[tokio::test]
async fn invalid_grant_counts_only_against_the_token_in_the_row() {
    for world in World::each().await {
        let connection = world.connected(ADA, MAIL).await;
        let id = connection.id;
        // Another process rotates meanwhile; its lease is taken from it as if it had run out.
        let held = world.running.sim.inject(Fault::hold(When::Before).path("/*/oauth2/v2.0/token"));
        world.running.sim.fail_token_requests(Planned::new(ADA, "invalid_grant", 70_000));
        let slow = world.another_vault();
        let slow = tokio::spawn(async move { slow.access(id, &Resource::Graph).await });
        until(|| world.running.sim.holds(held)).await;
        world
            .execute("UPDATE connections SET token_version = token_version + 1, refresh_holder = NULL")
            .await;
        world.running.sim.release(held);
        slow.await.expect("no panic").expect("the row had moved on, so it was tried again");
        assert_eq!(world.refreshes(), [400, 200]);
        assert_eq!(world.connection(id).await.status, Status::Connected);
        assert_eq!(world.told.take(), []);
    }
}

#[tokio::test]
async fn a_crash_between_rotation_and_save_costs_nothing() {
    for world in World::each().await {
        let connection = world.connected(ADA, MAIL).await;
        world.running.sim.inject(Fault::lost_after().path("/*/oauth2/v2.0/token"));
        let vault = world.another_vault();
        let lost = vault.access(connection.id, &Resource::Graph).await.expect_err("no answer came");
        assert!(matches!(lost.disposition(), Disposition::Retry { .. }), "{lost}");
        let other = world.another_vault();
        other.access(connection.id, &Resource::Graph).await.expect("the old token still works");
        assert_eq!(world.connection(connection.id).await.status, Status::Connected);
        world.no_violations();
    }
}

#[tokio::test]
async fn a_caller_that_gives_up_loses_no_rotated_token() {
    for world in World::each().await {
        world.running.sim.entra_policy(|policy| {
            policy.strict_reuse = true;
            policy.reuse_grace_seconds = 0;
        });
        let connection = world.connected(ADA, MAIL).await;
        let held = world.running.sim.inject(Fault::hold(When::Before).path("/*/oauth2/v2.0/token"));
        let call = world.vault.access(connection.id, &Resource::Graph);
        tokio::select! {
            _ = call => panic!("there is no answer yet"),
            () = until(|| world.running.sim.holds(held)) => {}
        }
        world.running.sim.release(held);
        world.vault.access(connection.id, &Resource::Graph).await.expect("the same refresh");
        assert_eq!(world.refreshes(), [200]);
        world.no_violations();
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_saved_is_not_used_and_is_saved_later() {
    // The trigger is SQLite's; what it proves is not.
    let world = World::each().await.remove(0);
    world.running.sim.entra_policy(|policy| {
        policy.strict_reuse = true;
        policy.reuse_grace_seconds = 0;
    });
    let connection = world.connected(ADA, MAIL).await;
    world
        .execute(
            "CREATE TRIGGER full BEFORE UPDATE OF token_version ON connections
             BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
        )
        .await;
    let error = world.vault.access(connection.id, &Resource::Graph).await.expect_err("not saved");
    assert_eq!(error.code(), "store_unavailable");
    world.execute("DROP TRIGGER full").await;
    world.vault.access(connection.id, &Resource::Graph).await.expect("saved now");
    assert_eq!(world.refreshes(), [200], "the token of the first request is the one that was saved");
    let other = world.another_vault();
    other.access(connection.id, &Resource::Graph).await.expect("the rotated token is in the row");
    world.no_violations();
}

#[tokio::test]
async fn a_claims_challenge_is_answered_once_and_asked_of_the_user_when_it_must() {
    for world in World::each().await {
        let connection = world.connected(ADA, MAIL).await;
        let tokens = world.vault.tokens(&connection);
        let resource = world.running.base_url();
        let first = tokens.access(&resource).await.expect("a token");
        let claims = json!({"access_token": {"nbf": {"essential": true, "value": "1"}}}).to_string();
        let second = tokens.rejected(&resource, Some(claims.clone())).await.expect("another");
        assert_ne!(first.expose_secret(), second.expose_secret());
        let request = world.token_requests("refresh_token").pop().expect("a refresh");
        assert_eq!(request.form("claims").as_deref(), Some(claims.as_str()));
        // A neighbour who comes with the first token gets the second without a request.
        let serial = world.vault.access(connection.id, &Resource::Graph).await.expect("kept").serial;
        let neighbour =
            world.vault.rejected(connection.id, &Resource::Graph, serial - 1, Some(&claims)).await;
        assert_eq!(neighbour.expect("the same").serial, serial);
        assert_eq!(world.refreshes(), [200, 200]);

        let wanted = json!({"access_token": {"acrs": {"essential": true, "value": "c1"}}});
        let refusal = Planned::new(ADA, "interaction_required", 50_076).claims(wanted.clone());
        world.running.sim.fail_token_requests(refusal);
        let failure = tokens.rejected(&resource, Some(claims)).await.expect_err("a person must act");
        assert_eq!(failure.disposition, Disposition::Park(Cause::NeedsUser));
        let waiting = world.connection(connection.id).await;
        assert_eq!(waiting.status, Status::NeedsUser);
        let stored: serde_json::Value = serde_json::from_str(&waiting.claims.expect("claims")).expect("JSON");
        assert_eq!(stored, wanted);
        let landing = world.sign_in(new_link(ADA, MAIL)).await;
        assert_eq!(landing.code, "connected");
        let asked = world.running.sim.calls_to("GET", "/organizations/oauth2/v2.0/authorize").pop();
        assert!(asked.expect("a visit").query.contains("claims=%7B%22access_token"));
        assert_eq!(world.connection(connection.id).await.claims, None);
    }
}

#[tokio::test]
async fn a_second_refusal_by_the_resource_asks_the_user_once_and_not_of_a_later_grant() {
    for world in World::each().await {
        let connection = world.connected(ADA, MAIL).await;
        let resource = world.running.base_url();
        let stale = world.vault.tokens(&connection);
        let bearer = Bearer::new(
            world.vault.entra().http.clone(),
            Arc::new(world.vault.tokens(&connection)),
            &resource,
        );
        let ask = async || {
            let url = Url::parse(&format!("{resource}/v1.0/me")).expect("a URL");
            bearer.send(Call::get("test.me", url)).await.map(|answer| answer.status.as_u16())
        };
        world.running.sim.inject(Fault::status(401, When::Before).path("/v1.0/me").times(2));
        assert_eq!(ask().await.expect("an answer"), 401);
        let paused = world.connection(connection.id).await;
        assert_eq!(
            (paused.status, paused.cause.as_deref()),
            (Status::NeedsUser, Some("interaction_required"))
        );
        assert_eq!(world.told.take(), [Status::NeedsUser]);
        stale.refused(&resource, None).await;
        assert_eq!(world.told.take(), []);
        world.connected(ADA, MAIL).await;
        stale.refused(&resource, None).await;
        assert_eq!(world.connection(connection.id).await.status, Status::Connected);
        assert_eq!(ask().await.expect("an answer"), 200);
        assert_eq!(world.told.take(), []);
    }
}

#[tokio::test]
async fn an_idle_connection_lives_for_two_hundred_days() {
    let clock = Clock::manual(DateTime::parse_from_rfc3339("2026-11-24T09:00:00Z").expect("a time").to_utc());
    for world in World::each_with(|_| {}, &clock).await {
        stop(&world, clock.now());
        let connection = world.connected(ADA, MAIL).await;
        for day in 0..200 {
            pass(&world, TimeDelta::days(1));
            for id in world.vault.idle_connections(TimeDelta::days(7), 100).await.expect("the store") {
                world.vault.keep_alive(id).await.expect("kept alive");
            }
            if day % 60 == 59 {
                world.vault.access(connection.id, &Resource::Graph).await.expect("a job's token");
            }
        }
        let refreshes = world.refreshes().len();
        assert!((24..=32).contains(&refreshes), "{refreshes}");
    }
}

#[tokio::test]
async fn connections_that_cannot_be_kept_alive_stand_before_no_other() {
    let clock = Clock::manual(DateTime::parse_from_rfc3339("2026-11-24T09:00:00Z").expect("a time").to_utc());
    for world in World::each_with(|_| {}, &clock).await {
        stop(&world, clock.now());
        for number in 0..20 {
            // Sealed with a key that is gone: neither Entra nor a person was ever asked.
            let (user, now) = (&format!("stuck-{number}@acme.example"), clock.now() - TimeDelta::days(1));
            let stuck = world.store.transaction("test", |tx| {
                async move {
                    let connection = connection::ensure(tx, "acme", user, MAIL, now).await?;
                    followthrough::sql!(
                        tx,
                        execute,
                        "UPDATE connections SET status = 'connected', tenant_id = 'tenant', refreshed_at = $2, \
                         refresh_token = $3 WHERE id = $1",
                        connection.id,
                        now,
                        b"damaged".to_vec(),
                    )?;
                    Ok::<_, StoreError>(())
                }
                .scope_boxed()
            });
            stuck.await.expect("a stuck connection");
        }
        world.connected(ADA, MAIL).await;
        pass(&world, TimeDelta::days(8));
        for _ in 0..2 {
            schedule::tend(&world.vault).await;
        }
        assert_eq!(world.refreshes(), [200], "Ada's turn came");
    }
}

#[tokio::test]
async fn disconnecting_wipes_the_token_everywhere() {
    for world in World::each().await {
        let connection = world.connected(ADA, MAIL).await;
        world.vault.access(connection.id, &Resource::Graph).await.expect("a token");
        let ended = world.vault.disconnect(connection.id).await.expect("the store").expect("a connection");
        assert_eq!(ended.status, Status::Disconnected);
        assert_eq!(world.told.take(), [Status::Disconnected]);
        let id = connection.id;
        let row = world.store.read(|tx| async move { connection::sealed(tx, id).await }.scope_boxed()).await;
        assert!(row.expect("the store").expect("the row").refresh_token.is_none());
        let error = world.vault.access(id, &Resource::Graph).await.expect_err("gone");
        assert!(matches!(error, VaultError::NotConnected(_)), "{error}");
        // A job that was claimed before, in another process, gets nothing either.
        assert!(world.another_vault().tokens(&connection).access(&world.running.base_url()).await.is_err());
        world.vault.disconnect(id).await.expect("the store");
        assert_eq!(world.told.take(), [], "told once");
        // Signing in again is a new grant.
        assert_eq!(world.sign_in(new_link(ADA, MAIL)).await.code, "connected");
        world.vault.access(id, &Resource::Graph).await.expect("a token");
    }
}

#[tokio::test]
async fn an_environment_without_consent_leaves_the_connection_alone() {
    for world in World::each().await {
        let base = world.running.base_url();
        let new = new_link(ADA, Integration::Dynamics);
        let landing =
            world.sign_in(followthrough::oauth::links::NewLink { environment: Some(&base), ..new }).await;
        let id = landing.connection.expect("its connection");
        world.told.take();
        let gone = Resource::Dataverse("https://gone.crm4.dynamics.com".into());
        let error = world.vault.access(id, &gone).await.expect_err("no such environment");
        assert!(matches!(error.disposition(), Disposition::Park(_)), "{error}");
        assert_eq!(world.connection(id).await.status, Status::Connected);
        assert_eq!(world.told.take(), []);
        world.vault.access(id, &Resource::Dataverse(base)).await.expect("its own still works");
        let tokens = world.vault.tokens(&world.connection(id).await);
        let foreign = tokens.access("https://evil.example").await.expect_err("not ours");
        assert_eq!((foreign.disposition, foreign.code.as_ref()), (Disposition::Reject, "foreign_resource"));
    }
}

#[tokio::test]
async fn rotating_the_keys_leaves_every_token_readable() {
    for world in World::each().await {
        let connection = world.connected(ADA, MAIL).await;
        world.connected("bob@acme.example", MAIL).await;
        let keys = vec![Keys::generate("next"), world.keys[0].clone()];
        let both = world.vault_with(&keys);
        let done = both.rotate().await.expect("the store");
        assert_eq!((done.resealed, done.already, done.unreadable.len()), (2, 0, 0));
        let again = both.rotate().await.expect("the store");
        assert_eq!((again.resealed, again.already), (0, 2));
        let only_new = world.vault_with(&keys[..1]);
        only_new.access(connection.id, &Resource::Graph).await.expect("sealed with the new key");
        let error = world.vault_with(&world.keys).access(connection.id, &Resource::Graph).await;
        let error = error.expect_err("its key is not in the list");
        assert_eq!(error.code(), "vault_key_missing");
        assert_eq!(world.connection(connection.id).await.status, Status::Connected);
    }
}

#[tokio::test]
async fn what_is_stored_shows_no_token() {
    for world in World::each().await {
        let connection = world.connected(ADA, MAIL).await;
        let id = connection.id;
        let row = world.store.read(|tx| async move { connection::sealed(tx, id).await }.scope_boxed()).await;
        let sealed = row.expect("the store").expect("the row").refresh_token.expect("a token");
        let keys = Keys::parse(&world.keys).expect("keys");
        let plain = keys.open(token_place(&id), &sealed).expect("sealed for this row");
        let plain = plain.expose_secret();
        assert!(plain.len() > 8 && !sealed.windows(8).any(|part| part == &plain[..8]));
        assert!(keys.open(token_place(&uuid::Uuid::nil()), &sealed).is_err());
    }
}

/// The simulator's clock stands still where ours does.
fn stop(world: &World, now: DateTime<Utc>) {
    world.running.sim.clock().freeze(true);
    world.running.sim.clock().set(now);
}

fn pass(world: &World, time: TimeDelta) {
    world.clock.advance(time.to_std().expect("forward"));
    stop(world, world.clock.now());
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.expect("it happens");
}
