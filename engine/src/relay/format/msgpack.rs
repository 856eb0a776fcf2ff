//! MessagePack to JSON text and back, as notepack.io 3 and `@msgpack/msgpack` write and read it
//! (<https://github.com/msgpack/msgpack/blob/master/spec.md>). Binary data becomes an attachment, a date the text that `JSON.stringify` makes
//! of it; what JSON has no word for becomes `null`. It knows nothing of what a message means.

use std::borrow::Cow;
use std::fmt::Write as _;

use rmp::Marker;
use rmp::encode;

use super::{Fault, Payload, Unsendable};
use crate::json::{self, Scratch, Value};
use crate::limits::RELAY_DEPTH_MAX;
use crate::wire::sio::{self, ATTACHMENTS_MAX};

/// Type of the extension that is a point in time.
const TIMESTAMP: i8 = -1;
/// Type of three extensions of notepack 2: `undefined` in one byte, a date in eight, bytes otherwise.
const NOTEPACK: i8 = 0;
/// 2^63: what fits a whole number of 64 bits is bounded by it and its double.
const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
/// A JavaScript date is so many milliseconds away from 1970 at most.
const DATE_MAX_MS: f64 = 8_640_000_000_000_000.0;

/// The JSON text of exactly one value, written as `JSON.stringify` would. Whole numbers keep all their digits, also where JavaScript
/// would lose some.
///
/// The text is at most seven times as long as the bytes, but for the placeholders of attachments. Nothing is allocated on the word of a
/// length alone.
///
/// # Errors
/// When it is not MessagePack, nested beyond [`RELAY_DEPTH_MAX`], or followed by more; when there are more than [`ATTACHMENTS_MAX`]
/// pieces of binary data, or any besides a map that looks like a placeholder, which a client would take for one of them.
pub fn to_json(bytes: &[u8]) -> Result<Payload, Fault> {
    let out = String::with_capacity(bytes.len() + bytes.len() / 4);
    let mut reader = Reader { rest: bytes, out, attachments: Vec::new(), looks_attached: false };
    let mut open: Vec<Open> = Vec::new();
    loop {
        if let Some(container) = reader.value()? {
            if open.len() == RELAY_DEPTH_MAX {
                return Err(Fault::Unreadable);
            }
            open.push(container);
        }
        while let Some(top) = open.pop_if(|top| top.left == 0) {
            reader.out.push(if top.is_map { '}' } else { ']' });
        }
        let Some(top) = open.last_mut() else { return reader.finish() };
        top.left -= 1;
        if top.has_begun {
            reader.out.push(',');
        }
        top.has_begun = true;
        if top.is_map {
            reader.key()?;
        }
    }
}

/// An array or map that is being read.
struct Open {
    is_map: bool,
    /// Items or members still to come.
    left: u32,
    has_begun: bool,
}

struct Reader<'b> {
    rest: &'b [u8],
    out: String,
    attachments: Vec<Vec<u8>>,
    /// A map that looks like a placeholder was seen.
    looks_attached: bool,
}

impl<'b> Reader<'b> {
    fn finish(self) -> Result<Payload, Fault> {
        match self {
            Reader { rest: [], attachments, looks_attached: true, .. } if !attachments.is_empty() => Err(Fault::Attachments),
            Reader { rest: [], out, attachments, .. } => Ok(Payload { json: out, attachments }),
            _ => Err(Fault::Unreadable),
        }
    }

    /// Writes a value, or the bracket of one with others inside, which is the result.
    fn value(&mut self) -> Result<Option<Open>, Fault> {
        let marker = self.marker()?;
        if let Some((is_map, left)) = self.container(marker)? {
            self.out.push(if is_map { '{' } else { '[' });
            return Ok(Some(Open { is_map, left, has_begun: false }));
        }
        match marker {
            Marker::Null => self.out.push_str("null"),
            Marker::False => self.out.push_str("false"),
            Marker::True => self.out.push_str("true"),
            Marker::F32 => {
                let value = f64::from(f32::from_be_bytes(self.fixed()?));
                push_number(&mut self.out, value);
            }
            Marker::F64 => {
                let value = f64::from_be_bytes(self.fixed()?);
                push_number(&mut self.out, value);
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let data = self.binary(marker)?;
                self.attach(data)?;
            }
            _ => {
                if let Some(text) = self.text(marker)? {
                    json::quote(&mut self.out, &text);
                } else if let Some(number) = self.integer(marker)? {
                    // A `String` takes whatever is written.
                    let _ = write!(self.out, "{number}");
                } else {
                    self.extension(marker)?;
                }
            }
        }
        Ok(None)
    }

