//! Takes out of a queue what lapin cannot read.
//!
//! RabbitMQ carries any bytes in a message id, a routing key or a header's name. lapin wants UTF-8 there and drops the
//! whole connection otherwise, and the message comes again: one such message would stop every consumer of the fleet,
//! for ever when it lies among the dead letters. So after such an end the queue is read once by hand, and what cannot
//! be read is published to the dead letters under properties of our own.
//!
//! The invariant: a message is acknowledged here only after its copy was confirmed; all others go back untouched.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use lapin::protocol::basic::parse_properties;
use tokio::time::timeout;
use uuid::Uuid;

use super::Core;
use crate::broker::{BrokerError, MAX_BODY, Outgoing, Target, header};

const RESCUE_TIMEOUT: Duration = Duration::from_secs(30);
/// What comes back from a lost session lies near the head of its queue.
const LOOKED_AT: usize = 256;
/// Kept as evidence.
const LONGEST_EVIDENCE: usize = 4096;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;

impl Core {
    /// Looks through the head of a queue; by one consumer at a time.
    pub(super) async fn rescue(&self, queue: &str) {
        let _alone = self.rescuing.lock().await;
        let outcome = tokio::select! {
            outcome = timeout(RESCUE_TIMEOUT, self.look_through(queue)) => outcome,
            () = self.closing.cancelled() => return,
        };
        let outcome = outcome.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
        match outcome {
            Ok(0) => {}
            Ok(moved) => tracing::warn!(
                queue,
                moved,
                "messages with unreadable properties were moved to the dead letters"
            ),
            Err(error) => {
                tracing::error!(queue, %error, "unreadable messages could not be moved to the dead letters");
            }
        }
    }

    async fn look_through(&self, queue: &str) -> io::Result<usize> {
        let address = &self.consume.address;
        let mut wire = Wire::open(address.stream().await?, &address.plain(), address.vhost()).await?;
        let mut moved = 0;
        for _ in 0..LOOKED_AT {
            let Some(found) = wire.get(queue).await? else { break };
            if !found.readable() {
                let (tag, copy) = (found.tag, found.copy());
                let answer: Result<(), BrokerError> =
                    self.publisher.publish(&[copy]).await.answers.into_iter().collect();
                answer.map_err(io::Error::other)?;
                wire.ack(tag).await?;
                moved += 1;
            }
        }
        wire.close().await?;
        Ok(moved)
    }
}

/// A message as bytes.
struct Found {
    tag: u64,
    exchange: Vec<u8>,
    routing_key: Vec<u8>,
    properties: Vec<u8>,
    body: Vec<u8>,
}

impl Found {
    /// Exactly lapin's own judgement.
    fn readable(&self) -> bool {
        [&self.exchange, &self.routing_key].iter().all(|name| std::str::from_utf8(name).is_ok())
            && parse_properties(self.properties.as_slice()).is_ok()
    }

    fn copy(self) -> Outgoing {
        let mut kind = String::from_utf8_lossy(&self.routing_key).replace('\0', "\u{fffd}");
        kind.truncate(kind.floor_char_boundary(255));
        let evidence = &self.properties[..self.properties.len().min(LONGEST_EVIDENCE)];
        // The same message found again, after an acknowledgement that did not arrive, gets the same id.
        let whole = [self.routing_key.as_slice(), &self.properties, &self.body].concat();
        let mut body = self.body;
        body.truncate(MAX_BODY);
        Outgoing {
            message_id: Uuid::new_v5(&Uuid::NAMESPACE_OID, &whole),
            target: Target::Dead { kind },
            content_type: "application/octet-stream",
            body: body.into(),
            headers: [
                (header::CODE, "invalid_properties".to_owned()),
                (header::MESSAGE, "a property, a header's name or the routing key is not UTF-8".to_owned()),
                ("x-followthrough-properties", STANDARD.encode(evidence)),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        }
    }
}

/// The few verbs of AMQP that this needs, on channel 1.
struct Wire<S> {
    stream: S,
    frame_max: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn open(stream: S, plain: &[u8], vhost: &str) -> io::Result<Self> {
        let mut wire = Self { stream, frame_max: 0 };
        wire.stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        wire.expect(10, 10).await?;
        let start_ok = [&[0; 4][..], &short("PLAIN"), &long(plain), &short("en_US")].concat();
        wire.method(0, 10, 11, &start_ok).await?;
        let tune = wire.expect(10, 30).await?;
        wire.frame_max = usize::try_from(number(&tune, 2, 4)?).unwrap_or(0);
        // No heartbeat: it is over in seconds.
        wire.method(0, 10, 31, &[&tune[..6], &[0, 0]].concat()).await?;
        wire.method(0, 10, 40, &[&short(vhost)[..], &[0, 0]].concat()).await?;
        wire.expect(10, 41).await?;
        wire.method(1, 20, 10, &[0]).await?;
        wire.expect(20, 11).await?;
        Ok(wire)
    }

