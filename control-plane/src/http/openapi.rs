//! The OpenAPI 3.1 document of the admin part, made from the handlers.
//!
//! A call is documented where it is written, and only so can it be reached: [`super::admin`] registers handlers with `routes!`, which takes
//! path, method and description from the handler's own annotation.
//!
//! - `#[utoipa::path(get, path = "/v1/things/{id}", tag = "things", params(("id" = String, Path, description = "..."), ThingQuery),
//!   responses((status = 200, description = "...", body = Thing), (status = 404, description = "no thing has the id")))]` above the handler;
//!   the first paragraph of its doc comment is the summary.
//! - Query parameters are a struct with `Deserialize`, `IntoParams`, `#[serde(deny_unknown_fields)]` and `#[into_params(parameter_in = Query)]`;
//!   what is answered is a struct with `Serialize` and `ToSchema` (see [`super::shapes`]), so that the document cannot differ from the answer.
//! - What holds for all calls is added here and not written at each: the token, 400, 401, 413 and 503, the problem document as the body of every
//!   refusal, the headers for shards and hosts that did not answer.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, ContentBuilder, Object, OpenApi, Ref, RefOr, Response, Schema, Type};
use utoipa::{OpenApi as _, ToSchema as _};

use super::admin::{self, HOSTS_MISSING, INCOMPLETE};
use super::problem::ProblemDocument;

/// The name of the security scheme.
const TOKEN: &str = "adminToken";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "uringcast admin API",
        description = "What back ends and operators may ask of a uringcast server. Everything under /v1 needs the admin token; on a Unix socket it may be \
                       configured without. Bodies are JSON in UTF-8, whatever their Content-Type. Unknown query parameters and members of \
                       bodies are refused, and a call that is refused has changed nothing.",
        version = env!("CARGO_PKG_VERSION"),
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    components(schemas(ProblemDocument))
)]
struct Frame;

/// An empty document, to which the calls add themselves.
pub(super) fn frame() -> OpenApi {
    let mut frame = Frame::openapi();
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The admin token (`ADMIN_TOKEN`)."));
    if let Some(components) = &mut frame.components {
        components.add_security_scheme(TOKEN, SecurityScheme::Http(scheme.build()));
    }
    frame
}

/// The whole document, as it is served.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let document = serde_json::to_string(&document());
    document.expect("the document has texts as keys and no numbers but finite ones")
});

/// The document of every call there is.
fn document() -> OpenApi {
    let mut document = admin::calls().into_openapi();
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            complete(operation, path.starts_with("/v1/"));
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten()
}

/// Adds what holds for every call.
fn complete(operation: &mut Operation, needs_token: bool) {
    let mut common = vec![("413", "the body is too large")];
    if needs_token {
        operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(TOKEN, [])]);
        common.extend([
            ("400", "a parameter or the body is not as described"),
            ("401", "no or a wrong token"),
            ("503", "a shard or the answer took too long; the same call may succeed later"),
        ]);
    }
    for (status, description) in common {
        operation.responses.responses.entry(status.into()).or_insert_with(|| RefOr::T(Response::new(description)));
    }
    if let Some(RefOr::T(body)) = operation.request_body.as_mut() {
        body.content.values_mut().for_each(not_null);
    }
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let is_refusal = status.starts_with(['4', '5']);
        if is_refusal && response.content.is_empty() {
            let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name(ProblemDocument::name()))).build();
            response.content.insert("application/problem+json".into(), RefOr::T(problem));
        } else if !is_refusal && needs_token {
            for (name, what) in [(INCOMPLETE, "shards"), (HOSTS_MISSING, "other hosts")] {
                response.headers.insert(name.into(), RefOr::T(missing(what)));
            }
        }
    }
}

/// A body that need not be there (`request_body = Option<T>`) is not null where it is.
fn not_null(content: &mut RefOr<Content>) {
    let RefOr::T(content) = content else { return };
    if let Some(RefOr::T(Schema::OneOf(alternatives))) = &mut content.schema {
        alternatives.items.retain(|item| !matches!(item, RefOr::T(Schema::Object(object)) if object.schema_type == Type::Null.into()));
    }
}

