//! Each command: the calls it makes and what it shows of their answers.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write};
use std::time::{Duration, Instant};

use axum::http::Method;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client::{Call, Client, Fault, Missing, Reply};
use super::table::{Table, facts, members, safe_json, shown};
use super::{Amount, EmitArgs, KickArgs, Kicked, OneRoom, Operation, Output, RoomsArgs};
use crate::http::emit::EMIT_BYTES_MAX;
use crate::settings::percent_encoded;

/// How long a reload may take: the new program is asked first, and what is under way is waited for.
const RELOAD_TIME: Duration = Duration::from_secs(60);
/// How often it is looked whether it has come to its end.
const RELOAD_GLANCE: Duration = Duration::from_millis(50);

/// Entries of a page, the most that the API gives.
const PAGE: u64 = 1_000;

pub(super) fn perform(operation: &Operation, client: &Client, out: &mut dyn Write) -> Result<(), Fault> {
    match operation {
        Operation::Stats { endpoint, output } => stats(client, endpoint.as_deref(), *output, out),
        Operation::Connections { endpoint, user, room, amount, output } => {
            let query = query(&[("endpoint", endpoint.as_deref()), ("user", user.as_deref()), ("room", room.as_deref())]);
            list(client, &CONNECTIONS, &query, *amount, *output, out)
        }
        Operation::Kick(Kicked::User(args)) => kick(client, "/v1/users", args, out),
        Operation::Kick(Kicked::Connection(args)) => kick(client, "/v1/connections", args, out),
        Operation::Rooms(args) => rooms(client, args, out),
        Operation::Emit(args) => emit(client, args, out),
        Operation::Hosts { output } => hosts(client, *output, out),
        Operation::Reload { output } | Operation::Upgrade { output } => reload(client, *output, out),
        Operation::Drain { seconds, all_hosts, host, output } => {
            let hosts = if *all_hosts { Some(json!("all")) } else { (!host.is_empty()).then(|| json!(host)) };
            drain(client, *seconds, hosts, *output, out)
        }
    }
}

/// The answer as it is, or as `shown` makes it; then whether it was whole.
fn tell(reply: &Reply, output: Output, client: &Client, out: &mut dyn Write, shown: impl Fn(&Value) -> String) -> Result<(), Fault> {
    if output.json {
        writeln!(out, "{}", safe_json(&reply.text))?;
    } else {
        let value = members(&reply.text).map_err(|fault| client.strange(&fault))?;
        out.write_all(shown(&value).as_bytes())?;
    }
    out.flush()?;
    whole(reply.missing)
}

/// An answer without some of the shards or hosts is shown, and is a failure all the same.
fn whole(missing: Missing) -> Result<(), Fault> {
    let who = match missing {
        Missing { shards: 0, hosts: 0 } => return Ok(()),
        Missing { shards: 0, hosts } => format!("{hosts} of the other servers"),
        Missing { shards, hosts: 0 } => format!("{shards} of the server's shards"),
        Missing { shards, hosts } => format!("{shards} of the server's shards and {hosts} of the other servers"),
    };
    Err(Fault::Incomplete(format!("{who} did not answer in time: this is not everything")))
}

fn stats(client: &Client, endpoint: Option<&str>, output: Output, out: &mut dyn Write) -> Result<(), Fault> {
    let path = endpoint.map_or_else(|| "/v1/stats".to_owned(), |name| format!("/v1/endpoints/{}/stats", percent_encoded(name)));
    tell(&client.call(Call::new(Method::GET, path))?, output, client, out, facts)
}

fn kick(client: &Client, collection: &str, args: &KickArgs, out: &mut dyn Write) -> Result<(), Fault> {
    let path = format!("{collection}/{}{}", percent_encoded(&args.id), query(&[("reason", args.reason.as_deref())]));
    tell(&client.call(Call::new(Method::DELETE, path))?, args.output, client, out, |closed| counted(&closed["closed"], "connection closed"))
}

/// `1 connection closed`, `2 connections closed`.
fn counted(number: &Value, what: &str) -> String {
    let plural = if number == 1 { what.to_owned() } else { what.replacen("connection", "connections", 1) };
    format!("{} {plural}\n", shown(number))
}

