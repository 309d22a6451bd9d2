//! Which environments a user has.
//!
//! The invariant: only environments are offered that [`super::allowed_host`] would let us call, whatever the
//! discovery service names.
//! <https://learn.microsoft.com/power-apps/developer/data-platform/discovery-service>

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{DataverseError, Refusal, allowed_host, parse};
use crate::auth::{Bearer, Tokens};
use crate::http::{Call, Http, add_query};

/// An environment of the user's tenant.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "snake_case"))]
pub struct Instance {
    /// The address to call and to ask tokens for.
    pub api_url: Url,
    pub url: Option<Url>,
    pub friendly_name: Option<String>,
    pub unique_name: Option<String>,
    pub environment_id: Option<String>,
    pub tenant_id: Option<String>,
    pub region: Option<String>,
    pub version: Option<String>,
    /// 0 is enabled.
    #[serde(default)]
    pub state: i32,
}

#[derive(Deserialize)]
struct Instances {
    value: Vec<Instance>,
}

/// The enabled environments of the user in `tenant`, those outside `hosts` left out.
pub async fn instances(
    http: &Http,
    tokens: Arc<dyn Tokens>,
    discovery_url: &Url,
    hosts: &[String],
    tenant: &str,
    now: DateTime<Utc>,
) -> Result<Vec<Instance>, DataverseError> {
    const NAME: &str = "dataverse.instances";
    let mut url =
        discovery_url.join("/api/discovery/v2.0/Instances").map_err(|_| DataverseError::ForeignHost)?;
    let select = "ApiUrl,Url,FriendlyName,UniqueName,EnvironmentId,TenantId,Region,Version,State";
    add_query(&mut url, &[("$select", select)]);
    let bearer = Bearer::new(http.clone(), tokens, &super::environment(discovery_url));
    let answer = bearer.send(Call::get(NAME, url)).await?;
    if answer.status != 200 {
        return Err(DataverseError::Refused(Refusal::read(NAME, &answer, false, now)));
    }
    let mut found = parse::<Instances>(NAME, &answer, false)?.value;
    found.retain(|instance| {
        let own = instance.tenant_id.as_deref().is_none_or(|theirs| theirs.eq_ignore_ascii_case(tenant));
        own && instance.state == 0 && allowed_host(hosts, &instance.api_url)
    });
    Ok(found)
}
