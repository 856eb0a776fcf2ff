//! The events that one endpoint delivered on this shard lately, for clients that come back after their connection broke off: each once,
//! whoever got it, in the order in which it was delivered. It remembers; who is entitled to what is decided by the caller.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use super::freeze::Frames;
use crate::auth::Identity;
use crate::frame::Frame;
use crate::ids::ConnId;
use crate::shard::frozen::FrozenEvent;
use crate::wire::sio::Offset;

/// What one shard keeps of one endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// For how long, in milliseconds.
    pub(crate) age_ms: u64,
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// Who got an event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum To {
    /// Those in the room of that name.
    Room(Arc<str>),
    /// This connection alone.
    Conn(ConnId),
    /// These connections, in the order of their ids.
    These(Box<[ConnId]>),
}

/// One event.
#[derive(Debug)]
pub(crate) struct Event {
    /// `None` for a volatile one: it is not said again, but a client may have heard it last.
    pub(crate) frame: Option<Rc<Frame>>,
    pub(crate) to: To,
    /// The one connection that did not get it.
    pub(crate) except: Option<ConnId>,
    /// Whose `blocked` users did not get it.
    pub(crate) hidden_from: Option<Arc<Identity>>,
    pub(crate) ms: u64,
    pub(crate) offset: Offset,
}

impl Event {
    /// An event that everybody it is for gets; `None` when it has no offset, so that nobody can say where he was.
    pub(crate) fn new(now_ms: u64, to: To, frame: &Rc<Frame>) -> Option<Event> {
        let mark = frame.mark();
        let frame = (!mark.volatile).then(|| frame.clone());
        Some(Event { frame, to, except: None, hidden_from: None, ms: now_ms, offset: mark.offset? })
    }

    fn bytes(&self) -> usize {
        let list = if let To::These(list) = &self.to { size_of_val(&**list) } else { 0 };
        size_of::<Event>() + list + self.frame.as_ref().map_or(0, |frame| frame.bytes().len())
    }
}

/// The events, oldest first. Each has a position, counted from 0 since the start.
#[derive(Debug)]
pub(crate) struct Backlog {
    bounds: Bounds,
    events: VecDeque<Event>,
    /// Position of the first event.
    first: u64,
    positions: HashMap<Offset, u64, RandomState>,
    bytes: usize,
}

impl Backlog {
    pub(crate) fn new(bounds: Bounds) -> Backlog {
        Backlog { bounds, events: VecDeque::new(), first: 0, positions: HashMap::default(), bytes: 0 }
    }

    /// Remembers an event, and forgets what is too old or too much.
    pub(crate) fn push(&mut self, event: Event) {
        self.bytes += event.bytes();
        self.positions.insert(event.offset, self.next());
        let now_ms = event.ms;
        self.events.push_back(event);
        self.expire(now_ms);
    }

    /// As plain data, oldest first.
    pub(crate) fn freeze(&self, frames: &mut Frames) -> Vec<FrozenEvent> {
        let freeze = |(position, event): (u64, &Event)| FrozenEvent {
            frame: event.frame.as_ref().map(|frame| frames.put(frame)),
            to: event.to.clone(),
            except: event.except,
            hidden_from: event.hidden_from.clone(),
            ms: event.ms,
            offset: event.offset,
            is_known: self.positions.get(&event.offset) == Some(&position),
        };
        self.since(0).map(freeze).collect()
    }

    /// The opposite of [`Self::freeze`], for an empty one; `first` is the position of the first event.
    pub(crate) fn thaw(&mut self, first: u64, events: Vec<FrozenEvent>, frames: &[Rc<Frame>]) {
        self.first = first;
        for event in events {
            let FrozenEvent { frame, to, except, hidden_from, ms, offset, is_known } = event;
            let frame = frame.and_then(|index| frames.get(index as usize).cloned());
            let event = Event { frame, to, except, hidden_from, ms, offset };
            if is_known {
                self.positions.insert(offset, self.next());
            }
            self.bytes += event.bytes();
            self.events.push_back(event);
        }
    }

    /// Remembers an event for one connection more, which others have at another position; where it is.
    pub(crate) fn push_again(&mut self, event: Event) -> u64 {
        let position = self.next();
        self.bytes += event.bytes();
        let now_ms = event.ms;
        self.events.push_back(event);
        self.expire(now_ms);
        position
    }