/// A list of the API and what is shown of it.
struct Listed<'a> {
    path: &'a str,
    member: &'static str,
    headings: &'static [&'static str],
    row: fn(&Value) -> Vec<String>,
}

const CONNECTIONS: Listed<'static> = Listed {
    path: "/v1/connections",
    member: "connections",
    headings: &["ID", "ENDPOINT", "USER", "NAME", "SINCE", "ROOMS"],
    row: |it| ["id", "endpoint", "userId", "username", "connectedAt", "rooms"].map(|key| shown(&it[key])).into(),
};

const ROOMS: Listed<'static> = Listed {
    path: "/v1/rooms",
    member: "rooms",
    headings: &["ID", "NAME", "NAMESPACE", "MEMBERS", "CREATED", "BY"],
    row: |it| ["id", "name", "namespace", "memberCount", "createdAt", "createdBy"].map(|key| shown(&it[key])).into(),
};

/// One page of a list.
struct Page<'a> {
    items: Vec<&'a RawValue>,
    next: Option<String>,
}

impl<'a> Page<'a> {
    fn read(text: &'a str, member: &str) -> serde_json::Result<Page<'a>> {
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(text)?;
        // Without the list it is an answer of somebody else.
        let items = serde_json::from_str(members.get(member).map_or("", |list| list.get()))?;
        let next = members.get("cursor").map_or(Ok(None), |cursor| serde_json::from_str(cursor.get()))?;
        Ok(Page { items, next })
    }
}

/// Page by page, so that a list of any length takes the memory of one.
fn list(client: &Client, listed: &Listed<'_>, query: &str, amount: Amount, output: Output, out: &mut dyn Write) -> Result<(), Fault> {
    let (mut table, mut cursor, mut seen, mut missing, mut is_first) =
        (Table::new(listed.headings), None::<String>, 0, Missing::default(), true);
    loop {
        let left = if amount.all { PAGE } else { amount.limit - seen };
        let path = page_path(listed.path, query, left.min(PAGE), cursor.as_deref());
        let reply = client.call(Call::new(Method::GET, path))?;
        let Page { items, next } = Page::read(&reply.text, listed.member).map_err(|fault| client.strange(&fault))?;
        if output.json {
            // Only now, so that a call that fails leaves nothing behind.
            if std::mem::take(&mut is_first) {
                write!(out, "{{\"{}\":[", listed.member)?;
            }
            // As they came, so that no number changes on its way.
            let texts: Vec<String> = items.iter().map(|item| safe_json(item.get())).collect();
            write!(out, "{}{}", if seen > 0 && !texts.is_empty() { "," } else { "" }, texts.join(","))?;
        } else {
            let rows = items.iter().map(|item| members(item.get()).map(|item| (listed.row)(&item)));
            let rows = rows.collect::<Result<_, _>>().map_err(|fault| client.strange(&fault))?;
            out.write_all(table.rows(rows).as_bytes())?;
        }
        let (shards, hosts) = (missing.shards.max(reply.missing.shards), missing.hosts.max(reply.missing.hosts));
        (seen, missing) = (seen + items.len() as u64, Missing { shards, hosts });
        // A page may hold little or nothing and be followed by more; one that leads to itself would never end.
        let is_last = next.is_none() || next == cursor || (!amount.all && seen >= amount.limit);
        if is_last {
            return end_of_list(next, seen, missing, output, out);
        }
        cursor = next;
    }
}

fn end_of_list(next: Option<String>, seen: u64, missing: Missing, output: Output, out: &mut dyn Write) -> Result<(), Fault> {
    if output.json {
        // As in the API: who finds a cursor knows that there is more.
        let cursor = next.map_or_else(String::new, |cursor| format!(",\"cursor\":{}", json!(cursor)));
        writeln!(out, "]{cursor}}}")?;
    } else if next.is_some() {
        let _ = writeln!(io::stderr(), "These are the first {seen}; --limit N or --all shows more.");
    }
    out.flush()?;
    whole(missing)
}

fn page_path(path: &str, query: &str, limit: u64, cursor: Option<&str>) -> String {
    let first = if query.is_empty() { '?' } else { '&' };
    let cursor = cursor.map_or_else(String::new, |cursor| format!("&cursor={}", percent_encoded(cursor)));
    format!("{path}{query}{first}limit={limit}{cursor}")
}

fn rooms(client: &Client, args: &RoomsArgs, out: &mut dyn Write) -> Result<(), Fault> {
    let Some(OneRoom::Show { id, endpoint, output }) = &args.one else {
        let query = query(&[("endpoint", args.endpoint.as_deref()), ("namespace", args.namespace.as_deref())]);
        return list(client, &ROOMS, &query, args.amount, args.output, out);
    };
    let query = query(&[("endpoint", endpoint.as_deref())]);
    let path = format!("/v1/rooms/{}", percent_encoded(id));
    let room = client.call(Call::new(Method::GET, format!("{path}{query}")))?;
    if output.json {
        return tell(&room, *output, client, out, facts);
    }
    tell(&room, *output, client, out, |room| {
        let mut room = room.clone();
        // They follow, all of them.
        if let Some(room) = room.as_object_mut() {
            room.remove("members");
        }
        facts(&room)
    })?;
    writeln!(out)?;
    let listed = Listed { path: &format!("{path}/members"), member: "members", ..CONNECTIONS };
    list(client, &listed, &query, Amount { limit: PAGE, all: true }, *output, out)
}

fn emit(client: &Client, args: &EmitArgs, out: &mut dyn Write) -> Result<(), Fault> {
    let data = args.data.as_deref().map(data).transpose()?;
    let call = Call {
        body: Some(emit_body(args, data.as_deref())),
        wait: Duration::from_millis(args.ack_timeout.unwrap_or(0)),
        ..Call::new(Method::POST, "/v1/emit".to_owned())
    };
    tell(&client.call(call)?, args.output, client, out, |outcome| {
        let acks = outcome["acks"].as_u64().map_or_else(String::new, |acks| format!(", {acks} acknowledged"));
        counted(&outcome["recipients"], &format!("connection reached{acks}"))
    })
}

/// The event's argument as it was given, so that no number changes on its way.
fn data(given: &str) -> Result<String, Fault> {
    let mut text = given.to_owned();
    if given == "-" {
        text.clear();
        let read = io::stdin().lock().take(EMIT_BYTES_MAX as u64 + 1).read_to_string(&mut text);
        read.map_err(|fault| Fault::Usage(format!("the standard input cannot be read: {fault}")))?;
    }
    match serde_json::from_str::<IgnoredAny>(&text) {
        Ok(_) => Ok(text),
        Err(fault) => Err(Fault::Usage(format!("DATA is not JSON ({fault}); a text needs quotation marks of its own: '\"hi\"'"))),
    }
}

fn emit_body(args: &EmitArgs, data: Option<&str>) -> String {
    let lists = [("rooms", &args.room), ("users", &args.user), ("connections", &args.connection)];
    let listed = lists.into_iter().find(|(_, names)| !names.is_empty());
    let to = listed.map_or_else(|| json!({"all": true}), |(kind, names)| json!({ kind: names }));
    let mut body = json!({"endpoint": args.endpoint, "to": to, "event": args.event, "except": args.except, "volatile": args.volatile});
    if let Some(id) = &args.id {
        body["id"] = id.as_str().into();
    }
    if let Some(timeout_ms) = args.ack_timeout {
        body["ack"] = json!({"timeoutMs": timeout_ms});
    }
    let body = body.to_string();
    match (data, body.strip_suffix('}')) {
        (Some(data), Some(open)) => format!("{open},\"data\":{data}}}"),
        _ => body,
    }
}

fn hosts(client: &Client, output: Output, out: &mut dyn Write) -> Result<(), Fault> {
    let reply = client.call(Call::new(Method::GET, "/v1/hosts".to_owned()))?;
    tell(&reply, output, client, out, |all| {
        let rows = all["hosts"].as_array().into_iter().flatten().map(host_row);
        Table::new(&HOSTS).rows(rows.collect())
    })
}

const HOSTS: [&str; 6] = ["ID", "SHARDS", "VERSION", "CONNECTIONS", "STATE", "LAST SEEN"];

/// One host: the one that was asked has been seen just now.
fn host_row(host: &Value) -> Vec<String> {
    let state = match host["accepting"].as_bool() {
        Some(true) => "serving",
        Some(false) => "stopping",
        None => "silent",
    };
    let seen = if host["self"] == true { "this one".to_owned() } else { shown(&host["lastSeen"]) };
    vec![shown(&host["id"]), shown(&host["shards"]), shown(&host["version"]), shown(&host["connections"]), state.to_owned(), seen]
}

/// How reloads went until now: done, refused, the last pause in seconds.
fn reloads(client: &Client) -> Result<[f64; 3], Fault> {
    // The metrics are open to everybody who reaches the listener, which the admin API is not.
    let text = client.call(Call::new(Method::GET, "/metrics".to_owned()))?.text;
    let names = ["reloads_total{outcome=\"done\"}", "reloads_total{outcome=\"refused\"}", "reload_pause_seconds"];
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix("uringcast_")?.strip_prefix(name)?.trim().parse().ok());
    let [Some(done), Some(refused), Some(pause)] = names.map(value) else {
        return Err(client.strange(&"it has no metrics of reloads"));
    };
    Ok([done, refused, pause])
}

