//! Dataverse (Dynamics 365), for one connection and one environment.
//!
//! The invariant: an update never creates a row (it always carries `If-Match`), and no environment outside
//! the allowed hosts is called, whoever named it.
//! <https://learn.microsoft.com/power-apps/developer/data-platform/webapi/overview>

pub mod discovery;
mod error;
pub mod metadata;

use std::fmt;
use std::sync::Arc;

use http::header::{ACCEPT, IF_MATCH};
use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use url::Url;
use uuid::Uuid;

pub use self::error::{DataverseError, Refusal};
pub use self::metadata::{Definitions, Table};
use crate::auth::{Bearer, Tokens};
use crate::clock::Clock;
use crate::cool_down::CoolDown;
use crate::http::{Answer, Call, Http, Repeat, add_query, loopback};
use crate::outcome::Classify as _;

/// The environments of all clouds.
/// <https://learn.microsoft.com/power-apps/developer/data-platform/discovery-service>
const CLOUD_HOSTS: [&str; 4] =
    ["*.dynamics.com", "*.microsoftdynamics.us", "*.appsplatform.us", "*.dynamics.cn"];
const PREFER: HeaderName = HeaderName::from_static("prefer");
const ETAG: &str = "@odata.etag";
const LOOKUP_TABLE: &str = "@Microsoft.Dynamics.CRM.lookuplogicalname";

/// A client that acts as one signed-in user in one environment.
#[derive(Clone)]
pub struct Dataverse {
    bearer: Bearer,
    clock: Clock,
    environment: Arc<str>,
    root: Arc<Url>,
    definitions: Definitions,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct WhoAmI {
    pub user_id: Uuid,
    pub business_unit_id: Uuid,
    pub organization_id: Uuid,
}

/// Which row: by its id, or by the columns of an alternate key.
#[derive(Clone, PartialEq)]
pub enum Key {
    Id(Uuid),
    Alternate(Map<String, Value>),
}

/// A row as it was read.
#[derive(Clone)]
pub struct Row {
    pub etag: String,
    pub values: Map<String, Value>,
}

/// A row that a lookup points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Its logical name; unknown when Dataverse did not say.
    pub table: Option<String>,
    pub id: Uuid,
}

/// The host patterns of the settings, or those of Microsoft's clouds where none are set.
pub fn host_patterns(configured: &[String]) -> Vec<String> {
    if configured.is_empty() { CLOUD_HOSTS.map(str::to_owned).to_vec() } else { configured.to_vec() }
}

/// May this environment be called? `*.dynamics.com` allows every host below that domain and nothing else;
/// a pattern without a star allows one host. Plain http is for this machine, and this machine only when it
/// is named.
pub fn allowed_host(patterns: &[String], url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let scheme = url.scheme() == "https" || (url.scheme() == "http" && loopback(url));
    let plain = url.username().is_empty() && url.password().is_none();
    scheme
        && plain
        && patterns.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some(domain) => host
                .len()
                .checked_sub(domain.len() + 1)
                .and_then(|at| host.get(at..))
                .is_some_and(|end| end.starts_with('.') && end[1..].eq_ignore_ascii_case(domain)),
            None => host.eq_ignore_ascii_case(pattern),
        })
}

/// How an environment is named wherever it is stored, compared or asked a token for: its origin.
pub fn environment(url: &Url) -> String {
    url.origin().ascii_serialization()
}

impl Dataverse {
    /// # Errors
    /// [`DataverseError::ForeignHost`] for an environment that `hosts` do not allow.
    pub fn new(
        http: Http,
        tokens: Arc<dyn Tokens>,
        clock: Clock,
        url: &Url,
        hosts: &[String],
        definitions: Definitions,
    ) -> Result<Self, DataverseError> {
        if !allowed_host(hosts, url) {
            return Err(DataverseError::ForeignHost);
        }
        let environment = environment(url);
        let root = Url::parse(&environment).and_then(|url| url.join("/api/data/v9.2/"));
        let root = root.map_err(|_| DataverseError::ForeignHost)?;
        let bearer = Bearer::new(http, tokens, &environment);
        Ok(Self { bearer, clock, environment: environment.into(), root: Arc::new(root), definitions })
    }

    /// The gate that its calls stand behind.
    #[must_use]
    pub fn behind(mut self, cool_down: Option<CoolDown>) -> Self {
        self.bearer.respect(cool_down);
        self
    }

