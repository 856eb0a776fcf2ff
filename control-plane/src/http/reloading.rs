//! `POST /v1/reload {}` has the process replace itself in place, as SIGHUP does; `GET /v1/reload` says how reloads of this process went. Whoever asked looks there until one of the
//! numbers has grown: the answer to the wish itself cannot wait for the end, because the process that would give it is replaced.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::admin::NoQuery;
use super::problem::{Body, Params, Problem};
use crate::lifecycle::Wanted;

/// Nothing is said of how.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reload {}

/// How reloads of this process went.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reloaded {
    /// Version of the program that runs now.
    version: &'static str,
    /// Those that were done since the process was started.
    done: u64,
    /// Those that were refused; the process went on as it was.
    refused: u64,
    /// Why the last one was refused; null when it was done.
    reason: Option<String>,
    /// For how long clients were not heard in the last one that was done; null before the first.
    pause_ms: Option<f64>,
}

impl Reloaded {
    fn now(app: &App) -> Reloaded {
        let reloads = &app.reloads;
        let pause_us = reloads.pause_us.load(Relaxed);
        Reloaded {
            version: env!("CARGO_PKG_VERSION"),
            done: reloads.done.load(Relaxed),
            refused: reloads.refused.load(Relaxed),
            reason: reloads.last_refusal(),
            pause_ms: (pause_us > 0).then(|| pause_us as f64 / 1_000.0),
        }
    }
}

/// Reloads the configuration and the program, with all connections.
///
/// The answer says how it was before: it is done when `done` of `GET /v1/reload` has grown, and refused when `refused` has.
#[utoipa::path(post, path = "/v1/reload", tag = "process", request_body = Reload, responses(
    (status = 202, description = "it is wished", body = Reloaded),
    (status = 409, description = "the server is stopping, or a wish waits already"),
))]
pub(super) async fn reload(
    State(app): State<Arc<App>>,
    Params(NoQuery {}): Params<NoQuery>,
    Body(Reload {}): Body<Reload>,
) -> Result<Response, Problem> {
    let before = Reloaded::now(&app);
    if !app.host.accepting() || app.terms.stop.try_send(Wanted::Reload).is_err() {
        return Err(Problem::conflict("the server is stopping, or about to reload already"));
    }
    Ok((StatusCode::ACCEPTED, Json(before)).into_response())
}

/// How reloads of this process went.
#[utoipa::path(get, path = "/v1/reload", tag = "process", responses((status = 200, description = "until now", body = Reloaded)))]
pub(super) async fn reloads(State(app): State<Arc<App>>, Params(NoQuery {}): Params<NoQuery>) -> Json<Reloaded> {
    Json(Reloaded::now(&app))
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use serde_json::json;

    use super::super::testing::{BEARER, FakeHost, call, call_with, terms};
    use super::super::{Terms, admin};
    use super::*;

    #[tokio::test]
    async fn a_reload_is_wished_once_and_told_of() {
        let (stop, wishes) = crossbeam_channel::bounded(1);
        let app = Arc::new(App::new(Arc::new(FakeHost::new(1)), Arc::default(), Terms { stop, ..terms() }));
        let router = admin::router(app.clone());
        app.reloads.done.store(3, Relaxed);
        let first = call_with(&router, Method::POST, "/v1/reload", &[BEARER], "{}").await;
        assert_eq!((first.status, &first.json()["done"], &first.json()["reason"]), (StatusCode::ACCEPTED, &json!(3), &json!(null)));
        let second = call_with(&router, Method::POST, "/v1/reload", &[BEARER], "{}").await;
        assert_eq!(second.status, StatusCode::CONFLICT);
        assert_eq!(wishes.try_recv(), Ok(Wanted::Reload));
        app.reloads.refuse("of a bad configuration");
        app.reloads.pause_us.store(1_500, Relaxed);
        let seen = call(&router, Method::GET, "/v1/reload", &[BEARER]).await;
        let (refused, reason, pause) = (json!(1), json!("of a bad configuration"), json!(1.5));
        assert_eq!((&seen.json()["refused"], &seen.json()["reason"], &seen.json()["pauseMs"]), (&refused, &reason, &pause));
    }
}
