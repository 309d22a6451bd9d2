//! A strict simulator of the parts of Entra ID, Microsoft Graph and Dataverse that a delegated app meets.
//!
//! Written from Microsoft's documents; each behaviour names its page where it is made. It refuses what Microsoft
//! refuses, so that a program which is right here has a good chance of being right there. It imports nothing of
//! the product it tests.
//!
//! Reading order:
//!
//! - [`state`]: [`Sim`], the handle to everything; [`clock`]: the virtual clock; [`directory`]: tenants, users, shared mailboxes.
//! - [`server`]: the accept loop, whose connections can be torn down without an answer; [`tls`]: its own authority.
//! - [`gateway`]: what every simulated call goes through: the [`journal`] (request log), the [`fault`]s, the
//!   [`referee`] with its throttles, request ids.
//! - [`answer`]: the error shapes; [`auth`]: who is calling a resource, and is the token good for it.
//! - [`entra`]: sign-in, consent, tokens. [`graph`]: mail and calendar. [`dataverse`]: rows and metadata,
//!   [`discovery`]: which environments a user has.
//! - [`controls`]: `/_sim`, the levers. Everything there is also a method of [`Sim`]. [`scenario`]: some of them, named.
//!
//! ```no_run
//! # async fn f() -> std::io::Result<()> {
//! let running = m365_sim::start(m365_sim::Options::default()).await?;
//! running.sim.auto_sign_in(Some("ada@acme.example"));
//! println!("{}", running.base_url());
//! running.shutdown().await;
//! # Ok(()) }
//! ```

pub mod answer;
pub mod auth;
pub mod clock;
pub mod controls;
pub mod dataverse;
pub mod directory;
pub mod discovery;
pub mod entra;
pub mod fault;
pub mod gateway;
pub mod graph;
pub mod journal;
pub mod referee;
pub mod scenario;
pub mod server;
pub mod state;
pub mod tls;

pub use fault::Fault;
pub use server::{Options, Running, start};
pub use state::Sim;
