//! One look at one folder: its delta to the end of the round, or its newest arrivals where delta is refused; and a
//! sweep over what is there, when one is under way.
//!
//! The invariant: every page is laid down before the next one is asked for, and a link that died costs a sweep of the
//! folder, never a gap.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use followthrough::context::Context;
use followthrough::graph::arrivals::{Place, Window};
use followthrough::graph::changes::{Cursor, Told};
use followthrough::graph::{Graph, GraphError};
use followthrough::mailbox::SeenChange;
use followthrough::mailbox::ladder::next_look;
use followthrough::mailbox::pages::{PollPage, Taken};
use followthrough::outcome::Failure;
use followthrough::store::folder::Folder;
use followthrough::store::mailbox::Mailbox;

use super::refuses_delta;

/// Microsoft's clock and ours differ, and mail may arrive with an older time than the moment it becomes visible.
const OVERLAP: TimeDelta = TimeDelta::hours(1);
const AHEAD: TimeDelta = TimeDelta::minutes(5);
/// Lists begin this far before the newest message that is known.
const LIST_OVERLAP: TimeDelta = TimeDelta::minutes(2);
/// What no change told of is found by reading the last days again, once a day.
const DAILY: TimeDelta = TimeDelta::hours(24);
const SWEPT: TimeDelta = TimeDelta::days(3);

pub(super) struct Look<'a> {
    pub(super) cx: &'a Context,
    pub(super) graph: &'a Graph,
    pub(super) mailbox: &'a Mailbox,
    /// A round that takes longer goes on as another look.
    pub(super) until: DateTime<Utc>,
}

#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) changes: usize,
    /// What a notification should have told of.
    seen: Vec<SeenChange>,
    /// Why the folder cannot be followed by delta.
    pub(super) refused: Option<String>,
}