    /// Writes a key and its colon. JavaScript's keys are texts, so a number becomes one.
    fn key(&mut self) -> Result<(), Fault> {
        let marker = self.marker()?;
        if let Some(text) = self.text(marker)? {
            json::quote(&mut self.out, &text);
            // Whether the value is `true` its first byte says.
            self.looks_attached |= text == "_placeholder" && self.rest.first() == Some(&Marker::True.to_u8());
        } else if let Some(number) = self.integer(marker)? {
            let _ = write!(self.out, "\"{number}\"");
        } else {
            let text = match marker {
                Marker::Null => "null",
                Marker::False => "false",
                Marker::True => "true",
                // Other keys no encoder of JavaScript objects makes.
                _ => return Err(Fault::Unreadable),
            };
            json::quote(&mut self.out, text);
        }
        self.out.push(':');
        Ok(())
    }

    fn container(&mut self, marker: Marker) -> Result<Option<(bool, u32)>, Fault> {
        Ok(Some(match marker {
            Marker::FixArray(length) => (false, length.into()),
            Marker::Array16 => (false, u16::from_be_bytes(self.fixed()?).into()),
            Marker::Array32 => (false, u32::from_be_bytes(self.fixed()?)),
            Marker::FixMap(length) => (true, length.into()),
            Marker::Map16 => (true, u16::from_be_bytes(self.fixed()?).into()),
            Marker::Map32 => (true, u32::from_be_bytes(self.fixed()?)),
            _ => return Ok(None),
        }))
    }

