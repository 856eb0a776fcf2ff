//! What of an HTTP answer is compared: status, body, and the headers that mean something to a client. How a body is delimited and whether
//! the connection stays is each server's own affair.

use std::collections::BTreeMap;

use crate::without_sids;

/// Headers of the connection, not of the answer.
const OF_THE_CONNECTION: [&str; 5] = ["connection", "keep-alive", "transfer-encoding", "content-length", "date"];

/// An answer, in one form for both servers.
pub(crate) fn shown(raw: &[u8]) -> String {
    // One character a byte: what follows a 101 is no text.
    let text: String = raw.iter().copied().map(char::from).collect();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return text };
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let headers: BTreeMap<String, &str> =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let body = if headers.get("transfer-encoding") == Some(&"chunked") { dechunked(body) } else { body.to_owned() };
    let mut out = status.to_owned();
    // The type of nothing says nothing.
    let means_nothing = |name: &str| OF_THE_CONNECTION.contains(&name) || (name == "content-type" && body.is_empty());
    for (name, value) in headers.iter().filter(|(name, _)| !means_nothing(name)) {
        out.push_str(&format!("\n{name}: {value}"));
    }
    without_sids(&format!("{out}\n\n{body}"))
}

fn dechunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        let Some(data) = rest.get(..size).filter(|data| !data.is_empty()) else { break };
        out.push_str(data);
        body = rest[size..].trim_start_matches("\r\n");
    }
    out
}
