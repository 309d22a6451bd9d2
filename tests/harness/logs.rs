//! What every process of this test run said: all log lines in one buffer, and where the product's code panicked.
//!
//! The invariant: nothing that a subscriber could have written is left out, so a search for a secret proves something.

use std::io;
use std::panic;
use std::sync::{LazyLock, Mutex, Once, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Everything of ours; of others what an operator would turn on to look at the wire.
const FILTER: &str = "debug,followthrough=trace,followthrough_workers=trace,m365_sim=off,sqlx=info";

static LINES: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(Mutex::default);
/// Of these, the warnings: looking for one in gigabytes of lines would hold up everybody who writes there.
static WARNINGS: LazyLock<Mutex<Vec<String>>> = LazyLock::new(Mutex::default);
const WARN: &[u8] = b"\"level\":\"WARN\"";
/// Where a line says its level.
const LEVEL: usize = 64;
static PANICS: LazyLock<Mutex<Vec<String>>> = LazyLock::new(Mutex::default);

#[derive(Clone, Copy)]
struct Buffer;

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        // A write is a line.
        if bytes.windows(WARN.len()).take(LEVEL).any(|part| part == WARN) {
            let line = String::from_utf8_lossy(bytes).into_owned();
            WARNINGS.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Buffer {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// From now on all of this process is listened to. The first call counts.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let lines = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_span_list(true)
            .with_span_events(FmtSpan::CLOSE)
            .with_env_filter(EnvFilter::new(FILTER))
            .with_writer(Buffer);
        // Somebody else's subscriber stays; the law of planted secrets notices that it heard nothing.
        let _ = lines.try_init();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // A failed assertion of a story is located in tests/it; a job told to panic in tests/harness.
            let location = info.location().map(ToString::to_string).unwrap_or_default();
            if !location.starts_with("tests/it") && !location.starts_with("tests/harness") {
                PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(location);
            }
            before(info);
        }));
    });
}

/// All lines so far.
pub fn lines() -> String {
    String::from_utf8_lossy(&LINES.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// How many warnings hold all of these words.
pub fn warnings(words: &[&str]) -> usize {
    let warnings = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
    warnings.iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// Where code panicked that is neither a story nor of the harness.
pub fn panics() -> Vec<String> {
    PANICS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