    /// Who the token's user is here: the cheapest proof that the environment lets them in.
    pub async fn who_am_i(&self) -> Result<WhoAmI, DataverseError> {
        self.get("dataverse.who_am_i", self.url("WhoAmI")).await
    }

    /// The table's definition, from memory unless it is old.
    pub async fn table(&self, name: &str) -> Result<Arc<Table>, DataverseError> {
        self.definitions.table(self, name, false).await
    }

    /// The table's definition as it is now: something is there (or not) that memory says is not.
    pub async fn table_now(&self, name: &str) -> Result<Arc<Table>, DataverseError> {
        self.definitions.table(self, name, true).await
    }

    /// The named columns of one row. A lookup is read as `_column_value`; see [`Row::reference`].
    pub async fn row(&self, table: &Table, key: &Key, columns: &[String]) -> Result<Row, DataverseError> {
        const NAME: &str = "dataverse.get_row";
        let mut url = self.url(&format!("{}({})", table.set, key_text(table, key)));
        add_query(&mut url, &[("$select", &columns.join(","))]);
        let lookups = HeaderValue::from_static(
            "odata.include-annotations=\"Microsoft.Dynamics.CRM.lookuplogicalname\"",
        );
        let call = Call::get(NAME, url).header(PREFER, lookups);
        let answer = self.drop_stale(table, self.send(call, &[200]).await).await?;
        Row::read(NAME, &answer, false)
    }

    /// Changes the columns of an existing row and answers with its new version.
    ///
    /// `version` is the etag that was compared with, or `*` for "whatever it is, as long as it exists".
    pub async fn update(
        &self,
        table: &Table,
        id: Uuid,
        version: &str,
        changes: &Map<String, Value>,
    ) -> Result<Row, DataverseError> {
        const NAME: &str = "dataverse.update_row";
        let mut url = self.url(&format!("{}({id})", table.set));
        add_query(&mut url, &[("$select", &table.id_column)]);
        let version = HeaderValue::from_str(version).map_err(|_| DataverseError::BadVersion)?;
        let call = Call::new(NAME, Method::PATCH, url)
            .json(changes)
            .header(IF_MATCH, version)
            .header(PREFER, HeaderValue::from_static("return=representation"));
        let answer = self.drop_stale(table, self.send(call, &[200]).await).await?;
        Row::read(NAME, &answer, true)
    }

    fn url(&self, path: &str) -> Url {
        let mut url = Url::clone(&self.root);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push(path);
        }
        url
    }

    async fn send(&self, call: Call, expected: &[u16]) -> Result<Answer, DataverseError> {
        let (name, write) = (call.name, call.method != Method::GET);
        let once = call.repeat == Repeat::Once;
        let call = call
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .header(HeaderName::from_static("odata-version"), HeaderValue::from_static("4.0"))
            .header(HeaderName::from_static("odata-maxversion"), HeaderValue::from_static("4.0"));
        let answer = self.bearer.send(call).await?;
        if expected.contains(&answer.status.as_u16()) {
            return Ok(answer);
        }
        if answer.status.is_success() {
            let what = format!("status {} where {expected:?} is documented", answer.status.as_u16());
            return Err(DataverseError::Unexpected { call: name, what, write });
        }
        let refused = DataverseError::Refused(Refusal::read(name, &answer, once, self.clock.now()));
        self.bearer.leave_alone(refused.cool_down());
        Err(refused)
    }

    async fn get<T: DeserializeOwned>(&self, name: &'static str, url: Url) -> Result<T, DataverseError> {
        let answer = self.send(Call::get(name, url), &[200]).await?;
        parse(name, &answer, false)
    }

    /// A set that does not exist any more means that what we remember of the table is wrong.
    async fn drop_stale<T>(
        &self,
        table: &Table,
        outcome: Result<T, DataverseError>,
    ) -> Result<T, DataverseError> {
        if outcome.as_ref().is_err_and(DataverseError::is_unknown_set) {
            self.definitions.forget(&self.environment, &table.name).await;
        }
        outcome
    }
}