    fn text(&mut self, marker: Marker) -> Result<Option<Cow<'b, str>>, Fault> {
        let length = match marker {
            Marker::FixStr(length) => length.into(),
            Marker::Str8 => u8::from_be_bytes(self.fixed()?).into(),
            Marker::Str16 => u16::from_be_bytes(self.fixed()?).into(),
            Marker::Str32 => u32::from_be_bytes(self.fixed()?),
            _ => return Ok(None),
        };
        // Half of a surrogate pair comes as bytes that are no UTF-8; Node reads U+FFFD there, as here.
        Ok(Some(String::from_utf8_lossy(self.bytes(length)?)))
    }

    fn integer(&mut self, marker: Marker) -> Result<Option<i128>, Fault> {
        Ok(Some(match marker {
            Marker::FixPos(value) => value.into(),
            Marker::FixNeg(value) => value.into(),
            Marker::U8 => u8::from_be_bytes(self.fixed()?).into(),
            Marker::U16 => u16::from_be_bytes(self.fixed()?).into(),
            Marker::U32 => u32::from_be_bytes(self.fixed()?).into(),
            Marker::U64 => u64::from_be_bytes(self.fixed()?).into(),
            Marker::I8 => i8::from_be_bytes(self.fixed()?).into(),
            Marker::I16 => i16::from_be_bytes(self.fixed()?).into(),
            Marker::I32 => i32::from_be_bytes(self.fixed()?).into(),
            Marker::I64 => i64::from_be_bytes(self.fixed()?).into(),
            _ => return Ok(None),
        }))
    }

    fn binary(&mut self, marker: Marker) -> Result<&'b [u8], Fault> {
        let length = match marker {
            Marker::Bin8 => u8::from_be_bytes(self.fixed()?).into(),
            Marker::Bin16 => u16::from_be_bytes(self.fixed()?).into(),
            _ => u32::from_be_bytes(self.fixed()?),
        };
        self.bytes(length)
    }

    fn attach(&mut self, data: &[u8]) -> Result<(), Fault> {
        if self.attachments.len() == ATTACHMENTS_MAX {
            return Err(Fault::Attachments);
        }
        let _ = write!(self.out, "{{\"_placeholder\":true,\"num\":{}}}", self.attachments.len());
        self.attachments.push(data.to_vec());
        Ok(())
    }

    fn extension(&mut self, marker: Marker) -> Result<(), Fault> {
        let length = match marker {
            Marker::FixExt1 => 1,
            Marker::FixExt2 => 2,
            Marker::FixExt4 => 4,
            Marker::FixExt8 => 8,
            Marker::FixExt16 => 16,
            Marker::Ext8 => u8::from_be_bytes(self.fixed()?).into(),
            Marker::Ext16 => u16::from_be_bytes(self.fixed()?).into(),
            Marker::Ext32 => u32::from_be_bytes(self.fixed()?),
            // Whoever writes it does not write MessagePack.
            _ => return Err(Fault::Unreadable),
        };
        let kind = i8::from_be_bytes(self.fixed()?);
        let data = self.bytes(length)?;
        match (kind, marker) {
            (NOTEPACK, Marker::Ext8 | Marker::Ext16 | Marker::Ext32) => return self.attach(data),
            (NOTEPACK, Marker::FixExt8) => push_date(&mut self.out, data.try_into().ok().map(|ms| i64::from_be_bytes(ms) as f64)),
            (TIMESTAMP, _) => push_date(&mut self.out, timestamp_ms(data)),
            _ => self.out.push_str("null"),
        }
        Ok(())
    }

    fn marker(&mut self) -> Result<Marker, Fault> {
        let (first, rest) = self.rest.split_first().ok_or(Fault::Unreadable)?;
        self.rest = rest;
        Ok(Marker::from_u8(*first))
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (data, rest) = self.rest.split_first_chunk().ok_or(Fault::Unreadable)?;
        self.rest = rest;
        Ok(*data)
    }

    fn bytes(&mut self, length: u32) -> Result<&'b [u8], Fault> {
        let (data, rest) = self.rest.split_at_checked(length as usize).ok_or(Fault::Unreadable)?;
        self.rest = rest;
        Ok(data)
    }
}

/// Milliseconds since 1970 of a timestamp: 32 bits of seconds; 30 of nanoseconds and 34 of seconds; or 32 of nanoseconds and 64 of seconds
/// with a sign. They are computed as JavaScript does, in floats.
fn timestamp_ms(data: &[u8]) -> Option<f64> {
    let (seconds, ns) = match data.len() {
        4 => (f64::from(u32::from_be_bytes(data.try_into().ok()?)), 0.0),
        8 => {
            let both = u64::from_be_bytes(data.try_into().ok()?);
            ((both & ((1 << 34) - 1)) as f64, (both >> 34) as f64)
        }
        12 => {
            let (ns, seconds) = data.split_at(4);
            (i64::from_be_bytes(seconds.try_into().ok()?) as f64, f64::from(u32::from_be_bytes(ns.try_into().ok()?)))
        }
        _ => return None,
    };
    Some(seconds * 1e3 + ns / 1e6)
}

/// Writes a date as `Date.prototype.toJSON` does: `null` when it is none.
fn push_date(out: &mut String, unix_ms: Option<f64>) {
    let Some(unix_ms) = unix_ms.filter(|ms| ms.abs() <= DATE_MAX_MS) else {
        out.push_str("null");
        return;
    };
    // A date has whole milliseconds, and drops what is beyond.
    let unix_ms = unix_ms as i64;
    let (days, ms) = (unix_ms.div_euclid(86_400_000), unix_ms.rem_euclid(86_400_000));
    // The calendar repeats every 400 years, which are 146,097 days; years here begin in March, so that the odd day is their last.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + i64::from(month <= 2);
    let _ = match year {
        0..=9_999 => write!(out, "\"{year:04}"),
        // Six digits and always a sign.
        _ => write!(out, "\"{year:+07}"),
    };
    let (second, minute, hour) = (ms / 1_000 % 60, ms / 60_000 % 60, ms / 3_600_000);
    let _ = write!(out, "-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z\"", ms % 1_000);
}