/// Wishes a reload and looks until it is done or refused. While the process is being replaced nobody answers, or hangs up. Run by systemd it has no credentials, but is told the
/// process, which may be sent a signal.
fn reload(client: &Client, output: Output, out: &mut dyn Write) -> Result<(), Fault> {
    let [done, refused, _] = reloads(client)?;
    match std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()) {
        Some(pid) => crate::reload::wish(pid).map_err(|fault| Fault::Refused(format!("process {pid} cannot be sent SIGHUP: {fault}")))?,
        None => drop(client.call(Call { body: Some("{}".to_owned()), ..Call::new(Method::POST, "/v1/reload".to_owned()) })?),
    }
    let until = Instant::now() + RELOAD_TIME;
    loop {
        std::thread::sleep(RELOAD_GLANCE);
        let [done_now, refused_now, pause] = match reloads(client) {
            Ok(now) => now,
            Err(Fault::Unreachable { .. } | Fault::Silent(_) | Fault::Strange { .. }) if Instant::now() < until => continue,
            Err(fault) => return Err(fault),
        };
        if refused_now > refused {
            let why = client.call(Call::new(Method::GET, "/v1/reload".to_owned())).ok().and_then(|reply| members(&reply.text).ok());
            let why = why.map_or_else(|| "its log says why".to_owned(), |it| shown(&it["reason"]));
            return Err(Fault::Refused(format!("it goes on as it was: {why}")));
        }
        if done_now > done {
            let pause_ms = pause * 1_000.0;
            let text = if output.json {
                format!("{{\"done\":{done_now},\"pauseMs\":{pause_ms}}}\n")
            } else {
                format!("reloaded, after a pause of {pause_ms:.1} ms\n")
            };
            out.write_all(text.as_bytes())?;
            return Ok(out.flush()?);
        }
        if Instant::now() >= until {
            return Err(Fault::Incomplete("the reload was neither done nor refused in time".to_owned()));
        }
    }
}

