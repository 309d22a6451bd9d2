//! A consent that is whole although the mailbox is out of reach, and one that an administrator must give first.

use chrono::TimeDelta;
use followthrough_tests::world::{ADA, Pair, World};
use m365_sim::Fault;
use m365_sim::fault::When;
use serde_json::json;

use super::support::{SHARED, deliver, in_step, leave, row};

const SERVICE: &str = "svc-shared@acme.example";

fn sign_ins(world: &World) -> usize {
    world.sim().calls().iter().filter(|call| call.path.ends_with("/oauth2/v2.0/authorize")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_that_refuses_at_first_keeps_the_consent_and_is_found_without_another_sign_in() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = World::open_moving(pair, |_| {}).await else { continue };
        let id = world.connect(ADA, "shared-mailbox").await;
        let signed_in = sign_ins(&world);
        let denied = json!({"error": {"code": "ErrorAccessDenied", "message": "Access is denied."}});
        let path = format!("/v1.0/users/{SHARED}/*");
        world.sim().inject(Fault::status(403, When::Before).body(denied).path(&path).times(0));
        let payload = json!({"address": SHARED, "backfill_days": 0});
        let refused = world.run("connect", "mailbox.connect", payload, "parked").await;
        assert_eq!(refused.cause.as_deref(), Some("needs_admin"));
        assert_eq!(row(&world).await.state, "connecting");
        assert_eq!(world.connection(id).await.status.as_str(), "connected");
        assert!(world.has_token(id).await, "the grant is kept");
        world.sim().clear_faults();
        // It is looked for every quarter of an hour.
        world.pass(TimeDelta::minutes(16));
        world.until_state("connect", "succeeded").await;
        deliver(&world, "Reached");
        in_step(&world).await;
        assert_eq!(sign_ins(&world), signed_in, "nobody had to sign in again");
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrators_consent_lets_the_mailbox_that_waits_for_it_be_connected() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = World::open(pair).await else { continue };
        world.sim().entra_policy(|policy| policy.user_consent = false);
        let (id, link) = world.link(SERVICE, "shared-mailbox").await;
        let page = world.browse(&link).await;
        assert!(page.text.contains("admin_consent_required"), "{}", page.text);
        let ask = |id: &str, kind: &str, payload| {
            let mut job = world.envelope(id, kind, payload);
            job["user"] = json!(SERVICE);
            job
        };
        let payload = json!({"address": SHARED, "backfill_days": 0});
        world.publish(&[ask("connect", "mailbox.connect", payload)]).await;
        world.until_state("connect", "parked").await;
        assert_eq!(world.job("connect").await.expect("the row").cause.as_deref(), Some("needs_admin"));
        let to_admin = page.link("adminconsent").expect("a link for the administrator");
        assert!(to_admin.contains("Mail.Read.Shared") && !to_admin.contains(".default"), "{to_admin}");
        world.sim().auto_sign_in(Some(ADA));
        let page = world.browse(&to_admin).await;
        world.sim().auto_sign_in(Some("*"));
        let page = world.browse(&page.link("authorize").expect("the sign-in goes on")).await;
        assert_eq!(page.status, 200, "{}", page.text);
        assert_eq!(world.connection(id).await.status.as_str(), "connected", "the same connection");
        assert_eq!(sign_ins(&world), 2, "once in vain and once with the consent");
        world.until_state("connect", "succeeded").await;
        deliver(&world, "Reached");
        in_step(&world).await;
        world.publish(&[ask("leave", "mailbox.disconnect", json!({"mailbox": SHARED}))]).await;
        world.until_state("leave", "succeeded").await;
        world.close().await;
    }
}
