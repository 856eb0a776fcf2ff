//! JSON: what another reader takes we take, every value's text is a value by itself, and a text that is none leaves nothing behind.
#![no_main]

use engine::json::{self, Scratch, Value};
use engine::limits::JSON_DEPTH_MAX;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut scratch = Scratch::default();
    let good = scratch.parse(text).is_ok();
    let expected = serde_json::from_str::<serde_json::Value>(text).is_ok() && depth(text) < JSON_DEPTH_MAX;
    assert!(good || !expected, "serde_json takes it");
    if let Ok(doc) = scratch.parse(text) {
        let root = doc.root();
        assert_eq!(root.raw(), text.trim_matches([' ', '\t', '\n', '\r']));
        let mut texts = Vec::new();
        walk(root, &mut texts);
        let mut other = Scratch::default();
        for raw in texts.iter().take(50) {
            let again = other.parse(raw).unwrap_or_else(|_| panic!("no value by itself: {raw:?}"));
            assert_eq!(again.root().raw(), *raw);
        }
    } else {
        assert!(!good, "it was JSON a moment ago");
    }
    assert!(scratch.parse("[1]").is_ok(), "used again after anything");
    let mut quoted = String::new();
    json::quote(&mut quoted, text);
    assert_eq!(scratch.parse(&quoted).expect("our own text").root().as_str(), Some(text));
});

/// The texts of all values inside.
fn walk<'d>(value: Value<'d>, texts: &mut Vec<&'d str>) {
    let _ = (value.as_exact_str(), value.as_u64(), value.as_f64(), value.as_bool(), value.get("a"));
    for member in value.members() {
        texts.extend([member.raw_key, member.value.raw()]);
        walk(member.value, texts);
    }
    for item in value.items() {
        texts.push(item.raw());
        walk(item, texts);
    }
}

/// At least as deep as the text is nested.
fn depth(text: &str) -> usize {
    text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count()
}
