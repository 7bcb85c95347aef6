//! What a request sends: parts of its path, its body. What cannot be read is told as every other error is,
//! with the field where there is one.

use std::error::Error;

use axum::{
    body::Bytes,
    extract::{
        FromRequest, FromRequestParts, Path, Request,
        rejection::{BytesRejection, JsonRejection},
    },
    http::{StatusCode, request::Parts},
};
use serde::de::{DeserializeOwned, Deserializer};
use serde_path_to_error::deserialize;

use crate::error::ApiError;

/// The one parameter of a path: what is asked for by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        // A name that is no text is the name of nothing.
        let nothing =
            |_| ApiError::not_found("no such resource: the name in the path is not UTF-8");
        name.map(|Path(name)| Self(name)).map_err(nothing)
    }
}

/// All of a body, within the limit of its resource.
#[derive(Clone, Debug)]
pub(super) struct Sent(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await;
        body.map(Self).map_err(|rejection| not_whole(&rejection))
    }
}

fn not_whole(rejection: &BytesRejection) -> ApiError {
    match rejection.status() {
        status @ StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(status, "the body is larger than is taken here")
        }
        status => ApiError::new(status, rejection.body_text()),
    }
}

/// What axum's reader of JSON did not take.
pub(super) fn not_json(rejection: &JsonRejection) -> ApiError {
    if let JsonRejection::BytesRejection(rejection) = rejection {
        return not_whole(rejection);
    }
    let mut cause: Option<&dyn Error> = Some(rejection);
    while let Some(error) = cause {
        let meant = error.downcast_ref::<serde_path_to_error::Error<serde_json::Error>>();
        if let (StatusCode::UNPROCESSABLE_ENTITY, Some(meant)) = (rejection.status(), meant) {
            return not_meant(&meant.path().to_string(), &meant.inner().to_string());
        }
        cause = error.source();
    }
    ApiError::new(rejection.status(), rejection.body_text())
}

/// Reads what is well-formed already; what it cannot mean is told with the field.
pub(super) fn meant<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    fields: D,
    words: impl Fn(&D::Error) -> String,
) -> Result<T, ApiError> {
    deserialize(fields).map_err(|error| not_meant(&error.path().to_string(), &words(error.inner())))
}

/// Puts together where serde was, and which field it names in its words because it is not there.
fn not_meant(path: &str, words: &str) -> ApiError {
    let path = if path == "." { "" } else { path };
    let missing = words
        .split_once("missing field `")
        .and_then(|(_, rest)| rest.split('`').next());
    let field = match (path, missing) {
        ("", None) => return ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, words),
        ("", Some(missing)) => missing.to_owned(),
        (path, None) => path.to_owned(),
        (path, Some(missing)) => format!("{path}.{missing}"),
    };
    ApiError::field(StatusCode::UNPROCESSABLE_ENTITY, &field, words)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "it is read, and no more")]
    struct Wanted {
        hosts: Vec<String>,
        #[serde(default)]
        weight: u32,
        #[serde(default)]
        parts: Vec<Part>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code, reason = "it is read, and no more")]
    struct Part {
        reason: String,
    }

    #[test]
    fn whatever_cannot_be_meant_is_told_with_its_field() {
        for (sent, field) in [
            (json!({"hosts": "a.test"}), "hosts"),
            (json!({"hosts": [1]}), "hosts[0]"),
            (json!({"hosts": [], "weight": -1}), "weight"),
            (
                json!({"hosts": [], "parts": [{"reason": 1}]}),
                "parts[0].reason",
            ),
            (json!({"hosts": [], "parts": [{}]}), "parts[0].reason"),
            (json!({"weight": 1}), "hosts"),
            (json!({"hosts": [], "host": 1}), "host"),
        ] {
            let read: Result<Wanted, _> = meant(Value::clone(&sent), serde_json::Error::to_string);
            let refused = format!("{:?}", read.unwrap_err());
            assert!(refused.contains("status: 422"), "{sent}: {refused}");
            let named = format!("field: Some({field:?})");
            assert!(refused.contains(&named), "{sent}: {refused}");
        }
    }
}
