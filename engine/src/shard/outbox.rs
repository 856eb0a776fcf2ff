//! What waits to be written to one link: a bounded queue of shared frames. It decides what the next write is; it does not write.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::frame::Frame;
use crate::limits::{
    COALESCE_FRAME_BYTES_MAX, COALESCE_WRITE_BYTES_MAX, FRAME_OVERHEAD_BYTES, QUEUE_SAMPLES, SPARE_QUEUE_FRAMES_MAX, SPARE_QUEUES_MAX,
};
use crate::wire::eio;

/// Frames in the order in which they leave. An idle link owns no queue, and one for which a single frame waits neither.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Waiting,
    /// True exactly when the socket refused bytes and has not said since that it takes more.
    pub(crate) blocked: bool,
    /// True exactly when the link stands in the shard's list of links to flush.
    pub(crate) dirty: bool,
    /// True exactly when the link stands in the shard's list of links that are flushed when a hold ends.
    pub(crate) held: bool,
}

/// `Rc` around the frame's own `Arc`: the shards of a cast do not fight over one counter.
#[derive(Debug, Default)]
enum Waiting {
    #[default]
    Nothing,
    /// Nothing of it is written.
    One(Rc<Frame>),
    Many(Box<Queue>),
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Rc<Frame>>,
    /// Bytes of the first frame that the socket has taken.
    written: usize,
    /// Bytes still to be written.
    bytes: usize,
}

/// Empty queues of a shard for the next links that need one, so that links that get several frames a turn allocate nothing.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "an outbox takes the box as it is")]
pub(crate) struct Spares(Vec<Box<Queue>>);

impl Spares {
    fn take(&mut self) -> Box<Queue> {
        self.0.pop().unwrap_or_default()
    }

    fn give(&mut self, queue: Box<Queue>) {
        debug_assert!(queue.frames.is_empty() && queue.written == 0 && queue.bytes == 0);
        if self.0.len() < SPARE_QUEUES_MAX && queue.frames.capacity() <= SPARE_QUEUE_FRAMES_MAX {
            self.0.push(queue);
        }
    }
}

/// Where small frames that wait together are joined to one write, for all writes of a batch. Its buffer never moves while it has spans: they are in
/// use until the batch is written.
#[derive(Debug)]
pub struct Arena {
    bytes: Vec<u8>,
    last: Option<Joined>,
    /// What `last` is made of, to be compared and never followed: frames are only let go when a batch is written.
    frames: Vec<*const Frame>,
}

/// The write that was joined last. The members of a room wait for the same frames: whoever does is sent the same bytes, which were copied once and
/// which the processor still has at hand.
#[derive(Clone, Copy, Debug)]
struct Joined {
    span: Span,
    /// True exactly when frames waited behind it that found no place.
    is_cut: bool,
}

impl Arena {
    /// An empty one of so many bytes.
    pub fn new(bytes: usize) -> Arena {
        Arena { bytes: Vec::with_capacity(bytes), last: None, frames: Vec::new() }
    }

    /// Forgets everything: all spans are written.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
        self.last = None;
    }

    /// True exactly when the largest joined write has a place.
    pub fn has_space(&self) -> bool {
        self.bytes.capacity() - self.bytes.len() >= COALESCE_WRITE_BYTES_MAX
    }

    /// The span of the same frames, if they were joined last.
    fn again(&self, frames: &VecDeque<Rc<Frame>>) -> Option<Span> {
        let Joined { span, is_cut } = self.last?;
        let fits = frames.len() == self.frames.len() || (is_cut && frames.len() > self.frames.len());
        (fits && self.frames.iter().zip(frames).all(|(joined, frame)| *joined == Rc::as_ptr(frame))).then_some(span)
    }
}

/// The next write: bytes that stay where they are until `Outbox::sent` is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First byte.
    pub start: *const u8,
    /// Number of bytes, at least 1.
    pub len: usize,
}

impl Outbox {
    pub(crate) fn push(&mut self, frame: Rc<Frame>, spares: &mut Spares) {
        match &mut self.waiting {
            Waiting::Many(queue) => queue.push(frame),
            Waiting::Nothing => self.waiting = Waiting::One(frame),
            Waiting::One(_) => {
                let mut queue = spares.take();
                if let Waiting::One(first) = std::mem::take(&mut self.waiting) {
                    queue.push(first);
                }
                queue.push(frame);
                self.waiting = Waiting::Many(queue);
            }
        }
    }

    /// Bytes still to be written.
    pub(crate) fn bytes(&self) -> usize {
        match &self.waiting {
            Waiting::Nothing => 0,
            Waiting::One(frame) => frame.bytes().len(),
            Waiting::Many(queue) => queue.bytes,
        }
    }

