//! Named states of affairs, each made of levers that exist anyway: for demonstrations and for people at a prompt.

use chrono::TimeDelta;
use serde_json::json;

use crate::entra::policy::Planned;
use crate::fault::{Fault, When};
use crate::journal::Area;
use crate::referee::Throttle;
use crate::{Sim, dataverse};

/// (name, what happens); `user` is the one that the call names.
pub const ALL: &[(&str, &str)] = &[
    ("throttled", "the user's next three calls are answered 429, Retry-After in seconds"),
    ("throttled-by-date", "the user's next call is answered 429, Retry-After as a date"),
    ("504-after-write", "the user's next POST to Graph is executed and answered 504"),
    ("lost-after-write", "the user's next POST to Graph is executed and its connection closed"),
    ("lost-before-write", "the user's next POST to Graph is not executed and its connection closed"),
    ("503-page", "the user's next call to Graph meets a page of a load balancer"),
    ("mailbox-concurrency", "every call takes half a second, so that a fifth meets four"),
    ("revoked", "the user's sessions end: AADSTS50173"),
    ("consent-withdrawn", "the user's consent is gone: AADSTS65001"),
    ("mfa-needed", "the user's next refresh needs multi-factor authentication: AADSTS50076"),
    ("risk-blocked", "the user's refreshes are blocked by Conditional Access: AADSTS53003"),
    ("claims-challenge", "the user's calls are challenged until a token is asked for with claims"),
    ("secret-expired", "the app's secret is past its end: AADSTS7000222"),
    ("entra-down", "the next five token requests are answered 503"),
    ("row-changed", "somebody else changes the first account"),
    ("plug-in-refuses", "the next update of an account is refused by a plug-in"),
];

impl Sim {
    /// Sets a scenario; false when there is none of that name.
    pub fn play(&self, name: &str, user: &str) -> bool {
        let throttle = |calls, as_date| Throttle {
            user: user.into(),
            calls,
            retry_after_seconds: 5,
            as_date,
            without_header: false,
            area: None,
        };
        let write = |fault: Fault| fault.area(Area::Graph).method("POST").user(user);
        match name {
            "throttled" => self.throttle(throttle(3, false)),
            "throttled-by-date" => self.throttle(throttle(1, true)),
            "504-after-write" => {
                self.inject(write(Fault::status(504, When::After)));
            }
            "lost-after-write" => {
                self.inject(write(Fault::lost_after()));
            }
            "lost-before-write" => {
                self.inject(write(Fault::lost_before()));
            }
            "503-page" => {
                let page = json!("<html><body><h1>Service Unavailable</h1></body></html>");
                self.inject(Fault::status(503, When::Before).body(page).area(Area::Graph).user(user));
            }
            "mailbox-concurrency" => {
                let mut limits = self.limits();
                limits.latency_ms = 500;
                self.set_limits(limits);
            }
            "revoked" => self.revoke_sessions(user),
            "consent-withdrawn" => self.withdraw_consent(user),
            "mfa-needed" => {
                let claims = json!({"access_token": {"capolids": {"essential": true, "values": ["c1"]}}});
                let planned =
                    Planned::new(user, "invalid_grant", 50_076).suberror("basic_action").claims(claims);
                self.fail_token_requests(planned);
            }
            "risk-blocked" => {
                let planned = Planned::new(user, "invalid_grant", 53_003).suberror("message_only").times(0);
                self.fail_token_requests(planned);
            }
            "claims-challenge" => {
                let since = self.now().timestamp().to_string();
                let claims = json!({"access_token": {"nbf": {"essential": true, "value": since}}});
                self.challenge(user, &claims);
            }
            "secret-expired" => {
                let past = self.now() - TimeDelta::days(1);
                self.change_app(|app| app.secrets.iter_mut().for_each(|secret| secret.expires = Some(past)));
            }
            "entra-down" => {
                let fault = Fault::status(503, When::Before).area(Area::Entra).method("POST").times(5);
                self.inject(fault);
            }
            "row-changed" => {
                let values = json!({"description": format!("Changed elsewhere at {}", self.now())});
                return self.edit_row("account", &dataverse::row_id(1, 1), &values).is_ok();
            }
            "plug-in-refuses" => self.plug_in(dataverse::rights::PlugIn {
                table: "account".into(),
                operation: dataverse::store::Operation::Update,
                message: "Accounts on credit hold cannot be changed.".into(),
                times: 1,
            }),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_listed_scenario_can_be_played() {
        let sim = crate::Sim::new(1);
        for (name, _) in super::ALL {
            assert!(sim.play(name, "bob@acme.example"), "{name}");
        }
        assert!(!sim.play("no-such", "bob@acme.example"));
    }
}
