//! Twenty mailboxes, of which one hangs and one has lost its account: the others are looked at as if nothing were wrong.

use std::collections::BTreeMap;

use followthrough::store::mailbox;
use followthrough_tests::world::{ADA, BOB, Pair, World};
use m365_sim::Fault;
use m365_sim::directory::{MailboxRight, User};
use m365_sim::fault::When;
use m365_sim::graph::NewMessage;
use scoped_futures::ScopedFutureExt;
use serde_json::json;

const TEAMS: usize = 18;
const HANGS: &str = "hangs@acme.example";
const REVOKED: &str = "revoked@acme.example";
const ROUNDS: i64 = 3;

fn team(number: usize) -> String {
    format!("team{number}@acme.example")
}

/// A shared mailbox more in the tenant.
fn share(world: &World, number: usize, address: &str, with: &str) {
    let mut directory = world.sim().directory();
    let like = directory.find(super::support::SHARED).expect("it is there").clone();
    let oid = format!("00000000-0000-4000-8000-0000000001{number:02}");
    let user = directory.find(with).expect("somebody").oid.clone();
    directory.users.push(User {
        oid: oid.clone(),
        upn: address.into(),
        mail: Some(address.into()),
        display_name: address.into(),
        ..like
    });
    directory.set_right(MailboxRight { mailbox: oid, user, full_access: true, ..MailboxRight::default() });
}

async fn all(world: &World) -> BTreeMap<String, mailbox::Mailbox> {
    let workspace = Some(world.workspace.as_str());
    let rows =
        world.store.read(|tx| async move { mailbox::list(tx, workspace, None, 100).await }.scope_boxed());
    rows.await.expect("the store answers").into_iter().map(|row| (row.address.clone(), row)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_mailbox_that_hangs_and_one_without_its_account_delay_no_other() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let opened = World::open_with(pair, |config| {
            // Few hands: one that is never free again would be missed.
            config.workers.concurrency = 4;
            config.mailbox.push = false;
        });
        let Some(mut world) = opened.await else { continue };
        world.connect(ADA, "shared-mailbox").await;
        world.connect(BOB, "shared-mailbox").await;
        let mut addresses: Vec<String> = (0..TEAMS).map(team).collect();
        addresses.extend([HANGS.to_owned(), REVOKED.to_owned()]);
        let mut asked = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let user = if address == REVOKED { BOB } else { ADA };
            share(&world, number, address, user);
            let payload = json!({"address": address, "backfill_days": 0});
            let mut job = world.envelope(&format!("connect{number}"), "mailbox.connect", payload);
            job["user"] = json!(user);
            asked.push(job);
        }
        world.publish(&asked).await;
        for number in 0..asked.len() {
            world.until_state(&format!("connect{number}"), "succeeded").await;
        }
        world.sim().revoke_sessions(BOB);
        // A new process holds no access token that would go on working for an hour.
        world.stop().await;
        world.start().await;
        let hold = Fault::hold(When::Before).path(&format!("/v1.0/users/{HANGS}/*")).times(0);
        let held = world.sim().inject(hold);
        world.until("it hangs", || async { world.sim().holds(held) }).await;
        world.until("it says so", || async { all(&world).await[REVOKED].state == "degraded" }).await;
        let before = all(&world).await;
        for number in 0..TEAMS {
            world.sim().deliver(&team(number), NewMessage::new("eve@acme.example", "News", "<p>Hi</p>"));
        }
        world
            .until("the others have been looked at", || async {
                let now = all(&world).await;
                (0..TEAMS).map(team).all(|team| now[&team].round >= before[&team].round + ROUNDS)
            })
            .await;
        world
            .until("their mail is told of", || async {
                world.events.of("mailbox.message.created").len() == TEAMS
            })
            .await;
        assert!(world.sim().holds(held), "it hangs still");
        let now = all(&world).await;
        assert_eq!(now[HANGS].round, before[HANGS].round);
        assert_eq!(now[REVOKED].round, before[REVOKED].round);
        assert!((0..TEAMS).all(|number| now[&team(number)].state == "connected"));
        world.sim().clear_faults();
        world
            .until("it is looked at again", || async { all(&world).await[HANGS].round > before[HANGS].round })
            .await;
        world.connect(BOB, "shared-mailbox").await;
        let mut ends = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let payload = json!({"mailbox": address});
            let mut job = world.envelope(&format!("leave{number}"), "mailbox.disconnect", payload);
            job["user"] = json!(if address == REVOKED { BOB } else { ADA });
            ends.push(job);
        }
        world.publish(&ends).await;
        for number in 0..ends.len() {
            world.until_state(&format!("leave{number}"), "succeeded").await;
        }
        world.close().await;
    }
}
