//! What waits to be written to one link: a bounded queue of shared frames. It decides what the next write is; it does not write.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::frame::Frame;
use crate::limits::{COALESCE_FRAME_BYTES_MAX, COALESCE_WRITE_BYTES_MAX};
use crate::wire::eio;

/// Frames in the order in which they leave.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// `Rc` around the frame's own `Arc`: the shards of a cast do not fight over one counter.
    frames: VecDeque<Rc<Frame>>,
    /// Bytes of the first frame that the socket has taken.
    written: usize,
    /// Bytes still to be written.
    bytes: usize,
    /// True exactly when the socket refused bytes and has not said since that it takes more.
    pub(crate) blocked: bool,
    /// True exactly when the link stands in the shard's list of links to flush.
    pub(crate) dirty: bool,
    /// True exactly when the link stands in the shard's list of links that are flushed when a hold ends.
    pub(crate) held: bool,
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
    pub(crate) fn push(&mut self, frame: Rc<Frame>) {
        self.bytes += frame.bytes().len();
        self.frames.push_back(frame);
    }

    /// Bytes still to be written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// True exactly when more waits than may. A single frame longer than the bound that is next or being written is not counted: it
    /// is no sign that its reader is slow.
    pub(crate) fn is_over(&self, bytes_max: usize) -> bool {
        let long = self.frames.front().map(|frame| frame.bytes().len()).filter(|len| *len > bytes_max);
        self.bytes - long.map_or(0, |len| len - self.written) > bytes_max
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The next write. A large or lone frame is sent from where it lies; small ones that wait together are joined in `arena`, because one
    /// write for all of them costs about as much as one write for one of them. `None`: nothing to write, or no space left in the arena.
    pub(crate) fn next_span(&self, arena: &mut Arena) -> Option<Span> {
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

    /// The socket took `n` bytes; calls `done` for each frame that is now written whole.
    pub(crate) fn sent(&mut self, n: usize, mut done: impl FnMut(&Frame)) {
        debug_assert!(n <= self.bytes, "more bytes written than queued");
        self.bytes -= n;
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
        // An idle link owns no queue.
        if self.frames.is_empty() && self.frames.capacity() > 8 {
            self.frames = VecDeque::new();
        }
    }

    /// Takes the packets of the next frames, of at least one and of no more than `bytes_max` bytes, as a long-polling body. What is
    /// encoded for a WebSocket only is left out. Calls `done` for each frame; returns the bytes that no longer wait, too.
    pub(crate) fn take_payload(&mut self, bytes_max: usize, mut done: impl FnMut(&Frame)) -> (String, usize) {
        let (mut body, mut taken) = (String::new(), 0);
        while let Some(frame) = self.frames.front() {
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
            self.frames.pop_front();
        }
        self.bytes -= taken;
        (body, taken)
    }

    /// Hands over all frames, none of which is partly written.
    pub(crate) fn take_frames(&mut self) -> VecDeque<Rc<Frame>> {
        self.bytes = 0;
        std::mem::take(&mut self.frames)
    }

    /// Takes everything out, to go to another shard: the frames, and how much of the first is written.
    pub(crate) fn pack(&mut self) -> (Vec<Frame>, usize) {
        let frames = self.take_frames().into_iter().map(|frame| Frame::clone(&frame)).collect();
        (frames, std::mem::take(&mut self.written))
    }

    /// The opposite of [`Self::pack`].
    pub(crate) fn unpack(frames: Vec<Frame>, written: usize) -> Outbox {
        let bytes = frames.iter().map(|frame| frame.bytes().len()).sum::<usize>() - written;
        Outbox { frames: frames.into_iter().map(Rc::new).collect(), written, bytes, ..Outbox::default() }
    }

    /// Forgets everything but the rest of a frame that is partly on the wire; calls `unsent` for each forgotten frame.
    pub(crate) fn truncate(&mut self, mut unsent: impl FnMut(&Frame)) {
        let keep = usize::from(self.written > 0);
        for frame in self.frames.drain(keep.min(self.frames.len())..) {
            unsent(&frame);
        }
        self.bytes = self.frames.front().map_or(0, |frame| frame.bytes().len() - self.written);
    }

    /// Calls `unsent` for every frame that was not written whole.
    pub(crate) fn abandon(&mut self, mut unsent: impl FnMut(&Frame)) {
        for frame in self.frames.drain(..) {
            unsent(&frame);
        }
        (self.bytes, self.written) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(sizes: &[usize]) -> Outbox {
        let mut outbox = Outbox::default();
        for (i, size) in sizes.iter().enumerate() {
            outbox.push(Rc::new(Frame::encoded(vec![i as u8; *size])));
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
        outbox.sent(15, |_| done += 1);
        assert_eq!((done, outbox.bytes()), (1, 45));
        let mut arena = Arena::new(1 << 20);
        let span = outbox.next_span(&mut arena).expect("45 bytes wait");
        assert_eq!(span.len, 45);
        assert_eq!(arena.bytes, [vec![1; 15], vec![2; 30]].concat());
        let mut unsent = 0;
        outbox.truncate(|_| unsent += 1);
        assert_eq!((unsent, outbox.bytes()), (1, 15), "the frame that is partly on the wire stays");
        outbox.sent(15, |_| done += 1);
        assert!(outbox.is_empty() && done == 2);
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
            chosen.iter().for_each(|i| outbox.push(frames[*i].clone()));
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
        begun.sent(4, |_| {});
        assert_eq!(begun.next_span(&mut arena).map(|span| span.len), Some(26));
        assert_eq!(of(&[0, 2, 1]).next_span(&mut arena).map(|span| span.len), Some(30), "the other's begins in the middle");
        arena.clear();
        assert!(of(&[0, 1]).next_span(&mut arena).is_some() && arena.bytes.len() == 20);
    }

    #[test]
    fn a_write_that_was_cut_off_is_the_same_for_whoever_has_more_behind_it() {
        let frames: Vec<Rc<Frame>> = (0..40).map(|_| Rc::new(Frame::encoded(vec![0; 4_000]))).collect();
        let outbox = |count: usize| Outbox { bytes: 4_000 * count, frames: frames[..count].iter().cloned().collect(), ..Outbox::default() };
        let mut arena = Arena::new(1 << 20);
        let span = outbox(40).next_span(&mut arena).expect("there are some");
        assert_eq!(span.len, COALESCE_WRITE_BYTES_MAX / 4_000 * 4_000);
        assert_eq!(outbox(30).next_span(&mut arena), Some(span));
        assert_ne!(outbox(16).next_span(&mut arena), None);
        assert_eq!(arena.bytes.len(), span.len, "16 frames are what the cut one is made of");
    }
}