impl Row {
    fn read(name: &'static str, answer: &Answer, write: bool) -> Result<Self, DataverseError> {
        let mut values: Map<String, Value> = parse(name, answer, write)?;
        match values.remove(ETAG) {
            Some(Value::String(etag)) => Ok(Self { etag, values }),
            _ => Err(DataverseError::Unexpected { call: name, what: "a row without an etag".into(), write }),
        }
    }

    /// The row's own id.
    pub fn id(&self, table: &Table) -> Option<Uuid> {
        self.values.get(&table.id_column)?.as_str()?.parse().ok()
    }

    /// What the lookup `column` points to.
    pub fn reference(&self, column: &str) -> Option<Reference> {
        let property = lookup_property(column);
        let id = self.values.get(&property)?.as_str()?.parse().ok()?;
        let table = self.values.get(&format!("{property}{LOOKUP_TABLE}")).and_then(Value::as_str);
        Some(Reference { table: table.map(str::to_owned), id })
    }
}

/// The property that a lookup column is read as.
pub fn lookup_property(column: &str) -> String {
    format!("_{column}_value")
}

fn parse<T: DeserializeOwned>(name: &'static str, answer: &Answer, write: bool) -> Result<T, DataverseError> {
    answer.json().map_err(|error| {
        // Not the error's own text: it quotes values, and values are content.
        let what = format!("unreadable answer (line {}, column {})", error.line(), error.column());
        DataverseError::Unexpected { call: name, what, write }
    })
}

/// The part between the brackets of a row's address.
fn key_text(table: &Table, key: &Key) -> String {
    let columns = match key {
        Key::Id(id) => return id.to_string(),
        Key::Alternate(columns) => columns,
    };
    let part = |(name, value): (&String, &Value)| {
        let column = table.columns.get(name);
        let property = match column {
            Some(column) if column.is_lookup() => lookup_property(name),
            _ => name.clone(),
        };
        match value {
            // Ids, dates and numbers stand bare; whatever could end the address early stands in quotes.
            Value::String(text) if column.is_some_and(|column| !column.is_text()) && bare(text) => {
                format!("{property}={text}")
            }
            Value::String(text) => format!("{property}='{}'", text.replace('\'', "''")),
            other => format!("{property}={other}"),
        }
    };
    columns.iter().map(part).collect::<Vec<_>>().join(",")
}

fn bare(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+:.".contains(&b))
}

/// Names only; values are content.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row")
            .field("columns", &self.values.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "Id({id})"),
            Self::Alternate(columns) => write!(f, "Alternate({:?})", columns.keys().collect::<Vec<_>>()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn only_microsofts_environments_are_called_unless_others_are_named() {
        let clouds = host_patterns(&[]);
        for good in [
            "https://acme.crm4.dynamics.com",
            "https://acme.api.crm.dynamics.com/",
            "https://ACME.crm.microsoftdynamics.us",
            "https://acme.crm.appsplatform.us",
            "https://acme.crm.dynamics.cn",
        ] {
            assert!(allowed_host(&clouds, &url(good)), "{good}");
        }
        for bad in [
            "http://acme.crm4.dynamics.com",
            "https://dynamics.com",
            "https://evildynamics.com",
            "https://acme.dynamics.com.evil.example",
            "https://user@acme.crm4.dynamics.com",
            "https://127.0.0.1",
            "http://localhost:9365",
            "ftp://acme.crm4.dynamics.com",
        ] {
            assert!(!allowed_host(&clouds, &url(bad)), "{bad}");
        }
        let named = host_patterns(&["127.0.0.1".into()]);
        assert!(allowed_host(&named, &url("http://127.0.0.1:9365")));
        assert!(!allowed_host(&named, &url("https://acme.crm4.dynamics.com")));
    }

    #[test]
    fn a_key_is_written_by_the_types_of_its_columns() {
        let table = metadata::tests::account();
        let key = |columns: Value| Key::Alternate(columns.as_object().expect("columns").clone());
        assert_eq!(key_text(&table, &key(json!({"accountnumber": "O'Neil/7"}))), "accountnumber='O''Neil/7'");
        assert_eq!(
            key_text(
                &table,
                &key(
                    json!({"numberofemployees": 7, "parentaccountid": "9f3162f6-804a-4e4b-9f0b-63f4a1e0a1b1"})
                )
            ),
            "numberofemployees=7,_parentaccountid_value=9f3162f6-804a-4e4b-9f0b-63f4a1e0a1b1"
        );
    }
}
