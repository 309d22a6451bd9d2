//! Upload sessions, for files of 3 MB and more.
//! <https://learn.microsoft.com/graph/outlook-large-attachments>
//!
//! The invariant: the address of a session is a secret that needs no token: it is kept out of every log, no
//! token is sent to it, and it is used only where it leads to Microsoft. A file is attached by its last
//! chunk, so there is no half file.

use bytes::Bytes;
use http::header::CONTENT_RANGE;
use http::{HeaderValue, Method};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;
use url::{Host, Url};

use super::{Graph, GraphError, Refusal, parse};
use crate::http::{Answer, Call, Repeat};

const PUT: &str = "graph.upload_chunk";
/// Below 4 MB, and a multiple of 320 KiB as everywhere at Microsoft.
const CHUNK: usize = 12 * 320 * 1024;
/// How often a file is taken up again where the session says, before the attempt ends.
const MOST_RESUMES: usize = 3;
/// Where Exchange Online takes uploads, in every cloud.
const HOSTS: [&str; 7] = [
    "outlook.office.com",
    "outlook.office365.com",
    "attachments.office.net",
    "outlook.office365.us",
    "outlook-dod.office365.us",
    "webmail.apps.mil",
    "partner.outlook.cn",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    upload_url: SecretString,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    next_expected_ranges: Vec<String>,
}

impl Graph {
    /// Attaches a file of 3 MB or more to a draft of the user's own mailbox; in a shared one Exchange refuses.
    pub async fn upload_file(
        &self,
        message: &str,
        name: &str,
        content_type: &str,
        content: Bytes,
    ) -> Result<(), GraphError> {
        const NAME: &str = "graph.create_upload_session";
        let item = json!({
            "attachmentType": "file", "name": name, "contentType": content_type, "size": content.len(),
        });
        let url = self.url(&["messages", message, "attachments", "createUploadSession"]);
        let call = Call::post(NAME, url).json(&json!({ "AttachmentItem": item }));
        let session: Session = parse(NAME, &self.send(call, &[201]).await?, true)?;
        let url = self.upload_url(NAME, session.upload_url.expose_secret())?;

        let (mut from, mut resumes) = (0, 0);
        loop {
            let error = match self.put_chunk(&url, &content, from).await {
                Ok(None) => return Ok(()),
                Ok(Some(next)) if next > from && next < content.len() => {
                    from = next;
                    continue;
                }
                Ok(Some(_)) => out_of_step(),
                Err(error) => error,
            };
            resumes += 1;
            if resumes > MOST_RESUMES || !worth_resuming(&error) {
                return Err(error);
            }
            // Without an answer here the file may be complete: the caller looks before it attaches again.
            let asked = self.bearer.send_without_token(Call::get("graph.upload_progress", url.clone())).await;
            match asked.ok().filter(|answer| answer.status == 200).and_then(|answer| next(&answer).ok()) {
                Some(next) if next < content.len() => from = next,
                _ => return Err(error),
            }
        }
    }

    /// Sends the chunk at `from`: where the next one begins, or `None` when the file is attached.
    async fn put_chunk(&self, url: &Url, content: &Bytes, from: usize) -> Result<Option<usize>, GraphError> {
        let end = content.len().min(from + CHUNK);
        let range = format!("bytes {from}-{}/{}", end - 1, content.len());
        let mut call = Call::new(PUT, Method::PUT, url.clone())
            .bytes("application/octet-stream", content.slice(from..end));
        if let Ok(range) = HeaderValue::from_str(&range) {
            call = call.header(CONTENT_RANGE, range);
        }
        // A chunk that arrives twice is refused: where to go on is asked instead.
        call.repeat = Repeat::Once;
        let answer = self.bearer.send_without_token(call).await.map_err(GraphError::Http)?;
        match answer.status.as_u16() {
            200 => next(&answer).map(Some),
            201 => Ok(None),
            // The session ended or counts otherwise: that says nothing of the user's rights.
            status @ (401 | 403 | 404 | 410 | 416) => Err(odd(format!("status {status} of an upload"))),
            status if answer.status.is_success() => Err(odd(format!("status {status} of an upload"))),
            _ => Err(GraphError::Refused(Refusal::read(PUT, &answer, true, self.clock.now()))),
        }
    }

    /// Microsoft's own host over TLS, or the one that Graph itself is reached at.
    fn upload_url(&self, name: &'static str, text: &str) -> Result<Url, GraphError> {
        let foreign = || GraphError::ForeignLink { call: name };
        let url = Url::parse(text).map_err(|_| foreign())?;
        let microsofts = url.scheme() == "https"
            && url.port().is_none()
            && matches!(url.host(), Some(Host::Domain(host)) if HOSTS.contains(&host));
        let plain = url.username().is_empty() && url.password().is_none();
        if plain && (microsofts || url.origin() == self.root.origin()) { Ok(url) } else { Err(foreign()) }
    }
}

/// Silence and a server's failure; whoever asks for patience (429, 503) is given it.
fn worth_resuming(error: &GraphError) -> bool {
    match error {
        GraphError::Http(_) | GraphError::Unexpected { .. } => true,
        GraphError::Refused(refusal) => refusal.status.is_server_error() && refusal.retry_after.is_none(),
        _ => false,
    }
}

/// The first byte that the session wants next, of ranges like `3932160-` and `0-99`.
fn next(answer: &Answer) -> Result<usize, GraphError> {
    let progress: Progress = parse(PUT, answer, true)?;
    let range = progress.next_expected_ranges.first();
    range.and_then(|range| range.split('-').next()?.parse().ok()).ok_or_else(out_of_step)
}

fn out_of_step() -> GraphError {
    odd("an upload session that expects no next byte".to_owned())
}

fn odd(what: String) -> GraphError {
    GraphError::Unexpected { call: PUT, what, write: true }
}

#[cfg(test)]
mod tests {
    use crate::graph::tests::graph;

    #[test]
    fn a_file_is_uploaded_to_microsoft_or_nowhere() {
        let graph = graph();
        for good in [
            "https://outlook.office.com/api/gv1.0/users('x')/messages('y')/AttachmentSessions('z')?authtoken=t",
            "https://attachments.office.net/x",
            "https://graph.microsoft.com/x",
        ] {
            assert!(graph.upload_url("test", good).is_ok(), "{good}");
        }
        for bad in [
            "http://outlook.office.com/x",
            "https://outlook.office.com:8443/x",
            "https://outlook.office.com.evil.example/x",
            "https://evil-outlook.office.com/x",
            "https://a:b@outlook.office.com/x",
            "http://127.0.0.1/x",
            "nonsense",
        ] {
            assert!(graph.upload_url("test", bad).is_err(), "{bad}");
        }
    }
}