/// Writes a number as `JSON.stringify` does: `null` when it is not finite, no sign for zero, an exponent from 1e21 on and below 1e-6.
pub(super) fn push_number(out: &mut String, value: f64) {
    if !value.is_finite() {
        out.push_str("null");
        return;
    }
    // As many digits as tell it apart from its neighbours, which is JavaScript's choice too.
    let scientific = format!("{:e}", value.abs());
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return };
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let point = exponent.parse::<i32>().unwrap_or_default() + 1;
    if value < 0.0 {
        out.push('-');
    }
    let count = digits.len() as i32;
    let _ = match point {
        1..=21 if count <= point => write!(out, "{digits}{}", "0".repeat((point - count) as usize)),
        1..=21 => write!(out, "{}.{}", &digits[..point as usize], &digits[point as usize..]),
        -5..=0 => write!(out, "0.{}{digits}", "0".repeat(-point as usize)),
        _ => {
            let (first, others) = digits.split_at(1);
            let point_text = if others.is_empty() { "" } else { "." };
            write!(out, "{first}{point_text}{others}e{:+}", point - 1)
        }
    };
}

/// The MessagePack of a JSON text in which these attachments are spoken of. Whole numbers of up to 64 bits, also
/// where they are spelled as floats, become integers in their shortest form as notepack writes them; other numbers 64-bit floats. An attachment is written where it is spoken of first, and is
/// nil where it is spoken of again, as in [`sio::spelled_out`].
///
/// # Errors
/// When it is not JSON, or speaks of an attachment that is not there.
pub fn from_json(scratch: &mut Scratch, json: &str, attachments: &[Vec<u8>]) -> Result<Vec<u8>, Unsendable> {
    let doc = scratch.parse(json).map_err(|_| Unsendable::BadPayload)?;
    if !attachments.is_empty() && !sio::placeholders_fit(doc.root(), attachments.len()) {
        return Err(Unsendable::BadPayload);
    }
    let bytes = json.len() + attachments.iter().map(|data| data.len() + 5).sum::<usize>();
    let mut writer = Writer { out: Vec::with_capacity(bytes), attachments: attachments.iter().map(Some).collect() };
    writer.value(doc.root()).ok_or(Unsendable::BadPayload)?;
    Ok(writer.out)
}

struct Writer<'a> {
    out: Vec<u8>,
    /// Those that were not written yet.
    attachments: Vec<Option<&'a Vec<u8>>>,
}