    /// Forgets what is too old or too much.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some(oldest) = self.events.front() {
            let fits = self.events.len() <= self.bounds.events && self.bytes <= self.bounds.bytes;
            if fits && oldest.ms + self.bounds.age_ms >= now_ms {
                break;
            }
            self.bytes -= oldest.bytes();
            let offset = oldest.offset;
            if self.positions.get(&offset) == Some(&self.first) {
                self.positions.remove(&offset);
            }
            self.events.pop_front();
            self.first += 1;
        }
    }

    /// Position of the oldest event.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Position of the next event.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Position of the event with this offset.
    pub(crate) fn find(&self, offset: Offset) -> Option<u64> {
        self.positions.get(&offset).copied()
    }

    /// The events from a position on, with their positions.
    pub(crate) fn since(&self, position: u64) -> impl Iterator<Item = (u64, &Event)> {
        let skipped = position.saturating_sub(self.first).min(self.events.len() as u64) as usize;
        (self.first + skipped as u64..).zip(self.events.range(skipped..))
    }

    /// Events and bytes it holds.
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.events.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Mark;
    use crate::ids::EndpointId;

    fn event(ms: u64, offset: u64, volatile: bool, bytes: usize) -> Event {
        let mark = Mark { volatile, offset: Some(Offset::Own(offset)) };
        let frame = Rc::new(Frame::event(EndpointId(0), &"x".repeat(bytes), &[], mark));
        Event::new(ms, To::Room("r".into()), &frame).expect("it has an offset")
    }

    #[test]
    fn what_is_too_old_or_too_much_is_forgotten_oldest_first() {
        let mut backlog = Backlog::new(Bounds { age_ms: 100, events: 3, bytes: 10_000 });
        for offset in 0..5 {
            backlog.push(event(offset * 10, offset, false, 10));
        }
        assert_eq!((backlog.find(Offset::Own(1)), backlog.find(Offset::Own(2)), backlog.next()), (None, Some(2), 5));
        assert_eq!(backlog.since(3).map(|(position, _)| position).collect::<Vec<_>>(), [3, 4]);
        backlog.push(event(130, 5, false, 10));
        assert_eq!(backlog.usage().0, 3);
        backlog.expire(135);
        assert_eq!((backlog.find(Offset::Own(3)), backlog.find(Offset::Own(4))), (None, Some(4)));
        backlog.push(event(140, 6, false, 9_870));
        assert_eq!(backlog.usage().0, 1, "one large event pushes all others out");
        backlog.push(event(141, 7, false, 20_000));
        assert_eq!(backlog.usage(), (0, 0), "one that is larger than everything is not kept either");
        assert_eq!((backlog.first(), backlog.since(0).count(), backlog.since(99).count()), (8, 0, 0));
    }

    #[test]
    fn an_event_said_again_to_one_stays_where_it_was_for_others() {
        let mut backlog = Backlog::new(Bounds { age_ms: 100, events: 3, bytes: 10_000 });
        backlog.push(event(0, 1, false, 1));
        assert_eq!((backlog.push_again(event(0, 1, false, 1)), backlog.find(Offset::Own(1))), (1, Some(0)));
        backlog.push(event(0, 2, false, 1));
        backlog.push(event(0, 3, false, 1));
        assert_eq!((backlog.find(Offset::Own(1)), backlog.find(Offset::Own(2))), (None, Some(2)));
        backlog.push(event(0, 1, false, 1));
        assert_eq!(backlog.find(Offset::Own(1)), Some(4), "what goes is not what is known by its offset now");
    }

    #[test]
    fn a_volatile_event_marks_its_place_only() {
        let mut backlog = Backlog::new(Bounds { age_ms: 100, events: 3, bytes: 10_000 });
        backlog.push(event(0, 9, true, 1_000));
        assert!(backlog.find(Offset::Own(9)) == Some(0) && backlog.since(0).all(|(_, event)| event.frame.is_none()));
        assert!(backlog.usage().1 < 1_000);
        let plain = Rc::new(Frame::text(EndpointId(0), "no offset"));
        assert!(Event::new(0, To::Room("r".into()), &plain).is_none());
    }
}
