//! `POST /v1/endpoints/{name}/documents/{id}/steps`: the back end's steps to a document of a collab endpoint.
//!
//! | member | is |
//! |---|---|
//! | `steps` | a list; it goes out as it stands in the body |
//! | `changeId` | a text or a number, likewise |
//! | `clientID` | only its connections get them, and they are not kept for late joiners |
//!
//! It is an emit, so that it has its place in the document's order and everything that holds for emits holds for it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use engine::config::DialectKind;
use engine::dialect;
use engine::json::{Scratch, Value};
use engine::{Emit, Question, Selection, Target};
use serde::Deserialize;
use utoipa::ToSchema;

use super::admin::{NoQuery, endpoint_named};
use super::emit::{EMIT_BYTES_MAX, EmitOutcome, Outcome, body, name, text};
use super::problem::{Params, Problem, Segments};
use super::shapes::Name;
use super::{App, unix_ms};

/// How its path ends.
pub const STEPS_END: &str = "/steps";

const MEMBERS: [&str; 3] = ["steps", "changeId", "clientID"];

/// Steps, as the document describes them. They are read by [`read`], so that they keep their text.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "the document is made from it")]
struct StepsBody {
    /// They go out as they stand here.
    steps: Vec<serde_json::Value>,
    change_id: ChangeId,
    /// Only connections with this `clientID` get them, and they are not kept.
    #[serde(rename = "clientID")]
    #[schema(nullable = false)]
    client_id: Option<Name>,
}

/// The change's id, a text or a number.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "the document is made from it")]
enum ChangeId {
    Text(String),
    Number(f64),
}

/// Sends steps to a document of a collab endpoint.
#[utoipa::path(post, path = "/v1/endpoints/{name}/documents/{id}/steps", tag = "documents", request_body = StepsBody,
    params(("name" = String, Path, description = "The endpoint's name."), ("id" = Name, Path, description = "The document's id.")),
    responses((status = 200, description = "who got them", body = EmitOutcome), (status = 404, description = "no endpoint has the name")))]
pub(super) async fn steps(
    State(app): State<Arc<App>>,
    Segments((endpoint, document)): Segments<(String, String)>,
    Params(NoQuery {}): Params<NoQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let endpoint = endpoint_named(&app, &endpoint)?;
    if app.host.endpoints()[usize::from(endpoint.0)].dialect != DialectKind::Collab {
        return Err(Problem::bad_request("the endpoint has no documents"));
    }
    let document: Arc<str> = name(&document, "document")?.into();
    let body = body(request, EMIT_BYTES_MAX).await?;
    let (args, client) = read(&body)?;
    if args.len() > EMIT_BYTES_MAX {
        // One name for each step is added, so that many small steps grow.
        return Err(Problem::too_large(EMIT_BYTES_MAX));
    }
    let target = match client {
        Some(presence) => Target::Present { room: document, presence },
        None => Target::Room(document),
    };
    let to = Selection { endpoint, targets: vec![target], except: Vec::new() };
    let event = dialect::STEPS.to_owned();
    let emit = Emit {
        to,
        event,
        args,
        volatile: false,
        ack_ms: None,
        offset: rand::random::<u64>().into(),
        unix_ms: unix_ms(),
        attachments: Vec::new(),
        is_elsewhere: false,
    };
    let asked = app.pending.begin(&*app.host, Question::Emit(Arc::new(emit)));
    Ok(Outcome::sum(&asked.answers(Duration::ZERO).await, false).response())
}

