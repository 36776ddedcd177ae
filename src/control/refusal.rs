//! A refused request of the API: HTTP status, cause and remedy.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::api::ApiError;

/// Error response of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// Texts with cause, location and remedy; never empty.
    pub errors: Vec<String>,
}

impl Refusal {
    /// Creates a refusal with this status and one text.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, errors: vec![error.into()] }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = self.errors.join("\n");
        (self.status, Json(ApiError { error, errors: self.errors })).into_response()
    }
}