fn drain(client: &Client, seconds: Option<u32>, hosts: Option<Value>, output: Output, out: &mut dyn Write) -> Result<(), Fault> {
    let mut body = seconds.map_or_else(|| json!({}), |seconds| json!({ "seconds": seconds }));
    if let Some(hosts) = hosts {
        body["hosts"] = hosts;
    }
    let call = Call { body: Some(body.to_string()), ..Call::new(Method::POST, "/v1/drain".to_owned()) };
    let reply = client.call(call)?;
    tell(&reply, output, client, out, |begun| match begun["hosts"].as_array() {
        None => "draining: no more clients are let in, all connections are closed, then the server stops\n".to_owned(),
        Some(hosts) => {
            let lines = hosts
                .iter()
                .map(|host| format!("draining {}: no more clients are let in, all connections are closed, then it stops\n", shown(host)));
            lines.collect()
        }
    })
}

/// `?name=value&..` of those that have a value.
fn query(parameters: &[(&str, Option<&str>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| Some(format!("{name}={}", percent_encoded((*value)?))));
    let given: Vec<String> = given.collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emit_args() -> EmitArgs {
        EmitArgs {
            endpoint: "rooms".into(),
            all: false,
            room: Vec::new(),
            user: Vec::new(),
            connection: Vec::new(),
            except: Vec::new(),
            volatile: false,
            id: None,
            ack_timeout: None,
            event: "e".into(),
            data: None,
            output: Output { json: false },
        }
    }

    #[test]
    fn an_emit_keeps_its_argument_as_it_was_given() {
        let args = EmitArgs { user: vec!["a".into(), "\"".into()], ack_timeout: Some(5), id: Some("x".into()), ..emit_args() };
        let body = emit_body(&args, Some("{\"n\":1.0e+100}"));
        assert!(body.ends_with(",\"data\":{\"n\":1.0e+100}}"), "{body}");
        let value: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((&value["to"], &value["ack"]), (&json!({"users": ["a", "\""]}), &json!({"timeoutMs": 5})));
        let all: Value = serde_json::from_str(&emit_body(&EmitArgs { all: true, ..emit_args() }, None)).expect("JSON");
        assert_eq!((&all["to"], all.get("data")), (&json!({"all": true}), None));
        assert!(data("hi").is_err() && data("{} {}").is_err() && data("\"hi\"").is_ok());
    }

    #[test]
    fn queries_and_pages_are_encoded() {
        let all = query(&[("endpoint", None), ("user", Some("a&b=c é")), ("room", Some("x"))]);
        assert_eq!(all, "?user=a%26b%3Dc%20%C3%A9&room=x");
        assert_eq!(page_path("/v1/rooms", &query(&[]), 5, None), "/v1/rooms?limit=5");
        assert_eq!(page_path("/v1/connections", &all, 7, Some("c=")), format!("/v1/connections{all}&limit=7&cursor=c%3D"));
    }

    #[test]
    fn lists_show_what_the_api_says() {
        let connection = json!({"id": "AAAAAAAAAAAAAAAAAAAA", "socketId": "AAAAAAAAAAAAAAAAAAAA", "endpoint": "rooms", "userId": "al\u{1b}ice",
            "connectedAt": "2024-01-01T00:00:00.000Z", "rooms": ["den", "hall"], "metadata": {}});
        let shown = Table::new(CONNECTIONS.headings).rows(vec![(CONNECTIONS.row)(&connection)]);
        let expected = "ID                    ENDPOINT  USER         NAME  SINCE                     ROOMS\n\
                        AAAAAAAAAAAAAAAAAAAA  rooms     al\\u{1b}ice  -     2024-01-01T00:00:00.000Z  den, hall\n";
        assert_eq!(shown, expected);
        let room = json!({"id": "r1", "name": "Den", "namespace": "/", "memberCount": 4700, "members": ["a", "b"], "metadata": {}, "createdAt": "2024-01-01T00:00:00.000Z",
            "createdBy": null});
        let shown = Table::new(ROOMS.headings).rows(vec![(ROOMS.row)(&room)]);
        let expected = "ID  NAME  NAMESPACE  MEMBERS  CREATED                   BY\n\
                        r1  Den   /          4700     2024-01-01T00:00:00.000Z  -\n";
        assert_eq!(shown, expected);
        let page = Page::read(r#"{"rooms":[{"n": 1e400},{"n":12345678901234567890123}],"cursor":"x"}"#, "rooms").expect("a page");
        let items: Vec<&str> = page.items.iter().map(|item| item.get()).collect();
        assert_eq!((items, page.next.as_deref()), (vec![r#"{"n": 1e400}"#, r#"{"n":12345678901234567890123}"#], Some("x")));
        assert!(Page::read(r#"{"rooms":{}}"#, "rooms").is_err() && Page::read("{}", "rooms").is_err());
        assert_eq!(counted(&json!(1), "connection closed"), "1 connection closed\n");
        assert_eq!(counted(&json!(3), "connection reached, 2 acknowledged"), "3 connections reached, 2 acknowledged\n");
    }
}