fn missing(what: &str) -> Header {
    let number = Object::with_type(Type::Integer);
    let description = format!("How many {what} did not answer in time; absent where all did.");
    HeaderBuilder::new().schema(Some(number)).description(Some(description)).build()
}

/// The OpenAPI document of this API.
#[utoipa::path(get, path = "/openapi.json", tag = "process", responses((status = 200, description = "this document", body = Object)))]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use axum::Router;
    use axum::http::{Method, StatusCode};
    use serde_json::{Value, json};

    use super::super::testing::{FakeHost, app, call};
    use super::*;

    const METHODS: [&str; 7] = ["get", "put", "post", "delete", "patch", "options", "trace"];

    fn served() -> (Router, Value) {
        let router = admin::router(Arc::new(app(Arc::new(FakeHost::new(1)), Arc::default())));
        (router, serde_json::from_str(&DOCUMENT).expect("JSON"))
    }

    /// The methods of each path, in capitals.
    fn documented(document: &Value) -> BTreeMap<&str, BTreeSet<String>> {
        let paths = document["paths"].as_object().expect("an object");
        let methods = |item: &Value| METHODS.iter().filter(|method| item.get(**method).is_some()).map(|it| it.to_uppercase()).collect();
        paths.iter().map(|(path, item)| (path.as_str(), methods(item))).collect()
    }

    /// What is between quotation marks and looks like a path, without the fallback's.
    fn paths_in(debug: &str) -> BTreeSet<&str> {
        debug.split('"').filter(|part| part.starts_with('/') && part.len() > 1 && !part.contains('*')).collect()
    }

    #[tokio::test]
    async fn the_document_has_exactly_the_calls_that_are_served() {
        let (router, document) = served();
        let documented = documented(&document);
        assert_eq!(paths_in(&format!("{router:?}")), documented.keys().copied().collect());
        for (path, methods) in documented {
            let path = path.replace(['{', '}'], "");
            let heard = call(&router, Method::TRACE, &path, &[("authorization", "Bearer correct horse")]).await;
            assert_eq!(heard.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            let allowed: BTreeSet<_> = heard.header("allow").split(',').filter(|method| *method != "HEAD").map(str::to_owned).collect();
            assert_eq!(allowed, methods, "{path}");
        }
    }

    #[tokio::test]
    async fn it_is_there_for_anybody_and_says_what_needs_the_token() {
        let (router, document) = served();
        let heard = call(&router, Method::GET, "/openapi.json", &[]).await;
        assert_eq!((heard.status, heard.header("content-type"), heard.json()), (StatusCode::OK, "application/json", document.clone()));
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["components"]["securitySchemes"][TOKEN]["scheme"], "bearer");
        for (path, item) in document["paths"].as_object().expect("an object") {
            for operation in METHODS.iter().filter_map(|method| item.get(method)) {
                let without = call(&router, Method::GET, &path.replace(['{', '}'], ""), &[]).await.status;
                let guarded = without == StatusCode::UNAUTHORIZED;
                assert_eq!(operation.get("security").is_some(), guarded, "{path}");
                assert_eq!(operation["responses"].get("401").is_some(), guarded, "{path}");
                assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{path} has a summary");
            }
        }
    }

    #[test]
    fn every_refusal_is_a_problem_document_and_every_answer_has_a_shape() {
        let (_, document) = served();
        let problem = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}});
        for (path, item) in document["paths"].as_object().expect("an object") {
            for operation in METHODS.iter().filter_map(|method| item.get(method)) {
                for (status, response) in operation["responses"].as_object().expect("an object") {
                    let is_problem = response["content"] == problem;
                    let is_refusal = status.starts_with(['4', '5']) && path != "/readyz";
                    assert!(is_problem == is_refusal || path == "/readyz", "{path} {status}: {response}");
                    assert!(!response["description"].as_str().unwrap_or_default().is_empty(), "{path} {status}");
                }
            }
        }
        assert!(document.pointer("/components/schemas/ProblemDocument/properties/detail").is_some());
    }
}