    /// True exactly when more waits than may. A single frame longer than the bound that is next or being written is not counted: it
    /// is no sign that its reader is slow.
    pub(crate) fn is_over(&self, bytes_max: usize) -> bool {
        let Waiting::Many(queue) = &self.waiting else { return false };
        let long = queue.frames.front().map(|frame| frame.bytes().len()).filter(|len| *len > bytes_max);
        queue.bytes - long.map_or(0, |len| len - queue.written) > bytes_max
    }

    /// Bytes of memory that ending it gives back, about: its places, its frames, and its part of those for which others wait too. Some of them
    /// are looked at, so that it costs the same however many there are.
    pub(crate) fn share(&self) -> usize {
        let of = |frame: &Rc<Frame>| (frame.bytes().len() + FRAME_OVERHEAD_BYTES) / Rc::strong_count(frame);
        match &self.waiting {
            Waiting::Nothing => 0,
            Waiting::One(frame) => of(frame),
            Waiting::Many(queue) => {
                let step = queue.frames.len().div_ceil(QUEUE_SAMPLES).max(1);
                let looked = queue.frames.iter().step_by(step);
                let (count, bytes) = looked.fold((0, 0), |(count, bytes), frame| (count + 1, bytes + of(frame)));
                bytes * queue.frames.len() / count.max(1) + queue.frames.capacity() * size_of::<Rc<Frame>>()
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.waiting, Waiting::Nothing)
    }

    /// The next write. A large or lone frame is sent from where it lies; small ones that wait together are joined in `arena`, because one
    /// write for all of them costs about as much as one write for one of them. `None`: nothing to write, or no space left in the arena.
    pub(crate) fn next_span(&self, arena: &mut Arena) -> Option<Span> {
        match &self.waiting {
            Waiting::Nothing => None,
            Waiting::One(frame) => Some(Span { start: frame.bytes().as_ptr(), len: frame.bytes().len() }),
            Waiting::Many(queue) => queue.next_span(arena),
        }
    }

    /// The socket took `n` bytes; calls `done` for each frame that is now written whole.
    pub(crate) fn sent(&mut self, n: usize, spares: &mut Spares, mut done: impl FnMut(&Frame)) {
        debug_assert!(n <= self.bytes(), "more bytes written than queued");
        match std::mem::take(&mut self.waiting) {
            Waiting::Nothing => {}
            Waiting::One(frame) if n == frame.bytes().len() => done(&frame),
            Waiting::One(frame) if n == 0 => self.waiting = Waiting::One(frame),
            Waiting::One(frame) => {
                let mut queue = spares.take();
                queue.push(frame);
                queue.sent(n, done);
                self.waiting = Waiting::Many(queue);
            }
            Waiting::Many(mut queue) => {
                queue.sent(n, done);
                if queue.frames.is_empty() {
                    spares.give(queue);
                } else {
                    self.waiting = Waiting::Many(queue);
                }
            }
        }
    }

    /// Takes the packets of the next frames, of at least one and of no more than `bytes_max` bytes, as a long-polling body. What is
    /// encoded for a WebSocket only is left out. Calls `done` for each frame; returns the bytes that no longer wait, too.
    pub(crate) fn take_payload(&mut self, bytes_max: usize, mut done: impl FnMut(&Frame)) -> (String, usize) {
        let (mut body, mut taken) = (String::new(), 0);
        let mut frames = self.take_frames();
        while let Some(frame) = frames.front() {
            if !frame.is_encoded() {
                if !body.is_empty() && body.len() + frame.payload().len() >= bytes_max {
                    break;
                }
                for packet in frame.packets() {
                    eio::push_packet(&mut body, packet);
                }
                done(frame);
            }
            taken += frame.bytes().len();
            frames.pop_front();
        }
        self.waiting = Waiting::of(frames, 0);
        (body, taken)
    }

    /// Hands over all frames, none of which is partly written.
    pub(crate) fn take_frames(&mut self) -> VecDeque<Rc<Frame>> {
        match std::mem::take(&mut self.waiting) {
            Waiting::Nothing => VecDeque::new(),
            Waiting::One(frame) => VecDeque::from([frame]),
            Waiting::Many(queue) => queue.frames,
        }
    }

    /// All frames, and how much of the first is written.
    pub(crate) fn frames(&self) -> (impl Iterator<Item = &Frame>, usize) {
        let (one, many, written) = match &self.waiting {
            Waiting::Nothing => (None, None, 0),
            Waiting::One(frame) => (Some(frame), None, 0),
            Waiting::Many(queue) => (None, Some(&queue.frames), queue.written),
        };
        (one.into_iter().chain(many.into_iter().flatten()).map(|frame| &**frame), written)
    }

    /// The opposite of [`Self::frames`].
    pub(crate) fn of(frames: VecDeque<Rc<Frame>>, written: usize) -> Outbox {
        Outbox { waiting: Waiting::of(frames, written), ..Outbox::default() }
    }

    /// Takes everything out, to go to another shard: the frames, and how much of the first is written.
    pub(crate) fn pack(&mut self) -> (Vec<Frame>, usize) {
        let written = if let Waiting::Many(queue) = &self.waiting { queue.written } else { 0 };
        let frames = self.take_frames().into_iter().map(|frame| Frame::clone(&frame)).collect();
        (frames, written)
    }

    /// The opposite of [`Self::pack`].
    pub(crate) fn unpack(frames: Vec<Frame>, written: usize) -> Outbox {
        Outbox::of(frames.into_iter().map(Rc::new).collect(), written)
    }

    /// Forgets everything but the rest of a frame that is partly on the wire; calls `unsent` for each forgotten frame.
    pub(crate) fn truncate(&mut self, mut unsent: impl FnMut(&Frame)) {
        match &mut self.waiting {
            Waiting::Many(queue) if queue.written > 0 => {
                queue.frames.drain(1..).for_each(|frame| unsent(&frame));
                queue.bytes = queue.frames[0].bytes().len() - queue.written;
            }
            _ => self.abandon(unsent),
        }
    }

    /// Calls `unsent` for every frame that was not written whole.
    pub(crate) fn abandon(&mut self, mut unsent: impl FnMut(&Frame)) {
        for frame in self.take_frames() {
            unsent(&frame);
        }
    }
}

impl Waiting {
    fn of(frames: VecDeque<Rc<Frame>>, written: usize) -> Waiting {
        if frames.is_empty() {
            return Waiting::Nothing;
        }
        let bytes = frames.iter().map(|frame| frame.bytes().len()).sum::<usize>() - written;
        Waiting::Many(Box::new(Queue { frames, written, bytes }))
    }
}

impl Queue {
    fn push(&mut self, frame: Rc<Frame>) {
        self.bytes += frame.bytes().len();
        self.frames.push_back(frame);
    }

