//! The global discovery service: which environments a user has.
//!
//! `webapi/discovery-service`: only those where the user is enabled; nothing is 200 with an empty list.

use axum::Router;
use axum::extract::{Query, State};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use crate::Sim;
use crate::answer::{Answer, Refused, answer_json, dataverse_error};
use crate::auth::{Resource, authorize};

pub(crate) fn router() -> Router<Sim> {
    Router::new().route("/api/discovery/v2.0/Instances", get(instances))
}

async fn instances(
    State(sim): State<Sim>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Answer {
    let caller = authorize(&sim, &headers, &Resource::Discovery)?;
    let select = query.iter().find(|(name, _)| name == "$select").map(|(_, value)| value.as_str());
    let base = sim.base_url();
    let mut all = Vec::new();
    for info in sim.environments() {
        let member =
            info.users.is_empty() || info.users.iter().any(|user| user.eq_ignore_ascii_case(&caller.upn));
        if info.tenant != caller.tenant || !member {
            continue;
        }
        let url = info.address(base);
        let one = json!({
            "Id": info.id, "UniqueName": info.unique_name, "UrlName": info.unique_name, "FriendlyName": info.name,
            "State": info.state, "Version": "9.2.26104.00150", "Url": url, "ApiUrl": url, "LastUpdated":
            "2026-01-05T08:00:00Z", "SchemaType": "Full", "TenantId": info.tenant, "Region": "EUR",
            "EnvironmentId": info.id, "StatusMessage": 0, "OrganizationType": 0, "TrialExpirationDate": null,
            "IsUserSysAdmin": false, "DatacenterId": "00000000-0000-0000-0000-000000000000",
            "DatacenterName": "Simulated", "Purpose": "",
        });
        all.push(match select {
            None => one,
            Some(select) => Value::Object(selected(&one, select)?),
        });
    }
    let context = format!("{base}/api/discovery/v2.0/$metadata#Instances");
    Ok(answer_json(StatusCode::OK, &json!({"@odata.context": context, "value": all})))
}

fn selected(one: &Value, select: &str) -> Result<Map<String, Value>, Refused> {
    let mut kept = Map::new();
    for name in select.split(',').map(str::trim) {
        let value = one.get(name).ok_or_else(|| {
            let message = format!(
                "Could not find a property named '{name}' on type 'Microsoft.Dynamics.CRM.Instance'."
            );
            dataverse_error(StatusCode::BAD_REQUEST, "0x0", &message)
        })?;
        kept.insert(name.to_owned(), value.clone());
    }
    Ok(kept)
}
