//! Errors of the admin API as problem documents (RFC 9457), and the extractors that make one of whatever they refuse.

use std::error::Error as _;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use utoipa::ToSchema;

use super::admin::BODY_BYTES_MAX;

/// What a call is refused with. The type is `about:blank`: the status says everything that a program can act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The status; its usual phrase is the title.
    pub status: StatusCode,
    /// What a person should read. Never empty, never anything secret.
    pub detail: String,
}

impl Problem {
    /// 400: the request's own words are wrong.
    pub fn bad_request(detail: impl Into<String>) -> Problem {
        Problem { status: StatusCode::BAD_REQUEST, detail: detail.into() }
    }

    /// 401: no or a wrong token.
    pub fn unauthorized(detail: impl Into<String>) -> Problem {
        Problem { status: StatusCode::UNAUTHORIZED, detail: detail.into() }
    }

    /// 404: no such path, name or id.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem { status: StatusCode::NOT_FOUND, detail: detail.into() }
    }

    /// 409: not while something else is as it is.
    pub fn conflict(detail: impl Into<String>) -> Problem {
        Problem { status: StatusCode::CONFLICT, detail: detail.into() }
    }

    /// 413: more than we take.
    pub fn too_large(bytes_max: usize) -> Problem {
        Problem { status: StatusCode::PAYLOAD_TOO_LARGE, detail: format!("a body has at most {bytes_max} bytes") }
    }

    /// 503: we cannot tell now; the same call may succeed later.
    pub fn unavailable(detail: impl Into<String>) -> Problem {
        Problem { status: StatusCode::SERVICE_UNAVAILABLE, detail: detail.into() }
    }
}

/// A refusal: a problem document of RFC 9457.
#[derive(Serialize, ToSchema)]
pub(super) struct ProblemDocument {
    /// Always `about:blank`.
    r#type: &'static str,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What a person should read.
    detail: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let document = ProblemDocument { r#type: "about:blank", title, status: self.status.as_u16(), detail: self.detail };
        let mut response = (self.status, Json(document)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"uringcast\""));
        }
        response
    }
}

/// The query string as a `T`; with `deny_unknown_fields` on `T`, a parameter that we do not know is refused and not ignored.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Params<T>, Problem> {
        if !is_utf8(parts.uri.query().unwrap_or_default()) {
            return Err(Problem::bad_request("the query is not UTF-8"));
        }
        let Query(params) = Query::try_from_uri(&parts.uri).map_err(|fault| Problem::bad_request(fault.body_text()))?;
        Ok(Params(params))
    }
}

/// True exactly when what is percent-encoded here is UTF-8. The extractor would put other characters in the place of what is not, and so
/// might find somebody else.
fn is_utf8(query: &str) -> bool {
    let bytes = query.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).filter(|_| *byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let encoded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(encoded.unwrap_or(*byte));
        at += if encoded.is_some() { 3 } else { 1 };
    }
    std::str::from_utf8(&decoded).is_ok()
}

/// All bytes of a body.
pub(super) async fn whole_body(request: Request, bytes_max: usize) -> Result<Bytes, Problem> {
    axum::body::to_bytes(request.into_body(), bytes_max).await.map_err(|fault| match fault.source() {
        Some(source) if source.is::<LengthLimitError>() => Problem::too_large(bytes_max),
        _ => Problem::bad_request("the body is cut off, or its chunks are malformed"),
    })
}

/// The one variable segment of the path, percent-decoded.
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Segment, Problem> {
        let segment = Path::<String>::from_request_parts(parts, state).await;
        segment.map(|Path(text)| Segment(text)).map_err(|fault| Problem::bad_request(fault.body_text()))
    }
}

/// All variable segments of the path, percent-decoded.
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Segments<T>, Problem> {
        let segments = Path::<T>::from_request_parts(parts, state).await;
        segments.map(|Path(segments)| Segments(segments)).map_err(|fault| Problem::bad_request(fault.body_text()))
    }
}

/// The body, an object, as a `T`, whatever the content type says. None at all is refused: a slip of the hand must not stop a server.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Body<T>, Problem> {
        let text = super::emit::body(request, BODY_BYTES_MAX).await?;
        // A list would be taken for the members in their order.
        if !text.trim_ascii_start().starts_with('{') {
            return Err(Problem::bad_request("the body is an object"));
        }
        serde_json::from_str(&text).map(Body).map_err(|fault| Problem::bad_request(format!("the body: {fault}")))
    }
}

/// For members that may be missing but not null.
pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_query_that_is_not_utf8_is_noticed() {
        for good in ["", "a=%C3%A9&b=%e2%82%ac", "%", "%4", "%zz", "100%", "%+1"] {
            assert!(is_utf8(good), "{good}");
        }
        for bad in ["%ff", "a=%C3", "%c3%28", "a=b&c=%ED%A0%80"] {
            assert!(!is_utf8(bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_problem_is_a_problem_document() {
        let response = Problem::unauthorized("the token is wrong").into_response();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer realm=\"uringcast\"");
        let body = axum::body::to_bytes(response.into_body(), 4096).await.expect("a body");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body, json!({"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": "the token is wrong"}));
        assert!(!Problem::not_found("x").into_response().headers().contains_key(header::WWW_AUTHENTICATE));
    }
}