    fn next_span(&self, arena: &mut Arena) -> Option<Span> {
        let first = &self.frames.front()?.bytes()[self.written..];
        let second_is_small = self.frames.get(1).is_some_and(|frame| frame.bytes().len() <= COALESCE_FRAME_BYTES_MAX);
        if first.len() > COALESCE_FRAME_BYTES_MAX || !second_is_small {
            return Some(Span { start: first.as_ptr(), len: first.len() });
        }
        if self.written == 0
            && let Some(span) = arena.again(&self.frames)
        {
            return Some(span);
        }
        let start = arena.bytes.len();
        let space = (arena.bytes.capacity() - start).min(COALESCE_WRITE_BYTES_MAX);
        let mut taken = 0;
        arena.frames.clear();
        for (i, frame) in self.frames.iter().enumerate() {
            let bytes = if i == 0 { first } else { frame.bytes() };
            if bytes.len() > COALESCE_FRAME_BYTES_MAX || taken + bytes.len() > space {
                break;
            }
            arena.bytes.extend_from_slice(bytes);
            arena.frames.push(Rc::as_ptr(frame));
            taken += bytes.len();
        }
        let span = (taken > 0).then(|| Span { start: arena.bytes[start..].as_ptr(), len: taken });
        let is_cut = arena.frames.len() < self.frames.len();
        // What begins in the middle of a frame is nobody else's.
        arena.last = span.filter(|_| self.written == 0).map(|span| Joined { span, is_cut });
        span
    }