    async fn get(&mut self, queue: &str) -> io::Result<Option<Found>> {
        self.method(1, 60, 70, &[&[0, 0][..], &short(queue), &[0]].concat()).await?;
        let (kind, got) = self.frame().await?;
        if kind == METHOD && got.starts_with(&[0, 60, 0, 72]) {
            return Ok(None);
        }
        if kind != METHOD || !got.starts_with(&[0, 60, 0, 71]) {
            return Err(unexpected(kind, &got));
        }
        let tag = number(&got, 4, 8)?;
        let exchange = short_at(&got, 13)?;
        let routing_key = short_at(&got, 14 + exchange.len())?;
        let (kind, head) = self.frame().await?;
        if kind != HEADER || head.len() < 14 {
            return Err(unexpected(kind, &head));
        }
        let size = number(&head, 4, 8)?;
        let mut body = Vec::new();
        while (body.len() as u64) < size {
            let (kind, part) = self.frame().await?;
            if kind != BODY {
                return Err(unexpected(kind, &part));
            }
            body.extend(part);
        }
        Ok(Some(Found { tag, exchange, routing_key, properties: head[12..].to_vec(), body }))
    }

    async fn ack(&mut self, tag: u64) -> io::Result<()> {
        self.method(1, 60, 80, &[&tag.to_be_bytes()[..], &[0]].concat()).await
    }

    /// Awaited, because the broker answers in order: after it the acknowledgements have arrived.
    async fn close(&mut self) -> io::Result<()> {
        self.method(0, 10, 50, &[0, 200, 0, 0, 0, 0, 0]).await?;
        self.expect(10, 51).await.map(drop)
    }

    async fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) -> io::Result<()> {
        let size = u32::try_from(arguments.len() + 4).map_err(io::Error::other)?;
        let frame = [
            &[METHOD][..],
            &channel.to_be_bytes(),
            &size.to_be_bytes(),
            &class.to_be_bytes(),
            &method.to_be_bytes(),
            arguments,
            &[FRAME_END],
        ];
        self.stream.write_all(&frame.concat()).await?;
        self.stream.flush().await
    }

    /// The arguments of the next frame, which must be this method.
    async fn expect(&mut self, class: u16, method: u16) -> io::Result<Vec<u8>> {
        let (kind, mut payload) = self.frame().await?;
        if kind != METHOD || !payload.starts_with(&[class.to_be_bytes(), method.to_be_bytes()].concat()) {
            return Err(unexpected(kind, &payload));
        }
        Ok(payload.split_off(4))
    }

    async fn frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).await?;
        let size = usize::try_from(number(&head, 3, 4)?).map_err(io::Error::other)?;
        if self.frame_max > 0 && size > self.frame_max {
            return Err(io::Error::other("a frame above the agreed size"));
        }
        let mut payload = vec![0; size + 1];
        self.stream.read_exact(&mut payload).await?;
        payload.pop();
        Ok((head[0], payload))
    }
}

fn unexpected(kind: u8, payload: &[u8]) -> io::Error {
    let numbers = &payload[..payload.len().min(4)];
    // A close carries a text for people behind its code.
    let text = payload.get(7..).filter(|_| kind == METHOD).map(String::from_utf8_lossy).unwrap_or_default();
    io::Error::other(format!("unexpected frame {kind} {numbers:?} {text}"))
}

fn number(payload: &[u8], at: usize, width: usize) -> io::Result<u64> {
    let bytes = payload.get(at..at + width).ok_or(io::ErrorKind::InvalidData)?;
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn short_at(payload: &[u8], at: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(*payload.get(at).ok_or(io::ErrorKind::InvalidData)?);
    Ok(payload.get(at + 1..at + 1 + length).ok_or(io::ErrorKind::InvalidData)?.to_vec())
}

/// Names of ours, which are checked at start to fit.
fn short(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[length], &text.as_bytes()[..usize::from(length)]].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}
