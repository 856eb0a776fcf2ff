//! How the dialects say what the simulation needs, and what a client hears with the dialect taken off.

use serde_json::{Value, json};

use crate::relay::host::{self, Host};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Talk {
    Community,
    Rooms,
}

/// What a client hears. A message is known by its number.
#[derive(Debug)]
pub(super) enum Heard {
    Message {
        room: usize,
        number: u32,
    },
    Entered {
        room: usize,
        past: Option<Vec<u32>>,
        online: Option<Vec<String>>,
    },
    Left {
        room: usize,
    },
    Came {
        room: usize,
        user: String,
    },
    Went {
        room: usize,
        user: String,
    },
    /// In; with the ids by which one comes back, where there are any.
    Connected {
        sid: String,
        pid: String,
    },
    Refused,
    /// The server says goodbye.
    Goodbye,
    Ping,
    Other,
}

impl Talk {
    pub(super) const ALL: [Talk; 2] = [Talk::Community, Talk::Rooms];

    pub(super) fn index(self) -> usize {
        self as usize
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Talk::Community => "community",
            Talk::Rooms => "rooms",
        }
    }

    pub(super) fn token(user: &str) -> String {
        host::token(&json!({"sub": user, "exp": 4_000_000_000_u64}))
    }

    pub(super) fn head(self, token: &str) -> String {
        match self {
            Talk::Community => Host::upgrade_head(&format!("/api/community/ws?token={token}"), ""),
            Talk::Rooms => Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""),
        }
    }

    /// What is said first, where something is.
    pub(super) fn connect(self, token: &str, pid: &str, offset: &str) -> Option<String> {
        let auth = match self {
            Talk::Community => return None,
            Talk::Rooms if pid.is_empty() || offset.is_empty() => format!(r#"{{"token":"{token}"}}"#),
            Talk::Rooms => format!(r#"{{"token":"{token}","pid":"{pid}","offset":"{offset}"}}"#),
        };
        Some(format!("40{auth}"))
    }

    pub(super) fn enter(self, room: usize) -> String {
        match self {
            Talk::Community => format!(r#"{{"type":"SUBSCRIBE","payload":{{"roomId":"r{room}"}}}}"#),
            Talk::Rooms => format!(r#"421{room}["room:join",{{"roomId":"r{room}"}}]"#),
        }
    }

    pub(super) fn leave(self, room: usize) -> String {
        match self {
            Talk::Community => format!(r#"{{"type":"UNSUBSCRIBE","payload":{{"roomId":"r{room}"}}}}"#),
            Talk::Rooms => format!(r#"422{room}["room:leave",{{"roomId":"r{room}"}}]"#),
        }
    }

    pub(super) fn message(self, room: usize, number: u32, filling: usize) -> String {
        let content = format!("m{number}{}", &FILLING[..filling.min(FILLING.len())]);
        match self {
            Talk::Community => format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"roomId":"r{room}","content":"{content}"}}}}"#),
            Talk::Rooms => format!(r#"42["message",{{"roomId":"r{room}","content":"{content}"}}]"#),
        }
    }

    /// True exactly when it counts as a message delivered.
    pub(super) fn counts(self, text: &str) -> bool {
        self == Talk::Community || text.starts_with("42") || text.starts_with("43")
    }

    /// The offset that a packet carries, by which one comes back.
    pub(super) fn offset(self, text: &str) -> Option<&str> {
        let end = text.strip_suffix("\"]").filter(|_| self == Talk::Rooms && text.starts_with("42"))?;
        let (_, offset) = end.rsplit_once(",\"")?;
        Some(offset)
    }

    pub(super) fn hear(self, text: &str) -> Heard {
        match self {
            Talk::Community => hear_community(text),
            Talk::Rooms => hear_rooms(text),
        }
    }
}

const FILLING: &str = "                                                                                                                                                                                                                                                                                                        ";

fn hear_community(text: &str) -> Heard {
    let said: Value = serde_json::from_str(text).expect("the server sends JSON");
    let payload = &said["payload"];
    let room = payload["roomId"].as_str().and_then(|room| room.strip_prefix('r')?.parse::<usize>().ok());
    let user = || payload["userId"].as_str().expect("a user id").to_owned();
    match (said["type"].as_str().expect("a type"), room) {
        ("CHAT_MESSAGE", Some(room)) => Heard::Message { room, number: number(&payload["content"]) },
        ("SUBSCRIBED", Some(room)) => {
            let online = payload["online"].as_array().expect("a list").iter();
            Heard::Entered { room, past: None, online: Some(online.map(|user| user_of(user).to_owned()).collect()) }
        }
        ("UNSUBSCRIBED", Some(room)) => Heard::Left { room },
        ("USER_JOINED", Some(room)) => Heard::Came { room, user: user() },
        ("USER_LEFT", Some(room)) => Heard::Went { room, user: user() },
        ("ERROR", _) => Heard::Refused,
        _ => Heard::Other,
    }
}

fn user_of(user: &Value) -> &str {
    user.as_str().or_else(|| user["userId"].as_str()).or_else(|| user["id"].as_str()).expect("a user's id")
}

fn number(content: &Value) -> u32 {
    let text = content.as_str().and_then(|text| text.strip_prefix('m')).expect("own words");
    text.trim_end().parse().expect("own number")
}

fn hear_rooms(text: &str) -> Heard {
    match text.get(..2) {
        _ if text == "2" => return Heard::Ping,
        _ if text == "1" => return Heard::Goodbye,
        Some("41" | "44") => return Heard::Goodbye,
        Some("40") => {
            let connected: Value = serde_json::from_str(&text[2..]).expect("an object");
            let id = |name: &str| connected[name].as_str().unwrap_or_default().to_owned();
            return Heard::Connected { sid: id("sid"), pid: id("pid") };
        }
        Some("42" | "43") => {}
        _ => return Heard::Other,
    }
    let start = text.find('[').expect("arguments");
    let args: Value = serde_json::from_str(&text[start..]).expect("the server sends JSON");
    let room_of = |room: &Value| room.as_str().and_then(|room| room.strip_prefix('r')?.parse::<usize>().ok());
    if let Some(id) = text.strip_prefix("43") {
        // Acknowledgement ids are the action and the room.
        let room: usize = id[1..start - 2].parse().expect("own id");
        if args[0]["success"] != true {
            return Heard::Refused;
        }
        if id.starts_with('2') {
            return Heard::Left { room };
        }
        let past = args[0]["history"].as_array().expect("history").iter();
        return Heard::Entered { room, past: Some(past.map(|kept| number(&kept["content"])).collect()), online: None };
    }
    let room = room_of(&args[1]["roomId"]);
    let user = || args[1]["userId"].as_str().expect("a user id").to_owned();
    match (args[0].as_str().expect("an event"), room) {
        ("message", Some(room)) => Heard::Message { room, number: number(&args[1]["content"]) },
        ("user:joined", Some(room)) => Heard::Came { room, user: user() },
        ("user:left", Some(room)) => Heard::Went { room, user: user() },
        ("error", _) => Heard::Refused,
        _ => Heard::Other,
    }
}