    fn sent(&mut self, n: usize, mut done: impl FnMut(&Frame)) {
        self.bytes -= n;
        if self.bytes == 0 {
            self.written = 0;
            return self.frames.drain(..).for_each(|frame| done(&frame));
        }
        self.written += n;
        while let Some(frame) = self.frames.front() {
            let len = frame.bytes().len();
            if self.written < len {
                break;
            }
            done(frame);
            self.written -= len;
            self.frames.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(sizes: &[usize]) -> Outbox {
        let mut outbox = Outbox::default();
        for (i, size) in sizes.iter().enumerate() {
            outbox.push(Rc::new(Frame::encoded(vec![i as u8; *size])), &mut Spares::default());
        }
        outbox
    }

    #[test]
    fn one_frame_goes_from_where_it_lies_and_small_ones_together() {
        let mut arena = Arena::new(1 << 20);
        assert_eq!(outbox(&[100]).next_span(&mut arena).map(|span| span.len), Some(100));
        assert!(arena.bytes.is_empty(), "a lone frame is not copied");
        assert_eq!(outbox(&[100, 200, 9_000]).next_span(&mut arena).map(|span| span.len), Some(300));
        assert_eq!(outbox(&[9_000, 1]).next_span(&mut arena).map(|span| span.len), Some(9_000));
        assert_eq!(outbox(&[]).next_span(&mut arena), None);
    }

    #[test]
    fn partial_writes_continue_at_the_right_byte() {
        let mut outbox = outbox(&[10, 20, 30]);
        let mut done = 0;
        outbox.sent(15, &mut Spares::default(), |_| done += 1);
        assert_eq!((done, outbox.bytes()), (1, 45));
        let mut arena = Arena::new(1 << 20);
        let span = outbox.next_span(&mut arena).expect("45 bytes wait");
        assert_eq!(span.len, 45);
        assert_eq!(arena.bytes, [vec![1; 15], vec![2; 30]].concat());
        let mut unsent = 0;
        outbox.truncate(|_| unsent += 1);
        assert_eq!((unsent, outbox.bytes()), (1, 15), "the frame that is partly on the wire stays");
        outbox.sent(15, &mut Spares::default(), |_| done += 1);
        assert!(outbox.is_empty() && done == 2);
    }

    #[test]
    fn a_frame_for_which_several_wait_is_shared_between_them() {
        let shared = Rc::new(Frame::encoded(vec![0; 10_000]));
        let mut crowd: Vec<Outbox> = (0..10).map(|_| Outbox::default()).collect();
        crowd.iter_mut().for_each(|outbox| outbox.push(shared.clone(), &mut Spares::default()));
        drop(shared);
        let together: usize = crowd.iter().map(Outbox::share).sum();
        assert!((10_000..10_000 + 2 * FRAME_OVERHEAD_BYTES).contains(&together), "{together}");
        let alone = outbox(&[1; 1_000]).share();
        assert!(alone >= 1_000 * (FRAME_OVERHEAD_BYTES + 8), "small frames cost more than their bytes: {alone}");
    }

    #[test]
    fn an_arena_without_space_gives_nothing() {
        let mut arena = Arena::new(5);
        assert_eq!(outbox(&[10, 10]).next_span(&mut arena), None);
    }

    #[test]
    fn who_waits_for_the_same_frames_is_sent_the_same_bytes() {
        let frames: Vec<Rc<Frame>> = (0..3).map(|i| Rc::new(Frame::encoded(vec![i; 10]))).collect();
        let of = |chosen: &[usize]| {
            let mut outbox = Outbox::default();
            chosen.iter().for_each(|i| outbox.push(frames[*i].clone(), &mut Spares::default()));
            outbox
        };
        let mut arena = Arena::new(1 << 20);
        let span = of(&[0, 1]).next_span(&mut arena);
        assert_eq!(of(&[0, 1]).next_span(&mut arena), span);
        assert_eq!(arena.bytes.len(), 20, "copied once");
        for other in [&[0, 1, 2][..], &[1, 0], &[0, 2]] {
            let own = of(other).next_span(&mut arena);
            assert!(own != span && own.map(|own| own.len) == Some(10 * other.len()), "{other:?}");
        }
        let mut begun = of(&[0, 2, 1]);
        begun.sent(4, &mut Spares::default(), |_| {});
        assert_eq!(begun.next_span(&mut arena).map(|span| span.len), Some(26));
        assert_eq!(of(&[0, 2, 1]).next_span(&mut arena).map(|span| span.len), Some(30), "the other's begins in the middle");
        arena.clear();
        assert!(of(&[0, 1]).next_span(&mut arena).is_some() && arena.bytes.len() == 20);
    }

    #[test]
    fn a_write_that_was_cut_off_is_the_same_for_whoever_has_more_behind_it() {
        let frames: Vec<Rc<Frame>> = (0..40).map(|_| Rc::new(Frame::encoded(vec![0; 4_000]))).collect();
        let outbox = |count: usize| Outbox { waiting: Waiting::of(frames[..count].iter().cloned().collect(), 0), ..Outbox::default() };
        let mut arena = Arena::new(1 << 20);
        let span = outbox(40).next_span(&mut arena).expect("there are some");
        assert_eq!(span.len, COALESCE_WRITE_BYTES_MAX / 4_000 * 4_000);
        assert_eq!(outbox(30).next_span(&mut arena), Some(span));
        assert_ne!(outbox(16).next_span(&mut arena), None);
        assert_eq!(arena.bytes.len(), span.len, "16 frames are what the cut one is made of");
    }
}
