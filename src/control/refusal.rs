//! A refused request: the HTTP status and what to do about it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::api::ApiError;

/// An error of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// What went wrong, where, and how to fix it; never empty.
    pub errors: Vec<String>,
}

impl Refusal {
    /// With this status and one text.
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
