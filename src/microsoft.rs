//! Microsoft as one process sees it: clients are made per connection, from one HTTP client and one vault.
//!
//! The invariant: a client can only speak as the connection it was made for, to the hosts of the settings.

use std::sync::Arc;

use url::Url;

use crate::auth::TokenSource;
use crate::clock::Clock;
use crate::config;
use crate::cool_down::{CoolDown, CoolDowns};
use crate::dataverse::metadata::Definitions;
use crate::dataverse::{Dataverse, host_patterns};
use crate::graph::Graph;
use crate::http::Http;
use crate::outcome::{Cause, Failure};
use crate::store::Store;
use crate::store::connection::Connection;

#[derive(Clone)]
pub struct Microsoft {
    pub http: Http,
    pub tokens: Arc<dyn TokenSource>,
    pub clock: Clock,
    pub graph_url: Url,
    pub discovery_url: Url,
    pub dataverse_hosts: Vec<String>,
    definitions: Definitions,
    cool_downs: CoolDowns,
}

impl Microsoft {
    pub fn new(settings: &config::Microsoft, http: Http, tokens: Arc<dyn TokenSource>, clock: Clock) -> Self {
        Self {
            http,
            tokens,
            cool_downs: CoolDowns::new(clock.clone()),
            clock,
            graph_url: settings.graph_url(),
            discovery_url: settings.discovery_url(),
            dataverse_hosts: host_patterns(&settings.dataverse_hosts),
            definitions: Definitions::default(),
        }
    }

    pub fn graph(&self, connection: &Connection) -> Graph {
        Graph::new(self.http.clone(), self.tokens.of(connection), self.clock.clone(), &self.graph_url)
    }

    /// Clients hear of what other processes were told, too.
    pub fn listen(&mut self, store: Store) {
        self.cool_downs.listen(store);
    }

    /// What the clients of this process know of those behind a gate.
    pub fn cool_down(&self, gate: &str) -> CoolDown {
        self.cool_downs.of(gate)
    }

    /// The environment that the connection's consent was given for.
    pub fn dataverse(&self, connection: &Connection) -> Result<Dataverse, Failure> {
        let environment = connection.environment.as_deref().and_then(|url| Url::parse(url).ok());
        let environment = environment.ok_or_else(|| {
            let message = "no Dynamics environment is chosen for this connection";
            Failure::park(Cause::NeedsAdmin, "no_environment", message)
        })?;
        Ok(Dataverse::new(
            self.http.clone(),
            self.tokens.of(connection),
            self.clock.clone(),
            &environment,
            &self.dataverse_hosts,
            self.definitions.clone(),
        )?)
    }
}
