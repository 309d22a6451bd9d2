//! `$batch`: parts in order, change sets all or nothing.
//!
//! `webapi/execute-batch-operations-using-web-api`: 1,000 parts at most, every line ends with CRLF, a change set holds no
//! GET, and it stops at the first error unless `odata.continue-on-error` is preferred.

use std::collections::HashMap;
use std::fmt::Write as _;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::json;

use super::error::CrmError;
use super::perform::{Reply, Request, perform};
use super::render::Preferences;
use super::rights::Rules;
use super::store::{Actor, Organisation};

const MOST: usize = 1_000;

pub(crate) fn serve(
    org: &mut Organisation,
    rules: &mut Rules,
    actor: &Actor,
    request: &Request,
) -> Result<Response, CrmError> {
    let unreadable = || CrmError::payload("Stream was not readable.");
    let text = std::str::from_utf8(&request.body).map_err(|_| unreadable())?;
    if text.replace("\r\n", "").contains('\n') {
        return Err(unreadable());
    }
    let boundary = boundary(&request.headers).ok_or_else(unreadable)?;
    let carry_on = Preferences::of(&request.headers).continue_on_error;
    let mut body = String::new();
    let mut count = 0;
    let mut stopped = None;
    for part in parts(text, &boundary).ok_or_else(unreadable)? {
        let (headers, content) = split(part).ok_or_else(unreadable)?;
        let (answer, failed) = if let Some(inner) = self::boundary(&headers) {
            let before = (org.rows.clone(), org.writes.len());
            let done = change_set(org, rules, actor, request, content, &inner, &mut count);
            if done.as_ref().map_or(true, |(_, failed)| failed.is_some()) {
                org.rows = before.0;
                org.writes.truncate(before.1);
            }
            done?
        } else {
            let inner = inner_request(request, content, &HashMap::new(), &mut count)?;
            let (reply, failed) = answered(perform(org, rules, actor, &inner));
            (as_part(&reply, None), failed)
        };
        body.push_str("--batchresponse_sim\r\n");
        body.push_str(&answer);
        if failed.is_some() && !carry_on {
            stopped = failed;
            break;
        }
    }
    body.push_str("--batchresponse_sim--\r\n");
    let mut response = Response::new(Body::from(body));
    // "The batch error represents the error of the first failing request."
    *response.status_mut() = stopped.unwrap_or(StatusCode::OK);
    let kind = HeaderValue::from_static("multipart/mixed; boundary=batchresponse_sim");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// The answer, and the status of the part that failed. The caller takes back what was done before it.
fn change_set(
    org: &mut Organisation,
    rules: &mut Rules,
    actor: &Actor,
    outer: &Request,
    content: &str,
    boundary: &str,
    count: &mut usize,
) -> Result<(String, Option<StatusCode>), CrmError> {
    let unreadable = || CrmError::payload("Stream was not readable.");
    let mut made: HashMap<String, String> = HashMap::new();
    let mut text = String::from("Content-Type: multipart/mixed; boundary=changesetresponse_sim\r\n\r\n");
    for part in parts(content, boundary).ok_or_else(unreadable)? {
        let (headers, inner) = split(part).ok_or_else(unreadable)?;
        let content_id = headers.get("content-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let content_id = content_id.ok_or_else(|| {
            CrmError::new(StatusCode::BAD_REQUEST, "0x80060888", "Content-ID is missing in a change set.")
        })?;
        let request = inner_request(outer, inner, &made, count)?;
        if request.method == Method::GET {
            return Err(CrmError::payload("A change set cannot hold a GET request."));
        }
        let (reply, failed) = answered(perform(org, rules, actor, &request));
        if failed.is_some() {
            return Ok((as_part(&reply, Some(&content_id)), failed));
        }
        if let Some((_, address)) = reply.headers.iter().find(|(name, _)| *name == "odata-entityid") {
            made.insert(content_id.clone(), address.clone());
        }
        text.push_str("--changesetresponse_sim\r\n");
        text.push_str(&as_part(&reply, Some(&content_id)));
    }
    text.push_str("--changesetresponse_sim--\r\n");
    Ok((text, None))
}

