//! A publisher that writes AMQP by hand, for bytes that no client library lets out.
//!
//! The invariant: what it was told to publish has reached the broker when it returns.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
/// Below the frame size that RabbitMQ offers.
const LONGEST_PART: usize = 64 * 1024;

/// The bytes of a message where a library would have text.
#[derive(Default)]
pub struct Crude<'a> {
    pub routing_key: &'a [u8],
    pub message_id: Option<&'a [u8]>,
    /// A table of headers with this one name and a text.
    pub header: Option<&'a [u8]>,
    /// The text of that header.
    pub value: &'a [u8],
    pub body: &'a [u8],
}

/// Publishes on the virtual host `/`, without confirms.
pub async fn publish(url: &str, exchange: &str, crude: &Crude<'_>) -> std::io::Result<()> {
    let url = Url::parse(url).expect("a URL");
    let address = (url.host_str().expect("a host"), url.port().unwrap_or(5672));
    let mut wire = Wire(TcpStream::connect(address).await?);
    wire.0.write_all(b"AMQP\x00\x00\x09\x01").await?;
    wire.expect(10, 10).await?;
    let user = if url.username().is_empty() { "guest" } else { url.username() };
    let secret = format!("\0{user}\0{}", url.password().unwrap_or("guest"));
    let mut start_ok = vec![0, 0, 0, 0];
    start_ok.extend(short(b"PLAIN"));
    start_ok.extend(u32::try_from(secret.len()).expect("a short secret").to_be_bytes());
    start_ok.extend(secret.as_bytes());
    start_ok.extend(short(b"en_US"));
    wire.method(0, 10, 11, &start_ok).await?;
    let mut tuned = wire.expect(10, 30).await?;
    // No heartbeat: this connection lives for a moment.
    tuned.truncate(6);
    tuned.extend([0, 0]);
    wire.method(0, 10, 31, &tuned).await?;
    wire.method(0, 10, 40, &[short(b"/"), vec![0, 0]].concat()).await?;
    wire.expect(10, 41).await?;
    wire.method(1, 20, 10, &[0]).await?;
    wire.expect(20, 11).await?;

    let publish = [vec![0, 0], short(exchange.as_bytes()), short(crude.routing_key), vec![0]].concat();
    wire.method(1, 60, 40, &publish).await?;
    let (mut flags, mut properties) = (0_u16, Vec::new());
    if let Some(name) = crude.header {
        flags |= 1 << 13;
        let length = u32::try_from(crude.value.len()).expect("a short text").to_be_bytes();
        let table = [&short(name)[..], b"S", &length, crude.value].concat();
        properties.extend(u32::try_from(table.len()).expect("a short table").to_be_bytes());
        properties.extend(table);
    }
    if let Some(id) = crude.message_id {
        flags |= 1 << 7;
        properties.extend(short(id));
    }
    let mut header = vec![0, 60, 0, 0];
    header.extend((crude.body.len() as u64).to_be_bytes());
    header.extend(flags.to_be_bytes());
    header.extend(properties);
    wire.frame(HEADER, 1, &header).await?;
    for part in crude.body.chunks(LONGEST_PART) {
        wire.frame(BODY, 1, part).await?;
    }
    // The broker works a channel off in order: once it says goodbye, the message is in.
    wire.method(1, 20, 40, &[0, 200, 0, 0, 0, 0, 0]).await?;
    wire.expect(20, 41).await?;
    Ok(())
}

struct Wire(TcpStream);

impl Wire {
    async fn method(
        &mut self,
        channel: u16,
        class: u16,
        method: u16,
        arguments: &[u8],
    ) -> std::io::Result<()> {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.frame(METHOD, channel, &payload).await
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> std::io::Result<()> {
        let size = u32::try_from(payload.len()).expect("a short frame");
        let frame = [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, &[0xce]].concat();
        self.0.write_all(&frame).await
    }

    /// The arguments of the next method, which must be this one.
    async fn expect(&mut self, class: u16, method: u16) -> std::io::Result<Vec<u8>> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.0.read_exact(&mut payload).await?;
        payload.pop();
        let wanted = [class.to_be_bytes(), method.to_be_bytes()].concat();
        if head[0] != METHOD || !payload.starts_with(&wanted) {
            return Err(std::io::Error::other(format!("unexpected frame {head:?} {payload:?}")));
        }
        Ok(payload.split_off(4))
    }
}

fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("at most 255 bytes");
    [&[length], text].concat()
}
