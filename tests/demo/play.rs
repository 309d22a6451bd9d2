//! The performance: people sign in, meetings end, things go wrong, and everything ends somewhere.

use std::io::BufRead as _;
use std::time::Duration;

use followthrough::store::job::{JobRow, state};
use m365_sim::Fault;
use m365_sim::fault::When;
use reqwest::Method;
use secrecy::ExposeSecret as _;
use serde_json::json;
use url::Url;

use crate::account::Account;
use crate::script::{self, BOB, CAROL, DAVE, End, PEOPLE, Promise, REPEATED, REVOKED_BEFORE};
use crate::stage::Stage;

const INTEGRATIONS: [&str; 3] = ["outlook-email", "outlook-calendar", "dynamics"];
/// Between two meetings.
const PACE: Duration = Duration::from_millis(300);
const GLANCE: Duration = Duration::from_millis(50);
/// Nothing here takes so long, unless it is stuck; then the comparison says what is missing.
const PATIENCE_SECONDS: f64 = 90.0;

/// An administrator says what is allowed and which CRM is meant; then everybody signs in, with Ada by hand.
pub(crate) async fn connect(stage: &Stage, account: &Account, once: bool) -> Result<(), String> {
    for meeting in script::meetings() {
        let values = json!({"name": meeting.customer});
        stage.microsoft.sim.edit_row("account", &meeting.account(), &values)?;
    }
    let workspace = &stage.workspace;
    stage.call(Method::PUT, &format!("/v1/workspaces/{workspace}/tools"), &script::tools()).await?;
    let crm = json!({"environment": stage.microsoft.base_url()});
    stage.call(Method::PUT, &format!("/v1/workspaces/{workspace}/dynamics/environment"), &crm).await?;
    account.say(
        "an administrator allowed drafts, events and changes of accounts; deals ask first; leads stay denied",
    );
    let by_hand = if once { None } else { Some(stage.link(PEOPLE[0], INTEGRATIONS[0]).await?) };
    let sim = &stage.microsoft.sim;
    sim.auto_sign_in(Some("*"));
    for user in PEOPLE {
        let skipped = usize::from(by_hand.is_some() && user == PEOPLE[0]);
        for integration in &INTEGRATIONS[skipped..] {
            stage.open(stage.link(user, integration).await?).await?;
        }
    }
    if let Some(link) = by_hand {
        account.say("everybody signed in, except for Ada's e-mail: that is yours");
        sim.auto_sign_in(None);
        sign_in_by_hand(stage, link).await?;
    }
    account.say("Ada, Bob, Carol, Dave, Eve and Frank gave their consent for e-mail, calendar and Dynamics");
    Ok(())
}

/// The person opens the link, or presses Enter to have it done.
async fn sign_in_by_hand(stage: &Stage, link: Url) -> Result<(), String> {
    println!("\n    Open this link and pick Ada, or press Enter to have it done:\n\n    {link}\n");
    let (enter, mut entered) = tokio::sync::oneshot::channel();
    // Not a task of the runtime: a read from a terminal cannot be called off, and must not hold up the end.
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().lock().read_line(&mut line);
        let _ = enter.send(());
    });
    loop {
        if stage.connected(PEOPLE[0]).await? == INTEGRATIONS.len() {
            stage.microsoft.sim.auto_sign_in(Some("*"));
            return Ok(());
        }
        tokio::select! {
            _ = &mut entered => break,
            () = stage.pause(Duration::from_millis(500)) => {}
        }
    }
    stage.microsoft.sim.auto_sign_in(Some("*"));
    stage.open(link).await
}