impl Look<'_> {
    pub(super) async fn at(&self, folder: Folder) -> Result<Looked, Failure> {
        let mut looked = Looked::default();
        let daily = folder.sweep_from.unwrap_or(folder.created_at) + DAILY <= self.cx.now();
        // Where delta was refused it is tried again once a day, with the sweep.
        let listed = folder.rung == "list" && !daily;
        let mut folder = self.begin(folder, daily).await?;
        if listed {
            self.newest(&mut folder, &mut looked).await?;
            looked.refused = Some("delta_refused".to_owned());
        } else {
            match self.round(&mut folder, &mut looked).await {
                Ok(()) => {}
                Err(Trouble::Refused(reason)) => {
                    // The link is kept: it knows what happened until delta is to be had again.
                    "list".clone_into(&mut folder.rung);
                    self.newest(&mut folder, &mut looked).await?;
                    looked.refused = Some(reason);
                }
                Err(Trouble::Gone) => {
                    self.cx.mailboxes().look_at_tree(self.mailbox).await?;
                    return Err(Failure::retry("folder_gone", "a folder is not there any more"));
                }
                Err(Trouble::Other(failure)) => return Err(failure),
            }
        }
        // Only these are subscribed to.
        if folder.is_well_known("inbox") || folder.is_well_known("sentitems") {
            self.cx.mailboxes().judge(self.mailbox, &folder, &looked.seen).await?;
        }
        Ok(looked)
    }

    async fn begin(&self, mut folder: Folder, daily: bool) -> Result<Folder, Failure> {
        // A folder that appeared later was never filled: what it holds is read once.
        let unread = folder.link.is_none() && folder.polled_at.is_none() && folder.fill_floor.is_none();
        if folder.sweep_before.is_none() && (unread || daily) {
            let whole = unread || folder.lost_at.take().is_some() || self.holds_more(&folder).await?;
            let floor = if whole { self.floor(&folder) } else { self.cx.now() - SWEPT };
            begin_sweep(&mut folder, floor, self.cx.now());
        }
        Ok(folder)
    }

    /// Does it hold more than is stored? A delta that began at some time tells nothing of older mail that is put into
    /// the folder later, as when somebody drags it there from a mailbox of their own.
    async fn holds_more(&self, folder: &Folder) -> Result<bool, Failure> {
        let Some(seen) = folder.polled_at else { return Ok(false) };
        if folder.fills() || !self.cx.mailboxes().is_filled(self.mailbox).await? {
            return Ok(false);
        }
        let span = (self.floor(folder), (seen - OVERLAP).trunc_subsecs(0));
        // A remark: what is wrong with the folder is found out by the look itself.
        let Ok(Some(there)) = self.graph.count_arrivals(&folder.id, span).await else { return Ok(false) };
        Ok(there > self.cx.mailboxes().stored_between(folder, span).await?)
    }

    /// Older mail was never read in it.
    fn floor(&self, folder: &Folder) -> DateTime<Utc> {
        folder.fill_floor.map_or(self.mailbox.floor, |filled| filled.min(self.mailbox.floor))
    }

    /// Pages of the delta until the round is at its end, or the time is over.
    async fn round(&self, folder: &mut Folder, looked: &mut Looked) -> Result<(), Trouble> {
        let mut seen_links = HashSet::new();
        let mut lost = false;
        loop {
            let asked_at = self.cx.now();
            let asked = match &folder.link {
                Some(link) => self.graph.go_on(link).await,
                None => self.graph.begin_delta(&folder.id, asked_at - OVERLAP).await,
            };
            let page = match asked {
                Err(error) if error.is_cursor_lost() && folder.link.is_some() && !lost => {
                    lost = true;
                    self.lose_link(folder);
                    continue;
                }
                asked => asked.map_err(|error| trouble(folder, error))?,
            };
            let (link, kind) = match &page.cursor {
                Cursor::Next(link) => (link.clone(), "next"),
                Cursor::Delta(link) => (link.clone(), "delta"),
            };
            if kind == "next" && !seen_links.insert(link.clone()) {
                if lost {
                    return Err(Failure::retry("link_repeats", "a next link came a second time").into());
                }
                // It leads in circles, today and tomorrow.
                lost = true;
                self.lose_link(folder);
                continue;
            }
            let ended = kind == "delta";
            let told = self.whole(page.items).await?;
            "delta".clone_into(&mut folder.rung);
            (folder.link, folder.link_kind) = (Some(link), Some(kind.to_owned()));
            let at = |one: &Told| one.received().or(one.at("lastModifiedDateTime")).unwrap_or(asked_at);
            let times: HashMap<String, DateTime<Utc>> =
                told.iter().map(|one| (one.id.clone(), at(one))).collect();
            let taken = self.take(folder, told, ended.then_some(asked_at)).await?;
            looked.changes += taken.changes();
            looked.seen.extend(times.into_iter().map(|(id, at)| {
                let created = taken.created.contains(&id);
                SeenChange { id, created, at }
            }));
            self.look_for_unknown(folder, &taken).await?;
            // Where it goes on is written down, and it is due at once.
            if ended || self.cx.now() > self.until {
                return Ok(());
            }
        }
    }

    /// Mail of any age may have been moved or deleted since. The newest comes first, so that what arrived meanwhile does
    /// not wait. What is being read for the first time is not read twice.
    fn lose_link(&self, folder: &mut Folder) {
        self.cx.mailboxes().lost_link(self.mailbox);
        (folder.link, folder.link_kind) = (None, None);
        let floor = if folder.fills() {
            folder.lost_at = Some(self.cx.now());
            folder.polled_at.unwrap_or(folder.created_at) - OVERLAP
        } else {
            self.floor(folder)
        };
        begin_sweep(folder, floor, self.cx.now());
    }

    /// What arrived since the newest message that is known, oldest first, until the time is over.
    async fn newest(&self, folder: &mut Folder, looked: &mut Looked) -> Result<(), Failure> {
        let from = folder.newest.unwrap_or_else(|| self.cx.now() - OVERLAP) - LIST_OVERLAP;
        let window = Window { from, to: self.cx.now() + AHEAD, newest_first: false };
        let mut place = Some(Place::from(window));
        while let Some(at) = place.filter(|_| self.cx.now() <= self.until) {
            let asked_at = self.cx.now();
            let page = self.graph.arrivals(&folder.id, at).await?;
            place = page.next;
            looked.changes +=
                self.take(folder, page.items, place.is_none().then_some(asked_at)).await?.changes();
        }
        Ok(())
    }

    /// What is there, newest first, down to the sweep's floor or until the time is over. What stays unseen is looked
    /// for by id afterwards. Gives the number of changes.
    pub(super) async fn sweep(&self, mut folder: Folder, until: DateTime<Utc>) -> Result<usize, Failure> {
        let (Some(to), Some(from)) = (folder.sweep_before, folder.sweep_floor) else { return Ok(0) };
        let mut changes = 0;
        let mut place = Some(Place::from(Window { from, to, newest_first: true }));
        while let Some(at) = place.filter(|_| self.cx.now() < until) {
            let page = self.graph.arrivals(&folder.id, at).await?;
            place = page.next;
            folder.sweep_before = place.as_ref().map(Place::at);
            changes += self.lay(&mut folder, page.items, Some(place.is_none())).await?.changes();
        }
        Ok(changes)
    }

    /// Lays a page of a poll down; `as_of` is the time it was asked for, when nothing more is asked of the folder.
    async fn take(
        &self,
        folder: &mut Folder,
        told: Vec<Told>,
        as_of: Option<DateTime<Utc>>,
    ) -> Result<Taken, Failure> {
        if let Some(as_of) = as_of {
            // What happened while the answer was on its way is not in it.
            folder.polled_at = Some(as_of);
            let now = self.cx.now();
            if !told.is_empty() {
                folder.changed_at = Some(now);
            }
            folder.due_at = Some(next_look(folder, self.cx.mailboxes().pace(), now, self.cx.chance()));
        }
        self.lay(folder, told, None).await
    }

    async fn lay(&self, folder: &mut Folder, told: Vec<Told>, sweep: Option<bool>) -> Result<Taken, Failure> {
        let replaced = replaced(self.cx, self.graph, self.mailbox, &told).await?;
        let arrived = told.iter().filter(|one| !one.removed).filter_map(Told::received).max();
        folder.newest = folder.newest.max(arrived);
        let page = PollPage { folder, told: &told, replaced: &replaced, sweep };
        let taken = self.cx.mailboxes().take(self.mailbox, page).await?;
        folder.link_version += 1;
        Ok(taken)
    }

    /// A delta may tell less than a list: of what is new, all is read.
    async fn whole(&self, told: Vec<Told>) -> Result<Vec<Told>, Failure> {
        if told.iter().all(|one| one.removed || one.is_whole()) {
            return Ok(told);
        }
        let known = self.cx.mailboxes().kept_whole(self.mailbox, &told).await?;
        let mut whole = Vec::with_capacity(told.len());
        for one in told {
            if one.removed || one.is_whole() || known.contains(&one.id) {
                whole.push(one);
                continue;
            }
            whole.push(match self.graph.look_for(&one.id).await {
                Ok(found) => found.unwrap_or(Told { removed: true, ..one }),
                // As far as it can be had. It stands in the way of no other.
                Err(error) if error.is_too_much() => one,
                Err(error) => return Err(error.into()),
            });
        }
        Ok(whole)
    }

    /// An id that left the folder before it was ever read, while the mailbox is being filled: it may stand where the
    /// backfill has been already.
    async fn look_for_unknown(&self, folder: &Folder, taken: &Taken) -> Result<(), Failure> {
        if !folder.fills() {
            return Ok(());
        }
        for id in &taken.unknown {
            let found = self.graph.look_for(id).await?;
            if let Some(told) =
                found.filter(|told| told.received().is_some_and(|at| at >= self.mailbox.floor))
            {
                self.cx.mailboxes().take_found(self.mailbox, &told, &[]).await?;
            }
        }
        Ok(())
    }
}

