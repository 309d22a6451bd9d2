//! The only things a job can reach.
//!
//! The invariant: a job has no client, connection, clock or environment but what its [`Context`] hands out,
//! and all of that is bound to the one user and connection the job was claimed for.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::clock::Clock;
use crate::cool_down::CoolDown;
use crate::dataverse::Dataverse;
use crate::disconnect::Connections;
use crate::effect::{Effect, Effects};
use crate::graph::Graph;
use crate::mailbox::Mailboxes;
use crate::outcome::Failure;
use crate::services::Services;
use crate::store::connection::Connection;

pub struct Context {
    pub(crate) services: Arc<Services>,
    pub(crate) connection: Option<Connection>,
    pub(crate) effects: Effects,
    pub(crate) workspace: String,
    pub(crate) user: String,
    pub(crate) gate: Option<String>,
    pub(crate) permits: u16,
    pub(crate) created_at: DateTime<Utc>,
}

impl Context {
    /// One outward write, by a name that is stable within the kind.
    pub fn effect(&self, step: &'static str) -> Effect<'_> {
        self.effects.step(step)
    }

    /// The id that marks a step's effect at Microsoft.
    pub fn effect_id(&self, step: &str) -> uuid::Uuid {
        self.effects.id(step)
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.services.clock.now()
    }

    pub fn clock(&self) -> &Clock {
        &self.services.clock
    }

    /// How long a mailbox may take to show what became of a write that nobody answered.
    pub fn unanswered(&self) -> Duration {
        self.services.unanswered
    }

    /// Graph as the user. [`Graph::of_mailbox`] turns to a mailbox shared with them.
    pub fn graph(&self) -> Result<Graph, Failure> {
        Ok(self.services.microsoft.graph(self.connection()?).behind(self.cool_down()))
    }

    /// The user's Dynamics environment.
    pub fn dataverse(&self) -> Result<Dataverse, Failure> {
        Ok(self.services.microsoft.dataverse(self.connection()?)?.behind(self.cool_down()))
    }

    /// The job's gate, while whoever is behind it asks to be left alone.
    pub(crate) fn left_alone(&self) -> Option<(String, Duration)> {
        self.gate.clone().zip(self.cool_down().and_then(|cool_down| cool_down.left()))
    }

    fn cool_down(&self) -> Option<CoolDown> {
        self.gate.as_deref().map(|gate| self.services.microsoft.cool_down(gate))
    }

    /// The workspace's shared mailboxes.
    pub fn mailboxes(&self) -> Mailboxes {
        Mailboxes { services: self.services.clone(), workspace: self.workspace.clone() }
    }

    /// The user's connections, for the job that ends one.
    pub fn connections(&self) -> Connections {
        Connections {
            services: self.services.clone(),
            workspace: self.workspace.clone(),
            user: self.user.clone(),
            asked_at: self.created_at,
        }
    }

    pub fn workspace(&self) -> &str {
        &self.workspace
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    /// How many of its gate's permits the job holds.
    pub fn permits(&self) -> u16 {
        self.permits
    }

    /// Chance, in `0.0..1.0`: for waits that should not fall together.
    pub fn chance(&self) -> f64 {
        rand::random()
    }

    /// The connection the job acts through; a kind that declared an integration always has one.
    pub fn connection(&self) -> Result<&Connection, Failure> {
        self.connection
            .as_ref()
            .ok_or_else(|| Failure::reject("no_integration", "this kind declares no integration"))
    }
}