/// The meetings end one after the other. Gives back what was promised in them.
pub(crate) async fn perform(stage: &Stage, account: &Account) -> Result<Vec<Promise>, String> {
    let meetings = script::meetings();
    let promises: Vec<Promise> =
        meetings.iter().flat_map(|meeting| meeting.promises(&stage.workspace)).collect();
    trouble(stage);
    for meeting in &meetings {
        if meeting.number == REVOKED_BEFORE {
            revoke(stage, account, &promises).await?;
        }
        account.say(&format!("meeting {:>2} ended: {}", meeting.number, meeting.title));
        for promise in meeting.promises(&stage.workspace) {
            let times = if promise.envelope.id == REPEATED { 3 } else { 1 };
            for _ in 0..times {
                stage.publish(&promise.envelope).await?;
            }
            if times > 1 {
                account.say(&format!("{} was published three times: one id, one job", promise.name));
            }
        }
        stage.pause(PACE).await;
        account.follow(&promises, &stage.jobs().await?);
    }
    let lasting = |row: &JobRow| row.user_name != DAVE || row.state != state::PARKED;
    settle(stage, account, &promises, |rows| rows.iter().filter(|row| !lasting(row)).count() == 3).await?;
    account.say("Dave signs in again");
    for integration in INTEGRATIONS {
        stage.open(stage.link(DAVE, integration).await?).await?;
    }
    settle(stage, account, &promises, |rows| rows.iter().all(lasting)).await?;
    while stage.under_way().await? > 0 && account.seconds() < PATIENCE_SECONDS {
        stage.pause(GLANCE).await;
    }
    Ok(promises)
}

/// What will go wrong at Microsoft: one call of Bob's is throttled, one answer to Carol gets lost.
fn trouble(stage: &Stage) {
    let sim = &stage.microsoft.sim;
    let busy = json!({"error": {"code": "ApplicationThrottled", "message": "Too many requests."}});
    let throttled = Fault::status(429, When::Before).header("Retry-After", "2").body(busy);
    sim.inject(throttled.method("POST").path("/v1.0/me/messages").user(BOB));
    sim.inject(Fault::lost_after().method("POST").path("/v1.0/me/messages").user(CAROL));
}

/// Dave takes his consent back at Microsoft; tokens that were given out are no longer accepted.
async fn revoke(stage: &Stage, account: &Account, promises: &[Promise]) -> Result<(), String> {
    settle(stage, account, promises, |rows| {
        rows.iter().filter(|row| row.user_name == DAVE).all(|row| row.state == state::SUCCEEDED)
    })
    .await?;
    let sim = &stage.microsoft.sim;
    sim.withdraw_consent(DAVE);
    sim.challenge(DAVE, &json!({"access_token": {"nbf": {"essential": true, "value": "1"}}}));
    account.say("Dave takes his consent back");
    Ok(())
}

/// Waits until every job known so far rests (done, dead or with a person) and `also` holds.
async fn settle(
    stage: &Stage,
    account: &Account,
    promises: &[Promise],
    also: impl Fn(&[JobRow]) -> bool,
) -> Result<(), String> {
    loop {
        let rows = stage.jobs().await?;
        account.follow(promises, &rows);
        let rests = |row: &JobRow| state::is_final(&row.state) || row.state == state::PARKED;
        if (rows.iter().all(rests) && also(&rows)) || account.seconds() > PATIENCE_SECONDS {
            return Ok(());
        }
        stage.pause(GLANCE).await;
    }
}

/// Where to go from here.
pub(crate) fn invite(stage: &Stage) {
    let (api, workspace, microsoft) = (&stage.api, &stage.workspace, stage.microsoft.base_url());
    let (key, ada) = (stage.key.expose_secret(), PEOPLE[0]);
    // From now on whoever opens a link sees the page.
    stage.microsoft.sim.auto_sign_in(None);
    println!(
        r#"
Everything stays up until Ctrl-C.

  API          {api}v1  (its calls: openapi.json)
  Microsoft    {microsoft}/_sim  (simulated; lists what can be done to it)

Submit a job, look at it, and at the draft that it makes:

  KEY={key}
  curl {api}v1/jobs -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' -d '
    {{"id": "my-first-job", "kind": "email.draft", "workspace": "{workspace}", "user": "{ada}",
     "payload": {{"to": [{{"email": "nina@contoso.example"}}], "subject": "Hello",
                 "body": {{"format": "markdown", "content": "My **first** job."}}}}}}'
  curl {api}v1/jobs/{workspace}/my-first-job -H "Authorization: Bearer $KEY"
  curl {microsoft}/_sim/graph/mailboxes/{ada}/folders/Drafts"#
    );
    let promises = script::meetings().into_iter().flat_map(|meeting| meeting.promises(workspace));
    for promise in promises.filter(|promise| matches!(promise.end, End::Waits(_))) {
        let (name, id) = (&promise.name, &promise.envelope.id);
        println!(
            r#"
Approve what waits ({name}):

  curl {api}v1/jobs/{workspace}/{id}/approve -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' -d '{{"by": "me"}}'"#
        );
    }
}