fn answered(result: Result<Reply, CrmError>) -> (Reply, Option<StatusCode>) {
    match result {
        Ok(reply) => (reply, None),
        Err(error) => {
            let body = json!({"error": {"code": error.code, "message": error.message}});
            (Reply { status: error.status, headers: Vec::new(), body: Some(body) }, Some(error.status))
        }
    }
}

fn as_part(reply: &Reply, content_id: Option<&str>) -> String {
    let mut text = String::from("Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n");
    if let Some(id) = content_id {
        let _ = write!(text, "Content-ID: {id}\r\n");
    }
    let reason = reply.status.canonical_reason().unwrap_or_default();
    let _ = write!(text, "\r\nHTTP/1.1 {} {reason}\r\n", reply.status.as_u16());
    for (name, value) in &reply.headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text.push_str("OData-Version: 4.0\r\n");
    if let Some(body) = &reply.body {
        let _ = write!(text, "Content-Type: application/json; odata.metadata=minimal\r\n\r\n{body}\r\n");
    } else {
        text.push_str("\r\n\r\n");
    }
    text
}

fn boundary(headers: &HeaderMap) -> Option<String> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let rest = kind.strip_prefix("multipart/mixed")?.split_once("boundary=")?.1;
    Some(rest.split(';').next()?.trim().trim_matches('"').to_owned())
}

fn parts<'a>(text: &'a str, boundary: &str) -> Option<Vec<&'a str>> {
    let (all, _) = text.split_once(&format!("--{boundary}--"))?;
    let delimiter = format!("--{boundary}\r\n");
    let pieces: Vec<&str> = all.split(delimiter.as_str()).skip(1).collect();
    Some(pieces.into_iter().map(|piece| piece.strip_suffix("\r\n").unwrap_or(piece)).collect())
}

/// Headers, and what follows the empty line.
fn split(text: &str) -> Option<(HeaderMap, &str)> {
    let text = text.trim_start_matches("\r\n");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text.trim_end(), ""));
    let mut headers = HeaderMap::new();
    for line in head.split("\r\n").filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.insert(HeaderName::try_from(name.trim()).ok()?, HeaderValue::try_from(value.trim()).ok()?);
    }
    Some((headers, body))
}

fn inner_request(
    outer: &Request,
    text: &str,
    made: &HashMap<String, String>,
    count: &mut usize,
) -> Result<Request, CrmError> {
    *count += 1;
    if *count > MOST {
        return Err(CrmError::payload("The batch has too many parts."));
    }
    let unreadable = || CrmError::payload("Stream was not readable.");
    let (line, rest) = text.trim_start_matches("\r\n").split_once("\r\n").unwrap_or((text, ""));
    let mut words = line.split(' ');
    let method = words.next().and_then(|word| Method::try_from(word).ok()).ok_or_else(unreadable)?;
    let target = words.next().ok_or_else(unreadable)?;
    let (headers, body) = if rest.starts_with("\r\n") {
        (HeaderMap::new(), rest.trim_start_matches("\r\n"))
    } else {
        split(rest).ok_or_else(unreadable)?
    };
    let mut body = body.to_owned();
    let mut target = target.to_owned();
    for (id, address) in made {
        body = body.replace(&format!("\"${id}\""), &format!("\"{address}\""));
        if target == format!("${id}") || target.starts_with(&format!("${id}/")) {
            target = target.replacen(&format!("${id}"), address, 1);
        }
    }
    if let Some(id) = undeclared(&target).or_else(|| body.split('"').find_map(undeclared)) {
        let message = format!("Content-ID Reference: '{id}' does not exist in the batch context.");
        return Err(CrmError::new(StatusCode::BAD_REQUEST, "0x80060888", message));
    }
    // Absolute, from the root, or relative to the service.
    let root = outer.base.find("/api/data/").map_or("", |at| &outer.base[at..]);
    let path = target.strip_prefix(outer.base.as_str()).or_else(|| target.strip_prefix(root));
    let path = path.unwrap_or(target.trim_start_matches('/'));
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    Ok(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Bytes::from(body),
        base: outer.base.clone(),
    })
}

/// A `$1` that nothing before it declared.
fn undeclared(text: &str) -> Option<&str> {
    let number = text.strip_prefix('$')?.split('/').next()?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}