impl Writer<'_> {
    /// `None` when a length is beyond 32 bits. It calls itself as deep as [`Scratch::parse`] let the text be nested.
    fn value(&mut self, value: Value<'_>) -> Option<()> {
        let out = &mut self.out;
        if let Some(text) = value.as_str() {
            encode::write_str(out, text).ok()?;
        } else if let Some(value) = value.as_bool() {
            encode::write_bool(out, value).ok()?;
        } else if value.is_null() {
            encode::write_nil(out).ok()?;
        } else if value.is_array() {
            encode::write_array_len(out, u32::try_from(value.items().count()).ok()?).ok()?;
            value.items().try_for_each(|item| self.value(item))?;
        } else if let Some(number) = self.placeholder(value) {
            let data = self.attachments.get_mut(number).and_then(Option::take);
            match data {
                Some(data) => encode::write_bin(&mut self.out, data).ok()?,
                None => encode::write_nil(&mut self.out).ok()?,
            }
        } else if value.is_object() {
            encode::write_map_len(&mut self.out, u32::try_from(value.members().count()).ok()?).ok()?;
            for member in value.members() {
                encode::write_str(&mut self.out, member.key).ok()?;
                self.value(member.value)?;
            }
        } else {
            self.number(value.raw())?;
        }
        Some(())
    }

    /// The attachment that an object stands for.
    fn placeholder(&self, value: Value<'_>) -> Option<usize> {
        if self.attachments.is_empty() || value.get("_placeholder")?.as_bool() != Some(true) {
            return None;
        }
        value.get("num")?.as_u64().map(|number| number as usize)
    }

    fn number(&mut self, raw: &str) -> Option<()> {
        let out = &mut self.out;
        if let Ok(whole) = raw.parse() {
            encode::write_uint(out, whole).ok()?;
        } else if let Ok(whole) = raw.parse() {
            encode::write_sint(out, whole).ok()?;
        } else {
            let value = raw.parse::<f64>().ok()?;
            if !value.is_finite() {
                encode::write_nil(out).ok()?;
            } else if value.fract() == 0.0 && (-TWO_TO_63..TWO_TO_63).contains(&value) {
                encode::write_sint(out, value as i64).ok()?;
            } else if value.fract() == 0.0 && (TWO_TO_63..2.0 * TWO_TO_63).contains(&value) {
                encode::write_uint(out, value as u64).ok()?;
            } else {
                encode::write_f64(out, value).ok()?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value as Oracle;

    use super::super::scratch;
    use super::*;

    fn json(bytes: &[u8]) -> Result<String, Fault> {
        to_json(bytes).map(|payload| payload.json)
    }

    fn number(value: f64) -> String {
        let mut out = String::new();
        push_number(&mut out, value);
        out
    }

    #[test]
    fn every_type_is_read() {
        let long = [&[0xD9, 3][..], b"abc"].concat();
        let float = |value: f64| [&[0xCB][..], &value.to_be_bytes()].concat();
        let cases: [(&[u8], &str); 40] = [
            (&[0x00], "0"),
            (&[0x7F], "127"),
            (&[0xFF], "-1"),
            (&[0xE0], "-32"),
            (&[0xCC, 0xFF], "255"),
            (&[0xCD, 1, 0], "256"),
            (&[0xCE, 0xFF, 0xFF, 0xFF, 0xFF], "4294967295"),
            (&[0xCF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], "18446744073709551615"),
            (&[0xD0, 0x80], "-128"),
            (&[0xD1, 0x80, 0], "-32768"),
            (&[0xD2, 0x80, 0, 0, 0], "-2147483648"),
            (&[0xD3, 0x80, 0, 0, 0, 0, 0, 0, 0], "-9223372036854775808"),
            (&[0xCA, 0x3F, 0xC0, 0, 0], "1.5"),
            (&[0xCA, 0x3D, 0xCC, 0xCC, 0xCD], "0.10000000149011612"),
            (&float(-0.1), "-0.1"),
            (&float(-0.0), "0"),
            (&float(1e100), "1e+100"),
            (&float(f64::NAN), "null"),
            (&float(f64::NEG_INFINITY), "null"),
            (&[0xC0], "null"),
            (&[0xC2], "false"),
            (&[0xC3], "true"),
            (&[0xA0], "\"\""),
            (&[0xA2, b'"', 1], r#""\"\u0001""#),
            (&long, "\"abc\""),
            (&[0xDA, 0, 1, b'a'], "\"a\""),
            (&[0xDB, 0, 0, 0, 1, b'a'], "\"a\""),
            // Half of a surrogate pair, as notepack writes it.
            (&[0xA3, 0xED, 0xA0, 0xBD], "\"\u{fffd}\u{fffd}\u{fffd}\""),
            (&[0x90], "[]"),
            (&[0x92, 0x91, 1, 0x80], "[[1],{}]"),
            (&[0xDC, 0, 1, 5], "[5]"),
            (&[0xDD, 0, 0, 0, 1, 5], "[5]"),
            (&[0x82, 0xA1, b'a', 1, 0xA1, b'a', 2], r#"{"a":1,"a":2}"#),
            (&[0xDE, 0, 1, 7, 0x81, 0xC0, 0xC3], r#"{"7":{"null":true}}"#),
            (&[0xDF, 0, 0, 0, 1, 0xFF, 0x90], r#"{"-1":[]}"#),
            (&[0xD4, 0, 0], "null"),
            (&[0xD5, 5, 1, 2], "null"),
            (&[0xC7, 2, 9, 1, 2], "null"),
            (&[0xD6, 0xFF, 0x5E, 0x0B, 0xE1, 0x00], "\"2020-01-01T00:00:00.000Z\""),
            (&[0xD7, 0, 0, 0, 0, 0, 0, 0, 0, 1], "\"1970-01-01T00:00:00.001Z\""),
        ];
        for (bytes, text) in cases {
            assert_eq!(json(bytes).as_deref(), Ok(text), "{bytes:x?}");
        }
        for bytes in [
            &[][..],
            &[0xC1],
            &[1, 1],
            &[0x91],
            &[0xA2, b'a'],
            &[0x81, 0x90, 1],
            &[0x81, 1],
            &[0xCD, 1],
            &[0xC4, 5, 1],
            &[0xDD, 0xFF, 0xFF, 0xFF, 0xFF],
            &[0xDF, 0xFF, 0xFF, 0xFF, 0xFF, 0xA0],
            &[0xDB, 0xFF, 0xFF, 0xFF, 0xFF],
            &[0xC6, 0xFF, 0xFF, 0xFF, 0xFF, 1],
            &[0xC9, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        ] {
            assert_eq!(json(bytes), Err(Fault::Unreadable), "{bytes:x?}");
        }
    }

    #[test]
    fn binary_data_becomes_attachments() {
        let bytes = [0x93, 0xC4, 1, 9, 0xC4, 0, 0x81, 0xA1, b'a', 0xC7, 2, 0, 1, 2];
        let payload = to_json(&bytes).expect("MessagePack");
        let place = |number| format!(r#"{{"_placeholder":true,"num":{number}}}"#);
        assert_eq!(payload.json, format!(r#"[{},{},{{"a":{}}}]"#, place(0), place(1), place(2)));
        assert_eq!(payload.attachments, [vec![9], vec![], vec![1, 2]]);
        let empty = [0xC4, 0];
        let many = |count: usize| [&[0xDC, 0, count as u8][..], &empty.repeat(count)].concat();
        assert!(to_json(&many(ATTACHMENTS_MAX)).is_ok());
        assert_eq!(to_json(&many(ATTACHMENTS_MAX + 1)), Err(Fault::Attachments));
        let lookalike = |more: &[u8], value: u8| [&[0x92, 0x81, 0xAC][..], b"_placeholder", &[value], more].concat();
        assert_eq!(to_json(&lookalike(&[0xC4, 0], 0xC3)), Err(Fault::Attachments), "beside binary data");
        assert_eq!(json(&lookalike(&[1], 0xC3)).as_deref(), Ok(r#"[{"_placeholder":true},1]"#));
        assert!(to_json(&lookalike(&[0xC4, 0], 0xC2)).is_ok());
    }

    #[test]
    fn an_attachment_is_written_where_it_is_first_spoken_of() {
        let text = r#"[{"num":1,"_placeholder":true},{"_placeholder":true,"num":1.0},{"_placeholder":false,"num":0}]"#;
        let bytes = from_json(&mut scratch(), text, &[vec![1], vec![2]]).expect("JSON");
        let expected = [&[0x93, 0xC4, 1, 2, 0xC0, 0x82, 0xAC][..], b"_placeholder", &[0xC2, 0xA3], b"num", &[0]].concat();
        assert_eq!(bytes, expected);
        for (text, count) in [(r#"[{"_placeholder":true,"num":1}]"#, 1), (r#"[{"_placeholder":true}]"#, 1), ("[", 0), ("[1],", 0)] {
            assert_eq!(from_json(&mut scratch(), text, &vec![vec![]; count]), Err(Unsendable::BadPayload), "{text}");
        }
        let plain = r#"{"_placeholder":true,"num":0}"#;
        let bytes = from_json(&mut scratch(), plain, &[]).expect("JSON");
        assert_eq!(json(&bytes).as_deref(), Ok(plain), "without attachments it is an object like others");
    }

    #[test]
    fn numbers_are_written_as_notepack_does() {
        let cases: [(&str, &[u8]); 15] = [
            ("127", &[0x7F]),
            ("-0", &[0]),
            ("128", &[0xCC, 128]),
            ("-33", &[0xD0, 0xDF]),
            ("1e3", &[0xCD, 3, 0xE8]),
            ("5.0", &[5]),
            ("9007199254740993", &[0xCF, 0, 0x20, 0, 0, 0, 0, 0, 1]),
            ("18446744073709551615", &[0xCF, 255, 255, 255, 255, 255, 255, 255, 255]),
            ("-9223372036854775808", &[0xD3, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            ("1.5", &[0xCB, 0x3F, 0xF8, 0, 0, 0, 0, 0, 0]),
            ("1e19", &[0xCF, 0x8A, 0xC7, 0x23, 0x04, 0x89, 0xE8, 0, 0]),
            ("-9223372036854776000", &[0xD3, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            ("2e19", &[0xCB, 0x43, 0xF1, 0x58, 0xE4, 0x60, 0x91, 0x3D, 0]),
            ("1e100", &[0xCB, 0x54, 0xB2, 0x49, 0xAD, 0x25, 0x94, 0xC3, 0x7D]),
            ("1e400", &[0xC0]),
        ];
        for (text, bytes) in cases {
            assert_eq!(from_json(&mut scratch(), text, &[]).as_deref(), Ok(bytes), "{text}");
        }
    }

    /// Texts that Node 20 gives.
    #[test]
    fn numbers_look_like_javascripts() {
        for (value, text) in [
            (1e21, "1e+21"),
            (123456789012345680000.0, "123456789012345680000"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (-1.25e-7, "-1.25e-7"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (0.1 + 0.2, "0.30000000000000004"),
            (100.0, "100"),
            (123.456, "123.456"),
            (-0.000001234, "-0.000001234"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    /// Texts that Node 20 gives.
    #[test]
    fn dates_look_like_javascripts() {
        let date = |ms: i64| {
            let mut out = String::new();
            push_date(&mut out, Some(ms as f64));
            out
        };
        for (ms, text) in [
            (0, "\"1970-01-01T00:00:00.000Z\""),
            (-1, "\"1969-12-31T23:59:59.999Z\""),
            (951_782_399_999, "\"2000-02-28T23:59:59.999Z\""),
            (951_782_400_000, "\"2000-02-29T00:00:00.000Z\""),
            (4_107_542_400_000, "\"2100-03-01T00:00:00.000Z\""),
            (253_402_300_800_000, "\"+010000-01-01T00:00:00.000Z\""),
            (-62_167_219_200_000, "\"0000-01-01T00:00:00.000Z\""),
            (-62_167_219_200_001, "\"-000001-12-31T23:59:59.999Z\""),
            (8_640_000_000_000_000, "\"+275760-09-13T00:00:00.000Z\""),
            (-8_640_000_000_000_000, "\"-271821-04-20T00:00:00.000Z\""),
            (8_640_000_000_000_001, "null"),
        ] {
            assert_eq!(date(ms), text);
        }
        let extension = |data: &[u8]| json(&[&[0xC7, data.len() as u8, 0xFF], data].concat());
        assert_eq!(extension(&[0, 0, 0, 1]).as_deref(), Ok("\"1970-01-01T00:00:01.000Z\""));
        let ns = ((999_999_999_u64 << 34) | (1 << 33)).to_be_bytes();
        assert_eq!(extension(&ns).as_deref(), Ok("\"2242-03-16T12:56:33.000Z\""));
        let before = [&500_500_000_u32.to_be_bytes()[..], &(-1_i64).to_be_bytes()].concat();
        assert_eq!(extension(&before).as_deref(), Ok("\"1969-12-31T23:59:59.501Z\""));
        let far = [&[0; 4][..], &i64::MIN.to_be_bytes()].concat();
        assert_eq!(extension(&far).as_deref(), Ok("null"));
        assert_eq!(extension(&[0]).as_deref(), Ok("null"));
    }

    #[test]
    fn depth_is_bounded_and_breadth_is_not() {
        let nested = |depth: usize| [vec![0x91; depth], vec![1]].concat();
        assert!(to_json(&nested(RELAY_DEPTH_MAX)).is_ok());
        assert_eq!(to_json(&nested(RELAY_DEPTH_MAX + 1)), Err(Fault::Unreadable));
        assert_eq!(to_json(&vec![0x91; 10_000_000]), Err(Fault::Unreadable));
        assert_eq!(to_json(&vec![0x81; 10_000_000]), Err(Fault::Unreadable));
        let text = json(&nested(RELAY_DEPTH_MAX)).expect("in bounds");
        assert_eq!(from_json(&mut scratch(), &text, &[]), Ok(nested(RELAY_DEPTH_MAX)));
        let wide = [&[0xDD, 0, 1, 0, 0][..], &vec![0x90; 65_536]].concat();
        assert_eq!(from_json(&mut scratch(), &json(&wide).expect("in bounds"), &[]), Ok(wide));
    }

    /// What no length in the bytes can make longer than [`to_json`] says.
    #[test]
    fn the_text_is_a_few_times_longer_at_most() {
        let key = [0x81, 0xC2, 0x81, 0xC2].repeat(60);
        for bytes in [vec![1; 100], [vec![0xA0 | 31], vec![0; 31]].concat(), [key, vec![0xC2]].concat()] {
            let bytes = if bytes[0] == 1 { [&[0xDC, 0, 100][..], &[0xC2; 100]].concat() } else { bytes };
            let text = json(&bytes).expect("MessagePack");
            assert!(text.len() <= 7 * bytes.len() + 1, "{} of {}", text.len(), bytes.len());
        }
    }

    fn value() -> impl Strategy<Value = Oracle> {
        let leaf = prop_oneof![
            Just(Oracle::Null),
            any::<bool>().prop_map(Oracle::from),
            any::<i64>().prop_map(Oracle::from),
            any::<u64>().prop_map(Oracle::from),
            (-200_i64..70_000).prop_map(Oracle::from),
            any::<f64>().prop_map(Oracle::from),
            any::<f32>().prop_map(Oracle::from),
            any::<String>().prop_map(Oracle::from),
            "[a-z]{0,300}".prop_map(Oracle::from),
        ];
        leaf.prop_recursive(6, 80, 20, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..20).prop_map(Oracle::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..20).prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    /// Numbers as JavaScript has them: `1.0` is `1`.
    fn same(one: &Oracle, other: &Oracle) -> bool {
        match (one, other) {
            (Oracle::Number(one), Oracle::Number(other)) => {
                // serde_json's own floats are not rounded exactly.
                let near = |one: f64, other: f64| (one - other).abs() <= one.abs() * 1e-15;
                one == other || (one.is_f64() && one.as_f64().zip(other.as_f64()).is_some_and(|(one, other)| near(one, other)))
            }
            (Oracle::Array(one), Oracle::Array(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
            }
            (Oracle::Object(one), Oracle::Object(other)) => {
                one.len() == other.len() && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
            }
            (one, other) => one == other,
        }
    }

    proptest! {
        #[test]
        fn json_comes_back(value in value()) {
            let text = value.to_string();
            let mut scratch = scratch();
            let bytes = from_json(&mut scratch, &text, &[]).expect("JSON");
            let back = json(&bytes).expect("our own");
            prop_assert!(same(&value, &serde_json::from_str(&back).expect("JSON")), "{} {}", text, back);
            // Once it is written our way it stays as it is.
            let again = from_json(&mut scratch, &back, &[]).expect("JSON");
            prop_assert_eq!(json(&again), Ok(back));
        }

        #[test]
        fn floats_come_back(value: f64) {
            let text = number(value);
            if value.is_finite() {
                prop_assert_eq!(text.parse::<f64>(), Ok(value));
            }
            let bytes = from_json(&mut scratch(), &text, &[]).expect("JSON");
            prop_assert_eq!(json(&bytes), Ok(text));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(payload) = to_json(&bytes) {
                let mut scratch = scratch();
                prop_assert!(scratch.parse(&payload.json).is_ok(), "{}", payload.json);
                let bytes = from_json(&mut scratch, &payload.json, &payload.attachments).expect("our own");
                prop_assert!(to_json(&bytes).is_ok_and(|again| again.attachments == payload.attachments));
            }
        }
    }
}
