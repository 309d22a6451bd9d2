//! What a refusal by Entra means: who must act, if anybody.
//!
//! The invariant: the decision stands on `error` and `suberror`; AADSTS numbers only refine it, and the
//! description decides nothing and is never kept, because it can name people. An error of our own
//! registration never turns into work for a user.
//! <https://learn.microsoft.com/entra/identity-platform/reference-error-codes>

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who must act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody: later it may work.
    Retry,
    /// Nobody, but for minutes we must not ask: Entra saw the same request too often.
    CoolDown,
    NeedsUser,
    NeedsAdmin,
    /// Whoever runs this fleet; no connection is to blame.
    Operator,
}

/// A verdict with the stable code that users and operators see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    pub verdict: Verdict,
    pub code: &'static str,
}

/// Entra's error body, without its description. The token endpoint's, and after a redirect what its
/// parameters say.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suberror: Option<String>,
    #[serde(default)]
    pub error_codes: Vec<u32>,
    /// What the next sign-in must satisfy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

impl Refusal {
    /// From the parameters of a redirect, which carry the number only inside the description.
    pub fn of_redirect(error: &str, description: Option<&str>) -> Self {
        let number = description.and_then(|text| {
            let digits = text.split_once("AADSTS")?.1;
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            digits[..end].parse().ok()
        });
        Self { error: error.to_owned(), error_codes: number.into_iter().collect(), ..Self::default() }
    }

    pub fn meaning(&self) -> Meaning {
        self.by_number().unwrap_or_else(|| self.by_name())
    }

    /// Is it proven that our own credential is bad, so that whoever asks with it is refused? What else is said
    /// of a client may be about one tenant or one request.
    pub fn blames_credential(&self) -> bool {
        self.error_codes.iter().any(|number| BAD_CREDENTIAL.contains(number))
    }

    fn by_number(&self) -> Option<Meaning> {
        self.error_codes.iter().find_map(|number| {
            let (_, verdict, code) = NUMBERS.iter().find(|(numbers, ..)| numbers.contains(number))?;
            Some(Meaning { verdict: *verdict, code })
        })
    }

    fn by_name(&self) -> Meaning {
        let (verdict, code) = match (self.error.as_str(), self.suberror.as_deref()) {
            ("temporarily_unavailable" | "server_error", _) => (Verdict::Retry, "entra_unavailable"),
            (_, Some("consent_required")) | ("consent_required", _) => {
                (Verdict::NeedsUser, "consent_required")
            }
            (_, Some("user_password_expired")) => (Verdict::NeedsUser, "password_expired"),
            (_, Some("protection_policy_required")) => (Verdict::NeedsAdmin, "blocked_by_policy"),
            (_, Some("device_authentication_failed")) => (Verdict::NeedsUser, "device_required"),
            // A prompt may not be enough for the first two, but the page that it opens says what is.
            (_, Some("message_only" | "additional_action" | "basic_action" | "bad_token"))
            | ("interaction_required" | "login_required" | "bad_token", _) => {
                (Verdict::NeedsUser, "interaction_required")
            }
            ("invalid_grant", _) | (_, Some("token_expired")) => (Verdict::NeedsUser, "sign_in_expired"),
            ("access_denied", _) => (Verdict::NeedsUser, "access_denied"),
            ("invalid_client" | "unauthorized_client", _) => (Verdict::Operator, "invalid_client"),
            (
                "invalid_scope"
                | "invalid_request"
                | "invalid_resource"
                | "unsupported_grant_type"
                | "unsupported_response_type",
                _,
            ) => (Verdict::Operator, "invalid_request"),
            _ => (Verdict::Retry, "entra_error"),
        };
        Meaning { verdict, code }
    }
}

/// A secret that is wrong or has expired, an assertion that is missing, unverifiable or of another subject.
const BAD_CREDENTIAL: &[u32] = &[7_000_215, 7_000_222, 7_000_218, 70002, 700_025, 700_027, 50012, 50048];

/// Codes that no number leads to.
const OTHER_CODES: &[&str] = &["interaction_required", "access_denied", "missing_scopes"];

