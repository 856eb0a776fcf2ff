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
/// Whole numbers up to here are whole to JavaScript too, and notepack writes them as integers.
const INTEGER_MAX: f64 = 9_007_199_254_740_992.0;
/// A JavaScript date is so many milliseconds away from 1970 at most.
const DATE_MAX_MS: i128 = 8_640_000_000_000_000;

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
            (NOTEPACK, Marker::FixExt8) => push_date(&mut self.out, data.try_into().ok().map(|ms| i64::from_be_bytes(ms).into())),
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
/// with a sign. A date of JavaScript has whole milliseconds, and drops what is beyond.
fn timestamp_ms(data: &[u8]) -> Option<i128> {
    let (seconds, ns) = match data.len() {
        4 => (u32::from_be_bytes(data.try_into().ok()?).into(), 0),
        8 => {
            let both = u64::from_be_bytes(data.try_into().ok()?);
            (i128::from(both & ((1 << 34) - 1)), i128::from(both >> 34))
        }
        12 => {
            let (ns, seconds) = data.split_at(4);
            (i64::from_be_bytes(seconds.try_into().ok()?).into(), u32::from_be_bytes(ns.try_into().ok()?).into())
        }
        _ => return None,
    };
    Some((seconds * 1_000_000_000 + ns) / 1_000_000)
}

/// Writes a date as `Date.prototype.toJSON` does: `null` when it is none.
fn push_date(out: &mut String, unix_ms: Option<i128>) {
    let Some(unix_ms) = unix_ms.filter(|ms| (-DATE_MAX_MS..=DATE_MAX_MS).contains(ms)) else {
        out.push_str("null");
        return;
    };
    let (days, ms) = (unix_ms.div_euclid(86_400_000), unix_ms.rem_euclid(86_400_000));
    // The calendar repeats every 400 years, which are 146,097 days; years here begin in March, so that the odd day is their last.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + i128::from(month <= 2);
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

/// The MessagePack of a JSON text in which these attachments are spoken of. Whole numbers of up to 64 bits, and floats that are whole up to
/// 2^53, become integers in their shortest form; other numbers 64-bit floats. An attachment is written where it is spoken of first, and is
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
            } else if value.fract() == 0.0 && value.abs() <= INTEGER_MAX {
                encode::write_sint(out, value as i64).ok()?;
            } else {
                encode::write_f64(out, value).ok()?;
            }
        }
        Some(())
    }
}
