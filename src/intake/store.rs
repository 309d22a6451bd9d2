//! What the intake keeps: many requests to one commit.
//!
//! The invariant: all that the requests of a batch told is committed together or not at all, and a thousand
//! notifications of one folder are one folder to look at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use super::item::{Item, News};
use super::{Post, count};
use crate::store::notice::{self, Notice};
use crate::store::subscription::{self, Subscription};
use crate::store::{Store, StoreError, Tx, folder, mailbox};

pub(super) async fn keep(
    store: &Store,
    posts: &Arc<[Post]>,
    now: DateTime<Utc>,
) -> Result<Vec<()>, StoreError> {
    let items: &Vec<&Item> = &posts.iter().flat_map(|post| post.items.iter()).collect();
    let tally = store
        .transaction("intake", |tx| {
            async move {
                let known = known(tx, items).await?;
                let (told, tally) = believe(items, &known);
                write(tx, &told, tally, now).await
            }
            .scope_boxed()
        })
        .await?;
    for (outcome, times) in [
        ("stored", tally.stored),
        ("duplicate", tally.duplicate),
        ("lifecycle", tally.lifecycle),
        ("forged", tally.forged),
        ("unknown", tally.unknown),
    ] {
        count(outcome, times);
    }
    Ok(vec![(); posts.len()])
}

/// What became of the items.
#[derive(Default)]
struct Tally {
    stored: u64,
    duplicate: u64,
    lifecycle: u64,
    forged: u64,
    unknown: u64,
}

/// What is believed of a batch, each thing once and in one order.
#[derive(Default)]
struct Told {
    notices: BTreeSet<(Uuid, String, String, &'static str)>,
    folders: BTreeSet<(Uuid, String)>,
    /// Notifications of each subscription.
    heard: BTreeMap<Uuid, i64>,
    missed: BTreeSet<Uuid>,
    asks: BTreeSet<(Uuid, &'static str)>,
    to_tend: BTreeSet<Uuid>,
    to_hurry: BTreeSet<Uuid>,
}

/// The subscriptions that the items name, by Microsoft's id or, while Microsoft's answer is under way, by client state.
struct Known {
    by_id: HashMap<String, Subscription>,
    creating: Vec<Subscription>,
}

async fn known(tx: &mut Tx, items: &[&Item]) -> Result<Known, StoreError> {
    let ids: BTreeSet<&str> = items.iter().map(|item| item.subscription.as_str()).collect();
    let mut by_id = HashMap::new();
    for chunk in ids.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
        let found = subscription::by_graph_ids(tx, chunk).await?;
        by_id.extend(found.into_iter().filter_map(|one| Some((one.graph_id.clone()?, one))));
    }
    let strange = items.iter().filter(|item| !by_id.contains_key(&item.subscription));
    let states: BTreeSet<&[u8]> = strange.map(|item| item.client_state.as_slice()).collect();
    let mut creating = Vec::new();
    for chunk in states.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
        creating.extend(subscription::creating(tx, chunk).await?);
    }
    Ok(Known { by_id, creating })
}

/// `SQLite` takes 32,766 parameters.
const CHUNK: usize = 500;

fn believe(items: &[&Item], known: &Known) -> (Told, Tally) {
    let (mut told, mut tally) = (Told::default(), Tally::default());
    for item in items {
        let same = |one: &&Subscription| bool::from(one.client_state.ct_eq(&item.client_state));
        let named = known.by_id.get(&item.subscription);
        let believed = match named {
            Some(_) => named.filter(same),
            None => known.creating.iter().find(same),
        };
        let Some(subscription) = believed else {
            *(if named.is_some() { &mut tally.forged } else { &mut tally.unknown }) += 1;
            continue;
        };
        let mailbox = subscription.mailbox_id;
        told.to_hurry.insert(mailbox);
        match &item.news {
            News::Change { change, message } => {
                *told.heard.entry(subscription.id).or_default() += 1;
                let folder = subscription.folder_id.clone();
                if let Some(message) = message {
                    let new = told.notices.insert((mailbox, folder.clone(), message.clone(), change));
                    tally.duplicate += u64::from(!new);
                }
                told.folders.insert((mailbox, folder));
            }
            News::Missed => {
                tally.lifecycle += 1;
                told.missed.insert(mailbox);
            }
            News::Asks(what) => {
                tally.lifecycle += 1;
                told.asks.insert((subscription.id, what));
                told.to_tend.insert(mailbox);
            }
        }
    }
    (told, tally)
}

/// Rows are written in one order everywhere, so that processes wait for each other and never in a circle.
async fn write(tx: &mut Tx, told: &Told, mut tally: Tally, now: DateTime<Utc>) -> Result<Tally, StoreError> {
    let notices: Vec<Notice> = told
        .notices
        .iter()
        .map(|(mailbox_id, folder_id, message_id, change)| Notice {
            mailbox_id: *mailbox_id,
            folder_id: folder_id.clone(),
            message_id: message_id.clone(),
            change: (*change).to_owned(),
        })
        .collect();
    tally.stored = notice::insert(tx, &notices, now).await?;
    tally.duplicate += (notices.len() as u64).saturating_sub(tally.stored);
    let heard: Vec<(Uuid, i64)> = told.heard.iter().map(|(id, times)| (*id, *times)).collect();
    subscription::heard(tx, &heard, now).await?;
    for (id, what) in &told.asks {
        subscription::ask(tx, *id, what, now).await?;
    }
    let folders: Vec<(Uuid, String)> = told.folders.iter().cloned().collect();
    folder::noticed(tx, &folders, now).await?;
    let missed: Vec<Uuid> = told.missed.iter().copied().collect();
    folder::all_noticed(tx, &missed, now).await?;
    for mailbox in &told.to_tend {
        mailbox::tend(tx, *mailbox, now).await?;
    }
    let to_hurry: Vec<Uuid> = told.to_hurry.iter().copied().collect();
    mailbox::hurry(tx, &to_hurry, now).await?;
    Ok(tally)
}