const NUMBERS: &[(&[u32], Verdict, &str)] = {
    use Verdict::{CoolDown, NeedsAdmin, NeedsUser, Operator, Retry};
    &[
        (&[50196], CoolDown, "entra_loop_detected"),
        (&[50033, 50087, 50088, 70012, 90006, 90012, 90024, 90033, 90055, 90090], Retry, "entra_unavailable"),
        (&[53003, 530_032, 53011], NeedsAdmin, "blocked_by_policy"),
        (&[50105], NeedsAdmin, "not_assigned"),
        (&[50057], NeedsAdmin, "account_disabled"),
        (&[700_016, 7_000_112, 70001], NeedsAdmin, "app_not_available"),
        (&[500_011, 650_052, 650_054, 650_056, 650_057, 65005], NeedsAdmin, "resource_not_available"),
        (&[50020, 50034, 51004, 500_212, 500_213], NeedsAdmin, "wrong_tenant"),
        (&[90094, 90095, 90008], NeedsAdmin, "admin_consent_required"),
        (&[65001], NeedsUser, "consent_required"),
        (&[65004], NeedsUser, "consent_declined"),
        (&[50072, 50074, 50076, 50078, 50079, 50158], NeedsUser, "mfa_required"),
        (&[50097, 50129, 53000, 53001], NeedsUser, "device_required"),
        (&[50055, 50144], NeedsUser, "password_expired"),
        (&[50173, 50132, 50133], NeedsUser, "sign_in_revoked"),
        (&[70000, 70008, 700_082, 700_084, 70043, 50089, 700_020, 16000], NeedsUser, "sign_in_expired"),
        (&[7_000_215, 7_000_222, 7_000_218, 70002], Operator, "invalid_client"),
        (&[700_025, 700_027, 50012, 50013, 50048], Operator, "invalid_client"),
        (
            &[
                50011, 50147, 501_481, 50194, 700_022, 700_023, 70011, 28002, 28003, 90002, 90014, 900_144,
                9_002_313, 700_005,
            ],
            Operator,
            "invalid_request",
        ),
    ]
};

impl Meaning {
    /// What a connection's stored cause meant when it was found.
    pub fn of_code(code: &str, admin: bool) -> Self {
        let verdict = if admin { Verdict::NeedsAdmin } else { Verdict::NeedsUser };
        let known = NUMBERS.iter().map(|(.., known)| *known).chain(OTHER_CODES.iter().copied());
        let code = known.into_iter().find(|known| *known == code).unwrap_or("interaction_required");
        Self { verdict, code }
    }

    /// One line for the person who must act.
    pub fn message(&self) -> &'static str {
        match self.code {
            "blocked_by_policy" => {
                "A Conditional Access or risk policy of the tenant blocks this app; an administrator must allow it."
            }
            "not_assigned" => "The account is not assigned to this app; an administrator must assign it.",
            "account_disabled" => "The account is disabled; an administrator must enable it.",
            "app_not_available" => {
                "The app is missing from the tenant or disabled there; an administrator must allow it."
            }
            "resource_not_available" => {
                "The tenant has no such resource, or the app may not use it; an administrator must set it up."
            }
            "wrong_tenant" => {
                "The account belongs to another tenant, or the tenants' policies keep them apart."
            }
            "admin_consent_required" => "An administrator of the tenant must consent to this app first.",
            "consent_required" => "The consent is missing or was withdrawn; sign in again to give it.",
            "consent_declined" => "The consent was declined.",
            "mfa_required" => "The tenant asks for another factor; sign in again.",
            "device_required" => "The tenant asks for a managed or registered device; sign in from one.",
            "password_expired" => "The password has expired; change it and sign in again.",
            "sign_in_revoked" => "The sign-in was revoked; sign in again.",
            "sign_in_expired" => "The sign-in has expired; sign in again.",
            "interaction_required" => "Microsoft asks for a new sign-in.",
            "missing_scopes" => {
                "Not everything this integration needs was granted; sign in again and allow all of it."
            }
            "access_denied" => "Microsoft denied access; sign in again.",
            "invalid_client" => {
                "Entra refuses this app's credential: check microsoft.client_id and the client secret or certificate, and whether it has expired."
            }
            "invalid_request" => {
                "Entra refuses the request: check the app registration's redirect URI, account types and permissions."
            }
            "entra_loop_detected" => "Entra saw the same request too often; asking again after a pause.",
            _ => "Entra cannot answer now.",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |text: &str| -> String {
            text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(64).collect()
        };
        f.write_str(&word(&self.error))?;
        if let Some(suberror) = &self.suberror {
            write!(f, "/{}", word(suberror))?;
        }
        for number in self.error_codes.iter().take(4) {
            write!(f, " AADSTS{number}")?;
        }
        if let Some(trace) = &self.trace_id {
            let trace: String =
                trace.chars().filter(|c| c.is_ascii_hexdigit() || *c == '-').take(36).collect();
            write!(f, " (trace {trace})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refusal({self})")
    }
}

impl oauth2::ErrorResponse for Refusal {}

#[cfg(test)]
mod tests {
    use super::Verdict::{CoolDown, NeedsAdmin, NeedsUser, Operator, Retry};
    use super::*;

