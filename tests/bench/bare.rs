//! The measure of all things: lapin and reqwest, nothing else. It takes the same message, makes the same call
//! and acknowledges; it knows no ledger, no user, no second try.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use futures::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

pub(crate) const NAME: &str = "serve-bare";

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    amqp: String,
    #[arg(long)]
    queue: String,
    #[arg(long)]
    fake: String,
    /// Ends after so many.
    #[arg(long)]
    jobs: usize,
    #[arg(long)]
    concurrency: usize,
    #[arg(long)]
    prefetch: u16,
}

#[expect(clippy::disallowed_methods, reason = "the bare consumer is not the product")]
pub(crate) async fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url: Arc<str> = format!("{}/v1.0/me/messages", options.fake).into();
    let token: Arc<str> = "1".repeat(1600).into();
    let connection = Connection::connect(&options.amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(options.prefetch, BasicQosOptions::default()).await?;
    let mut deliveries = channel
        .basic_consume(
            options.queue.as_str().into(),
            "bare".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let (hands, done) = (Arc::new(Semaphore::new(options.concurrency)), Arc::new(AtomicUsize::new(0)));
    let (jobs, finished) = (options.jobs, Arc::new(Notify::new()));
    let parent_gone = crate::child::parent_gone();
    tokio::pin!(parent_gone);
    loop {
        let next = tokio::select! {
            next = deliveries.next() => next,
            () = finished.notified() => break,
            () = &mut parent_gone => break,
        };
        let Some(Ok(delivery)) = next else { break };
        let hand = hands.clone().acquire_owned().await?;
        let (client, url, token) = (client.clone(), url.clone(), token.clone());
        let (done, finished) = (done.clone(), finished.clone());
        tokio::spawn(async move {
            let draft = draft(&delivery.data);
            let sent = client.post(&*url).bearer_auth(&token).json(&draft).send().await;
            let answer = match sent {
                Ok(response) if response.status() == 201 => response.json::<Value>().await,
                Ok(response) => panic!("the fake answered {}", response.status()),
                Err(error) => panic!("the fake did not answer: {error}"),
            };
            answer.expect("the fake answers JSON");
            delivery.acker.ack(BasicAckOptions::default()).await.expect("an open channel");
            drop(hand);
            if done.fetch_add(1, Ordering::Relaxed) + 1 == jobs {
                finished.notify_one();
            }
        });
    }
    // lapin has the last acknowledgements in a buffer still.
    crate::child::pause(500).await;
    connection.close(200, "done".into()).await?;
    Ok(())
}

fn draft(body: &[u8]) -> Value {
    let job: Value = serde_json::from_slice(body).expect("the benchmark's own message");
    let recipients: Vec<Value> = job["payload"]["to"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|to| json!({"emailAddress": {"address": to["email"], "name": to["name"]}}))
        .collect();
    json!({
        "subject": job["payload"]["subject"],
        "body": {"contentType": "text", "content": job["payload"]["body"]["content"]},
        "toRecipients": recipients,
        "ccRecipients": [],
        "bccRecipients": [],
        "singleValueExtendedProperties": [{
            "id": "String {6a2ff1b6-8f6e-4f27-9d0c-5b1f3c4f7a10} Name FollowthroughEffect",
            "value": job["id"],
        }],
    })
}