/// Pairs of a new id and the old one that leads nowhere any more: the same mail, moved by Outlook for the desktop.
pub(in crate::mailbox) async fn replaced(
    cx: &Context,
    graph: &Graph,
    mailbox: &Mailbox,
    told: &[Told],
) -> Result<Vec<(String, String)>, Failure> {
    let mut replaced: Vec<(String, String)> = Vec::new();
    let mut asked = HashSet::new();
    for (new, old) in cx.mailboxes().rivals(mailbox, told).await? {
        if replaced.iter().any(|(known, _)| *known == new) || !asked.insert(old.clone()) {
            continue;
        }
        match graph.look_for(&old).await {
            Ok(None) => replaced.push((new, old)),
            Ok(Some(_)) => {}
            Err(error) if error.is_too_much() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(replaced)
}

fn trouble(folder: &Folder, error: GraphError) -> Trouble {
    if error.is_not_found() && folder.polled_at.is_some() {
        return Trouble::Gone;
    }
    match refuses_delta(&error) {
        // Not even one change at a time: a list can leave out what is too much.
        None if error.is_too_much() => Trouble::Refused("delta_too_large".to_owned()),
        Some(reason) => Trouble::Refused(reason),
        None => Trouble::Other(error.into()),
    }
}

fn begin_sweep(folder: &mut Folder, floor: DateTime<Utc>, now: DateTime<Utc>) {
    folder.sweep += 1;
    folder.sweep_before = Some(now + AHEAD);
    folder.sweep_from = Some(now);
    folder.sweep_floor = Some(floor);
}

enum Trouble {
    Refused(String),
    Gone,
    Other(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}