    #[test]
    fn every_refusal_goes_to_the_one_who_can_act() {
        let cases: [(&str, &str, u32, Verdict); 30] = [
            ("invalid_grant", "", 0, NeedsUser),
            ("invalid_grant", "", 50173, NeedsUser),
            ("invalid_grant", "", 700_082, NeedsUser),
            ("invalid_grant", "", 70043, NeedsUser),
            ("invalid_grant", "", 50076, NeedsUser),
            ("invalid_grant", "", 50079, NeedsUser),
            ("interaction_required", "basic_action", 50158, NeedsUser),
            ("invalid_grant", "consent_required", 65001, NeedsUser),
            ("consent_required", "", 0, NeedsUser),
            ("invalid_grant", "", 90094, NeedsAdmin),
            ("access_denied", "", 65004, NeedsUser),
            ("invalid_grant", "message_only", 53003, NeedsAdmin),
            ("access_denied", "", 53003, NeedsAdmin),
            ("invalid_grant", "", 50105, NeedsAdmin),
            ("invalid_grant", "", 50057, NeedsAdmin),
            ("unauthorized_client", "", 700_016, NeedsAdmin),
            ("invalid_resource", "", 500_011, NeedsAdmin),
            ("invalid_grant", "protection_policy_required", 0, NeedsAdmin),
            ("invalid_client", "", 7_000_215, Operator),
            ("invalid_client", "", 7_000_222, Operator),
            ("invalid_client", "", 700_027, Operator),
            ("invalid_client", "", 0, Operator),
            ("invalid_grant", "", 50196, CoolDown),
            ("invalid_request", "", 90002, Operator),
            ("invalid_scope", "", 70011, Operator),
            ("invalid_request", "", 50194, Operator),
            ("temporarily_unavailable", "", 90033, Retry),
            ("invalid_request", "", 90055, Retry),
            ("server_error", "", 0, Retry),
            ("a_new_one", "", 123_456, Retry),
        ];
        for (error, suberror, number, verdict) in cases {
            let refusal = Refusal {
                error: error.into(),
                suberror: Some(suberror.to_owned()).filter(|text| !text.is_empty()),
                error_codes: Some(number).filter(|number| *number != 0).into_iter().collect(),
                ..Refusal::default()
            };
            assert_eq!(refusal.meaning().verdict, verdict, "{refusal}");
            assert!(!refusal.meaning().message().is_empty());
        }
    }

    #[test]
    fn only_what_proves_our_credential_bad_is_held_against_every_connection() {
        let refusal = |error: &str, numbers: &[u32]| Refusal {
            error: error.into(),
            error_codes: numbers.to_vec(),
            ..Refusal::default()
        };
        for number in BAD_CREDENTIAL {
            let refusal = refusal("invalid_client", &[*number]);
            assert!(refusal.blames_credential(), "{refusal}");
            assert_eq!(refusal.meaning(), Meaning { verdict: Operator, code: "invalid_client" }, "{refusal}");
        }
        let others: [(&str, &[u32]); 4] = [
            ("unauthorized_client", &[]),
            ("invalid_client", &[]),
            ("invalid_client", &[50013]),
            ("unauthorized_client", &[700_016]),
        ];
        for (error, numbers) in others {
            assert!(!refusal(error, numbers).blames_credential(), "{error} {numbers:?}");
        }
    }

    #[test]
    fn no_number_stands_in_two_rows() {
        let mut numbers: Vec<u32> =
            NUMBERS.iter().flat_map(|(numbers, ..)| numbers.iter().copied()).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }

    #[test]
    fn a_redirect_tells_its_number_and_a_description_is_forgotten() {
        let description = "AADSTS90094: ada@acme.example needs permission to access resources";
        let refusal = Refusal::of_redirect("access_denied", Some(description));
        assert_eq!(refusal.meaning().verdict, NeedsAdmin);
        let body = r#"{"error":"invalid_grant","error_description":"AADSTS50076: planted@acme.example","error_codes":[50076],
            "suberror":"basic_action","claims":"{\"access_token\":{}}","trace_id":"11aa","correlation_id":"c"}"#;
        let refusal: Refusal = serde_json::from_str(body).expect("an error body");
        assert_eq!(refusal.claims.as_deref(), Some(r#"{"access_token":{}}"#));
        let shown = format!("{refusal} {refusal:?}");
        assert!(shown.contains("invalid_grant/basic_action AADSTS50076 (trace 11aa)"), "{shown}");
        assert!(!shown.contains("planted"), "{shown}");
    }
}
