//! Clients that come back, for the tests of connection state recovery: they remember what the library does.
#![allow(dead_code, reason = "each test binary uses its part")]

use engine::config::{Config, DialectKind};
use engine::fault::RecoveryFault;
use serde_json::{Value, json};

use crate::host::{self, Got, Host};

pub(crate) const WINDOW_MS: u64 = 120_000;
pub(crate) const POLLING: &str = "/socket.io/?EIO=4&transport=polling";

pub(crate) fn config() -> Config {
    let mut rooms = host::endpoint("rooms", DialectKind::Rooms, "/");
    rooms.recovery_ms = WINDOW_MS;
    host::config(3, vec![rooms, host::endpoint("chat", DialectKind::Chat, "/chat")])
}

pub(crate) fn host() -> Host {
    Host::new(config(), 11)
}

/// One who remembers what the library does: his ids, and the last argument of the last event.
pub(crate) struct Client {
    pub(crate) at: usize,
    pub(crate) user: &'static str,
    pub(crate) sid: String,
    pub(crate) pid: String,
    pub(crate) offset: String,
    /// Events, without their offsets.
    pub(crate) heard: Vec<Value>,
    pub(crate) recovered: bool,
}

impl Client {
    pub(crate) fn come(host: &mut Host, shard: usize, user: &'static str) -> Client {
        let at = open(host, shard);
        let mut client =
            Client { at, user, sid: String::new(), pid: String::new(), offset: String::new(), heard: Vec::new(), recovered: false };
        host.say(at, &client.connect());
        client.listen(host);
        assert_eq!((client.sid.len(), client.pid.len()), (20, 20));
        client
    }

    pub(crate) fn connect(&self) -> String {
        let mut auth = json!({"token": host::token(&json!({"sub": self.user, "exp": 4_000_000_000_u64}))});
        if !self.pid.is_empty() {
            (auth["pid"], auth["offset"]) = (json!(self.pid), json!(self.offset));
        }
        format!("40{auth}")
    }

    /// Breaks off and comes back to a shard.
    pub(crate) fn return_to(&mut self, host: &mut Host, shard: usize) {
        self.at = open(host, shard);
        host.say(self.at, &self.connect());
        self.listen(host);
    }

    pub(crate) fn break_off(&mut self, host: &mut Host) {
        self.listen(host);
        host.hang_up(self.at);
        host.settle();
        self.heard.clear();
    }

    pub(crate) fn listen(&mut self, host: &mut Host) {
        host.settle();
        for text in host.texts(self.at) {
            self.hear(&text);
        }
    }

    pub(crate) fn hear(&mut self, text: &str) {
        if let Some(connected) = text.strip_prefix("40") {
            let connected: Value = serde_json::from_str(connected).expect("an object");
            let (sid, pid) = (connected["sid"].as_str().expect("sid"), connected["pid"].as_str().expect("pid"));
            self.recovered = self.pid == pid;
            assert_eq!(self.recovered, self.sid == sid, "both or none stay");
            (self.sid, self.pid) = (sid.into(), pid.into());
            self.heard.push(json!("CONNECT"));
        } else if let Some(event) = text.strip_prefix("42") {
            let mut event: Vec<Value> = serde_json::from_str(event).expect("an array");
            self.offset = event.pop().and_then(|offset| offset.as_str().map(str::to_owned)).expect("the offset is last");
            assert_eq!(self.offset.len(), 11);
            self.heard.push(match event[0].as_str() {
                Some("message") => event[1]["content"].clone(),
                _ => json!([event[0], event[1]["userId"]]),
            });
        }
    }

    pub(crate) fn join(&mut self, host: &mut Host) {
        host.say(self.at, r#"42["room:join",{"roomId":"r"}]"#);
        self.listen(host);
    }

    pub(crate) fn tell(&mut self, host: &mut Host, content: &str) {
        host.say(self.at, &format!(r#"42["message",{{"roomId":"r","content":"{content}"}}]"#));
        self.listen(host);
    }

    pub(crate) fn take(&mut self, host: &mut Host) -> Vec<Value> {
        self.listen(host);
        std::mem::take(&mut self.heard)
    }
}

pub(crate) fn open(host: &mut Host, shard: usize) -> usize {
    let at = host.connect(shard, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
    host.settle();
    host.texts(at);
    at
}

pub(crate) fn counts(host: &Host, of: impl Fn(&engine::stats::EndpointStats) -> u64) -> u64 {
    host.stats.iter().map(|stats| of(&stats.endpoints[0])).sum()
}

pub(crate) fn refused(host: &Host, fault: RecoveryFault) -> u64 {
    counts(host, |stats| stats.unrecovered[fault.index()].read())
}

pub(crate) fn pair(host: &mut Host) -> (Client, Client) {
    let (mut alice, mut bob) = (Client::come(host, 0, "alice"), Client::come(host, 1, "bob"));
    alice.join(host);
    bob.join(host);
    bob.tell(host, "hello");
    alice.take(host);
    bob.take(host);
    (alice, bob)
}

/// Sends a request to a shard and gives the body of its answer.
pub(crate) fn ask(host: &mut Host, shard: usize, method: &str, target: &str, body: &str) -> usize {
    let head = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let client = host.connect(shard, &head);
    host.settle();
    client
}

pub(crate) fn answered(host: &mut Host, client: usize) -> (u16, String) {
    host.settle();
    let found = host.take(client).into_iter().find_map(|got| if let Got::Http(status, body) = got { Some((status, body)) } else { None });
    found.expect("an answer")
}
