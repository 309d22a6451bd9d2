//! Where the broker is and how to get there in bounded time.
//!
//! The invariant: the password leaves this file only inside the handshake; whatever is printed is `host:port/vhost`.

use std::io;
use std::path::Path;
use std::time::Duration;

use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::{Host, Url};

use super::fault::Fault;
use crate::broker::BrokerError;

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Seconds. A dead peer is noticed after two of them; below 5 s a busy machine looks dead.
const HEARTBEAT: u16 = 10;

pub(super) struct Address {
    uri: AMQPUri,
    ca: Option<String>,
}

impl Address {
    pub(super) async fn parse(url: &SecretString, ca: Option<&Path>) -> Result<Self, BrokerError> {
        // The parsers' own messages quote the whole URL, with its password.
        let wrong = || {
            BrokerError::Misconfigured(
                "broker.url: expected `embedded` or amqp[s]://user:password@host[:port][/vhost]".into(),
            )
        };
        let text = url.expose_secret();
        let mut uri: AMQPUri = text.parse().map_err(|_| wrong())?;
        let host = Url::parse(text).map_err(|_| wrong())?;
        match host.host().map(|host| host.to_owned()) {
            Some(Host::Ipv6(address)) => uri.authority.host = address.to_string(),
            Some(_) => {}
            None => return Err(wrong()),
        }
        if uri.vhost.is_empty() {
            "/".clone_into(&mut uri.vhost);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let ca = match ca {
            None => None,
            Some(path) => Some(tokio::fs::read_to_string(path).await.map_err(|error| {
                BrokerError::Misconfigured(format!(
                    "broker.ca_file: {} cannot be read: {error}",
                    path.display()
                ))
            })?),
        };
        if ca.as_ref().is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
            return Err(BrokerError::Misconfigured("broker.ca_file: expected certificates in PEM".into()));
        }
        Ok(Self { uri, ca })
    }

    /// `host:port/vhost`, fit for logs.
    pub(super) fn shown(&self) -> String {
        format!(
            "{}:{}/{}",
            self.uri.authority.host,
            self.uri.authority.port,
            self.uri.vhost.trim_start_matches('/')
        )
    }

    pub(super) fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// The answer to the handshake's question who we are.
    pub(super) fn plain(&self) -> Vec<u8> {
        let user = &self.uri.authority.userinfo;
        format!("\0{}\0{}", user.username, user.password).into_bytes()
    }

    /// The way there without lapin on it.
    pub(super) async fn stream(
        &self,
    ) -> io::Result<impl futures::AsyncRead + futures::AsyncWrite + Unpin + use<>> {
        let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
        let tls = OwnedTLSConfig { identity: None, cert_chain: self.ca.clone() };
        timeout(PROBE_TIMEOUT, self.uri.connect_with_config_async(tls.as_ref(), &runtime)).await?
    }

    pub(super) async fn connect(&self, name: &str) -> Result<Connection, Fault> {
        self.probe().await.map_err(|error| self.unreachable(&error.to_string()))?;
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig { identity: None, cert_chain: self.ca.clone() };
        let connecting = Connection::connector(
            self.uri.clone(),
            lapin::runtime::default_runtime()?,
            async move |uri, runtime| {
                // Bounded in here, where giving up also ends the thread that lapin started for this connection.
                let stream = timeout(PROBE_TIMEOUT, uri.connect_with_config_async(tls.as_ref(), &runtime));
                let stream = stream.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut));
                stream.flatten().map_err(lapin::Error::from)
            },
            properties,
        );
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Err(_) => Err(self.unreachable("the handshake did not end in time")),
            Ok(Err(error)) => {
                let fault = Fault::from(error);
                if fault.code == 0 { Err(self.unreachable(&fault.text)) } else { Err(fault) }
            }
            Ok(Ok(connection)) => Ok(connection),
        }
    }

    /// Asks for one byte before lapin is let loose: lapin waits for ever on a port that accepts and says nothing, and
    /// every attempt given up leaves a thread behind.
    async fn probe(&self) -> io::Result<()> {
        let asking = async {
            let mut stream =
                TcpStream::connect((self.uri.authority.host.as_str(), self.uri.authority.port)).await?;
            if self.uri.scheme == AMQPScheme::AMQP {
                stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
                stream.read_u8().await?;
            }
            Ok(())
        };
        timeout(PROBE_TIMEOUT, asking).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no AMQP server answered in time"))
        })
    }

    fn unreachable(&self, why: &str) -> Fault {
        Fault::transient(format!("{}: {why}", self.shown()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wrong_url_is_refused_without_its_password() {
        for url in
            ["foo", "http://u:hunter2@h/", "amqp:hunter2", "amqp://u:hunter2@h:99999/", "amqp://u:hunter2@/"]
        {
            let error = Address::parse(&SecretString::from(url), None).await.err().expect(url).to_string();
            assert!(error.contains("broker.url") && !error.contains("hunter2"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_default_virtual_host_and_ipv6_are_understood() {
        let cases = [
            ("amqp://u:p@rabbit", "rabbit:5672/"),
            ("amqps://u:p@rabbit/", "rabbit:5671/"),
            ("amqp://u:p@[::1]:1234/%2f", "::1:1234/"),
            ("amqp://u:p@127.0.0.1/fleet", "127.0.0.1:5672/fleet"),
        ];
        for (url, shown) in cases {
            assert_eq!(Address::parse(&SecretString::from(url), None).await.expect(url).shown(), shown);
        }
    }
}
