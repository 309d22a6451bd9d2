//! Dataverse's refusals. Codes: `webapi/compose-http-requests-handle-errors`, `reference/web-service-error-codes`.

use axum::response::Response;
use http::StatusCode;

use crate::answer::dataverse_error;

#[derive(Clone, Debug)]
pub(crate) struct CrmError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl CrmError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// A payload that does not fit the model.
    pub(crate) fn payload(message: impl Into<String>) -> Self {
        let message =
            format!("Error identified in Payload provided by the user for Entity :'', {}", message.into());
        Self::new(StatusCode::BAD_REQUEST, "0x80048d19", message)
    }

    /// A query that cannot be read.
    pub(crate) fn query(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "0x0", message)
    }

    pub(crate) fn no_property(name: &str, table: &str) -> Self {
        Self::query(format!(
            "Could not find a property named '{name}' on type 'Microsoft.Dynamics.CRM.{table}'."
        ))
    }

    pub(crate) fn no_segment(segment: &str) -> Self {
        let message = format!("Resource not found for the segment '{segment}'.");
        Self::new(StatusCode::NOT_FOUND, "0x8006088a", message)
    }

    pub(crate) fn no_row(schema: &str, id: &str) -> Self {
        let message = format!("Entity '{schema}' With Id = {id} Does Not Exist");
        Self::new(StatusCode::NOT_FOUND, "0x80040217", message)
    }

    pub(crate) fn no_row_by_key(schema: &str) -> Self {
        let message = format!("A record with the specified key values does not exist in {schema} entity");
        Self::new(StatusCode::NOT_FOUND, "0x80060891", message)
    }

    pub(crate) fn duplicate_id() -> Self {
        let message = "A record with matching key values already exists.";
        Self::new(StatusCode::PRECONDITION_FAILED, "0x80040237", message)
    }

    pub(crate) fn duplicate_key(label: &str) -> Self {
        let message = format!(
            "A record that has the attribute values {label} already exists. The entity key requires that this set of \
             attributes contains unique values. Select unique values and try again."
        );
        Self::new(StatusCode::PRECONDITION_FAILED, "0x80060892", message)
    }

    pub(crate) fn version_mismatch() -> Self {
        let message = "The version of the existing record doesn't match the RowVersion property provided.";
        Self::new(StatusCode::PRECONDITION_FAILED, "0x80060882", message)
    }

    pub(crate) fn validation(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, format!("A validation error occurred.  {}", message.into()))
    }

    pub(crate) fn into_answer(self) -> Response {
        dataverse_error(self.status, self.code, &self.message)
    }
}
