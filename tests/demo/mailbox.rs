//! The second act: a shared mailbox is connected, filled back and kept in step.

use std::time::Duration;

use m365_sim::graph::{Fill, NewMessage};
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};

use crate::account::Account;
use crate::stage::Stage;

const ADDRESS: &str = "support@acme.example";
const SERVICE: &str = "svc-shared@acme.example";
const PAST: usize = 400;
const LIVE: usize = 5;
const GLANCE: Duration = Duration::from_millis(100);
const PATIENCE_SECONDS: f64 = 90.0;

/// What the mailbox holds, and what is stored of it.
#[derive(Serialize)]
pub(crate) struct Kept {
    pub(crate) address: &'static str,
    pub(crate) found: usize,
    pub(crate) stored: usize,
}

pub(crate) async fn perform(stage: &Stage, account: &Account) -> Result<Kept, String> {
    let sim = &stage.microsoft.sim;
    sim.graph().fill(ADDRESS, &Fill { messages: PAST, folders: 6, ..Fill::default() });
    stage.open(stage.link(SERVICE, "shared-mailbox").await?).await?;
    let asked =
        json!({"workspace": stage.workspace, "user": SERVICE, "address": ADDRESS, "backfill_days": 31});
    let made = stage.call(Method::POST, "/v1/mailboxes", &asked).await?;
    let path = format!("/v1/mailboxes/{}", made["id"].as_str().unwrap_or_default());
    account.say(&format!("the shared mailbox {ADDRESS} is connected; its last month is read"));
    until(stage, account, || async {
        let shown = stage.call(Method::GET, &path, &Value::Null).await?;
        Ok(shown["backfill"]["state"] == "completed")
    })
    .await?;
    for n in 1..=LIVE {
        let subject = format!("Still waiting, {n}");
        sim.deliver(ADDRESS, NewMessage::new("Nora <nora@customer.example>", &subject, "<p>Any news?</p>"));
    }
    account.say(&format!("{LIVE} mails come in"));
    let held = || sim.graph().mailbox(ADDRESS).message_ids().len();
    until(stage, account, || async { Ok(stored(stage, &path).await? >= held()) }).await?;
    let kept = Kept { address: ADDRESS, found: held(), stored: stored(stage, &path).await? };
    account.say(&format!("{} of {} messages are in the shared inbox", kept.stored, kept.found));
    Ok(kept)
}

/// Pages through the shared inbox, as its readers do.
async fn stored(stage: &Stage, path: &str) -> Result<usize, String> {
    let (mut count, mut cursor) = (0, String::new());
    loop {
        let page = format!("{path}/messages?limit=200{cursor}");
        let page = stage.call(Method::GET, &page, &Value::Null).await?;
        count += page["messages"].as_array().map_or(0, Vec::len);
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(count),
        }
    }
}

async fn until<F: Future<Output = Result<bool, String>>>(
    stage: &Stage,
    account: &Account,
    condition: impl Fn() -> F,
) -> Result<(), String> {
    let began = account.seconds();
    while !condition().await? {
        // The comparison says what is missing.
        if account.seconds() - began > PATIENCE_SECONDS {
            return Ok(());
        }
        stage.pause(GLANCE).await;
    }
    Ok(())
}
