//! The simulator alone, as a program.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// A strict simulator of Entra ID, Microsoft Graph and Dataverse.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9365")]
    listen: SocketAddr,
    /// Serve https with a certificate of the simulator's own authority.
    #[arg(long)]
    tls: bool,
    /// Write the authority's certificate (PEM) here.
    #[arg(long, value_name = "FILE", requires = "tls")]
    ca_out: Option<PathBuf>,
    /// Seed of everything that is drawn by chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let options = m365_sim::Options { listen: arguments.listen, tls: arguments.tls, seed: arguments.seed };
    let running = m365_sim::start(options).await?;
    if let (Some(path), Some(pem)) = (&arguments.ca_out, running.ca_pem()) {
        std::fs::write(path, pem)?;
    }
    println!("m365-sim on {} (controls: {}/_sim)", running.base_url(), running.base_url());
    tokio::signal::ctrl_c().await?;
    running.shutdown().await;
    Ok(())
}
