//! `bench backfill`: how fast a mailbox's past is read, beside what its permits allow at a given time per request.
//!
//! The fleet is a process of its own, so that its memory can be told from the simulator's, and can be killed on the way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use followthrough::config::Config;
use followthrough::store::backfill::{self, Backfill, state};
use followthrough::store::{StoreError, mailbox};
use followthrough_tests::broker::Folder;
use followthrough_tests::world::{ADA, Pair, World};
use m365_sim::graph::{Fill, NewMessage};
use m365_sim::referee::{Limits, Throttle};
use scoped_futures::ScopedFutureExt;
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;

use crate::child::{Look, Process};
use crate::worker;
use crate::world::Failure;

const ADDRESS: &str = "support@acme.example";
/// As many messages as one answer holds, and as many calls as a backfill makes at once.
const PAGE: usize = 100;
const LANES: f64 = 2.0;
/// So often the mailbox is disturbed, and so many messages are moved each time.
const DISTURBANCES: usize = 10;
const MOVED: usize = 25;
const PATIENCE: Duration = Duration::from_hours(1);

#[derive(Args)]
pub(crate) struct Options {
    /// One line of JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Messages of the last 30 days
    #[arg(long, default_value_t = 20_000)]
    messages: usize,
    /// Beside Inbox and Sent Items
    #[arg(long, default_value_t = 23)]
    folders: usize,
    /// How long Microsoft takes for each request
    #[arg(long, default_value_t = 200)]
    latency_ms: u64,
    /// Short and empty pages, repeated links, lost cursors, throttles, and mail that comes and is moved meanwhile
    #[arg(long)]
    rough: bool,
    /// `kill -9` of the fleet's process, spread over the time
    #[arg(long, default_value_t = 0)]
    kills: usize,
}

#[derive(Serialize)]
struct Report {
    messages: usize,
    found: usize,
    stored: usize,
    /// In the mailbox in the end, each stored once and in its folder.
    in_step: usize,
    /// Lists of the backfill.
    lists: usize,
    /// As many as the page size allows at best.
    least: usize,
    /// Counts of the backfill: of every folder before it begins and once it is through.
    counts: usize,
    /// All calls to the mailbox meanwhile, those of the looks at it included.
    calls: usize,
    seconds: f64,
    /// Of this time, how much the backfill's calls take if each of its permits always has one under way.
    share: f64,
    /// The same, if only its lists are held to be needed.
    lists_share: f64,
    kills: usize,
    /// Of the fleet's process, at its peak.
    peak_mib: u64,
    cpu_seconds: f64,
}

impl Report {
    fn tell(&self, json: bool) -> Result<(), Failure> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!(
                "{} messages: found {}, stored {}, in {:.1} s, then {} in step; {} lists ({} at least) and {} counts: {:.0} % of what its permits \
                 allow, {:.0} % by its lists alone; {} calls to the mailbox in all; {} kills, {} MiB resident at the peak, {:.1} s \
                 of processor",
                self.messages,
                self.found,
                self.stored,
                self.seconds,
                self.in_step,
                self.lists,
                self.least,
                self.counts,
                self.share * 100.0,
                self.lists_share * 100.0,
                self.calls,
                self.kills,
                self.peak_mib,
                self.cpu_seconds,
            );
        }
        Ok(())
    }
}

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    let missing = "the benchmark needs RabbitMQ and PostgreSQL";
    let poll = |config: &mut followthrough::config::Config| config.mailbox.poll = "10s".into();
    let mut world = World::open_with(Pair::Servers, poll).await.ok_or(missing)?;
    world.connect(ADA, "shared-mailbox").await;
    world.stop().await;
    let fill = Fill { messages: options.messages, folders: options.folders, ..Fill::default() };
    let made = world.sim().graph().fill(ADDRESS, &fill);
    if options.rough {
        let mut graph = world.sim().graph();
        graph.switches.short_page_every = 11;
        graph.switches.repeat_link_every = 13;
        graph.switches.delta_empty_every = 7;
        graph.switches.delta_repeat_every = 5;
        graph.switches.delta_expire_every = 97;
    }
    world.sim().set_limits(Limits { latency_ms: options.latency_ms, ..world.sim().limits() });
    world.sim().clear_calls();
    let folder = Folder::fresh();
    let settings = folder.0.join("bench.toml");
    std::fs::write(&settings, settings_of(&world.config))?;
    let start = || {
        let settings = settings.display().to_string();
        Process::start(&[
            worker::NAME.to_owned(),
            "--settings".to_owned(),
            settings,
            "--scheduler".to_owned(),
        ])
    };
    let fleet = start()?;
    let asked = json!({"address": ADDRESS, "backfill_days": 31});
    world.publish(&[world.envelope("connect", "mailbox.connect", asked)]).await;
    let told = |kind: &'static str| {
        let events = world.events.clone();
        move || {
            let events = events.clone();
            async move { !events.of(kind).is_empty() }
        }
    };
    world.within(PATIENCE, "it is connected", told("mailbox.connected")).await;
    let started = Instant::now();
    let kills = async {
        let (mut fleet, mut looks) = (fleet, Look::default());
        for kill in 1..=options.kills {
            far(&world, options.messages * kill / (options.kills + 1)).await;
            looks = looks.and(fleet.look());
            fleet.kill().await?;
            fleet = start()?;
        }
        Ok::<_, Failure>((fleet, looks))
    };
    let (killed, ()) = tokio::join!(kills, disturbances(&world, options));
    let (fleet, looks) = killed?;
    // Of the row: there is an event for every message to look through.
    let over = || async { filling(&world).await.is_some_and(|backfill| backfill.state == state::COMPLETED) };
    world.within(PATIENCE, "it is filled", over).await;
    let seconds = started.elapsed().as_secs_f64();
    world.within(PATIENCE, "it is in step", || async { stored(&world).await == held(&world) }).await;
    world.within(PATIENCE, "it is told", told("mailbox.backfill.completed")).await;
    let looks = looks.and(fleet.look());
    let calls: Vec<_> = world.sim().calls().into_iter().filter(|call| call.path.contains(ADDRESS)).collect();
    let counts = calls.iter().filter(|call| call.query.contains("count=true")).count();
    let filled = world.events.of("mailbox.backfill.completed")[0]["data"].clone();
    let number = |name: &str| usize::try_from(filled[name].as_u64().unwrap_or_default()).unwrap_or_default();
    let lists = number("requests");
    let share = |calls: usize| -> Result<f64, Failure> {
        let busy =
            crate::report::number(u64::try_from(calls)?) * f64::from(u32::try_from(options.latency_ms)?);
        Ok(busy / 1000.0 / LANES / seconds)
    };
    let report = Report {
        messages: made,
        found: number("found"),
        stored: number("stored"),
        in_step: held(&world).len(),
        lists,
        least: made.div_ceil(PAGE),
        counts,
        calls: calls.len(),
        seconds,
        share: share(lists + counts)?,
        lists_share: share(lists)?,
        kills: options.kills,
        peak_mib: looks.peak >> 20,
        cpu_seconds: looks.cpu.as_secs_f64(),
    };
    report.tell(options.json)?;
    fleet.drain().await?;
    world.sim().set_limits(Limits { latency_ms: 0, ..world.sim().limits() });
    world.start().await;
    world.run("leave", "mailbox.disconnect", json!({"mailbox": ADDRESS}), "succeeded").await;
    world.close().await;
    Ok(())
}

