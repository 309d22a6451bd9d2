//! Stories about subscriptions on a shared mailbox: kept alive, believed when proven, never relied on.

use chrono::{DateTime, TimeDelta, Utc};
use followthrough::clock::Clock;
use followthrough::mailbox::SeenChange;
use followthrough::outcome::{Cause, Disposition};
use followthrough::store::subscription;
use followthrough_workers::mailbox::subscriptions::keep;
use futures::future::join_all;
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::SharedSubscribe;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use scoped_futures::ScopedFutureExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::site::Site;

const CALLS: &str = "/v1.0/subscriptions*";

fn noon() -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-11-24T12:00:00Z").expect("a time").to_utc()
}

async fn site() -> Site {
    Site::on_sqlite(Clock::manual(noon()), true).await
}

async fn sites() -> Vec<Site> {
    let mut sites = vec![site().await];
    sites.extend(Site::on_postgres(Clock::manual(noon())).await);
    sites
}

fn rung(rung: &str, reason: &str) -> (String, String) {
    (rung.to_owned(), reason.to_owned())
}

/// Waits until the notification of this message is stored.
async fn told(site: &Site, change: &SeenChange) {
    site.until("the notification", || async {
        site.notices().await.contains(&(change.id.clone(), "created".to_owned()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn push_is_believed_when_a_notification_told_of_what_a_poll_saw_whoever_came_first() {
    for site in sites().await {
        site.keep().await.expect("Microsoft answers");
        assert_eq!(site.rung().await, rung("delta", "webhook_unproven"), "accepted is not proven");
        let at_microsoft = site.at_microsoft();
        assert_eq!(at_microsoft.len(), 2);
        for kept in site.subscriptions().await {
            let theirs =
                at_microsoft.iter().find(|one| one["id"] == kept.graph_id.as_deref().expect("an id"));
            let theirs = theirs.expect("it is known there");
            let secret = theirs["clientState"].as_str().expect("a client state");
            assert_eq!(secret.len(), 43);
            assert_eq!(kept.client_state, Sha256::digest(secret.as_bytes()).to_vec());
            assert_eq!(theirs["notificationUrl"], format!("{}graph/notifications", site.public));
            assert_eq!(theirs["lifecycleNotificationUrl"], format!("{}graph/lifecycle", site.public));
            let until = DateTime::parse_from_rfc3339(theirs["expirationDateTime"].as_str().expect("an end"));
            assert_eq!(kept.expires_at, Some(until.expect("a time").to_utc()));
            let life = kept.expires_at.expect("an end") - kept.live_at.expect("a beginning");
            assert!(life > TimeDelta::minutes(10_078), "{life}");
        }
        for folder in [&site.inbox, &site.sent] {
            assert!(site.folder(folder).await.noticed_at.is_some(), "what came before it is polled for");
        }
        // The notification comes first.
        let first = site.deliver("one");
        told(&site, &first).await;
        site.judge(&[first]).await;
        assert_eq!(site.rung().await, rung("push", "proven"));
        assert!(site.row().await.proven_at.is_some());
        assert_eq!(site.notices().await, []);
        let capabilities: Value = serde_json::from_str(&site.row().await.capabilities).expect("JSON");
        assert_eq!(capabilities["push"], json!({"state": "proven", "reason": "proven"}));
        assert_eq!(capabilities["read"]["state"], "proven", "what else is known stays");
        // The poll comes first.
        site.sim().graph().switches.notify_delay_ms = 10_000;
        let second = site.deliver("two");
        site.judge(std::slice::from_ref(&second)).await;
        assert_eq!(site.notices().await, [(second.id.clone(), "awaited".to_owned())]);
        told(&site, &second).await;
        site.judge(&[]).await;
        assert_eq!(site.notices().await, []);
        assert_eq!(site.rung().await, rung("push", "proven"));
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_comes_while_the_create_is_still_unanswered() {
    let site = site().await;
    let held = site.sim().inject(Fault::hold(When::After).method("POST").path("/v1.0/subscriptions"));
    let (kept, early) = tokio::join!(site.keep(), async {
        site.until("the create is held", || async { site.sim().holds(held) }).await;
        assert_eq!(site.subscriptions().await[0].state, "creating");
        let early = site.deliver("early");
        told(&site, &early).await;
        site.sim().release(held);
        early
    });
    kept.expect("Microsoft answers");
    assert!(site.subscriptions().await.iter().all(|one| one.state == "live"));
    site.judge(&[early]).await;
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_said_once_and_tried_again_after_a_week() {
    for site in sites().await {
        site.sim().graph().switches.shared_subscribe = SharedSubscribe::Refuse;
        site.keep().await.expect("a refusal is no failure");
        assert_eq!(site.rung().await, rung("delta", "webhook_unsupported"));
        let row = site.row().await;
        let capabilities: Value = serde_json::from_str(&row.capabilities).expect("JSON");
        assert_eq!(capabilities["push"]["state"], "refused");
        assert!(capabilities["push"]["message"].as_str().is_some_and(|message| message.contains("403")));
        assert_eq!(site.calls("POST"), 2);
        let wait = row.tend_at.expect("a time") - site.clock.now();
        assert!(wait > TimeDelta::days(7) - TimeDelta::minutes(1), "{wait}");
        // Even when it is looked after sooner.
        site.keep().await.expect("nothing to do");
        assert_eq!(site.calls("POST"), 2);
        site.sim().graph().switches.shared_subscribe = SharedSubscribe::Works;
        if site.clock.now() == noon() {
            site.pass(TimeDelta::days(7) + TimeDelta::seconds(1));
            site.keep().await.expect("Microsoft answers");
            assert_eq!(site.rung().await, rung("delta", "webhook_unproven"));
            assert_eq!(site.at_microsoft().len(), 2);
        }
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_ours_that_does_not_answer_is_told_apart_from_a_refusal() {
    let site = site().await;
    let body =
        json!({"error": {"code": "InvalidRequest", "message": "Subscription validation request timed out."}});
    let fault =
        Fault::status(400, When::Before).body(body).method("POST").path("/v1.0/subscriptions").times(2);
    site.sim().inject(fault);
    site.keep().await.expect("no failure of the sync");
    assert_eq!(site.rung().await, rung("delta", "webhook_unreachable"));
    assert_eq!(site.row().await.tend_at, Some(site.clock.now() + TimeDelta::hours(1)));
    site.pass(TimeDelta::hours(1));
    site.keep().await.expect("Microsoft answers");
    assert_eq!(site.rung().await, rung("delta", "webhook_unproven"));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_accepted_and_mute_is_never_believed_and_after_a_day_said_to_be_silent() {
    for site in sites().await {
        site.sim().graph().switches.shared_subscribe = SharedSubscribe::AcceptButSilent;
        for hour in 0..26 {
            site.keep().await.expect("Microsoft answers");
            let mail = site.deliver("news");
            site.judge(&[mail]).await;
            site.pass(TimeDelta::minutes(10));
            site.judge(&[]).await;
            let expected = if hour < 24 { "webhook_unproven" } else { "webhook_silent" };
            assert_eq!(site.rung().await, rung("delta", expected), "hour {hour}");
            site.pass(TimeDelta::minutes(50));
        }
        assert_eq!(site.notices().await, [], "nothing is waited for any more");
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_messages_in_a_row_without_a_word_end_the_trust_until_it_is_proven_again() {
    for site in sites().await {
        site.keep().await.expect("Microsoft answers");
        let mail = site.deliver("announced");
        told(&site, &mail).await;
        site.judge(&[mail]).await;
        assert_eq!(site.rung().await, rung("push", "proven"));
        site.sim().graph().switches.notify_silent = true;
        for minutes in (0..90).step_by(10) {
            let mail = site.deliver("unannounced");
            site.judge(&[mail]).await;
            site.pass(TimeDelta::minutes(4));
            site.judge(&[]).await;
            let trusted =
                if minutes < 30 { rung("push", "proven") } else { rung("delta", "push_missed_changes") };
            assert_eq!(site.rung().await, trusted, "{minutes}: four minutes are not too late yet");
            site.pass(TimeDelta::minutes(6));
            site.judge(&[]).await;
            site.keep().await.expect("Microsoft answers");
            let trusted =
                if minutes < 20 { rung("push", "proven") } else { rung("delta", "push_missed_changes") };
            assert_eq!(site.rung().await, trusted, "{minutes}");
        }
        // Older mail than the subscription is nobody's news.
        let before = noon() - TimeDelta::days(3);
        site.judge(&[SeenChange { id: "old".into(), created: true, at: before }]).await;
        assert_eq!(site.notices().await, []);
        site.sim().graph().switches.notify_silent = false;
        let mail = site.deliver("announced again");
        told(&site, &mail).await;
        site.judge(&[mail]).await;
        assert_eq!(site.rung().await, rung("push", "proven"));
        assert_eq!(site.subscriptions().await.iter().map(|one| one.unannounced).max(), Some(0));
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_poll_matches_is_forgotten_after_an_hour() {
    let site = site().await;
    site.keep().await.expect("Microsoft answers");
    let mail = site.deliver("moved away at once");
    told(&site, &mail).await;
    site.pass(TimeDelta::minutes(59));
    site.judge(&[]).await;
    assert_eq!(site.notices().await.len(), 1);
    site.pass(TimeDelta::minutes(2));
    site.judge(&[]).await;
    assert_eq!(site.notices().await, []);
    assert_eq!(site.rung().await, rung("delta", "webhook_unproven"));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_every_forty_minutes_and_never_twice_within_ten() {
    for site in sites().await {
        // Microsoft says nothing by itself.
        site.sim().graph().switches.subscription_token_minutes = 100_000;
        site.keep().await.expect("Microsoft answers");
        let start = site.clock.now();
        for _ in 0..4 {
            site.pass(TimeDelta::minutes(10));
            site.keep().await.expect("Microsoft answers");
        }
        assert_eq!(site.calls("GET"), 6, "looked for at 10, 20 and 30 minutes");
        assert_eq!((site.calls("POST"), site.calls("PATCH")), (4, 0), "shown a token at 40");
        let ask = async || {
            let lives = site.at_microsoft();
            let id = lives[0]["id"].as_str().expect("an id").to_owned();
            assert!(site.sim().lifecycle_event(&id, "reauthorizationRequired"));
            site.until("it is asked", || async {
                site.subscriptions().await.iter().any(|one| one.asked.is_some())
            })
            .await;
            assert_eq!(site.row().await.tend_at, Some(site.clock.now()));
            site.keep().await.expect("Microsoft answers");
            assert!(site.subscriptions().await.iter().all(|one| one.asked.is_none()));
        };
        site.pass(TimeDelta::minutes(5));
        ask().await;
        assert_eq!((site.calls("POST"), site.calls("PATCH")), (4, 0), "it was shown one five minutes ago");
        site.pass(TimeDelta::minutes(20));
        ask().await;
        assert_eq!((site.calls("POST"), site.calls("PATCH")), (4, 1), "renewing shows it as well");
        assert_eq!(site.clock.now() - start, TimeDelta::minutes(65));
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_removed_is_made_again_and_its_gap_is_polled() {
    for site in sites().await {
        site.keep().await.expect("Microsoft answers");
        let ids = async || {
            let mut ids: Vec<String> =
                site.subscriptions().await.into_iter().filter_map(|one| one.graph_id).collect();
            ids.sort();
            ids
        };
        // Said aloud.
        let before = ids().await;
        let removed = site.subscriptions().await[0].clone();
        assert!(site.sim().lifecycle_event(&removed.graph_id.clone().expect("an id"), "subscriptionRemoved"));
        site.until("it is asked", || async {
            site.subscriptions().await.iter().any(|one| one.asked.is_some())
        })
        .await;
        site.pass(TimeDelta::seconds(1));
        site.keep().await.expect("Microsoft answers");
        assert_eq!(site.at_microsoft().len(), 2);
        assert_ne!(ids().await, before);
        let folder = if removed.folder_id == site.inbox.id { &site.inbox } else { &site.sent };
        assert_eq!(site.folder(folder).await.noticed_at, Some(site.clock.now()));
        // Without a word: a password was changed.
        for id in ids().await {
            assert!(site.sim().drop_subscription(&id));
        }
        let next = site.row().await.tend_at.expect("a time");
        assert!(next - site.clock.now() <= TimeDelta::minutes(15));
        site.pass(next - site.clock.now());
        site.keep().await.expect("Microsoft answers");
        assert_eq!(site.at_microsoft().len(), 2);
        for folder in [&site.inbox, &site.sent] {
            assert_eq!(site.folder(folder).await.noticed_at, Some(site.clock.now()));
        }
        // Microsoft gave each its client state anew.
        let mail = site.deliver("after it all");
        told(&site, &mail).await;
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_life_is_asked_for_where_a_long_one_is_refused() {
    for (granted, posts) in [(4_230, 4), (60, 6)] {
        for site in sites().await {
            site.sim().graph().switches.subscription_minutes = granted;
            site.keep().await.expect("Microsoft answers");
            assert_eq!((site.at_microsoft().len(), site.calls("POST")), (2, posts));
            for kept in site.subscriptions().await {
                let (now, until) = (site.clock.now(), kept.expires_at.expect("an end"));
                assert!(until <= now + TimeDelta::minutes(granted), "{until}");
                assert!(kept.renew_at.expect("a time") <= now + (until - now) / 2);
            }
            site.close().await;
        }
    }
    // Another 400 is no matter of length.
    for site in sites().await {
        site.keep().await.expect("Microsoft answers");
        site.pass(TimeDelta::minutes(5_040));
        let body = json!({"error": {"code": "InvalidRequest", "message": "no"}});
        let fault = Fault::status(400, When::Before).body(body).method("PATCH").path(CALLS).times(2);
        site.sim().inject(fault);
        site.keep().await.expect("no failure of the sync");
        assert_eq!(site.calls("PATCH"), 2);
        assert_eq!(site.row().await.tend_at, Some(site.clock.now() + TimeDelta::minutes(1)));
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answer_was_lost_leaves_one_subscription_and_no_stranger() {
    for site in sites().await {
        site.sim().inject(Fault::lost_after().method("POST").path("/v1.0/subscriptions"));
        site.keep().await.expect("a lost answer is no failure of the sync");
        let next = site.row().await.tend_at.expect("a time") - site.clock.now();
        assert!(next <= TimeDelta::minutes(1), "{next}");
        site.keep().await.expect("Microsoft answers");
        let kept: Vec<_> = site.subscriptions().await.into_iter().map(|one| one.graph_id).collect();
        let theirs: Vec<_> =
            site.at_microsoft().iter().map(|one| one["id"].as_str().map(str::to_owned)).collect();
        assert_eq!((kept.len(), theirs.len()), (2, 2));
        assert!(theirs.iter().all(|id| kept.contains(id)), "{kept:?} {theirs:?}");
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn microsoft_being_down_costs_a_minute_and_a_revoked_consent_is_said() {
    let site = site().await;
    for fault in [
        Fault::status(503, When::Before),
        Fault::status(500, When::Before),
        Fault::status(429, When::Before).header("retry-after", "300"),
        Fault::lost_before(),
    ] {
        site.sim().inject(fault.path(CALLS).times(0));
        site.keep().await.expect("no failure of the sync");
        let next = site.row().await.tend_at.expect("a time") - site.clock.now();
        assert!(next >= TimeDelta::minutes(1) && next <= TimeDelta::minutes(5), "{next}");
        site.sim().clear_faults();
        site.pass(TimeDelta::minutes(6));
    }
    let body = json!({"error": {"code": "InvalidAuthenticationToken", "message": "no"}});
    site.sim().inject(Fault::status(401, When::Before).body(body).path(CALLS).times(0));
    let refused = site.keep().await.expect_err("a person must act");
    assert_eq!(refused.disposition, Disposition::Park(Cause::NeedsUser));
    site.sim().clear_faults();
    site.keep().await.expect("Microsoft answers");
    assert_eq!(site.at_microsoft().len(), 2);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_ended_and_told_of_however_often_it_takes() {
    for site in sites().await {
        site.keep().await.expect("Microsoft answers");
        let mail = site.deliver("the last");
        told(&site, &mail).await;
        let fault = Fault::status(500, When::Before).method("DELETE").path(CALLS).nth(2);
        site.sim().inject(fault);
        site.end().await.expect_err("the second was not deleted");
        assert_eq!((site.at_microsoft().len(), site.subscriptions().await.len()), (1, 2));
        let ended = site.end().await.expect("Microsoft answers");
        let mut statuses: Vec<u16> = ended.iter().map(|(_, status)| *status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [204, 404]);
        assert_eq!((site.at_microsoft().len(), site.subscriptions().await.len()), (0, 0));
        assert_eq!(site.notices().await, []);
        assert_eq!(site.end().await.expect("nothing to do"), []);
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_hangs_is_given_up_before_anybody_waits_for_it() {
    let hangs = ["GET", "PATCH", "DELETE"].map(|method| async move {
        for site in sites().await {
            site.keep().await.expect("Microsoft answers");
            let later = if method == "PATCH" { TimeDelta::days(4) } else { TimeDelta::minutes(11) };
            site.pass(later);
            let held = site.sim().inject(Fault::hold(When::Before).method(method).path(CALLS).times(0));
            let clock = Clock::system();
            let began = clock.now();
            if method == "DELETE" {
                site.end().await.expect_err("nothing was deleted");
            } else {
                site.keep().await.expect("no failure of the sync");
            }
            let took = clock.now() - began;
            assert!(took < TimeDelta::seconds(45), "{method}: {took}");
            site.sim().release(held);
            site.sim().clear_faults();
            site.close().await;
        }
    });
    join_all(hangs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_said_of_subscriptions_leaves_the_mailbox_open() {
    for site in sites().await {
        let gate = site.fleet.services.microsoft.cool_down("the mailbox's");
        let graph = site.graph.clone().behind(Some(gate.clone()));
        for (status, method) in [(429, "POST"), (503, "POST")] {
            let busy = Fault::status(status, When::Before).header("retry-after", "300");
            site.sim().inject(busy.method(method).path(CALLS).times(0));
            keep(&site.ours, &graph, &site.row().await).await.expect("no failure of the sync");
            assert_eq!(gate.left(), None, "{status}");
            site.sim().clear_faults();
        }
        // Nor does a refusal to list them keep anybody from reading mail.
        site.sim().inject(Fault::status(409, When::Before).method("POST").path(CALLS).times(0));
        let body = json!({"error": {"code": "ErrorAccessDenied", "message": "no"}});
        site.sim().inject(Fault::status(403, When::Before).body(body).method("GET").path(CALLS).times(0));
        site.keep().await.expect("no failure of the sync");
        site.sim().clear_faults();
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_any_longer_is_not_left_behind_at_microsoft() {
    for site in sites().await {
        let lives = || site.at_microsoft().len();
        let denied = |method: &str| {
            let body = json!({"error": {"code": "Forbidden", "message": "no"}});
            site.sim()
                .inject(Fault::status(403, When::Before).body(body).method(method).path(CALLS).times(0));
        };
        site.keep().await.expect("Microsoft answers");
        site.pass(TimeDelta::minutes(11));
        for method in ["GET", "POST", "DELETE"] {
            denied(method);
        }
        site.keep().await.expect("a refusal is no failure");
        let known = site.subscriptions().await;
        assert!(known.iter().all(|one| one.state == "refused" && one.graph_id.is_none()), "{known:?}");
        assert_eq!(lives(), 2, "they could not be deleted then");
        site.sim().clear_faults();
        assert_eq!(site.end().await.expect("Microsoft answers").len(), 2);
        assert_eq!(lives(), 0);

        // Refused as before, but for the delete.
        site.keep().await.expect("Microsoft answers");
        site.pass(TimeDelta::minutes(11));
        for method in ["GET", "POST"] {
            denied(method);
        }
        site.keep().await.expect("a refusal is no failure");
        assert_eq!(lives(), 0, "deleted before they were asked for anew");
        site.sim().clear_faults();
        site.end().await.expect("Microsoft answers");

        // Forgotten while Microsoft makes it.
        let held = site.sim().inject(Fault::hold(When::After).method("POST").path("/v1.0/subscriptions"));
        let (kept, ()) = tokio::join!(site.keep(), async {
            site.until("the create is held", || async { site.sim().holds(held) }).await;
            let id = site.mailbox;
            let forgotten = site
                .store
                .transaction("forget", |tx| async move { subscription::forget(tx, id).await }.scope_boxed());
            forgotten.await.expect("the store answers");
            site.sim().release(held);
        });
        kept.expect("Microsoft answers");
        assert_eq!((lives(), site.subscriptions().await.len()), (1, 1));
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_push_is_not_wanted_none_are_made_and_those_that_are_there_end() {
    let site = Site::on_sqlite(Clock::manual(noon()), false).await;
    site.plant(&site.inbox.id.clone(), Some("from before"), "state").await;
    site.keep().await.expect("Microsoft answers");
    assert_eq!(site.rung().await, rung("delta", "push_off"));
    assert_eq!((site.calls("POST"), site.calls("DELETE"), site.subscriptions().await.len()), (0, 1, 0));
    site.close().await;
}

/// Renewals every two hours, of which every fifth fails in one way or another; now and then one is gone for good.
#[tokio::test(flavor = "multi_thread")]
async fn in_thirty_days_of_failing_renewals_there_is_always_a_live_subscription() {
    join_all(sites().await.into_iter().map(thirty_days)).await;
}

async fn thirty_days(site: Site) {
    site.sim().keep_calls(100);
    site.sim().graph().switches.subscription_minutes = 240;
    let mut chance = StdRng::seed_from_u64(30);
    let poll = TimeDelta::minutes(1);
    let end = noon() + TimeDelta::days(30);
    site.keep().await.expect("Microsoft answers");
    let (mut renewals, mut failures, mut dead_since) = (0, 0, None::<DateTime<Utc>>);
    while site.clock.now() < end {
        // The poll after the moment that was chosen.
        let wait = site.row().await.tend_at.expect("a time") - site.clock.now();
        let polls = (wait.num_seconds() + 59) / 60;
        site.pass(poll * i32::try_from(polls.max(1)).expect("not so many"));
        let now = site.clock.now();
        let bridged = dead_since.is_some_and(|since| now - since <= poll);
        assert!(site.at_microsoft().len() == 2 || bridged, "none is live at {now}, since {dead_since:?}");
        let due: Vec<String> = site
            .subscriptions()
            .await
            .into_iter()
            .filter(|one| one.renew_at.is_some_and(|at| at <= now))
            .filter_map(|one| one.graph_id)
            .collect();
        renewals += due.len();
        if !due.is_empty() && chance.random_range(0..5) == 0 {
            failures += 1;
            let fault = match chance.random_range(0..6) {
                0 => Fault::status(500, When::Before),
                1 => Fault::status(404, When::Before),
                2 => Fault::status(503, When::Before).header("retry-after", "30"),
                3 => Fault::status(504, When::After).header("retry-after", "5"),
                4 => Fault::status(429, When::Before).header("retry-after", "60"),
                _ => {
                    assert!(site.sim().drop_subscription(&due[0]));
                    Fault::delay_ms(1)
                }
            };
            site.sim().inject(fault.method("PATCH").path(CALLS));
        }
        site.keep().await.expect("no failure of the sync");
        site.sim().clear_faults();
        if site.at_microsoft().len() == 2 {
            dead_since = None;
        } else {
            dead_since.get_or_insert(now);
        }
    }
    assert!(renewals > 500 && failures > 40, "{renewals} renewals, {failures} failures");
    assert_eq!(site.subscriptions().await.len(), 2);
    // And it tells of what happens still.
    let mail = site.deliver("the last");
    told(&site, &mail).await;
    site.close().await;
}
