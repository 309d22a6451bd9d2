//! The organisations that are there from the start: a sales environment and a sandbox of Acme.

use chrono::{DateTime, TimeZone, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::error::CrmError;
use super::store::Organisation;
use super::{Environment, EnvironmentInfo, SYSTEM_USER, model};
use crate::auth::Caller;
use crate::directory::ACME;

const UNIT: &str = "b0b00000-0000-4000-8000-000000000001";

pub(super) fn environments() -> Vec<Environment> {
    let info = |name: &str, unique: &str, id: &str, url: Option<&str>| EnvironmentInfo {
        name: name.into(),
        unique_name: unique.into(),
        id: id.into(),
        tenant: ACME.into(),
        url: url.map(str::to_owned),
        state: 0,
        users: Vec::new(),
    };
    let sales = info("Acme Sales", "acmesales", "0e0e0000-0000-4000-8000-000000000001", None);
    let sandbox =
        info("Acme Sandbox", "acmesandbox", "0e0e0000-0000-4000-8000-000000000002", Some("localhost"));
    [sales, sandbox]
        .into_iter()
        .map(|info| Environment { org: organisation(&info.name, &info.id), info })
        .collect()
}

/// The id of a seeded row: `row_id(table number, row number)`, such as `00000001-0000-4000-8000-000000000001` for the
/// first account.
pub fn row_id(table: u32, number: u32) -> String {
    format!("{table:08x}-0000-4000-8000-{number:012x}")
}

pub(super) fn organisation(name: &str, id: &str) -> Organisation {
    let mut org = Organisation::new(name, model::tables(), UNIT, id);
    let start = Utc.with_ymd_and_hms(2026, 1, 5, 8, 0, 0).single().unwrap_or_default();
    let mut add = |table: &'static str, id: String, values: Value| org.seed(table, &id, values, start);
    let to = |table: &str, id: String| json!({"table": table, "id": id});
    add("businessunit", UNIT.into(), json!({"name": name}));
    add(
        "systemuser",
        SYSTEM_USER.into(),
        json!({"firstname": "SYSTEM", "lastname": "", "isdisabled": false}),
    );
    let companies = [
        ("Contoso Ltd.", "A-1001", "info@contoso.example", "Zürich", 1_250_000.0, 140),
        ("Fabrikam GmbH", "A-1002", "kontakt@fabrikam.example", "Hamburg", 860_000.0, 55),
        ("Northwind Traders", "A-1003", "hello@northwind.example", "Leeds", 4_100_000.0, 320),
    ];
    for (number, (name, account_number, mail, city, revenue, people)) in (1..).zip(companies) {
        let values = json!({"name": name, "accountnumber": account_number, "emailaddress1": mail, "address1_city": city,
            "revenue": revenue, "numberofemployees": people, "industrycode": 6, "customertypecode": 3,
            "primarycontactid": to("contact", row_id(2, number))});
        add("account", row_id(1, number), values);
    }
    let people = [
        ("Nina", "Keller", "nina@contoso.example", "Head of Purchasing", 1),
        ("Omar", "Haddad", "omar@fabrikam.example", "CTO", 2),
        ("Priya", "Shah", "priya@northwind.example", "Operations Director", 3),
        ("Quentin", "Moser", "quentin@contoso.example", "Engineer", 1),
    ];
    for (number, (first, last, mail, job, company)) in (1..).zip(people) {
        let values = json!({"firstname": first, "lastname": last, "emailaddress1": mail, "jobtitle": job,
            "parentcustomerid": to("account", row_id(1, company))});
        add("contact", row_id(2, number), values);
    }
    let values = json!({"name": "Contoso: 40 sensors", "estimatedvalue": 48_000.0, "estimatedclosedate": "2026-12-18",
        "closeprobability": 60, "opportunityratingcode": 2, "stepname": "2-Develop",
        "customerid": to("account", row_id(1, 1)), "parentaccountid": to("account", row_id(1, 1)),
        "parentcontactid": to("contact", row_id(2, 1))});
    add("opportunity", row_id(3, 1), values);
    let values = json!({"subject": "Interested in the retrofit kit", "firstname": "Rosa", "lastname": "Lind",
        "companyname": "Tailspin Toys", "emailaddress1": "rosa@tailspin.example", "leadqualitycode": 2});
    add("lead", row_id(4, 1), values);
    let values = json!({"new_name": "Send the data sheet", "new_code": "P-1", "new_outcome": 100_000_000,
        "new_duedate": "2026-11-30", "new_weight": 3, "new_accountid": to("account", row_id(1, 1))});
    add("new_promise", row_id(10_042, 1), values);
    org
}

/// The user's row: made when they first come, as the platform does for a licensed user.
pub(super) fn ensure_user(
    org: &mut Organisation,
    caller: &Caller,
    now: DateTime<Utc>,
) -> Result<String, CrmError> {
    let oid = Value::String(caller.oid.clone());
    let rows = org.rows.get("systemuser");
    let known = rows.and_then(|rows| {
        rows.values().find(|row| row.values.get("azureactivedirectoryobjectid") == Some(&oid))
    });
    if let Some(row) = known {
        if row.values.get("isdisabled") == Some(&Value::Bool(true)) {
            let message = "The user is disabled.";
            return Err(CrmError::new(http::StatusCode::FORBIDDEN, "0x80040225", message));
        }
        return Ok(row.id.clone());
    }
    let id =
        Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{}|{}", org.name, caller.oid).as_bytes()).to_string();
    let name = caller.upn.split('@').next().unwrap_or_default();
    let values = json!({"firstname": name, "lastname": "", "domainname": caller.upn, "isdisabled": false,
        "internalemailaddress": caller.upn, "azureactivedirectoryobjectid": oid,
        "businessunitid": {"table": "businessunit", "id": UNIT}});
    org.seed("systemuser", &id, values, now);
    Ok(id)
}