/// The settings of a story, for a process that reads them from a file.
fn settings_of(config: &Config) -> String {
    let secret = |secret: Option<&secrecy::SecretString>| {
        secret.map_or("", |secret| secret.expose_secret()).to_owned()
    };
    let microsoft = &config.microsoft;
    format!(
        "[database]\nurl = {:?}\n[broker]\nurl = {:?}\nprefix = {:?}\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [vault]\nkeys = [{:?}]\n[retry]\nladder = {:?}\n[mailbox]\npoll = {:?}\n\
         [microsoft]\nclient_id = {:?}\nclient_secret = {:?}\nlogin_url = {:?}\ngraph_url = {:?}\n",
        config.database.url.expose_secret(),
        config.broker.url.expose_secret(),
        config.broker.prefix,
        secret(config.vault.keys.first()),
        config.retry.ladder,
        config.mailbox.poll,
        microsoft.client_id.as_deref().unwrap_or_default(),
        secret(microsoft.client_secret.as_ref()),
        microsoft.login_url().as_str(),
        microsoft.graph_url().as_str(),
    )
}

async fn far(world: &World, messages: usize) {
    world.within(PATIENCE, "it is far enough", || async { found(world).await >= messages }).await;
}

async fn disturbances(world: &World, options: &Options) {
    let rounds = if options.rough { DISTURBANCES } else { 0 };
    for round in 1..=rounds {
        far(world, options.messages * round / (DISTURBANCES + 1)).await;
        disturb(world, round);
    }
}

/// While it is read mail comes, somebody tidies up, and Microsoft has enough of it for a moment.
fn disturb(world: &World, round: usize) {
    world
        .sim()
        .deliver(ADDRESS, NewMessage::new("Nora <nora@customer.example>", "Meanwhile", "<p>Hello</p>"));
    world.sim().throttle(Throttle {
        user: ADDRESS.into(),
        calls: 1,
        retry_after_seconds: 2,
        as_date: false,
        without_header: false,
        area: None,
    });
    let mut graph = world.sim().graph();
    let mut mailbox = graph.mailbox(ADDRESS);
    let ids = mailbox.message_ids();
    for id in ids.iter().skip(round).step_by(ids.len() / MOVED) {
        mailbox.move_message(id, "Archive");
    }
}

/// What is stored and not removed, by id with its folder.
async fn stored(world: &World) -> BTreeMap<String, String> {
    let rows = world.store.read(|tx| {
        async move {
            let sql = "SELECT id, folder_id FROM messages WHERE state <> 'removed'";
            Ok::<_, StoreError>(followthrough::sql!(tx, all(String, String), sql)?)
        }
        .scope_boxed()
    });
    rows.await.unwrap_or_default().into_iter().collect()
}

/// What Microsoft holds, in the same form.
fn held(world: &World) -> BTreeMap<String, String> {
    let mut graph = world.sim().graph();
    let mailbox = graph.mailbox(ADDRESS);
    let folder = |id: &String| Some(mailbox.message(id)?["parentFolderId"].as_str()?.to_owned());
    mailbox
        .message_ids()
        .into_iter()
        .filter_map(|id| Some((folder(&id)?, id)))
        .map(|(folder, id)| (id, folder))
        .collect()
}

/// How many the backfill has found so far.
async fn found(world: &World) -> usize {
    let backfill = filling(world).await;
    backfill.and_then(|backfill| usize::try_from(backfill.found).ok()).unwrap_or_default()
}

async fn filling(world: &World) -> Option<Backfill> {
    let workspace = world.workspace.as_str();
    let backfill = world
        .store
        .read(|tx| {
            async move {
                match mailbox::find_by_address(tx, workspace, ADDRESS).await? {
                    Some(mailbox) => backfill::find(tx, mailbox.id).await,
                    None => Ok(None),
                }
            }
            .scope_boxed()
        })
        .await;
    backfill.ok().flatten()
}
