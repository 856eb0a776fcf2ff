//! What two hosts bring to each other's clients: what is said in rooms of all kinds, who is there, what is kept, and what the back end asks and
//! says. Each thing is tried until it is so, because after an outage nobody knows the moment from which on it is.

use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::redis_bed::until;
use crate::support::raw::{Next, Raw, frame};
use crate::support::{ADMIN_TOKEN, Server, ask, get, token};

/// What these hosts need besides a Redis: enough for who tries again and again, and rooms that anybody may enter.
pub(crate) const LIMITS: &str = "rate_messages = 1000000\nhandshakes_per_address = 1000000\n";
/// See [`LIMITS`].
pub(crate) const VARIABLES: &[(&str, &str)] =
    &[("URINGCAST_ENDPOINT_COMMUNITY_MEMBERSHIP", "open"), ("URINGCAST_ENDPOINT_TALK_MEMBERSHIP", "open")];

/// A connected client, and everything that it has heard.
pub(crate) struct Client {
    raw: Raw,
    heard: Arc<Mutex<String>>,
}

impl Client {
    pub(crate) fn listening(raw: Raw) -> Client {
        let heard = Arc::<Mutex<String>>::default();
        let mut ear = Raw::over(raw.stream.try_clone().expect("one more descriptor"));
        raw.stream.set_read_timeout(None).expect("a valid time");
        let told = heard.clone();
        std::thread::spawn(move || {
            loop {
                match ear.next() {
                    Next::Frame(1, text) if text == b"2" => ear.say("3"),
                    Next::Frame(1, text) => told.lock().expect("nobody panics").push_str(&String::from_utf8_lossy(&text)),
                    Next::Frame(9, payload) => ear.send(&frame(0x8a, &payload)),
                    Next::Frame(..) => {}
                    Next::End => return,
                }
            }
        });
        Client { raw, heard }
    }

    /// A user of the first community endpoint.
    pub(crate) fn community(host: &Server, user: &str) -> Client {
        Client::listening(Raw::open(host, &format!("/api/community/ws?token={}", token(user))))
    }

    fn collab(host: &Server, document: &str, name: &str) -> Client {
        Client::listening(Raw::open(host, &format!("/ws/open?documentId={document}&clientID={name}")))
    }

    fn rooms(host: &Server, user: &str, room: &str) -> Client {
        let mut raw = Raw::open(host, "/socket.io/?EIO=4&transport=websocket");
        raw.text_with("0{");
        raw.say(&format!(r#"40{{"token":"{}"}}"#, token(user)));
        raw.text_with("40{");
        raw.say(&format!(r#"420["room:join",{{"roomId":"{room}"}}]"#));
        raw.text_with("430[");
        Client::listening(raw)
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.raw.say(text);
    }

    pub(crate) fn has_heard(&self, words: &str) -> bool {
        self.heard.lock().expect("nobody panics").contains(words)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The server may have closed it.
        let _ = self.raw.stream.shutdown(Shutdown::Both);
    }
}

/// Waits until all hosts reach Redis.
pub(crate) fn connected(hosts: &[Server]) {
    for host in hosts {
        until("a host reaches Redis", || get(host.control, "/readyz").1.contains(r#""relay":"connected""#));
    }
}

/// A call of the API: status and answer.
pub(crate) fn v1(host: &Server, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let body = body.map(Value::to_string).unwrap_or_default();
    let headers = format!("Authorization: Bearer {ADMIN_TOKEN}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer = ask(host.control, method, path, &headers);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// Each of both says it, in these words around a text, until the other has heard it.
fn both_ways(what: &str, clients: &mut [Client; 2], words: impl Fn(&str) -> String) {
    for (speaker, listener) in [(0, 1), (1, 0)] {
        let text = format!("{what} from {speaker}");
        let mut tries = 0_u32;
        until(&text, || {
            if tries.is_multiple_of(10) {
                clients[speaker].say(&words(&text));
            }
            tries += 1;
            clients[listener].has_heard(&text)
        });
    }
}

/// What both hosts answer, once it is the same and as it should be.
pub(crate) fn same_answer(hosts: &[Server; 2], path: &str, is_good: impl Fn(&Value) -> bool) {
    let mut answers = [Value::Null, Value::Null];
    until(&format!("both hosts answer {path} alike"), || {
        answers = hosts.each_ref().map(|host| v1(host, "GET", path, None).1);
        answers[0] == answers[1] && is_good(&answers[0])
    });
}

/// Everything goes from either host to the other. `round` makes the names of rooms and users new; `redis` is asked one command.
pub(crate) fn everything(hosts: &[Server; 2], round: &str, redis: &dyn Fn(&[&str]) -> String) {
    let name = |name: &str| format!("{name}-{round}");
    let [one, other] = hosts;

    let (den, ann, bob) = (name("den"), name("ann"), name("bob"));
    let mut members = [Client::listening(Raw::talk(one, &ann, &den)), Client::listening(Raw::talk(other, &bob, &den))];
    both_ways("community", &mut members, |text| format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"roomId":"{den}","content":"{text}"}}}}"#));
    until("the list of who is there has both", || {
        members[1].say(&format!(r#"{{"type":"SUBSCRIBE","payload":{{"roomId":"{den}"}}}}"#));
        let online = |first: &str, second: &str| members[1].has_heard(&format!(r#""online":["{first}","{second}"]"#));
        online(&ann, &bob) || online(&bob, &ann)
    });
    let [gone, left] = members;
    drop(gone);
    until("who goes is said to have gone", || left.has_heard(&format!(r#""USER_LEFT","payload":{{"userId":"{ann}""#)));

    let document = name("plan");
    let mut editors = [Client::collab(one, &document, "c1"), Client::collab(other, &document, "c2")];
    both_ways("collab", &mut editors, |text| format!(r#"{{"type":"update","documentId":"{document}","text":"{text}"}}"#));

    let hall = name("hall");
    let mut guests = [Client::rooms(one, &name("carl"), &hall), Client::rooms(other, &name("dora"), &hall)];
    both_ways("rooms", &mut guests, |text| format!(r#"42["message",{{"roomId":"{hall}","content":"{text}"}}]"#));

    let user = name("erik");
    let online = |is_so: &'static str| redis(&["SISMEMBER", "users:online", &user]) == is_so;
    let erik = Client::community(one, &user);
    until("he is online", || online("1"));
    let of_him = |wanted: usize| {
        let (_, found) = v1(other, "GET", &format!("/v1/connections?user={user}"), None);
        found["connections"].as_array().is_some_and(|list| list.len() == wanted)
    };
    until("the other host is told of his connection", || of_him(1));
    drop(erik);
    until("he is offline", || online("0") && of_him(0));

    until("both hosts are in the list of hosts", || {
        v1(other, "GET", "/v1/hosts", None).1["hosts"].as_array().is_some_and(|list| list.len() == 2)
    });
    let emit = json!({"endpoint": "rooms", "to": {"rooms": [hall]}, "event": "news", "data": format!("news of {round}")});
    until("an emit reaches both", || v1(other, "POST", "/v1/emit", Some(&emit)).1["recipients"] == 2);
    until("both hear it", || guests.iter().all(|guest| guest.has_heard(&format!("news of {round}"))));
    let message = json!({"endpoint": "rooms", "userId": "bot", "content": "the last word"});
    until("the back end says something", || v1(one, "POST", &format!("/v1/rooms/{hall}/messages"), Some(&message)).0 == 201);
    same_answer(hosts, &format!("/v1/rooms/{hall}/messages"), |answer| answer["messages"][0]["content"] == "the last word");
}
