//! The one binary: this list of jobs, and the platform's command line.
#[tokio::main]
async fn main() -> std::process::ExitCode {
    followthrough::cli::main(followthrough_workers::JOBS).await
}
