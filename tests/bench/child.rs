//! Child processes: this same program, re-executed, and what the kernel says of it.
//!
//! The invariant: no child outlives this process; each one ends when its standard input does.

use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use followthrough::clock::Clock;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// What the kernel counts CPU time in (`USER_HZ`, the same on every Linux).
const TICK: Duration = Duration::from_millis(10);

pub(crate) struct Process {
    child: Child,
    /// Waiting would close it, and the child would take us for gone.
    _input: Option<ChildStdin>,
    pub(crate) pid: u32,
}

/// One look at a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Look {
    pub(crate) cpu: Duration,
    /// Bytes.
    pub(crate) resident: u64,
    pub(crate) peak: u64,
}

impl Look {
    /// Of two processes, one after the other.
    pub(crate) fn and(self, next: Self) -> Self {
        Self { cpu: self.cpu + next.cpu, resident: next.resident, peak: self.peak.max(next.peak) }
    }
}

impl Process {
    pub(crate) fn start(arguments: &[String]) -> std::io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        Ok(Self { _input: child.stdin.take(), child, pid })
    }

    /// The first line it says.
    pub(crate) async fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if let Some(output) = self.child.stdout.as_mut() {
            BufReader::new(output).read_line(&mut line).await?;
        }
        Ok(line.trim().to_owned())
    }

    pub(crate) async fn wait(&mut self) -> std::io::Result<()> {
        self.child.wait().await.map(drop)
    }

    /// SIGTERM, and then the time that a drain takes.
    pub(crate) async fn drain(mut self) -> std::io::Result<()> {
        Command::new("kill").args(["-TERM", &self.pid.to_string()]).status().await?;
        self.wait().await
    }

    pub(crate) async fn kill(mut self) -> std::io::Result<()> {
        self.child.kill().await
    }

    pub(crate) fn look(&self) -> Look {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.pid));
        let stat = read("stat").unwrap_or_default();
        // Behind the name, which may hold spaces: state is field 3, utime 14, stime 15.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let ticks = |at: usize| fields.get(at - 3).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
        let status = read("status").unwrap_or_default();
        let kilobytes = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0)
        };
        Look {
            cpu: TICK * (ticks(14) + ticks(15)),
            resident: kilobytes("VmRSS:") * 1024,
            peak: kilobytes("VmHWM:") * 1024,
        }
    }
}

/// For a child: resolves when whoever started it is gone.
pub(crate) async fn parent_gone() {
    let (gone, told) = tokio::sync::oneshot::channel();
    // A thread of its own: a runtime would wait for a blocking task at its end.
    std::thread::spawn(move || {
        let mut nothing = [0; 1];
        while matches!(std::io::stdin().read(&mut nothing), Ok(1..)) {}
        let _ = gone.send(());
    });
    let _ = told.await;
}

pub(crate) async fn pause(millis: u64) {
    Clock::system().sleep(Duration::from_millis(millis)).await;
}
