//! Messages that the back end is asked about before others hear them: held whole while it thinks, then heard as if they had come now, with its
//! data if it gave any, or refused. Whether a message is one of these, and where it would go, its dialect says.

use std::sync::Arc;

use super::Shard;
use super::hooks::Wish;
use super::inquiry::{About, Changes, Proposal};
use crate::dialect::{Act, Said, Submission};
use crate::json::{self, Scratch, Value};
use crate::time::Now;

/// A message that waits, whole.
pub(super) struct Held {
    /// The text of a plain dialect, or an event's arguments, name included.
    text: String,
    form: Form,
    attachments: Vec<Vec<u8>>,
    /// Where it was for, and as what.
    room: Option<Arc<str>>,
    kind: Box<str>,
}

/// What a message is.
enum Form {
    Text,
    /// Binary, of a plain dialect: [`Held::attachments`] has it.
    Binary,
    /// An event: its name and the acknowledgement that is waited for.
    Event {
        name: String,
        ack: Option<String>,
    },
}

impl Held {
    fn new(said: Said<'_>, mut attachments: Vec<Vec<u8>>, submission: &Submission) -> Held {
        let (text, form) = match said {
            Said::Text(text) => (text.to_owned(), Form::Text),
            Said::Binary(bytes) => {
                attachments = vec![bytes.to_vec()];
                (String::new(), Form::Binary)
            }
            Said::Event { name, args, ack } => (args.raw().to_owned(), Form::Event { name: name.to_owned(), ack: ack.map(str::to_owned) }),
        };
        Held { text, form, attachments, room: submission.room.clone(), kind: submission.event.clone() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.text.len() + self.attachments.iter().map(Vec::len).sum::<usize>()
    }

    /// What was said; `args` are those of an event, parsed.
    fn said<'a>(&'a self, args: Option<Value<'a>>, binary: &'a [u8]) -> Said<'a> {
        match (&self.form, args) {
            (Form::Event { name, ack }, Some(args)) => Said::Event { name, args, ack: ack.as_deref() },
            (Form::Binary, _) => Said::Binary(binary),
            _ => Said::Text(&self.text),
        }
    }
}

impl Shard {
    /// A message where the back end is asked about those that are for others: the dialect says whether it is one, and is asked again when
    /// the answer has come. It may be: it is pure, and what it wanted the first time is thrown away.
    pub(super) fn hear_and_ask(&mut self, now: Now, slot: u32, said: Said<'_>) {
        let mut acts = self.wishes(now, slot, |dialect, cx, scratch, acts| dialect.message(cx, said, scratch, acts));
        let mut submissions = acts.iter_mut().filter_map(submission_of);
        let Some(submission) = submissions.next() else { return self.perform_all(now, slot, acts) };
        let is_one = submissions.next().is_none();
        self.keep_acts(acts);
        if !is_one {
            // A question is about one thing that is said.
            return self.consult(now, slot, |dialect, cx, scratch, acts| dialect.unpublished(cx, said, scratch, acts));
        }
        let Some(conn) = self.conns.get(slot) else { return };
        let (user, conn) = (conn.profile.user.clone(), conn.sid);
        let held = Held::new(said, std::mem::take(&mut self.attachments), &submission);
        let Submission { room, event, data } = *submission;
        let about = About::Publish(Box::new(Proposal { user, conn: Some(conn), room, event, data }));
        self.inquire(now, slot, about, Wish::Say(Box::new(held)));
    }

    /// The message is heard as if it had come now, or refused.
    pub(super) fn say_ruled(&mut self, now: Now, slot: u32, mut held: Held, allowed: Option<&Changes>) {
        let Some(endpoint) = self.conns.get(slot).map(|conn| conn.endpoint) else { return };
        let data = allowed.and_then(|changes| changes.data.as_deref());
        let original = data.map(|data| {
            let text = match &held.form {
                Form::Event { name, .. } => event_args(name, data),
                Form::Text | Form::Binary => self.dialect(endpoint).restated(&held.kind, data),
            };
            std::mem::replace(&mut held.text, text)
        });
        if matches!(held.form, Form::Binary) && original.is_some() {
            // Data are text.
            (held.form, held.attachments) = (Form::Text, Vec::new());
        }
        let mut packets = std::mem::take(&mut self.packets);
        let binary = if matches!(held.form, Form::Binary) { held.attachments.pop().unwrap_or_default() } else { Vec::new() };
        self.attachments = std::mem::take(&mut held.attachments);
        let is_said = allowed.is_some() && self.say_again(now, slot, &held, &binary, original.is_some(), &mut packets);
        if !is_said {
            // What the client wrote is what is refused.
            held.text = original.unwrap_or(held.text);
            let doc = if matches!(held.form, Form::Event { .. }) { packets.parse(&held.text).ok() } else { None };
            let said = held.said(doc.as_ref().map(json::Doc::root), &binary);
            self.consult(now, slot, |dialect, cx, scratch, acts| dialect.unpublished(cx, said, scratch, acts));
        }
        self.attachments = Vec::new();
        self.packets = packets;
    }

    /// False where the back end's data make another message of it, or none at all.
    fn say_again(&mut self, now: Now, slot: u32, held: &Held, binary: &[u8], is_changed: bool, packets: &mut Scratch) -> bool {
        if held.text.len() > self.world.config.limits.message_bytes {
            return false;
        }
        let doc = match &held.form {
            Form::Event { .. } => match packets.parse(&held.text) {
                Ok(doc) => Some(doc),
                Err(_) => return false,
            },
            Form::Text | Form::Binary => None,
        };
        let args = doc.as_ref().map(json::Doc::root);
        if args.is_some_and(|args| self.check_placeholders(args).is_err()) {
            return false;
        }
        let said = held.said(args, binary);
        let mut acts = self.wishes(now, slot, |dialect, cx, scratch, acts| dialect.message(cx, said, scratch, acts));
        let mut submissions = acts.iter_mut().filter_map(submission_of);
        // It may be none any more, and is refused by the dialect then, but never another than was asked about.
        let is_same = submissions.next().map_or(!is_changed, |it| it.room == held.room && it.event == held.kind);
        if !is_same || submissions.next().is_some() {
            self.keep_acts(acts);
            return false;
        }
        self.perform_all(now, slot, acts);
        true
    }
}

/// What the back end is asked about an act.
fn submission_of(act: &mut Act) -> Option<Box<Submission>> {
    if let Act::Publish(publication) = act { publication.submission.take() } else { None }
}

/// Arguments of an event with other data.
fn event_args(name: &str, data: &str) -> String {
    let mut args = String::with_capacity(name.len() + data.len() + 8);
    args.push('[');
    json::quote(&mut args, name);
    args.push(',');
    args.push_str(data);
    args.push(']');
    args
}
