//! `bench intake`: notifications offered at a steady rate to the fleet's intake, and to a bare handler that only hands
//! the body to RabbitMQ, in one run.
//!
//! Open loop: a request is sent when its time has come, whether the last one was answered or not, and its latency
//! counts from that time.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use followthrough::broker::rabbit::Rabbit;
use followthrough::clock::Clock;
use followthrough::config::{Config, TopologyMode};
use followthrough::fleet::{Role, Tuning};
use followthrough::store::subscription;
use followthrough::store::{Store, StoreError};
use followthrough::vault::seal::Keys;
use followthrough::{lifecycle, telemetry};
use followthrough_tests::broker::{Folder, delete};
use followthrough_tests::servers;
use followthrough_workers::JOBS;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};

use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use scoped_futures::ScopedFutureExt;
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::child::{self, Process, pause};
use crate::report::Percentiles;
use crate::world::Failure;

pub(crate) const NAME: &str = "serve-intake";
pub(crate) const BARE: &str = "serve-bare-intake";
const STATE: &str = "the client state of every subscription here";
/// Mailboxes with two subscriptions each, as notifications come of many.
const MAILBOXES: usize = 50;
const WARM: u32 = 2;

#[derive(Args)]
pub(crate) struct Options {
    /// One line of JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Notifications per second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds of each contender
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

#[derive(Args)]
pub(crate) struct Child {
    #[arg(long)]
    settings: std::path::PathBuf,
}

#[derive(Args)]
pub(crate) struct BareChild {
    #[arg(long)]
    amqp: String,
    #[arg(long)]
    queue: String,
}

#[derive(Debug, Serialize)]
struct Report {
    rate: u32,
    seconds: u32,
    intake: Contender,
    bare: Contender,
}

#[derive(Debug, Serialize)]
struct Contender {
    offered: u64,
    accepted: u64,
    /// Found in the store or the queue afterwards.
    kept: u64,
    lost: u64,
    latency: Percentiles,
    cpu_micros_per_post: f64,
    /// Bytes.
    peak: u64,
}

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    let report = Report {
        rate: options.rate,
        seconds: options.seconds,
        bare: bare(options).await?,
        intake: intake(options).await?,
    };
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!("{} notifications/s offered for {} s\n", report.rate, report.seconds);
    for (name, one) in [("bare handler", &report.bare), ("intake (aim: p99 below 50 ms)", &report.intake)] {
        println!(
            "{name:<30} {}; offered {}, accepted {}, kept {}, lost {}; {:.0} µs CPU each, peak {} KiB",
            one.latency.line(),
            one.offered,
            one.accepted,
            one.kept,
            one.lost,
            one.cpu_micros_per_post,
            one.peak / 1024,
        );
    }
    Ok(())
}

async fn intake(options: &Options) -> Result<Contender, Failure> {
    let missing = "the benchmark needs RabbitMQ and PostgreSQL";
    let (amqp, database) = (servers::amqp().await.ok_or(missing)?, servers::postgres().await.ok_or(missing)?);
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let (prefix, key) = (format!("bench-{}", Uuid::now_v7().simple()), Keys::generate("bench"));
    let folder = Folder::fresh();
    let settings = folder.0.join("bench.toml");
    let text = format!(
        "[database]\nurl = {:?}\n[broker]\nurl = {:?}\nprefix = {prefix:?}\n[http]\nlisten = \"{listen}\"\n\
         [vault]\nkeys = [{:?}]\n",
        database.url,
        amqp.url,
        key.expose_secret(),
    );
    std::fs::write(&settings, text)?;
    let config = Config::load(Some(&settings), std::iter::empty())?;
    let topology = Tuning::of(&config, "bench")?.topology(&prefix, &JOBS);
    let declare = TopologyMode::Declare;
    Rabbit::connect(&config.broker.url, topology.clone(), declare, None, Clock::system(), "bench").await?;
    let store = Store::connect(&database.url, 2).await?;
    store.migrate().await?;
    let subscriptions = Arc::new(plant(&store).await?);
    let path = settings.display().to_string();
    let process = Process::start(&[NAME.to_owned(), "--settings".to_owned(), path])?;
    let body = move |number: u64| {
        let subscription = &subscriptions[usize::try_from(number).unwrap_or_default() % subscriptions.len()];
        notification(subscription, number)
    };
    let measured = offer(options, &format!("http://{listen}/graph/notifications"), &process, body).await?;
    let kept = database.count("SELECT COUNT(*) FROM notices").await;
    process.drain().await?;
    delete(&amqp.url, &topology).await?;
    Ok(measured.kept(u64::try_from(kept)?))
}

async fn plant(store: &Store) -> Result<Vec<String>, Failure> {
    let now = Clock::system().now();
    let hash: [u8; 32] = Sha256::digest(STATE.as_bytes()).into();
    let planted: Result<_, StoreError> = store
        .transaction("plant", |tx| {
            async move {
                let mut ids = Vec::new();
                for number in 0..MAILBOXES {
                    let mailbox = Uuid::now_v7();
                    for folder in ["inbox", "sent"] {
                        let row = subscription::create(tx, mailbox, folder, &hash, now).await?;
                        let id = format!("00000000-0000-4000-8000-{number:08}{folder:0>4.4}");
                        let until = now + chrono::TimeDelta::days(1);
                        subscription::accepted(tx, row, &id, until, until, now).await?;
                        ids.push(id);
                    }
                }
                Ok(ids)
            }
            .scope_boxed()
        })
        .await;
    Ok(planted?)
}

