//! Hooks against a back end of this process: bounds, one question for many askers, and that every way of failing refuses.

use std::future::Future;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use engine::ids::{ShardId, Sid};
use tokio::net::TcpListener;

use super::*;

const ENDPOINT: EndpointId = EndpointId(0);

/// A back end that answers what the function says, once it is let; its URL, and how often it was asked.
async fn back_end<F>(answer: impl Fn(usize) -> F + Clone + Send + Sync + 'static) -> (String, Arc<AtomicUsize>)
where
    F: Future<Output = (StatusCode, String)> + Send + 'static,
{
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let router = Router::new().route("/", post(move |_: Bytes| answer(counter.fetch_add(1, Relaxed))));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum_serve(listener, router).await });
    (url, asked)
}

async fn axum_serve(listener: TcpListener, router: Router) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(crate::http::connection::serve(
            stream,
            router.clone(),
            crate::http::connection::ADMIN,
            Box::leak(Box::<Arc<crate::http::pause::Pause>>::default()),
        ));
    }
}

fn hooks(url: &str, timeout: Duration) -> (Arc<Hooks>, Queue, mpsc::Receiver<OpenInquiry>) {
    let url: Url = url.parse().expect("a URL");
    let urls = Urls { connect: Some(url.clone()), join: Some(url.clone()), publish: Some(url) };
    let settings = HookSettings {
        endpoints: vec![("e".into(), urls)],
        secret: Secret::new(b"secret").expect("not empty"),
        timeout,
        cache: Duration::from_secs(60),
        cache_entries: 1_000,
        concurrency: 4,
        message_bytes: 1_000,
    };
    Hooks::new(&settings, Outbound::new())
}

const PLENTY: Duration = Duration::from_secs(30);

fn counted(hooks: &Hooks, name: &str, outcome: Outcome) -> u64 {
    hooks.counts().find(|(_, hook, label, _)| *hook == name && *label == outcome.label()).expect("all are there").3
}

fn allowed(ruling: &Ruling) -> bool {
    matches!(ruling, Ruling::Allowed(_))
}

fn caller() -> Inquiry {
    Inquiry { endpoint: ENDPOINT, about: About::Connect(Box::default()) }
}

