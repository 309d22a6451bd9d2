//! Followthrough: HOW work is carried. WHAT is done lives in the package `followthrough-workers`, which may
//! use this package; nothing here may name a job.
//!
//! In reading order:
//!
//! **A job.** [`job`] is the one declaration (a payload type with its `Spec`) and the strict reading of what
//! publishers send; [`registry`] the list of jobs without their types; [`outcome`] what a failure means;
//! [`context`] the only things a job can reach; [`effect`] how an outward write happens once.
//!
//! **Its way.** [`broker`] brings deliveries, from RabbitMQ or from a table; [`consumer`] is the loop around
//! [`attempt`], one attempt as a flat pipeline; [`turn`] keeps one busy user from holding every hand;
//! [`ledger`] claims, intends and settles, many jobs to a commit ([`batch`]); [`permission`] says which tools are allowed;
//! [`outbox`] publishes what a committed state owes, [`event`] is what publishers hear; [`dead`] keeps what
//! will not be tried again; [`submit`] is how jobs enter and re-enter from inside; [`schedule`] does what
//! nobody asks for.
//!
//! **Microsoft.** [`oauth`] turns a person's consent into a [`vault`] entry, [`vault`] refresh tokens into
//! short-lived access tokens, [`connected`] tells the rest what changed; [`http`] is the only place that
//! sends, [`auth`] a call with a user's token, [`cool_down`] keeps back one that would come too soon;
//! [`graph`] and [`dataverse`] are the clients, [`microsoft`] makes them per connection;
//! [`mailbox`] is what is known of the shared mailboxes; [`intake`] takes what Microsoft tells of their changes;
//! [`disconnect`] ends a connection with all that was begun with it.
//!
//! **The process.** [`config`] and [`cli`] are the way in; [`lifecycle`] builds a process from its settings;
//! [`fleet`] starts its roles and drains them; [`services`] is what they share; [`store`] holds every SQL
//! statement; [`api`] and [`api_key`] are the HTTP interface; [`telemetry`] is what a process tells about
//! itself; [`docs`] writes down what can be derived; [`clock`] is where time enters.

pub mod api;
pub mod api_key;
pub mod attempt;
pub mod auth;
pub mod batch;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connected;
pub mod consumer;
pub mod context;
pub mod cool_down;
pub mod dataverse;
pub mod dead;
pub mod disconnect;
pub mod docs;
pub mod effect;
pub mod event;
pub mod fleet;
pub mod graph;
pub mod http;
pub mod intake;
pub mod job;
pub mod ledger;
pub mod lifecycle;
mod listener;
pub mod mailbox;
pub mod microsoft;
pub mod oauth;
pub mod outbox;
pub mod outcome;
pub mod permission;
pub mod registry;
pub mod release;
pub mod schedule;
pub mod services;
pub mod store;
pub mod submit;
pub mod telemetry;
pub mod turn;
pub mod vault;