/// As long as Microsoft's own.
fn notification(subscription: &str, number: u64) -> String {
    let id = format!("AAkALgAAAAAAHYQDEapmEc2byACqAC-EWg0AvdPv2TxMKEy6{number:072}AAA=");
    let resource = format!("Users/00000000-0000-4000-8000-000000000001/Messages/{id}");
    json!({"value": [{
        "subscriptionId": subscription,
        "subscriptionExpirationDateTime": "2030-01-01T00:00:00.0000000+00:00",
        "changeType": "created",
        "resource": resource,
        "resourceData": {
            "@odata.type": "#Microsoft.Graph.Message", "@odata.id": resource,
            "@odata.etag": "W/\"CQAAABYAAAC90+/ZPEwoTLqT2j8\"", "id": id,
        },
        "clientState": STATE,
        "tenantId": "00000000-0000-4000-8000-00000000000a",
    }]})
    .to_string()
}

async fn bare(options: &Options) -> Result<Contender, Failure> {
    let amqp = servers::amqp().await.ok_or("the benchmark needs RabbitMQ")?;
    let queue = format!("bench-{}", Uuid::now_v7().simple());
    let connection = Connection::connect(&amqp.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("quorum".into()));
    channel.queue_declare(queue.as_str().into(), durable, arguments.clone()).await?;
    let mut process =
        Process::start(&[BARE.to_owned(), format!("--amqp={}", amqp.url), format!("--queue={queue}")])?;
    let url = format!("http://{}/", process.line().await?);
    let measured = offer(options, &url, &process, |number| notification("bare", number)).await?;
    let passive = QueueDeclareOptions { passive: true, ..durable };
    let kept = channel.queue_declare(queue.as_str().into(), passive, arguments).await?.message_count();
    process.kill().await?;
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    connection.close(200, "done".into()).await?;
    Ok(measured.kept(u64::from(kept)))
}

impl Contender {
    fn kept(self, kept: u64) -> Self {
        let warm = self.lost;
        Self { kept: kept.saturating_sub(warm), lost: (self.offered + warm).saturating_sub(kept), ..self }
    }
}

/// What was sent to warm up stands in `lost` until what was kept is counted.
#[expect(clippy::disallowed_methods, reason = "the benchmark stands outside")]
async fn offer(
    options: &Options,
    url: &str,
    process: &Process,
    body: impl Fn(u64) -> String,
) -> Result<Contender, Failure> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    for _ in 0..500 {
        if client.get(url).send().await.is_ok() {
            break;
        }
        pause(20).await;
    }
    let warm = u64::from(options.rate * WARM);
    let offered = u64::from(options.rate * options.seconds);
    load(&client, url, options.rate, 0..warm, &body).await?;
    let look = process.look();
    let (accepted, latencies) = load(&client, url, options.rate, warm..warm + offered, &body).await?;
    let relook = process.look();
    Ok(Contender {
        offered,
        accepted,
        kept: 0,
        lost: warm,
        latency: Percentiles::of(latencies),
        cpu_micros_per_post: relook.cpu.saturating_sub(look.cpu).as_secs_f64() * 1e6
            / crate::report::number(offered),
        peak: relook.peak,
    })
}

/// Sends each when its time has come, and gives how many were accepted and how long each took from that time.
async fn load(
    client: &reqwest::Client,
    url: &str,
    rate: u32,
    numbers: Range<u64>,
    body: impl Fn(u64) -> String,
) -> Result<(u64, Vec<Duration>), Failure> {
    let (clock, interval) = (Clock::system(), Duration::from_secs(1) / rate);
    let mut answers = JoinSet::new();
    let started = Instant::now();
    for (turn, number) in (0_u32..).zip(numbers) {
        let due = started + interval * turn;
        // A timer ticks once a millisecond: what is due by now goes without waiting for the next tick.
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            clock.sleep(early).await;
        }
        let request = client.post(url).header("content-type", "application/json").body(body(number));
        answers.spawn(async move {
            let status = request.send().await.map(|response| response.status().as_u16());
            (status.unwrap_or_default(), due.elapsed())
        });
    }
    let (mut accepted, mut latencies) = (0, Vec::with_capacity(answers.len()));
    while let Some(answer) = answers.join_next().await {
        let (status, latency) = answer?;
        accepted += u64::from(status == 202);
        latencies.push(latency);
    }
    Ok((accepted, latencies))
}

/// The fleet's intake as `followthrough run --role intake` is one.
pub(crate) async fn serve(options: &Child) -> Result<(), Failure> {
    let config = Config::load(Some(&options.settings), std::iter::empty())?;
    telemetry::log(&config.telemetry)?;
    tokio::select! {
        ended = lifecycle::run(&config, JOBS, &[Role::Intake], None) => Ok(ended?),
        () = child::parent_gone() => Ok(()),
    }
}

/// axum and lapin, nothing else: publish the body, await the confirm, say 202.
pub(crate) async fn serve_bare(options: &BareChild) -> Result<(), Failure> {
    async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> lapin::Result<bool> {
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let confirm = channel
            .basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body, persistent)
            .await?
            .await?;
        Ok(matches!(confirm, Confirmation::Ack(_)))
    }
    let connection = Connection::connect(&options.amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let queue = options.queue.clone();
    let handler = move |body: axum::body::Bytes| {
        let (channel, queue) = (channel.clone(), queue.clone());
        async move {
            match publish(&channel, &queue, &body).await {
                Ok(true) => axum::http::StatusCode::ACCEPTED,
                _ => axum::http::StatusCode::SERVICE_UNAVAILABLE,
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let router = axum::Router::new().route("/", axum::routing::post(handler));
    tokio::select! {
        served = async { axum::serve(listener, router).await } => Ok(served?),
        () = child::parent_gone() => Ok(()),
    }
}