#[tokio::test]
async fn every_failure_refuses_and_has_its_name() {
    for (status, body, outcome) in [
        (200, r#"{"allow":true}"#, Outcome::Allowed),
        (204, "", Outcome::BadAnswer),
        (201, r#"{"allow":false}"#, Outcome::Denied),
        (200, "{}", Outcome::BadAnswer),
        (200, "<html>", Outcome::BadAnswer),
        (500, r#"{"allow":true}"#, Outcome::Status),
        (302, r#"{"allow":true}"#, Outcome::Status),
    ] {
        let answer = move |_| async move { (StatusCode::from_u16(status).expect("a status"), body.to_owned()) };
        let (url, _) = back_end(answer).await;
        let (hooks, _queue, _inquiries) = hooks(&url, PLENTY);
        let ruling = hooks.rule(&caller()).await;
        assert_eq!(allowed(&ruling), outcome == Outcome::Allowed, "{status} {body}");
        assert_eq!(
            matches!(ruling, Ruling::Refused(_)),
            outcome == Outcome::Denied,
            "that it has no word is not its word: {status} {body}"
        );
        assert_eq!(counted(&hooks, "connect", outcome), 1, "{status} {body}");
    }
    let (url, _) = back_end(|_| async { (StatusCode::OK, format!(r#"{{"allow":true,"name":"{}"}}"#, "x".repeat(70_000))) }).await;
    let (large, _queue, _inquiries) = hooks(&url, PLENTY);
    assert!(!allowed(&large.rule(&caller()).await) && counted(&large, "connect", Outcome::BadAnswer) == 1);
    let (silent, _queue, _inquiries) = {
        let (url, _) = back_end(|_| std::future::pending()).await;
        hooks(&url, Duration::from_millis(100))
    };
    assert!(!allowed(&silent.rule(&caller()).await) && counted(&silent, "connect", Outcome::Timeout) == 1);
    let (nobody, _queue, _inquiries) = hooks("http://127.0.0.1:1/", PLENTY);
    assert!(!allowed(&nobody.rule(&caller()).await) && counted(&nobody, "connect", Outcome::Unreachable) == 1);
}

#[tokio::test]
async fn a_flood_of_the_same_question_is_one_and_its_answer_is_kept() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let (url, asked) = back_end(move |_| {
        let gate = opened.clone();
        async move {
            let _pass = gate.acquire().await;
            (StatusCode::OK, r#"{"allow":true}"#.to_owned())
        }
    })
    .await;
    let (hooks, _queue, _inquiries) = hooks(&url, PLENTY);
    let mut waiting = JoinSet::new();
    for _ in 0..WAITING_MAX + 100 {
        let hooks = hooks.clone();
        waiting.spawn(async move { hooks.may_join(ENDPOINT, "alice", Some("c"), "r").await });
    }
    // Who comes when as many wait as may wait is refused at once.
    for _ in 0..100 {
        assert!(!allowed(&waiting.join_next().await.expect("some").expect("no panic")));
    }
    gate.add_permits(1);
    let all = waiting.join_all().await;
    assert!(all.len() == WAITING_MAX && all.iter().all(allowed));
    assert_eq!(asked.load(Relaxed), 1);
    assert!(allowed(&hooks.may_join(ENDPOINT, "alice", Some("c"), "r").await));
    assert_eq!((asked.load(Relaxed), counted(&hooks, "join", Outcome::Busy)), (1, 100));
    assert!(hooks.all().all(|hook| hook.waiting.load(Relaxed) == 0), "all places are free again");
    // Somebody else is another question.
    gate.add_permits(1);
    assert!(allowed(&hooks.may_join(ENDPOINT, "bob", Some("c"), "r").await));
    assert_eq!(asked.load(Relaxed), 2);
}

#[tokio::test]
async fn whoever_asked_first_may_hang_up() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let (url, asked) = back_end(move |_| {
        let gate = opened.clone();
        async move {
            let _pass = gate.acquire().await;
            (StatusCode::OK, r#"{"allow":true}"#.to_owned())
        }
    })
    .await;
    let (hooks, _queue, _inquiries) = hooks(&url, PLENTY);
    let first = {
        let hooks = hooks.clone();
        tokio::spawn(async move { hooks.may_join(ENDPOINT, "a", Some("c"), "r").await })
    };
    while asked.load(Relaxed) == 0 {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    first.abort();
    let second = {
        let hooks = hooks.clone();
        tokio::spawn(async move { hooks.may_join(ENDPOINT, "a", Some("c"), "r").await })
    };
    gate.add_permits(1);
    assert!(allowed(&second.await.expect("no panic")));
    assert_eq!(asked.load(Relaxed), 1);
}

#[tokio::test]
async fn whoever_asks_for_more_than_he_may_hear_keeps_his_places_until_it_is_answered() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let (url, asked) = back_end(move |n| {
        let gate = opened.clone();
        async move {
            if n > 0 {
                let _pass = gate.acquire().await;
            }
            (StatusCode::OK, format!(r#"{{"allow":{}}}"#, n > 0))
        }
    })
    .await;
    let (hooks, _queue, _inquiries) = hooks(&url, PLENTY);
    assert!(matches!(hooks.may_join(ENDPOINT, "a", Some("c"), "no").await, Ruling::Refused(None)));
    let mut asking = JoinSet::new();
    for n in 0..20 {
        let rooms: Vec<Arc<str>> = std::iter::once("no".into()).chain((0..99).map(|m| format!("{n}-{m}").into())).collect();
        let hooks = hooks.clone();
        asking.spawn(async move { hooks.rule_joins(ENDPOINT, "a", "c", &rooms).await });
    }
    // Those for whom there is no place any more are answered, but not before all the others are.
    while counted(&hooks, "join", Outcome::Busy) < 20 * 99 - WAITING_MAX as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let hook = hooks.endpoints[0].join.as_ref().expect("it is there");
    assert_eq!((hooks.cache().under_way(), hook.waiting.load(Relaxed)), (WAITING_MAX, WAITING_MAX));
    asking.abort_all();
    while asking.join_next().await.is_some() {}
    assert_eq!(hook.waiting.load(Relaxed), WAITING_MAX, "who hangs up leaves the places to what he has asked for");
    gate.add_permits(WAITING_MAX);
    while hook.waiting.load(Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(asked.load(Relaxed), 1 + WAITING_MAX);
}

#[tokio::test]
async fn only_an_answer_to_a_message_may_be_longer_than_others() {
    let (url, _) = back_end(|_| async { (StatusCode::OK, format!(r#"{{"allow":true,"more":"{}"}}"#, "x".repeat(ANSWER_BYTES_MAX))) }).await;
    let (hooks, _queue, _inquiries) = hooks(&url, PLENTY);
    let proposal = engine::Proposal { user: "a".into(), conn: None, room: None, event: "message".into(), data: "{}".into() };
    assert!(allowed(&hooks.may_publish(ENDPOINT, &proposal).await));
    assert!(matches!(hooks.rule(&caller()).await, Ruling::Unavailable));
    assert!(matches!(hooks.may_join(ENDPOINT, "a", Some("c"), "r").await, Ruling::Unavailable));
}

#[tokio::test]
async fn so_many_are_asked_at_once_and_one_hook_does_not_wait_for_another() {
    let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (under_way.clone(), most.clone());
    let (url, asked) = back_end(move |_| {
        let (now, peak) = (now.clone(), peak.clone());
        async move {
            peak.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::time::sleep(Duration::from_millis(2)).await;
            now.fetch_sub(1, Relaxed);
            (StatusCode::OK, r#"{"allow":false,"reason":"no"}"#.to_owned())
        }
    })
    .await;
    let (hooks, _queue, _inquiries) = hooks(&url, PLENTY);
    let rooms: Vec<Arc<str>> = (0..40).map(|n| n.to_string().into()).collect();
    let mut all = JoinSet::new();
    for room in rooms.clone() {
        let hooks = hooks.clone();
        all.spawn(async move { hooks.may_join(ENDPOINT, "a", Some("c"), &room).await });
    }
    for ruling in all.join_all().await {
        assert!(matches!(ruling, Ruling::Refused(Some(reason)) if &*reason == "no"));
    }
    assert_eq!((asked.load(Relaxed), most.load(Relaxed)), (40, 4));
    // All of them or none, from what is known.
    assert!(!allowed(&hooks.rule_joins(ENDPOINT, "a", "c", &rooms).await));
    assert_eq!(asked.load(Relaxed), 40);

    let (url, _) = back_end(|_| std::future::pending()).await;
    let (stuck, _queue, _inquiries) = self::hooks(&url, PLENTY);
    for n in 0..10 {
        let stuck = stuck.clone();
        tokio::spawn(async move { stuck.may_join(ENDPOINT, "a", Some("c"), &n.to_string()).await });
    }
    tokio::task::yield_now().await;
    let hook = stuck.endpoints[0].publish.as_ref().expect("it is there");
    assert!(hook.places.try_acquire().is_ok(), "places are each hook's own");
}

#[tokio::test]
async fn what_is_queued_is_answered_and_what_is_dropped_is_refused() {
    let (url, _) = back_end(|_| async { (StatusCode::OK, r#"{"allow":true,"data":{"n": 1}}"#.to_owned()) }).await;
    let (hooks, queue, inquiries) = hooks(&url, PLENTY);
    let (told, mut hears) = mpsc::unbounded_channel();
    let proposal = || {
        let conn = Sid::new(ShardId(0), 1, [7; 11]);
        About::Publish(Box::new(engine::Proposal {
            user: "a".into(),
            conn: Some(conn),
            room: None,
            event: "message".into(),
            data: "{}".into(),
        }))
    };
    let inquiry = |about| {
        let told = told.clone();
        OpenInquiry::new(Inquiry { endpoint: ENDPOINT, about }, move |ruling| drop(told.send(ruling)))
    };
    for _ in 0..QUEUE_MAX + 1 {
        queue.put(inquiry(proposal()));
    }
    assert!(!allowed(&hears.recv().await.expect("the one too many")));
    assert_eq!(counted(&hooks, "publish", Outcome::Busy), 1);
    drop(inquiries);
    for _ in 0..QUEUE_MAX {
        assert!(!allowed(&hears.recv().await.expect("nobody takes them any more")));
    }
    let (hooks, queue, inquiries) = self::hooks(&url, PLENTY);
    tokio::spawn(hooks.serve(inquiries));
    queue.put(inquiry(proposal()));
    let ruling = hears.recv().await.expect("an answer");
    assert!(matches!(&ruling, Ruling::Allowed(Changes { data: Some(data), .. }) if &**data == r#"{"n": 1}"#), "{ruling:?}");
    queue.put(inquiry(About::Connect(Box::default())));
    assert!(allowed(&hears.recv().await.expect("an answer")));
    let elsewhere = Inquiry { endpoint: EndpointId(9), about: proposal() };
    let told = told.clone();
    queue.put(OpenInquiry::new(elsewhere, move |ruling| drop(told.send(ruling))));
    assert!(!allowed(&hears.recv().await.expect("an answer")));
}