/// The emit's data, and for whom alone it is.
fn read(body: &str) -> Result<(String, Option<Arc<str>>), Problem> {
    let mut scratch = Scratch::default();
    let doc = scratch.parse(body).map_err(|_| Problem::bad_request("the body is not JSON"))?;
    let root = doc.root();
    if !root.is_object() {
        return Err(Problem::bad_request("the body is an object"));
    }
    if let Some(member) = root.members().find(|member| !MEMBERS.contains(&member.key)) {
        return Err(Problem::bad_request(format!("the body has no member {:?}", member.key)));
    }
    let steps = root.get("steps").filter(|steps| steps.is_array()).ok_or_else(|| Problem::bad_request("steps is a list"))?;
    let is_id = |id: &Value<'_>| id.as_exact_str().is_some() || id.as_f64().is_some();
    let change_id = root.get("changeId").filter(is_id).ok_or_else(|| Problem::bad_request("changeId is a text or a number"))?;
    let client = root.get("clientID").map(|_| name(text(root, "clientID")?, "clientID").map(Arc::from)).transpose()?;
    Ok((dialect::steps(steps, change_id), client))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::http::{Method, StatusCode};
    use engine::ids::EndpointId;
    use engine::{Answer, Emitted};
    use serde_json::json;

    use super::super::testing::{BEARER, FakeHost, Heard, app, call_with};
    use super::*;
    use crate::bridge::Pending;

    type Asked = Arc<Mutex<Vec<Arc<Emit>>>>;

    fn router() -> (Asked, Router) {
        let asked = Asked::default();
        let (list, pending) = (asked.clone(), Arc::new(Pending::default()));
        let host = FakeHost::new(2).answering(&pending, move |shard, question| {
            let Question::Emit(emit) = question else { return None };
            if shard == 0 {
                list.lock().expect("one thread").push(emit.clone());
            }
            Some(Answer::Emitted(Emitted { recipients: 2, ..Emitted::default() }))
        });
        (asked, super::super::admin::router(Arc::new(app(Arc::new(host), pending))))
    }

    async fn post(router: &Router, place: &str, body: &str) -> Heard {
        call_with(router, Method::POST, &format!("/v1/endpoints/{place}/steps"), &[BEARER], body).await
    }

    #[tokio::test]
    async fn steps_reach_the_engine_word_by_word() {
        let (asked, router) = router();
        for (body, target, args) in [
            (
                r#" {"changeId" : "\u0041", "steps":[ {"n":1e+100},[2]]} "#,
                Target::Room("d 1".into()),
                r#"{"steps":[ {"n":1e+100},[2]],"clientIDs":["agent","agent"],"changeId":"\u0041"}"#,
            ),
            (
                r#"{"steps":[],"changeId":12345678901234567890,"clientID":"c"}"#,
                Target::Present { room: "d 1".into(), presence: "c".into() },
                r#"{"steps":[],"clientIDs":[],"changeId":12345678901234567890}"#,
            ),
        ] {
            let heard = post(&router, "fabric/documents/d%201", body).await;
            assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"recipients": 4})), "{body}");
            let emit = asked.lock().expect("one thread").pop().expect("asked");
            assert_eq!((&emit.to.targets, emit.to.endpoint, emit.event.as_str()), (&vec![target], EndpointId(1), "steps"));
            assert_eq!(emit.args, args);
        }
    }

    #[tokio::test]
    async fn wrong_steps_are_problems_and_reach_nobody() {
        let (asked, router) = router();
        let good = r#"{"steps":[1],"changeId":"c"}"#;
        let long = "x".repeat(256);
        for (place, status) in [
            ("nothing/documents/d", 404),
            ("rooms/documents/d", 400),
            ("community/documents/d", 400),
            ("fabric/documents/a%0ab", 400),
            ("fabric/documents/%ff", 400),
            (&format!("fabric/documents/{long}"), 400),
            ("fabric/documents/", 400),
            ("fabric/d", 404),
        ] {
            assert_eq!(post(&router, place, good).await.status.as_u16(), status, "{place}");
        }
        for body in [
            "",
            "[]",
            "{",
            "7",
            "{}",
            r#"{"steps":[1]}"#,
            r#"{"changeId":"c"}"#,
            r#"{"steps":{},"changeId":"c"}"#,
            r#"{"steps":"[]","changeId":"c"}"#,
            r#"{"steps":null,"changeId":"c"}"#,
            r#"{"steps":[1],"changeId":null}"#,
            r#"{"steps":[1],"changeId":["c"]}"#,
            r#"{"steps":[1],"changeId":true}"#,
            r#"{"steps":[1],"changeId":"c","clientID":7}"#,
            r#"{"steps":[1],"changeId":"c","clientID":""}"#,
            r#"{"steps":[1],"changeId":"c","clientID":null}"#,
            r#"{"steps":[1],"changeId":"c","clientIDs":["me"]}"#,
        ] {
            let heard = post(&router, "fabric/documents/d", body).await;
            assert_eq!((heard.status, heard.header("content-type")), (StatusCode::BAD_REQUEST, "application/problem+json"), "{body}");
        }
        let queried = call_with(&router, Method::POST, "/v1/endpoints/fabric/documents/d/steps?x=1", &[BEARER], good).await;
        assert_eq!(queried.status, StatusCode::BAD_REQUEST);
        let many = format!(r#"{{"steps":[{}1],"changeId":"c"}}"#, "1,".repeat(200_000));
        let large = format!(r#"{{"steps":["{}"],"changeId":"c"}}"#, "x".repeat(EMIT_BYTES_MAX));
        for body in [many, large] {
            assert_eq!(post(&router, "fabric/documents/d", &body).await.status, StatusCode::PAYLOAD_TOO_LARGE);
        }
        let path = "/v1/endpoints/fabric/documents/d/steps";
        let wrong = ("authorization", "Bearer wrong horse");
        for headers in [&[][..], &[wrong]] {
            assert_eq!(call_with(&router, Method::POST, path, headers, good).await.status, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(call_with(&router, Method::GET, path, &[BEARER], "").await.status, StatusCode::METHOD_NOT_ALLOWED);
        assert!(asked.lock().expect("one thread").is_empty(), "nothing was sent");
    }
}
