//! HTTP heads: the answer does not depend on how the bytes came or on what follows the head, and no header gets into an answer.
#![no_main]

use engine::wire::http::{self, Head};
use libfuzzer_sys::fuzz_target;

const HEAD_MAX: usize = 1_000;

/// What a head is, for comparing: `None` while it is not all there.
fn outcome(bytes: &[u8]) -> Option<Result<usize, u16>> {
    match http::parse(bytes, HEAD_MAX) {
        Head::Incomplete => None,
        Head::Complete { bytes, .. } => Some(Ok(bytes)),
        Head::Bad { status } => Some(Err(status)),
    }
}

fuzz_target!(|data: &[u8]| {
    let whole = outcome(data);
    let step = 1 + data.len() / 200;
    let first = (0..data.len()).step_by(step).find_map(|length| outcome(&data[..length]));
    assert!(first.is_none() || first == whole, "{first:?} before the end, {whole:?} at it");
    let Head::Complete { bytes, request } = http::parse(data, HEAD_MAX) else { return };
    assert!(bytes <= data.len().min(HEAD_MAX) && data[..bytes].ends_with(b"\r\n\r\n"));
    assert_eq!(outcome(&data[..bytes]), whole, "nothing behind the head counts");
    for name in ["token", "sid", "é"] {
        let _ = (request.query_value(name), request.query_values(name), request.cookie(name), request.header(name));
    }
    let _ = (request.bearer(), request.wants_websocket(), request.headers("x-forwarded-for").count());
    if let Ok(key) = request.websocket_key() {
        let extra = request.header("origin").map(|origin| ("Access-Control-Allow-Origin", origin));
        let answer = http::switching_protocols(key, request.first_protocol(), extra.as_slice());
        let lines = String::from_utf8(answer).expect("text").matches("\r\n").count();
        assert_eq!(lines, 5 + usize::from(request.first_protocol().is_some()) + extra.iter().count());
    }
});
